"""Layer-wise learning-rate decay: early layers of a pretrained encoder learn more slowly than late ones.

The two released recipes of InternImage (arXiv 2211.05778) as pure functions from parameter names to learning-rate
scale and weight decay, and a constructor of MMEngine optimizers for any model around an InternImage.

Both recipes number the trunk's blocks through all levels. The downsampling and the norm after a level count with the
first block of the next level. They differ in the details that the functions state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import Tensor, nn

from ..backbone.internimage.composite import CBInternImage
from ..backbone.internimage.model import InternImage
from ..core.errors import ConfigError
from ..core.registries import OPTIM_WRAPPER_CONSTRUCTORS
from ..core.weights.published_keys import published_name

NamedParameters = Iterable[tuple[str, Tensor]]
STEM = -1
LEVELS_OF_DINO = "level_embed"
"""What mmdet 3.3 calls the release's bbox_head.transformer.level_embeds."""


@dataclass(frozen=True)
class ParamPolicy:
    """How one parameter is trained."""

    group: str
    """Name of its group: equal names have equal policies."""
    lr_scale: float
    """Factor on the base learning rate."""
    weight_decay: float


def classification_policies(
    named_parameters: NamedParameters,
    *,
    depths: Sequence[int],
    layer_decay_rate: float | None,
    dcn_lr_mul: float = 1.0,
    weight_decay: float = 0.05,
) -> dict[str, ParamPolicy]:
    """The classification recipe, exactly as released, for parameters of an InternImage classifier.

    The last block learns at the full rate, each earlier one at `layer_decay_rate` of the next; the stem learns as the
    first block. Heads, the last norm and (an oversight of the release, kept here) `levels.2.post_norms` learn fully.
    With layer decay, `dcn_lr_mul` scales offset branches and centre-feature gates; without, it has no effect.
    Tensors of one dimension and biases have no weight decay.
    """
    policies = {}
    for name, parameter in named_parameters:
        block = None if ".post_norms." in name or name.startswith("levels.3.norm") else block_index(name, depths)
        scale = 1.0
        if layer_decay_rate is not None:
            if block is not None:
                scale = layer_decay_rate ** (sum(depths) - 1 - max(block, 0))
            if "offset" in name or "center_feature_scale_proj" in name:
                scale *= dcn_lr_mul
        flat = parameter.ndim <= 1 or name.endswith(".bias")
        policies[name] = ParamPolicy(name, scale, 0.0 if flat else weight_decay)
    return policies


def detection_policies(
    named_parameters: NamedParameters,
    *,
    depths: Sequence[int],
    layer_decay_rate: float,
    weight_decay: float = 0.05,
    offset_lr_scale: float = 1.0,
    prefix: str = "backbone.",
    segmentation: bool = False,
) -> dict[str, ParamPolicy]:
    """The detection or segmentation recipe, exactly as released, for parameters of a whole detector.

    Everything outside the encoder learns at the full rate, the last block at `layer_decay_rate` of it and so on down to
    the stem; level embeddings (and the queries of a mask decoder in segmentation) learn as the stem. The last norm
    counts with the first block of level 3. As released, `levels.2.post_norms.m` counts as block m of level 2, and a
    composite backbone has no decay but for its stem in segmentation (docs/quirks.md#layer-decay-of-post-norms).
    `offset_lr_scale` applies to sampling offsets and reference points of detection heads. One-dimensional tensors,
    biases, norms and sampling offsets have no weight decay.
    """
    last = sum(depths) + 1
    stem_like = ("level_embeds",)
    stem_prefixes = [prefix + "patch_embed."]
    if segmentation:
        parts = ("mask_embed", "cls_embed", "level_embed", "query_embed", "query_feat")
        stem_prefixes += [f"decode_head.{part}" for part in parts] + [prefix + "cb_modules.0.patch_embed."]
    policies = {}
    for name, parameter in named_parameters:
        layer = last
        if name.startswith(tuple(stem_prefixes)) or any(part in name for part in stem_like) or name == LEVELS_OF_DINO:
            layer = 0
        elif name.startswith(prefix) and (block := block_index(name.removeprefix(prefix), depths)) is not None:
            layer = 1 + block
        flat = parameter.ndim == 1 or name.endswith(".bias")
        flat = flat or any(part in name for part in ("relative_position", "norm", "sampling_offsets"))
        group = f"layer_{layer}_{'no_decay' if flat else 'decay'}"
        scale = layer_decay_rate ** (last - layer)
        if not segmentation and ("sampling_offsets" in name or "reference_points" in name):
            group += "_offset_lr_scale"
            scale *= offset_lr_scale
        policies[name] = ParamPolicy(group, scale, 0.0 if flat else weight_decay)
    return policies


def block_index(name: str, depths: Sequence[int], post_norm_block_ids: Sequence[int] | None = None) -> int | None:
    """Number of the block, through all levels, that a trunk parameter learns with.

    `STEM` for the stem, None for what is not of the trunk. A norm after block b of level 2 counts with that block if
    `post_norm_block_ids` is given (the right thing), else the m-th such norm counts as block m (as released).
    """
    if name.startswith("patch_embed."):
        return STEM
    if found := re.match(r"gamma(\d)$", name):  # a composite backbone's feedback enters at the level's first block
        return sum(depths[: int(found[1])])
    found = re.match(r"levels\.(\d)\.(\w+)\.(?:(\d+)\.)?", name)
    if not found:
        return None
    level, part = int(found[1]), found[2]
    if part == "blocks":
        return sum(depths[:level]) + int(found[3])
    if part == "post_norms":
        number = int(found[3])
        return sum(depths[:level]) + (post_norm_block_ids[number] if post_norm_block_ids else number)
    return sum(depths[: min(level + 1, len(depths) - 1)])


def param_groups(named_parameters: NamedParameters, policies: Mapping[str, ParamPolicy], base_lr: float) -> list[dict]:
    """Optimizer parameter groups, one per group name, trainable parameters only."""
    groups: dict[str, dict] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        policy = policies[name]
        group = groups.setdefault(
            policy.group,
            {
                "params": [],
                "lr": base_lr * policy.lr_scale,
                "weight_decay": policy.weight_decay,
                "name": policy.group,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """MMEngine optimizer constructor for a model with an encoder: `optim_wrapper=dict(constructor=..., ...)`.

    Reads from `paramwise_cfg`, all optional:

    - `prefix` ("img_backbone."): where the encoder's parameters are in the model.
    - `layer_decay_rate` (1.0): learning rate of a block over that of the next, for an `InternImage` or
      `CBInternImage`; the detection recipe with its two oversights put right (`levels.2.post_norms` and composite
      backbones decay as they should).
    - `lr_mults` ({}): factor for parameters whose name starts with the key; the longest match counts. Here and in
      `no_decay` a parameter goes by its name in the model and by its key in checkpoints, where the two differ.
    - `decay_one_dim` (False): whether one-dimensional tensors (biases, norms, scales) have weight decay.
    - `no_decay` (()): parts of names; parameters that have one of them in their name have no weight decay.
    - `released` (None): "detection" or "segmentation" takes that release's recipe with its oversights
      (`detection_policies`) instead, then `lr_mults`; `offset_lr_scale` (1.0) is of that recipe.

    Raises:
        ConfigError: for an unknown option, a prefix without parameters, or layer decay on another encoder.
    """

    DEFAULTS = {
        "prefix": "img_backbone.",
        "layer_decay_rate": 1.0,
        "lr_mults": {},
        "decay_one_dim": False,
        "no_decay": (),
        "released": None,
        "offset_lr_scale": 1.0,
    }

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        given = dict(paramwise_cfg or {})
        if unknown := sorted(set(given) - set(self.DEFAULTS)):
            raise ConfigError(f"paramwise_cfg: unknown {', '.join(unknown)}; known are {', '.join(self.DEFAULTS)}")
        super().__init__(optim_wrapper_cfg, {**self.DEFAULTS, **given})
        if self.base_lr is None:
            raise ConfigError("optim_wrapper.optimizer needs an lr")
        if (released := self.paramwise_cfg["released"]) not in (None, "detection", "segmentation"):
            raise ConfigError(f"paramwise_cfg.released={released!r}: choose 'detection', 'segmentation' or None")

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module: Any = None) -> None:
        """Fill `params` with the groups of the whole model (MMEngine calls this once)."""
        named = list(module.named_parameters())
        params.extend(param_groups(named, self.policies(module), self.base_lr))

    def policies(self, model: nn.Module) -> dict[str, ParamPolicy]:
        """The policy of each parameter of `model`."""
        options = self.paramwise_cfg
        if options["released"]:
            return self._released(model)
        trunks = self._trunks(model) if options["layer_decay_rate"] != 1.0 else {}
        policies = {}
        for name, parameter in model.named_parameters():
            scale = 1.0
            for prefix, trunk in trunks.items():
                if not name.startswith(prefix):
                    continue
                block = block_index(name.removeprefix(prefix), trunk.depths, trunk.level2_post_norm_block_ids)
                if block is not None:
                    scale = options["layer_decay_rate"] ** (sum(trunk.depths) - block)
            names = (name, published_name(model, name))
            scale *= self._multiplier(names)
            flat = parameter.ndim <= 1 and not options["decay_one_dim"]
            flat = flat or any(part in own for part in options["no_decay"] for own in names)
            decay = 0.0 if flat else (self.base_wd or 0.0)
            policies[name] = ParamPolicy(f"lr_x{scale:.6g}_{'no_decay' if flat else 'decay'}", scale, decay)
        return policies

    def _multiplier(self, names: tuple[str, ...]) -> float:
        mults = self.paramwise_cfg["lr_mults"]
        matches = [key for key in mults if any(own.startswith(key) for own in names)]
        return mults[max(matches, key=len)] if matches else 1.0

    def _released(self, model: nn.Module) -> dict[str, ParamPolicy]:
        options = self.paramwise_cfg
        own = {name: published_name(model, name) for name, _ in model.named_parameters()}
        trunk = next(iter(self._trunks(model).values()))
        found = detection_policies(
            [(own[name], parameter) for name, parameter in model.named_parameters()],
            depths=trunk.depths,
            layer_decay_rate=options["layer_decay_rate"],
            weight_decay=self.base_wd or 0.0,
            offset_lr_scale=options["offset_lr_scale"],
            prefix=published_name(model, options["prefix"]),
            segmentation=options["released"] == "segmentation",
        )
        policies = {}
        for name, key in own.items():
            multiplier, policy = self._multiplier((name, key)), found[key]
            group = policy.group if multiplier == 1.0 else f"{policy.group}_x{multiplier:g}"
            policies[name] = ParamPolicy(group, policy.lr_scale * multiplier, policy.weight_decay)
        return policies

    def _trunks(self, model: nn.Module) -> dict[str, InternImage]:
        prefix = self.paramwise_cfg["prefix"]
        try:
            encoder = model.get_submodule(prefix.rstrip("."))
        except AttributeError as error:
            raise ConfigError(f"paramwise_cfg.prefix={prefix!r}: the model has no such part") from error
        if isinstance(encoder, InternImage):
            return {prefix: encoder}
        if isinstance(encoder, CBInternImage):
            return {f"{prefix}cb_modules.{i}.": trunk for i, trunk in enumerate((encoder.assistant, encoder.lead))}
        raise ConfigError(
            f"layer_decay_rate needs an InternImage at {prefix!r}, found {type(encoder).__name__}: leave it at 1.0 "
            "and use lr_mults"
        )


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ClassifierOptimizerConstructor(DefaultOptimWrapperConstructor):
    """The released classification recipe for a model whose published keys are those of an InternImage classifier.

    Reads from `paramwise_cfg`: `layer_decay_rate` (None: no layer decay) and `dcn_lr_mul` (1.0), see
    `classification_policies`. Biases and tensors of one dimension have no weight decay.

    Raises ConfigError for an unknown option, and for layer decay on a model without such a trunk.
    """

    DEFAULTS = {"layer_decay_rate": None, "dcn_lr_mul": 1.0}

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        given = dict(paramwise_cfg or {})
        if unknown := sorted(set(given) - set(self.DEFAULTS)):
            raise ConfigError(f"paramwise_cfg: unknown {', '.join(unknown)}; known are {', '.join(self.DEFAULTS)}")
        super().__init__(optim_wrapper_cfg, {**self.DEFAULTS, **given})
        if self.base_lr is None:
            raise ConfigError("optim_wrapper.optimizer needs an lr")

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module: Any = None) -> None:
        """Fill `params` with the groups of the whole model (MMEngine calls this once)."""
        params.extend(param_groups(list(module.named_parameters()), self.policies(module), self.base_lr))

    def policies(self, model: nn.Module) -> dict[str, ParamPolicy]:
        """The policy of each parameter of `model`; those that learn alike share a group."""
        trunk = next((part for part in model.modules() if isinstance(part, InternImage)), None)
        rate = self.paramwise_cfg["layer_decay_rate"]
        if trunk is None and rate is not None:
            raise ConfigError(f"paramwise_cfg.layer_decay_rate needs an InternImage; {type(model).__name__} has none")
        names = {name: published_name(model, name) for name, _ in model.named_parameters()}
        found = classification_policies(
            [(names[name], parameter) for name, parameter in model.named_parameters()],
            depths=() if trunk is None else trunk.depths,
            layer_decay_rate=rate,
            dcn_lr_mul=self.paramwise_cfg["dcn_lr_mul"],
            weight_decay=self.base_wd or 0.0,
        )
        group = lambda own: f"lr_x{own.lr_scale:.6g}_{'decay' if own.weight_decay else 'no_decay'}"
        return {name: replace(found[key], group=group(found[key])) for name, key in names.items()}
