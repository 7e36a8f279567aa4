"""The verbs train, evaluate and predict, and the API, on a model of single images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import drivestack
from drivestack.cli.main import main
from drivestack.core.errors import DataError, NoLabelsError
from drivestack.core.rle import decode_rle
from drivestack.tasks.images import _png_name, check_classes, image_files
from support.toy_images import CLASSES, Squares

CONFIG = """
from mmengine.config import read_base

from drivestack.data_tools.clips.sampler import ResumableSampler
from drivestack.engine.optim import PrecisionOptimWrapper
from support.toy_images import SquareModel, Squares
from torch.optim import AdamW

model = dict(type=SquareModel)
train_dataloader = dict(
    dataset=dict(type=Squares), sampler=dict(type=ResumableSampler), batch_size=6, num_workers=0,
    collate_fn=Squares.collate,
)
test_dataset = dict(type=Squares, count=12)
optim_wrapper = dict(type=PrecisionOptimWrapper, optimizer=dict(type=AdamW, lr=0.1))
train_cfg = dict(max_iters=30)
validation = dict(interval=15, metric="top1")
log_interval = 10
seed = 1
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config file and the folder that training from it left."""
    folder = tmp_path_factory.mktemp("images")
    config = folder / "squares.py"
    config.write_text(CONFIG)
    assert main(["train", str(config), "--work-dir", str(folder / "run")]) == 0
    return config, folder / "run"


def test_training_scores_on_the_way_and_states_the_classes(trained: tuple[Path, Path]) -> None:
    _, run = trained
    content = torch.load(run / "best.pth", weights_only=True)
    assert content["meta"]["best"]["score"] == 1.0 and tuple(content["meta"]["classes"]) == CLASSES
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [r["validation"] for r in records if "validation" in r][-1] == {"top1": 1.0}


def test_evaluate_prints_and_writes_scores(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = trained
    arguments = ["evaluate", str(config), str(run / "iter_30.pth"), "--out", str(tmp_path / "out"), "--batch-size", "5"]
    assert main(arguments) == 0
    assert "top1  1.0000" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == {"top1": 1.0}
    assert len((tmp_path / "out" / "answers.jsonl").read_text().splitlines()) == 12


def test_predict_answers_named_images_and_draws_them(trained: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = trained
    folder = tmp_path / "mine"
    folder.mkdir()
    dataset = Squares(3)
    for i in range(3):
        Image.fromarray(dataset.image(i)).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    out = tmp_path / "answers"
    arguments = ["predict", str(config), str(run / "iter_30.pth"), "--images", str(folder), "--out", str(out)]
    assert main([*arguments, "--pictures", "2"]) == 0
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [line["classes"][0]["name"] for line in lines] == list(CLASSES)
    assert lines[0]["image"] == str(folder / "0.png") and lines[0]["size_px"] == [16, 16]
    assert decode_rle(lines[0]["instances"][0]["mask"], "x").sum() == 64
    classes = np.asarray(Image.open(out / lines[1]["segmentation"]))
    assert classes.shape == (16, 16) and classes.sum() == 64
    pictures = sorted((out / "pictures").iterdir())
    assert len(pictures) == 2 and Image.open(pictures[0]).size[0] == 480


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataroot", "x", "--version", "v", "--split", "val"], "--dataroot is for models of surround cameras"),
        (["--images", "nowhere"], "nowhere: no such image or folder"),
        (["--perturb-calibration", "shuffle"], "--perturb-calibration is for models of surround cameras"),
        (["--seconds", "3"], "name the folder with --watch"),
        (["--waymo-entry", "x.json"], "--waymo-entry is for models of surround cameras"),
    ],
)
def test_what_does_not_belong_is_one_line(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    config, run = trained
    assert main(["predict", str(config), str(run / "iter_30.pth"), "--out", str(tmp_path / "a"), *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error


def test_images_are_no_option_of_surround_cameras(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["predict", "perception_tiny_synthetic", "random", "--images", "x", "--out", str(tmp_path / "a")]
    assert main(arguments) == 2
    assert "--images, --watch and --pictures are for models of single images" in capsys.readouterr().err


def test_the_api_answers_images_of_any_kind(trained: tuple[Path, Path], tmp_path: Path) -> None:
    model = drivestack.load(trained[1])
    assert model.class_names == CLASSES and isinstance(model, drivestack.ImagePerception)
    pixels = Squares(3).image(1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (pixels, Image.fromarray(pixels), tensor, tensor / 255, tmp_path / "a.png"):
        result = model(image)
        assert result.classes[0][0] == "green" and result.names == ["green"]
        assert result.instances.boxes_xyxy_px.tolist() == [[4, 4, 12, 12]] and result.segmentation.sum() == 64
    picture = result.picture(score_threshold=0.0)
    assert picture.size[0] == 480 and picture.size[1] > 480  # a legend below
    assert model.evaluate() == {"top1": 1.0}
    with pytest.raises(DataError, match="image is missing"):
        model(tmp_path / "nowhere.png")


def test_a_set_without_labels_and_other_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(NoLabelsError):
        Squares(images=[np.zeros((16, 16, 3), np.uint8)]).scorer()
    with pytest.raises(DataError, match=r"class 1 is b in the weights \(2 classes\) and c in the data \(2\)"):
        check_classes(("a", "b"), ("a", "c"))
    with pytest.raises(DataError, match=r"class 2 is nothing in the weights"):
        check_classes(("a", "b"), ("a", "b", "c"))
    check_classes((), ("a",))
    with pytest.raises(DataError, match="holds no images"):
        image_files([tmp_path])


def test_a_watched_folder_is_answered_line_by_line(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = trained
    Image.fromarray(Squares(3).image(2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    out = tmp_path / "out"
    arguments = ["predict", str(config), str(run / "iter_30.pth"), "--watch", str(tmp_path), "--seconds", "0.5"]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    (line,) = [json.loads(text) for text in printed.out.splitlines()]
    assert line["image"] == str(tmp_path / "a.png") and line["classes"][0]["name"] == "blue"
    assert "b.png: image is not a readable image" in printed.err
    assert len(list((out / "segmentation").iterdir())) == 1
    assert main([*arguments, "--pictures", "2"]) == 2
    assert "give no --images and no --pictures" in capsys.readouterr().err


def test_features_and_throughput_of_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        Image.fromarray(Squares(3).image(2)).save(tmp_path / f"{name}.png")
    common = ["internimage_tiny_synthetic_classes", "random", "--device", "cpu", "--batch-size", "2"]
    images, out = ["--images", str(tmp_path), str(tmp_path / "a.png")], tmp_path / "f.npz"
    layers = ["--layers", "levels.3.blocks.0", "conv_head"]
    assert main(["features", *common, *images, *layers, "--out", str(out)]) == 0
    with np.load(out) as stored:
        assert stored["levels.3.blocks.0"].shape[0] == stored["conv_head"].shape[0] == 3
    assert main(["throughput", *common, "--size", "32", "--warm-up", "0", "--timed", "2"]) == 0
    assert "images/s, 2 batches of 2" in capsys.readouterr().out
    assert main(["features", "perception_tiny_synthetic", "random", *images, *layers, "--out", str(out)]) == 2
    assert "answers surround cameras, not single images" in capsys.readouterr().err


def test_files_of_segmentations_are_plain_names_and_never_the_same() -> None:
    tokens = ["a.png", "a/b.png", "a__b.png", "../../b.png", "/x/" + "y" * 300, "/z/" + "y" * 300]
    tokens += ["ü.png", "ä.png", "..", "\n"]
    names = [_png_name(token) for token in tokens]
    assert len(set(names)) == len(tokens) and names[:2] == ["a.png.png", "a__b.png.png"]
    assert all(len(name) < 200 and not name.startswith(".") and "/" not in name and name.isascii() for name in names)
