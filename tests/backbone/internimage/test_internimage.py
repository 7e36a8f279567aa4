"""What an InternImage promises beyond its numbers: features, drop path, recomputation, freezing, clear errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from drivestack.backbone import VARIANTS, DCNv3, FeatureInfo, InternImage, InternImageClassifier, internimage
from drivestack.backbone.internimage.model import drop_path_schedule
from drivestack.core.registries import MODELS

TINY = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (1, 1)])
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2), (3,)])
def test_feature_info_describes_the_maps(size, out_indices):
    model = InternImage(**TINY, out_indices=out_indices).eval()
    with torch.no_grad():
        maps = model(torch.randn(2, 3, *size))
    assert len(maps) == len(model.feature_info) == len(out_indices)
    for feature, info in zip(maps, model.feature_info):
        assert feature.shape == (2, info.channels, *(math.ceil(s / info.stride) for s in size))


def test_feature_info_of_the_paper_sizes():
    with torch.device("meta"):
        info = internimage("B", out_indices=(1, 2, 3)).feature_info
    assert info == (FeatureInfo(224, 8), FeatureInfo(448, 16), FeatureInfo(896, 32))


def test_the_trunk_copies_no_layout():
    """Level inputs and outputs stay channels-last memory, so no permutation ever becomes a copy."""
    model = InternImage(**TINY).eval()
    for feature in model.forward_levels(torch.randn(1, 3, 64, 64)):
        assert feature.is_contiguous()


@pytest.mark.parametrize(
    "options",
    [
        {"norm_layer": "BN", "act_layer": "SiLU"},
        {"act_layer": "ReLU", "layer_scale": 1e-5, "post_norm": True},
        {"res_post_norm": True, "center_feature_scale": True, "dw_kernel_size": 5, "remove_center": True},
        {"post_norm": True, "level2_post_norm": True, "level2_post_norm_block_ids": (1,), "offset_scale": 2.0},
        {"drop_rate": 0.1, "drop_path_rate": 0.2, "drop_path_type": "uniform"},
    ],
)
def test_every_option_trains(options):
    model = InternImage(**TINY, **options)
    sum(feature.square().mean() for feature in model(torch.randn(2, 3, 64, 64))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_fresh_dcn_is_a_box_average_between_its_projections():
    layer = DCNv3(8, group=2)
    x = torch.randn(1, 5, 6, 8)
    value = layer.input_proj(x).permute(0, 3, 1, 2)
    mean = torch.nn.functional.avg_pool2d(value, 3, 1, 1).permute(0, 2, 3, 1)  # zero padding counts
    torch.testing.assert_close(layer(x), layer.output_proj(mean))


def test_drop_path_rises_to_the_rate():
    assert drop_path_schedule((1, 2), 0.4) == [[0.0], [0.2, 0.4]]
    assert drop_path_schedule((1, 2), 0.4, "uniform") == [[0.4], [0.4, 0.4]]
    model = InternImage(**TINY, drop_path_rate=0.4)
    assert isinstance(model.levels[0].blocks[0].drop_path, torch.nn.Identity)
    assert model.levels[3].blocks[0].drop_path.p == 0.4


def test_drop_path_acts_in_training_only_and_per_image():
    model = InternImage(**TINY, drop_path_rate=0.9)
    plain = InternImage(**TINY)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64).expand(4, -1, -1, -1)
    torch.testing.assert_close(model.eval()(x)[3], plain.eval()(x)[3])
    trained = model.train()(x)[3]
    assert not torch.allclose(trained[0], trained[1]) or not torch.allclose(trained[0], trained[2])


def test_activation_checkpointing_changes_nothing():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        model = InternImage(**TINY, drop_path_rate=0.5, drop_rate=0.1, activation_checkpointing=recompute)
        torch.manual_seed(2)
        sum(f.square().sum() for f in model(torch.randn(2, 3, 48, 64))).backward()
        gradients.append(parameters_to_vector([p.grad for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_frozen_stages_freeze_the_stem_and_levels_and_train_returns_the_model():
    model = InternImage(**TINY, frozen_stages=2, drop_path_rate=0.5, norm_layer="BN")
    assert model.train() is model
    assert model.eval() is model
    model.train()
    frozen = {".".join(name.split(".")[:2]) for name, p in model.named_parameters() if not p.requires_grad}
    stem = {f"patch_embed.{part}" for part in ("conv1", "norm1", "conv2", "norm2")}
    assert frozen == stem | {"levels.0", "levels.1"}
    assert not any(m.training for m in model.levels[1].modules())
    assert not model.patch_embed.training
    assert model.levels[2].training


def test_last_levels_beyond_the_output_are_not_run():
    model = InternImage(**TINY, out_indices=(0, 1))
    model.levels[2] = None  # would fail if run
    assert len(model(torch.randn(1, 3, 32, 32))) == 2


def test_classifier_takes_any_size_and_the_clip_head_says_what_it_needs():
    assert InternImageClassifier(**TINY, num_classes=5).eval()(torch.randn(1, 3, 50, 70)).shape == (1, 5)
    assert InternImageClassifier(**TINY, num_classes=0).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 192)
    model = InternImageClassifier(**TINY, num_classes=5, clip_projector=True).eval()
    with pytest.raises(ValueError, match=r"70x91 pixels.*multiples of 32"):
        model(torch.randn(1, 3, 70, 91))


def test_bfloat16_autocast():
    model = InternImage(**TINY)
    with torch.autocast("cpu", torch.bfloat16):
        maps = model(torch.randn(1, 3, 64, 64))
    sum(f.float().square().mean() for f in maps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_registered_for_configs():
    model = MODELS.build({"type": "InternImage", **TINY})
    assert isinstance(model, InternImage)
    assert isinstance(MODELS.build({"type": InternImage, **TINY}), InternImage)


def test_builder_names_the_choices():
    with pytest.raises(ValueError, match=r"unknown InternImage variant 'M'.*T, S, B, L, XL, H, G"):
        internimage("M")
    with pytest.raises(ValueError, match="unknown task"):
        internimage("T", "dance")


@pytest.mark.parametrize("name", VARIANTS)
def test_group_channels_are_those_of_the_paper(name):
    variant = VARIANTS[name]
    widths = {(variant.channels << i) // groups for i, groups in enumerate(variant.groups)}
    assert widths == {32 if name in ("H", "G") else 16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": (3, 3, 3, 3)}, "channels=16 is not a multiple of group=3"),
        ({"depths": (1, 1)}, "depths"),
        ({"act_layer": "Tanh"}, "act_layer='Tanh'"),
        ({"norm_layer": "GN"}, "norm_layer='GN'"),
        ({"out_indices": (1, 0)}, "out_indices"),
        ({"out_indices": (4,)}, "out_indices"),
        ({"frozen_stages": 5}, "frozen_stages=5"),
        ({"drop_path_type": "cosine"}, "drop_path_type"),
        ({"dw_kernel_size": 4}, "dw_kernel_size=4 cannot be centred"),
        ({"norm_layer": "BN", "activation_checkpointing": True}, "BatchNorm"),
        ({"level2_post_norm": True}, "level2_post_norm_block_ids"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        InternImage(**{**TINY, **options})


@pytest.mark.parametrize("options", [{"kernel_size": 2, "remove_center": True}, {"dw_kernel_size": 4}])
def test_dcn_layer_refuses_kernels_without_a_common_centre(options):
    with pytest.raises(ValueError, match=r"kernel_size"):
        DCNv3(8, group=2, **options)


@pytest.mark.parametrize("center_feature_scale", [False, True])
@pytest.mark.parametrize(
    "window",
    [{"stride": 2}, {"stride": 3, "pad": 0}, {"pad": 0, "dilation": 2}, {"kernel_size": 5, "dw_kernel_size": 3}],
)
def test_stride_and_padding_pick_pixels_of_the_same_layer_at_stride_one(window, center_feature_scale):
    stride, pad = window.get("stride", 1), window.get("pad", 1)
    kernel = {k: v for k, v in window.items() if "kernel" in k or k == "dilation"}
    kernel |= {"group": 2, "center_feature_scale": center_feature_scale}
    every = DCNv3(8, **kernel)
    torch.nn.init.normal_(every.offset.weight)
    torch.nn.init.normal_(every.mask.weight)
    if center_feature_scale:
        torch.nn.init.normal_(every.center_feature_scale_proj_weight)
    picked = DCNv3(8, stride=stride, pad=pad, **kernel)
    picked.load_state_dict(every.state_dict())
    x = torch.randn(2, 9, 12, 8)
    skip = every.pad - pad  # windows over the border that the smaller padding leaves out
    expected = every(x)[:, skip : 9 - skip : stride, skip : 12 - skip : stride]
    torch.testing.assert_close(picked(x), expected)


def test_dcn_layer_with_an_even_kernel_and_padding_beyond_the_window():
    layer = DCNv3(8, kernel_size=2, pad=3, stride=2, group=2, center_feature_scale=True)
    assert layer(torch.randn(1, 5, 6, 8)).shape == (1, 5, 6, 8)
    zero = layer(torch.zeros(1, 5, 6, 8))
    torch.testing.assert_close(zero, torch.zeros_like(zero))
