"""What to do about a checkpoint that does not fit: the advice for the case at hand, most telling first."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .names import other_prefixes, some

ENCODERS = ("img_backbone.", "backbone.")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
LORA = re.compile(r"(^|[._])lora_|\.(lokr|loha|hada)_|adapter_")
QUANTISED = re.compile(
    r"(_packed_params|\.(qweight|qzeros|g_idx|zero_point|weight_scale|weight_scale_inv|SCB|quant_state)|\.weight\.absmax)"
)
HEAD = "head.weight"
OTHER_CONFIG = "use the config that it was trained with, or start training from what fits with `train --fine-tune`"
# Axis 0 of these tensors counts something that a user configures; see also engine/fine_tune.py.
COUNTS = (
    (re.compile(r"cls_branches\.\d+\.\d+\.(weight|bias)$|(^|\.)fc_cls\.|cls_logits\.(weight|bias)$"), "classes"),
    (re.compile(r"(^|\.)bbox_head\.cls_branches\.\d+\.(weight|bias)$|(^|\.)(conv_seg|conv_logits)\."), "classes"),
    (re.compile(r"decode_head\.cls_embed\.(weight|bias)$"), "classes with the one for nothing"),
    (re.compile(r"cams_embeds$"), "cameras"),
    (re.compile(r"(query_embedding\.weight|query\.weight|query_embed\.weight)$"), "queries"),
    (re.compile(r"bev_embedding\.weight$"), "BEV cells"),
    (re.compile(r"(row_embed|col_embed)\.weight$"), "rows or columns of the BEV grid"),
    (re.compile(r"level_embeds?$"), "feature levels"),
)


@dataclass(frozen=True)
class Mismatch:
    """Both sides of a load that is not clean, and the keys that do not meet."""

    state: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    loaded: int
    missing: Collection[str]
    unexpected: Collection[str]
    wrong_shape: Collection[str]
    on_meta: Collection[str] = ()


def hint(mismatch: Mismatch, model: nn.Module, source: str) -> str:
    """What the checkpoint looks like and what to do, in one line."""
    for rule in (_kind_of_weights, _shard, _prefix, _on_meta):
        if advice := rule(mismatch, source):
            return advice
    found = [_described(mismatch, model), _encoder_alone(mismatch), _classes(mismatch), _sizes(mismatch)]
    hints = [text for text in found if text]
    if not mismatch.loaded:
        state, own = list(mismatch.state), list(mismatch.own)
        hints.append(f"no key fits: the checkpoint has {some(state, limit=3)}, the model {some(own, limit=3)}")
    elif not hints and mismatch.missing and not mismatch.unexpected and not mismatch.wrong_shape:
        share = f"{mismatch.loaded} of the model's {len(mismatch.own)} tensors"
        hints.append(f"the checkpoint has {share} and nothing else: it was saved in part, or of a smaller model")
    own_fix = any("give class_rows" in text or "--fine-tune" in text for text in hints)
    return "; ".join([*hints, *([] if own_fix else [OTHER_CONFIG])])


def _kind_of_weights(mismatch: Mismatch, source: str) -> str:
    """LoRA adapters, quantised weights and shards of FSDP, which no config fits."""
    keys = mismatch.unexpected
    if lora := [key for key in keys if LORA.search(key)]:
        if mismatch.loaded or any(".base_layer." in key for key in keys):
            return (
                f"it holds LoRA adapters beside the weights ({lora[0]}): merge them (merge_and_unload) and save again"
            )
        return f"it holds LoRA adapters only ({lora[0]}): merge them into their base model and save that"
    small = [key for key in mismatch.state if mismatch.state[key].dtype in _SMALL_TYPES and key.endswith("weight")]
    if packed := [key for key in keys if QUANTISED.search(key)] or (small if keys else []):
        return f"it holds quantised weights ({packed[0]}): load the floating-point checkpoint, then quantise"
    if flat := [key for key in keys if "_flat_param" in key]:
        return f"it holds flat shards of FSDP ({flat[0]}): save with StateDictType.FULL_STATE_DICT"
    return ""


_SMALL_TYPES = frozenset((torch.int8, torch.uint8))


def _shard(mismatch: Mismatch, source: str) -> str:
    if SHARD.search(source) and mismatch.missing:
        return "it is one file of a sharded checkpoint: give its index (...index.json) or the folder"
    return ""


def _prefix(mismatch: Mismatch, source: str) -> str:
    """A prefix, unknown to us, in front of keys that otherwise are the model's."""
    if len(mismatch.missing) * 2 < len(mismatch.own):
        return ""
    prefixes = other_prefixes(mismatch.state, list(mismatch.own))
    if not prefixes:
        return ""
    choose = f"prefix={prefixes[0]!r}" if len(prefixes) == 1 else f"one of prefix={', '.join(map(repr, prefixes))}"
    return f"its keys are the model's behind {' and '.join(prefixes)}: give load_checkpoint {choose}"


def _on_meta(mismatch: Mismatch, source: str) -> str:
    if mismatch.on_meta and not mismatch.unexpected and not mismatch.wrong_shape:
        return "the model is on the meta device, and no file gives these tensors values: build it on the CPU"
    return ""


def _described(mismatch: Mismatch, model: nn.Module) -> str:
    """Which encoder either side is, where the model's can say and they differ."""
    for prefix in ("", *ENCODERS):
        part = getattr(model, prefix.rstrip("."), None) if prefix else model
        describe: Callable[[dict[str, Tensor]], str | None] | None = getattr(part, "describe_checkpoint", None)
        if describe is None:
            continue
        stored, wanted = (
            describe({key.removeprefix(prefix): value for key, value in side.items() if key.startswith(prefix)})
            for side in (mismatch.state, mismatch.own)
        )
        if stored and stored != wanted:
            return f"the checkpoint looks like {stored}" + (f", the model is {wanted}" if wanted else "")
    return ""


def _encoder_alone(mismatch: Mismatch) -> str:
    """The weights of an image encoder, such as an ImageNet classifier's, for a whole detector."""
    for prefix in ENCODERS:
        inner = [key.removeprefix(prefix) for key in mismatch.own if key.startswith(prefix)]
        others = any(not key.startswith(prefix) for key in mismatch.own)
        bare = sum(key in mismatch.state or prefix + key in mismatch.state for key in inner)
        foreign = any(key.startswith(prefix) is False and key in mismatch.own for key in mismatch.state)
        if inner and others and bare * 2 > len(inner) and not foreign:
            return (
                f"it holds the image encoder ({prefix.rstrip('.')}) only, as classification checkpoints do: start "
                "training from it with `train --fine-tune`, or name it as the encoder's `pretrained`"
            )
    return ""


def _classes(mismatch: Mismatch) -> str:
    if HEAD not in mismatch.wrong_shape:
        return ""
    classes, own_classes = mismatch.state[HEAD].shape[0], mismatch.own[HEAD].shape[0]
    return (
        f"the checkpoint has {classes} classes, the model {own_classes}: give class_rows (one row of the "
        "checkpoint per class) or random_head=True; train with --fine-tune to start the classification layer anew"
    )


def _sizes(mismatch: Mismatch) -> str:
    """What is configured to another number."""
    found: dict[str, str] = {}
    for key in mismatch.wrong_shape:
        have, want = mismatch.state[key].shape, mismatch.own[key].shape
        name = next((name for pattern, name in COUNTS if pattern.search(key)), None)
        if name and len(have) == len(want) and have[1:] == want[1:]:
            found.setdefault(name, f"{have[0]} {name}, the model has {want[0]}")
    if not found:
        return ""
    return f"it was trained with {'; '.join(found.values())}: set the same, or adapt it with `train --fine-tune`"
