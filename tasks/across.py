"""A model on a data set that is not like its own: the mapping of classes, and what a report must say beside scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bev.evaluation.class_mapping import ClassMapping, evaluate_mapped
from ..bev.evaluation.nuscenes_submission import CLASS_RANGE_M, OTHER_RANGE_M
from ..core.cameras import PUBLISHED_ORDERS, embedding_rows
from ..core.errors import CheckpointError
from ..core.frames import CameraView, Frame
from ..core.weights.lineage import lineage_of
from ..core.weights.shipped import weights_file
from .base import GroundTruth
from .run import class_names, input_dataset, input_settings

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..bev.evaluation.nuscenes_boxes import ScoredBoxes
    from ..bev.protocol import PerceptionModel


@dataclass(frozen=True)
class AcrossSets:
    """mapping: of classes and cameras; about: lines on the model; cameras: those of the set that it saw, None: all."""

    mapping: ClassMapping
    about: tuple[str, ...] = ()
    cameras: tuple[str, ...] | None = None

    def with_model(
        self, config: Config, model: PerceptionModel, frames: Sequence[Frame], weights: str | Path | None = None
    ) -> AcrossSets:
        """The same, with what is to be said of a model and of the cameras that it sees in these frames.

        weights: their file or shipped name, whose record of trainings is quoted. Raises ConfigError where the mapping
        leaves a class of the model or a camera open, or the rig does not fit the model.
        """
        self.mapping.demand(frames, class_names(config))
        seen = self.mapping.renamed(frames)
        names = tuple(input_dataset(config, model, seen).camera_names)
        own_name = {stands_for: name for name, stands_for in self.mapping.cameras.items() if stands_for}
        about = [*_model_lines(config, weights), *_camera_lines(config, model, seen, names, own_name)]
        return replace(self, about=tuple(about), cameras=tuple(own_name.get(name, name) for name in names))

    def score(
        self, truth: GroundTruth, boxes: Mapping[str, ScoredBoxes], own_range_m: Mapping[str, float]
    ) -> dict[str, Any]:
        """Scores with ``across_sets``, which holds the report's lines as ``report``."""
        scores = evaluate_mapped(truth.frames, boxes, self.mapping, own_range_m, self.cameras)
        found = scores["across_sets"]
        lines = [*_set_lines(truth), *_mapping_lines(found)]
        if self.about:
            found["report"] = [*self.about, *lines]
        else:
            names = {name for own in boxes.values() for name in own.names}
            cut = _cut_lines(truth.frames, boxes, self.mapping, own_range_m)
            found["report"] = [f"model     not known: a submission with {_listed(names)}", *lines, *cut]
        return scores


def _model_lines(config: Config, weights: str | Path | None) -> list[str]:
    lines = [f"model     {config.get('config_name', 'not named')}" + (f", weights {weights}" if weights else "")]
    lines += [f"          trained for {', '.join(class_names(config))}"]
    try:
        stages = () if weights is None else lineage_of(weights_file(weights))
    except CheckpointError:
        stages = ()
    for stage in stages:
        data = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in stage.data.items() if "source" in key)
        lines.append(f"          trained by {stage.name}" + (f" on {data}" if data else ""))
    if area := input_settings(config).get("pc_range"):
        x0, y0, _, x1, y1, _ = (float(value) for value in area)
        lines.append(f"          its BEV map ends at x {x0:g} to {x1:g}, y {y0:g} to {y1:g} m: no boxes beyond")
    return lines


def _camera_lines(
    config: Config,
    model: PerceptionModel,
    frames: Sequence[Frame],
    names: Sequence[str],
    own_name: Mapping[str, str],
) -> list[str]:
    """Which cameras of the rig the model saw, where they are mounted, and whose embedding each got."""
    from ..bev.map.bev_map import BevMap

    bev_map = next((module for module in model.modules() if isinstance(module, BevMap)), None)
    rows: Sequence[int] = ()
    trained: Sequence[str] = ()
    if bev_map is not None:
        count = len(bev_map.cams_embeds)
        rows = embedding_rows(names, count) if bev_map.camera_ids is None else bev_map.camera_ids
        stated = tuple(input_settings(config).get("camera_names") or ())
        known = [order for order in PUBLISHED_ORDERS if len(order) == count]
        trained = stated if len(stated) == count else known[0] if known else ()
    views: dict[str, CameraView] = {}
    for frame in frames:
        for view in frame.cameras:
            views.setdefault(view.name, view)
    lines = []
    for i, name in enumerate(names):
        text = f"{own_name[name]} as {name}" if own_name.get(name, name) != name else name
        x, y, _ = views[name].ego_from_camera[:3, 2]
        place = f"{views[name].ego_from_camera[2, 3]:.2f} m high, towards {math.degrees(math.atan2(y, x)):.0f} deg"
        size = "{} x {} px".format(*views[name].image_size_px)
        row = f"embedding {rows[i]}" if i < len(rows) else "no embedding"
        row += f", {trained[rows[i]]}'s" if i < len(rows) and rows[i] < len(trained) else ""
        lines.append(f"{text:<32}{row:<34}{place}, {size}")
    if unused := [name for k, name in enumerate(trained) if k not in rows[: len(names)]]:
        lines.append(f"no camera for {', '.join(unused)}")
    return [("cameras   " if i == 0 else " " * 10) + line for i, line in enumerate(lines)]


def _set_lines(truth: GroundTruth) -> list[str]:
    notes = [frame.annotations for frame in truth.frames if frame.annotations is not None]
    names = {name for own in notes for name in own.names} - {""}
    samples = f"{len(notes)} labelled samples" + (f" of {len(truth.frames)}" if len(notes) < len(truth.frames) else "")
    return [f"data      {truth.source}: {samples}, {sum(map(len, notes))} labels of {_listed(names)}"]


def _mapping_lines(found: Mapping[str, Any]) -> list[str]:
    """The mapping, ranges, and what of the data is left out for which reason."""
    rows = [
        f"{name} within {found['ranges_m'][name]:g} m: predictions {', '.join(parts['predictions'])}; labels "
        f"{', '.join(parts['labels'])}"
        for name, parts in found["classes"].items()
    ]
    lines = [("classes   " if i == 0 else " " * 10) + row for i, row in enumerate(rows)]
    for side, counts in found["left_out"].items():
        of = ", ".join(f"{count} {name or 'without a class'}" for name, count in Counter(counts).most_common())
        text = f"{side}: {of or 'none by class'}"
        text += f"; {found['out_of_view'][side]} that no camera sees" if found["in_view"] else ""
        why = "beyond the ranges, in bicycle racks" + (", with too few points" if side == "labels" else "")
        lines.append(f"left out  {text}; {found['uncounted'][side]} {why}")
    errors = found["without_errors"]
    if errors["stated"] or errors["unknown_in_labels"]:
        stated = [f"{name} (the mapping says so)" for name in errors["stated"]]
        unknown = [
            f"{name} (no label states it)" for name in errors["unknown_in_labels"] if name not in errors["stated"]
        ]
        lines.append(f"errors    left out of NDS: {', '.join([*stated, *unknown])}")
    if found["unlabelled"]:
        lines.append(f"no label  counts of {', '.join(found['unlabelled'])}: AP 0 in the mean; look at the others")
    return lines


def _cut_lines(
    frames: Sequence[Frame],
    boxes: Mapping[str, ScoredBoxes],
    mapping: ClassMapping,
    own_range_m: Mapping[str, float],
) -> list[str]:
    """Classes of a submission that reach no farther than `predict` writes them for their own benchmark."""
    farthest: dict[str, float] = {}
    for frame in frames:
        if (own := boxes.get(frame.token)) is None:
            continue
        away = np.linalg.norm(own.centre_global_m[:, :2] - frame.global_from_ego[:2, 3], axis=1)
        for name, distance in zip(own.names, away):
            farthest[name] = max(farthest.get(name, 0.0), float(distance))
    ranges = mapping.ranges_m(own_range_m)
    lines = []
    for name, reach in sorted(farthest.items()):
        written = {**CLASS_RANGE_M, **own_range_m}.get(name, OTHER_RANGE_M)
        common = mapping.predictions[name]
        if common and reach <= written < ranges[common]:
            lines.append(
                f"cut       {name} ends at {reach:.0f} m: written within {written:g} m, scored to {ranges[common]:g}"
            )
    return lines


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "no class"
