"""Random labels and predictions in the global frame, and their scores by nuscenes-devkit's own functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drivestack.bev.evaluation.nuscenes_boxes import ScoredBoxes
from drivestack.bev.evaluation.nuscenes_metrics import DETECTION_CVPR_2019
from drivestack.bev.evaluation.nuscenes_rules import CLASS_ATTRIBUTES
from drivestack.core.frames import Annotations, Frame
from drivestack.geometry import matrix_to_quaternion, pose, rotation_z

CLASSES = list(CLASS_ATTRIBUTES)
RACK = "static_object.bicycle_rack"


def random_scenes(seed: int, num_samples: int | None = None) -> tuple[list[Frame], dict[str, ScoredBoxes]]:
    """Few samples with everything that the metric treats apart: equal scores, boxes out of range, labels without
    points, velocity or attribute, bicycles in racks, classes without labels or predictions, empty samples."""
    rng = np.random.default_rng(seed)
    labelled = rng.permutation(CLASSES)[: rng.integers(1, 11)].tolist()
    frames, found = [], {}
    for i in range(num_samples or rng.integers(1, 5)):
        ego = np.array([1000.0 + 300 * i, 500.0, 0.0])
        n = int(rng.choice([0, 5, 20, 40])) if i else 20
        names = rng.choice(labelled, n).tolist()
        centre = ego + rng.normal(0, 18, (n, 3)) * [1, 1, 0.03]
        rotation = rotation_z(rng.uniform(-np.pi, np.pi, n)).reshape(n, 3, 3)
        size = rng.uniform(0.5, 5, (n, 3))
        velocity = rng.normal(0, 3, (n, 2))
        velocity[rng.random(n) < 0.2] = np.nan
        racks = [k for k in range(n) if rng.random() < 0.1]
        for k in racks:
            names[k], size[k] = "", [12.0, 9.0, 3.0]
        attributes = [_attribute(rng, name) for name in names]
        notes = Annotations(
            names=names,
            centre_global_m=centre,
            rotation_global=rotation,
            size_lwh_m=size,
            velocity_global_mps=velocity,
            attributes=attributes,
            num_lidar_points=rng.integers(0, 4, n),
            num_radar_points=rng.integers(0, 2, n),
            tokens=[f"{i}-{k}" for k in range(n)],
            instance_tokens=[""] * n,
            categories=[RACK if k in racks else name for k, name in enumerate(names)],
        )
        frame = Frame(
            token=f"sample{i}",
            scene_token="",
            scene_name="",
            timestamp_us=i,
            cameras=(),
            ego_from_bev=np.eye(4),
            global_from_ego=pose(rotation_z(0.3 * i), ego),
            annotations=notes,
        )
        frames.append(frame)
        found[frame.token] = _predictions(rng, notes, ego)
    tokens = rng.permutation(list(found)).tolist()
    return frames, {token: found[token] for token in tokens}


def _attribute(rng: np.random.Generator, name: str) -> str:
    held = CLASS_ATTRIBUTES.get(name, ())
    return str(rng.choice(held)) if held and rng.random() < 0.7 else ""


def _predictions(rng: np.random.Generator, notes: Annotations, ego: np.ndarray) -> ScoredBoxes:
    """Labels found again, more or less well, some twice, and some that are not there."""
    again = np.repeat(np.arange(len(notes)), rng.integers(0, 4, len(notes)))
    again = again[[notes.names[k] != "" for k in again]]
    lost = int(rng.choice([0, 8]))
    error = rng.choice([0.05, 0.5, 1.5])
    n = len(again) + lost
    yaw = np.arctan2(notes.rotation_global[again, 1, 0], notes.rotation_global[again, 0, 0])
    velocity = np.concatenate([notes.velocity_global_mps[again], np.zeros((lost, 2))]) + rng.normal(0, error, (n, 2))
    velocity[rng.random(n) < 0.1] = np.nan
    names = [notes.names[k] for k in again] + rng.choice(CLASSES, lost).tolist()
    scores = rng.random(n)
    if rng.random() < 0.5:
        scores = np.round(scores * 4) / 4  # many equal ones, and some 0
    return ScoredBoxes(
        names=names,
        scores=scores,
        centre_global_m=np.concatenate([notes.centre_global_m[again], ego + rng.normal(0, 25, (lost, 3))])
        + rng.normal(0, error, (n, 3)),
        size_lwh_m=np.concatenate([notes.size_lwh_m[again], np.full((lost, 3), 2.0)]) * rng.uniform(0.7, 1.3, (n, 3)),
        yaw_rad=np.concatenate([yaw, np.zeros(lost)]) + rng.choice([0.0, np.pi], n) * (rng.random(n) < 0.2)
        + rng.normal(0, 0.3, n),
        velocity_global_mps=velocity,
        attributes=[_attribute(rng, name) for name in names],
    )  # fmt: skip


class _Tables:
    """The part of the devkit's database that its filters use, made from frames."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.rows: dict[tuple[str, str], dict] = {}
        for frame in frames:
            notes = frame.annotations
            row = {"data": {"LIDAR_TOP": frame.token}, "anns": [f"{frame.token}/{k}" for k in range(len(notes))]}
            self.rows["sample", frame.token] = row
            self.rows["sample_data", frame.token] = {"ego_pose_token": frame.token}
            self.rows["ego_pose", frame.token] = {"translation": frame.global_from_ego[:3, 3].tolist()}
            for k, token in enumerate(row["anns"]):
                self.rows["sample_annotation", token] = {
                    "category_name": notes.categories[k],
                    "translation": notes.centre_global_m[k].tolist(),
                    "size": notes.size_lwh_m[k, [1, 0, 2]].tolist(),
                    "rotation": matrix_to_quaternion(notes.rotation_global[k]).tolist(),
                }

    def get(self, table: str, token: str) -> dict:
        return self.rows[table, token]


def devkit_scores(
    frames: Sequence[Frame], predictions: Mapping[str, ScoredBoxes], class_range_m: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """As nuscenes_official.evaluate_official gives them, without files."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    from drivestack.bev.evaluation.nuscenes_official import summary

    class_range_m = class_range_m or DETECTION_CVPR_2019.class_range_m
    truths, found = EvalBoxes(), EvalBoxes()
    for frame in frames:
        notes = frame.annotations
        quaternions = matrix_to_quaternion(notes.rotation_global)
        truths.add_boxes(
            frame.token,
            [
                DetectionBox(
                    frame.token,
                    tuple(notes.centre_global_m[k].tolist()),
                    tuple(notes.size_lwh_m[k, [1, 0, 2]].tolist()),
                    tuple(quaternions[k].tolist()),
                    tuple(notes.velocity_global_mps[k].tolist()),
                    num_pts=int(notes.num_lidar_points[k] + notes.num_radar_points[k]),
                    detection_name=name,
                    attribute_name=notes.attributes[k],
                )
                for k, name in enumerate(notes.names)
                if name
            ],
        )
    far = (1e7, 1e7, 0.0)  # the devkit wants one box at least to learn their type from
    found.add_boxes(next(iter(predictions)), [DetectionBox(next(iter(predictions)), far, detection_score=0.0)])
    for token, boxes in predictions.items():
        quaternions = matrix_to_quaternion(rotation_z(boxes.yaw_rad).reshape(-1, 3, 3))
        found.add_boxes(
            token,
            [
                DetectionBox(
                    token,
                    tuple(boxes.centre_global_m[k].tolist()),
                    tuple(boxes.size_lwh_m[k, [1, 0, 2]].tolist()),
                    tuple(quaternions[k].tolist()),
                    tuple(boxes.velocity_global_mps[k].tolist()),
                    detection_name=boxes.names[k],
                    detection_score=float(boxes.scores[k]),
                    attribute_name=boxes.attributes[k],
                )
                for k in range(len(boxes))
            ],
        )
    evaluation = DetectionEval.__new__(DetectionEval)  # its constructor wants files
    evaluation.cfg, evaluation.verbose = config_factory("detection_cvpr_2019"), False
    evaluation.cfg.class_range = dict(class_range_m)
    evaluation.cfg.class_names = evaluation.cfg.class_range.keys()
    tables = _Tables(frames)
    evaluation.gt_boxes, evaluation.pred_boxes = (
        filter_eval_boxes(tables, add_center_dist(tables, boxes), evaluation.cfg.class_range)
        for boxes in (truths, found)
    )
    scores = summary(evaluation.evaluate()[0].serialize())
    for key, boxes in (("num_ground_truths", evaluation.gt_boxes), ("num_predictions", evaluation.pred_boxes)):
        names = [box.detection_name for box in boxes.all]
        scores[key] = {name: names.count(name) for name in set(names)}
    return scores | {"num_samples": len(frames)}


def largest_difference(a: Any, b: Any) -> float:
    """Between the numbers of two nested dictionaries; infinite where one has what the other lacks."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return math.inf
        return max((largest_difference(a[key], b[key]) for key in a), default=0.0)
    if a is None or b is None:
        return 0.0 if a is b else math.inf
    difference = abs(a - b)
    return math.inf if math.isnan(difference) else difference
