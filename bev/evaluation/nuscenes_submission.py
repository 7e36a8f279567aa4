"""nuScenes detection submissions: a type, its writer and reader; the rules are in nuscenes_rules.py.

Format: https://www.nuscenes.org/object-detection ("Results format"): ``meta`` states the inputs, ``results`` maps every
sample token of the split to its boxes in the global frame, at most 500 each. Attributes and the class ranges follow
mmdet3d's nuScenes formatter, so scores are comparable with BEVFormer's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.answers import Detections
from ...core.errors import SubmissionError
from ...core.files import write_json
from ...core.frames import Frame
from ...geometry import (
    invert_pose,
    matrix_to_quaternion,
    rotation_z,
    transform_boxes,
    transform_points,
)
from .nuscenes_boxes import ScoredBoxes, read_submission
from .nuscenes_rules import CLASS_ATTRIBUTES, MAX_BOXES_PER_SAMPLE, META_FLAGS

MOVING_SPEED_MPS = 0.2
CAMERA_META: Mapping[str, bool] = {flag: flag == "use_camera" for flag in META_FLAGS}

CLASS_RANGE_M: Mapping[str, float] = {
    "car": 50.0,
    "truck": 50.0,
    "bus": 50.0,
    "trailer": 50.0,
    "construction_vehicle": 50.0,
    "pedestrian": 40.0,
    "motorcycle": 40.0,
    "bicycle": 40.0,
    "traffic_cone": 30.0,
    "barrier": 30.0,
}
"""Radius around the ego within which the benchmark scores each class (detection_cvpr_2019)."""
OTHER_RANGE_M = 50.0
"""Default radius for classes that are not nuScenes'."""


def attribute_of(class_name: str, speed_mps: float) -> str:
    """The attribute that a box of this class and speed gets ('' for classes without attributes)."""
    moving = speed_mps > MOVING_SPEED_MPS
    if class_name in ("motorcycle", "bicycle"):
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if class_name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    if class_name == "bus":
        return "vehicle.moving" if moving else "vehicle.stopped"
    if CLASS_ATTRIBUTES.get(class_name):
        return "vehicle.moving" if moving else "vehicle.parked"
    return ""


@dataclass(frozen=True)
class NuScenesSubmission:
    """Results of a whole split: boxes in the global frame by sample token, and which inputs made them."""

    results: dict[str, list[dict[str, Any]]]
    meta: dict[str, bool] = field(default_factory=lambda: dict(CAMERA_META))

    @classmethod
    def from_detections(
        cls,
        detections: Iterable[Detections],
        frames: Iterable[Frame],
        class_names: Sequence[str],
        class_range_m: Mapping[str, float] = CLASS_RANGE_M,
        meta: Mapping[str, bool] = CAMERA_META,
    ) -> NuScenesSubmission:
        """Boxes of the BEV frame to the global frame, range filter and attributes included.

        Every frame gets an entry, also without boxes. A box stays if its centre is at most ``class_range_m`` from the
        ego in the ego's xy plane (the benchmark's radius for a class that it does not name); of more than 500 the
        best 500 stay. Classes of other data sets are written too, without attributes, where ``class_range_m`` names
        them; the benchmark does not score such a file.

        Raises SubmissionError for a detection without a frame, a frame without a detection, two detections of one
        frame, a class without a radius, a label without a class, or a non-finite or flat box (named by sample token).
        """
        found = submitted_boxes(detections, frames, class_names, class_range_m)
        return cls({token: entries for token, (entries, _) in found.items()}, dict(meta))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the submission JSON; a reader sees the old file or the whole new one."""
        write_json(path, {"meta": self.meta, "results": self.results})


def submitted_boxes(
    detections: Iterable[Detections],
    frames: Iterable[Frame],
    class_names: Sequence[str],
    class_range_m: Mapping[str, float] = CLASS_RANGE_M,
) -> dict[str, tuple[list[dict[str, Any]], NDArray[np.int64]]]:
    """By sample token the entries of NuScenesSubmission.from_detections, and the row of each in the detections."""
    class_range_m = {**CLASS_RANGE_M, **class_range_m}
    unknown = [name for name in class_names if name not in class_range_m]
    if unknown:
        raise SubmissionError(
            f"class {unknown[0]!r} is not a nuScenes detection class;"
            f" name the model's classes as in {', '.join(CLASS_ATTRIBUTES)}, or give its radius in class_range_m"
        )
    by_token: dict[str, Detections] = {}
    for found in detections:
        if found.token in by_token:
            raise SubmissionError(f"sample {found.token}: predicted twice; keep one Detections per frame")
        by_token[found.token] = found
    results = {}
    for frame in frames:
        if frame.token not in by_token:
            raise SubmissionError(f"sample {frame.token}: no prediction; run the model on every frame of the split")
        results[frame.token] = _sample_results(by_token.pop(frame.token), frame, class_names, class_range_m)
    if by_token:
        raise SubmissionError(
            f"sample {next(iter(by_token))}: predicted, but not among the split's frames; predict on the same split"
        )
    return results


def _sample_results(
    found: Detections, frame: Frame, class_names: Sequence[str], class_range_m: Mapping[str, float]
) -> tuple[list[dict[str, Any]], NDArray[np.int64]]:
    boxes = np.asarray(found.boxes, dtype=np.float64)  # [k, 9]
    scores = np.asarray(found.scores, dtype=np.float64)
    broken = ~np.isfinite(np.concatenate([boxes, scores[:, None]], 1)).all(1) | (boxes[:, 3:6] <= 0).any(1)
    if broken.any():
        index = int(np.flatnonzero(broken)[0])
        raise SubmissionError(
            f"sample {frame.token}: predicted box {index} is not finite or has no volume {boxes[index].tolist()};"
            " the checkpoint has diverged, use an earlier one"
        )
    foreign = [int(label) for label in found.labels if not 0 <= label < len(class_names)]
    if foreign:
        raise SubmissionError(
            f"sample {frame.token}: predicted label {foreign[0]}, but there are {len(class_names)} class names;"
            " give the class list that the model was trained with"
        )
    names = [class_names[label] for label in found.labels]
    centre_ego = transform_points(frame.ego_from_bev, boxes[:, :3])
    radius_m = np.hypot(centre_ego[:, 0], centre_ego[:, 1])
    keep = np.flatnonzero(radius_m <= np.array([class_range_m[name] for name in names]))
    keep = keep[np.argsort(-scores[keep], kind="stable")][:MAX_BOXES_PER_SAMPLE]

    global_from_bev = frame.global_from_bev
    centre = transform_points(frame.global_from_ego, centre_ego)  # [k, 3]
    rotation = matrix_to_quaternion(global_from_bev[:3, :3] @ rotation_z(boxes[:, 6]))  # [k, 4]
    flat_velocity = np.concatenate([boxes[:, 7:9], np.zeros((len(boxes), 1))], 1)
    velocity = (flat_velocity @ global_from_bev[:3, :3].T)[:, :2]
    entries = [
        {
            "sample_token": frame.token,
            "translation": centre[i].tolist(),
            "size": boxes[i, [4, 3, 5]].tolist(),  # nuScenes: width, length, height
            "rotation": rotation[i].tolist(),
            "velocity": velocity[i].tolist(),
            "detection_name": names[i],
            "detection_score": float(scores[i]),
            "attribute_name": attribute_of(names[i], float(np.hypot(*velocity[i]))),
        }
        for i in keep
    ]
    return entries, keep


def read_detections(
    path: str | os.PathLike[str], frames: Iterable[Frame], class_names: Sequence[str]
) -> dict[str, Detections]:
    """Boxes of a submission file in the BEV frame of each of ``frames``, by sample token, for pictures.

    Frames that the file does not hold are left out. Raises SubmissionError if the file breaks a rule, or holds a box of
    none of ``class_names`` (which may be other than nuScenes').
    """
    results = read_submission(path, own_classes=class_names)
    return {
        frame.token: bev_detections(results[frame.token], frame, class_names, path)
        for frame in frames
        if frame.token in results
    }


def bev_detections(
    boxes: ScoredBoxes, frame: Frame, class_names: Sequence[str], path: str | os.PathLike[str]
) -> Detections:
    """Boxes of the file ``path`` in the frame's BEV frame, in their order. Raises as ``read_detections``."""
    labels = {name: label for label, name in enumerate(class_names)}
    foreign = [name for name in boxes.names if name not in labels]
    if foreign:
        raise SubmissionError(
            f"{path}: sample {frame.token}: holds a {foreign[0]!r}, which is not among the classes"
            f" {', '.join(class_names)}; name all the classes of the file"
        )
    columns = (boxes.centre_global_m, boxes.size_lwh_m, boxes.yaw_rad[:, None], boxes.velocity_global_mps)
    return Detections(
        frame.token,
        transform_boxes(invert_pose(frame.global_from_bev), np.concatenate(columns, 1)).astype(np.float32),
        boxes.scores.astype(np.float32),
        np.array([labels[name] for name in boxes.names], dtype=np.int64),
    )
