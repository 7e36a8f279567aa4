"""DCNv4 by upstream's names, against DCNv3 and plain attention on the unpacked tensors."""

from __future__ import annotations

import pytest
import torch

from drivestack.compat.dcnv4 import DCNv4, DCNv4Function, FlashDeformAttn, FlashDeformAttnFunction
from drivestack.ops import dcnv3, ms_deform_attn


@pytest.mark.parametrize(("remove_center", "padding"), [(False, 0), (0, 5), (1, 3)])
def test_packed_function(remove_center, padding):
    generator = torch.Generator().manual_seed(0)
    taps = 8 if remove_center else 9
    value = torch.randn(2, 6, 7, 8, generator=generator)
    packed = torch.randn(2, 3, 4, 2, 3 * taps, generator=generator)  # per group: offsets, then weights
    tail = torch.full((2, 3, 4, padding), float("nan"))
    offset, mask = packed[..., : 2 * taps].flatten(3), packed[..., 2 * taps :].flatten(3)
    window = {"stride": 2, "padding": 1, "groups": 2, "offset_scale": 2.0, "remove_center": bool(remove_center)}
    out = DCNv4Function.apply(
        value, torch.cat((packed.flatten(3), tail), -1), 3, 3, 2, 2, 1, 1, 1, 1, 2, 4, 2.0, 256, remove_center
    )
    torch.testing.assert_close(out, dcnv3(value, offset, mask, **window))
    with pytest.raises(ValueError, match="group \\* group_channels"):
        DCNv4Function.apply(value, packed.flatten(3), 3, 3, 2, 2, 1, 1, 1, 1, 2, 3, 2.0, 256, remove_center)


def test_layer_has_upstreams_names():
    layer = DCNv4(channels=8, group=2, dw_kernel_size=3, center_feature_scale=True, output_bias=False)
    assert {name: tuple(x.shape) for name, x in layer.state_dict().items()} == {
        "center_feature_scale_proj_weight": (2, 8),
        "center_feature_scale_proj_bias": (2,),
        "offset_mask_dw.weight": (8, 1, 3, 3),
        "offset_mask_dw.bias": (8,),
        "offset_mask.weight": (56, 8),
        "offset_mask.bias": (56,),
        "value_proj.weight": (8, 8),
        "value_proj.bias": (8,),
        "output_proj.weight": (8, 8),
    }
    assert set(DCNv4(8, group=2, without_pointwise=True).state_dict()) == {"offset_mask.weight", "offset_mask.bias"}


@pytest.mark.parametrize("dw_kernel_size", [None, 3, 5])
@pytest.mark.parametrize("window", [{"stride": 2}, {"pad": 0, "dilation": 2, "stride": 2}])
def test_stride_and_padding_pick_pixels_of_the_layer_at_stride_one(dw_kernel_size, window):
    options = {"dw_kernel_size": dw_kernel_size, "group": 2, "center_feature_scale": True, "offset_scale": 0.5}
    dilation, stride, pad = window.get("dilation", 1), window["stride"], window.get("pad", 1)
    every = DCNv4(8, pad=dilation, dilation=dilation, **options)
    for parameter in every.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    picked = DCNv4(8, **window, **options)
    picked.load_state_dict(every.state_dict())
    x = torch.randn(2, 9 * 12, 8)
    skip = dilation - pad
    want = every(x, (9, 12)).unflatten(1, (9, 12))[:, skip : 9 - skip : stride, skip : 12 - skip : stride]
    torch.testing.assert_close(picked(x, shape=(9, 12)), want.flatten(1, 2))


def test_layer_takes_square_maps_without_a_shape_and_refuses_others():
    layer = DCNv4(8, group=2)
    assert layer(torch.randn(1, 36, 8)).shape == (1, 36, 8)
    with pytest.raises(ValueError, match="37 tokens are not a map of 6 x 6"):
        layer(torch.randn(1, 37, 8))
    with pytest.raises(ValueError, match="not a multiple of group"):
        DCNv4(8, group=3)


def test_flash_attention_takes_the_softmax_of_packed_logits():
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor([(4, 5), (2, 3)])
    value = torch.randn(2, 26, 2, 4, generator=generator)
    locations = torch.rand(2, 3, 2, 2, 4, 2, generator=generator)
    logits = torch.randn(2, 3, 2, 8, generator=generator)
    packed = torch.cat((locations.flatten(3), logits), -1)
    out = FlashDeformAttnFunction.apply(value, shapes, torch.tensor([0, 20]), packed, 64, 4)
    want = ms_deform_attn(value, shapes, locations, logits.softmax(-1).unflatten(-1, (2, 4)))
    torch.testing.assert_close(out, want)
    with pytest.raises(ValueError, match="not 3 \\* levels \\* K = 3 \\* 2 \\* 8"):
        FlashDeformAttnFunction.apply(value, shapes, torch.tensor([0, 20]), packed, 64, 8)
    layer = FlashDeformAttn(d_model=8, n_levels=2, n_heads=2, n_points=4)
    assert layer(torch.randn(2, 3, 8), torch.rand(2, 3, 2, 2), torch.randn(2, 26, 8), shapes, None).shape == (2, 3, 8)
