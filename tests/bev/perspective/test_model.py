"""The perspective branch inside the whole detector, on clips as the dataset makes them: labels, proposals, queries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.backbone.fpn import FPN
from drivestack.backbone.internimage.model import InternImage
from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.boxes.box_coder import denormalise_points
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.boxes.proposals import HybridQueries, PerspectiveProposals
from drivestack.bev.boxes.task import BoxTask
from drivestack.bev.map.bev_map import BevMap
from drivestack.bev.perspective.geometry import labelled_boxes
from drivestack.bev.perspective.head import CameraDetections, NuscenesDD3D
from drivestack.core.errors import ConfigError
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.engine.config import config_names, load_config
from support.mono_frames import CLASSES, OBJECTS, RANGE, make_frames


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[Frame]:
    return make_frames(tmp_path_factory.mktemp("images"), 3)


def clips(frames: list[Frame], **settings) -> ClipDataset:
    arguments = {
        "image": {"crop": (0, 0, 1, 1), "train_heights_px": (96, 128), "test_height_px": 128, "flip": True},
        "bda": {},
        "mono": True,
        "training": True,
        "pc_range": RANGE,
    }
    return ClipDataset(classes=CLASSES.split(), frames=frames, **arguments | settings)


def build(offsets=(0,)) -> BEVFormerV2:
    torch.manual_seed(0)
    size = {"embed_dims": 32, "pc_range": RANGE}
    layers = size | {"num_heads": 4, "ffn_dims": 64, "dropout": 0.0}
    return BEVFormerV2(
        img_backbone=InternImage(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), out_indices=(1, 2, 3)),
        img_neck=FPN(in_channels=(32, 64, 128), out_channels=32, num_outs=5, add_extra_convs="on_output"),
        bev_map=BevMap(
            bev_size=(10, 10), num_cams=3, num_levels=3, num_layers=1, frames=offsets, fusion_channels=32, **layers
        ),
        boxes=BoxTask(
            head=BoxHead(num_query=6, num_groups=2, num_layers=2, **layers),
            perspective=NuscenesDD3D(in_channels=32, num_convs=1, cls_prior=0.06),
            perspective_proposals=PerspectiveProposals(10, RANGE, num_proposals=8),
            hybrid_queries=HybridQueries(32, 10),
            **size,
        ),
        grid_mask=False,
    )


def check_step(model: BEVFormerV2, batch) -> dict[str, torch.Tensor]:
    losses = model.train().loss(batch)
    assert all(value.isfinite() for value in losses.values()), losses
    assert sum(name.endswith("_mono") for name in losses) == 10
    model.zero_grad()
    sum(losses.values()).backward()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in parameters.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in parameters.values())
    return losses


def test_a_step_reaches_every_parameter_and_leaves_unlabelled_images_out(frames):
    dataset = clips(frames, frame_offsets=(-1, 0))
    batch = collate_clips([dataset[1, 0], dataset[2, 1]])
    assert [[target is not None for target in cameras] for cameras in batch.mono] == [[True, True, False]] * 2
    model = build((-1, 0))
    losses = check_step(model, batch)
    assert all(losses[f"loss_{name}_mono"] > 0 for name in ("cls", "box2d_reg", "box3d_depth", "box3d_quat", "speed"))

    batch.images[:, :, 2] += 1  # the camera without labels
    changed = model.loss(batch)
    for name, value in losses.items():
        if name.endswith("_mono"):
            torch.testing.assert_close(changed[name], value)
    assert changed["loss_cls"] != losses["loss_cls"]


def test_a_batch_in_which_no_image_is_labelled(frames):
    batch = collate_clips([clips(frames)[0]])
    batch.mono = [[None] * 3]
    losses = check_step(build(), batch)
    assert all(value == 0 for name, value in losses.items() if name.endswith("_mono"))


def test_a_rank_without_labels_still_joins_every_mean_over_ranks(frames, monkeypatch):
    batch, model, counted = collate_clips([clips(frames)[0]]), build(), []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: counted.append(value.shape))
    model.loss(batch)
    with_labels = counted.copy()
    for missing in ({"mono": [[None] * 3]}, {"mono": [None]}):
        counted.clear()
        given = replace(batch, **missing)
        if missing["mono"] == [None]:
            given = replace(given, gt_boxes=[None], gt_labels=[None])
        model.boxes.loss(model.boxes(*reversed(model.encode_clip(given)), given), given)
        assert with_labels and counted == with_labels


def test_a_dataset_without_image_labels_is_refused_by_name(frames):
    batch = collate_clips([clips(frames, mono=False)[0]])
    with pytest.raises(ConfigError, match=r"perspective head.*mono=True"):
        build().loss(batch)


def test_an_unannotated_clip_beside_an_annotated_one_teaches_nothing(frames):
    """Its images stay out of the perspective head's losses, its queries out of the box losses."""
    bare = [frames[0], replace(frames[1], annotations=None)]
    dataset = clips(bare, training=False)
    batch = collate_clips([dataset[0], dataset[1]])
    assert [own is None for own in batch.gt_boxes] == [own is None for own in batch.mono] == [False, True]
    model = build().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    alone, both = model.loss(collate_clips([dataset[0]])), model.loss(batch)
    assert alone.keys() == both.keys() and sum(name.endswith("_mono") for name in both) == 10
    for name, value in both.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-6, msg=name)


def perfect_views(model: BEVFormerV2, batch) -> list:
    """Makes the perspective head detect the labels; what becomes of them is appended to the list."""
    targets = [target for cameras in batch.mono for target in cameras]

    def detect(outs, intrinsics, lenses=None):
        found = []
        for image in outs.images.tolist():
            target = targets[image]
            if target is None:
                continue
            count = len(target.labels)
            boxes = labelled_boxes(target.boxes3d_camera, intrinsics[image].expand(count, 3, 3))
            scores = torch.linspace(0.9, 0.5, count)
            speeds = target.speed.nan_to_num()
            found.append(
                CameraDetections(target.boxes_xyxy_px, boxes, scores, scores, target.labels, target.attributes, speeds)
            )
        return found

    model.boxes.perspective.detect = detect
    proposed = []
    source = model.boxes.perspective_proposals.proposals

    def proposals(*args, **kwargs):
        proposed.append(source(*args, **kwargs))
        return proposed[-1]

    model.boxes.perspective_proposals.proposals = proposals
    return proposed


@pytest.mark.parametrize("draw", range(4))
def test_what_the_cameras_see_is_proposed_where_it_stands(frames, draw):
    """Through image crop, scale and mirror, camera and BEV frames, and the BEV augmentation."""
    batch = collate_clips([clips(frames)[0, draw]])
    model = build().train()
    proposed = perfect_views(model, batch)
    model.loss(batch)
    valid = proposed[0].valid[0]
    assert valid.sum() == len(OBJECTS)
    places = denormalise_points(proposed[0].reference[0, valid], model.boxes.perspective_proposals.pc_range)
    labels = proposed[0].scores[0, valid].argmax(-1)
    expected, classes = batch.gt_boxes[0], batch.gt_labels[0]
    order, wanted = labels.argsort(), classes.argsort()
    assert torch.equal(labels[order], classes[wanted])
    torch.testing.assert_close(places[order], expected[wanted][:, :3], rtol=0, atol=1e-3)


def test_prediction_asks_proposals_and_history_changes_nothing(frames):
    offsets = (-1, 0)
    model = build(offsets).eval()
    whole = clips(frames, training=False, frame_offsets=offsets)
    single = clips(frames, training=False, frame_offsets=(0,))
    history = None
    for i in range(2):
        batch = collate_clips([whole[i]])
        expected = model.predict(batch)[0][0]
        found, history = model.predict(collate_clips([single[i]]), history)
        np.testing.assert_allclose(found[0].boxes.scores, expected.boxes.scores, atol=2e-5)
    proposed = perfect_views(model, batch)
    with_objects = model.predict(batch)[0][0].boxes
    assert proposed[0].valid.sum() == len(OBJECTS)
    assert len(with_objects.scores) == 10 * (6 + len(OBJECTS))  # every class of each learned and proposed query


@pytest.mark.parametrize("name", [n for n in config_names() if n.startswith("bevformerv2") and not n.endswith("_occ")])
def test_the_papers_configs_have_it_and_the_released_do_not(name):
    boxes = load_config(name).model.boxes
    has = [boxes.get(part) is not None for part in ("perspective", "perspective_proposals", "hybrid_queries")]
    if "internimage" in name:
        assert has == [True, True, True]
    elif "_r50_" in name:
        assert has == [True, False, False]
