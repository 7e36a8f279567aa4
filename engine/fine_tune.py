"""Starting from weights of another task shape: other classes, range, grid, queries, cameras, frames or heads.

Beside the strict loader (core/checkpoint.py), which refuses what does not fit. The rules, each a pure function:

    BEV queries, positional embeddings,   resized bilinearly to another number of cells: a place keeps in metres what it
    the memory's mean map                 had, a border beyond the old one repeats it (grid_weights.py); the old area
                                          on the new where the checkpoint's range is not known; taken as they are on
                                          the same number of cells, also where those have other sizes in metres
    camera embeddings                     by camera name, or in order; the mean of all for additional cameras
    class layers                          rows by class name; the model's own initialisation for new classes
    object and lane queries               the first ones, or repeated in groups
    everything else                       taken where the shape is the same, otherwise started anew

Letters: K classes, C channels, Q queries, N cameras, V values per class.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..core.checkpoint import check_finite, left_on_meta, put
from ..core.errors import CheckpointError
from ..core.weights.files import find_weights_file, is_safetensors, read_metadata, read_pth, read_state_dict
from ..core.weights.names import StateDict, fit_prefix, unwrapped, weights_of
from ..core.weights.published_keys import own_name
from ..core.weights.shards import whole
from .config import load_config, shipped_configs, task_names
from .grid_weights import (
    COLUMN_EMBEDDING,
    MEAN_MAP,
    ROW_EMBEDDING,
    SAME,
    Spans,
    grids_of,
    resize_bev_queries,
    resize_line,
    resize_map,
    spans_of,
)

ENCODERS = ("img_backbone.", "backbone.")
SHOWN = 6  # names of each kind in the printed report; fine_tune.json has all

ABSENT = "not in the checkpoint"
CAMERAS = "cams_embeds"
QUERIES = re.compile(r"(^|\.)(query_embedding\.weight|lane_head\.query\.weight|lane_head\.first_curves)$")
# Layers with K or V x K numbers along an axis, those of all classes side by side for each value in turn.
CLASS_LAYERS = (
    (re.compile(r"^(head|meta_head|bev_proposals\.heat|fcos3d_bbox_head\.fcos2d_head\.cls_logits)\.(weight|bias)$"), 0),
    (re.compile(r"^fcos3d_bbox_head\.fcos3d_head\.box3d_(quat|ctr|depth|size|conf)\.\d+\.(weight|bias)$"), 0),
    (re.compile(r"^pts_bbox_head\.cls_branches\.\d+\.\d+\.(weight|bias)$"), 0),
    (re.compile(r"^hybrid_queries\.score_proj\.weight$"), 1),
)


@dataclass
class FineTuneReport:
    """What became of each tensor."""

    path: str
    model: str
    taken: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    """name -> how"""
    by_class: list[str] = field(default_factory=list)
    """names of layers whose rows were copied by class name"""
    classes_taken: list[str] = field(default_factory=list)
    classes_new: list[str] = field(default_factory=list)
    new: dict[str, str] = field(default_factory=dict)
    """name -> why it starts anew"""
    left_out: dict[str, int] = field(default_factory=dict)
    """prefix of the checkpoint's keys -> number of tensors"""
    notes: list[str] = field(default_factory=list)
    parameters_taken: int = 0
    """numbers in tensors that were taken or resized, whole or by class"""
    parameters: int = 0
    """numbers in all tensors of the model"""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        share = 100 * self.parameters_taken / max(self.parameters, 1)
        count = len(self.taken) + len(self.resized) + len(self.by_class)
        millions = f"{self.parameters_taken / 1e6:.2f} M of {self.parameters / 1e6:.2f} M parameters"
        lines = [f"fine-tuning {self.model} from {self.path}: {count} tensors ({millions}, {share:.1f} %)"]
        if self.resized:
            lines.append(
                f"  resized ({len(self.resized)}): {_some([f'{k} ({how})' for k, how in self.resized.items()])}"
            )
        if self.by_class:
            names = ", ".join(self.classes_taken) or "none"
            lines.append(
                f"  by class name ({len(self.by_class)}): {names}; new: {', '.join(self.classes_new) or 'none'}"
            )
        if self.new:
            other = [f"{key} ({why})" for key, why in self.new.items() if why != ABSENT]
            parts = Counter(key.partition(".")[0] for key, why in self.new.items() if why == ABSENT)
            absent = [f"{part} ({count} tensors that the checkpoint lacks)" for part, count in parts.items()]
            lines.append(f"  started anew ({len(self.new)}): {_some([*absent, *other])}")
        if self.left_out:
            left_out = ", ".join(f"{prefix} ({count})" for prefix, count in self.left_out.items())
            lines.append(f"  left out: {left_out}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class Side:
    """The checkpoint or the model: tensors, and what their rows mean where that is known."""

    state: Mapping[str, Tensor]
    classes: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    spans: Spans | None = None
    """of the BEV map, metres; None where they are not known"""


def fine_tune(
    model: nn.Module, path: str | Path, classes: Sequence[str] = (), cameras: Sequence[str] = ()
) -> FineTuneReport:
    """Load what fits of the weights in ``path`` into ``model``, adapted by the rules above.

    classes, cameras: the model's, in its order. The checkpoint's are read from its notes (``classes``, ``cameras``),
    or from the shipped config that it names.

    Raises CheckpointError for a file that is missing, broken or no checkpoint, and where nothing of the image encoder
    fits; the model is then unchanged.
    """
    if empty := left_on_meta(model, {}):
        raise CheckpointError(
            f"{path}: the model is on the meta device ({empty[0]}, ...), and fine-tuning keeps the model's own values "
            "where nothing fits: build it on the CPU or a GPU"
        )
    model = unwrapped(model)
    state = fit_prefix(read_state_dict(path), model, str(path), parts=ENCODERS)
    state, notes = _in_current_keys(state, model)
    stated = _notes_of(path)
    source = Side(state, **_names_in(stated), spans=spans_of(_range_in(stated)))
    own = {key: whole(value) for key, value in weights_of(model).items()}
    range_m = getattr(getattr(model, "bev_map", None), "pc_range", None)
    target = Side(own, tuple(classes), tuple(cameras), spans_of(range_m))
    check_finite({key: value for key, value in state.items() if key in target.state}, target.state, str(path))
    groups = {key: _query_groups(model, key) for key in target.state if QUERIES.search(key)}
    adapted, report = adapt(source, target, groups)
    report.path, report.model, report.notes = str(path), type(model).__name__, [*notes, *report.notes]
    _check_encoder(report, source.state, target.state, model)
    put(model, adapted)
    return report


def adapt(source: Side, target: Side, groups: Mapping[str, int] | None = None) -> tuple[StateDict, FineTuneReport]:
    """The tensors of ``source`` in the shapes of ``target``, those of ``target`` where none fits, and a report.

    groups: number of query groups (Group DETR) of each of the target's query embeddings; default 1.
    """
    report, out = FineTuneReport("", ""), dict(target.state)
    class_keys = _class_keys(source, target)
    spans = (source.spans, target.spans) if source.spans and target.spans else ((SAME, SAME), (SAME, SAME))
    in_metres = ", by place" if spans[0] != spans[1] else ""
    if class_keys:
        report.classes_taken = [name for name in target.classes if name in source.classes]
        report.classes_new = [name for name in target.classes if name not in source.classes]
    for key, own in target.state.items():
        report.parameters += own.numel()
        stored = source.state.get(key)
        if stored is None:
            report.new[key] = ABSENT
            continue
        value, how = stored, ""
        if key in class_keys:
            value, how = class_rows(stored, own, source.classes, target.classes, class_keys[key]), "class"
        elif (grids := grids_of(key, source.state, target.state)) and grids[0] != grids[1]:
            value, how = resize_bev_queries(stored, *grids, *spans), f"{grids[0]} to {grids[1]} cells{in_metres}"
        elif key.endswith(MEAN_MAP) and stored.shape[1:] != own.shape[1:]:
            value = resize_map(stored, own.shape[1:], *spans)
            how = f"{tuple(stored.shape[1:])} to {tuple(own.shape[1:])} cells{in_metres}"
        elif key.endswith((ROW_EMBEDDING, COLUMN_EMBEDDING)) and len(stored) != len(own):
            axis = int(key.endswith(COLUMN_EMBEDDING))
            value = resize_line(stored, len(own), spans[0][axis], spans[1][axis])
            how = f"{len(stored)} to {len(own)}{in_metres}"
        elif key.rpartition(".")[2] == CAMERAS and (len(stored) != len(own) or source.cameras != target.cameras):
            value, how = camera_rows(stored, len(own), source.cameras, target.cameras)
        elif QUERIES.search(key) and len(stored) != len(own) and stored.shape[1:] == own.shape[1:]:
            value = resize_queries(stored, own, (groups or {}).get(key, 1))
            how = f"{len(stored)} to {len(own)} queries"
        if value.shape != own.shape:
            report.new[key] = f"is {list(stored.shape)}, the model's {list(own.shape)}"
            continue
        out[key] = value.to(own.dtype)
        share = len(report.classes_taken) / len(target.classes) if how == "class" else 1
        report.parameters_taken += round(own.numel() * share)
        if how == "class":
            report.by_class.append(key)
        elif how:
            report.resized[key] = how
        else:
            report.taken.append(key)
    surplus = Counter(key.partition(".")[0] for key in source.state if key not in target.state)
    report.left_out = {prefix: count for prefix, count in surplus.items()}
    if target.classes and not source.classes:
        report.notes.append("the checkpoint does not say its classes: class layers of the same size are taken in order")
    return out, report


# ------------------------------------------------------------------------------------------------------------- rules


def camera_rows(
    embedding: Tensor, count: int, names: Sequence[str] = (), wanted: Sequence[str] = ()
) -> tuple[Tensor, str]:
    """The embedding [N, C] of cameras ``names`` for ``count`` cameras ``wanted``, and in words how that was done.

    By name where both sides have names, one for each row, and share some; in order otherwise. Cameras without a row
    get the mean of all.
    """
    mean = embedding.float().mean(0).to(embedding.dtype)
    by_name = len(names) == len(embedding) and len(wanted) == count and bool(set(names) & set(wanted))
    if by_name:
        rows: list[int | None] = [list(names).index(name) if name in names else None for name in wanted]
    else:
        rows = [i if i < len(embedding) else None for i in range(count)]
    if rows == list(range(len(embedding))):
        return embedding, ""
    new = rows.count(None)
    how = f"{len(embedding)} to {count} cameras {'by name' if by_name else 'in order'}"
    how += f", {new} as the mean of all" if new else ""
    return torch.stack([mean if row is None else embedding[row] for row in rows]), how


def class_rows(stored: Tensor, own: Tensor, names: Sequence[str], wanted: Sequence[str], axis: int = 0) -> Tensor:
    """A class layer for the classes ``wanted``: numbers of classes in ``names`` are the checkpoint's, others ``own``.

    Along ``axis`` lie V * K numbers, the K classes side by side for each of V values in turn.
    """
    stored, out = stored.movedim(axis, 0), own.movedim(axis, 0).clone()
    from_values, to_values = stored.unflatten(0, (-1, len(names))), out.unflatten(0, (-1, len(wanted)))  # [V, K, ...]
    for row, name in enumerate(wanted):
        if name in names:
            to_values[:, row] = from_values[:, list(names).index(name)].to(out.dtype)
    return out.movedim(0, axis)


def resize_queries(stored: Tensor, own: Tensor, groups: int = 1) -> Tensor:
    """Queries [Q, ...] for ``own``'s number of them: the first ones where there are enough.

    Otherwise all of them again and again, if no group of the model (``groups``, Group DETR) then has one twice; else
    each group begins with all of the checkpoint's and goes on with its own.
    """
    count = len(own)
    if len(stored) >= count:
        return stored[:count]
    if count // groups <= len(stored):
        return tile_queries(stored, count)
    out = own.clone().unflatten(0, (groups, -1))
    out[:, : len(stored)] = stored.to(own.dtype)
    return out.flatten(0, 1)


def tile_queries(queries: Tensor, count: int) -> Tensor:
    """Object queries [q, C] repeated to [count, C], the last time in part.

    BEVFormer v2 (arXiv 2211.10439) trains eleven groups (Group DETR, 9900 queries) where its base config has one (900):
    a fine-tuning that starts from the base then starts every group alike.
    """
    return queries[torch.arange(count) % len(queries)]


# ----------------------------------------------------------------------------------------------- what the keys mean


def names_of(path: str | Path) -> dict[str, tuple[str, ...]]:
    """``classes`` and ``cameras`` of a checkpoint file, where its notes or the shipped config they name have them."""
    return _names_in(_notes_of(path))


def _names_in(meta: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    stated = {key: meta.get(key) for key in NAMES}
    stated["classes"] = stated["classes"] or meta.get("CLASSES")  # mmdet3d 0.x
    names = {
        key: tuple(value)
        for key, value in stated.items()
        if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value)
    }
    config = _shipped_config(meta)
    return names if config is None else {**task_names(config), **names}


def _range_in(meta: Mapping[str, Any]) -> Any:
    """``pc_range`` of the BEV map that a checkpoint states, else of the shipped config that it names; None without."""
    stated = meta.get("pc_range")
    if isinstance(stated, list | tuple) and len(stated) == 6 and all(isinstance(own, int | float) for own in stated):
        return stated
    config = _shipped_config(meta)
    return None if config is None else config.get("model", {}).get("bev_map", {}).get("pc_range")


def _notes_of(path: str | Path) -> Mapping[str, Any]:
    """What a checkpoint file says beside its tensors."""
    path = find_weights_file(Path(path))
    if path.name.endswith(".index.json"):
        return {}
    if is_safetensors(path):
        meta: dict[str, Any] = {**read_metadata(path)}
        return meta | {key: _json_list(meta.get(key, "")) for key in (*NAMES, "pc_range")}
    content = read_pth(path)
    meta_of = content.get("meta") if isinstance(content, Mapping) else None
    return meta_of if isinstance(meta_of, Mapping) else {}


def _shipped_config(meta: Mapping[str, Any]) -> Config | None:
    """Never a file that the checkpoint names: it would run."""
    config = meta.get("config")
    return load_config(config) if isinstance(config, str) and config in shipped_configs() else None


NAMES = ("classes", "cameras")


def _json_list(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _in_current_keys(state: StateDict, model: nn.Module) -> tuple[StateDict, list[str]]:
    """The checkpoint as the model, and its encoder, translate keys of related checkpoints; and notes on that."""
    notes: list[str] = []
    for prefix in ("", *ENCODERS):
        part = getattr(model, prefix.rstrip("."), None) if prefix else model
        adapt = getattr(part, "adapt_checkpoint", None)
        if adapt is not None:
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            adapted, remarks = adapt(own)
            others = {key: value for key, value in state.items() if not key.startswith(prefix)}
            state = {**others, **{prefix + key: value for key, value in adapted.items()}}
            notes += remarks
    return state, notes


def _class_keys(source: Side, target: Side) -> dict[str, int]:
    """Class layer -> axis of its classes, where both sides name theirs and either's sizes agree with them."""
    if not source.classes or not target.classes or source.classes == target.classes:
        return {}
    found = {}
    for key, own in target.state.items():
        axes = [axis for pattern, axis in CLASS_LAYERS if pattern.search(key) and key in source.state]
        if axes and _last_of_branch(key, target.state):
            axis, stored = axes[0], source.state[key]
            sizes = (stored.shape[axis] / len(source.classes), own.shape[axis] / len(target.classes))
            others = [[n for i, n in enumerate(t.shape) if i != axis] for t in (stored, own)]
            if sizes[0] == sizes[1] == int(sizes[0]) and others[0] == others[1]:
                found[key] = axis
    return found


def _last_of_branch(key: str, state: Mapping[str, Tensor]) -> bool:
    """Whether the key is of the last layer of a class branch, whose hidden layers may have as many channels."""
    match = re.match(r"(pts_bbox_head\.cls_branches\.\d+\.)(\d+)\.", key)
    return match is None or not any(
        other.startswith(match[1]) and int(other[len(match[1]) :].partition(".")[0]) > int(match[2]) for other in state
    )


def _query_groups(model: nn.Module, key: str) -> int:
    """Query groups of the module that owns a query embedding."""
    owner: Any = model
    for part in own_name(model, key).split(".")[:-1]:
        if isinstance(getattr(owner, "num_groups", None), int):
            break
        owner = getattr(owner, part)
    return getattr(owner, "num_groups", 1)


def _check_encoder(
    report: FineTuneReport, source: Mapping[str, Tensor], target: Mapping[str, Tensor], model: nn.Module
) -> None:
    """Refuse a checkpoint of which no matrix of the image encoder fits, with what both sides look like."""
    prefix = next((p for p in ENCODERS if any(key.startswith(p) for key in target)), "")
    matrices = [key for key, value in target.items() if key.startswith(prefix) and value.dim() > 1]
    if not matrices or set(matrices) & set(report.taken):
        return
    described = []
    for state in (source, dict(target)):
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        encoder = model.get_submodule(own_name(model, prefix).rstrip("."))
        describe = getattr(encoder, "describe_checkpoint", None)
        shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in own.items() if value.dim() > 1)
        described.append((describe(own) if describe else None) or shapes[:120] or f"no {prefix}* at all")
    part = prefix.rstrip(".") or "the model"
    raise CheckpointError(
        f"{report.path}: nothing of {part} fits, so there is nothing to start from: the checkpoint has {described[0]}; "
        f"the model has {described[1]}. Use the encoder's settings of the checkpoint's config."
    )


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:SHOWN]) + (f", ... {len(items) - SHOWN} more" if len(items) > SHOWN else "")
