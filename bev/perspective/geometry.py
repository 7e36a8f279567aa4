"""Boxes as one camera sees them: a projected centre, a depth, a size and a rotation (DD3D, arXiv 2108.06417).

Camera frame: x right, y down, z forward. A box's own axes are nuScenes': x along its length, y across, z up. Sizes are
(w, l, h) as published weights have them. Everything is differentiable torch and works row by row; m boxes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...geometry.lenses import MAX_LENS_ANGLE, project_rows, ray_rows

# Signs of the corners along (length, width, height): front then rear, each right round from the upper left.
_SIGNS = torch.tensor(
    [[1, 1, 1], [1, -1, 1], [1, -1, -1], [1, 1, -1], [-1, 1, 1], [-1, -1, 1], [-1, -1, -1], [-1, 1, -1]],
    dtype=torch.float32,
)


def quaternion_to_matrix(quaternion_wxyz: Tensor) -> Tensor:
    """Rotations [..., 3, 3] of quaternions [..., 4] (w, x, y, z) of any length above zero."""
    w, x, y, z = F.normalize(quaternion_wxyz, dim=-1).unbind(-1)
    return torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))


def camera_rays(points_px: Tensor, inv_intrinsics: Tensor, lenses: Tensor | None = None) -> Tensor:
    """Directions [..., 3] at depth 1 through pixels [..., 2]; inv_intrinsics [..., 3, 3].

    lenses: [m, ROW] for points [m, 2], None: all are pinholes. Where a lens has no ray, or one of more than
    MAX_LENS_ANGLE from the axis, which has no depth to speak of, the direction is that of its pinhole.
    """
    homogeneous = F.pad(points_px, (0, 1), value=1.0)
    straight = (inv_intrinsics @ homogeneous[..., None])[..., 0]
    if lenses is None:
        return straight
    bent, seen = ray_rows(points_px, lenses)
    seen = seen & (lenses[:, 0] > 0) & (bent[:, 2] > math.cos(MAX_LENS_ANGLE))
    safe = torch.where(seen[:, None], bent, torch.ones_like(bent))
    return torch.where(seen[:, None], safe / safe[:, 2:], straight)


def egocentric_from_allocentric(points_px: Tensor, inv_intrinsics: Tensor, lenses: Tensor | None = None) -> Tensor:
    """Rotations [..., 3, 3] from a frame that looks along the ray through a pixel into the camera frame.

    Its z axis is the ray, its y axis the camera's y made orthogonal to it. An object's appearance depends on its
    rotation in that (allocentric) frame, so that is what a network predicts.
    """
    z = F.normalize(camera_rays(points_px, inv_intrinsics, lenses), dim=-1)
    down = torch.zeros_like(z)
    down[..., 1] = 1
    y = F.normalize(down - z[..., 1:2] * z, dim=-1)
    return torch.stack([torch.linalg.cross(y, z), y, z], dim=-1)


@dataclass(frozen=True)
class CameraBoxes:
    """m boxes in the frame of their own camera."""

    rotation: Tensor
    """[m, 3, 3] camera from box"""
    proj_ctr: Tensor
    """[m, 2] pixel of the centre"""
    depth: Tensor
    """[m, 1] metres along the optical axis"""
    size_wlh: Tensor
    """[m, 3] metres"""
    inv_intrinsics: Tensor
    """[m, 3, 3]"""
    lenses: Tensor | None = None
    """[m, ROW], None: all cameras are pinholes"""

    @property
    def centre(self) -> Tensor:
        """[m, 3] metres."""
        return camera_rays(self.proj_ctr, self.inv_intrinsics, self.lenses) * self.depth

    @property
    def corners(self) -> Tensor:
        """[m, 8, 3] metres: upper left, upper right, lower right, lower left of the front, then of the rear."""
        local = self.size_wlh[:, None, [1, 0, 2]] * (_SIGNS.to(self.size_wlh) / 2)  # [m, 8, 3]
        return local @ self.rotation.transpose(1, 2) + self.centre[:, None]

    def __getitem__(self, rows: Tensor) -> CameraBoxes:
        own = (getattr(self, field.name) for field in fields(self))
        return CameraBoxes(*(None if value is None else value[rows] for value in own))

    def with_component(self, name: str, other: CameraBoxes) -> CameraBoxes:
        """These boxes with one component (rotation, proj_ctr, depth, size_wlh) taken from others."""
        return replace(self, **{name: getattr(other, name)})

    def in_frame(self, bev_from_camera: Tensor) -> Tensor:
        """Rows [m, 7] (x, y, z, l, w, h, yaw_rad) in another frame whose z is up; bev_from_camera [m, 4, 4]."""
        rotation = bev_from_camera[:, :3, :3]
        centre = (rotation @ self.centre[..., None])[..., 0] + bev_from_camera[:, :3, 3]
        heading = (rotation @ self.rotation)[..., 0]  # the box's x axis
        yaw = torch.atan2(heading[:, 1], heading[:, 0])
        return torch.cat([centre, self.size_wlh[:, [1, 0, 2]], yaw[:, None]], -1)


def labelled_boxes(boxes3d_camera: Tensor, intrinsics: Tensor, lenses: Tensor | None = None) -> CameraBoxes:
    """CameraBoxes of labels [m, 10] (quaternion wxyz, centre xyz, w, l, h); intrinsics [m, 3, 3]; lenses [m, ROW]."""
    boxes3d_camera = boxes3d_camera.float()
    centre = boxes3d_camera[:, 4:7]
    projected = (intrinsics @ centre[..., None])[..., 0]  # [m, 3]
    pixels = projected[:, :2] / projected[:, 2:]
    if lenses is not None:
        bent, seen = project_rows(centre, lenses)
        pixels = torch.where((seen & (lenses[:, 0] > 0))[:, None], bent, pixels)
    return CameraBoxes(
        quaternion_to_matrix(boxes3d_camera[:, :4]),
        pixels,
        centre[:, 2:],
        boxes3d_camera[:, 7:],
        torch.linalg.inv(intrinsics),
        lenses,
    )


def decode_camera_boxes(
    quaternion: Tensor,
    ctr_offset: Tensor,
    depth: Tensor,
    size: Tensor,
    locations: Tensor,
    inv_intrinsics: Tensor,
    canonical_wlh: Tensor,
    depth_range: tuple[float, float],
    focal_factor: float = 500.0,
    lenses: Tensor | None = None,
) -> CameraBoxes:
    """Boxes from what the head regresses at m locations.

    quaternion [m, 4]: allocentric; ctr_offset [m, 2]: pixels from the location [m, 2] to the projected centre;
    depth [m]: depth as if through a camera of unit pixel size, divided by pixel size * focal_factor;
    size [m, 3]: atanh of the relative deviation from the class's canonical (w, l, h) [m, 3]; lenses [m, ROW], None
    where all cameras are pinholes.
    """
    proj_ctr = ctr_offset + locations
    pixel_size = torch.hypot(inv_intrinsics[:, 0, 0], inv_intrinsics[:, 1, 1])
    metric = (depth / (pixel_size * focal_factor)).clamp(*depth_range)[:, None]
    size_wlh = (size.tanh() + 1) * canonical_wlh
    rotation = egocentric_from_allocentric(proj_ctr, inv_intrinsics, lenses) @ quaternion_to_matrix(quaternion)
    return CameraBoxes(rotation, proj_ctr, metric, size_wlh, inv_intrinsics, lenses)
