"""The cameras of a set: all that any frame has, by name; a frame may lack some."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.core.labels import LaneLabels
from drivestack.core.once import forget_warnings
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.mirror import mirror_clip
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes

IMAGE = {"crop": (0, 0, 1, 1), "train_heights_px": (30,), "test_height_px": 30}


@pytest.fixture(scope="module")
def frames(tiny_root) -> list[Frame]:
    return read_nuscenes(tiny_root, "v1.0-mini", "mini_train")


def of(frames: list[Frame], **settings) -> ClipDataset:
    forget_warnings()
    return ClipDataset(**{"classes": ["car"], "frames": frames, "image": IMAGE} | settings)


def only(frame: Frame, *names: str) -> Frame:
    return replace(frame, cameras=tuple(view for view in frame.cameras if view.name in names))


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("training", [False, True])
def test_a_camera_that_one_frame_lacks_is_masked_there_and_used_everywhere_else(frames, at, training, caplog):
    some = [only(frame, "CAM_FRONT") if i == at else frame for i, frame in enumerate(frames)]
    dataset = of(some, training=training, mono=True, frame_offsets=(-1, 0))
    assert dataset.camera_names == ("CAM_FRONT", "CAM_BACK")
    assert caplog.messages == [f"camera CAM_BACK missing in 1 of {len(frames)} frames; masked"]
    clip = dataset[at]
    assert clip.images[1][1] is None and clip.mono[1] is None
    assert not clip.image_from_bev[1, 1].any() and clip.image_from_bev[1, 0].any()
    batch = collate_clips([clip, dataset[1]])
    assert batch.camera_valid == [(True, False), (True, True)] and not batch.all_cameras_valid
    assert not batch.images[0, 1, 1].any() and batch.images[1, 1, 1].any()
    assert np.linalg.det(batch.intrinsics.numpy()).all()
    assert batch.image_size_px[0, 1].tolist() == [[30, batch.image_size_px[0, 1, 0, 1]], [0, 0]]


def test_a_mirrored_clip_keeps_the_place_of_a_missing_camera(frames):
    clip = mirror_clip(of([only(frame, "CAM_BACK") if i == 0 else frame for i, frame in enumerate(frames)])[0])
    assert clip.images[0][0] is None and clip.images[0][1] is not None and not clip.image_from_bev[0, 0].any()


def test_cameras_are_matched_by_name_whatever_their_order(frames):
    turned = [replace(frame, cameras=frame.cameras[::-1]) if i % 2 else frame for i, frame in enumerate(frames)]
    for ours, theirs in zip((of(turned)[i] for i in range(3)), (of(frames)[i] for i in range(3))):
        assert ours.camera_names == theirs.camera_names
        assert all(np.array_equal(a, b) for a, b in zip(ours.images[0], theirs.images[0]))


def test_two_vehicles_in_one_set_have_the_cameras_of_both(frames, caplog):
    """Names and sizes differ; each frame is masked where the other car has its cameras."""
    car = frames[:2]
    van = [
        replace(f, cameras=tuple(replace(v, name=v.name.replace("CAM", "VAN")) for v in f.cameras)) for f in frames[2:4]
    ]
    dataset = of([*car, *van])
    assert dataset.camera_names == ("CAM_FRONT", "CAM_BACK", "VAN_FRONT", "VAN_BACK")
    assert len(caplog.messages) == 1 and "camera VAN_BACK missing in 2 of 4 frames" in caplog.messages[0]
    batch = collate_clips([dataset[0], dataset[2]])
    assert batch.camera_valid == [(True, True, False, False), (False, False, True, True)]


def test_a_frame_without_any_camera_is_refused(frames):
    with pytest.raises(DataError, match=rf"sample {frames[1].token}: no camera"):
        of([frames[0], replace(frames[1], cameras=())])
    with pytest.raises(DataError, match=r"none of the cameras CAM_BACK; it has CAM_FRONT"):
        of([frames[0], only(frames[1], "CAM_FRONT")], camera_names=["CAM_BACK"])


def lanes() -> LaneLabels:
    return LaneLabels(
        centrelines=[np.array([[0, 0, 0], [9, 0, 0]], np.float32)],
        is_connector=np.zeros(1, bool),
        elements_xyxy_px=np.array([[4, 4, 12, 20]], np.float32),
        attributes=np.array([1]),
        lane_lane=np.zeros((1, 1), np.int8),
        lane_element=np.ones((1, 1), np.int8),
    )


def test_elements_belong_to_the_camera_that_looks_ahead_wherever_it_stands(frames):
    named = {"CAM_FRONT": "vorn", "CAM_BACK": "achtern"}
    own = [
        replace(f, cameras=tuple(replace(v, name=named[v.name]) for v in f.cameras[::-1]), lanes=lanes())
        for f in frames[:3]
    ]
    dataset = of(own, lanes=True)
    assert dataset.camera_names == ("achtern", "vorn") and dataset.front_camera == 1
    batch = collate_clips([dataset[0]])
    assert batch.front_cameras == [1] and batch.lanes[0].front_camera == 1
    np.testing.assert_allclose(batch.lanes[0].elements_xyxy_px, np.array([[4, 4, 12, 20]]) * 30 / 36, rtol=0.05)


def test_without_the_front_image_a_frame_has_no_elements(frames, caplog):
    own = [replace(frame, lanes=lanes()) for frame in frames[:3]]
    dataset = of([own[0], only(own[1], "CAM_BACK"), own[2]], lanes=True)
    assert caplog.messages == [
        "camera CAM_FRONT missing in 1 of 3 frames; masked (without CAM_FRONT a frame has no traffic elements)"
    ]
    blind, whole = dataset[1].lanes, dataset[0].lanes
    assert (len(blind.attributes), len(blind.centrelines), blind.lane_element.shape) == (0, 1, (1, 0))
    assert len(whole.attributes) == 1 and len(mirror_clip(dataset[1]).lanes.centrelines) == 1
    rear = of([only(frame, "CAM_BACK") for frame in own], lanes=True)
    assert rear.front_camera is None and rear[0].front_camera is None and not len(rear[0].lanes.attributes)
    assert caplog.text.count("no camera looks ahead, so the labels of traffic elements are left out") == 1
