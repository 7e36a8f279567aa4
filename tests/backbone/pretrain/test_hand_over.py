"""Hand-over: each layout of weights gives the encoder bit by bit; what does not fit is said or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from drivestack.backbone import FPN, CBInternImage, InternImage, InternImageClassifier, ResNet, read_state_dict
from drivestack.backbone.pretrain.hand_over import hand_over
from drivestack.core.checkpoint import save_safetensors
from drivestack.core.errors import CheckpointError, ConfigError
from drivestack.core.weights.files import read_metadata
from drivestack.core.weights.lineage import KEY, Stage, lineage_of, to_json

TRUNK = dict(channels=16, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8), layer_scale=1.0)
CHANNELS = (16, 32, 64, 128)


class Bev(nn.Module):
    """What hand-over knows of a BEV model."""

    def __init__(self, num_outs: int = 3, **trunk) -> None:
        super().__init__()
        self.img_backbone = InternImage(out_indices=(1, 2, 3), **{**TRUNK, **trunk})
        extra = "on_output" if num_outs > 3 else False
        self.img_neck = FPN(in_channels=CHANNELS[1:], out_channels=8, num_outs=num_outs, add_extra_convs=extra)
        self.fcos3d_bbox_head = nn.Linear(8, 3)
        self.bev_map = nn.Linear(8, 8)


@pytest.fixture
def trunk() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn_like(value) for key, value in InternImage(**TRUNK).state_dict().items()}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def detector(trunk: dict[str, Tensor], **neck) -> dict[str, Tensor]:
    """Mask R-CNN's layout: a pyramid from stride 4 on, without further convolutions."""
    pyramid = FPN(in_channels=CHANNELS, out_channels=8, num_outs=5, **neck).state_dict()
    heads = {"rpn_head.rpn_conv.weight": torch.ones(2, 2), "roi_head.bbox_head.fc_cls.weight": torch.ones(2, 2)}
    return prefixed("backbone.", trunk) | prefixed("neck.", pyramid) | heads


def test_every_layout_gives_the_same_encoder(trunk: dict[str, Tensor], tmp_path: Path) -> None:
    head = {"head.weight": torch.ones(5, 3), "head.bias": torch.ones(5), "conv_head.0.weight": torch.ones(3, 3)}
    hugging_face = {"model." + key.replace(".gamma", ".layer_scale"): v for key, v in trunk.items()}
    layouts = {
        "classifier, as released": {"model": trunk | head},
        "timm": {"state_dict": trunk | head, "arch": "internimage_t"},
        "wrapped by DDP": {"state_dict": prefixed("module.", trunk | head)},
        "detector": {"state_dict": detector(trunk)},
        "segmentor": {"state_dict": prefixed("backbone.", trunk) | {"decode_head.conv_seg.weight": torch.ones(2, 2)}},
        "adapter": {"state_dict": prefixed("detector.", detector(trunk))},
        "ours": {"state_dict": prefixed("img_backbone.", trunk), "meta": {}},
        "composite": {"state_dict": prefixed("backbone.cb_modules.0.", trunk) | composite_lead(trunk)},
    }
    for name, content in layouts.items():
        torch.save(content, tmp_path / "w.pth")
        report = hand_over(tmp_path / "w.pth", Bev(), tmp_path / "out.safetensors", target="bev")
        out = read_state_dict(tmp_path / "out.safetensors")
        assert all(torch.equal(out[f"img_backbone.{key}"], value) for key, value in trunk.items()), name
        assert report.taken["img_backbone"] == len(trunk), name
    folder = tmp_path / "hub"
    folder.mkdir()
    save_safetensors(hugging_face | {"model.head.weight": torch.ones(5, 3)}, folder / "model.safetensors")
    hand_over(folder, Bev(), tmp_path / "hf.safetensors")
    out = read_state_dict(tmp_path / "hf.safetensors")
    assert all(torch.equal(out[f"img_backbone.{key}"], value) for key, value in trunk.items())


def composite_lead(trunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """The second trunk, which has no stem, and what joins both."""
    lead = CBInternImage(**TRUNK).state_dict()
    return prefixed("backbone.", {key: v for key, v in lead.items() if not key.startswith("cb_modules.0.")})


def test_a_classifier_without_scales_and_one_with_other_precision(tmp_path: Path) -> None:
    bare = InternImageClassifier(num_classes=4, **{**TRUNK, "layer_scale": None}).state_dict()
    torch.save({"model": {key: value.half() for key, value in bare.items()}}, tmp_path / "t.pth")
    with torch.device("meta"):
        model = Bev()
    report = hand_over(tmp_path / "t.pth", model, tmp_path / "out.safetensors")
    out = read_state_dict(tmp_path / "out.safetensors")
    assert all(value.dtype == torch.float32 for value in out.values())
    assert (out["img_backbone.levels.0.blocks.0.gamma1"] == 1).all()
    assert any("they are 1" in note for note in report.notes) and report.left_over
    assert "bev_map (2 tensors)" in str(report)


def test_a_pyramid_goes_by_the_channels_of_its_levels(trunk: dict[str, Tensor], tmp_path: Path) -> None:
    state = detector(trunk)
    torch.save(state, tmp_path / "d.pth")
    report = hand_over(tmp_path / "d.pth", Bev(), tmp_path / "out.safetensors")
    out = read_state_dict(tmp_path / "out.safetensors")
    for level in range(3):
        for part in ("lateral_convs", "fpn_convs"):
            key = f"{part}.{{}}.conv.weight"
            assert torch.equal(out["img_neck." + key.format(level)], state["neck." + key.format(level + 1)])
    assert report.left_over == {"neck": 4, "rpn_head": 1, "roi_head": 1} and not report.reasons
    assert report.new == {"fcos3d_bbox_head": 2, "bev_map": 2}

    report = hand_over(tmp_path / "d.pth", Bev(num_outs=5), tmp_path / "out.safetensors")
    assert report.taken["img_neck"] == 12 and "fpn_convs.3.conv.weight" in report.reasons["img_neck"]
    assert report.new["img_neck"] == 4

    state = detector(trunk, add_extra_convs="on_output")
    torch.save(state, tmp_path / "d.pth")
    report = hand_over(tmp_path / "d.pth", Bev(num_outs=4), tmp_path / "out.safetensors")
    out = read_state_dict(tmp_path / "out.safetensors")
    assert torch.equal(out["img_neck.fpn_convs.3.conv.weight"], state["neck.fpn_convs.4.conv.weight"])


def test_a_neck_of_another_kind_or_width_starts_anew_and_is_named(trunk: dict[str, Tensor], tmp_path: Path) -> None:
    neck = FPN(in_channels=CHANNELS[1:], out_channels=6, num_outs=3).state_dict()
    for stored, words in ((neck, "the model's [8, 32, 1, 1]"), ({"convs.0.conv.weight": torch.ones(1)}, "lacks")):
        torch.save(prefixed("backbone.", trunk) | prefixed("neck.", stored), tmp_path / "d.pth")
        report = hand_over(tmp_path / "d.pth", Bev(), tmp_path / "out.safetensors")
        assert "img_neck" not in report.taken and report.new["img_neck"] == 12
        assert words in report.reasons["img_neck"] and "img_neck: not taken" in str(report)


def test_the_record_of_trainings_goes_with_the_weights(trunk: dict[str, Tensor], tmp_path: Path) -> None:
    head = {"fcos3d_bbox_head.weight": torch.ones(3, 8), "fcos3d_bbox_head.bias": torch.ones(3)}
    stage = Stage("mono3d", {"source.root": "data"}, "train", ("s1",), ("a", "b", "c"), seed=4, command="train it")
    torch.save(
        {"state_dict": prefixed("img_backbone.", trunk) | head, "meta": {KEY: [stage.as_dict()]}}, tmp_path / "w.pth"
    )
    out = tmp_path / "out.safetensors"
    report = hand_over(tmp_path / "w.pth", Bev(), out, target="bev", notes={"split": "ignored", "who": "us"})
    assert report.taken["fcos3d_bbox_head"] == 2
    (kept,) = lineage_of(out)
    assert (kept.split, kept.scenes, kept.notes) == ("train", ("s1",), {"split": "ignored", "who": "us"})
    header = read_metadata(out)
    assert header["source"] == "w.pth" and header["handed_to"] == "bev" and header["who"] == "us"
    assert json.loads(header["classes"]) == ["a", "b", "c"] and json.loads(header["hand_over"])["taken"] == report.taken

    torch.save(trunk, tmp_path / "w.pth")
    assert "the file does not say" in str(hand_over(tmp_path / "w.pth", Bev(), out))
    hand_over(tmp_path / "w.pth", Bev(), out, notes={"data": "nuScenes", "split": "trainval"})
    assert lineage_of(out) == (Stage(split="trainval", file="w.pth", notes={"data": "nuScenes", "split": "trainval"}),)
    hand_over(out, Bev(), tmp_path / "again.safetensors")
    assert to_json(lineage_of(tmp_path / "again.safetensors")) == read_metadata(out)[KEY]


def test_averaged_weights_on_request(trunk: dict[str, Tensor], tmp_path: Path) -> None:
    averaged = {key: value + 1 for key, value in trunk.items()}
    torch.save({"model": trunk, "model_ema": averaged}, tmp_path / "w.pth")
    for use_ema, wanted in ((False, trunk), (True, averaged)):
        hand_over(tmp_path / "w.pth", Bev(), tmp_path / "out.safetensors", use_ema=use_ema)
        out = read_state_dict(tmp_path / "out.safetensors")
        assert all(torch.equal(out[f"img_backbone.{key}"], value) for key, value in wanted.items())


def test_a_resnet_with_its_classification_layer(tmp_path: Path) -> None:
    model = Bev()
    model.img_backbone = ResNet(depth=18, base_channels=8, out_indices=(1, 2, 3))
    state = {
        key: torch.rand_like(v) if v.is_floating_point() else v for key, v in model.img_backbone.state_dict().items()
    }
    torch.save(state | {"fc.weight": torch.ones(3, 3)}, tmp_path / "r.pth")
    report = hand_over(tmp_path / "r.pth", model, tmp_path / "out.safetensors")
    assert report.left_over == {"fc": 1} and report.taken["img_backbone"] == len(state)


def test_wrong_missing_and_extra_keys_are_refused_and_nothing_is_written(
    trunk: dict[str, Tensor], tmp_path: Path
) -> None:
    block = "levels.2.blocks.1.mlp.fc1.weight"
    cases = {
        r"missing in the checkpoint \(1\): " + block: {k: v for k, v in trunk.items() if k != block},
        r"not in the model \(1\): levels.2.blocks.7": trunk | {"levels.2.blocks.7.gamma1": torch.ones(64)},
        "wrong shape": trunk | {block: torch.ones(2, 2)},
        r"channels 32.*channels 16": InternImage(**{**TRUNK, "channels": 32, "groups": (2, 4, 8, 16)}).state_dict(),
        "NaN": trunk | {block: torch.full_like(trunk[block], torch.nan)},
        "prefix=": prefixed("student.", trunk) | prefixed("teacher.", trunk),
        "no key fits|missing": {"decode_head.weight": torch.ones(2, 2)},
    }
    for words, state in cases.items():
        torch.save({"state_dict": state}, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=words) as caught:
            hand_over(tmp_path / "w.pth", Bev(), tmp_path / "out.safetensors")
        assert "\n" not in str(caught.value) and not (tmp_path / "out.safetensors").exists()
    torch.save(prefixed("student.", trunk) | prefixed("teacher.", trunk), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"no key starts with 'pupil\.'"):
        hand_over(tmp_path / "w.pth", Bev(), tmp_path / "out.safetensors", prefix="pupil.")
    report = hand_over(tmp_path / "w.pth", Bev(), tmp_path / "out.safetensors", prefix="student.")
    assert report.left_over == {"teacher": len(trunk)}
    with pytest.raises(ConfigError, match="no img_backbone or backbone to hand weights to"):
        hand_over(tmp_path / "w.pth", nn.Linear(2, 2), tmp_path / "out.safetensors")
