"""The synthetic world through lenses: pixels lie where the camera projects what they show, and so do the labels."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

import drivestack
from drivestack.data_tools.labels.mono_targets import nearness_m
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.synthetic import build_world, synthesize
from drivestack.data_tools.synthetic.labels.lanes import label_lanes
from drivestack.data_tools.synthetic.labels.segments import IGNORE, segment_classes
from drivestack.data_tools.synthetic.labels.visible import visible_objects
from drivestack.data_tools.synthetic.labels.voxels import label_voxels
from drivestack.data_tools.synthetic.sensing.observe import UNSEEN, Observation, observe, take_picture
from drivestack.data_tools.synthetic.sensing.renderer import RayCaster
from drivestack.data_tools.synthetic.sensing.sensors import RigCamera, camera_rig
from drivestack.data_tools.synthetic.world.world import World
from drivestack.geometry import OCC3D_GRID, CameraModel, invert_pose, kannala_brandt, transform_points

SEED, WIDTH_PX = 3, 320
_SAMPLES, _CLOSE_M = 240, 15.0  # far and thin things lie between the pixels
LENSES = ("distorted", "fisheye")


@lru_cache(maxsize=1)
def world() -> World:
    return build_world(SEED, "val", 0, 2)


@lru_cache(maxsize=4)
def seen_by(rig: str) -> tuple[tuple[RigCamera, ...], Observation]:
    if rig == "all round":
        cameras = (all_round(),)
    else:
        cameras = camera_rig(WIDTH_PX, rig)
    return cameras, observe(world(), 0.0, cameras, [0])


def all_round() -> RigCamera:
    """A fisheye of 200 degrees whose circle ends inside its image."""
    front = camera_rig(WIDTH_PX)[0]
    k = np.array([[120.0, 0, 280], [0, 120, 240], [0, 0, 1]])
    lens = kannala_brandt(k, 560, 480, (0.01, 0, 0, 0)).lens
    assert lens is not None
    camera = CameraModel(k, 560, 480, type(lens)(lens.kind, lens.coefficients, np.deg2rad(100)))
    return RigCamera("CAM_ROUND", camera, front.ego_from_camera)


def surface_points(camera: RigCamera, caster: RayCaster) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 3] of the camera frame on objects that a line from its eye meets first, and whose they are."""
    points, owner = [], []
    for thing in world().objects:
        centre, yaw, _ = thing.motion.poses(np.array([0.0]))
        placed = thing.mesh.moved(*centre[0], 0.0, yaw[0])
        points.append(placed.sample_points(_SAMPLES, np.random.default_rng(thing.instance)))
        owner.append(np.full(_SAMPLES, thing.instance))
    at, instance = np.concatenate(points), np.concatenate(owner)
    world_from_camera = world().global_from_ego(0.0) @ camera.ego_from_camera
    away = at - world_from_camera[:3, 3]
    distance = np.linalg.norm(away, axis=1)
    hits = caster.first_hits(world_from_camera[:3, 3], (away / distance[:, None]).astype(np.float32))
    met = caster.mesh.instance[np.maximum(hits.face, 0)]
    visible = (distance < _CLOSE_M) & (hits.face >= 0) & (met == instance) & (np.abs(hits.distance_m - distance) < 0.05)
    return transform_points(invert_pose(world_from_camera), at[visible]), instance[visible]


def matches(camera: CameraModel, points: np.ndarray, owner: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Of points inside the image: whether one of the nine pixels around their projection shows their object."""
    uv, _ = camera.project(points)
    with np.errstate(invalid="ignore"):
        inside = ((uv >= 0) & (uv <= [camera.width_px - 1, camera.height_px - 1])).all(1)
    column, row = np.round(uv[inside]).astype(int).T
    found = np.zeros(len(column), bool)
    for instance in np.unique(owner[inside]):
        own = owner[inside] == instance
        found[own] = maximum_filter(picture == instance, 3)[row[own], column[own]]
    return found


@pytest.mark.parametrize("rig", [*LENSES, "all round"])
def test_points_of_objects_are_rendered_where_the_camera_projects_them(rig: str) -> None:
    cameras, seen = seen_by(rig)
    right, wrong = [], []
    for camera, picture in zip(cameras, seen.pictures):
        points, owner = surface_points(camera, seen.caster)
        right.append(matches(camera.camera, points, owner, picture.instance))
        wrong.append(matches(camera.camera.pinhole, points, owner, picture.instance))
    assert len(np.concatenate(right)) > 200 and np.concatenate(right).mean() > 0.99
    assert np.concatenate(wrong).mean() < np.concatenate(right).mean() - 0.03  # the test would notice


def test_pixels_without_a_line_of_sight_are_black_and_show_nothing() -> None:
    (camera,), seen = seen_by("all round")
    (picture,) = seen.pictures
    blind = np.isnan(camera.rays[..., 0])
    assert 0.2 < blind.mean() < 0.8
    assert (picture.image[blind] == 0).all() and (picture.image[~blind].max(1) > 0).mean() > 0.99
    assert (picture.instance[blind] == 0).all() and (picture.semantic[blind] == UNSEEN).all()
    assert np.isinf(picture.depth_m[blind]).all() and (segment_classes(picture)[blind] == IGNORE).all()
    assert (segment_classes(picture)[~blind] != IGNORE).mean() > 0.5
    behind = (camera.rays[..., 2] < -0.05) & ~blind
    assert behind.any() and (picture.depth_m[behind & np.isfinite(picture.depth_m)] < 0).all()


@pytest.mark.parametrize("rig", [*LENSES, "all round"])
def test_projected_boxes_enclose_the_pixels(rig: str) -> None:
    cameras, seen = seen_by(rig)
    compared = inner = 0
    for camera, picture in zip(cameras, seen.pictures):
        for v in visible_objects(world(), 0.0, picture, camera, world().global_from_ego(0.0)):
            left, top, right, bottom = v.whole_xyxy_px
            assert left <= v.box_xyxy_px[0] and v.box_xyxy_px[2] <= right
            assert top <= v.box_xyxy_px[1] and v.box_xyxy_px[3] <= bottom
            if v.projected_xyxy_px is None:
                continue
            low, high = v.projected_xyxy_px[:2], v.projected_xyxy_px[2:]
            assert (low - 1 <= v.box_xyxy_px[:2]).all() and (np.array(v.box_xyxy_px[2:]) - 1 <= high + 1).all()
            compared += 1
            inner += v.visible_share == 1 and v.inside_share == 1 and right - left > 8
    assert compared > 10 and (inner or rig == "all round")


def test_an_object_alone_has_all_its_pixels_whatever_window_is_cast() -> None:
    cameras, seen = seen_by("fisheye")
    for camera, picture in zip(cameras[:2], seen.pictures):
        for v in visible_objects(world(), 0.0, picture, camera, world().global_from_ego(0.0))[:6]:
            centre, yaw, _ = v.thing.motion.poses(np.array([0.0]))
            alone = RayCaster(v.thing.mesh.moved(*centre[0], 0.0, yaw[0]))
            light = world().light
            shown = take_picture(alone, camera, world().global_from_ego(0.0), light, np.random.default_rng(0))
            rows, columns = np.nonzero(np.isfinite(shown.depth_m))
            box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert box == v.whole_xyxy_px
            assert v.visible_share == pytest.approx((picture.instance == v.thing.instance).sum() / len(rows))


def test_voxels_that_a_camera_sees_lie_in_its_sight() -> None:
    cameras, seen = seen_by("all round")
    labels = label_voxels(seen, world().global_from_ego(0.0), cameras, np.zeros((0, 3)))
    assert labels.mask_camera is not None
    centres = OCC3D_GRID.centres_of(np.argwhere(labels.mask_camera))
    points = transform_points(invert_pose(cameras[0].ego_from_camera), centres)
    angle = np.arctan2(np.hypot(points[:, 0], points[:, 1]), points[:, 2])
    assert len(centres) > 10_000 and np.isfinite(angle).all()
    far = np.linalg.norm(points, axis=1) > 4  # a near voxel's centre may lie outside while its edge is seen
    assert np.rad2deg(angle[far]).max() < 104 and (points[far, 2] < -0.5).any()


def test_elements_of_the_front_fisheye_lie_in_its_image() -> None:
    cameras = camera_rig(1600, "fisheye")
    place = world().global_from_ego(0.0)
    labels = label_lanes(world().layout, RayCaster(world().mesh_at(0.0)), place, cameras[0])
    assert np.isfinite(labels.elements_xyxy_px).all()
    assert (labels.elements_xyxy_px >= 0).all() and (labels.elements_xyxy_px[:, 2:] <= [1600, 900]).all()


def test_nearness_is_depth_up_to_90_degrees_and_distance_beyond() -> None:
    points = np.array([[3.0, 0.0, 4.0], [3.0, 0.0, -4.0]])
    narrow, wide = camera_rig(64, "distorted")[0].camera, all_round().camera
    assert nearness_m(points, narrow).tolist() == nearness_m(points, narrow.pinhole).tolist() == [4, -4]
    assert nearness_m(points, wide).tolist() == [5, 5]


@pytest.fixture(scope="module", params=LENSES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("lenses") / request.param
    labels = ["coco", "mono", "nuimages"]
    return request.param, synthesize(
        folder, "val", 1, 1, seed=SEED, image_width_px=160, rig=request.param, labels=labels, workers=1, progress=False
    )


def test_lenses_come_back_from_every_table(written: tuple[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    rig, root = written
    expected = {camera.name: camera.camera for camera in camera_rig(160, rig)}
    (frame,) = read_nuscenes(root, "v1.0-trainval", "val")
    single = drivestack.read(str(root), reader="camera_images", split="val")
    assert not caplog.records
    assert [view.name for view in frame.cameras] == sorted(expected, key=[v.name for v in frame.cameras].index)
    for view, alone in zip(frame.cameras, sorted(single, key=lambda f: [*expected].index(camera_name(f)))):
        ours = [expected[view.name].row, expected[camera_name(alone)].row]
        np.testing.assert_array_equal([view.camera.row, alone.cameras[0].camera.row], ours)
    table = json.loads((root / "v1.0-val/calibrated_sensor.json").read_text())
    assert all(any(row["camera_distortion"]) for row in table if row["camera_intrinsic"])
    ignored = read_nuscenes(root, "v1.0-trainval", "val", lens="ignored")[0]
    assert all(view.camera.lens is None for view in ignored.cameras)
    assert "lens distortion is left out" in caplog.text and "lens=ignored" in caplog.text


def camera_name(frame: drivestack.Frame) -> str:
    return Path(frame.cameras[0].image_path).name.split("__")[1]
