"""ResNet against torchvision's, DCNv2 against plain convolution, the pyramid against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from drivestack.backbone import FPN, FeatureInfo, ResNet, load_checkpoint
from drivestack.backbone.resnet import ModulatedDeformConv2d

EXTRA = {"add_extra_convs": "on_output", "relu_before_extra_convs": True}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def perturb_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_pytorch_style_is_torchvisions(depth):
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    perturb_norms(theirs)
    ours = ResNet(depth=depth).eval()
    assert [info.channels for info in ours.feature_info] == [c * (1 if depth == 18 else 4) for c in (64, 128, 256, 512)]
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    x = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        maps = ours(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for stage, feature in zip((theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), maps):
            y = stage(y)
            torch.testing.assert_close(feature, y)


def test_caffe_style_strides_in_the_first_convolution():
    model = ResNet(style="caffe", base_channels=8)
    for stage in model.stages[1:]:
        assert stage[0].conv1.stride == (2, 2)
        assert stage[0].conv2.stride == (1, 1)
    for style in ("caffe", "pytorch"):
        model = ResNet(style=style, base_channels=8, out_indices=(1, 3)).eval()
        maps = model(torch.randn(1, 3, 96, 160))
        assert model.feature_info == (FeatureInfo(64, 8), FeatureInfo(256, 32))
        assert [tuple(m.shape) for m in maps] == [(1, 64, 12, 20), (1, 256, 3, 5)]


def test_frozen_stages_and_norms_in_training_mode():
    model = ResNet(base_channels=4, frozen_stages=1, norm_eval=True, norm_requires_grad=False)
    assert model.train() is model
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any("bn" in name or name.startswith(("conv1", "layer1")) for name in trainable)
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    before = model.bn1.running_mean.clone()
    model(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(model.bn1.running_mean, before)


def test_zero_init_residual_starts_blocks_as_identity():
    model = ResNet(base_channels=4).eval()
    x = torch.randn(1, 16, 8, 8).relu()
    torch.testing.assert_close(model.layer1[1](x), x)


def test_fresh_deformable_convolution_is_half_a_plain_one():
    layer = ModulatedDeformConv2d(4, 6, 3, stride=2, padding=1)
    nn.init.zeros_(layer.conv_offset.weight)
    nn.init.zeros_(layer.conv_offset.bias)
    x = torch.randn(2, 4, 9, 11)
    torch.testing.assert_close(layer(x), 0.5 * F.conv2d(x, layer.weight, stride=2, padding=1))


def test_deformable_convolution_moves_its_taps():
    """A constant offset of one pixel right (dx is the odd entry of each pair) shifts the image by one column."""
    layer = ModulatedDeformConv2d(2, 2, 3, stride=1, padding=1)
    nn.init.zeros_(layer.conv_offset.weight)
    nn.init.zeros_(layer.conv_offset.bias)
    with torch.no_grad():
        layer.conv_offset.bias[1:18:2] = 1.0
    x = torch.randn(1, 2, 6, 8)
    expected = 0.5 * F.conv2d(F.pad(x, (0, 1)), layer.weight, padding=1)[..., 1:]
    torch.testing.assert_close(layer(x)[..., :-1], expected[..., :-1])


def test_deformable_stages_train():
    model = ResNet(base_channels=4, stage_with_dcn=(False, False, True, True))
    sum(m.square().mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
    assert model.layer3[0].conv2.conv_offset.weight.grad is not None


def test_pyramid_follows_its_definition():
    fpn = FPN(in_channels=(4, 8, 16), out_channels=6, num_outs=5, **EXTRA)
    maps = [torch.randn(2, 4, 13, 20), torch.randn(2, 8, 7, 10), torch.randn(2, 16, 4, 5)]
    outs = fpn(maps)
    top = fpn.lateral_convs[2].conv(maps[2])
    middle = fpn.lateral_convs[1].conv(maps[1]) + F.interpolate(top, size=(7, 10), mode="nearest")
    fine = fpn.lateral_convs[0].conv(maps[0]) + F.interpolate(middle, size=(13, 20), mode="nearest")
    expected = [conv.conv(m) for conv, m in zip(fpn.fpn_convs, (fine, middle, top))]
    expected.append(fpn.fpn_convs[3].conv(expected[-1]))
    expected.append(fpn.fpn_convs[4].conv(expected[-1].relu()))
    for out, want in zip(outs, expected):
        torch.testing.assert_close(out, want)
    info = fpn.output_info([FeatureInfo(4, 8), FeatureInfo(8, 16), FeatureInfo(16, 32)])
    assert info == tuple(FeatureInfo(6, stride) for stride in (8, 16, 32, 64, 128))


def test_pyramid_without_extra_convolutions_takes_every_second_pixel():
    fpn = FPN(in_channels=(4, 8), out_channels=6, num_outs=2, start_level=1)
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)]
    outs = fpn(maps)
    assert len(fpn.fpn_convs) == 1
    torch.testing.assert_close(outs[1], outs[0][..., ::2, ::2])
    assert [i.stride for i in fpn.output_info([FeatureInfo(4, 8), FeatureInfo(8, 16)])] == [16, 32]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNet(depth=34), "depth=34"),
        (lambda: ResNet(depth=18, style="caffe"), "no bottlenecks"),
        (lambda: ResNet(style="tf"), "style='tf'"),
        (lambda: ResNet(frozen_stages=7), "frozen_stages=7"),
        (lambda: FPN(in_channels=(4, 8), out_channels=4, num_outs=1), "num_outs=1"),
        (lambda: FPN(in_channels=(4,), out_channels=4, num_outs=2, add_extra_convs="on_lateral"), "add_extra_convs"),
        (lambda: FPN(in_channels=(4,), out_channels=4, num_outs=1)([]), "1 maps, got 0"),
        (lambda: FPN(in_channels=(4,), out_channels=4, num_outs=1).output_info([FeatureInfo(5, 8)]), r"\(5,\)"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_caffe_style_training_statistics_equal_the_released_code(reference_dir):
    """Running statistics after one training step of a whole BEVFormer v2: every layer before them took part."""
    with np.load(reference_dir / "bev" / "e2e_v2_train_noaug.npz") as file:
        images = torch.from_numpy(file["in.img"])[0, 1]  # the current frame; history runs in evaluation mode
        after = {
            key.removeprefix("out.bn_after."): torch.from_numpy(file[key]) for key in file.files if "bn_after" in key
        }
    model = ResNet(style="caffe", out_indices=(1, 2, 3), base_channels=8)
    load_checkpoint(model, reference_dir / "bev" / "e2e_v2_train_noaug.safetensors", prefix="img_backbone.")
    model.train()(images)
    for key in ("bn1.running_mean", "layer4.2.bn3.running_var"):
        torch.testing.assert_close(model.state_dict()[key], after[f"img_backbone.{key}"], atol=1e-5, rtol=1e-5)
