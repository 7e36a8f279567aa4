"""One tiny synthetic set for all verbs, and an oracle that repeats its labels: from files to scores it must give 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from drivestack.bev.protocol import PerceptionModel
from drivestack.cli.main import main
from drivestack.core.answers import Detections, LaneGraph, OccupancyGrid, SceneAnswer
from drivestack.core.frames import Frame
from drivestack.core.registries import MODELS
from drivestack.data_tools.labels.files import read_occupancy

CLASSES = ["barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian"]
CLASSES += ["traffic_cone", "trailer", "truck"]


@MODELS.register_module()
class OracleForTests(PerceptionModel):
    """Finds every labelled object that a sensor hit, and with more tasks every voxel and lane."""

    def __init__(self, frame_offsets: tuple[int, ...] = (0,), tasks: tuple[str, ...] = ("boxes",)) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.tasks, self.frame_offsets = tuple(tasks), tuple(frame_offsets)

    def predict(self, batch, memory=None, tasks=None):
        assert batch.frame_offsets == (0,)
        answer = {"boxes": boxes_of, "occupancy": voxels_of, "lanes": lanes_of}
        return [SceneAnswer(f.token, **{t: answer[t](f) for t in self.asked(tasks)}) for f in batch.frames], memory


def boxes_of(frame: Frame) -> Detections:
    labels = frame.annotations
    keep = [i for i, n in enumerate(labels.names) if n and labels.num_lidar_points[i] > 0]
    boxes = np.nan_to_num(frame.bev_boxes()[keep]).astype(np.float32)
    scores = np.full(len(keep), 0.8, dtype=np.float32)
    return Detections(frame.token, boxes, scores, np.array([CLASSES.index(labels.names[i]) for i in keep], np.int64))


def voxels_of(frame: Frame) -> OccupancyGrid:
    return OccupancyGrid(frame.token, read_occupancy(frame.occupancy_path).semantics)


def lanes_of(frame: Frame) -> LaneGraph:
    labels = frame.lanes
    lines = np.stack([line[:: len(line) // 10] for line in labels.centrelines])
    scores = [np.linspace(0.9, 0.6, n, dtype=np.float32) for n in (len(lines), len(labels.attributes))]
    edges = [matrix.astype(np.float32) for matrix in (labels.lane_lane, labels.lane_element)]
    return LaneGraph(frame.token, lines, scores[0], labels.elements_xyxy_px, labels.attributes, scores[1], *edges)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "data"
    arguments = ["--split", "val", "--scenes", "2", "--keyframes", "2", "--image-width", "96", "--workers", "1"]
    assert main(["synthesize", str(folder), *arguments]) == 0
    return folder


def source_of(root: Path, split: str = "val") -> list[str]:
    return ["--dataroot", str(root), "--version", "v1.0-trainval", "--split", split]


@pytest.fixture
def source() -> Callable[..., list[str]]:
    """Options that name a set: source(root), source(root, "train")."""
    return source_of


def write_config(root: Path, name: str, tasks: tuple[str, ...]) -> Path:
    path = root.parent / name
    path.write_text(
        f"""
from drivestack.data_tools.clips.clip_dataset import ClipDataset

model = dict(type="OracleForTests", frame_offsets=(-1, 0), tasks={tasks!r})
test_dataset = dict(
    type=ClipDataset,
    classes={CLASSES!r},
    source=dict(reader="nuscenes", root={str(root)!r}, version="v1.0-trainval", split="val"),
    image=dict(test_height_px=32),
)
"""
    )
    return path


@pytest.fixture(scope="session")
def config(root: Path) -> Path:
    """Of the oracle for boxes."""
    return write_config(root, "oracle.py", ("boxes",))


@pytest.fixture(scope="session")
def config_of_three(root: Path) -> Path:
    """Of the oracle for boxes, voxels and lanes."""
    return write_config(root, "oracle_of_three.py", ("boxes", "occupancy", "lanes"))


@pytest.fixture(scope="session")
def weights(root: Path) -> Path:
    path = root.parent / "oracle.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    return path


@pytest.fixture(scope="session")
def submission(root: Path, config: Path, weights: Path) -> Path:
    """The boxes of the oracle."""
    path = root.parent / "submission.json"
    assert main(["predict", str(config), str(weights), *source_of(root), "--out", str(path)]) == 0
    return path
