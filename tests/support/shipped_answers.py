"""What the shipped weights answer on one fixed batch, in a few numbers: the contract with later versions.

``python tests/support/shipped_answers.py`` (with the checkout on PYTHONPATH as ``drivestack``) adds those of new
weights to tests/reference/shipped_answers.json; recorded ones stay. A version that answers otherwise has broken the
weights: do not record it anew. Two exceptions so far: the lanes of 2026-12-01, better by their labels, when the lane
map took each sample's own statistics (docs/tiny_model.md; ``python tests/support/shipped_answers.py lanes``), and
perception_tiny_drive, whose weights learned further on that day, before a release: deleted and added again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from drivestack.bev.protocol import TASKS
from drivestack.core.answers import SceneAnswer
from drivestack.core.batch import Batch
from drivestack.core.cameras import CAMERA_ORDER
from drivestack.core.checkpoint import load_checkpoint
from drivestack.core.frames import CameraView, Frame
from drivestack.engine.config import build_model, load_config
from drivestack.geometry import CameraModel, invert_pose, pose, rotation_z

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "tests" / "reference" / "shipped_answers.json"
HEIGHT_PX, WIDTH_PX = 128, 384
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # EGO frame from a camera that looks ahead
EGO_FROM_BEV = pose(rotation_z(-np.pi / 2), [0.9, 0.0, 1.8])


def images(seed: int, count: int) -> np.ndarray:
    """[count, 3, H, W]: a sky, a street and blocks that stand on it, each view its own; in normalised colours."""
    rng = np.random.default_rng(seed)
    views = np.empty((count, 3, HEIGHT_PX, WIDTH_PX))
    for view in views:
        view[:, :40] = rng.uniform(0.5, 1.5, (3, 1, 1))
        view[:, 40:] = rng.uniform(-1.0, -0.3) + np.linspace(0, 0.5, HEIGHT_PX - 40)[:, None]
        for _ in range(12):
            left, top, wide, high = rng.integers([0, 20, 10, 10], [WIDTH_PX, 90, 80, 60])
            view[:, top : top + high, left : left + wide] = rng.uniform(-1.5, 1.5, (3, 1, 1))
        view += rng.normal(0, 0.05, view.shape)
    return views


def batch() -> Batch:
    """One keyframe of six cameras around a car."""
    camera = CameraModel(np.array([[300.0, 0, WIDTH_PX / 2], [0, 300, 50], [0, 0, 1]]), WIDTH_PX, HEIGHT_PX)
    global_from_ego = pose(rotation_z(0.4), [600.0, 1200.0, 0.0])
    names = CAMERA_ORDER  # camera embeddings go by name; when the answers were recorded they went by position
    mounted = [pose(rotation_z(-i * np.pi / 3) @ FORWARD, [0.5, 0.0, 1.5]) for i in range(len(names))]
    views = tuple(CameraView(name, camera, where, global_from_ego, 0) for name, where in zip(names, mounted))
    bev_from_camera = np.stack([invert_pose(EGO_FROM_BEV) @ where for where in mounted])
    count = len(names)
    return Batch(
        images=torch.from_numpy(images(0, count)).float()[None, None],
        frame_offsets=(0,),
        frame_valid=torch.ones(1, 1, dtype=torch.bool),
        image_from_bev=torch.from_numpy(camera.image_from_camera @ invert_pose(bev_from_camera)).float()[None, None],
        image_size_px=torch.tensor([HEIGHT_PX, WIDTH_PX]).expand(1, 1, count, 2),
        image_flipped=torch.zeros(1, dtype=torch.bool),
        bda=torch.eye(3)[None],
        intrinsics=torch.from_numpy(camera.intrinsics).float().expand(1, count, 3, 3),
        bev_from_camera=torch.from_numpy(bev_from_camera).float()[None],
        ego_from_bev=torch.from_numpy(EGO_FROM_BEV).float()[None],
        frames=[Frame("fixed", "scene", "scene", 0, views, global_from_ego, EGO_FROM_BEV)],
    )


def summary(answer: SceneAnswer) -> dict[str, dict[str, list[float]]]:
    """A few numbers of each part of an answer; places in metres, weighed by score so that ties do not matter."""
    found = {}
    if (boxes := answer.boxes) is not None:
        weights = boxes.scores.astype(np.float64)
        found["boxes"] = {
            "count": [len(weights)],
            "best_scores": weights[:10].tolist(),
            "score_sum": [weights.sum()],
            "score_sum_per_class": np.bincount(boxes.labels, weights, 10).tolist(),
            "mean_box": np.average(boxes.boxes.astype(np.float64), axis=0, weights=weights)[
                [0, 1, 2, 3, 4, 5]
            ].tolist(),
        }
    if (voxels := answer.occupancy) is not None:
        classes = voxels.semantics
        found["occupancy"] = {
            "voxels_per_class": np.bincount(classes.ravel(), minlength=18).tolist(),
            "mean_cell": np.argwhere(classes != 17).mean(0).tolist(),
        }
    if (lanes := answer.lanes) is not None:
        weights, elements = lanes.lane_scores.astype(np.float64), lanes.element_scores.astype(np.float64)
        middle = lanes.centrelines.astype(np.float64).mean(1)
        found["lanes"] = {
            "count": [len(weights), len(elements)],
            "lane_score_sum": [weights.sum()],
            "best_lane_scores": weights[:5].tolist(),
            "mean_middle": np.average(middle, axis=0, weights=weights).tolist(),
            "element_score_sum": [elements.sum()],
            "edge_sums": [float(lanes.lane_lane.sum()), float(lanes.lane_element.sum())],
        }
    return found


def answers() -> dict[str, dict]:
    """Summary per file of weights/, each loaded strictly into the model of the config of its name."""
    found = {}
    for path in sorted((ROOT / "weights").glob("*.safetensors")):
        model = build_model(load_config(path.stem))
        if model.lane_head is not None:
            model.lane_head.min_score = 0.0  # the answers were recorded with all lanes, however unsure
        assert load_checkpoint(model, path, may_lack=model.teachers).clean
        ((answer,), _) = model.eval().predict(batch())
        found[path.stem] = summary(answer)
    return found


def record(parts: Collection[str]) -> None:
    """Write the parts of today's answers that are named, and all of weights that are new, beside what is recorded.

    Raises ValueError for a part that is no task's.
    """
    if unknown := set(parts) - set(TASKS):
        raise ValueError(f"{', '.join(sorted(unknown))}: no part of an answer; choose from {', '.join(TASKS)}")
    recorded = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    for name, found in answers().items():
        old = recorded.setdefault(name, found)
        old.update({part: found[part] for part in parts if part in found})
    RECORD.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{RECORD}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    record(sys.argv[1:])
