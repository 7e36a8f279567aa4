"""The code of docs/own_data.md runs: Frames by hand, other classes, two cameras, another range."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drivestack.cli.main import main

FORWARD = np.array([[0.0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.4], [0, 0, 0, 1]])  # a camera that looks ahead
BACKWARD = np.array([[0.0, 0, -1, 0], [1, 0, 0, 0], [0, -1, 0, 1.4], [0, 0, 0, 1]])


def write_recording(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    intrinsics = [[80.0, 0, 64], [0, 80.0, 32], [0, 0, 1]]
    camera = {"intrinsics": intrinsics, "size_px": [128, 64]}
    cameras = {"front": camera | {"ego_from_camera": FORWARD.tolist()}}
    cameras |= {"rear": camera | {"ego_from_camera": BACKWARD.tolist()}}
    frames = []
    for i in range(2):
        global_from_ego = np.eye(4)
        global_from_ego[0, 3] = 3.0 * i
        for name in cameras:
            pixels = rng.integers(0, 255, (64, 128, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{i}.jpg")
        forklift = {"class": "forklift", "centre": [12, 2, 1], "yaw_rad": 0.5, "size_lwh": [3, 1.2, 2], "track": "a"}
        far = {"class": "car", "centre": [200, 0, 1], "yaw_rad": 0, "size_lwh": [4, 2, 1.5], "track": "b"}
        frames.append(
            {
                "drive": "yard",
                "timestamp_us": 500_000 * i,
                "global_from_ego": global_from_ego.tolist(),
                "images": {name: f"{name}{i}.jpg" for name in cameras},
                "objects": [forklift, far],
            }
        )
    (folder / "recording.json").write_text(json.dumps({"cameras": cameras, "frames": frames}))


def test_the_guide_runs(repository_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    text = (repository_root / "docs" / "own_data.md").read_text(encoding="utf-8")
    reader, config_text, use = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_reader.py").write_text(reader)
    (tmp_path / "my_config.py").write_text(config_text)
    for part in ("train", "val"):
        write_recording(tmp_path / "data" / "mine" / part)
    monkeypatch.chdir(tmp_path)

    from drivestack.data_tools.clips.collate import collate_clips
    from drivestack.engine.config import build_dataset, build_model, load_config

    config = load_config("my_config.py")
    dataset = build_dataset(config.train_dataloader.dataset)
    assert (len(dataset), dataset.camera_names) == (2, ("front", "rear"))
    assert [frame.prev_token for frame in dataset.frames] == ["", "train-0"]
    batch = collate_clips([dataset[0]])
    assert batch.gt_labels[0].tolist() == [1]
    x, y = batch.gt_boxes[0][0, :2].tolist()
    assert abs(x) == pytest.approx(2)  # to the left of the car, or mirrored to the right
    assert y == pytest.approx(12 - 0.94)  # the BEV frame lies where nuScenes mounts its LiDAR
    torch.manual_seed(0)
    model = build_model(config).train()
    losses = model(batch, mode="loss")
    assert all(torch.isfinite(value).all() for value in losses.values())

    weights = tmp_path / "runs" / "my_config" / "iter_5000.pth"
    weights.parent.mkdir(parents=True)
    (weights.parent / "my_config.py").write_text(config_text)  # training leaves one there
    torch.save({"state_dict": model.state_dict()}, weights)
    exec(compile(use, "docs/own_data.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("{'car': ") and {line.split()[0] for line in lines[1:]} == {"val-0", "val-1"}

    # the verbs of the guide, as written but for the checkpoint's name
    commands = [
        line
        for line in text.splitlines()
        if line.startswith("drivestack ") and ("my_config" in line or "my_reader" in line)
    ]
    assert len(commands) == 5
    for command in commands[1:]:
        words = command.replace("best.pth", "iter_5000.pth").split()[1:]
        assert main(words) == 0, capsys.readouterr().err
    assert {f"val-{i}" for i in range(2)} == set(json.loads((tmp_path / "results.json").read_text())["results"])
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
