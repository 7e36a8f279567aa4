"""Images re-projected to a virtual camera without the lens: a pinhole, or a cylinder for wide views.

A virtual camera stands where the real one does and looks the same way. What it would see beside the real image is
black. Tables of where each of its pixels lies in the real image are made once for each camera and kept.

Shapes: n boxes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ...core.errors import ConfigError
from ...geometry import CameraModel, Lens, cylinder

LensHandling = Literal["keep", "undistort", "pinhole", "cylinder"]
"""'keep': the image as it is, the model projects through the lens. 'undistort': a pinhole of the same matrix and size,
which loses what lies outside. 'pinhole': one of a given horizontal field of view, as wide in pixels as the image.
'cylinder': columns are equal angles, for fields of view that no plane holds."""

MAX_PINHOLE_DEG = 150.0
_MAX_ELEVATION_RAD = math.radians(60)  # above and below the horizon of a virtual camera
_KEPT_TABLES = 16  # 6 bytes per pixel each: 9 MB at 1600 x 900
_SIDE_POINTS = 9  # on each side of a 2D box, for its curve


@dataclass(frozen=True)
class Rectified:
    """A real camera and the virtual one that replaces it."""

    source: CameraModel
    camera: CameraModel

    @property
    def tables(self) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        """Fixed-point tables of cv2.remap, [H, W, 2] and [H, W] of the virtual image."""
        return _tables(_key(self.source), _key(self.camera))

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The virtual camera's image of the real one's [H, W, 3]; black where that shows nothing."""
        out = cv2.remap(image, *self.tables, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0))
        return np.asarray(out, np.uint8)

    def boxes(self, boxes_xyxy_px: NDArray[np.floating]) -> NDArray[np.float64]:
        """The boxes [n, 4] around what 2D boxes [n, 4] of the real image become; NaN where nothing of one is seen."""
        return moved_boxes(boxes_xyxy_px, self.source, self.camera)


def rectified(camera: CameraModel, lens: LensHandling, fov_deg: float | None = None) -> Rectified | None:
    """The virtual camera for a real one, None where the image stays as it is: for 'keep', and, but for 'cylinder', for
    pinholes.

    fov_deg: largest horizontal field of view of 'pinhole' and 'cylinder'; a camera that sees less wide keeps its own.
    Raises ConfigError where a pinhole cannot hold the field of view.
    """
    if lens == "keep" or (camera.lens is None and lens != "cylinder"):
        return None
    if lens == "undistort":
        return Rectified(camera, camera.pinhole)
    return Rectified(camera, _virtual(_key(camera), lens, fov_deg))


def moved_boxes(boxes_xyxy_px: NDArray[np.floating], source: CameraModel, target: CameraModel) -> NDArray[np.float64]:
    """2D boxes [n, 4] around what those of one camera's image are in that of another at the same place, [n, 4], NaN
    where nothing of a box is seen."""
    left, top, right, bottom = np.asarray(boxes_xyxy_px, np.float64).reshape(-1, 4).T[..., None]  # [n, 1] each
    at = np.linspace(0, 1, _SIDE_POINTS)
    across, down = left + (right - left) * at, top + (bottom - top) * at
    u = np.concatenate([across, across, left + 0 * at, right + 0 * at], 1)
    v = np.concatenate([top + 0 * at, bottom + 0 * at, down, down], 1)
    uv, _ = target.project(source.unproject(np.stack([u, v], -1)))  # [n, points, 2]
    seen = np.isfinite(uv).all(-1, keepdims=True)
    out = np.concatenate([np.where(seen, uv, np.inf).min(1), np.where(seen, uv, -np.inf).max(1)], 1)
    return np.where(np.isfinite(out), out, np.nan)


_Key = tuple[bytes, int, int, Lens | None]


def _key(camera: CameraModel) -> _Key:
    return camera.intrinsics.tobytes(), camera.width_px, camera.height_px, camera.lens


def _camera(key: _Key) -> CameraModel:
    matrix, width_px, height_px, lens = key
    return CameraModel(np.frombuffer(matrix).reshape(3, 3), width_px, height_px, lens)


@lru_cache(maxsize=1024)
def _virtual(key: _Key, lens: LensHandling, fov_deg: float | None) -> CameraModel:
    camera = _camera(key)
    left, right, up, down = _seen_angles(camera)
    fov = 2 * max(left, right)
    if fov_deg is not None:
        fov = min(fov, math.radians(fov_deg))
    if lens == "pinhole" and math.degrees(fov) > MAX_PINHOLE_DEG:
        raise ConfigError(
            f"a virtual pinhole cannot show {math.degrees(fov):.0f} degrees; set the image's fov_deg to at most "
            f"{MAX_PINHOLE_DEG:.0f}, or its lens to 'cylinder'"
        )
    width_px = camera.width_px
    focal_px = width_px / fov if lens == "cylinder" else width_px / 2 / math.tan(fov / 2)
    above, below = (focal_px * math.tan(min(angle, _MAX_ELEVATION_RAD)) for angle in (up, down))
    height_px = max(round(above + below), 1)
    if lens == "cylinder":
        return cylinder(width_px, height_px, fov, above / height_px)
    return CameraModel(np.array([[focal_px, 0, width_px / 2], [0, focal_px, above], [0, 0, 1]]), width_px, height_px)


def _seen_angles(camera: CameraModel) -> tuple[float, float, float, float]:
    """How far the image reaches left, right, above and below the optical axis, rad, along its row and its column."""
    u, v = np.clip(camera.intrinsics[:2, 2], 0, [camera.width_px, camera.height_px])
    columns, rows = np.arange(camera.width_px + 1.0), np.arange(camera.height_px + 1.0)
    along_row = camera.unproject(np.stack([columns, np.full_like(columns, v)], -1))
    along_column = camera.unproject(np.stack([np.full_like(rows, u), rows], -1))
    across = np.arctan2(along_row[:, 0], along_row[:, 2])
    down = np.arctan2(along_column[:, 1], along_column[:, 2])
    least = 1e-3
    return (
        max(-np.nanmin(across), least),
        max(np.nanmax(across), least),
        max(-np.nanmin(down), least),
        max(np.nanmax(down), least),
    )


@lru_cache(maxsize=_KEPT_TABLES)
def _tables(source_key: _Key, target_key: _Key) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    source = _camera(source_key)
    uv, _ = source.project(_camera(target_key).rays())
    outside = -2.0  # what is not seen, for cv2.remap to paint black
    uv = np.clip(np.where(np.isfinite(uv), uv, outside), outside, [source.width_px + 1.0, source.height_px + 1.0])
    whole, parts = cv2.convertMaps(uv[..., 0].astype(np.float32), uv[..., 1].astype(np.float32), cv2.CV_16SC2)
    return np.asarray(whole, np.int16), np.asarray(parts, np.uint16)
