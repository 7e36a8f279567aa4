"""Deformable attention by the names of mmcv, Deformable DETR and detrex, against their formula around grid_sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from drivestack.compat.ms_deform_attn import (
    DetrexMultiScaleDeformableAttention,
    MSDeformAttn,
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

SHAPES = torch.tensor([(4, 5), (2, 3), (1, 1)])
STARTS = torch.tensor([0, 20, 26])
TOKENS, BATCH, QUERIES, CHANNELS, HEADS, LEVELS, POINTS = 27, 2, 5, 16, 4, 3, 2


def sampled(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """[B, S, M, D], [B, Q, M, L, P, 2], [B, Q, M, L, P] -> [B, Q, M * D]."""
    total = 0
    for level, (image, (height, width)) in enumerate(zip(value.split([20, 6, 1], 1), SHAPES.tolist())):
        image = image.permute(0, 2, 3, 1).reshape(-1, value.shape[3], height, width)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        points = F.grid_sample(image, grid, align_corners=False)  # [B * M, D, Q, P]
        total = total + (points * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return total.view(value.shape[0], -1, locations.shape[1]).transpose(1, 2)


def formula(layer, query: Tensor, value: Tensor, points: Tensor, padding: Tensor | None = None) -> Tensor:
    """The layers' common part, batch first, before residual and dropout."""
    value = layer.value_proj(value)
    if padding is not None:
        value = value * ~padding[..., None]
    value = value.unflatten(-1, (HEADS, -1))
    offsets = layer.sampling_offsets(query).view(BATCH, QUERIES, HEADS, LEVELS, POINTS, 2)
    weights = layer.attention_weights(query).view(BATCH, QUERIES, HEADS, -1).softmax(-1)
    at = points[:, :, None, :, None]
    if points.shape[-1] == 2:
        locations = at + offsets / SHAPES.flip(1)[:, None]
    else:
        locations = at[..., :2] + offsets / POINTS * at[..., 2:] * 0.5
    return layer.output_proj(sampled(value, locations, weights.view(BATCH, QUERIES, HEADS, LEVELS, POINTS)))


def randomised(layer: torch.nn.Module) -> torch.nn.Module:
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer.eval()


@pytest.fixture
def given() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "query": torch.randn(BATCH, QUERIES, CHANNELS),
        "query_pos": torch.randn(BATCH, QUERIES, CHANNELS),
        "value": torch.randn(BATCH, TOKENS, CHANNELS),
        "identity": torch.randn(BATCH, QUERIES, CHANNELS),
        "points": torch.rand(BATCH, QUERIES, LEVELS, 2),
        "boxes": torch.rand(BATCH, QUERIES, LEVELS, 4),
        "padding": torch.rand(BATCH, TOKENS) > 0.7,
    }


@pytest.mark.parametrize("points", ["points", "boxes"])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_layer_of_mmcv_batch_first(given, points, ratio):
    layer = randomised(
        MultiScaleDeformableAttention(CHANNELS, HEADS, LEVELS, POINTS, batch_first=True, value_proj_ratio=ratio)
    )
    assert layer.value_proj.out_features == int(ratio * CHANNELS)
    out = layer(
        given["query"],
        key=None,
        value=given["value"],
        query_pos=given["query_pos"],
        key_padding_mask=given["padding"],
        reference_points=given[points],
        spatial_shapes=SHAPES,
        level_start_index=STARTS,
        attn_mask=None,
    )
    want = formula(layer, given["query"] + given["query_pos"], given["value"], given[points], given["padding"])
    torch.testing.assert_close(out, want + given["query"])


def test_layer_of_mmcv_with_queries_first_and_another_identity(given):
    layer = randomised(MultiScaleDeformableAttention(CHANNELS, HEADS, LEVELS, POINTS))
    places = {"reference_points": given["points"], "spatial_shapes": SHAPES}
    query, value, identity = (given[name].transpose(0, 1) for name in ("query", "value", "identity"))
    out = layer(query, value=value, identity=identity, **places)
    want = formula(layer, given["query"], given["value"], given["points"]) + given["identity"]
    torch.testing.assert_close(out.transpose(0, 1), want)
    itself = layer(value, reference_points=torch.rand(BATCH, TOKENS, LEVELS, 2), spatial_shapes=SHAPES)
    assert itself.shape == value.shape
    with pytest.raises(ValueError, match="needs reference_points and spatial_shapes"):
        layer(query, value=value)
    with pytest.raises(ValueError, match="must have 2 or 4 numbers"):
        layer(query, value=value, reference_points=torch.rand(BATCH, QUERIES, LEVELS, 3), spatial_shapes=SHAPES)


def test_dropout_is_before_the_residual(given):
    layer = randomised(MultiScaleDeformableAttention(CHANNELS, HEADS, LEVELS, POINTS, dropout=1.0, batch_first=True))
    layer.train()
    out = layer(given["query"], value=given["value"], reference_points=given["points"], spatial_shapes=SHAPES)
    torch.testing.assert_close(out, given["query"])


@pytest.mark.parametrize("points", ["points", "boxes"])
def test_layer_of_deformable_detr_and_its_gradients(given, points):
    layer = randomised(MSDeformAttn(CHANNELS, LEVELS, HEADS, POINTS)).double()
    names = ("query", points, "value")
    inputs = [given[name].double().requires_grad_() for name in names]
    out = layer(*inputs, SHAPES, STARTS, given["padding"])
    want = formula(layer, inputs[0], inputs[2], inputs[1], given["padding"])
    torch.testing.assert_close(out, want)
    grad_out = torch.randn_like(out)
    leaves = inputs + list(layer.parameters())
    ours = torch.autograd.grad(out, leaves, grad_out)
    for found, expected in zip(ours, torch.autograd.grad(want, leaves, grad_out), strict=True):
        torch.testing.assert_close(found, expected)


def test_state_dict_names_are_theirs():
    names = {f"{part}.{kind}" for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
             for kind in ("weight", "bias")}  # fmt: skip
    layers = (
        MSDeformAttn(CHANNELS, LEVELS, HEADS, POINTS),
        MultiScaleDeformableAttention(CHANNELS, HEADS, LEVELS, POINTS),
        DetrexMultiScaleDeformableAttention(embed_dim=CHANNELS, num_heads=HEADS, num_levels=LEVELS, num_points=POINTS),
    )
    for layer in layers:
        assert set(layer.state_dict()) == names
        assert layer.sampling_offsets.bias.view(HEADS, LEVELS, POINTS, 2)[0, 0].tolist() == [[1, 0], [2, 0]]
    with pytest.raises(ValueError, match="not a multiple of 3 heads"):
        MSDeformAttn(CHANNELS, n_heads=3)


def test_functions(given):
    value = torch.randn(BATCH, TOKENS, HEADS, 4, requires_grad=True)
    locations = torch.rand(BATCH, QUERIES, HEADS, LEVELS, POINTS, 2)
    weights = torch.rand(BATCH, QUERIES, HEADS, LEVELS, POINTS)
    want = sampled(value, locations, weights)
    torch.testing.assert_close(multi_scale_deformable_attn_pytorch(value, SHAPES, locations, weights), want)
    out = MultiScaleDeformableAttnFunction.apply(value, SHAPES, STARTS, locations, weights, 64)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), value), torch.autograd.grad(want.sum(), value))


@pytest.mark.parametrize("points", ["points", "boxes"])
def test_autocast_and_half_precision(given, points):
    layer = randomised(MSDeformAttn(CHANNELS, LEVELS, HEADS, POINTS))
    inputs = given["query"], given[points], given["value"], SHAPES
    want = layer(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(*inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), want, atol=0.1, rtol=0.05)
    half = layer.bfloat16()(inputs[0].bfloat16(), inputs[1], inputs[2].bfloat16(), SHAPES)
    torch.testing.assert_close(half.float(), want, atol=0.1, rtol=0.05)
