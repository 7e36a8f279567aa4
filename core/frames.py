"""The output of readers: keyframes with their cameras, poses and labels. Frames and units: geometry/README.md.

Shapes: n boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..geometry import CameraModel, invert_pose, rotation_z, transform_points, yaw_of
from .errors import DataError
from .labels import LaneLabels
from .street_maps import StreetMap

SEEN_POINTS = 3
"""Of a LiDAR, in an object whose points nobody counted: enough for a label, also of a single image (they want 3)."""


class EncodedImage(Protocol):
    """An image inside a larger file, such as a record, a table or a log. Can be pickled, for loading processes."""

    @property
    def source(self) -> str:
        """File and place in it, for messages."""
        ...

    def read(self) -> bytes:
        """The content of the image's file (JPEG, PNG). Raises DataError, OSError where it cannot be read."""
        ...


@dataclass(frozen=True)
class RollingShutter:
    """How an image was read out, and how the car moved meanwhile, for sets that state it (Waymo)."""

    direction: str
    """The side that is read first and the last: "left_to_right", "top_to_bottom", ... or "global"; '' if unknown."""
    exposure_s: float
    """Of one row or column, whose time is the middle of its exposure."""
    trigger_time_us: int
    readout_done_time_us: int
    """Of the last row or column: exposure and readout lie between the two."""
    velocity_global_mps: tuple[float, float, float]
    angular_velocity_global_radps: tuple[float, float, float]
    """Both of the car at the view's ``timestamp_us``, in the global frame, R(t + dt) = exp([w]x dt) R(t); NaN where
    unknown."""


@dataclass(frozen=True)
class CameraView:
    """One image of a keyframe with its calibration. Other poses are derived, so that no two stored ones disagree."""

    name: str
    camera: CameraModel
    ego_from_camera: NDArray[np.float64]
    """[4, 4], where the camera is mounted."""
    global_from_ego: NDArray[np.float64]
    """[4, 4], the car at the camera's own time."""
    timestamp_us: int
    image_path: str = ""
    image: NDArray[np.uint8] | None = None
    """[H, W, 3] RGB in memory, instead of a file."""
    encoded: EncodedImage | None = None
    """Where the image's file lies inside a larger one, instead of a file of its own."""
    sample_data_token: str = ""
    rolling_shutter: RollingShutter | None = None
    """None where the set does not state it."""

    @property
    def global_from_camera(self) -> NDArray[np.float64]:
        """[4, 4], at the camera's own time."""
        return self.global_from_ego @ self.ego_from_camera

    @property
    def image_size_px(self) -> tuple[int, int]:
        """(width, height)"""
        return self.camera.width_px, self.camera.height_px

    @property
    def source(self) -> str:
        """The image's path or name, for messages."""
        inside = "" if self.encoded is None else self.encoded.source
        return self.image_path or inside or f"camera {self.name} (image in memory)"


@dataclass(frozen=True)
class Annotations:
    """The labelled objects of a keyframe, in the global frame, as the dataset states them."""

    names: list[str]
    """Detection class of each object, '' where the dataset's category maps to none."""
    centre_global_m: NDArray[np.float64]
    """[n, 3]"""
    rotation_global: NDArray[np.float64]
    """[n, 3, 3]: global from box (x along the heading)."""
    size_lwh_m: NDArray[np.float64]
    """[n, 3]"""
    velocity_global_mps: NDArray[np.float64]
    """[n, 2], NaN where unknown."""
    attributes: list[str]
    """Attribute name of each object, '' where it has none."""
    num_lidar_points: NDArray[np.int64]
    """[n], SEEN_POINTS where the set does not count them."""
    num_radar_points: NDArray[np.int64]
    tokens: list[str]
    instance_tokens: list[str]
    categories: list[str] = field(default_factory=list)
    """The dataset's own, finer category of each object, [] where it is not known. nuScenes' evaluation leaves out
    bicycles in a ``static_object.bicycle_rack``, which is no detection class."""
    difficulty: NDArray[np.int64] | None = None
    """[n], 1 (easy) or 2, where the set grades its labels (Waymo)."""
    num_top_lidar_points: NDArray[np.int64] | None = None
    """[n], of the LiDAR on the roof alone, which decides what Waymo's camera challenge scores; -1 where unknown."""
    most_visible_cameras: list[str] | None = None
    """Name of the camera that sees each object best, '' where none does. Where it is given, boxes are those at that
    camera's time; None: they are those at the keyframe's time."""
    visibility: NDArray[np.int64] | None = None
    """[n], nuScenes' level of how much of an object the cameras see: 1 (up to 40 %), 2 (to 60 %), 3 (to 80 %), 4; 0
    where it is not stated. None: the set has no levels."""

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of_boxes(
        cls,
        names: Sequence[str],
        centre_m: ArrayLike,
        size_lwh_m: ArrayLike,
        yaw_rad: ArrayLike,
        *,
        velocity_mps: ArrayLike | None = None,
        tracks: Sequence[str] | None = None,
        global_from_frame: ArrayLike | None = None,
    ) -> Annotations:
        """From upright boxes in any one frame, the global one by default, as in your own labels.

        centre_m [n, 3], of the box's middle; size_lwh_m [n, 3]; yaw_rad [n] counter-clockwise from x; velocity_mps
        [n, 2], NaN or None where unknown; tracks: name of each object over time; global_from_frame [4, 4], e.g.
        ``global_from_ego`` for boxes around the car. Every box counts as seen. Raises DataError for arrays
        of other lengths, and sizes that are not above 0.
        """
        n = len(names)
        centre, size = (np.array(x, np.float64).reshape(-1, 3) for x in (centre_m, size_lwh_m))
        yaw = np.array(yaw_rad, np.float64).reshape(-1)
        velocity = (
            np.full((n, 2), np.nan) if velocity_mps is None else np.array(velocity_mps, np.float64).reshape(-1, 2)
        )
        for what, values in (("centre_m", centre), ("size_lwh_m", size), ("yaw_rad", yaw), ("velocity_mps", velocity)):
            if len(values) != n:
                raise DataError(f"{n} names, but {len(values)} boxes in {what}: give one for each object")
        if not (np.isfinite(size) & (size > 0)).all():
            raise DataError(f"size_lwh_m must be above 0, got {size[~(size > 0).all(1)].tolist()}")
        pose = np.eye(4) if global_from_frame is None else np.array(global_from_frame, np.float64)
        flat = np.concatenate([velocity, np.zeros((n, 1))], 1)
        return cls(
            names=list(names),
            centre_global_m=transform_points(pose, centre),
            rotation_global=pose[:3, :3] @ rotation_z(yaw) if n else np.zeros((0, 3, 3)),
            size_lwh_m=size,
            velocity_global_mps=(flat @ pose[:3, :3].T)[:, :2],
            attributes=[""] * n,
            num_lidar_points=np.full(n, SEEN_POINTS),
            num_radar_points=np.zeros(n, np.int64),
            tokens=[""] * n,
            instance_tokens=list(tracks) if tracks is not None else [""] * n,
        )

    def boxes_in(self, frame_from_global: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes [n, 9] (geometry.boxes convention) in another frame; unknown velocities stay NaN."""
        rotation = frame_from_global[:3, :3]
        velocity = np.concatenate([self.velocity_global_mps, np.zeros((len(self), 1))], 1) @ rotation.T
        yaw = yaw_of(rotation @ self.rotation_global)
        centre = transform_points(frame_from_global, self.centre_global_m)
        return np.concatenate([centre, self.size_lwh_m, yaw[:, None], velocity[:, :2]], 1)


@dataclass(frozen=True)
class Frame:
    """One keyframe: cameras, poses, and labels where the split has them."""

    token: str
    scene_token: str
    scene_name: str
    timestamp_us: int
    cameras: tuple[CameraView, ...]
    global_from_ego: NDArray[np.float64]
    """[4, 4], the car at the keyframe's time."""
    ego_from_bev: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    """[4, 4]: where BEV maps and boxes of a model live. The frame of LIDAR_TOP on nuScenes, whose released weights are
    trained there; the EGO frame itself (identity) elsewhere. No LiDAR is needed."""
    lidar_path: str = ""
    """A point cloud in the BEV frame, for pictures and for labels of depth."""
    annotations: Annotations | None = None
    occupancy_path: str = ""
    """Occ3D label file of this keyframe, '' where there is none."""
    lanes: LaneLabels | None = None
    prev_token: str = ""
    next_token: str = ""
    can_signals: NDArray[np.float64] | None = None
    """[9] of the car's own bus: acceleration (m/s^2), turn rate (rad/s), velocity (m/s), x y z each in the EGO frame;
    None where they were not recorded."""
    lidar_floats_per_point: int | None = None
    """Of the file ``lidar_path``, 4 or 5, where its size leaves both open; None: as the values look (readers/lidar)."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """What the set says about the scene, as "weather", "time_of_day", "location"; empty where it says nothing."""
    depth_path: str = ""
    """File of depth of this keyframe's images (data_tools/labels/depth.py), '' where there is none."""
    street_map: StreetMap | None = None
    """Of the scene, GLOBAL frame; None where there is none."""

    @property
    def global_from_bev(self) -> NDArray[np.float64]:
        return self.global_from_ego @ self.ego_from_bev

    def bev_from_camera(self, view: CameraView) -> NDArray[np.float64]:
        """[4, 4], with the ego motion between the keyframe's time and the camera's."""
        return invert_pose(self.global_from_bev) @ view.global_from_camera

    def image_from_bev(self, view: CameraView) -> NDArray[np.float64]:
        """[4, 4]: BEV points (x, y, z, 1) to (u * depth, v * depth, depth, 1). Raises ValueError for a lens."""
        return view.camera.image_from_camera @ invert_pose(self.bev_from_camera(view))

    def bev_boxes(self) -> NDArray[np.float64]:
        """Annotated boxes [n, 9] in the BEV frame."""
        if self.annotations is None:
            return np.zeros((0, 9))
        return self.annotations.boxes_in(invert_pose(self.global_from_bev))


def past_bev_from_current(current: Frame, past: Frame) -> NDArray[np.float64]:
    """[4, 4]: points of the current BEV frame in the past (or future) keyframe's BEV frame, by ego motion alone.

    As upstream, the current frame's ``ego_from_bev`` stands for both (equal on nuScenes, where the LiDAR's mounting is
    constant within a scene).
    """
    return (
        invert_pose(current.ego_from_bev)
        @ invert_pose(past.global_from_ego)
        @ current.global_from_ego
        @ current.ego_from_bev
    )
