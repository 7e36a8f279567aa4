"""BEVFormer v2 as a whole against upstream: all losses, every parameter's gradient, running statistics, detections."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.backbone.fpn import FPN
from drivestack.backbone.resnet import ResNet
from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.boxes.proposals import BevProposals, HybridQueries, PerspectiveProposals
from drivestack.bev.boxes.task import BoxTask
from drivestack.bev.map.bev_map import BevMap
from drivestack.bev.perspective.head import NuscenesDD3D
from drivestack.core.batch import Batch
from drivestack.core.frames import Frame
from drivestack.core.labels import MonoTargets
from drivestack.core.weights.published_keys import published_name
from drivestack.geometry import boxes_from_legacy


@pytest.fixture
def ref(case):
    return case("e2e_v2_train_noaug")


@pytest.fixture
def model(ref):
    layers = dict(embed_dims=32, num_layers=2, num_heads=4, ffn_dims=64, dropout=0.0)
    model = BEVFormerV2(
        img_backbone=ResNet(depth=50, style="caffe", stem_channels=8, base_channels=8, out_indices=(1, 2, 3)),
        img_neck=FPN(
            in_channels=(64, 128, 256),
            out_channels=32,
            num_outs=5,
            add_extra_convs="on_output",
            relu_before_extra_convs=True,
        ),
        bev_map=BevMap(bev_size=(10, 10), num_cams=3, frames=(-1, 0), fusion_channels=48, **layers),
        boxes=BoxTask(
            head=BoxHead(num_query=12, num_groups=2, max_num=20, **layers),
            perspective=NuscenesDD3D(in_channels=32, num_convs=1),
            embed_dims=32,
        ),
        grid_mask=False,
    )
    model.load_state_dict(ref.weights("e2e_v2_train_noaug"))
    return model


@pytest.fixture
def batch(ref):
    """The recorded inputs. Only two of the three images have labels for the perspective head."""
    intrinsics = torch.eye(3).repeat(1, 3, 1, 1)
    mono: list[MonoTargets | None] = [None] * 3
    for i, camera in enumerate(ref["in.mono_ann_idx"].tolist()):
        inverse = ref["in.mono_inv_intrinsics"][i]
        intrinsics[0, camera] = torch.linalg.inv(inverse)
        label = {k.rpartition(".")[2]: v for k, v in ref.arrays.items() if k.startswith(f"in.mono_gt.{i}.")}
        pixels = torch.nn.functional.pad(label["proj_ctr"], (0, 1), value=1.0)
        centre = pixels @ inverse.T * label["depth"]
        boxes3d = torch.cat([label["quat"], centre, label["size"]], 1)
        mono[camera] = MonoTargets(
            label["gt_boxes"], label["gt_classes"], boxes3d, label["attributes"], label["speeds"]
        )
    return Batch(
        images=ref["in.img"],
        frame_offsets=(-1, 0),
        frame_valid=torch.ones(1, 2, dtype=torch.bool),
        image_from_bev=torch.stack([ref["in.lidar2img_tm1"], ref["in.lidar2img_t0"]])[None].float(),
        image_size_px=torch.tensor([96, 160]).expand(1, 2, 3, 2),
        image_flipped=torch.zeros(1, dtype=torch.bool),
        bda=torch.eye(3)[None],  # the recorded matrix was not applied: the run had no augmentation parameters
        intrinsics=intrinsics,
        bev_from_camera=torch.eye(4).repeat(1, 3, 1, 1),
        gt_boxes=[boxes_from_legacy(ref["in.gt_boxes_lidar_bottom"])],
        gt_labels=[ref["in.gt_labels"]],
        mono=[mono],
        frames=[Frame("token", "scene", "scene", 0, (), np.eye(4))],
    )


def test_training_step_agrees_with_upstream(ref, model, batch):
    losses = model.train().loss(batch)
    assert len(losses) == 14
    for key, value in losses.items():
        assert value.item() == pytest.approx(ref[f"out.loss.{key}"].item(), rel=1e-4), key
    total = sum(losses.values())
    assert total.item() == pytest.approx(ref["out.total"].item(), rel=1e-5)

    total.backward()
    norms = {k.removeprefix("grad.norm."): v.item() for k, v in ref.arrays.items() if k.startswith("grad.norm.")}
    parameters = {published_name(model, name): p for name, p in model.named_parameters() if p.requires_grad}
    assert set(norms) == set(parameters) and len(norms) == 418
    for name, norm in norms.items():
        assert parameters[name].grad.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-7), name

    state = model.state_dict()
    for key, value in ref.arrays.items():
        if key.startswith("out.bn_after."):
            # history runs on running statistics and does not move them
            torch.testing.assert_close(state[key.removeprefix("out.bn_after.")], value, rtol=1e-5, atol=1e-6)


def test_first_frame_of_a_scene_agrees_with_upstream(case, model, batch):
    expected = case("e2e_v2_test_1f")
    images = batch.images.clone()
    images[:, 0] = 0
    found, _ = model.eval().predict(replace(batch, images=images, frame_valid=torch.tensor([[False, True]])))
    boxes = boxes_from_legacy(expected["out.boxes"])
    found = found[0].boxes
    torch.testing.assert_close(torch.from_numpy(found.boxes), boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(found.scores), expected["out.scores"], rtol=0, atol=1e-5)
    assert found.labels.tolist() == expected["out.labels"].tolist()


def test_two_clips_in_a_batch_are_two_clips(model, batch):
    """Upstream mixes samples: docs/quirks.md#camera-lists-of-sample-0, docs/quirks.md#rows-of-another-sample."""
    torch.manual_seed(0)
    model.eval()
    other = replace(
        batch, images=batch.images + torch.randn_like(batch.images), frame_valid=torch.tensor([[False, True]])
    )
    other.image_from_bev = batch.image_from_bev.flip(1)
    fields = ("images", "frame_valid", "image_from_bev", "image_size_px", "image_flipped", "bda", "intrinsics")
    joint = replace(batch, **{f: torch.cat([getattr(batch, f), getattr(other, f)]) for f in fields})
    fields = ("gt_boxes", "gt_labels", "mono", "occupancy", "lanes", "frames", "camera_names")
    joint = replace(joint, **{f: getattr(batch, f) * 2 for f in fields})
    pair = [found.boxes for found in model.predict(joint)[0]]
    alone = [model.predict(b)[0][0].boxes for b in (batch, other)]
    for a, b in zip(pair, alone):
        torch.testing.assert_close(torch.from_numpy(a.scores), torch.from_numpy(b.scores), rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(a.boxes), torch.from_numpy(b.boxes), rtol=0, atol=1e-3)
    assert abs(alone[0].scores - alone[1].scores).max() > 1e-3


def test_proposals_join_the_learned_queries(model, batch):
    """The paper's hybrid queries and the dense branch, in training with both augmentations and at test time."""
    torch.manual_seed(0)
    point_range = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    model.boxes.perspective_proposals = PerspectiveProposals(10, point_range, num_proposals=6)
    model.boxes.bev_proposals = BevProposals(32, 10, point_range, num_proposals=5, channels=16)
    model.boxes.hybrid_queries = HybridQueries(32, 10)
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None]
    mirrored = replace(batch, image_flipped=torch.tensor([True]), bda=flip)
    losses = model.train().loss(mirrored)
    assert {"loss_dense_cls", "loss_dense_bbox", "loss_cls", "loss_cls_mono"} <= set(losses)
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without and all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    found = model.eval().predict(batch)[0][0].boxes
    assert len(found.scores) == 20
