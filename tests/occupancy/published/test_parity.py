"""The occupancy challenge's model, part by part and over a video, against numbers measured on the released code."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from drivestack.bev.map.encoder import cell_centres_normalised, project_to_images
from drivestack.bev.published.bevformer_v1 import RecurrentState, can_bus_since
from drivestack.bev.published.ego_motion import can_bus_deltas
from drivestack.core.labels import OccupancyTargets
from drivestack.occupancy.published.bevformer_occ import BEVFormerOcc, OccupancyMap, VoxelHead
from support.maps import map_of, tokens_of

SIZE = (96, 160)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


@pytest.fixture(scope="module")
def ref(reference_dir) -> dict[str, Tensor]:
    return load_file(reference_dir / "occupancy" / "occ_head.safetensors")


@pytest.fixture(scope="module")
def numbers(reference_dir) -> dict:
    return json.loads((reference_dir / "occupancy" / "occ_head.json").read_text())


def weights(ref: dict[str, Tensor], variant: str) -> dict[str, Tensor]:
    prefix = f"{variant}/weights/"
    return {f"pts_bbox_head.{k.removeprefix(prefix)}": v for k, v in ref.items() if k.startswith(prefix)}


def net_of(variant: str = "conv3d", **voxels) -> BEVFormerOcc:
    """The published head behind an image encoder that is not used here."""
    bev_map = OccupancyMap(
        bev_size=(8, 10),
        embed_dims=32,
        num_levels=2,
        num_layers=2,
        num_points_in_pillar=4,
        ffn_dims=64,
        rotate_center=(5, 4),
    )
    head = VoxelHead(variant, embed_dims=32, num_z=4, out_dim=8 if variant == "conv3d" else 16, **voxels)
    parts = dict(img_backbone=nn.Identity(), img_neck=nn.Identity(), bev_map=bev_map, voxel_head=head)
    return BEVFormerOcc(**parts, grid_mask=False).eval()


@pytest.fixture(scope="module")
def model(ref) -> BEVFormerOcc:
    model = net_of()
    model.load_state_dict(weights(ref, "conv3d"))
    return model


def encoded(model: BEVFormerOcc, ref, feats: list[Tensor], can_bus: Tensor, previous: Tensor | None) -> Tensor:
    image_from_ego = (ref["inputs/lidar2img"] @ ref["inputs/ego2lidar"])[None].float()
    with torch.no_grad():
        return model.encode(feats, image_from_ego, SIZE, can_bus[None], [previous])


def inputs(ref, prefix: str = "inputs") -> list[Tensor]:
    return [ref[f"{prefix}/feat{level}"] for level in (0, 1)]


@pytest.mark.parametrize("variant", ["conv3d", "conv2d", "mlp"])
def test_voxel_decoders_agree_with_upstream(ref, numbers, variant):
    net = net_of(variant)
    net.load_state_dict(weights(ref, variant))
    bev, expected = ref[f"{variant}/decoder_in_bev"], ref[f"{variant}/decoder_out_logits"]
    with torch.no_grad():
        logits = net.voxel_head(bev)
    if variant == "conv3d":
        close(logits, expected)
        net.train()
        with torch.no_grad():
            close(net.voxel_head(bev), ref["conv3d/decoder_out_logits_trainmode_bn"])
        return
    # the other two lie as the labels do, [x, y, z]; upstream's order is an option
    assert list(logits.shape) == [2, 10, 8, 4, 18] and numbers[variant]["axis_order"].startswith("b, y")
    close(logits.transpose(1, 2), expected)
    upstream = net_of(variant, transposed=True)
    upstream.load_state_dict(weights(ref, variant))
    with torch.no_grad():
        close(upstream.voxel_head(bev), expected)


def test_pillars_stand_in_the_ego_frame(ref, model, numbers):
    encoder = model.bev_map.encoder
    low, high = torch.tensor(numbers["config"]["pc_range"]).float().view(2, 3)
    close((encoder.pillars - low) / (high - low), ref["out/ref3d"][0].transpose(0, 1))
    close(cell_centres_normalised(encoder.grid), ref["out/ref3d"][0, 0, :, :2])
    image_from_ego = (ref["inputs/lidar2img"] @ ref["inputs/ego2lidar"])[None].float()
    uv, seen = project_to_images(encoder.pillars, image_from_ego, SIZE, torch.tensor(SIZE).expand(1, 6, 2))
    assert torch.equal(seen[0], ref["out/bev_mask"][:, 0])
    assert seen[0].sum((-1, -2)).tolist() == numbers["bev_mask_hits_per_cam"]
    close(uv[0][seen[0]], ref["out/reference_points_cam"][:, 0][seen[0]])


def test_first_frame_agrees_with_upstream(ref, model):
    bev = encoded(model, ref, inputs(ref), ref["inputs/can_bus_first"], None)
    close(tokens_of(bev), ref["out/first/only_bev"])
    close(bev, ref["out/first/bev_embed"])
    with torch.no_grad():
        logits = model.voxel_head(bev)
    close(logits, ref["out/first/occ"])
    assert torch.equal(logits.argmax(-1), ref["out/first/pred"])


def test_next_frame_agrees_with_upstream(ref, model):
    """The map before is turned and displaced by the ego motion, and so is the current one (kept: weights need it)."""
    previous = map_of(ref["inputs/prev_bev"], 8, 10)[0]
    bev = encoded(model, ref, inputs(ref), ref["inputs/can_bus_next"], previous)
    close(bev, ref["out/next/bev_embed"])
    with torch.no_grad():
        close(model.voxel_head(bev), ref["out/next/occ"])
    encoder = model.bev_map.encoder
    encoder.shift_current = False
    try:
        alone = encoded(model, ref, inputs(ref), ref["inputs/can_bus_next"], previous)
    finally:
        encoder.shift_current = True
    assert (alone - bev).abs().max() > 1e-3


def test_a_video_agrees_with_upstream(ref, numbers, model):
    """Five frames of two scenes; the state is passed on, and forgotten with the scene."""
    state = None
    for t, scene in enumerate(numbers["clip_scene_tokens"]):
        past = state if state is not None and state.scene_token == scene else None
        absolute = ref[f"clip/{t}/can_bus_absolute"]
        delta = can_bus_since(absolute, None if past is None else past.can_bus)
        bev = encoded(model, ref, inputs(ref, f"clip/{t}"), delta, None if past is None else past.bev)
        close(bev, ref[f"clip/{t}/bev_embed"])
        with torch.no_grad():
            found = model.voxel_head(bev).argmax(-1).to(torch.uint8)
        assert torch.equal(found, ref[f"clip/{t}/occ_pred"])
        state = RecurrentState(scene, bev[0], absolute)


def test_deltas_of_a_training_clip_agree_with_upstream(numbers):
    case = numbers["union2one"]
    absolute = np.array([frame["can_bus"] for frame in case["input"]])
    deltas, has_previous = can_bus_deltas(absolute, [frame["scene_token"] for frame in case["input"]])
    np.testing.assert_array_equal(deltas, [frame["can_bus"] for frame in case["output"]])
    assert has_previous.tolist() == [frame["prev_bev_exists"] for frame in case["output"]]


@pytest.mark.parametrize(
    ("mask", "loss", "gradient"), [("none", "no_mask", "no_mask"), ("camera", "mask_camera", "mask")]
)
def test_losses_and_gradients_agree_with_upstream(ref, numbers, mask, loss, gradient):
    net = VoxelHead(embed_dims=32, num_z=4, out_dim=8, mask=mask)
    logits = ref["loss/logits"].clone().requires_grad_()
    seen = ref["loss/mask_camera"].bool()
    terms = net.loss(logits, [OccupancyTargets(gt, ~own, own) for gt, own in zip(ref["loss/gt"], seen)])
    assert list(terms) == ["loss_occ_cross_entropy"]
    close(terms["loss_occ_cross_entropy"], torch.tensor(numbers[f"loss_{loss}"]), 0)
    terms["loss_occ_cross_entropy"].backward()
    close(logits.grad, ref[f"loss/grad_{gradient}"], 1e-9)


def test_nothing_seen_costs_nothing(ref, numbers):
    net = VoxelHead(embed_dims=32, num_z=4, out_dim=8, mask="camera")
    logits = ref["loss/logits"].clone().requires_grad_()
    none = torch.zeros_like(ref["loss/mask_camera"]).bool()
    terms = net.loss(logits, [OccupancyTargets(gt, none[0], none[0]) for gt in ref["loss/gt"]])
    assert terms["loss_occ_cross_entropy"].item() == float(numbers["loss_mask_all_zero"])
    terms["loss_occ_cross_entropy"].backward()
    assert not logits.grad.any()
    unlabelled = net.loss(logits, [None, None])
    assert unlabelled["loss_occ_cross_entropy"] == 0 and unlabelled["loss_occ_cross_entropy"].requires_grad
