"""The options of Waymo's recipe, each for itself, and a step of both configs on frames of Waymo's kind."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from drivestack.bev.boxes.box_coder import encode_boxes
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.boxes.losses import LearnedLossWeights, sigmoid_focal_loss, smoothed
from drivestack.bev.boxes.matching import HungarianMatcher
from drivestack.bev.evaluation.waymo_metrics import SENSOR_M, iou_3d, longitudinal_affinity
from drivestack.core.rig import Rig
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.transforms import ImageSettings
from drivestack.engine.config import build_dataset, build_model, load_config
from drivestack.geometry import pose, rotation_z
from support import toy_rig
from support.waymo_like import CLASSES, frames_of

CAR = [4.5, 1.9, 1.6, 0.0, 0.0, 0.0]
CONFIGS = ["bevformerv2_waymo_internimage_t", "bevformerpp_waymo_internimage_b"]


def codes(*centres: list[float]) -> torch.Tensor:
    return encode_boxes(torch.tensor([[*centre, *CAR] for centre in centres]))


def test_let_cost_is_the_metrics_own_worth() -> None:
    rng = np.random.default_rng(0)
    boxes = torch.from_numpy(rng.normal([30, 0, 1], [4, 2, 0.3], (2, 5, 3)))
    found = torch.cat([boxes, torch.tensor(CAR).expand(2, 5, 6)], -1)
    truth = torch.cat([boxes[0, :3] + 0.5, torch.tensor(CAR).expand(3, 6)], -1)
    cost = HungarianMatcher(let_weight=1.0).let_cost(encode_boxes(found).float(), encode_boxes(truth).float())
    for g in range(2):
        for q in range(5):
            for n in range(3):
                own, gt = found[g, q, None].numpy().copy(), truth[n, None].numpy()
                affinity, own[:, :3] = longitudinal_affinity(own[:, :3], gt[:, :3])
                assert cost[g, q, n] == pytest.approx(1 - affinity[0] * iou_3d(own, gt)[0], abs=1e-4)
    assert (cost < 1).any() and cost.shape == (2, 5, 3)
    moved = torch.tensor([-3.0, 2.0, 0.5]) - torch.from_numpy(SENSOR_M).float()
    shift = torch.cat([moved, torch.zeros(6)])
    other = HungarianMatcher(let_weight=1.0, let_sensor_m=(-3.0, 2.0, 0.5))
    torch.testing.assert_close(
        other.let_cost(encode_boxes(found + shift).float(), encode_boxes(truth + shift).float()),
        cost,
        atol=1e-4,
        rtol=0,
    )


def test_let_matching_prefers_what_is_off_in_depth_alone() -> None:
    """L1 takes the query 1 m beside the car; LET-IoU the one 1.8 m behind, which the metric would count."""
    gt, labels = codes([40.0, 0, 1]), torch.tensor([0])
    queries = codes([41.8, 0.0, 1], [40.0, 1.2, 1])[None]
    logits = torch.zeros(1, 2, 1)
    assert HungarianMatcher().match(logits, queries, gt, labels, "x").tolist() == [[-1, 0]]
    assert HungarianMatcher(let_weight=2.0).match(logits, queries, gt, labels, "x").tolist() == [[0, -1]]
    broken = queries.clone()
    broken[0, 0, 2] = 1e4  # a size that overflows
    assert HungarianMatcher(let_weight=2.0).let_cost(broken, gt).isfinite().all()
    broken[0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="box cost"):
        HungarianMatcher(let_weight=2.0).match(logits, broken, gt, labels, "x")
    assert HungarianMatcher(let_weight=2.0).match(logits, queries, gt[:0], labels[:0], "x").tolist() == [[-1, -1]]


def test_smoothed_targets_and_where_their_loss_is_least() -> None:
    target = smoothed(torch.tensor([2, 0]), 4, 0.1)
    torch.testing.assert_close(target, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))
    assert torch.equal(smoothed(torch.tensor([1]), 3, 0.0), torch.tensor([[0.0, 1, 0]]))
    p = torch.linspace(0.001, 0.999, 999)
    for wanted in (0.025, 0.5, 0.925):
        loss = sigmoid_focal_loss(p.logit(), torch.full_like(p, wanted))
        assert p[loss.argmin()].item() == pytest.approx(wanted, abs=2e-3)


def test_label_smoothing_reaches_matched_queries_alone() -> None:
    torch.manual_seed(0)
    plain, smooth = (
        BoxHead(num_classes=3, num_query=4, embed_dims=16, num_layers=1, num_heads=2, ffn_dims=16, label_smoothing=s)
        for s in (0.0, 0.2)
    )
    logits, gt = torch.full((1, 1, 4, 3), -4.0), [codes([10.0, 0, 0])]
    boxes = torch.stack([codes([10.0, 0, 0], [20, 0, 0], [30, 0, 0], [-9, 5, 0])])[:, None]
    logits[0, 0, 0, 1] = 9.0  # sure of the right class
    a, b = (
        h._layer_loss(logits, boxes, gt, [torch.tensor([1])], None, "x")["loss_cls"].item() for h in (plain, smooth)
    )
    assert a < 0.01 < b
    far = [codes([10.0, 0, 0])[:0]]
    none = [
        h._layer_loss(logits, boxes, far, [torch.tensor([], dtype=torch.long)], None, "x")["loss_cls"]
        for h in (plain, smooth)
    ]
    assert none[0] == none[1]
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="label_smoothing"):
            BoxHead(label_smoothing=wrong)


def test_learned_weights_settle_at_the_losses() -> None:
    balance = LearnedLossWeights(["a", "b", "c"])
    optimizer = torch.optim.Adam(balance.parameters(), 0.05)
    for _ in range(400):
        optimizer.zero_grad()
        terms = balance({"loss_x": torch.tensor(5.0), "loss_y": torch.tensor(0.2)}, {"loss_x": "a", "loss_y": "b"})
        sum(terms.values()).backward()
        optimizer.step()
    assert balance.log_variance["a"].exp().item() == pytest.approx(5.0, rel=0.02)
    assert balance.log_variance["b"].exp().item() == pytest.approx(0.2, rel=0.02)
    assert balance.log_variance["c"].item() == 0.0 and balance.log_variance["c"].grad is not None
    assert terms["loss_x"].item() == pytest.approx(1.0, rel=0.02)


def test_learned_weights_in_the_model() -> None:
    net = toy_rig.build()
    frames, images = toy_rig.scene(1)
    batch = toy_rig.clip(frames, images, 0, (0,))
    net.boxes.loss_balance = LearnedLossWeights(["classes", "boxes", "dense"])
    with torch.no_grad():
        net.boxes.loss_balance.log_variance["classes"].fill_(np.log(2.0))
    torch.manual_seed(0)
    weighted = net.loss(batch)
    balance, net.boxes.loss_balance = net.boxes.loss_balance, None
    torch.manual_seed(0)
    plain = net.loss(batch)
    torch.testing.assert_close(weighted["loss_cls"], plain["loss_cls"] / 2)
    torch.testing.assert_close(weighted["d0.loss_bbox"], plain["d0.loss_bbox"])
    assert weighted["loss_weight_classes"].item() == pytest.approx(np.log(2.0))
    net.boxes.loss_balance = balance
    sum(net.loss(batch).values()).backward()
    assert all(p.grad is not None for p in balance.parameters())
    net.zero_grad(set_to_none=True)
    levels, features = net.encode_clip(batch)
    outputs = net.boxes(features, levels, batch)
    sum(net.boxes.loss(outputs, replace(batch, gt_boxes=[None], gt_labels=[None])).values()).backward()
    assert all(p.grad is not None for p in balance.parameters())


def five_cameras(frames: list) -> list:
    """The same frames seen by five cameras of Waymo's two shapes, a tenth of their size."""
    yaws = {"FRONT": 0.0, "FRONT_LEFT": 0.8, "FRONT_RIGHT": -0.8, "SIDE_LEFT": 1.6, "SIDE_RIGHT": -1.6}
    axes = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    cameras: dict[str, Any] = {}
    for name, yaw in yaws.items():
        height = 89 if name.startswith("SIDE") else 128
        intrinsics = [[200.0, 0, 96], [0, 200, height / 2], [0, 0, 1]]
        cameras[name] = (intrinsics, pose(rotation_z(yaw) @ axes, [1.5, 0, 2]), (192, height))
    rng, rig, made = np.random.default_rng(0), Rig(cameras), []
    for frame in frames:
        images = {n: rng.integers(0, 255, (c[2][1], c[2][0], 3), np.uint8) for n, c in cameras.items()}
        made.append(
            rig.frame(images, token=frame.token, scene=frame.scene_name, timestamp_us=frame.timestamp_us,
                      global_from_ego=frame.global_from_ego, annotations=frame.annotations,
                      prev_token=made[-1].token if made else "")
        )  # fmt: skip
    return [replace(f, next_token=g.token) for f, g in itertools.pairwise(made)] + made[-1:]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_on_frames_of_waymos_kind(name: str) -> None:
    torch.manual_seed(0)
    config = load_config(name)
    assert config.benchmark == "waymo" and config.class_names == CLASSES
    stride = 1 if "bevformerpp" in name else 5
    source = {"reader": "waymo", "root": "data/waymo"}
    assert config.train_dataloader.dataset.source == source | {"split": "train", "stride": stride}
    assert config.test_dataset.source == source | {"split": "val"}
    frames = five_cameras(frames_of(1, 4))
    settings = {k: v for k, v in config.train_dataloader.dataset.items() if k != "source"}
    settings["image"] = {**settings["image"], "train_heights_px": (64,)}
    settings |= {"frames": frames, "frame_offsets": tuple(config.model.bev_map.get("frames", (0,)))}
    dataset = build_dataset(settings)
    batch = collate_clips([dataset[3]])
    assert batch.images.shape[2] == 5 and batch.images.shape[-2:] == batch.images.shape[-2:]
    config.model.bev_map.bev_size = (15, 11)
    config.model.boxes.head.num_query, config.model.boxes.head.num_groups = 20, 2
    config.model.img_backbone = dict(
        type="InternImage", channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), out_indices=(1, 2, 3)
    )
    model = build_model(config).train()
    losses = model.loss(batch)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert ("loss_weight_perspective" in losses) == ("bevformerpp" in name)
    assert any(key.endswith("_mono") for key in losses)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4)
    optimizer.step()
    (answer,), _ = model.eval().predict(batch)
    assert answer.boxes is not None and set(answer.boxes.labels.tolist()) <= {0, 1, 2}


def test_all_five_images_have_one_shape() -> None:
    config = load_config(CONFIGS[0])
    settings = ImageSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.test_dataset.image.items()
                                if k != "type"})  # fmt: skip
    from drivestack.geometry import CameraModel

    shapes = set()
    for name, height in (("FRONT", 1280), ("FRONT_LEFT", 1280), ("SIDE_LEFT", 886), ("SIDE_RIGHT", 886)):
        place = settings.placement(name, CameraModel(np.eye(3), 1920, height), settings.test_height_px)
        shapes.add((place.crop_width_px, place.crop_height_px, place.width_px, place.height_px))
    assert shapes == {(1920, 886, 1386, 640)}
