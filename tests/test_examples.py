"""The programs in examples/ run as their first lines say, at the smallest size."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def run(folder: Path, *arguments: str | Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def street(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    run(folder, repository_root / "examples/make_street.py", "street", "--keyframes", "2")
    return folder


def test_images_to_an_answer(repository_root: Path, street: Path) -> None:
    printed = run(street, repository_root / "examples/images_to_answer.py", "street/rig.json", "street/000")
    assert "m ahead" in printed and "occupied voxels" in printed and (street / "answer.jpg").stat().st_size > 50_000


def test_a_live_stream(repository_root: Path, street: Path) -> None:
    printed = run(street, repository_root / "examples/live_stream.py", "street")
    assert "2 keyframes of drive" in printed


def test_features_of_the_encoder(repository_root: Path, street: Path) -> None:
    printed = run(street, repository_root / "examples/encoder_features.py", "street/000/CAM_FRONT.jpg")
    assert "level 3: [1, 512, 12, 20], 512 channels, stride 32" in printed


def test_torchvisions_mask_rcnn_on_our_encoder(repository_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    verb = ("-m", "drivestack", "synthesize", "data", "--scenes", "1", "--keyframes", "1", "--image-width", "192")
    run(tmp_path, *verb, "--labels", "coco", "--workers", "1")
    files = "data/annotations/instances_train.json", "data/images/train"
    printed = run(tmp_path, repository_root / "examples/torchvision_mask_rcnn.py", *files, "2")
    assert "2 {" in printed and "loss_mask" in printed and "nan" not in printed


def test_a_rig_of_ones_own_through_verbs_and_api(repository_root: Path, tmp_path: Path) -> None:
    """Five cameras of three sizes, own classes, no LiDAR: train, evaluate, predict, score, look."""
    folder = tmp_path / "own_rig"
    shutil.copytree(repository_root / "examples/own_rig", folder, ignore=shutil.ignore_patterns("data", "runs"))
    make = repository_root / "examples/make_street.py"
    for split in ("train", "val"):
        run(folder, make, f"data/own_rig/{split}", "--own-rig", "--scenes", "1", "--keyframes", "2")
    small = ["--set", "train_cfg.max_iters=2", "--set", "validation.interval=2"]
    verb = ("-m", "drivestack")
    run(folder, *verb, "train", "my_config.py", "--fine-tune", "bevformerv2_tiny_synthetic", *small)
    best = "runs/my_config/best.pth"
    assert "pkw" in run(folder, *verb, "evaluate", "my_config.py", best)
    run(folder, *verb, "predict", "my_config.py", best, "--out", "results.json")
    source = ["--reader", "my_reader.py", "--dataroot", "data/own_rig", "--split", "val"]
    assert "two_wheeler" in run(folder, *verb, "score", "results.json", *source)
    run(folder, *verb, "visualize", "--submission", "results.json", *source, "--out", "pictures", "--clip", "my.gif")
    assert len(list((folder / "pictures").glob("*.png"))) == 2 and (folder / "my.gif").is_file()

    printed = run(folder, "by_api.py", "2")
    assert "mAP" in printed and "boxes in own_rig.jpg" in printed and (folder / "own_rig.jpg").is_file()
    reader = (folder / "my_reader.py").read_text().splitlines()
    code = [line for line in reader if line.strip() and not line.startswith(('"""', "#"))]
    assert len(code) <= 25
