"""Augmentations agree with upstream's, given upstream's draws; and what they should leave alone, they leave alone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.errors import ConfigError
from drivestack.data_tools.clips.transforms import (
    BdaDraw,
    BdaSettings,
    ImageDraw,
    ImagePlacement,
    ImageSettings,
    PhotometricDraw,
    PhotometricSettings,
    augment_image,
    distort,
    normalise,
    resize_image,
)
from drivestack.geometry import CameraModel, box_corners, boxes_from_legacy, wrap_angle

CROP = (0.0, 26 / 90, 1.0, 1.0)
HEIGHTS = (51, 54, 58, 61, 64, 67, 70, 74, 77)


@pytest.fixture(scope="module")
def ida(reference_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference_dir / "data" / "ida_aug.npz"))


def upstream_image_draw(seed: int, training: bool) -> ImageDraw:
    """Upstream's order: height from Python's generator, flip from NumPy's global one."""
    if not training:
        return ImageDraw(64)
    random.seed(seed)
    np.random.seed(seed)
    height = random.choice(HEIGHTS)
    return ImageDraw(height, bool(np.random.choice([0, 1])))


@pytest.mark.parametrize("row", range(6))
def test_image_augmentation_agrees_with_upstream(ida, row):
    get = lambda name: ida[f"out.rows.{row}.{name}"]
    draw = upstream_image_draw(int(get("seed")), bool(get("training")))
    assert draw.flip == get("flip")
    assert draw.height_px / 64 == pytest.approx(float(get("resize")))
    camera = CameraModel(ida["in.cam2img"][0, :3, :3], 160, 90)
    placement = ImagePlacement.of(camera, CROP, draw.height_px)
    assert [placement.width_px, placement.height_px] == get("resize_dims").tolist()
    corner = [placement.left_px, placement.top_px]
    assert corner + [placement.crop_width_px, placement.top_px + placement.crop_height_px] == get("crop").tolist()

    image = resize_image(placement.crop(ida["in.img.0"]), placement.width_px, placement.height_px, "bicubic")
    np.testing.assert_array_equal(image[:, ::-1] if draw.flip else image, get("img0"))

    settings = ImageSettings(crop=CROP)
    network_input = augment_image(ida["in.img.0"], placement, settings, draw.flip)
    assert network_input.shape == (3, placement.height_px, placement.width_px)
    width = placement.width_px
    np.testing.assert_allclose(network_input[:, 5].T, get("padded0_row5")[:width], atol=1e-5)
    assert not get("padded0_row5")[width:].any()

    # Upstream scales the matrices by the height's ratio also along u, although it rounds the width down; ours follow
    # the pixels. Equal where nothing is rounded (all published sizes), else less than a pixel apart.
    exact = 160 * draw.height_px % 64 == 0
    tolerance = 1e-6 if exact else 1.0
    for n in range(3):
        camera = CameraModel(ida["in.cam2img"][n, :3, :3], 160, 90)
        moved = placement.camera(camera).intrinsics
        np.testing.assert_allclose(moved, get("cam2img")[n, :3, :3], atol=tolerance)
        np.testing.assert_allclose(moved[1], get("cam2img")[n, 1, :3], atol=1e-6)
        image_from_bev = placement.camera(camera).image_from_camera @ ida["in.lidar2cam"][n]
        if exact:
            np.testing.assert_allclose(image_from_bev, get("lidar2img")[n], atol=1e-6)
    boxes = placement.boxes(ida["in.mono_boxes"])
    np.testing.assert_allclose(boxes, get("mono_boxes")[0], atol=1e-4 if exact else 1.0)


def test_the_default_crop_and_heights_are_those_of_the_release():
    camera = CameraModel(np.diag([1266.0, 1266, 1]), 1600, 900)
    for height in range(512, 769, 32):
        placement = ImagePlacement.of(camera, ImageSettings().crop, height)
        assert (placement.top_px, placement.crop_height_px, placement.width_px) == (260, 640, height * 5 // 2)
        assert placement.scale_xy[0] == pytest.approx(placement.scale_xy[1])


def test_a_point_keeps_its_pixel_through_crop_and_resize():
    camera = CameraModel(np.array([[500.0, 0, 300], [0, 480, 200], [0, 0, 1]]), 640, 400)
    placement = ImagePlacement.of(camera, (0.1, 0.25, 0.9, 1.0), 150)
    point = np.array([1.0, 0.4, 8.0])
    uv, _ = camera.project(point)
    expected = (uv - [placement.left_px, placement.top_px]) * placement.scale_xy
    np.testing.assert_allclose(placement.camera(camera).project(point)[0], expected)


def upstream_photometric_draw(settings: PhotometricSettings) -> PhotometricDraw:
    """The order in which upstream draws from NumPy's global generator."""
    rng = np.random
    brightness = rng.uniform(-settings.brightness, settings.brightness) if rng.randint(2) else None
    contrast_first = rng.randint(2) == 1
    contrast = None
    if contrast_first and rng.randint(2):
        contrast = rng.uniform(*settings.contrast)
    saturation = rng.uniform(*settings.saturation) if rng.randint(2) else None
    hue = rng.uniform(-settings.hue_deg, settings.hue_deg) if rng.randint(2) else None
    if not contrast_first and rng.randint(2):
        contrast = rng.uniform(*settings.contrast)
    order = tuple(rng.permutation(3)) if rng.randint(2) else None
    return PhotometricDraw(brightness, contrast_first, contrast, saturation, hue, order)


@pytest.mark.parametrize("row", range(4))
def test_photometric_jitter_agrees_with_upstream(reference_dir, row):
    data = np.load(reference_dir / "data" / "photometric.npz")
    np.random.seed(int(data[f"out.rows.{row}.seed"]))
    for image, expected in zip(data["in.img"], data[f"out.rows.{row}.img"]):
        ours = distort(image, upstream_photometric_draw(PhotometricSettings()))
        np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_jitter_beyond_the_range_of_bytes_is_clipped_where_upstream_wraps_round():
    bright = np.full((8, 16, 3), 250, np.uint8)
    placement = ImagePlacement(0, 0, 16, 8, 16, 8)
    draw = PhotometricDraw(brightness=20.0)
    ours = augment_image(bright, placement, ImageSettings(crop=(0, 0, 1, 1)), photometric=draw)
    white = normalise(np.full((8, 16, 3), 255, np.uint8), ImageSettings())
    np.testing.assert_allclose(ours, white)
    with np.errstate(invalid="ignore"):
        upstream = distort(bright, draw).astype(np.int64).astype(np.uint8)  # what np.uint8() does to 270
    assert upstream.max() < 20


@pytest.mark.parametrize("resample", ["bicubic", "area", "bilinear"])
def test_every_resampling_gives_almost_the_same_image(resample):
    y, x = np.mgrid[:90, :160]
    image = np.stack([x, y * 2, 255 - x], -1).astype(np.uint8)  # smooth
    placement = ImagePlacement.of(CameraModel(np.eye(3), 160, 90), CROP, 32)
    settings = ImageSettings(crop=CROP, resample=resample, mean=(0, 0, 0))
    reference = augment_image(image, placement, ImageSettings(crop=CROP, mean=(0, 0, 0)))
    np.testing.assert_allclose(augment_image(image, placement, settings), reference, atol=2)


def test_rgb_input_is_the_bgr_input_turned_round():
    image = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    mean, std = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    rgb = normalise(image, ImageSettings(mean=mean, std=std, channels="rgb"))
    bgr = normalise(image, ImageSettings(mean=mean[::-1], std=std[::-1]))
    np.testing.assert_array_equal(rgb, bgr[::-1])
    assert rgb[0, 0, 0] == pytest.approx((image[0, 0, 2] - 1.0) / 4.0)


def test_random_scale_of_v1_agrees_with_upstream(reference_dir, ida):
    data = np.load(reference_dir / "data" / "v1_random_scale.npz")
    y, x = np.mgrid[:90, :160].astype(np.float32)
    ramps = np.stack([1.5 * x, 2.5 * y, 0.8 * (x + y)], -1)  # the entry's float input; ida_aug has it truncated
    assert (np.abs(ramps - ida["in.img.0"]) < 1.001).all()
    image = resize_image(ramps, 80, 45, "bilinear")
    assert list(image.shape) == data["out.img_shape"].tolist()
    np.testing.assert_allclose(image, data["out.img0"], atol=1e-4)
    placement = ImagePlacement.of(CameraModel(np.eye(3), 160, 90), (0, 0, 1, 1), 45)
    for before, after in zip(data["in.lidar2img"], data["out.lidar2img"]):
        scaled = np.diag([*placement.scale_xy, 1, 1]) @ before
        np.testing.assert_allclose(scaled, after, atol=1e-9)


@pytest.mark.parametrize("row", range(6))
def test_bev_augmentation_agrees_with_upstream(reference_dir, row):
    data = np.load(reference_dir / "data" / "bda_params.npz")
    get = lambda name: data[f"out.rows.{row}.{name}"]
    np.random.seed(int(get("np_seed")))
    settings = BdaSettings()
    draw = BdaDraw(
        np.deg2rad(np.random.uniform(*settings.rotation_deg)),
        np.random.uniform(*settings.scale),
        np.random.uniform() < settings.flip_x,
        np.random.uniform() < settings.flip_y,
    )
    assert draw.rotation_rad == pytest.approx(float(get("rot_angle")))
    assert (draw.flip_x, draw.flip_y) == (get("flip_dx"), get("flip_dy"))
    np.testing.assert_allclose(np.linalg.inv(draw.matrix), get("bda_inv"), atol=1e-6)
    boxes = draw.boxes(boxes_from_legacy(get("boxes_in").astype(np.float64)))
    expected = boxes_from_legacy(get("boxes_out").astype(np.float64))
    difference = boxes - expected
    difference[:, 6] = wrap_angle(difference[:, 6])
    np.testing.assert_allclose(difference, 0, atol=2e-5)


def test_bev_augmentation_moves_every_corner_by_its_matrix():
    rng = np.random.default_rng(3)
    boxes = rng.normal(size=(5, 9)) * 10
    boxes[:, 3:6] = rng.uniform(1, 5, (5, 3))
    for seed in range(8):
        draw = BdaSettings().draw(np.random.default_rng(seed))
        moved = box_corners(boxes) @ draw.matrix.T
        ours = box_corners(draw.boxes(boxes))
        # A flip turns the corner order round: compare as sets.
        for a, b in zip(moved, ours):
            assert np.linalg.norm(a[:, None] - b[None], axis=-1).min(1).max() < 1e-9
    np.testing.assert_array_equal(BdaDraw().matrix, np.eye(3))


@pytest.mark.parametrize(
    "wrong",
    [{"crop": (0, 0.5, 1, 0.4)}, {"crop": (0, 26, 160, 90)}, {"train_heights_px": ()}, {"resample": "nearest"}],
)
def test_impossible_image_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        ImageSettings(**wrong)
