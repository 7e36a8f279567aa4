"""Augmentations of a clip, each split into drawing its parameters and applying them.

* image (IDA): crop, resize, mirror; one draw for all cameras and frames of a clip;
* photometric: brightness, contrast, saturation, hue, channel order; one draw per image;
* BEV (BDA): rotation, scale and flips of the boxes; the model warps its BEV map by the same matrix.

Source: BEVFormer v2 (arXiv 2211.10439) and its release; parameters and order are upstream's. One thing differs:
the photometric result is clipped to 0..255 (docs/quirks.md#photometric-wrap-around).

Shapes: H, W image; n boxes. Images are BGR until ``normalise``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.errors import ConfigError
from ...geometry import CameraModel, rotation_z
from .rectify import MAX_PINHOLE_DEG, LensHandling, Rectified, rectified

Resample = Literal["bicubic", "area", "bilinear"]


@dataclass(frozen=True)
class ImageSettings:
    """How camera images become network input."""

    crop: tuple[float, float, float, float] = (0.0, 260 / 900, 1.0, 1.0)
    """Left, top, right, bottom as fractions of the image; the default drops the sky (upstream: 260 of 900 rows)."""
    crops: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    """Crops of single cameras by name, instead of ``crop``."""
    train_heights_px: tuple[int, ...] = (640,)
    """Heights of the cropped image in training, one is drawn per clip."""
    test_height_px: int = 640
    aspect: float | None = None
    """Width by height of every network input: a portrait image beside landscape ones is stretched to theirs (as in
    OpenLane-V2's baselines). None: each crop keeps its own, and a batch pads the narrower ones."""
    flip: bool = False
    """Mirror the images of a clip in training with probability one half."""
    mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: Literal["bgr", "rgb"] = "bgr"
    """Channel order of the network input, and of ``mean`` and ``std``."""
    lens: LensHandling = "keep"
    """What becomes of images of cameras with a lens (rectify.py): the model projects through it, or they are
    re-projected to a virtual camera: 'undistort', 'pinhole', 'cylinder' (then also those of pinholes)."""
    fov_deg: float | None = None
    """Largest horizontal field of view of a virtual 'pinhole' or 'cylinder'; None: as wide as the camera sees."""
    resample: Resample = "bicubic"
    """'bicubic': Pillow, on uint8 (BEVFormer v2). 'bilinear': OpenCV, on float (BEVFormer v1). 'area': OpenCV on
    uint8, photometric jitter after it instead of before: several times faster."""

    def __post_init__(self) -> None:
        for crop in (self.crop, *self.crops.values()):
            left, top, right, bottom = crop
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ConfigError(f"image crop must be fractions left < right, top < bottom within 0..1, got {crop}")
        if self.aspect is not None and self.aspect <= 0:
            raise ConfigError(f"image aspect is width by height, above 0, or None; got {self.aspect}")
        if min(self.train_heights_px, default=0) < 1 or self.test_height_px < 1:
            raise ConfigError(f"image heights must be positive: {self.train_heights_px}, {self.test_height_px}")
        if self.lens not in get_args(LensHandling):
            raise ConfigError(f"image lens {self.lens!r}: choose from {', '.join(get_args(LensHandling))}")
        if self.fov_deg is not None:
            most = {"pinhole": MAX_PINHOLE_DEG, "cylinder": 360.0}.get(self.lens)
            if most is None or not 0 < self.fov_deg <= most:
                raise ConfigError(
                    f"image fov_deg {self.fov_deg} with lens {self.lens!r}: degrees up to {MAX_PINHOLE_DEG:.0f} for "
                    "'pinhole', up to 360 for 'cylinder', None for the others"
                )
        if self.resample not in ("bicubic", "area", "bilinear") or self.channels not in ("bgr", "rgb"):
            raise ConfigError(f"unknown resample {self.resample!r} or channels {self.channels!r}")

    def draw(self, rng: np.random.Generator) -> ImageDraw:
        height_px = int(self.train_heights_px[rng.integers(len(self.train_heights_px))])
        return ImageDraw(height_px, bool(rng.integers(2)) if self.flip else False)

    @property
    def test_draw(self) -> ImageDraw:
        return ImageDraw(self.test_height_px, False)

    def rectified(self, camera: CameraModel) -> Rectified | None:
        """The virtual camera that replaces this one; None where the image stays as it is."""
        return rectified(camera, self.lens, self.fov_deg)

    def placement(self, camera_name: str, camera: CameraModel, height_px: int) -> ImagePlacement:
        """Where the crop of this camera's image lies (a virtual one's, where ``rectified`` gives it), and its size as
        network input of this height."""
        return ImagePlacement.of(camera, self.crops.get(camera_name, self.crop), height_px, self.aspect)


@dataclass(frozen=True)
class ImageDraw:
    height_px: int
    flip: bool = False


@dataclass(frozen=True)
class ImagePlacement:
    """Where the crop of one camera's image lies and how large it becomes."""

    left_px: int
    top_px: int
    crop_width_px: int
    crop_height_px: int
    width_px: int
    height_px: int

    @classmethod
    def of(
        cls,
        camera: CameraModel,
        crop: tuple[float, float, float, float],
        height_px: int,
        aspect: float | None = None,
    ) -> ImagePlacement:
        """The placement for an image of this camera: of the aspect (width by height), or with that of the crop and the
        width rounded down, as upstream does.
        """
        width, height = camera.width_px, camera.height_px
        left, right = round(crop[0] * width), round(crop[2] * width)
        top, bottom = round(crop[1] * height), round(crop[3] * height)
        if aspect is None:
            scaled_width = (right - left) * height_px // (bottom - top)
        else:
            scaled_width = round(height_px * aspect)
        return cls(left, top, right - left, bottom - top, max(scaled_width, 1), height_px)

    @property
    def scale_xy(self) -> tuple[float, float]:
        return self.width_px / self.crop_width_px, self.height_px / self.crop_height_px

    def camera(self, camera: CameraModel) -> CameraModel:
        """The camera of the cropped and resized (not mirrored) image."""
        window = camera.cropped(self.left_px, self.top_px, self.crop_width_px, self.crop_height_px)
        return window.resized(self.width_px, self.height_px)

    def crop(self, image: NDArray) -> NDArray:
        bottom, right = self.top_px + self.crop_height_px, self.left_px + self.crop_width_px
        return image[self.top_px : bottom, self.left_px : right]

    def boxes(self, boxes_xyxy_px: NDArray[np.floating]) -> NDArray[np.float64]:
        """2D boxes [n, 4] moved into the cropped and resized image and clipped to it."""
        scale = np.array(self.scale_xy * 2)
        moved = (boxes_xyxy_px - [self.left_px, self.top_px] * 2) * scale
        return np.clip(moved, 0, [self.width_px, self.height_px] * 2)


def resize_image(image: NDArray, width_px: int, height_px: int, resample: Resample) -> NDArray:
    """Resized image [height_px, width_px, 3]; 'bicubic' (Pillow) takes uint8 only."""
    if image.shape[:2] == (height_px, width_px):
        return image
    if resample == "bicubic":
        picture = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(picture.resize((width_px, height_px), Image.Resampling.BICUBIC))
    interpolation = cv2.INTER_AREA if resample == "area" else cv2.INTER_LINEAR
    return cv2.resize(image, (width_px, height_px), interpolation=interpolation)


def normalise(image_bgr: NDArray, settings: ImageSettings) -> NDArray[np.float32]:
    """Network input [3, H, W] of a BGR image [H, W, 3] with values 0..255."""
    image = image_bgr[..., ::-1] if settings.channels == "rgb" else image_bgr
    image = (image.astype(np.float32) - np.array(settings.mean, np.float32)) / np.array(settings.std, np.float32)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


@dataclass(frozen=True)
class PhotometricSettings:
    """Colour jitter (SSD, arXiv 1512.02325, in mmdet3d's multi-view form), values 0..255 and hue in degrees."""

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue_deg: float = 18.0

    def draw(self, rng: np.random.Generator) -> PhotometricDraw:
        def maybe(low: float, high: float) -> float | None:
            return float(rng.uniform(low, high)) if rng.integers(2) else None

        return PhotometricDraw(
            brightness=maybe(-self.brightness, self.brightness),
            contrast_first=bool(rng.integers(2)),
            contrast=maybe(*self.contrast),
            saturation=maybe(*self.saturation),
            hue_deg=maybe(-self.hue_deg, self.hue_deg),
            channel_order=tuple(map(int, rng.permutation(3))) if rng.integers(2) else None,
        )


@dataclass(frozen=True)
class PhotometricDraw:
    """None: that step is left out."""

    brightness: float | None = None
    contrast_first: bool = True
    """Contrast before the HSV steps, or after them."""
    contrast: float | None = None
    saturation: float | None = None
    hue_deg: float | None = None
    channel_order: tuple[int, ...] | None = None


def distort(image_bgr: NDArray, draw: PhotometricDraw) -> NDArray[np.float32]:
    """Jittered image [H, W, 3] float32; values may leave 0..255."""
    image = image_bgr.astype(np.float32)
    if draw.brightness is not None:
        image += np.float32(draw.brightness)
    if draw.contrast is not None and draw.contrast_first:
        image *= np.float32(draw.contrast)
    hsv: NDArray[np.float32] = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), np.float32)
    if draw.saturation is not None:
        hsv[..., 1] *= np.float32(draw.saturation)
    if draw.hue_deg is not None:
        hue = hsv[..., 0] + np.float32(draw.hue_deg)
        hue[hue > 360] -= 360
        hue[hue < 0] += 360
        hsv[..., 0] = hue
    image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.float32)
    if draw.contrast is not None and not draw.contrast_first:
        image *= np.float32(draw.contrast)
    return image[..., list(draw.channel_order)] if draw.channel_order is not None else image


def augment_image(
    image: NDArray[np.uint8],
    placement: ImagePlacement,
    settings: ImageSettings,
    flip: bool = False,
    photometric: PhotometricDraw | None = None,
) -> NDArray[np.float32]:
    """Network input [3, height, width] of a decoded BGR image [H, W, 3]: jitter, crop, resize, mirror, normalise."""
    size = placement.width_px, placement.height_px
    if settings.resample == "area":
        image = resize_image(placement.crop(image), *size, "area")
        if photometric is not None:
            image = np.clip(distort(image, photometric), 0, 255)
    else:
        if photometric is not None:
            image = np.clip(distort(image, photometric), 0, 255)
        if settings.resample == "bilinear":
            image = image.astype(np.float32)
        else:
            image = image.astype(np.uint8)
        image = resize_image(placement.crop(image), *size, settings.resample)
    if flip:
        image = image[:, ::-1]
    return normalise(image, settings)


@dataclass(frozen=True)
class BdaSettings:
    """Ranges of the BEV augmentation."""

    rotation_deg: tuple[float, float] = (-22.5, 22.5)
    scale: tuple[float, float] = (0.95, 1.05)
    flip_x: float = 0.5
    """Probability of negating x."""
    flip_y: float = 0.5
    """Probability of negating y."""

    def draw(self, rng: np.random.Generator) -> BdaDraw:
        return BdaDraw(
            rotation_rad=float(np.deg2rad(rng.uniform(*self.rotation_deg))),
            scale=float(rng.uniform(*self.scale)),
            flip_x=bool(rng.uniform() < self.flip_x),
            flip_y=bool(rng.uniform() < self.flip_y),
        )


@dataclass(frozen=True)
class BdaDraw:
    rotation_rad: float = 0.0
    """Counter-clockwise."""
    scale: float = 1.0
    flip_x: bool = False
    flip_y: bool = False

    @property
    def matrix(self) -> NDArray[np.float64]:
        """[3, 3] flip @ scale @ rotation, to be multiplied to BEV points."""
        flip = np.diag([-1.0 if self.flip_x else 1.0, -1.0 if self.flip_y else 1.0, 1.0])
        return flip * self.scale @ rotation_z(self.rotation_rad)

    def boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes [n, 9] (geometry.boxes convention) after the augmentation: centre, size, yaw and velocity move."""
        out = boxes.copy()
        turn = self.matrix[:2, :2]
        heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], 1) @ turn.T
        out[:, :3] = boxes[:, :3] @ self.matrix.T
        out[:, 3:6] *= self.scale
        out[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
        out[:, 7:9] = boxes[:, 7:9] @ turn.T
        return out
