"""Learning-rate scales and weight decay per parameter equal the released recipes; the constructor obeys its options."""

from __future__ import annotations

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from drivestack.backbone import VARIANTS, CBInternImage, InternImage, ResNet, internimage
from drivestack.core.errors import ConfigError
from drivestack.core.weights.published_keys import keep_published_keys
from drivestack.engine.layer_decay import (
    LayerDecayOptimizerConstructor,
    classification_policies,
    detection_policies,
    param_groups,
)

TINY = {"channels": 16, "depths": (1, 1, 3, 1), "groups": (1, 2, 4, 8)}


@pytest.fixture(scope="module")
def tables(reference):
    return reference.json("layer_decay")


@pytest.mark.parametrize("name", ["cls_T", "cls_L", "cls_H", "cls_G"])
def test_classification_recipe(name, tables):
    table = tables[name]
    with torch.device("meta"):
        model = internimage(table["variant"], "classification")
    policies = classification_policies(
        model.named_parameters(),
        depths=VARIANTS[table["variant"]].depths,
        layer_decay_rate=table["lr_layer_decay_ratio"],
        dcn_lr_mul=table["dcn_lr_mul"],
        weight_decay=table["weight_decay"],
    )
    expected = table["lr_and_wd_per_param"]
    assert list(policies) == list(expected)
    for key, (lr, weight_decay) in expected.items():
        assert policies[key].lr_scale == pytest.approx(lr, rel=1e-12), key
        assert policies[key].weight_decay == weight_decay, key


@pytest.mark.parametrize(
    "name", ["detection_T", "detection_L", "detection_H", "detection_G", "detection_CB_H", "segmentation_T"]
)
def test_detection_recipe(name, tables):
    table = tables[name]
    variant, task = (table["variant"], "features") if "CB" not in name else ("H", "composite")
    with torch.device("meta"):
        backbone = internimage(variant, task)
    known = {f"backbone.{key}": value for key, value in backbone.named_parameters()}
    expected = table["group_lrscale_wd_per_param"]
    # Parameters of heads are named in the table without shapes; the norm's weight is the only vector of them.
    named = [(key, known.get(key, torch.empty((1,) if key.endswith("gn.weight") else (1, 1)))) for key in expected]
    options = table["paramwise_cfg"]
    policies = detection_policies(
        named,
        depths=options["depths"],
        layer_decay_rate=options["layer_decay_rate"],
        offset_lr_scale=options["offset_lr_scale"],
        weight_decay=table["base_wd"],
        segmentation=name.startswith("segmentation"),
    )
    assert {key: [p.group, p.lr_scale, p.weight_decay] for key, p in policies.items()} == expected


def test_without_layer_decay_dcn_lr_mul_has_no_effect():
    model = internimage("T", "classification", **TINY, num_classes=2)
    policies = classification_policies(
        model.named_parameters(), depths=TINY["depths"], layer_decay_rate=None, dcn_lr_mul=0.1
    )
    assert {p.lr_scale for p in policies.values()} == {1.0}


def test_param_groups_cover_trainable_parameters_once():
    model = InternImage(**TINY, frozen_stages=1)
    policies = detection_policies(
        [(f"backbone.{k}", p) for k, p in model.named_parameters()], depths=TINY["depths"], layer_decay_rate=0.5
    )
    policies = {key.removeprefix("backbone."): value for key, value in policies.items()}
    groups = param_groups(model.named_parameters(), policies, base_lr=2.0)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    last_block = next(g for g in groups if any(p is model.levels[3].blocks[0].mlp.fc1.weight for p in g["params"]))
    assert last_block["lr"] == 2.0 * 0.5


class Detector(nn.Module):
    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.img_backbone = encoder
        self.head = nn.Linear(2, 2)
        self.query_embedding = nn.Embedding(3, 4)


def construct(model: nn.Module, **paramwise):
    config = {
        "type": "OptimWrapper",
        "constructor": LayerDecayOptimizerConstructor,
        "optimizer": {"type": "AdamW", "lr": 1.0, "weight_decay": 0.01},
        "paramwise_cfg": paramwise,
    }
    wrapper = build_optim_wrapper(model, config)
    settings = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group["params"]:
            settings[id(parameter)] = (group["lr"], group["weight_decay"])
    return {name: settings[id(p)] for name, p in model.named_parameters() if id(p) in settings}


def test_constructor_decays_layers_and_scales_parts():
    model = Detector(InternImage(**TINY, level2_post_norm=True, level2_post_norm_block_ids=(1,), layer_scale=1.0))
    got = construct(
        model, layer_decay_rate=0.5, lr_mults={"img_backbone.": 0.1, "img_backbone.patch": 1.0, "head.": 3.0}
    )
    assert got["head.weight"] == (3.0, 0.01)
    assert got["head.bias"] == (3.0, 0.0)
    assert got["query_embedding.weight"] == (1.0, 0.01)
    assert got["img_backbone.patch_embed.conv1.weight"] == (0.5**7, 0.01)
    assert got["img_backbone.levels.3.blocks.0.gamma1"] == (pytest.approx(0.1 * 0.5), 0.0)
    block_1_of_level_2 = got["img_backbone.levels.2.blocks.1.norm1.0.weight"]
    assert got["img_backbone.levels.2.post_norms.0.0.weight"] == block_1_of_level_2
    assert len(got) == len(list(model.parameters()))


def test_constructor_decays_both_trunks_of_a_composite():
    trunk = {**TINY, "res_post_norm": True}
    got = construct(Detector(CBInternImage(**trunk)), layer_decay_rate=0.5, decay_one_dim=True)
    for i in (0, 1):
        assert got[f"img_backbone.cb_modules.{i}.levels.3.blocks.0.mlp.fc1.weight"] == (0.5, 0.01)
    assert got["img_backbone.cb_modules.1.gamma3"] == (0.5, 0.01)
    assert got["img_backbone.cb_linears.0.1.weight"] == (1.0, 0.01)


@pytest.mark.parametrize("head", ["head.", "pts_bbox_head."])
def test_constructor_takes_names_of_the_model_and_of_checkpoints(head: str):
    model = Detector(ResNet(base_channels=4))
    keep_published_keys(model, {"head.": "pts_bbox_head."})
    got = construct(model, lr_mults={head: 0.5}, no_decay=[head])
    assert got["head.weight"] == (0.5, 0.0)
    assert got["query_embedding.weight"] == (1.0, 0.01)


def test_constructor_serves_other_encoders_without_layer_decay():
    got = construct(Detector(ResNet(base_channels=4)), lr_mults={"img_backbone.": 0.5}, no_decay=["query"])
    assert got["img_backbone.conv1.weight"] == (0.5, 0.01)
    assert got["query_embedding.weight"] == (1.0, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.5}, "unknown layer_decay"),
        ({"layer_decay_rate": 0.5, "prefix": "backbone."}, "no such part"),
        ({"layer_decay_rate": 0.5, "prefix": "head."}, "needs an InternImage"),
    ],
)
def test_constructor_names_the_wrong_option(options, message):
    with pytest.raises(ConfigError, match=message):
        construct(Detector(InternImage(**TINY)), **options)
