"""The rigs: cameras of a nuScenes, an Argoverse 2 or a Waymo car, with lenses or without, and one LiDAR.

Frames: ego x forward, y left, z up on the ground below the rear axle; camera x right, y down, z forward;
LIDAR_TOP x right, y forward, z up. Pixel index (u, v) samples the image plane at exactly (u, v).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ....geometry.cameras import CameraModel
from ....geometry.grids import VoxelGrid
from ....geometry.lenses import Lens
from ....geometry.poses import pose, rotation_z

LIDAR_CHANNEL = "LIDAR_TOP"
LIDAR_BEAMS = 32
LIDAR_AZIMUTHS = 1080
LIDAR_RANGE_M = 100.0

# yaw in degrees (ccw from ego x), position in the ego frame, focal length, principal point and size in native pixels
_NUSCENES = {
    "CAM_FRONT": (0.0, (1.70, 0.02, 1.51), 1266.0),
    "CAM_FRONT_RIGHT": (-55.0, (1.55, -0.50, 1.50), 1260.0),
    "CAM_FRONT_LEFT": (55.0, (1.52, 0.50, 1.51), 1272.0),
    "CAM_BACK": (180.0, (0.03, 0.0, 1.57), 809.0),
    "CAM_BACK_LEFT": (110.0, (1.04, 0.48, 1.59), 1257.0),
    "CAM_BACK_RIGHT": (-110.0, (1.05, -0.48, 1.56), 1259.0),
}
_ARGOVERSE = {  # the front camera first and upright, as OpenLane-V2 subset A wants it
    "ring_front_center": (0.0, (1.63, 0.0, 1.43), 1690.0),
    "ring_front_left": (45.0, (1.55, 0.15, 1.43), 1690.0),
    "ring_front_right": (-45.0, (1.55, -0.15, 1.43), 1690.0),
    "ring_side_left": (99.0, (1.30, 0.22, 1.43), 1690.0),
    "ring_side_right": (-99.0, (1.30, -0.22, 1.43), 1690.0),
    "ring_rear_left": (153.0, (1.10, 0.14, 1.43), 1690.0),
    "ring_rear_right": (-153.0, (1.10, -0.14, 1.43), 1690.0),
}
_FISHEYE = {  # a wide camera ahead, and a ring of ordinary ones
    "CAM_FRONT": (0.0, (1.70, 0.02, 1.51), 775.0),
    "CAM_FRONT_RIGHT": (-65.0, (1.55, -0.50, 1.50), 1180.0),
    "CAM_FRONT_LEFT": (65.0, (1.52, 0.50, 1.51), 1180.0),
    "CAM_BACK": (180.0, (0.03, 0.0, 1.57), 809.0),
    "CAM_BACK_LEFT": (115.0, (1.04, 0.48, 1.59), 1180.0),
    "CAM_BACK_RIGHT": (-115.0, (1.05, -0.48, 1.56), 1180.0),
}
_WAYMO = {  # nothing looks back
    "FRONT": (0.2, (1.54, -0.02, 2.12), 2045.0),
    "FRONT_LEFT": (44.2, (1.49, 0.09, 2.12), 2056.0),
    "FRONT_RIGHT": (-44.6, (1.49, -0.09, 2.12), 2046.0),
    "SIDE_LEFT": (89.2, (1.43, 0.11, 2.12), 2054.0),
    "SIDE_RIGHT": (-90.1, (1.43, -0.11, 2.12), 2064.0),
}
RIGS = {
    "nuscenes": _NUSCENES,
    "argoverse2": _ARGOVERSE,
    "distorted": _NUSCENES,
    "fisheye": _FISHEYE,
    "waymo": _WAYMO,
}
"""Yaws, places and focal lengths of the cameras of each rig. "distorted": nuScenes' six with Brown-Conrady lenses;
"fisheye": a Kannala-Brandt fisheye of 120 degrees across ahead, the others with Brown-Conrady lenses; "waymo": five
cameras with Brown-Conrady lenses, the images of the side ones lower."""
_NATIVE = {
    "nuscenes": (1600, 900, (816.0, 491.0)),
    "argoverse2": (2048, 1550, (1024.0, 775.0)),
    "distorted": (1600, 900, (816.0, 491.0)),
    "fisheye": (1600, 900, (800.0, 451.0)),
    "waymo": (1920, 1280, (955.0, 640.0)),
}
_WAYMO_SIDE = 886, (963.0, 243.0)  # height and principal point
# k1 k2 p1 p2 k3; the first much like Waymo's, whose cameras see less wide, the other for CAM_BACK
_NARROW = Lens("brown_conrady", (0.036, -0.2, 0.0011, -0.0007, 0.0))
_WIDE = Lens("brown_conrady", (-0.24, 0.05, 0.0004, -0.0006, -0.004))
_LENSES: dict[str, dict[str, Lens]] = {
    "distorted": {name: _WIDE if name == "CAM_BACK" else _NARROW for name in _NUSCENES},
    "fisheye": {name: _WIDE if name == "CAM_BACK" else _NARROW for name in _FISHEYE}
    | {"CAM_FRONT": Lens("kannala_brandt", (-0.022, 0.004, -0.0015, 0.0002))},
    "waymo": dict.fromkeys(_WAYMO, Lens("brown_conrady", (0.037, -0.326, 0.0011, -0.0007, 0.0))),
}


@dataclass(frozen=True)
class RigCamera:
    """One camera of the rig."""

    name: str
    camera: CameraModel
    ego_from_camera: np.ndarray  # [4, 4]

    @cached_property
    def rays(self) -> np.ndarray:
        """[H, W, 3] unit viewing directions in the camera frame, NaN where the lens has none."""
        return self.camera.rays()

    @cached_property
    def voxels_in_view(self) -> dict[VoxelGrid, np.ndarray]:
        """Flat indices of the voxels whose centres lie in the image; filled by labels.voxels, which needs them again
        at every keyframe."""
        return {}


@lru_cache(maxsize=2)  # for the lines of sight, which take long through a lens
def camera_rig(image_width_px: int, rig: str = "nuscenes") -> tuple[RigCamera, ...]:
    """The cameras of a rig (a key of RIGS), the front one first; intrinsics scale with the width.

    image_width_px: of a landscape image. The upright front image of "argoverse2" has that height.
    """
    native_width_px, native_height_px, native_principal_px = _NATIVE[rig]
    scale = image_width_px / native_width_px
    cameras = []
    for name, (yaw_deg, position, focal_px) in RIGS[rig].items():
        height_px, principal_px = native_height_px, native_principal_px
        if name.startswith("SIDE_"):
            height_px, principal_px = _WAYMO_SIDE
        size_px = image_width_px, round(height_px * scale)
        if name == "ring_front_center":
            size_px, principal_px = size_px[::-1], principal_px[::-1]
        lens = _LENSES.get(rig, {}).get(name)
        intrinsics = np.array([[focal_px, 0, principal_px[0]], [0, focal_px, principal_px[1]], [0, 0, 1 / scale]])
        yaw = np.deg2rad(yaw_deg)
        forward = np.array([np.cos(yaw), np.sin(yaw), 0])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0])
        rotation = np.stack([right, [0, 0, -1.0], forward], axis=1)  # columns: camera axes in the ego frame
        cameras.append(RigCamera(name, CameraModel(intrinsics * scale, *size_px, lens), pose(rotation, position)))
    return tuple(cameras)


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
