"""State dicts have the released keys, shapes and order, at full size (on the meta device: no memory)."""

from __future__ import annotations

import pytest
import torch

from drivestack.backbone import FPN, VARIANTS, ResNet, internimage

CLASSES_22K, CLASSES_INAT18 = 21841, 8142
CASES = {
    **{name: (name, "classification", {}) for name in VARIANTS},
    **{f"{name}_22k": (name, "classification", {"num_classes": CLASSES_22K}) for name in ("L", "XL", "H", "G")},
    **{f"detection_{name}": (name, "features", {}) for name in VARIANTS},
    "T_remove_center": ("T", "classification", {"remove_center": True}),
    "H_inat18_metaformer": ("H", "metaformer", {"num_classes": CLASSES_INAT18}),
    "detection_CB_H": ("H", "composite", {}),
}
V1_R101 = {
    "depth": 101,
    "style": "caffe",
    "frozen_stages": 1,
    "norm_eval": True,
    "norm_requires_grad": False,
    "stage_with_dcn": (False, False, True, True),
}
EXTRA = {"add_extra_convs": "on_output", "relu_before_extra_convs": True}
RELEASED_BEVFORMER = {
    "bevformerv2-r50-t1-24ep": ({"depth": 50, "style": "caffe", "out_indices": (1, 2, 3)}, 5),
    "bevformer_base": ({**V1_R101, "out_indices": (1, 2, 3)}, 4),
    "bevformer_small": ({**V1_R101, "out_indices": (3,)}, 1),
    "bevformer_tiny": (
        {**V1_R101, "depth": 50, "style": "pytorch", "stage_with_dcn": (False,) * 4, "out_indices": (3,)},
        1,
    ),
}


@pytest.fixture(scope="module")
def internimage_keys(reference):
    return reference.json("keys")


def test_every_released_list_is_compared(internimage_keys):
    assert sorted(internimage_keys) == sorted(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_internimage(name, internimage_keys):
    variant, task, overrides = CASES[name]
    with torch.device("meta"):
        model = internimage(variant, task, **overrides)
    expected = internimage_keys[name]
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == expected["keys"]
    assert sum(p.numel() for p in model.parameters()) == expected["params_total"]
    assert [key for key, _ in model.named_buffers()] == expected["buffers"]


@pytest.mark.parametrize("name", sorted(RELEASED_BEVFORMER))
def test_resnet_and_fpn(name, reference):
    options, num_outs = RELEASED_BEVFORMER[name]
    with torch.device("meta"):
        backbone = ResNet(**options)
        channels = [info.channels for info in backbone.feature_info]
        neck = FPN(in_channels=channels, out_channels=256, num_outs=num_outs, **EXTRA)
    model = torch.nn.ModuleDict({"img_backbone": backbone, "img_neck": neck})
    expected = reference.json("keys_resnet_fpn")[name]
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == expected["keys"]
    frozen = [key for key, value in model.named_parameters() if not value.requires_grad]
    assert sorted(frozen) == sorted(expected["frozen"])
