"""Measures beside nuScenes' score: objects that are occluded now, and false boxes on the ray of an object.

Shapes: n predictions, g labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.frames import Frame
from ...geometry import invert_pose, transform_points
from .box_rows import MIN_SCORE, BoxRows, label_rows, matched, notes_of, prediction_rows
from .nuscenes_boxes import ScoredBoxes
from .nuscenes_submission import CLASS_RANGE_M

HIDDEN_LEVEL, SEEN_LEVEL = 1, 3
PAST_S = 2.0
AZIMUTH_RAD = np.deg2rad(2.0)
BEHIND_M = (1.5, 6.0)


def occluded_objects(
    frames: Sequence[Frame],
    boxes: Mapping[str, ScoredBoxes],
    class_range_m: Mapping[str, float] = CLASS_RANGE_M,
    past_s: float = PAST_S,
) -> dict[str, Any] | None:
    """How well objects are found that a memory could hold: hidden now, seen before.

    Occluded: a label of visibility level 1 (cameras see up to 40 % of it), with or without LiDAR points, whose object
    had level 3 or 4 (above 60 %) in a keyframe at most ``past_s`` ago. Returns ``labels``; ``recall``, the share that a
    box above a score of 0.15 finds within 2 m; ``ap``, the area under the curve of precision over recall of one list of
    all classes, in which boxes that find other labels do not count; and the same of all other labels with points:
    ``others``, ``recall_others``. None where the labels have no visibility levels.
    """
    notes = [notes_of(frame) for frame in frames]
    if any(len(own) and own.visibility is None for own in notes) or not any(map(len, notes)):
        return None
    names = tuple(class_range_m)
    labels = _in_range(label_rows(frames, names, min_points=0), frames, class_range_m)
    points = [own.num_lidar_points + own.num_radar_points for own in notes]
    occluded = np.array([_was_seen(frames, f, k, past_s) for f, k in zip(labels.frame, labels.source)], bool)
    has_points = np.array([points[f][k] for f, k in zip(labels.frame, labels.source)], int) > 0
    kept = occluded | has_points
    labels, occluded = labels.take(kept), occluded[kept]
    rows = _in_range(prediction_rows(frames, boxes, names, -1.0), frames, class_range_m)
    truth = matched(rows, labels)
    sure = np.zeros(len(labels), bool)
    sure[truth[(truth >= 0) & (rows.score > MIN_SCORE)]] = True
    counts = (truth < 0) | occluded[truth]  # index -1 is masked by the first
    return {
        "labels": int(occluded.sum()),
        "recall": _share(sure[occluded]),
        "ap": _area(truth[counts] >= 0, rows.score[counts], int(occluded.sum())),
        "others": int((~occluded).sum()),
        "recall_others": _share(sure[~occluded]),
    }


def _was_seen(frames: Sequence[Frame], index: int, k: int, past_s: float) -> bool:
    """Whether a label is hidden now and its object was seen before, in the frames that precede it in the list."""
    frame, own = frames[index], notes_of(frames[index])
    if own.visibility is None or own.visibility[k] != HIDDEN_LEVEL:
        return False
    instance, before = own.instance_tokens[k], index - 1
    while before >= 0 and frames[before].scene_token == frame.scene_token:
        if (frame.timestamp_us - frames[before].timestamp_us) * 1e-6 > past_s:
            return False
        notes = notes_of(frames[before])
        if instance in notes.instance_tokens and notes.visibility is not None:
            level = notes.visibility[notes.instance_tokens.index(instance)]
            if level >= SEEN_LEVEL:
                return True
        before -= 1
    return False


def false_boxes_on_rays(
    frames: Sequence[Frame], boxes: Mapping[str, ScoredBoxes], class_names: Sequence[str] = tuple(CLASS_RANGE_M)
) -> dict[str, Any]:
    """False boxes at the wrong depth of a true object, as depth from one image makes them.

    Of boxes above a score of 0.15 that find no label within 2 m (``false``), ``on_rays`` lie within 2 degrees of
    azimuth and 1.5 to 6 m of range of a label of their class, seen from the origin of the BEV frame; ``per_frame`` is
    that by keyframe.
    """
    rows, labels = prediction_rows(frames, boxes, class_names), label_rows(frames, class_names)
    wrong = rows.take(matched(rows, labels) < 0)
    azimuth, range_m = _polar(wrong, frames)
    of_labels, label_range_m = _polar(labels, frames)
    on_ray = np.zeros(len(wrong), bool)
    for i, group in enumerate(wrong.group):
        same = np.flatnonzero(labels.group == group)
        turn = (of_labels[same] - azimuth[i] + np.pi) % (2 * np.pi) - np.pi
        apart_m = np.abs(label_range_m[same] - range_m[i])
        on_ray[i] = ((np.abs(turn) <= AZIMUTH_RAD) & (apart_m >= BEHIND_M[0]) & (apart_m <= BEHIND_M[1])).any()
    return {"false": len(wrong), "on_rays": int(on_ray.sum()), "per_frame": float(on_ray.sum() / max(len(frames), 1))}


def _polar(rows: BoxRows, frames: Sequence[Frame]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Azimuth [n] and range in metres [n] in the BEV frame of the box's keyframe."""
    places = np.zeros((len(rows), 3))
    for f in np.unique(rows.frame):
        own = rows.frame == f
        bev_from_global = invert_pose(frames[f].global_from_bev)
        ground = np.full((int(own.sum()), 1), frames[f].global_from_bev[2, 3])
        places[own] = transform_points(bev_from_global, np.concatenate([rows.centre_global_m[own], ground], 1))
    return np.arctan2(places[:, 1], places[:, 0]), np.hypot(places[:, 0], places[:, 1])


def _in_range(rows: BoxRows, frames: Sequence[Frame], class_range_m: Mapping[str, float]) -> BoxRows:
    ego_xy = np.stack([frame.global_from_ego[:2, 3] for frame in frames])
    radius = np.array([class_range_m[name] for name in rows.class_names])
    return rows.take(np.linalg.norm(rows.centre_global_m - ego_xy[rows.frame], axis=1) < radius[rows.label])


def _area(hits: NDArray[np.bool_], scores: NDArray[np.float64], num_labels: int) -> float | None:
    """Area under the best precision at each recall or a higher one; None without labels."""
    if not num_labels:
        return None
    hits = hits[np.argsort(-scores, kind="stable")]
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * hits).sum() / num_labels)


def _share(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None
