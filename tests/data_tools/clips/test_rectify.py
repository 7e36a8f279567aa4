"""Virtual cameras: re-projected images are what a pinhole or a cylinder at that place would have taken."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drivestack.core.errors import ConfigError
from drivestack.core.frames import Annotations, CameraView, Frame
from drivestack.core.labels import LaneLabels
from drivestack.data_tools.clips import rectify
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.rectify import LensHandling, moved_boxes, rectified
from drivestack.data_tools.clips.transforms import ImageSettings
from drivestack.data_tools.synthetic import build_world
from drivestack.data_tools.synthetic.sensing.observe import take_picture
from drivestack.data_tools.synthetic.sensing.renderer import RayCaster
from drivestack.data_tools.synthetic.sensing.sensors import RigCamera, camera_rig
from drivestack.geometry import CameraModel, kannala_brandt
from drivestack.geometry.lenses import pinhole_row, project_rows
from drivestack.lane_topology.front_image import boxes_on_disk

MODES: list[tuple[LensHandling, float | None]] = [
    ("undistort", None), ("pinhole", None), ("pinhole", 70.0), ("cylinder", None), ("cylinder", 60.0),
]  # fmt: skip


@lru_cache(maxsize=2)
def cameras() -> dict[str, RigCamera]:
    """A fisheye, one with Brown-Conrady distortion and a pinhole."""
    wide, _, narrow, *_ = camera_rig(480, "fisheye")
    return {"fisheye": wide, "brown_conrady": narrow, "none": RigCamera("P", wide.camera.pinhole, wide.ego_from_camera)}


def pictures(*models: CameraModel, pose: np.ndarray) -> list[np.ndarray]:
    """What cameras at one place take of the synthetic world, without the same noise."""
    world = build_world(3, "val", 0, 2)
    caster, at = RayCaster(world.mesh_at(0.0)), world.global_from_ego(0.0)
    rigs = [RigCamera("C", model, pose) for model in models]
    return [take_picture(caster, c, at, world.light, np.random.default_rng(k)).image for k, c in enumerate(rigs)]


@pytest.mark.parametrize(("lens", "fov_deg"), MODES)
@pytest.mark.parametrize("name", ["fisheye", "brown_conrady"])
def test_a_re_projected_image_is_the_one_of_the_virtual_camera(
    name: str, lens: LensHandling, fov_deg: float | None
) -> None:
    camera = cameras()[name]
    found = rectified(camera.camera, lens, fov_deg)
    assert found is not None
    real, expected = pictures(camera.camera, found.camera, pose=camera.ego_from_camera)
    image = found.image(real)
    assert image.shape == expected.shape == (found.camera.height_px, found.camera.width_px, 3)
    uv, _ = camera.camera.project(found.camera.rays())
    with np.errstate(invalid="ignore"):
        seen = ((uv > 0) & (uv < np.subtract(real.shape[1::-1], 1))).all(-1)
        beside = ~((uv > -1) & (uv < real.shape[1::-1])).all(-1)
    assert (image[beside] == 0).all() and seen.mean() > 0.7
    alike = lambda shift, axis: (
        np.abs(np.roll(image, shift, axis)[seen].astype(int) - expected[seen]).max(-1) <= 12
    ).mean()
    # textures and edges are sampled at other places, and both have noise of 1.8; one pixel aside is noticed
    assert alike(0, 0) > 0.92
    assert alike(0, 0) > max(alike(shift, axis) for shift in (-1, 1) for axis in (0, 1))


@pytest.mark.parametrize(("lens", "fov_deg"), MODES)
def test_virtual_cameras_hold_the_field_of_view_and_points_agree(lens: LensHandling, fov_deg: float | None) -> None:
    camera = cameras()["fisheye"].camera
    found = rectified(camera, lens, fov_deg)
    assert found is not None and found.camera.width_px == camera.width_px
    left, right = found.camera.unproject([[0, found.camera.intrinsics[1, 2]], [480, found.camera.intrinsics[1, 2]]])
    across = np.rad2deg(np.arctan2(right[0], right[2]) - np.arctan2(left[0], left[2]))
    if lens == "undistort":
        assert found.camera.lens is None and np.array_equal(found.camera.intrinsics, camera.intrinsics)
    else:
        assert across == pytest.approx(fov_deg or 122, abs=1.5)
    points = np.array([[0.2, -0.1, 1.0], [-0.3, 0.2, 1.0]])
    whole, parts = found.tables
    uv = found.camera.project(points)[0]
    for (u, v), point in zip(np.round(uv).astype(int), np.round(uv)):
        at = whole[v, u] + np.array([parts[v, u] % 32, parts[v, u] // 32]) / 32
        assert np.abs(at - camera.project(found.camera.unproject(point))[0]).max() < 0.03


def test_what_stays_as_it_is() -> None:
    pinhole, wide = cameras()["none"].camera, cameras()["fisheye"].camera
    assert rectified(wide, "keep") is None
    assert rectified(pinhole, "undistort") is None and rectified(pinhole, "pinhole", 40.0) is None
    turned = rectified(pinhole, "cylinder")
    assert turned is not None and turned.camera.lens is not None and turned.camera.lens.kind == "cylinder"


def test_fields_of_view_that_no_pinhole_holds_are_refused() -> None:
    k = np.array([[100.0, 0, 160], [0, 100, 120], [0, 0, 1]])
    round_view = kannala_brandt(k, 320, 240, (0, 0, 0, 0))
    with pytest.raises(ConfigError, match=r"cannot show 183 degrees; set the image's fov_deg to at most 150"):
        rectified(round_view, "pinhole")
    made = rectified(round_view, "pinhole", 120.0)
    assert made is not None and made.camera.intrinsics[0, 0] == pytest.approx(160 / np.tan(np.deg2rad(60)))
    for settings in ({"lens": "banana"}, {"fov_deg": 90.0}, {"lens": "pinhole", "fov_deg": 170.0}):
        with pytest.raises(ConfigError, match=r"image (lens|fov_deg)"):
            ImageSettings(**settings)


def test_tables_are_made_once_for_a_camera_and_not_kept_for_ever() -> None:
    camera = cameras()["fisheye"].camera.resized(64, 36)
    first, again = rectified(camera, "cylinder"), rectified(replace(camera), "cylinder")
    assert first is not None and again is not None and first.tables[0] is again.tables[0]
    for width_px in range(40, 64):
        other = rectified(camera.resized(width_px, 36), "cylinder")
        assert other is not None and other.tables[0].shape[1] == width_px
    assert rectify._tables.cache_info().currsize <= 16


def test_2d_boxes_move_with_the_image_and_back() -> None:
    camera = cameras()["fisheye"].camera
    for lens, fov_deg in MODES:
        found = rectified(camera, lens, fov_deg)
        assert found is not None
        boxes = np.array([[200.0, 100, 240, 160], [300, 130, 330, 150]])
        moved = found.boxes(boxes)
        back = moved_boxes(moved, found.camera, camera)
        assert (back[:, :2] <= boxes[:, :2] + 1e-6).all() and (back[:, 2:] >= boxes[:, 2:] - 1e-6).all()
        assert np.abs(back - boxes).max() < 6  # boxes around curves grow a little
        centres, _ = found.camera.project(camera.unproject((boxes[:, :2] + boxes[:, 2:]) / 2))
        assert ((moved[:, :2] < centres) & (centres < moved[:, 2:])).all()
    round_view = kannala_brandt(camera.intrinsics, 480, 270, (0, 0, 0, 0))
    unseen = CameraModel(camera.intrinsics, 480, 270)
    far_left = round_view.project([[-5.0, 0, -1], [-5, 1, -1]])[0]
    assert np.isnan(moved_boxes([[*far_left[0], *far_left[1]]], round_view, unseen)).all()


# -------------------------------------------------------------------------------------------------------- in clips


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Frame:
    """A fisheye and a Brown-Conrady camera with images in files, and traffic elements in the fisheye."""
    folder, views = tmp_path_factory.mktemp("images"), []
    own = [cameras()["fisheye"], cameras()["brown_conrady"]]
    for camera in own:
        (picture,) = pictures(camera.camera, pose=camera.ego_from_camera)
        path = folder / f"{camera.name}.png"
        Image.fromarray(picture).save(path)
        views.append(CameraView(camera.name, camera.camera, camera.ego_from_camera, np.eye(4), 0, str(path)))
    line = np.linspace([1.0, 0, 0], [20.0, 0, 0], 201, dtype=np.float32)
    lanes = LaneLabels(
        centrelines=[line],
        is_connector=np.zeros(1, bool),
        elements_xyxy_px=np.array([[200.0, 100, 240, 140], [2, 2, 14, 14]], np.float32),
        attributes=np.array([1, 2]),
        lane_lane=np.zeros((1, 1), np.int8),
        lane_element=np.ones((1, 2), np.int8),
    )
    return Frame("t", "s", "s", 0, tuple(views), np.eye(4), lanes=lanes)


def clip_of(frame: Frame, **image: object) -> ClipDataset:
    settings = {"crop": (0.0, 0.0, 1.0, 1.0), "test_height_px": 135, "resample": "area", **image}
    return ClipDataset(classes=["car"], frames=[frame], image=settings, lanes=True)


@pytest.mark.parametrize(("lens", "fov_deg"), [("keep", None), *MODES])
def test_clips_state_the_camera_of_the_image_that_they_hold(
    frame: Frame, lens: LensHandling, fov_deg: float | None
) -> None:
    data = clip_of(frame, lens=lens, fov_deg=fov_deg)
    clip = data[0]
    batch = collate_clips([clip])
    assert (batch.lenses is None) == (lens in ("undistort", "pinhole"))
    for n, (view, name) in enumerate(zip(frame.cameras, data.camera_names)):
        assert view.name == name
        found = rectified(view.camera, lens, fov_deg)
        model = view.camera if found is None else found.camera
        image = clip.images[0][n]
        assert image is not None and image.shape[1] == 135
        assert image.shape[2] == model.width_px * 135 // model.height_px
        expected = model.resized(image.shape[2], 135)
        np.testing.assert_allclose(clip.intrinsics[n], expected.intrinsics, rtol=1e-5)
        if clip.lenses is not None:
            np.testing.assert_allclose(clip.lenses[0, n], expected.row, rtol=1e-5)
    targets = clip.lanes
    assert targets is not None and targets.front_camera == 0
    corner_is_seen = lens == "keep"
    assert len(targets.attributes) == 1 + corner_is_seen and targets.lane_element.shape == (1, 1 + corner_is_seen)
    on_disk = boxes_on_disk(targets.elements_xyxy_px, batch, 0, 0)
    assert torch.abs(on_disk[0] - torch.tensor([200.0, 100, 240, 140])).max() < 4


@pytest.mark.parametrize(("lens", "fov_deg"), [("keep", None), *MODES])
def test_targets_of_single_images_are_those_of_the_virtual_camera(
    frame: Frame, lens: LensHandling, fov_deg: float | None
) -> None:
    labels = Annotations.of_boxes(["car", "car"], [[9.0, 1.0, 0.8], [12.0, -2.0, 0.8]], [[4.0, 2, 1.6]] * 2, [0.3, 0.0])
    labelled = replace(frame, annotations=labels)
    image = {"crop": (0.0, 0.0, 1.0, 1.0), "test_height_px": 135, "resample": "area", "lens": lens, "fov_deg": fov_deg}
    clip = ClipDataset(classes=["car"], frames=[labelled], image=image, mono=True)[0]
    assert clip.mono is not None
    targets = clip.mono[0]
    assert targets is not None and len(targets.labels) == 2
    rows = pinhole_row(clip.intrinsics[0]) if clip.lenses is None else clip.lenses[0, 0]
    centres = targets.boxes3d_camera[:, 4:7].double()
    uv, seen = project_rows(centres, torch.from_numpy(np.asarray(rows, np.float64)).expand(2, -1))
    low, high = targets.boxes_xyxy_px[:, :2], targets.boxes_xyxy_px[:, 2:]
    assert seen.all() and ((low < uv) & (uv < high)).all()


def test_cached_images_are_re_projected_too(frame: Frame) -> None:
    plain = clip_of(frame, lens="cylinder")[0]
    data = ClipDataset(
        classes=["car"],
        frames=[frame],
        image={"crop": (0.0, 0.0, 1.0, 1.0), "test_height_px": 135, "resample": "area", "lens": "cylinder"},
        cache_images=True,
    )
    for _ in range(2):
        for image, cached in zip(plain.images[0] or (), data[0].images[0] or ()):
            np.testing.assert_array_equal(image, cached)


def test_real_images_of_another_size_are_still_refused(frame: Frame, tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.new("RGB", (100, 50)).save(path)
    wrong = replace(frame, cameras=(replace(frame.cameras[0], image_path=str(path)),))
    with pytest.raises(Exception, match="image is 100x50 pixels but its calibration is for 480x270"):
        clip_of(wrong, lens="cylinder")[0]
