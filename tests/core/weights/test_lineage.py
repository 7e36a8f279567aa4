"""Where weights come from: records go through files unchanged, other people's are read, and scenes are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from drivestack.core.checkpoint import save_safetensors
from drivestack.core.errors import CheckpointError
from drivestack.core.weights.lineage import KEY, Stage, data_settings, lineage_of, seen_before, split_in, to_json

STAGE = Stage(
    recipe="mono3d",
    data={"source.reader": "nuscenes", "source.root": ["a", "b"]},
    split="train",
    scenes=("s1", "s2"),
    classes=("car",),
    samples=40,
    seed=3,
    iterations=100,
    command="drivestack train mono3d",
)


def test_records_survive_both_kinds_of_files(tmp_path: Path) -> None:
    save_safetensors({"x": torch.ones(1)}, tmp_path / "a.safetensors", {KEY: to_json([STAGE, Stage(file="b")])})
    assert lineage_of(tmp_path / "a.safetensors") == (STAGE, Stage(file="b"))
    torch.save({"meta": {KEY: [STAGE.as_dict()]}, "state_dict": {}}, tmp_path / "a.pth")
    assert lineage_of(tmp_path / "a.pth") == (STAGE,)
    for part in ("mono3d", "nuscenes", "split train", "2 scenes", "seed 3", "100 iterations"):
        assert part in str(STAGE)


def test_what_files_do_not_say_is_not_invented(tmp_path: Path) -> None:
    save_safetensors({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    torch.save({"x": torch.ones(1)}, tmp_path / "a.pth")
    torch.save([torch.ones(1)], tmp_path / "b.pth")
    assert all(lineage_of(tmp_path / name) == () for name in ("a.safetensors", "a.pth", "b.pth"))
    assert "data: not recorded; split not recorded" in str(Stage(file="x.pth"))
    with pytest.raises(CheckpointError, match="no such"):
        lineage_of(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "record",
    ["text", "[1]", '[{"recipe": 3}]', '[{"scenes": [1]}]', '[{"seed": "a"}]', '[{"data": []}]', '{"a": 1}', "["],
)
def test_damaged_records_are_one_line(tmp_path: Path, record: str) -> None:
    path = tmp_path / "a.safetensors"
    save_safetensors({"x": torch.ones(1)}, path, {KEY: record})
    with pytest.raises(CheckpointError, match="its record of trainings") as caught:
        lineage_of(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_weights_exported_before_there_were_records_say_what_they_have(repository_root: Path) -> None:
    (stage,) = lineage_of(repository_root / "weights" / "bevformerv2_tiny_synthetic.safetensors")
    assert (stage.recipe, stage.seed, stage.iterations) == ("bevformerv2_tiny_synthetic", 0, 10800)
    assert "100 scenes" in stage.notes["data"] or "--scenes 100" in stage.notes["data"]


MMDET2 = """
dataset_type = 'CocoDataset'
data = dict(
    samples_per_gpu=2,
    train=dict(
        type='CocoDataset',
        ann_file='data/coco/annotations/instances_train2017.json',
        img_prefix='data/coco/train2017/',
        pipeline=[dict(type='LoadImageFromFile', file_client='disk')]),
    val=dict(type='CocoDataset', ann_file='instances_val2017.json'))
"""
MMSEG1 = """
data_root = 'data/ade'
train_dataloader = dict(
    dataset=dict(type='ADE20KDataset', data_root='data/ade', data_prefix=dict(img='images/training')))
model = dict(type=EncoderDecoder)
"""


def test_openmmlabs_config_text_is_parsed_not_run(tmp_path: Path) -> None:
    def stage(text: str) -> Stage:
        torch.save({"meta": {"config": text, "seed": 7, "iter": 9, "CLASSES": ("a", "b")}, "state_dict": {}}, path)
        return lineage_of(path)[0]

    path = tmp_path / "det.pth"
    found = stage(MMDET2)
    assert found.data == {
        "type": "CocoDataset",
        "ann_file": "data/coco/annotations/instances_train2017.json",
        "img_prefix": "data/coco/train2017/",
    }
    assert (found.seed, found.iterations, found.classes, found.file) == (7, 9, ("a", "b"), "det.pth")
    assert stage(MMSEG1).data == {
        "type": "ADE20KDataset",
        "data_root": "data/ade",
        "data_prefix.img": "images/training",
    }
    assert stage("data = open('x')\n(").data == {}
    assert stage("data = [" * 5000 + "\n").data == {}


def test_internimages_options_are_read(tmp_path: Path) -> None:
    options = {"DATA": {"DATASET": "imagenet", "DATA_PATH": "imagenet"}, "SEED": 0, "MODEL": {"NAME": "t_1k_224"}}
    torch.save({"model": {"x": torch.ones(1)}, "config": options, "epoch": 300}, tmp_path / "t.pth")
    (stage,) = lineage_of(tmp_path / "t.pth")
    assert stage == Stage("t_1k_224", {"dataset": "imagenet", "data_path": "imagenet"}, seed=0, file="t.pth")


def test_settings_that_name_data_are_told_from_the_rest() -> None:
    dataset = {
        "type": "ClipDataset",
        "classes": ["car"],
        "image": {"type": "ImageSettings", "channels": "rgb"},
        "source": {"reader": "nuscenes", "root": ["a", "b"], "split": "train", "version": "v1.0"},
        "datasets": [{"ann_file": "x.json"}],
        "pc_range": [1.0],
    }
    found = data_settings(dataset)
    assert set(found) == {
        "type", "source.reader", "source.root", "source.split", "source.version", "datasets.0.ann_file",
    }  # fmt: skip
    assert split_in(found) == "train" and json.dumps(found)


@pytest.mark.parametrize(
    ("stage", "scenes", "split", "reader", "words"),
    [
        (STAGE, {"s2", "s3"}, "val", "nuscenes", "mono3d trained on 1 of the 2 scenes of split val"),
        (STAGE, {"s3"}, "train", "nuscenes", ""),  # scenes decide
        (Stage("a", {"source.reader": "nuscenes"}, "trainval"), {"s3"}, "val", "nuscenes", "called 'trainval'"),
        (Stage("a", {"source.reader": "nuscenes"}, "val"), set(), "val", "nuscenes", "called 'val'"),
        (Stage("a", {"type": "CocoDataset"}, "val"), set(), "val", "nuscenes", ""),  # another data set
        (Stage("a", {"source.reader": "openlane"}, "val"), set(), "val", "nuscenes", ""),
        (Stage(file="x", notes={"split": "val"}), {"s3"}, "val", "nuscenes", "x trained on a split called 'val'"),
        (Stage("a"), {"s3"}, "val", "nuscenes", ""),
    ],
)
def test_which_trainings_saw_the_validation_data(stage, scenes, split: str, reader: str, words: str) -> None:
    found = seen_before([stage], scenes, split, reader)
    assert bool(found) == bool(words) and (not words or words in found[0])
