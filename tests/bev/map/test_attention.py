"""The attentions agree with upstream, and do not depend on batch composition or camera order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drivestack.bev.map.attention import (
    BevDeformableAttention,
    MSDeformableAttention3D,
    SpatialCrossAttention,
    TemporalSelfAttention,
    star_offsets,
)

LEVELS = [(12, 20), (6, 10)]


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def test_camera_attention_agrees_with_upstream(case):
    ref = case("msda3d")
    module = MSDeformableAttention3D(32, 4, num_levels=2, num_points=8)
    module.load_state_dict(ref.weights("msda3d"))
    query, value = ref["in.query"].requires_grad_(), ref["in.value"].requires_grad_()
    points = ref["in.reference_points"][:, None]  # one camera
    output = module(query, value[:, None], LEVELS, points, torch.ones(points.shape[:3], dtype=torch.bool))
    close(output, ref["out.output"])
    ref.check_gradients(output, {"query": query, "value": value}, module)


def test_points_must_divide_by_pillar():
    module = MSDeformableAttention3D(32, 4, num_levels=2, num_points=6)
    with pytest.raises(ValueError, match="num_points 6 is not a multiple of the 4"):
        points, visible = torch.zeros(1, 1, 2, 4, 2), torch.ones(1, 1, 2, dtype=torch.bool)
        module(torch.zeros(1, 2, 32), torch.zeros(1, 1, 300, 32), LEVELS, points, visible)


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="embed_dims 30 is not a multiple of num_heads 4"):
        BevDeformableAttention(30, 4)


def spatial_case(ref) -> tuple[SpatialCrossAttention, Tensor, Tensor, Tensor, Tensor]:
    """Module, query [B, Q, C] and value [N, S, B, C] as leaves, reference points [B, N, Q, D, 2], mask [B, N, Q]."""
    module = SpatialCrossAttention(32, 4, num_levels=2, num_points=8).eval()
    module.load_state_dict(ref.weights("sca_bs1"))
    points = ref["in.reference_points_cam"].transpose(0, 1)
    visible = ref["in.bev_mask"].transpose(0, 1).any(-1)
    return module, ref["in.query"].requires_grad_(), ref["in.value"].requires_grad_(), points, visible


def test_spatial_attention_agrees_with_upstream(case):
    ref = case("sca_bs1")
    module, query, value, points, visible = spatial_case(ref)
    output = module(query, value.permute(2, 0, 1, 3), LEVELS, points, visible)
    close(output, ref["out.output"])
    ref.check_gradients(output, {"query": query, "value": value}, module)


class UpstreamLists(MSDeformableAttention3D):
    """Upstream's docs/quirks.md#camera-lists-of-sample-0: cameras of sample 0 for all, counts of each sample."""

    def forward(self, query, value, spatial_shapes, reference_points, visible):
        shared = visible[:1].expand_as(visible)
        answer = super().forward(query, value, spatial_shapes, reference_points, shared)
        count = lambda seen: seen.sum(1).clamp(min=1)[..., None]
        return answer * count(shared) / count(visible)


def test_upstream_uses_the_cameras_of_sample_0(case):
    ref = case("sca_bs2")
    module, query, value, points, visible = spatial_case(ref)
    output = module(query, value.permute(2, 0, 1, 3), LEVELS, points, visible)
    module.deformable_attention.__class__ = UpstreamLists
    upstream = module(query, value.permute(2, 0, 1, 3), LEVELS, points, visible)
    close(upstream, ref["out.output"])
    ref.check_gradients(upstream, {"query": query, "value": value}, module)
    assert (output - upstream).abs().max() > 1e-3


def test_spatial_attention_batch_is_two_single_runs(case):
    module, query, value, points, visible = spatial_case(case("sca_bs2"))
    value = value.permute(2, 0, 1, 3)
    both = module(query, value, LEVELS, points, visible)
    for b in (slice(0, 1), slice(1, 2)):
        close(both[b], module(query[b], value[b], LEVELS, points[b], visible[b]), 1e-6)


def test_spatial_attention_ignores_camera_order(case):
    module, query, value, points, visible = spatial_case(case("sca_bs2"))
    value, order = value.permute(2, 0, 1, 3), [2, 0, 1]
    straight = module(query, value, LEVELS, points, visible)
    close(module(query, value[:, order], LEVELS, points[:, order], visible[:, order]), straight, 1e-6)


def test_query_that_no_camera_sees_keeps_its_value(case):
    module, query, value, points, visible = spatial_case(case("sca_bs1"))
    nothing = module(query, value.permute(2, 0, 1, 3), LEVELS, points, torch.zeros_like(visible))
    close(nothing, query + module.output_proj.bias)


class UpstreamRows(TemporalSelfAttention):
    """Upstream's docs/quirks.md#rows-of-another-sample: sample b takes row b of the interleaved maps."""

    @staticmethod
    def offset_context(previous: Tensor, current: Tensor) -> Tensor:
        return torch.stack([previous, current], 1).flatten(0, 1)[: len(previous)]


def temporal_case(ref, module: TemporalSelfAttention) -> tuple[Tensor, tuple]:
    module.load_state_dict(ref.weights("tsa_bs1_prev"))
    module.eval()
    query = ref["in.query"].requires_grad_()
    reference = ref["in.reference_points"].unflatten(0, (-1, 2))[:, :, :, 0].transpose(1, 2)  # [B, Q, 2, 2]
    previous = current = None
    if "in.value" in ref.arrays:
        previous, current = ref["in.value"].unflatten(0, (-1, 2)).unbind(1)
    return query, (reference, ref["in.query_pos"], previous, current)


@pytest.mark.parametrize("name", ["tsa_bs1_prev", "tsa_bs1_noprev"])
def test_temporal_attention_agrees_with_upstream(case, name):
    ref = case(name)
    module = TemporalSelfAttention(32, 4)
    query, (reference, *others) = temporal_case(ref, module)
    output = module(query, (6, 6), reference, *others)
    close(output, ref["out.output"])
    ref.check_gradients(output, {"query": query}, module)


@pytest.mark.parametrize("name", ["tsa_bs2_prev", "tsa_bs2_noprev"])
def test_upstream_takes_rows_of_another_sample(case, name):
    ref = case(name)
    upstream = UpstreamRows(32, 4)
    query, (reference, *others) = temporal_case(ref, upstream)
    output = upstream(query, (6, 6), reference, *others)
    close(output, ref["out.output"])
    ref.check_gradients(output, {"query": query}, upstream)

    module = TemporalSelfAttention(32, 4)
    query, (reference, *others) = temporal_case(case(name), module)
    both = module(query, (6, 6), reference, *others)
    assert (both[1] - output[1]).abs().max() > 1e-3
    close(both[0], output[0])
    for b in (slice(0, 1), slice(1, 2)):
        single = module(query[b], (6, 6), reference[b], *(None if t is None else t[b] for t in others))
        close(both[b], single, 1e-6)


def test_decoder_attention_agrees_with_upstream(case):
    ref = case("custom_msda")
    module = BevDeformableAttention(32, 4).eval()
    module.load_state_dict(ref.weights("custom_msda"))
    query, value = ref["in.query"].requires_grad_(), ref["in.value"].requires_grad_()
    output = module(
        query.transpose(0, 1),
        value.transpose(0, 1),
        [(10, 8)],
        ref["in.reference_points"][:, :, 0],
        ref["in.query_pos"].transpose(0, 1),
    ).transpose(0, 1)
    close(output, ref["out.output"])
    ref.check_gradients(output, {"query": query, "value": value}, module)


def test_initial_star():
    offsets = star_offsets(8, 1, 4).view(8, 4, 2)
    close(offsets[0], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]))
    close(offsets[1, 3], torch.tensor([4.0, 4.0]))


def test_half_precision_keeps_coordinates_in_float32(case):
    module, query, value, points, visible = spatial_case(case("sca_bs1"))
    exact = module(query, value.permute(2, 0, 1, 3), LEVELS, points, visible)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = module(query, value.permute(2, 0, 1, 3), LEVELS, points, visible)
    close(rough.float(), exact, 0.05)
