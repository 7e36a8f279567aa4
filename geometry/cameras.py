"""Pinhole cameras whose intrinsics follow the image through resizing, cropping and flipping.

Camera frame: x right, y down, z forward (OpenCV, nuScenes). Pixel coordinates are those of nuScenes: u to the right,
v down, and the intrinsics scale with the image without a half-pixel shift, as upstream's augmentation does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class CameraModel:
    """A pinhole camera without distortion.

    intrinsics: [3, 3] float64 with last row (0, 0, 1); width_px, height_px: image size.
    Raises ValueError if the matrix is not a finite pinhole matrix or the size is not positive.
    """

    intrinsics: NDArray[np.float64]
    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        k = np.array(self.intrinsics, dtype=np.float64)
        if k.shape != (3, 3) or not np.all(np.isfinite(k)):
            raise ValueError(f"intrinsics must be a finite [3, 3] matrix, got {k.tolist()}")
        if not np.allclose(k[2], [0, 0, 1]) or k[0, 0] * k[1, 1] == 0 or k[1, 1] < 0:
            raise ValueError(f"not a pinhole matrix (focal lengths, last row 0 0 1): {k.tolist()}")
        if self.width_px <= 0 or self.height_px <= 0:
            raise ValueError(f"image size must be positive, got {self.width_px} x {self.height_px}")
        object.__setattr__(self, "intrinsics", k)

    @property
    def image_from_camera(self) -> NDArray[np.float64]:
        """[4, 4]: camera points (x, y, z, 1) to (u * depth, v * depth, depth, 1)."""
        out = np.eye(4)
        out[:3, :3] = self.intrinsics
        return out

    def project(self, points_camera: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixels uv [..., 2] and depths [...] in metres of points [..., 3]; points at depth <= 0 get NaN pixels."""
        p = np.asarray(points_camera, dtype=np.float64)
        depth_m = p[..., 2]
        uvw = p @ self.intrinsics.T
        safe = np.where(depth_m > 0, depth_m, np.nan)
        return uvw[..., :2] / safe[..., None], depth_m

    def rays(self) -> NDArray[np.float64]:
        """Unit viewing directions [H, W, 3] in the camera frame through the pixels (u, v) = (column, row)."""
        u, v = np.meshgrid(np.arange(self.width_px), np.arange(self.height_px))
        pixels = np.stack([u, v, np.ones_like(u)], -1).astype(np.float64)  # [H, W, 3]
        directions = pixels @ np.linalg.inv(self.intrinsics).T
        return directions / np.linalg.norm(directions, axis=-1, keepdims=True)

    def resized(self, width_px: int, height_px: int) -> CameraModel:
        """The camera of the image scaled to the given size."""
        scale = np.diag([width_px / self.width_px, height_px / self.height_px, 1.0])
        return CameraModel(scale @ self.intrinsics, width_px, height_px)

    def cropped(self, left_px: int, top_px: int, width_px: int, height_px: int) -> CameraModel:
        """The camera of the window with its upper-left corner at (left, top); it may reach outside the image."""
        k = self.intrinsics.copy()
        k[0, 2] -= left_px
        k[1, 2] -= top_px
        return CameraModel(k, width_px, height_px)

    def flipped(self) -> CameraModel:
        """The camera of the mirrored image (u -> width - u): the focal length along u becomes negative."""
        k = self.intrinsics.copy()
        k[0] = [-k[0, 0], -k[0, 1], self.width_px - k[0, 2]]
        return replace(self, intrinsics=k)
