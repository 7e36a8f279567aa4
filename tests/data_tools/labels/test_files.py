"""Label files survive a round trip, and every way to be wrong is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drivestack.core.errors import ConfigError, DataError
from drivestack.core.labels import LaneLabels, OccupancyLabels
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.mirror import mirror_clip
from drivestack.data_tools.labels.files import (
    check_lanes,
    read_lanes,
    read_occupancy,
    read_occupancy_waymo,
    waymo_occupancy_file,
    write_lanes,
    write_occupancy,
)
from drivestack.data_tools.labels.voxel_layouts import occ3d_numbers
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.synthetic import synthesize
from drivestack.occupancy.classes import OCC3D_NUSCENES, OPENOCC

SHAPE = (200, 200, 16)


def occupancy() -> OccupancyLabels:
    rng = np.random.default_rng(0)
    return OccupancyLabels(rng.integers(0, 18, SHAPE).astype(np.uint8), *(rng.random((2, *SHAPE)) > 0.5))


def lanes() -> LaneLabels:
    rng = np.random.default_rng(0)
    lines = [rng.normal(size=(n, 3)).astype(np.float32) for n in (5, 2)]
    links = np.array([[0, 1], [0, 0]], np.int8)
    boxes = np.array([[10, 20, 30, 60]], np.float32)
    return LaneLabels(lines, np.array([True, False]), boxes, np.array([5]), links, np.array([[1], [0]], np.int8))


def test_round_trips(tmp_path: Path):
    written = occupancy()
    write_occupancy(tmp_path / "a.npz", written)
    found = read_occupancy(tmp_path / "a.npz")
    for name in ("semantics", "mask_lidar", "mask_camera"):
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name))
    links = {"lane_lane": np.zeros((0, 0), np.int8), "lane_element": np.zeros((0, 1), np.int8)}
    no_lanes = replace(lanes(), centrelines=[], is_connector=np.zeros(0, bool), **links)
    for labels in (lanes(), no_lanes):
        write_lanes(tmp_path / "b.npz", labels)
        again = read_lanes(tmp_path / "b.npz")
        assert len(again.centrelines) == len(labels.centrelines)
        for a, b in zip(again.centrelines, labels.centrelines):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(again.lane_element, labels.lane_element)


def test_unusable_voxel_labels_are_named(tmp_path: Path):
    path = tmp_path / "labels.npz"
    with pytest.raises(DataError, match=r"labels\.npz: no such label file"):
        read_occupancy(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        read_occupancy(path)
    np.savez(path, semantics=np.zeros(SHAPE, np.uint8), mask_lidar=np.ones(SHAPE, np.uint8))
    with pytest.raises(DataError, match="no array 'mask_camera'"):
        read_occupancy(path)
    masks = {"mask_lidar": np.ones(SHAPE, np.uint8), "mask_camera": np.ones(SHAPE, np.uint8)}
    np.savez(path, semantics=np.zeros((200, 200, 8), np.uint8), **masks)
    with pytest.raises(DataError, match=r"semantics is uint8 \[200, 200, 8\]"):
        read_occupancy(path)
    np.savez(path, semantics=np.full(SHAPE, 255, np.uint8), **masks)
    with pytest.raises(DataError, match="semantics holds 255"):
        read_occupancy(path)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint16])
def test_integers_of_any_width_are_read_where_they_fit(dtype, tmp_path: Path):
    written, path = occupancy(), tmp_path / "labels.npz"
    arrays = {"semantics": written.semantics, "mask_lidar": written.mask_lidar, "mask_camera": written.mask_camera}
    np.savez(path, **{name: array.astype(dtype) for name, array in arrays.items()})
    found = read_occupancy(path)
    np.testing.assert_array_equal(found.semantics, written.semantics)
    assert found.semantics.dtype == np.uint8 and found.mask_lidar.dtype == found.mask_camera.dtype == bool
    for wrong, named in ((-1, -1), (100, 100)):
        semantics = arrays["semantics"].astype(dtype)
        semantics[0, 0, 0] = np.array(wrong).astype(dtype)
        np.savez(path, **arrays | {"semantics": semantics})
        if semantics[0, 0, 0] == wrong:
            with pytest.raises(DataError, match=f"semantics holds {named}, but classes are 0..17"):
                read_occupancy(path)


def test_openocc_labels_have_no_masks_and_their_own_numbers(tmp_path: Path):
    path = tmp_path / "labels.npz"
    flow = np.zeros((*SHAPE, 2), np.float16)
    np.savez_compressed(path, semantics=occupancy().semantics, flow=flow)
    found = read_occupancy(path)
    assert found.mask_lidar is None and found.mask_camera is None and not found.openocc
    np.testing.assert_array_equal(found.semantics, occupancy().semantics)
    street = np.full(SHAPE, OPENOCC.index("free"), np.uint8)
    street[:, :, 2] = OPENOCC.index("driveable_surface")
    street[:9, 0, 3] = OPENOCC.index("trailer")
    np.savez_compressed(path, semantics=street, flow=flow)
    found = read_occupancy(path)
    assert found.openocc
    for name in ("free", "driveable_surface", "trailer"):
        np.testing.assert_array_equal(found.semantics == OCC3D_NUSCENES.index(name), street == OPENOCC.index(name))
    again = tmp_path / "again.npz"
    write_occupancy(again, found)
    assert read_occupancy(again).mask_camera is None


def test_openocc_numbers_are_those_of_the_class_lists():
    numbers = occ3d_numbers(np.arange(len(OPENOCC)))
    assert [OCC3D_NUSCENES[number] for number in numbers] == list(OPENOCC)


@pytest.mark.parametrize(
    ("semantics", "message"),
    [
        (np.zeros((512, 512, 40), np.uint8), r"\[512, 512, 40\], the grid of OpenOccupancy"),
        (np.zeros((321, 4), np.int64), r"\[321, 4\], a list of occupied voxels, as SurroundOcc"),
        (np.zeros((16, 200, 200), np.uint8), r"transpose to \[x, y, z\]"),
        (np.zeros(SHAPE, np.float32), r"float32 \[200, 200, 16\]; .*; write integers"),
    ],
)
def test_voxels_of_other_grids_are_named(semantics, message, tmp_path: Path):
    np.savez_compressed(tmp_path / "labels.npz", semantics=semantics)
    with pytest.raises(DataError, match=rf"labels\.npz: semantics is .*{message}"):
        read_occupancy(tmp_path / "labels.npz")


def test_waymo_voxels_have_their_own_names_and_free_class(tmp_path: Path):
    rng = np.random.default_rng(0)
    path = waymo_occupancy_file(tmp_path, "validation", 7, 42)
    assert path == tmp_path / "validation" / "007" / "042_04.npz"
    path.parent.mkdir(parents=True)
    classes = rng.integers(0, 16, SHAPE).astype(np.uint8)
    classes[classes == 15] = 23
    lidar, camera, view = rng.integers(0, 2, (3, *SHAPE))
    arrays = {"voxel_label": classes, "origin_voxel_state": lidar, "final_voxel_state": camera, "infov": view > 0}
    np.savez_compressed(path, **arrays)
    labels = read_occupancy(path, num_classes=16)
    assert labels.semantics.dtype == np.uint8 and labels.semantics.max() == 15
    np.testing.assert_array_equal(labels.semantics == 15, classes == 23)
    np.testing.assert_array_equal(labels.semantics[classes < 15], classes[classes < 15])
    np.testing.assert_array_equal(labels.mask_lidar, lidar == 1)
    np.testing.assert_array_equal(labels.mask_camera, (camera == 1) & (view == 1))
    np.testing.assert_array_equal(read_occupancy_waymo(path, in_view=False).mask_camera, camera == 1)

    np.savez(path, **arrays | {"voxel_label": np.full(SHAPE, 16, np.uint8)})
    with pytest.raises(DataError, match=r"042_04\.npz: voxel_label holds 16, but classes are 0\.\.14 and 23 \(free\)"):
        read_occupancy(path)
    np.savez(path, **arrays | {"infov": np.ones((4, 4, 4), bool)})
    with pytest.raises(DataError, match=r"infov is bool \[4, 4, 4\]; .* take the 0.4 m file"):
        read_occupancy(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centrelines": [np.zeros((1, 3), np.float32)] * 2}, r"lane 0 has points \[1, 3\]"),
        ({"centrelines": [np.full((2, 3), np.nan, np.float32)] * 2}, "lane 0 has points that are not finite"),
        ({"lane_lane": np.zeros((2, 3), np.int8)}, r"lane_lane \(topology_lclc\) is \[2, 3\]"),
        ({"lane_element": np.zeros((3, 1), np.int8)}, r"lane_element \(topology_lcte\) is \[3, 1\]"),
        ({"lane_lane": np.full((2, 2), 2, np.int8)}, r"lane_lane \(topology_lclc\) holds 2 at \[0, 0\]"),
        ({"attributes": np.array(5)}, r"attributes is \[\]"),
        ({"attributes": np.array([[5]])}, r"attributes is \[1, 1\]"),
        ({"centrelines": [np.full((2, 3), 5e3, np.float32)] * 2}, "lane 0 has a point 5000 m from the car"),
        ({"attributes": np.array([13])}, "traffic element 0 has attribute 13"),
        ({"elements_xyxy_px": np.array([[5, 6, 4, 9]], np.float32)}, r"traffic element 0 has the box .*, reversed"),
        ({"elements_xyxy_px": np.array([[5, 6, np.inf, 9]], np.float32)}, r"traffic element 0 has .*, not finite"),
        ({"elements_xyxy_px": np.array([[5, 1.7e308, 9, 9]])}, r"traffic element 0 has .*1.7e\+308, 9, 9\], reversed"),
        ({"elements_xyxy_px": np.array([[5, 60, 8, 90]], np.float32)}, r".*, outside the front image of 80x50 pixels"),
        ({"elements_xyxy_px": np.zeros((1, 2), np.float32)}, r"elements_xyxy_px is \[1, 2\]"),
    ],
)
def test_unusable_lane_labels_are_named(change, message):
    with pytest.raises(DataError, match=f"sample x: {message}"):
        check_lanes(replace(lanes(), **change), "sample x", (80, 50))


def test_a_lane_file_whose_parts_do_not_fit_is_named(tmp_path):
    write_lanes(tmp_path / "x.npz", lanes())
    with np.load(tmp_path / "x.npz") as stored:
        arrays = dict(stored)
    np.savez(tmp_path / "x.npz", **(arrays | {"points": arrays["points"][:-1]}))
    with pytest.raises(DataError, match=r"x\.npz: points_per_lane adds up to \d+, but points has \d+; generate"):
        read_lanes(tmp_path / "x.npz")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = synthesize(
        tmp_path_factory.mktemp("set") / "s", "train", 4, keyframes_per_scene=1, seed=5, image_width_px=320, workers=1,
        progress=False,
    )  # fmt: skip
    return read_nuscenes(root, "v1.0-trainval", "train")


def dataset(frames, **settings) -> ClipDataset:
    image = {"crop": (0.0, 0.25, 1.0, 1.0), "train_heights_px": (64,), "test_height_px": 64, "resample": "area"}
    arguments = {"classes": ["car"], "frames": frames, "image": image, "occupancy": True, "lanes": True}
    return ClipDataset(**(arguments | settings))


def test_labels_reach_the_batch_and_missing_ones_are_none(frames):
    without = [frames[0], *(replace(f, occupancy_path="", lanes=None) for f in frames[1:])]
    batch = collate_clips([dataset(without)[i] for i in range(2)])
    assert batch.occupancy[0].semantics.shape == SHAPE and batch.occupancy[1] is None
    assert len(batch.lanes[0].centrelines) == len(frames[0].lanes.centrelines) and batch.lanes[1] is None
    torch.testing.assert_close(batch.ego_from_bev[0].double(), torch.from_numpy(frames[0].ego_from_bev))
    plain = collate_clips([dataset(frames, occupancy=False, lanes=False)[0]])
    assert plain.occupancy == [None] and plain.lanes == [None]


def test_element_boxes_follow_crop_and_scale(frames):
    frame = next(f for f in frames if len(f.lanes.attributes))
    targets = dataset([frame])[0].lanes
    scale = 64 / (180 * 0.75)
    expected = (frame.lanes.elements_xyxy_px - [0, 45, 0, 45]) * scale
    kept = expected[:, 1] > -1e-3
    np.testing.assert_allclose(targets.elements_xyxy_px.numpy()[: kept.sum()], expected[kept], atol=0.6)


def test_mirrored_labels_fit_the_mirrored_world(frames):
    frame = next(f for f in frames if len(f.lanes.attributes))
    sample = dataset([frame])[0]
    mirrored = mirror_clip(sample)
    back = mirror_clip(mirrored)
    torch.testing.assert_close(back.occupancy.semantics, sample.occupancy.semantics)
    torch.testing.assert_close(back.lanes.elements_xyxy_px, sample.lanes.elements_xyxy_px)
    torch.testing.assert_close(back.lanes.attributes, sample.lanes.attributes)
    np.testing.assert_allclose(back.ego_from_bev, frame.ego_from_bev, atol=1e-6)
    # a lane point projects onto the mirrored pixel of the front image
    width = sample.images[0][0].shape[2]
    for line, reflected in zip(sample.lanes.centrelines, mirrored.lanes.centrelines):
        for clip, points in ((sample, line), (mirrored, reflected)):
            ego_from_bev = clip.ego_from_bev if clip.ego_from_bev is not None else frame.ego_from_bev
            lidar = np.linalg.inv(ego_from_bev) @ np.c_[points.numpy(), np.ones(len(points))].T
            uvd = clip.image_from_bev[0, 0] @ lidar
            u = uvd[0] / uvd[2]
            if clip is sample:
                before = u
        seen = uvd[2] > 1
        np.testing.assert_allclose(u[seen], width - before[seen], atol=0.05)


def test_augmentations_that_labels_do_not_follow_are_refused(frames):
    with pytest.raises(ConfigError, match=r"occupancy and lanes labels do not follow bda and image\.flip"):
        dataset(frames, bda={})
    with pytest.raises(ConfigError, match="front_camera 'CAM_TOP' is none of the cameras"):
        dataset(frames, front_camera="CAM_TOP")
