"""Cameras: a lens, a matrix and an image size, which follow the image through resizing, cropping and flipping.

Camera frame: x right, y down, z forward (OpenCV, nuScenes). Pixel coordinates are those of nuScenes: u to the right,
v down, and the intrinsics scale with the image without a half-pixel shift, as upstream's augmentation does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .lenses import Lens, pinhole_row


@dataclass(frozen=True)
class CameraModel:
    """How points in front of a camera become pixels.

    intrinsics: [3, 3] float64 with last row (0, 0, 1), of the equivalent pinhole; width_px, height_px: image size;
    lens: None for a pinhole without distortion. Raises ValueError if the matrix is not a finite pinhole matrix or the
    size is not positive.
    """

    intrinsics: NDArray[np.float64]
    width_px: int
    height_px: int
    lens: Lens | None = None

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
        """[4, 4]: camera points (x, y, z, 1) to (u * depth, v * depth, depth, 1).

        Raises ValueError for a camera with a lens, which no matrix describes.
        """
        if self.lens is not None:
            raise ValueError(f"a camera with a lens ({self.lens.kind}) has no projection matrix; use project()")
        out = np.eye(4)
        out[:3, :3] = self.intrinsics
        return out

    @property
    def row(self) -> NDArray[np.float64]:
        """Lens and matrix as numbers [lenses.ROW], for tensors of cameras."""
        return pinhole_row(self.intrinsics) if self.lens is None else self.lens.row(self.intrinsics)

    @property
    def pinhole(self) -> CameraModel:
        """The camera without its lens."""
        return replace(self, lens=None)

    def project(self, points_camera: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixels uv [..., 2] and depths z [...] in metres of points [..., 3]; NaN pixels where nothing is seen.

        That is at depth <= 0 for a pinhole, beyond the largest angle for a lens, which may be over 90 degrees. Pixels
        may lie outside the image.
        """
        p = np.asarray(points_camera, dtype=np.float64)
        depth_m = p[..., 2]
        if self.lens is None:
            uvw = p @ self.intrinsics.T
            safe = np.where(depth_m > 0, depth_m, np.nan)
            return uvw[..., :2] / safe[..., None], depth_m
        plane, seen = self.lens.plane(p)
        uv = plane @ self.intrinsics[:2, :2].T + self.intrinsics[:2, 2]
        return np.where(seen[..., None], uv, np.nan), depth_m

    def unproject(self, points_px: ArrayLike) -> NDArray[np.float64]:
        """Unit viewing directions [..., 3] in the camera frame through pixels [..., 2]; NaN where the lens has none."""
        uv = np.asarray(points_px, dtype=np.float64)
        if self.lens is None:
            pixels = np.concatenate([uv, np.ones_like(uv[..., :1])], -1)
            directions = pixels @ np.linalg.inv(self.intrinsics).T
            return directions / np.linalg.norm(directions, axis=-1, keepdims=True)
        plane = (uv - self.intrinsics[:2, 2]) @ np.linalg.inv(self.intrinsics[:2, :2]).T
        rays, seen = self.lens.rays(plane)
        return np.where(seen[..., None], rays, np.nan)

    def rays(self) -> NDArray[np.float64]:
        """Unit viewing directions [H, W, 3] in the camera frame through the pixels (u, v) = (column, row)."""
        u, v = np.meshgrid(np.arange(self.width_px), np.arange(self.height_px))
        return self.unproject(np.stack([u, v], -1).astype(np.float64))

    def resized(self, width_px: int, height_px: int) -> CameraModel:
        """The camera of the image scaled to the given size."""
        scale = np.diag([width_px / self.width_px, height_px / self.height_px, 1.0])
        return CameraModel(scale @ self.intrinsics, width_px, height_px, self.lens)

    def cropped(self, left_px: int, top_px: int, width_px: int, height_px: int) -> CameraModel:
        """The camera of the window with its upper-left corner at (left, top); it may reach outside the image."""
        k = self.intrinsics.copy()
        k[0, 2] -= left_px
        k[1, 2] -= top_px
        return CameraModel(k, width_px, height_px, self.lens)

    def flipped(self) -> CameraModel:
        """The camera of the mirrored image (u -> width - u): the focal length along u becomes negative."""
        k = self.intrinsics.copy()
        k[0] = [-k[0, 0], -k[0, 1], self.width_px - k[0, 2]]
        return replace(self, intrinsics=k)


def brown_conrady(intrinsics: ArrayLike, width_px: int, height_px: int, coefficients: Sequence[float]) -> CameraModel:
    """A camera with radial and tangential distortion, OpenCV's k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4]]].

    A pinhole where all are zero. Raises ValueError for other counts; OpenCV's tilted sensor (14) must not tilt.
    """
    values = [float(c) for c in coefficients]
    if len(values) == 14 and not any(values[12:]):
        values = values[:12]
    if len(values) not in (0, 4, 5, 8, 12):
        raise ValueError(f"Brown-Conrady distortion has 4, 5, 8 or 12 coefficients, got {values}")
    lens = Lens("brown_conrady", tuple(values)) if any(values) else None
    return CameraModel(np.array(intrinsics, np.float64), width_px, height_px, lens)


def kannala_brandt(intrinsics: ArrayLike, width_px: int, height_px: int, coefficients: Sequence[float]) -> CameraModel:
    """A fisheye (OpenCV's fisheye, ROS's equidistant), coefficients k1 k2 k3 k4."""
    lens = Lens("kannala_brandt", tuple(float(c) for c in coefficients))
    return CameraModel(np.array(intrinsics, np.float64), width_px, height_px, lens)


def f_theta(
    width_px: int,
    height_px: int,
    centre_px: Sequence[float],
    forward: Sequence[float] | None = None,
    backward: Sequence[float] | None = None,
    linear: Sequence[float] = (1.0, 0.0, 0.0),
    max_angle_rad: float | None = None,
) -> CameraModel:
    """NVIDIA's camera: pixels from the centre as a polynomial of the angle (forward), or the angle as one of pixels.

    forward: ascending powers, pixels per rad^i; backward: rad per pixel^i; up to 9 numbers, the first zero. One of them
    is the reference and holds both ways. linear: c, d, e of [[c, d], [e, 1]]. Raises ValueError for a polynomial that
    is too long or does not grow.
    """
    if (forward is None) == (backward is None):
        raise ValueError("an f-theta camera has one reference polynomial: give forward or backward")
    given = [float(p) for p in (forward if forward is not None else backward or ())]
    if not 2 <= len(given) <= 9 or given[0] != 0 or not given[1] > 0:
        raise ValueError(f"f-theta: 2 to 9 coefficients, the first 0 and the second above 0; got {given}")
    if forward is not None:
        focal, lens = given[1], Lens("f_theta", tuple(p / given[1] for p in given[2:]), max_angle_rad)
    else:
        focal = 1 / given[1]
        lens = Lens("f_theta_backward", tuple(p * focal**i for i, p in enumerate(given[2:], 2)), max_angle_rad)
    c, d, e = linear
    (u, v) = centre_px
    return CameraModel(
        np.array([[c * focal, d * focal, u], [e * focal, focal, v], [0, 0, 1]]), width_px, height_px, lens
    )


def mei(
    intrinsics: ArrayLike, width_px: int, height_px: int, xi: float, coefficients: Sequence[float] = ()
) -> CameraModel:
    """The unified omnidirectional camera (OpenCV's omnidir, KITTI-360), gamma1 gamma2 u0 v0 as matrix; k1 k2 p1 p2."""
    matrix = np.array(intrinsics, np.float64)
    matrix[:2, :2] /= 1 + xi
    return CameraModel(matrix, width_px, height_px, Lens("mei", (xi, *(float(c) for c in coefficients))))


def double_sphere(intrinsics: ArrayLike, width_px: int, height_px: int, xi: float, alpha: float) -> CameraModel:
    """Usenko's double sphere camera."""
    matrix = np.array(intrinsics, np.float64)
    matrix[:2, :2] /= 1 + xi
    return CameraModel(matrix, width_px, height_px, Lens("double_sphere", (xi, alpha)))


def cylinder(width_px: int, height_px: int, fov_rad: float, horizon: float = 0.5) -> CameraModel:
    """A cylinder about the camera's y axis: columns are equal angles over the field of view.

    horizon: the row of the optical axis, as a fraction of the height. Angles keep their size in both directions.
    """
    if not 0 < fov_rad <= 2 * np.pi:
        raise ValueError(f"a cylinder's field of view lies in 0 to 2 pi, got {fov_rad}")
    focal = width_px / fov_rad
    matrix = np.array([[focal, 0, width_px / 2], [0, focal, horizon * height_px], [0, 0, 1]])
    return CameraModel(matrix, width_px, height_px, Lens("cylinder"))
