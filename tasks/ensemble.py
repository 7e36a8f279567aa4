"""Several submissions of boxes as one: nuScenes or Waymo files, fused frame by frame (bev/evaluation/ensemble.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from ..bev.evaluation.ensemble import Fusion, fuse
from ..bev.evaluation.nuscenes_boxes import ScoredBoxes, read_inputs, read_submission
from ..bev.evaluation.nuscenes_rules import MAX_BOXES_PER_SAMPLE
from ..bev.evaluation.nuscenes_submission import CAMERA_META, CLASS_RANGE_M, NuScenesSubmission
from ..bev.evaluation.waymo_metrics import OBJECT_TYPES
from ..bev.evaluation.waymo_rules import read_with_meta
from ..bev.evaluation.waymo_submission import (
    CLASS_TYPES,
    Entry,
    as_submitted,
    write_submission,
)
from ..bev.evaluation.waymo_wire import WaymoObjects
from ..core.errors import ConfigError, SubmissionError
from ..core.frames import Frame
from ..core.progress import track
from ..geometry import invert_pose, matrix_to_quaternion, rotation_z, transform_boxes
from .registry import benchmark_of


def ensemble(
    paths: Sequence[Path],
    out: Path,
    weights: Sequence[float] = (),
    how: Fusion | None = None,
    frames: Sequence[Frame] | None = None,
    entry: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> str:
    """Fuse the submissions, write the result to ``out`` and say what it holds.

    weights: one for each file, default 1. frames: of the split; needed for LET-IoU of nuScenes' files, whose boxes are
    in the global frame, and compared with the files where they are given. entry: fields of Waymo's Entry instead of
    the first file's; of past and future frames the default is the most of any file. how.max_boxes: default the
    benchmark's, 500 for nuScenes, none for Waymo.
    Raises ConfigError for files of two benchmarks, other numbers of weights, LET-IoU without frames, options without
    an effect; SubmissionError for a file that breaks a rule, or files of different frames.
    """
    how = how or Fusion()
    weights = list(weights) or [1.0] * len(paths)
    if len(paths) < 2:
        raise ConfigError("one file is no ensemble: name two or more")
    if len(weights) != len(paths) or not all(np.isfinite(w) and w > 0 for w in weights):
        raise ConfigError(f"{len(paths)} files need as many weights above 0, got {weights}")
    kinds = {benchmark_of(path) for path in (*paths, out)}
    if len(kinds) > 1:
        raise ConfigError("files of two benchmarks cannot be fused: name .json files alone, or .tar.gz files alone")
    if kinds == {"argoverse2"}:
        raise ConfigError("files of Argoverse 2 are not fused: nuScenes' and Waymo's are")
    if entry is not None and kinds != {"waymo"}:
        raise ConfigError("the entry (--waymo-entry) is of Waymo's submissions, and these are nuScenes': leave it out")
    if kinds == {"waymo"}:
        return _waymo(paths, out, weights, how, frames, entry or {}, progress)
    return _nuscenes(paths, out, weights, how, frames, progress)


def _waymo(
    paths: Sequence[Path],
    out: Path,
    weights: Sequence[float],
    how: Fusion,
    frames: Sequence[Frame] | None,
    entry: Mapping[str, Any],
    progress: bool,
) -> str:
    _demand_classes(how, CLASS_TYPES)
    read = [read_with_meta(path, frames) for path in paths]
    parts, metas = [part for part, _ in read], [meta for _, meta in read]
    segments = [{part.keys[i][0] for i in np.unique(part.frame)} for part in parts]
    for path, own in zip(paths[1:], segments[1:]):
        if apart := sorted(own ^ segments[0]):
            raise SubmissionError(
                f"{path}: segment {apart[0]} is in one of {path.name}, {paths[0].name} alone; predict one split"
            )
    every = WaymoObjects.joined(parts)
    models = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    names = [""] + [name.lower() for name in OBJECT_TYPES.values()]
    order = np.argsort(every.frame, kind="stable")
    start = np.searchsorted(every.frame[order], np.arange(len(every.keys) + 1))
    nothing = np.zeros(0, np.int64)
    found = [(np.zeros((0, 7)), np.zeros(0), nothing, nothing)]
    cut = _Cut(how.max_boxes)
    for index in track(range(len(every.keys)), "ensemble", unit="frames", shown=progress):
        rows = order[start[index] : start[index + 1]]
        given = every.where(rows)
        boxes, scores, types, _ = fuse(
            given.boxes, given.scores.astype(np.float64), given.types, models[rows], weights, names, cut.whole(how)
        )
        kept = cut.first(len(boxes))
        found.append((boxes[kept], scores[kept], types[kept], np.full(len(boxes[kept]), index, np.int64)))
    columns = [np.concatenate(column) for column in zip(*found)]
    fused = as_submitted(WaymoObjects(columns[0], columns[2], columns[1].astype(np.float32), columns[3], every.keys))
    stated = {kind for meta in metas for kind in meta.get("object_types", ())} | set(fused.types.tolist())
    classes = [name for name, kind in CLASS_TYPES.items() if kind in stated]
    shards = write_submission(out, fused, _joint_entry(paths[0], metas, entry), classes)
    return f"{len(fused)} boxes of {len(every)} in {len(every.keys)} frames, {shards} shards{cut}"


def _joint_entry(first: Path, metas: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]) -> Entry:
    """Of an ensemble: the first file's, with the frames that any of them looks at; ``entry`` goes before."""
    own = [Entry.of_message(meta) for meta in metas]
    looks_at = {name: max(getattr(one, name) for one in own) for name in ("past_frames", "future_frames")}
    if "method" not in entry:
        getLogger("drivestack").warning(
            "the ensemble has the method name of %s, %r: Waymo wants one of its own (method of --waymo-entry)",
            first, own[0].method,
        )  # fmt: skip
    return replace(own[0], **{**looks_at, **entry})


def _demand_classes(how: Fusion, known: Iterable[str]) -> None:
    """Raises ConfigError for a threshold of a class that is none."""
    known = sorted(set(known))
    if strange := sorted(set(how.thresholds) - set(known)):
        value = how.thresholds[strange[0]]
        raise ConfigError(f"threshold {strange[0]}={value}: no such class among {', '.join(known)}")


class _Cut:
    """The best boxes of each frame, and how many others there were."""

    def __init__(self, most: int | None) -> None:
        self.most, self.boxes, self.frames = most, 0, 0

    @staticmethod
    def whole(how: Fusion) -> Fusion:
        """The same without a limit of boxes."""
        return replace(how, max_boxes=None)

    def first(self, count: int) -> slice:
        """Which of the boxes of a frame, best first, stay."""
        if self.most is not None and count > self.most:
            self.boxes += count - self.most
            self.frames += 1
        return slice(self.most)

    def __str__(self) -> str:
        if not self.boxes:
            return ""
        return f"; {self.boxes} beyond the best {self.most} of their frame are left out, in {self.frames} frames"


def _nuscenes(
    paths: Sequence[Path],
    out: Path,
    weights: Sequence[float],
    how: Fusion,
    frames: Sequence[Frame] | None,
    progress: bool,
) -> str:
    if how.let and frames is None:
        raise ConfigError(
            "LET-IoU needs the cars' poses, as boxes of nuScenes' files are in the global frame: name the data, or "
            "compare with --iou standard"
        )
    if how.max_boxes is not None and how.max_boxes > MAX_BOXES_PER_SAMPLE:
        raise ConfigError(f"max_boxes {how.max_boxes}: nuScenes takes at most {MAX_BOXES_PER_SAMPLE} of a sample")
    notes = [frame.annotations for frame in frames or () if frame.annotations is not None]
    own_classes = sorted({name for own in notes for name in own.names} - {""})
    tokens = None if frames is None else [frame.token for frame in frames]
    files = [read_submission(path, tokens, own_classes) for path in paths]
    inputs = [read_inputs(path) for path in paths]
    meta = {name: any(own[name] for own in inputs) for name in CAMERA_META}  # what any of them used
    for path, own in zip(paths[1:], files[1:]):
        if apart := sorted(own.keys() ^ files[0].keys()):
            raise SubmissionError(
                f"{path}: sample {apart[0]} is in one of {path.name}, {paths[0].name} alone; predict one split"
            )
    names = sorted({name for file in files for own in file.values() for name in own.names})
    _demand_classes(how, {*names, *own_classes, *CLASS_RANGE_M})
    cut = _Cut(how.max_boxes or MAX_BOXES_PER_SAMPLE)
    by_token = {frame.token: frame for frame in frames or ()}
    results, count = {}, 0
    for token in track(list(files[0]), "ensemble", unit="samples", shown=progress):
        every = _fused_sample(
            [file[token] for file in files], names, weights, cut.whole(how), by_token.get(token), token
        )
        results[token] = every[cut.first(len(every))]
        count += len(results[token])
    NuScenesSubmission(results, meta).write(out)
    given = sum(len(own) for file in files for own in file.values())
    return f"{count} boxes of {given} in {len(results)} samples{cut}"


def _fused_sample(
    found: Sequence[ScoredBoxes],
    names: Sequence[str],
    weights: Sequence[float],
    how: Fusion,
    frame: Frame | None,
    token: str,
) -> list[dict[str, Any]]:
    """Entries of one sample. Boxes are compared in the EGO frame where there is one, and written in the global one."""
    pose = np.eye(4) if frame is None else frame.global_from_ego
    sensor = np.zeros(3)
    if frame is not None:
        sensor = np.mean([view.ego_from_camera[:3, 3] for view in frame.cameras], axis=0)
    columns = [(o.centre_global_m, o.size_lwh_m, o.yaw_rad[:, None], o.velocity_global_mps) for o in found]
    boxes = np.concatenate([np.concatenate(own, 1) for own in columns])  # [n, 9]
    labels = np.array([names.index(name) for own in found for name in own.names], np.int64)
    attributes = [name for own in found for name in own.attributes]
    models = np.repeat(np.arange(len(found)), [len(own) for own in found])
    scores = np.concatenate([own.scores for own in found])
    boxes, scores, labels, source = fuse(
        transform_boxes(invert_pose(pose), boxes), scores, labels, models, weights, names, how, sensor
    )
    boxes = transform_boxes(pose, boxes)
    rotation = matrix_to_quaternion(rotation_z(boxes[:, 6])) if len(boxes) else np.zeros((0, 4))
    return [
        {
            "sample_token": token,
            "translation": boxes[i, :3].tolist(),
            "size": boxes[i, [4, 3, 5]].tolist(),  # width, length, height
            "rotation": rotation[i].tolist(),
            "velocity": np.nan_to_num(boxes[i, 7:9]).tolist(),
            "detection_name": names[labels[i]],
            "detection_score": float(scores[i]),
            "attribute_name": attributes[source[i]],
        }
        for i in range(len(boxes))
    ]
