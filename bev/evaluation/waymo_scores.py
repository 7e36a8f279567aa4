"""Waymo's scores of frames and boxes: which labels count, all breakdowns, and a table of them.

Which labels count in the camera-only challenge (waymo-open-dataset 1.6.7, compute_detection_let_metrics_main and the
challenge's page): those with at least one point of the top LiDAR and a camera that sees them best; their boxes are
those at that camera's time. A label without a difficulty is LEVEL_2 with at most 5 such points, else LEVEL_1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.errors import DataError
from ...core.frames import Annotations, Frame
from ...core.once import warn_once
from ...core.waymo import CLASS_TYPES, MAX_POINTS_HARD
from ...geometry import invert_pose
from .waymo_metrics import (
    OBJECT_TYPES,
    RANGE_NAMES,
    RANGES_M,
    RANKED_TYPES,
    WaymoGroundTruths,
    WaymoPredictions,
    WaymoScore,
    evaluate_waymo,
    waymo_mean,
)
from .waymo_submission import frame_key
from .waymo_wire import WaymoObjects

_KEYS = {"let": ("apl", "ap", "aph"), "standard": ("ap", "aph")}


def counted(notes: Annotations) -> tuple[np.ndarray, np.ndarray]:
    """(which labels [n] count, their difficulty [n]: 1 or 2). Says once what a set does not state."""
    known = np.array([name in CLASS_TYPES for name in notes.names], bool)
    points = notes.num_top_lidar_points
    points = np.full(len(notes), -1) if points is None else np.asarray(points)
    if (points < 0).any():
        warn_once(
            "labels without num_top_lidar_points, as in Waymo's older files: points of all LiDARs are counted instead"
        )
        points = np.where(points < 0, notes.num_lidar_points, points)
    if notes.most_visible_cameras is None:
        warn_once("labels without most_visible_camera_name: those that no camera sees are scored, too")
        seen = np.ones(len(notes), bool)
    else:
        seen = np.array([bool(name) for name in notes.most_visible_cameras], bool)
    stated = np.zeros(len(notes), np.int64) if notes.difficulty is None else np.asarray(notes.difficulty)
    difficulty = np.where(np.isin(stated, (1, 2)), stated, np.where(points <= MAX_POINTS_HARD, 2, 1))
    return known & (points > 0) & seen, difficulty


def ground_truths(frames: Sequence[Frame]) -> WaymoObjects:
    """The labels that count, boxes in the vehicle frame, with difficulties; all frames are among the keys.

    Raises DataError for a frame without annotations, SubmissionError for frames of another set.
    """
    keys, boxes, types, hard, index = [], [np.zeros((0, 7))], [], [np.zeros(0, np.int64)], []
    for number, frame in enumerate(frames):
        keys.append(frame_key(frame))
        if (notes := frame.annotations) is None:
            raise DataError(f"sample {frame.token}: has no annotations; score a labelled split")
        keep, difficulty = counted(notes)
        own = notes.boxes_in(invert_pose(frame.global_from_ego))[keep, :7]
        boxes.append(own)
        types += [CLASS_TYPES[name] for name, kept in zip(notes.names, keep) if kept]
        hard.append(difficulty[keep])
        index += [number] * len(own)
    count = len(index)
    return WaymoObjects(
        np.concatenate(boxes),
        np.array(types, np.int64),
        np.full(count, np.nan, np.float32),
        np.array(index, np.int64),
        keys,
        difficulties=np.concatenate(hard),
    )


def evaluate(frames: Sequence[Frame], found: WaymoObjects) -> dict[str, Any]:
    """LET-3D and standard scores of boxes. Their frames must be among ``frames`` (waymo_rules.check_frames).

    Keys: ``let`` and ``standard`` hold the means over vehicle, pedestrian and cyclist at LEVEL_2 (mapl, map, maph) and
    ``breakdowns``; ``labels`` the number of labels that count in each breakdown. Officially a class without a label
    counts as 0 in the means; ``with_labels`` are those over the classes that have one, ``classes_with_labels``.
    Raises DataError where the frames have no label that counts, or boxes lie on frames that are not there.
    """
    truths = ground_truths(frames)
    if not len(truths):
        raise DataError(f"{len(frames)} frames have no label that counts: score a labelled split of Waymo's")
    number = {key: i for i, key in enumerate(truths.keys)}
    if strange := [key for key in (found.keys[i] for i in np.unique(found.frame)) if key not in number]:
        raise DataError(f"{len(strange)} predicted frames are not among those scored, such as {strange[0]}")
    same = np.array([number.get(key, -1) for key in found.keys], np.int64)[found.frame]
    zone = found.in_no_label_zone
    given = WaymoPredictions(found.boxes, found.types, found.scores, same, zone)
    labels = WaymoGroundTruths(truths.boxes, truths.types, truths.difficulties, truths.frame)
    result: dict[str, Any] = {"frames": len(frames), "boxes": len(found)}
    result["labels"] = _label_counts(truths)
    present = [name for name in RANKED_TYPES if result["labels"][_key(name, "", 2)]]
    result["classes_with_labels"] = [name.lower() for name in present]
    for name, tolerant in (("let", True), ("standard", False)):
        if not set(same.tolist()) & set(truths.frame.tolist()):  # nothing that could match: 0, whatever the rest
            given = WaymoPredictions(*(np.zeros((0, 7)), *[np.zeros(0, np.int64)] * 3))
        scores = evaluate_waymo(given, labels, tolerant)
        result[name] = _means(scores, tolerant, RANKED_TYPES) | {
            "with_labels": _means(scores, tolerant, present) if present else None,
            "breakdowns": {key: {part: getattr(own, part) for part in _KEYS[name]} for key, own in scores.items()},
        }
    return result


def _label_counts(truths: WaymoObjects) -> dict[str, int]:
    """Labels by breakdown; LEVEL_2 includes LEVEL_1."""
    shard = np.searchsorted(RANGES_M, np.linalg.norm(truths.boxes[:, :3], axis=1), side="right")
    counts = {}
    for kind, name in OBJECT_TYPES.items():
        for level in (1, 2):
            own = (truths.types == kind) & (truths.difficulties <= level)
            counts[_key(name, "", level)] = int(own.sum())
            counts |= {_key(name, r, level): int((own & (shard == i)).sum()) for i, r in enumerate(RANGE_NAMES)}
    return counts


def _key(name: str, range_name: str, level: int) -> str:
    """The official name of a breakdown."""
    if range_name:
        return f"RANGE_TYPE_{name}_{range_name}_LEVEL_{level}"
    return f"OBJECT_TYPE_TYPE_{name}_LEVEL_{level}"


def _means(scores: Mapping[str, WaymoScore], tolerant: bool, types: Sequence[str]) -> dict[str, float]:
    means = waymo_mean(scores, types=types)
    return means if tolerant else {key: value for key, value in means.items() if key != "mapl"}


def _mean_line(let: Mapping[str, float], standard: Mapping[str, float]) -> str:
    return (
        f"LET-3D-mAPL {let['mapl']:.4f}   LET-3D-mAP {let['map']:.4f}   LET-3D-mAPH {let['maph']:.4f}   "
        f"mAP {standard['map']:.4f}   mAPH {standard['maph']:.4f}"
    )


def table(scores: Mapping[str, Any]) -> list[str]:
    """The scores as lines of text: means, then each class and range at both levels. "-": no label of it."""
    let, standard, labels = scores["let"], scores["standard"], scores["labels"]
    total = sum(labels[_key(name, "", 2)] for name in OBJECT_TYPES.values())
    present, ranked = scores["classes_with_labels"], [name.lower() for name in RANKED_TYPES]
    lines = [
        _mean_line(let, standard),
        f"(means over {', '.join(ranked)} at LEVEL_2; {scores['frames']} frames, {total} labels, "
        f"{scores['boxes']} boxes)",
    ]
    if missing := [name for name in ranked if name not in present]:
        lines.append(f"(no label of {', '.join(missing)} counts: 0 in these means, as officially)")
        if present:
            lines += [_mean_line(let["with_labels"], standard["with_labels"]), f"(means over {', '.join(present)})"]
    lines += [
        "",
        f"{'':<10} {'range, m':<11} {'level':<6} {'labels':>7} {'LET APL':>8} {'LET AP':>8} {'LET APH':>8} "
        f"{'AP':>8} {'APH':>8}",
    ]
    for name in OBJECT_TYPES.values():
        for range_name in ("", *RANGE_NAMES):
            for level in (1, 2):
                key = _key(name, range_name, level)
                a, b, held = let["breakdowns"][key], standard["breakdowns"][key], labels[key]
                values = [a["apl"], a["ap"], a["aph"], b["ap"], b["aph"]]
                shown = " ".join(f"{value:8.4f}" if held else f"{'-':>8}" for value in values)
                lines.append(f"{name.lower():<10} {range_name or 'all':<11} {level:<6} {held:>7} {shown}")
    return lines
