"""Detectors and segmentors of OpenMMLab in our own loop: trained, stopped, resumed to the same bits, scored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drivestack.backbone import load_checkpoint
from drivestack.core.errors import CheckpointError, DataError
from drivestack.engine.checkpoints import read_checkpoint
from drivestack.engine.config import build_dataset, build_model, load_config
from drivestack.engine.from_data import completed
from drivestack.engine.predict import predict_images
from drivestack.engine.train import train
from support.toy_labelled_images import CLASSES, HEIGHT_PX, WIDTH_PX, write_rectangles

TINY = {
    "model.net.encoder": dict(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8)),
    "train_dataloader.batch_size": 2,
}
KINDS = {
    "mask_rcnn_tiny_synthetic": {
        **TINY,
        "model.net.width": 16,
        "model.net.fc_width": 32,
        "train_dataloader.dataset.pipeline.2.scale": (WIDTH_PX, HEIGHT_PX),
        "test_dataset.pipeline.1.scale": (WIDTH_PX, HEIGHT_PX),
    },
    "upernet_tiny_synthetic": {
        **TINY,
        "model.net.width": 16,
        "model.net.aux_width": 16,
        "crop": (32, 32),
        "train_dataloader.dataset.pipeline.2.scale": (WIDTH_PX, HEIGHT_PX),
        "test_dataset.pipeline.1.scale": (WIDTH_PX, HEIGHT_PX),
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rectangles")
    write_rectangles(folder, "train", 8, seed=1)
    write_rectangles(folder, "val", 3, seed=2)
    return folder


def tiny(name: str, data: Path, **more: Any) -> Any:
    return load_config(name, {"data": str(data), "val_data": str(data), **KINDS[name], **more})


def run(name: str, data: Path, folder: Path, iterations: int, **options: Any) -> dict[str, Any]:
    config = tiny(name, data, **{"checkpoint.interval": 2})
    config.train_cfg.max_iters = iterations
    return read_checkpoint(train(config, folder, **options))


@pytest.mark.parametrize("name", KINDS)
def test_resumed_to_the_same_bits(name: str, data: Path, tmp_path: Path) -> None:
    whole = run(name, data, tmp_path / "whole", 4)
    run(name, data, tmp_path / "parts", 2)
    parts = run(name, data, tmp_path / "parts", 4, resume=True)
    assert whole["state_dict"].keys() == parts["state_dict"].keys()
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][key]), key
    assert "backbone.patch_embed.conv1.weight" in whole["state_dict"]  # mmdet's and mmseg's own keys
    assert tuple(whole["meta"]["classes"])[:3] == CLASSES


@pytest.mark.parametrize("name", KINDS)
def test_a_sample_is_a_function_of_index_and_draw(name: str, data: Path) -> None:
    dataset = build_dataset(tiny(name, data).train_dataloader.dataset)
    state = np.random.get_state()[1].tolist()
    first, again, other = dataset[(1, 5)], dataset[(1, 5)], [dataset[(1, draw)]["inputs"] for draw in range(6, 12)]
    assert torch.equal(first["inputs"], again["inputs"])
    assert any(image.shape != first["inputs"].shape or not torch.equal(image, first["inputs"]) for image in other)
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize("name", KINDS)
def test_answers_are_in_pixels_of_the_image_and_are_scored(name: str, data: Path) -> None:
    torch.manual_seed(0)
    config = completed(tiny(name, data))
    config.test_dataset.pipeline[1].scale = (2 * WIDTH_PX, 2 * HEIGHT_PX)  # to be undone
    model, dataset = build_model(config), build_dataset(config.test_dataset)
    answers = list(predict_images(model, dataset, progress=False))
    assert [answer.token for answer in answers] == ["000.png", "001.png", "002.png"]
    for answer in answers:
        assert answer.size_px == (WIDTH_PX, HEIGHT_PX)
        if model.task == "segmentation":
            assert answer.segmentation.shape == (HEIGHT_PX, WIDTH_PX)
        else:
            found = answer.instances
            assert found.masks.shape == (len(found.scores), HEIGHT_PX, WIDTH_PX)
            assert (found.boxes_xyxy_px >= 0).all() and (found.boxes_xyxy_px <= [WIDTH_PX, HEIGHT_PX] * 2).all()
            assert (np.diff(found.scores) <= 0).all()
    scorer = dataset.scorer()
    scorer.add(answers)
    assert next(iter(scorer.scores())) == ("mIoU" if model.task == "segmentation" else "box AP")


@pytest.mark.parametrize("name", KINDS)
def test_images_in_memory_need_no_files(name: str, data: Path) -> None:
    config = tiny(name, data / "nowhere")
    image = np.full((HEIGHT_PX, WIDTH_PX, 3), 100, np.uint8)
    dataset = build_dataset({**config.test_dataset, "images": [image, str(data / "images/val/000.png")]})
    assert len(dataset) == 2 and dataset.tokens[0] == "0"
    answers = list(predict_images(build_model(config), dataset, progress=False))
    assert [answer.size_px for answer in answers] == [(WIDTH_PX, HEIGHT_PX)] * 2
    np.testing.assert_array_equal(dataset.image(0), image)
    broken = build_dataset({**config.test_dataset, "images": [image.astype(float)]})
    with pytest.raises(DataError, match="float64"):
        broken[0]


def test_a_damaged_image_is_named(data: Path, tmp_path: Path) -> None:
    write_rectangles(tmp_path, "train", 2)
    (tmp_path / "images/train/001.png").write_bytes(b"no image")
    dataset = build_dataset(tiny("mask_rcnn_tiny_synthetic", tmp_path).train_dataloader.dataset)
    with pytest.raises(DataError, match=r"001\.png: image is not a readable image"):
        dataset[1]


def test_polygons_and_runs_give_the_same_masks(data: Path) -> None:
    from mmdet.structures.mask import BitmapMasks

    dataset = build_dataset(tiny("mask_rcnn_tiny_synthetic", data).train_dataloader.dataset)
    source = dataset.source
    own = source.objects[0][-1]  # the last one drawn, a whole rectangle
    as_runs = dataset[0]["data_samples"].gt_instances.masks
    x, y, width, height = own.bbox
    own.segmentation = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    as_polygon = dataset[0]["data_samples"].gt_instances.masks
    assert isinstance(as_runs, BitmapMasks)
    np.testing.assert_array_equal(as_runs.masks, as_polygon.masks)


@pytest.mark.parametrize("name", KINDS)
def test_an_encoder_starts_a_detector_and_other_checkpoints_are_refused(name: str, data: Path, tmp_path: Path) -> None:
    from drivestack.backbone import InternImageClassifier, save_safetensors

    config = tiny(name, data)
    model = build_model(config)
    encoder = dict(config.model.net.encoder)
    file = tmp_path / "classifier.safetensors"
    classifier = InternImageClassifier(num_classes=7, **encoder)
    save_safetensors(classifier, file)
    heads = ("neck.", "rpn_head.", "roi_head.", "decode_head.", "auxiliary_head.")
    with pytest.raises(CheckpointError, match="image encoder"):
        load_checkpoint(model, file)
    report = load_checkpoint(model, file, may_lack=heads)
    assert any("encoder alone" in note for note in report.notes)
    assert torch.equal(model.encoder.patch_embed.conv1.weight, classifier.patch_embed.conv1.weight)

    own = tmp_path / "own.safetensors"
    save_safetensors(model, own)
    assert load_checkpoint(build_model(config), own).clean
    config.model.net.num_classes = 5
    config.model.net.pop("class_weights", None)  # one for each class
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(build_model(config), own)
    assert re.search(r"\d+ classes, the model has \d+", str(error.value))
    state = model.state_dict()
    key = next(key for key in state if key.startswith("backbone.levels.2"))
    save_safetensors({**{k: v for k, v in state.items() if k != key}, "extra.weight": torch.zeros(2)}, own)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(model, own)
    assert key in str(error.value) and "extra.weight" in str(error.value)


def test_averages_of_the_old_hook_are_left_out(data: Path) -> None:
    model = build_model(tiny("mask_rcnn_tiny_synthetic", data))
    state = model.state_dict()
    state |= {"ema_" + key.replace(".", "_"): value + 1 for key, value in state.items()}
    adapted, notes = model.adapt_checkpoint(state)
    assert adapted.keys() == model.state_dict().keys()
    assert any("averaging" in note for note in notes)


def test_own_images_are_one_command(data: Path, tmp_path: Path) -> None:
    """The number of classes, iterations and rates follow from the files; weights of other classes start it."""
    own = tmp_path / "own"
    (own / "images").mkdir(parents=True)
    for file in (data / "images/train").iterdir():
        (own / "images" / file.name).write_bytes(file.read_bytes())
    for split in ("train", "val"):
        (own / f"{split}.json").write_bytes((data / "annotations/instances_train.json").read_bytes())
    small = {"model.net.encoder": TINY["model.net.encoder"], "model.net.width": 16, "model.net.fc_width": 32}
    before = build_model(load_config("mask_rcnn_internimage_t_fpn_1x_coco", small))
    weights = tmp_path / "coco.safetensors"
    from drivestack.backbone import save_safetensors

    save_safetensors(before, weights)
    options = {"data": str(own), **small, "epochs.total": 1, "epochs.warmup": 0, "train_dataloader.num_workers": 0}
    config = load_config("mask_rcnn_internimage_t_own_coco", options)
    config.train_dataloader.dataset.pipeline[2] = dict(type="Resize", scale=(WIDTH_PX, HEIGHT_PX), keep_ratio=True)
    config.train_dataloader.batch_size = 4
    last = read_checkpoint(train(config, tmp_path / "run", fine_tune=weights))
    assert last["meta"]["iter"] == 2  # 8 images, 4 a step
    assert last["state_dict"]["roi_head.bbox_head.fc_cls.weight"].shape[0] == len(CLASSES) + 1
    assert tuple(last["meta"]["classes"]) == CLASSES


def test_a_folder_of_masks_is_one_command(data: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            folder = tmp_path / "own" / split / kind
            folder.mkdir(parents=True)
            for file in (data / kind / split).iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / "own" / "classes.txt").write_text("\n".join([*CLASSES, "background"]))
    options = {
        "data": str(tmp_path / "own"),
        "model.net.encoder": TINY["model.net.encoder"],
        "model.net.width": 16,
        "epochs.total": 1,
        "epochs.warmup": 0,
        "train_dataloader.num_workers": 0,
        "train_dataloader.dataset.pipeline.2.scale": (WIDTH_PX, HEIGHT_PX),
        "train_dataloader.dataset.pipeline.3.crop_size": (32, 32),
        "model.net.train_size": (32, 32),
    }
    config = load_config("upernet_internimage_t_own_masks", options)
    last = read_checkpoint(train(config, tmp_path / "run"))
    assert last["state_dict"]["decode_head.conv_seg.weight"].shape[0] == 4
