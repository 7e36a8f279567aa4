"""Pillar points, projection into the cameras and the encoder layers agree with upstream; grids may be rectangular."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from drivestack.bev.map.encoder import BevEncoder, cell_centres_normalised, pillar_points, project_to_images
from drivestack.geometry import BevGrid

GRID = BevGrid(-51.2, -51.2, 51.2, 51.2, num_x=8, num_y=10)
IMAGE = (96, 160)
LEVELS = [(12, 20), (6, 10)]


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5, rtol: float = 0) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def sizes(batch: int, cameras: int) -> Tensor:
    return torch.tensor(IMAGE).expand(batch, cameras, 2)


def test_reference_points_agree_with_upstream(case):
    ref = case("point_sampling")
    low, extent = torch.tensor([-51.2, -51.2, -5.0]), torch.tensor([102.4, 102.4, 8.0])
    expected_m = ref["out.ref_3d"][0].transpose(0, 1) * extent + low
    close(pillar_points(GRID, (-5, 3), 4), expected_m)
    close(cell_centres_normalised(GRID), ref["out.ref_2d"][0, :, 0], 1e-7)


def test_projection_agrees_with_upstream(case):
    ref = case("point_sampling")
    points = pillar_points(GRID, (-5, 3), 4)
    uv, visible = project_to_images(points, ref["in.lidar2img"], IMAGE, sizes(2, 3))
    expected = ref["out.reference_points_cam"].transpose(0, 1)
    # points behind a camera are divided by 1e-5 m: compared relatively
    close(uv, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(visible, ref["out.bev_mask"].transpose(0, 1))
    assert 0 < visible.float().mean() < 1


def test_each_image_has_its_own_size(case):
    """Upstream takes image 0's padded size for every camera; a smaller image must not be seen in its padding."""
    ref = case("point_sampling")
    points = pillar_points(GRID, (-5, 3), 4)
    own = sizes(2, 3).clone()
    own[1, 2] = torch.tensor([60, 100])
    uv, visible = project_to_images(points, ref["in.lidar2img"], IMAGE, own)
    uv_all, visible_all = project_to_images(points, ref["in.lidar2img"], IMAGE, sizes(2, 3))
    assert torch.equal(uv, uv_all)  # normalised by the padded size the features come from
    inside = (uv[1, 2, ..., 0] < 100 / 160) & (uv[1, 2, ..., 1] < 60 / 96)
    assert torch.equal(visible[1, 2], visible_all[1, 2] & inside)
    assert visible[1, 2].sum() < visible_all[1, 2].sum()
    assert torch.equal(visible[0], visible_all[0])


def test_projection_stays_in_float32_under_autocast(case):
    ref = case("point_sampling")
    points = pillar_points(GRID, (-5, 3), 4)
    exact = project_to_images(points, ref["in.lidar2img"], IMAGE, sizes(2, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = project_to_images(points, ref["in.lidar2img"], IMAGE, sizes(2, 3))
    assert torch.equal(exact[0], cast[0]) and torch.equal(exact[1], cast[1])


def test_pillar_needs_height():
    with pytest.raises(ValueError, match="more than 1 m"):
        pillar_points(GRID, (0, 1), 4)


def test_rectangular_range_and_grid():
    grid = BevGrid(-10, 0, 30, 20, num_x=8, num_y=2)
    points = pillar_points(grid, (-2, 2), 3)
    np.testing.assert_allclose(points[:, 0, :2], grid.cell_centres().reshape(-1, 2), atol=1e-5)
    assert points[0, :, 2].tolist() == [-1.5, 0, 1.5]


def encoder_case(ref) -> tuple[BevEncoder, dict[str, Tensor], dict]:
    """Encoder, leaves in the recorded layout and the arguments of forward; the layers' outputs are in ``states``."""
    encoder = BevEncoder(GRID, (-5, 3), 2, 4, embed_dims=32, num_heads=4, num_levels=2, ffn_dims=64).eval()
    encoder.load_state_dict(ref.weights("encoder_v2_bs1"))
    leaves = {"bev_query": ref["in.bev_query"].requires_grad_(), "value": ref["in.value"].requires_grad_()}
    arguments = {
        "query": leaves["bev_query"].transpose(0, 1),
        "query_pos": ref["in.bev_pos"].transpose(0, 1),
        "value": leaves["value"].permute(2, 0, 1, 3),
        "spatial_shapes": LEVELS,
        "image_from_bev": ref["in.lidar2img"],
        "padded_size": IMAGE,
        "image_size_px": sizes(1, 3),
    }
    if "in.prev_bev" in ref.arrays:
        arguments |= {"previous": ref["in.prev_bev"].transpose(0, 1), "shift": ref["in.shift"]}
    return encoder, leaves, arguments


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("name", ["encoder_v2_bs1", "encoder_v1prev_bs1"])
def test_encoder_agrees_with_upstream(case, name, recompute):
    """encoder_v1prev also has docs/quirks.md#initial-queries-as-the-current-map."""
    ref = case(name)
    encoder, leaves, arguments = encoder_case(ref)
    encoder.checkpoint_layers = recompute
    states: list[Tensor] = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda _m, _i, output: states.append(output.detach()))
    output = encoder(**arguments)
    close(torch.stack(states[:2]), ref["out.per_layer"])
    ref.check_gradients(output, leaves, encoder)


def test_batch_is_two_single_runs(case):
    """With different calibrations per sample, which upstream mixes up (docs/quirks.md#camera-lists-of-sample-0)."""
    encoder, _, arguments = encoder_case(case("encoder_v1prev_bs1"))
    generator = torch.Generator().manual_seed(0)
    other = dict(arguments)
    for key in ("query", "value", "previous"):
        other[key] = torch.randn(arguments[key].shape, generator=generator)
    other["shift"] = arguments["shift"] + 0.1
    other["image_from_bev"] = arguments["image_from_bev"][:, [1, 2, 0]]
    shared = ("spatial_shapes", "padded_size")
    joint = {k: v if k in shared else torch.cat([v, other[k]]) for k, v in arguments.items()}
    with torch.no_grad():
        both = encoder(**joint)
        close(both, torch.cat([encoder(**arguments), encoder(**other)]))


def test_one_layer_per_camera_count(case):
    """The same weights take two cameras or five."""
    encoder, _, arguments = encoder_case(case("encoder_v2_bs1"))
    for order in ([0, 2], [0, 1, 2, 0, 1]):
        few = dict(arguments)
        for key in ("value", "image_from_bev", "image_size_px"):
            few[key] = arguments[key][:, order]
        assert encoder(**few).shape == (1, 80, 32)
