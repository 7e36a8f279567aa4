"""The types that cross rooms: a clip of Frames goes in, a Batch goes through the model, and boxes (Detections), voxels
(OccupancyGrid) and lanes (LaneGraph) come out.

Shapes: B batch, T time steps of a clip, N cameras, n boxes or lanes, k traffic elements. Frames and units: see
geometry/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .geometry import BevGrid, PinholeCamera, invert_pose, transform_points, yaw_of


@dataclass(frozen=True)
class CameraView:
    """One image of a keyframe with its calibration."""

    name: str
    image_path: str
    camera: PinholeCamera
    global_from_camera: NDArray[np.float64]
    """[4, 4], at the camera's own time."""
    lidar_from_camera: NDArray[np.float64]
    """[4, 4], with the ego motion between the two sensors' times:
    camera -> ego at camera time -> global -> ego at LiDAR time -> LiDAR."""
    timestamp_us: int
    sample_data_token: str = ""

    @property
    def image_from_lidar(self) -> NDArray[np.float64]:
        """[4, 4]: LIDAR points (x, y, z, 1) to (u * depth, v * depth, depth, 1)."""
        return self.camera.image_from_camera @ invert_pose(self.lidar_from_camera)


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
    num_radar_points: NDArray[np.int64]
    tokens: list[str]
    instance_tokens: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def boxes_in(self, frame_from_global: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes [n, 9] (geometry.boxes convention) in another frame; unknown velocities stay NaN."""
        rotation = frame_from_global[:3, :3]
        velocity = np.concatenate([self.velocity_global_mps, np.zeros((len(self), 1))], 1) @ rotation.T
        yaw = yaw_of(rotation @ self.rotation_global)
        centre = transform_points(frame_from_global, self.centre_global_m)
        return np.concatenate([centre, self.size_lwh_m, yaw[:, None], velocity[:, :2]], 1)


@dataclass(frozen=True)
class OccupancyLabels:
    """Voxel classes of one keyframe in its EGO frame, and which voxels were observed (Occ3D layout, [x, y, z])."""

    semantics: NDArray[np.uint8]
    """[X, Y, Z] class of each voxel; Occ3D-nuScenes: 0..16 things and surfaces, 17 free."""
    mask_lidar: NDArray[np.bool_]
    """[X, Y, Z] True where an accumulated LiDAR ray passed or ended."""
    mask_camera: NDArray[np.bool_]
    """[X, Y, Z] True where the current cameras see."""


ELEMENT_ATTRIBUTES = (
    "unknown", "red", "green", "yellow", "go_straight", "turn_left", "turn_right", "no_left_turn", "no_right_turn",
    "u_turn", "no_u_turn", "slight_left", "slight_right",
)  # fmt: skip
"""What OpenLane-V2's traffic elements say, by number: lights up to yellow, then signs."""


@dataclass(frozen=True)
class LaneLabels:
    """Lanes and traffic elements of one keyframe, the lanes in its EGO (vehicle) frame (OpenLane-V2)."""

    centrelines: list[NDArray[np.float32]]
    """n x [points, 3] metres, directed along the traffic."""
    is_connector: NDArray[np.bool_]
    """[n] True inside an intersection."""
    elements_xyxy_px: NDArray[np.float32]
    """[k, 4] boxes in the front image as it lies on disk."""
    attributes: NDArray[np.int64]
    """[k] indices into ELEMENT_ATTRIBUTES."""
    lane_lane: NDArray[np.int8]
    """[n, n] 1 where the end of lane i connects to the start of lane j."""
    lane_element: NDArray[np.int8]
    """[n, k] 1 where element j governs lane i."""


@dataclass(frozen=True)
class Frame:
    """One keyframe: cameras, poses at the LiDAR's time, and labels where the split has them."""

    token: str
    scene_token: str
    scene_name: str
    timestamp_us: int
    cameras: tuple[CameraView, ...]
    ego_from_lidar: NDArray[np.float64]
    global_from_ego: NDArray[np.float64]
    lidar_path: str = ""
    annotations: Annotations | None = None
    occupancy_path: str = ""
    """Occ3D label file of this keyframe, '' where there is none."""
    lanes: LaneLabels | None = None
    prev_token: str = ""
    next_token: str = ""
    can_signals: NDArray[np.float64] | None = None
    """[9] of the car's own bus: acceleration (m/s^2), turn rate (rad/s), velocity (m/s), x y z each in the EGO frame;
    None where nobody recorded them."""

    @property
    def global_from_lidar(self) -> NDArray[np.float64]:
        return self.global_from_ego @ self.ego_from_lidar

    def lidar_boxes(self) -> NDArray[np.float64]:
        """Annotated boxes [n, 9] in the LIDAR frame."""
        if self.annotations is None:
            return np.zeros((0, 9))
        return self.annotations.boxes_in(invert_pose(self.global_from_lidar))


def past_lidar_from_current(current: Frame, past: Frame) -> NDArray[np.float64]:
    """[4, 4]: points of the current LIDAR frame in the past (or future) keyframe's LIDAR frame, by ego motion alone.

    As upstream, the current frame's LiDAR mounting stands for both (spec/bevformer.md section 2.3; equal on nuScenes,
    where the mounting is constant within a scene).
    """
    return (
        invert_pose(current.ego_from_lidar)
        @ invert_pose(past.global_from_ego)
        @ current.global_from_ego
        @ current.ego_from_lidar
    )


@dataclass
class MonoTargets:
    """Labels of one image for the perspective head (after image augmentation, un-flipped)."""

    boxes_xyxy_px: Tensor
    """[m, 4] 2D boxes of the projected corners."""
    labels: Tensor
    """[m] long"""
    boxes3d_camera: Tensor
    """[m, 10]: quaternion (w, x, y, z) and centre (x, y, z) in the camera frame, size (w, l, h)."""
    attributes: Tensor
    """[m] long, 3 where the object has none."""
    speed: Tensor
    """[m] m/s, NaN where unknown."""

    def to(self, device: torch.device | str) -> MonoTargets:
        return MonoTargets(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass
class OccupancyTargets:
    """Voxel labels of one sample as tensors, EGO frame, never augmented."""

    semantics: Tensor
    """[X, Y, Z] uint8"""
    mask_lidar: Tensor
    """[X, Y, Z] bool"""
    mask_camera: Tensor
    """[X, Y, Z] bool"""

    def to(self, device: torch.device | str) -> OccupancyTargets:
        return OccupancyTargets(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass
class LaneTargets:
    """Lane labels of one sample as tensors; lanes in the EGO frame."""

    centrelines: list[Tensor]
    """n x [points, 3] metres"""
    elements_xyxy_px: Tensor
    """[k, 4] in the front image as the model sees it (resized, cropped, not padded, never mirrored)."""
    attributes: Tensor
    """[k] long"""
    lane_lane: Tensor
    """[n, n] bool"""
    lane_element: Tensor
    """[n, k] bool"""
    front_camera: int = 0
    """Index of the camera that shows the elements."""

    def to(self, device: torch.device | str) -> LaneTargets:
        lines = [line.to(device) for line in self.centrelines]
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)[1:-1]}
        return replace(self, centrelines=lines, **moved)


@dataclass
class Batch:
    """What a BEV model takes: B clips of T frames (ascending in time) of N cameras."""

    images: Tensor
    """[B, T, N, 3, H, W] normalised, padded with zeros at the bottom and right (mirrored images: left, so that the
    features, mirrored back, have it right); zeros where a frame is missing."""
    frame_offsets: tuple[int, ...]
    """Time offsets in keyframes, ascending; the current frame is the one at 0."""
    frame_valid: Tensor
    """[B, T] bool: False where the scene has no frame at that offset."""
    image_from_lidar: Tensor
    """[B, T, N, 4, 4]: points of the CURRENT frame's LIDAR frame to pixels of each (un-flipped) image."""
    image_size_px: Tensor
    """[B, T, N, 2] long (height, width) of each image before padding."""
    image_flipped: Tensor
    """[B] bool: the images are mirrored although the matrices are not; the model mirrors the features back."""
    bda: Tensor
    """[B, 3, 3]: BEV augmentation (flip @ scale @ rotation) that was applied to the boxes; identity if none."""
    intrinsics: Tensor
    """[B, N, 3, 3] of the current frame's (un-flipped) images."""
    lidar_from_camera: Tensor
    """[B, N, 4, 4] of the current frame."""
    gt_boxes: list[Tensor] = field(default_factory=list)
    """B x [n, 9] in the current LIDAR frame after BEV augmentation; empty list where there are no labels."""
    gt_labels: list[Tensor] = field(default_factory=list)
    """B x [n] long"""
    mono: list[list[MonoTargets | None]] = field(default_factory=list)
    """B x N, None for an image without labels."""
    occupancy: list[OccupancyTargets | None] = field(default_factory=list)
    """B, None for a sample without voxel labels; empty list where the task is not loaded."""
    lanes: list[LaneTargets | None] = field(default_factory=list)
    """B, None for a sample without lane labels; empty list where the task is not loaded."""
    ego_from_lidar: Tensor | None = None
    """[B, 4, 4] of the current frame."""
    global_from_ego: Tensor | None = None
    """[B, T, 4, 4] float64, each frame's; identity where a frame is missing. A mirrored clip's world is mirrored."""
    can_bus: Tensor | None = None
    """[B, T, 18] float64, absolute numbers of each frame (data_tools/can_bus.py)."""
    frames: list[Frame] = field(default_factory=list)
    """The current frames, for tokens and poses."""

    @property
    def tokens(self) -> list[str]:
        return [frame.token for frame in self.frames]

    @property
    def current(self) -> int:
        """Index of the current frame along T."""
        return self.frame_offsets.index(0)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""

        def move(value: Any) -> Any:
            if isinstance(value, (Tensor, MonoTargets, OccupancyTargets, LaneTargets)):
                return value.to(device)
            return [move(v) for v in value] if isinstance(value, list) else value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class BevFeatures:
    """A BEV map [B, C, num_y, num_x] on a grid of the current LIDAR frame."""

    bev: Tensor
    grid: BevGrid


@dataclass(frozen=True)
class Detections:
    """3D boxes found in one keyframe, best score first."""

    token: str
    boxes: NDArray[np.float32]
    """[k, 9] in the LIDAR frame, geometry.boxes convention."""
    scores: NDArray[np.float32]
    """[k]"""
    labels: NDArray[np.int64]
    """[k] index into the model's class list."""


@dataclass(frozen=True)
class OccupancyGrid:
    """Voxel classes found in one keyframe, in its EGO frame."""

    token: str
    semantics: NDArray[np.uint8]
    """[X, Y, Z]"""


@dataclass(frozen=True)
class LaneGraph:
    """Lanes, traffic elements and how they belong together, found in one keyframe; lanes in the EGO frame."""

    token: str
    centrelines: NDArray[np.float32]
    """[n, points, 3] metres, directed."""
    lane_scores: NDArray[np.float32]
    """[n]"""
    elements_xyxy_px: NDArray[np.float32]
    """[k, 4] in the front image as it lies on disk."""
    attributes: NDArray[np.int64]
    """[k]"""
    element_scores: NDArray[np.float32]
    """[k]"""
    lane_lane: NDArray[np.float32]
    """[n, n] probability that the end of lane i connects to the start of lane j."""
    lane_element: NDArray[np.float32]
    """[n, k] probability that element j governs lane i."""


@dataclass(frozen=True)
class SceneAnswer:
    """All that one model found in one keyframe; None for a task it was not asked for."""

    token: str
    boxes: Detections | None = None
    occupancy: OccupancyGrid | None = None
    lanes: LaneGraph | None = None
