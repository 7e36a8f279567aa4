"""The rig: six cameras and one LiDAR, placed as on a nuScenes car.

Frames: ego x forward, y left, z up on the ground below the rear axle; camera x right, y down, z forward;
LIDAR_TOP x right, y forward, z up. Pixel index (u, v) samples the image plane at exactly (u, v).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...geometry.cameras import PinholeCamera
from ...geometry.poses import pose, rotation_z

NATIVE_WIDTH_PX = 1600
NATIVE_HEIGHT_PX = 900
LIDAR_CHANNEL = "LIDAR_TOP"
LIDAR_BEAMS = 32
LIDAR_AZIMUTHS = 1080
LIDAR_RANGE_M = 100.0

# name: yaw in degrees (ccw from ego x), position in the ego frame, focal length in px at 1600 px width
_CAMERAS = {
    "CAM_FRONT": (0.0, (1.70, 0.02, 1.51), 1266.0),
    "CAM_FRONT_RIGHT": (-55.0, (1.55, -0.50, 1.50), 1260.0),
    "CAM_FRONT_LEFT": (55.0, (1.52, 0.50, 1.51), 1272.0),
    "CAM_BACK": (180.0, (0.03, 0.0, 1.57), 809.0),
    "CAM_BACK_LEFT": (110.0, (1.04, 0.48, 1.59), 1257.0),
    "CAM_BACK_RIGHT": (-110.0, (1.05, -0.48, 1.56), 1259.0),
}
_PRINCIPAL_PX = (816.0, 491.0)


@dataclass(frozen=True)
class RigCamera:
    """One camera of the rig."""

    name: str
    camera: PinholeCamera
    ego_from_camera: np.ndarray  # [4, 4]

    @cached_property
    def rays(self) -> np.ndarray:
        """[H, W, 3] unit viewing directions in the camera frame."""
        return self.camera.rays()


def camera_rig(image_width_px: int) -> tuple[RigCamera, ...]:
    """The six cameras at 16:9 and the given width; intrinsics scale with the width."""
    scale = image_width_px / NATIVE_WIDTH_PX
    height_px = round(image_width_px * NATIVE_HEIGHT_PX / NATIVE_WIDTH_PX)
    rig = []
    for name, (yaw_deg, position, focal_px) in _CAMERAS.items():
        intrinsics = np.array([[focal_px, 0, _PRINCIPAL_PX[0]], [0, focal_px, _PRINCIPAL_PX[1]], [0, 0, 1 / scale]])
        yaw = np.deg2rad(yaw_deg)
        forward = np.array([np.cos(yaw), np.sin(yaw), 0])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0])
        rotation = np.stack([right, [0, 0, -1.0], forward], axis=1)  # columns: camera axes in the ego frame
        camera = PinholeCamera(intrinsics * scale, image_width_px, height_px)
        rig.append(RigCamera(name, camera, pose(rotation, position)))
    return tuple(rig)


def ego_from_lidar() -> np.ndarray:
    """[4, 4] pose of LIDAR_TOP on the car."""
    return pose(rotation_z(-np.pi / 2), (0.94, 0.0, 1.84))


def lidar_rays() -> tuple[np.ndarray, np.ndarray]:
    """Unit directions [beams * azimuths, 3] in the LIDAR frame, and the ring number of each, lowest beam first."""
    elevation = np.deg2rad(np.linspace(-30.0, 10.0, LIDAR_BEAMS))[:, None]
    azimuth = (np.arange(LIDAR_AZIMUTHS) * 2 * np.pi / LIDAR_AZIMUTHS)[None]
    directions = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation) + 0 * azimuth], -1
    )
    ring = np.repeat(np.arange(LIDAR_BEAMS), LIDAR_AZIMUTHS)
    return directions.reshape(-1, 3).astype(np.float32), ring
