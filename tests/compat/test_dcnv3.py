"""DCNv3 by upstream's names: constructor, state dict, functions of both versions, layers swapped in a model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from drivestack.compat import use_drivestack_dcnv3
from drivestack.compat.dcnv3 import (
    DCNv3,
    DCNv3_pytorch,
    DCNv3Function,
    dcnv3_backward,
    dcnv3_core_pytorch,
    dcnv3_forward,
)
from drivestack.ops import dcnv3

WINDOW = (3, 3, 2, 1, 1, 0, 1, 1, 2, 4, 0.5)  # kernel, stride, pad, dilation, group, group channels, offset scale


def tensors(taps: int = 9) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 7, 8, 8), (2, 4, 6, 2 * taps * 2), (2, 4, 6, 2 * taps)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def expected(remove_center: bool = False, taps: int = 9) -> torch.Tensor:
    options = {"kernel_size": 3, "stride": (2, 1), "padding": (1, 0), "groups": 2, "offset_scale": 0.5}
    return dcnv3(*tensors(taps), **options, remove_center=remove_center)


def test_state_dict_names_and_shapes_are_upstreams():
    layer = DCNv3_pytorch(channels=8, kernel_size=3, dw_kernel_size=5, group=2, center_feature_scale=True)
    assert {name: tuple(x.shape) for name, x in layer.state_dict().items()} == {
        "center_feature_scale_proj_weight": (2, 8),
        "center_feature_scale_proj_bias": (2,),
        "dw_conv.0.weight": (8, 1, 5, 5),
        "dw_conv.0.bias": (8,),
        "dw_conv.1.1.weight": (8,),
        "dw_conv.1.1.bias": (8,),
        "offset.weight": (36, 8),
        "offset.bias": (36,),
        "mask.weight": (18, 8),
        "mask.bias": (18,),
        "input_proj.weight": (8, 8),
        "input_proj.bias": (8,),
        "output_proj.weight": (8, 8),
        "output_proj.bias": (8,),
    }
    assert next(iter(layer.state_dict())) == "center_feature_scale_proj_weight"


def test_constructor_takes_upstreams_arguments_in_upstreams_order():
    layer = DCNv3(8, 3, None, 2, 1, 1, 2, 0.5, "SiLU", "BN", True, True, use_dcn_v4_op=True)
    assert (layer.dw_kernel_size, layer.group_channels, layer.stride, layer.remove_center) == (3, 4, 2, True)
    assert isinstance(layer.dw_conv[1][0], nn.BatchNorm2d)
    assert isinstance(layer.dw_conv[2], nn.SiLU)
    assert layer(torch.randn(2, 7, 9, 8)).shape == (2, 4, 5, 8)  # upstream: shape error, or wrong memory read
    assert DCNv3(8, kernel_size=5, group=2)(torch.randn(1, 7, 9, 8)).shape == (1, 5, 7, 8)  # pad is 1 by default


@pytest.mark.parametrize("remove_center", [(), (0,), (False,), (1,)])
def test_functions_of_both_versions(remove_center):
    taps = 8 if remove_center == (1,) else 9
    want = expected(remove_center == (1,), taps)
    inputs = tensors(taps)
    for out in (
        dcnv3_core_pytorch(*inputs, *WINDOW, *remove_center),
        DCNv3Function.apply(*inputs, *WINDOW, 256, *remove_center),
        dcnv3_forward(*inputs, *WINDOW, 256, *remove_center),
    ):
        torch.testing.assert_close(out, want, rtol=0, atol=0)
    grad_out = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(DCNv3Function.apply(*inputs, *WINDOW, 256, *remove_center), inputs, grad_out)
    for ours, theirs in zip(dcnv3_backward(*inputs, *WINDOW, grad_out, 256, *remove_center), grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_wrong_calls_say_what_is_wrong():
    inputs = tensors()
    with pytest.raises(TypeError, match="takes 15 arguments, or 16 with remove_center; got 14"):
        DCNv3Function.apply(*inputs, *WINDOW)
    with pytest.raises(TypeError, match="takes 16 arguments, or 17"):
        dcnv3_backward(*inputs, *WINDOW, inputs[0])
    with pytest.raises(ValueError, match="8 channels, not group \\* group_channels = 2 \\* 5"):
        dcnv3_core_pytorch(*inputs, *WINDOW[:9], 5, 0.5)
    with pytest.raises(ValueError, match="offset"):  # upstream's kernel reads wrong memory
        dcnv3_core_pytorch(inputs[0], inputs[1][:, 1:], *inputs[2:], *WINDOW)


def foreign_layer(norm: str = "LN", act: type[nn.Module] = nn.GELU) -> nn.Module:
    """A layer as other repositories carry it: the same attributes and names, its own class."""
    ours = DCNv3(8, 3, 5, 1, 1, 1, 2, 1.0, "GELU", norm, True, True)

    class Foreign(nn.Module):
        def forward(self, x):
            raise NotImplementedError("compiled operator missing")

    theirs = Foreign()
    Foreign.__name__ = "DCNv3"
    for name in ("channels", "kernel_size", "stride", "pad", "dilation", "group", "offset_scale", "remove_center"):
        setattr(theirs, name, getattr(ours, name))
    for name, parameter in ours.named_parameters(recurse=False):
        setattr(theirs, name, nn.Parameter(torch.randn_like(parameter)))
    theirs.center_feature_scale = True
    theirs.dw_conv = nn.Sequential(ours.dw_conv[0], ours.dw_conv[1], act())
    for name in ("offset", "mask", "input_proj", "output_proj"):
        setattr(theirs, name, getattr(ours, name))
    nn.init.normal_(theirs.offset.weight)
    return theirs


@pytest.mark.parametrize(("norm", "act"), [("LN", nn.GELU), ("BN", nn.SiLU)])
def test_layers_of_a_model_are_swapped_and_keep_their_parameters(norm, act):
    theirs = foreign_layer(norm, act)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(theirs)).eval()
    before = dict(model.named_parameters())
    state = copy.deepcopy(model.state_dict())
    assert use_drivestack_dcnv3(model) == 1
    layer = model[1][0]
    assert isinstance(layer, DCNv3)
    assert isinstance(layer.dw_conv[2], act)
    assert not layer.training
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    same = DCNv3(8, 3, 5, 1, 1, 1, 2, 1.0, act.__name__, norm, True, True).eval()
    same.load_state_dict({name.removeprefix("1.0."): x for name, x in state.items() if name.startswith("1.0.")})
    x = torch.randn(1, 5, 6, 8)
    torch.testing.assert_close(layer(x), same(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="no layer of class DCNv3"):
        use_drivestack_dcnv3(model)


def test_unknown_parts_of_a_layer_are_refused():
    with pytest.raises(ValueError, match="activation of this DCNv3 layer is none of GELU, SiLU, ReLU"):
        use_drivestack_dcnv3(nn.Sequential(foreign_layer(act=nn.Tanh)))
