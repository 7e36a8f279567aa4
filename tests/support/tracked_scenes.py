"""Random labelled and predicted tracks in the global frame, and their scores by nuscenes-devkit's own functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drivestack.bev.evaluation.nuscenes_boxes import ScoredBoxes
from drivestack.bev.evaluation.tracking_metrics import KEYS
from drivestack.bev.evaluation.tracking_rules import TRACKING_CLASSES
from drivestack.bev.evaluation.tracking_submission import TrackedBoxes
from drivestack.core.frames import Annotations, Frame
from drivestack.geometry import matrix_to_quaternion, pose, rotation_z

CATEGORY = {
    "bicycle": "vehicle.bicycle",
    "bus": "vehicle.bus.rigid",
    "car": "vehicle.car",
    "motorcycle": "vehicle.motorcycle",
    "pedestrian": "human.pedestrian.adult",
    "trailer": "vehicle.trailer",
    "truck": "vehicle.truck",
    "barrier": "movable_object.barrier",
}
RACK = "static_object.bicycle_rack"


def random_tracks(seed: int) -> tuple[list[Frame], dict[str, TrackedBoxes]]:
    """Scenes of a few keyframes with all that the score treats apart: objects that are hidden for a while or leave the
    range, labels without points, racks, tracks with gaps, that break, swap objects, or follow nothing; equal scores,
    classes without labels, without predictions, and unequal steps of time."""
    rng = np.random.default_rng(seed)
    frames: list[Frame] = []
    found: dict[str, TrackedBoxes] = {}
    for scene in range(int(rng.integers(1, 4))):
        steps = int(rng.integers(2, 12))
        times = np.cumsum(rng.choice([500_000, 500_000, 550_000, 900_000], steps)) + 1_600_000_000_000_000
        names = rng.choice([*TRACKING_CLASSES[: rng.integers(2, 8)], "barrier"], rng.integers(2, 14)).tolist()
        start = rng.normal(0, 15, (len(names), 2)) + [1000, 500]
        speed = rng.normal(0, 4, (len(names), 2)) * rng.integers(0, 2, (len(names), 1))
        noise = rng.choice([0.05, 0.6, 1.2])
        rounded = rng.random() < 0.5
        track_of = [f"t{k}" for k in range(len(names))]
        fresh = len(names)
        for i in range(steps):
            there = np.flatnonzero(rng.random(len(names)) < 0.85)
            xy = start[there] + speed[there] * (times[i] - times[0]) / 1e6
            racks = [RACK] if rng.random() < 0.3 else []
            notes = _notes(rng, [names[k] for k in there], xy, [f"{scene}-{k}" for k in there], racks)
            frame = Frame(
                token=f"sample-{scene}-{i}",
                scene_token=f"scene{scene}",
                scene_name=f"scene-{scene}",
                timestamp_us=int(times[i]),
                cameras=(),
                global_from_ego=pose(rotation_z(0.3), [1000.0 + i, 500.0, 0.0]),
                annotations=notes,
            )
            frames.append(frame)
            for k in there:  # identities that change
                if rng.random() < 0.1:
                    track_of[k], fresh = f"t{fresh}", fresh + 1
            if len(there) > 1 and rng.random() < 0.2:
                a, b = rng.choice(there, 2, replace=False)
                if names[a] == names[b]:
                    track_of[a], track_of[b] = track_of[b], track_of[a]
            seen = [k for k in there if rng.random() < 0.8 and names[k] != "barrier" and names[k] != names[0]]
            where = start[seen] + speed[seen] * (times[i] - times[0]) / 1e6 + rng.normal(0, noise, (len(seen), 2))
            ghosts = int(rng.integers(0, 3))
            where = np.concatenate([where, rng.normal(0, 20, (ghosts, 2)) + [1000, 500]])
            kinds = [names[k] for k in seen] + [TRACKING_CLASSES[g] for g in range(ghosts)]
            ids = [track_of[k] for k in seen] + [f"ghost{g}" for g in range(ghosts)]
            scores = rng.random(len(kinds))
            found[frame.token] = TrackedBoxes(
                _boxes(kinds, where, np.round(4 * scores) / 4 if rounded else scores), ids
            )
    return frames, found


def _notes(
    rng: np.random.Generator, names: Sequence[str], xy: np.ndarray, instances: Sequence[str], racks: Sequence[str]
) -> Annotations:
    n, extra = len(names), len(racks)
    centre = np.concatenate([xy, np.full((extra, 2), [1003.0, 501.0])])
    return Annotations(
        names=[*names, *[""] * extra],
        centre_global_m=np.concatenate([centre, np.zeros((n + extra, 1))], 1),
        rotation_global=np.tile(np.eye(3), (n + extra, 1, 1)),
        size_lwh_m=np.concatenate([np.full((n, 3), 2.0), np.full((extra, 3), [20.0, 16.0, 4.0])]),
        velocity_global_mps=np.zeros((n + extra, 2)),
        attributes=[""] * (n + extra),
        num_lidar_points=rng.integers(0, 6, n + extra),
        num_radar_points=np.zeros(n + extra, np.int64),
        tokens=[f"{instance}-{rng.integers(1 << 40)}" for instance in [*instances, *racks]],
        instance_tokens=[*instances, *racks],
        categories=[*(CATEGORY[name] for name in names), *racks],
    )


def _boxes(names: Sequence[str], xy: np.ndarray, scores: np.ndarray) -> ScoredBoxes:
    n = len(names)
    return ScoredBoxes(
        names=list(names),
        scores=scores,
        centre_global_m=np.concatenate([xy, np.zeros((n, 1))], 1),
        size_lwh_m=np.full((n, 3), 2.0),
        yaw_rad=np.zeros(n),
        velocity_global_mps=np.zeros((n, 2)),
        attributes=[""] * n,
    )


class _Tables:
    """The part of the devkit's database that its tracking evaluation uses, made from frames."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.rows: dict[tuple[str, str], dict] = {}
        scenes: dict[str, list[Frame]] = {}
        for frame in frames:
            scenes.setdefault(frame.scene_token, []).append(frame)
        for token, own in scenes.items():
            own.sort(key=lambda frame: frame.timestamp_us)
            ends = {"first_sample_token": own[0].token, "last_sample_token": own[-1].token}
            self.rows["scene", token] = {"name": own[0].scene_name, **ends}
            for k, frame in enumerate(own):
                after = own[k + 1].token if k + 1 < len(own) else ""
                self._add_sample(frame, after)
        self.scene = [{"name": own[0].scene_name, "token": token} for token, own in scenes.items()]

    def _add_sample(self, frame: Frame, after: str) -> None:
        notes = frame.annotations
        self.rows["sample", frame.token] = {
            "scene_token": frame.scene_token, "timestamp": frame.timestamp_us, "next": after,
            "data": {"LIDAR_TOP": frame.token}, "anns": list(notes.tokens),
        }  # fmt: skip
        self.rows["sample_data", frame.token] = {"ego_pose_token": frame.token}
        self.rows["ego_pose", frame.token] = {"translation": frame.global_from_ego[:3, 3].tolist()}
        for k, token in enumerate(notes.tokens):
            self.rows["sample_annotation", token] = {
                "category_name": notes.categories[k],
                "translation": notes.centre_global_m[k].tolist(),
                "size": notes.size_lwh_m[k, [1, 0, 2]].tolist(),
                "rotation": matrix_to_quaternion(notes.rotation_global[k]).tolist(),
            }

    def get(self, table: str, token: str) -> dict:
        return self.rows[table, token]


def devkit_tracking_scores(frames: Sequence[Frame], found: Mapping[str, TrackedBoxes]) -> dict[str, Any]:
    """The numbers of evaluate_tracks by nuscenes-devkit and motmetrics: its filters, tracks, matching and sums."""
    from unittest import mock

    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
    from nuscenes.eval.tracking.data_classes import TrackingBox
    from nuscenes.eval.tracking.evaluate import TrackingEval
    from nuscenes.eval.tracking.loaders import create_tracks

    config, tables = config_factory("tracking_nips_2019"), _Tables(frames)
    truths, boxes = EvalBoxes(), EvalBoxes()
    for frame in frames:
        notes, own = frame.annotations, found[frame.token]
        labelled = [k for k, name in enumerate(notes.names) if name in TRACKING_CLASSES]
        truths.add_boxes(
            frame.token,
            [
                TrackingBox(
                    frame.token, tuple(notes.centre_global_m[k]), (2.0, 2.0, 2.0), (1.0, 0, 0, 0),
                    num_pts=int(notes.num_lidar_points[k] + notes.num_radar_points[k]),
                    tracking_id=notes.instance_tokens[k], tracking_name=notes.names[k], tracking_score=-1.0,
                )
                for k in labelled
            ],
        )  # fmt: skip
        boxes.add_boxes(
            frame.token,
            [
                TrackingBox(
                    frame.token, tuple(own.boxes.centre_global_m[k]), (2.0, 2.0, 2.0), (1.0, 0, 0, 0),
                    tracking_id=own.ids[k], tracking_name=own.boxes.names[k],
                    tracking_score=float(own.boxes.scores[k]),
                )
                for k in range(len(own))
            ],
        )  # fmt: skip
    evaluation = TrackingEval.__new__(TrackingEval)
    evaluation.cfg, evaluation.verbose, evaluation.output_dir, evaluation.render_classes = config, False, "", None
    kept = [filter_eval_boxes(tables, add_center_dist(tables, each), config.class_range) for each in (truths, boxes)]
    names = [row["name"] for row in tables.scene]
    with mock.patch("nuscenes.eval.tracking.loaders.get_scenes_of_split", return_value=names):
        evaluation.tracks_gt = create_tracks(kept[0], tables, "val", gt=True)
        evaluation.tracks_pred = create_tracks(kept[1], tables, "val", gt=False)
    metrics, _ = evaluation.evaluate()

    def number(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    return {
        **{key: number(metrics.compute_metric(key)) for key in KEYS},
        "per_class": {
            name: {key: number(metrics.label_metrics[key][name]) for key in KEYS} for name in TRACKING_CLASSES
        },
    }


SEEDS = range(12)


if __name__ == "__main__":  # writes the file that tests compare with; needs nuscenes-devkit, motmetrics 1.4.0, pandas 2
    import json
    import sys
    from pathlib import Path

    expected = {seed: devkit_tracking_scores(*random_tracks(seed)) for seed in SEEDS}
    Path(sys.argv[1]).write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
