"""A real nuScenes keyframe through the whole path: info pickle, dataset, model, submission, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drivestack.cli.main import main
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.readers.nuscenes.info_pickle import read_info_pickle
from drivestack.engine.config import build_model, load_config
from drivestack.view.colours import GROUND_TRUTH

TOKEN = "ca9a282c9e77460f8360f564131a8af5"
SMALL = (
    "model.img_backbone.channels=16",
    "model.img_backbone.groups=(1, 2, 4, 8)",
)


@pytest.fixture(scope="module")
def source(shared_real: Path) -> list[str]:
    """Arguments that name the frame on the command line."""
    folder = shared_real / "nuscenes_frame"
    return ["--info-pickle", str(next(folder.glob("*.pkl"))), "--dataroot", str(folder)]


def test_a_small_model_predicts_and_pictures_are_drawn(source, tmp_path, capsys):
    submission, pictures = tmp_path / "submission.json", tmp_path / "pictures"
    overrides = [word for text in SMALL for word in ("--set", text)]
    command = ["predict", "bevformerv2_tiny_synthetic", "random", "--device", "cpu", *overrides, *source]
    assert main([*command, "--out", str(submission)]) == 0, capsys.readouterr().err
    content = json.loads(submission.read_text())
    assert list(content["results"]) == [TOKEN] and content["meta"]["use_camera"]
    for box in content["results"][TOKEN]:
        assert np.isfinite([*box["translation"], *box["size"], *box["rotation"], box["detection_score"]]).all()

    command = ["visualize", *source, "--submission", str(submission), "--score-threshold", "1", "--out", str(pictures)]
    assert main(command) == 0, capsys.readouterr().err
    (path,) = pictures.glob("*.png")
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert picture.shape[1] > 2000 and picture.std() > 40
    green = np.abs(picture - GROUND_TRUTH).max(-1) < 40
    height, width = green.shape
    cameras = green[:, : width - height]  # the square at the right is the view from above
    tiles = [t for row in np.array_split(cameras, 2, 0) for t in np.array_split(row, 3, 1)]
    assert all(tile.sum() > 130 for tile in tiles), "each of the six cameras sees labelled objects, in dashes"


def test_the_real_frame_fits(source, tmp_path, capsys):
    """No false alarm; mounting, overlaps, sizes and LiDAR as nuScenes has them."""
    assert main(["check-data", *source, "--out", str(tmp_path), "--pictures", "1", "--camera-width", "200"]) == 0
    assert capsys.readouterr().out.startswith("fits")
    report = json.loads((tmp_path / "report.json").read_text())
    front, back = (report["cameras"]["each"][name] for name in ("CAM_FRONT", "CAM_BACK"))
    assert abs(front["yaw_deg"]) < 1 and abs(abs(back["yaw_deg"]) - 180) < 1 and 1.4 < front["position_m"][2] < 1.7
    assert back["field_of_view_deg"][0] > 85 and report["cameras"]["covered_deg"] == 360
    assert report["boxes"]["boxes"] == 69 and report["boxes"]["lidar"]["with_points"] == 1.0
    assert abs(report["boxes"]["height_of_bottoms_m"]) < 0.2 and report["boxes"]["in_cameras"]["in_one"] == 1.0


def test_a_training_step_on_the_real_frame(source):
    """Real labels, 2D and 3D, reach a model with the perspective head and its proposals."""
    torch.manual_seed(0)
    small = (*SMALL, "model.img_backbone.depths=(1, 1, 1, 1)", "model.boxes.perspective.channels=32")
    config = load_config("bevformerv2_internimage_t_t1", small)
    config.model.bev_map.bev_size = (20, 20)
    config.model.boxes.head.num_query = 30
    frames = read_info_pickle(source[1], source[3])
    settings = dict(config.train_dataloader.dataset)
    image = dict(settings["image"]) | {"train_heights_px": (128,)}
    dataset = ClipDataset(
        classes=settings["classes"], frames=frames, image=image, training=True, mono=True, bda={}, photometric={}
    )
    batch = collate_clips([dataset[0]])
    assert sum(target is not None for target in batch.mono[0]) == 6
    losses = build_model(config).train().loss(batch)
    assert all(torch.isfinite(value) for value in losses.values()), losses
    assert sum(name.endswith("_mono") for name in losses) == 10
