"""A frame that lacks a camera is answered as by a car without that camera, whatever stands in its place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.backbone.fpn import FPN
from drivestack.backbone.internimage.model import InternImage
from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.boxes.proposals import HybridQueries, PerspectiveProposals
from drivestack.bev.boxes.task import BoxTask
from drivestack.bev.map.bev_map import BevMap
from drivestack.bev.perspective.head import NuscenesDD3D
from drivestack.bev.published.bevformer_v1 import BEVFormerV1
from drivestack.bev.published.recurrent_map import RecurrentBevMap
from drivestack.core.batch import Batch
from drivestack.core.cameras import CAMERA_ORDER
from drivestack.core.errors import ConfigError
from drivestack.core.frames import CameraView, Frame
from drivestack.core.once import forget_warnings
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.geometry import CameraModel, pose, rotation_z
from drivestack.lane_topology.head import LaneTopologyHead

RANGE = (-20.0, -20.0, -5.0, 20.0, 20.0, 3.0)
AZIMUTHS_DEG = dict(zip(CAMERA_ORDER, (0, -60, 60, 180, 120, -120)))
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead
SIZE = {"embed_dims": 32, "pc_range": RANGE}
LAYERS = SIZE | {"num_heads": 4, "ffn_dims": 64, "dropout": 0.0}
MAP = {"bev_size": (8, 8), "num_cams": 6, "num_levels": 3, "num_layers": 1}


def encoder() -> dict:
    torch.manual_seed(0)
    return dict(
        img_backbone=InternImage(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), out_indices=(1, 2, 3)),
        img_neck=FPN(in_channels=(32, 64, 128), out_channels=32, num_outs=5, add_extra_convs="on_output"),
        grid_mask=False,
    )


@pytest.fixture(scope="module")
def model() -> BEVFormerV2:
    """All that looks at single cameras: proposals from images, elements in the front image, history."""
    return BEVFormerV2(
        **encoder(),
        bev_map=BevMap(frames=(-1, 0), fusion_channels=32, **MAP, **LAYERS),
        boxes=BoxTask(
            head=BoxHead(num_query=6, num_groups=2, num_layers=1, **LAYERS),
            perspective=NuscenesDD3D(in_channels=32, num_convs=1, cls_prior=0.06),
            perspective_proposals=PerspectiveProposals(10, RANGE, num_proposals=8),
            hybrid_queries=HybridQueries(32, 10),
            **SIZE,
        ),
        lane_head=LaneTopologyHead(
            32, 32, bev_size=(8, 16), num_queries=4, num_proposals=4, num_layers=1, num_heads=4, max_elements=5
        ),
    ).eval()


def drive(count: int = 2) -> list[Frame]:
    rng = np.random.default_rng(0)
    camera = CameraModel(np.array([[40.0, 0, 48], [0, 40, 32], [0, 0, 1]]), 96, 64)
    frames = []
    for i in range(count):
        global_from_ego = pose(rotation_z(0.05 * i), [1.0 * i, 0, 0])
        views = tuple(
            CameraView(
                name,
                camera,
                pose(rotation_z(np.radians(degrees)) @ FORWARD, [0.5, 0, 1.5]),
                global_from_ego,
                500_000 * i,
                image=rng.integers(0, 255, (64, 96, 3), dtype=np.uint8),
            )
            for name, degrees in AZIMUTHS_DEG.items()
        )
        tokens = [f"f{i - 1}" if i else "", f"f{i + 1}" if i + 1 < count else ""]
        frames.append(
            Frame(
                f"f{i}", "s", "scene", 500_000 * i, views, global_from_ego, prev_token=tokens[0], next_token=tokens[1]
            )
        )
    return frames


def without(frame: Frame, *names: str) -> Frame:
    return replace(frame, cameras=tuple(view for view in frame.cameras if view.name not in names))


def batches(frames: list[Frame], **settings) -> list[Batch]:
    image = {"crop": (0, 0, 1, 1), "test_height_px": 64}
    dataset = ClipDataset(classes=["car"], frames=frames, image=image, pc_range=RANGE, **settings)
    return [collate_clips([dataset[i]]) for i in range(len(frames))]


def answers(model, series: list[Batch]) -> list:
    memory, found = None, []
    for batch in series:
        (answer,), memory = model.predict(batch, memory)
        found.append(answer)
    return found


def same(one, other) -> None:
    for part in (one.boxes, one.lanes):
        if part is None:
            continue
        theirs = other.boxes if part is one.boxes else other.lanes
        for name, value in vars(part).items():
            if name not in ("token", "track_ids"):  # no model here gives tracks
                np.testing.assert_allclose(value, getattr(theirs, name), atol=2e-5)


@pytest.mark.parametrize("lost", ["CAM_FRONT_LEFT", "CAM_BACK_RIGHT"])
def test_a_masked_camera_is_one_that_the_car_does_not_have(model, lost):
    """With history: the first frame has what the second lacks in one run, in the other neither has it."""
    frames = [without(frame, lost) for frame in drive()]
    rig = dict(camera_names=CAMERA_ORDER, may_lack=CAMERA_ORDER)
    masked = batches(frames, **rig)
    assert masked[0].camera_valid == [tuple(name != lost for name in CAMERA_ORDER)]
    fewer = batches(frames)
    assert fewer[0].images.shape[2] == 5 and lost not in fewer[0].camera_names[0]
    for ours, theirs in zip(answers(model, masked), answers(model, fewer)):
        same(ours, theirs)


def test_what_stands_in_the_place_of_a_missing_image_changes_nothing(model):
    frames = drive()
    clean = batches([frames[0], without(frames[1], "CAM_BACK")])
    noisy = replace(clean[1], images=clean[1].images.clone())
    noisy.images[:, :, CAMERA_ORDER.index("CAM_BACK")] = 100 * torch.randn(3, 64, 96)
    ours, theirs = answers(model, clean), answers(model, [clean[0], noisy])
    same(ours[1], theirs[1])


def test_without_the_front_image_there_are_no_elements_and_the_lanes_stay(model):
    frames = drive()
    whole, blind = answers(model, batches([frames[0], without(frames[1], "CAM_FRONT")]))
    assert len(whole.lanes.attributes) == 5 and whole.lanes.lane_element.shape == (8, 5)
    assert len(blind.lanes.attributes) == len(blind.lanes.element_scores) == 0
    assert blind.lanes.elements_xyxy_px.shape == (0, 4) and blind.lanes.lane_element.shape == (8, 0)
    assert len(blind.lanes.lane_scores) == 8


def test_the_order_of_a_frames_cameras_changes_nothing(model):
    frames = drive()
    mixed = [replace(frame, cameras=frame.cameras[::-1] if i else frame.cameras) for i, frame in enumerate(frames)]
    for ours, theirs in zip(answers(model, batches(mixed)), answers(model, batches(frames))):
        same(ours, theirs)
    turned = batches(frames, camera_names=CAMERA_ORDER[::-1])  # six embeddings of nuScenes' names go by name
    for ours, theirs in zip(answers(model, turned), answers(model, batches(frames))):
        same(ours, theirs)


def test_a_recurrent_model_masks_a_camera_as_well():
    torch.manual_seed(1)
    v1 = BEVFormerV1(
        **encoder(),
        bev_map=RecurrentBevMap(rotate_center=(4, 4), **MAP | {"num_levels": 5}, **LAYERS),
        box_head=BoxHead(num_query=6, num_groups=1, num_layers=1, **LAYERS),
    ).eval()
    frames = [without(frame, "CAM_FRONT_RIGHT") for frame in drive()]
    masked = batches(frames, camera_names=CAMERA_ORDER, may_lack=CAMERA_ORDER)
    for ours, theirs in zip(answers(v1, masked), answers(v1, batches(frames))):
        same(ours, theirs)


def test_a_rig_is_compared_with_the_model_before_the_work(model, caplog):
    forget_warnings()
    model.check_inputs(CAMERA_ORDER, RANGE)
    assert not caplog.messages
    model.check_inputs(CAMERA_ORDER[:4], (-20.0, -20.0, -5.0, 30.0, 20.0, 3.0))
    fewer, ranges = caplog.messages
    assert "the rig has 4 cameras (CAM_FRONT, CAM_FRONT_RIGHT, CAM_FRONT_LEFT, CAM_BACK)" in fewer and "6" in fewer
    assert "pc_range (-20.0, -20.0, -5.0, 30.0, 20.0, 3.0) is not the model's" in ranges
    with pytest.raises(ConfigError, match=r"7 cameras, but the model has embeddings for 6: .*num_cams=7"):
        model.check_inputs([*CAMERA_ORDER, "ROOF"])
