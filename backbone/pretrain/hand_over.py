"""From the weights of any pipeline the image encoder of a BEV model, with a report and where the weights come from.

Understood is what core.checkpoint.load_checkpoint understands: our classification, detection, segmentation and mono-3D
checkpoints; released InternImage ones (``backbone.``, ``neck.``); timm's, whose names are ours; Hugging Face's
(``model.``, ``layer_scale1``); torchvision's and mmdet's ResNets; the first of the two trunks of a composite encoder.

The encoder is all or nothing: a tensor that lacks, has another shape or belongs to a larger encoder is refused. Neck
and perspective head are taken where they fit, a neck's levels by their channels: detectors have one more than BEV
models. What comes out holds these parts alone; `train --fine-tune` starts from it.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ...core.checkpoint import check_finite, load_state, save_safetensors
from ...core.errors import CheckpointError, ConfigError
from ...core.weights.files import read_state_dict
from ...core.weights.lineage import KEY, Stage, lineage_of, to_json
from ...core.weights.names import StateDict, prefix_in, some, weights_of

ENCODERS = ("img_backbone", "backbone")
"""What models call their image encoder; the neck is called likewise."""
PERSPECTIVE = "fcos3d_bbox_head"
LATERAL = re.compile(r"^lateral_convs\.\d+\.conv\.weight$")
LEVEL = re.compile(r"^(lateral_convs|fpn_convs)\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class HandOverReport:
    """What became of the tensors."""

    source: str
    target: str
    """Name of the config that they are for."""
    taken: dict[str, int]
    """Part of the model -> number of tensors, all of an encoder's"""
    parameters: int
    """numbers in them"""
    left_over: dict[str, int]
    """prefix of the source's keys -> tensors that have no place in the model"""
    new: dict[str, int]
    """part of the model -> tensors that start anew"""
    reasons: dict[str, str]
    """part of the model -> why it was not taken, or not all of it"""
    notes: tuple[str, ...] = ()
    """conversions"""
    lineage: tuple[Stage, ...] = field(default_factory=tuple)
    """the trainings behind the weights"""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "lineage": [stage.as_dict() for stage in self.lineage]}

    def __str__(self) -> str:
        listed = lambda counts: ", ".join(f"{part} ({count} tensors)" for part, count in counts.items()) or "nothing"
        lines = [
            f"{self.source} -> {self.target}: {self.parameters / 1e6:.2f} M parameters",
            f"taken: {listed(self.taken)}",
            f"left over: {listed(self.left_over)}",
            f"new in the model: {listed(self.new)}",
            *(f"{part}: {why}" for part, why in self.reasons.items()),
            *self.notes,
        ]
        if not self.lineage:
            lines.append("trained on: the file does not say; state it with --note data=..., --note split=...")
        lines += [f"trained on ({i}): {stage}" for i, stage in enumerate(self.lineage, 1)]
        return "\n  ".join(lines)


def hand_over(
    weights: str | os.PathLike[str],
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    target: str = "",
    prefix: str | None = None,
    use_ema: bool = False,
    notes: Mapping[str, str] | None = None,
) -> HandOverReport:
    """Write what ``weights`` hold for the image encoder of ``model`` to the safetensors file ``out``.

    model: of the config to start, on any device, the meta device included; it is left with unspecified weights.
    target: the config's name, for the record. prefix: of the encoder's keys in ``weights`` where it is not found.
    use_ema: take the averaged weights of a checkpoint that has both. notes: what the source does not say of its own
    training, such as ``data``, ``split``, ``recipe``; they are kept in the header.

    The header has, beside the notes, ``lineage`` (core/weights/lineage.py), ``classes`` of the source where a head was
    taken, ``source``, ``handed_to`` and the report as JSON.

    Raises ConfigError for a model without an image encoder, CheckpointError for a source that is broken, not finite or
    does not fit, naming keys and shapes; nothing is written then.
    """
    encoder_name = next((name for name in ENCODERS if isinstance(getattr(model, name, None), nn.Module)), None)
    if encoder_name is None:
        raise ConfigError(f"{target or type(model).__name__}: no {' or '.join(ENCODERS)} to hand weights to")
    source, encoder, own = str(weights), getattr(model, encoder_name), weights_of(model)
    state = read_state_dict(weights, use_ema=use_ema)
    stages = _with_notes(lineage_of(weights), notes or {}, Path(weights).name)
    place = _place_of(state, encoder, source, prefix)
    inside = _inside(state, encoder, place)
    used, reasons = {place + key for key in inside}, {}
    if any(value.is_meta for value in weights_of(encoder).values()):
        encoder.to_empty(device="cpu")  # every value comes from the source, or nothing is written
    report = load_state(encoder, inside or state, source=source)  # adapts keys; raises where one lacks or does not fit
    out_state: StateDict = {f"{encoder_name}.{key}": value for key, value in weights_of(encoder).items()}
    neck_name, neck_place = encoder_name.replace("backbone", "neck"), _neck_place(place)
    for name, theirs in ((neck_name, neck_place), (PERSPECTIVE, f"{PERSPECTIVE}.")):
        wanted = {key.removeprefix(f"{name}."): value for key, value in own.items() if key.startswith(f"{name}.")}
        stored = {key.removeprefix(theirs): value for key, value in state.items() if theirs and key.startswith(theirs)}
        if not wanted or not stored:
            continue
        fitting, why = _fit(wanted, _renumbered(stored, wanted))
        if why:
            reasons[name] = why
        original = {id(value): key for key, value in stored.items()}
        used |= {theirs + original[id(value)] for value in fitting.values()}
        out_state |= {f"{name}.{key}": value.to(wanted[key].dtype) for key, value in fitting.items()}
    check_finite(out_state, {}, source)

    result = HandOverReport(
        source=source,
        target=target or type(model).__name__,
        taken=dict(Counter(key.partition(".")[0] for key in out_state)),
        parameters=sum(value.numel() for value in out_state.values()),
        left_over=dict(Counter(key.partition(".")[0] for key in state if key not in used)),
        new=dict(Counter(key.partition(".")[0] for key in own if key not in out_state)),
        reasons=reasons,
        notes=report.notes,
        lineage=stages,
    )
    header = {KEY: to_json(stages), "source": Path(weights).name, "handed_to": result.target, **(notes or {})}
    if PERSPECTIVE in result.taken and stages and stages[-1].classes:
        header["classes"] = json.dumps(stages[-1].classes)
    header["hand_over"] = json.dumps({key: value for key, value in result.as_dict().items() if key != "lineage"})
    save_safetensors(out_state, out, header)
    return result


def _with_notes(stages: tuple[Stage, ...], notes: Mapping[str, str], file: str) -> tuple[Stage, ...]:
    """The stages, with notes on the last one; what they state and it does not becomes part of its record."""
    if not notes:
        return stages
    *before, last = stages or (Stage(file=file),)
    stated = {key: notes[key] for key in ("recipe", "split", "command") if key in notes and not getattr(last, key)}
    return (*before, replace(last, notes={**last.notes, **notes}, **stated))


def _place_of(state: StateDict, encoder: nn.Module, source: str, prefix: str | None) -> str:
    """What stands before the encoder's keys in the source."""
    own = list(weights_of(encoder))
    place = prefix_in(state, own) if prefix is None else prefix
    if not any(key.startswith(place) for key in state):
        raise CheckpointError(f"{source}: no key starts with {place!r}; the first are {some(list(state))}")
    return place


def _inside(state: StateDict, encoder: nn.Module, place: str) -> StateDict:
    """The encoder's tensors by their names inside it: of its children, whatever else stands beside them."""
    children = {key.partition(".")[0] for key in weights_of(encoder)}
    bare = {key.removeprefix(place): value for key, value in state.items() if key.startswith(place)}
    return {key: value for key, value in bare.items() if key.partition(".")[0] in children}


def _neck_place(place: str) -> str:
    """Where the neck of an encoder below ``place`` is; '' where an encoder stands alone."""
    before, backbone, _ = place.partition("backbone.")
    return f"{before}neck." if backbone else ""


def _renumbered(stored: StateDict, wanted: Mapping[str, Any]) -> StateDict:
    """A pyramid's levels under the numbers that they have in the model, known by their encoder's channels.

    Detectors take maps from stride 4 on, BEV models from stride 8. Convolutions of further maps count from the last.
    """
    laterals = [
        {int(key.split(".")[1]): value.shape[1] for key, value in side.items() if LATERAL.match(key)}
        for side in (stored, wanted)
    ]
    if not all(laterals) or len(set(laterals[0].values())) < len(laterals[0]):
        return stored
    to = {channels: level for level, channels in laterals[1].items()}
    level_of = {level: to[channels] for level, channels in laterals[0].items() if channels in to}
    last = [max(levels) for levels in laterals]
    if level_of.get(last[0]) != last[1]:
        return stored
    moved: StateDict = {}
    for key, value in stored.items():
        match = LEVEL.match(key)
        if match is None:
            moved[key] = value
            continue
        level = int(match[2])
        new = level_of.get(level) if level <= last[0] else level - last[0] + last[1]
        if new is not None:
            moved[f"{match[1]}.{new}.{match[3]}"] = value
    return moved


def _fit(wanted: Mapping[str, Any], stored: StateDict) -> tuple[StateDict, str]:
    """The stored tensors of a part if all of its own are there and fit, else none; and what is wrong.

    A pyramid's convolutions of further maps, which many detectors do without, may lack.
    """
    levels = sum(bool(LATERAL.match(key)) for key in wanted)
    further = lambda key: bool(match := LEVEL.match(key)) and int(match[2]) >= levels > 0
    absent = [key for key in wanted if key not in stored]
    lacking = [key for key in absent if not further(key)]
    wrong = [
        f"{key} is {list(stored[key].shape)}, the model's {list(value.shape)}"
        for key, value in wanted.items()
        if key in stored and stored[key].shape != value.shape
    ]
    problems = [f"the source lacks {some(lacking)}"] * bool(lacking) + [some(wrong, "; ")] * bool(wrong)
    if problems:
        return {}, f"not taken: {'; '.join(problems)}"
    why = f"the source lacks {some(absent)}, which start anew" if absent else ""
    return {key: stored[key] for key in wanted if key in stored}, why
