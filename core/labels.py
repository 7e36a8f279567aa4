"""Labels of one keyframe as a reader gives them, and as tensors for a loss.

Shapes: n lanes, k traffic elements, m boxes in one image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class OccupancyLabels:
    """Voxel classes of one keyframe in its EGO frame, and which voxels were observed (Occ3D layout, [x, y, z])."""

    semantics: NDArray[np.uint8]
    """[X, Y, Z] class of each voxel; Occ3D-nuScenes: 0..16 things and surfaces, 17 free."""
    mask_lidar: NDArray[np.bool_] | None
    """[X, Y, Z] True where an accumulated LiDAR ray passed or ended; None where the data set has no masks (OpenOcc)."""
    mask_camera: NDArray[np.bool_] | None
    """[X, Y, Z] True where the current cameras see; None like ``mask_lidar``."""
    openocc: bool = False
    """Whether the file had OpenOcc's class numbers; ``semantics`` has Occ3D's all the same."""


ELEMENT_ATTRIBUTES = (
    "unknown", "red", "green", "yellow", "go_straight", "turn_left", "turn_right", "no_left_turn", "no_right_turn",
    "u_turn", "no_u_turn", "slight_left", "slight_right",
)  # fmt: skip
"""The attributes of OpenLane-V2's traffic elements, by number: lights up to yellow, then signs."""


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
class LaneSegments:
    """Lane segments, areas and traffic elements of one frame in its EGO frame: labels, or predictions with scores."""

    centrelines: list[NDArray[np.float32]]
    """n x [points, 3] metres, directed along the traffic."""
    left: list[NDArray[np.float32]]
    right: list[NDArray[np.float32]]
    areas: list[NDArray[np.float32]]
    """a x [points, 3] metres."""
    area_categories: NDArray[np.int64]
    """[a] values of AREA_CATEGORIES."""
    elements_xyxy_px: NDArray[np.float32]
    attributes: NDArray[np.int64]
    lane_lane: NDArray[np.floating] | NDArray[np.int8]
    """[n, n] whether, or how surely, the end of segment i connects to the start of segment j."""
    lane_element: NDArray[np.floating] | NDArray[np.int8]
    """[n, k]"""
    left_types: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[n] indices of LINE_TYPES; empty for predictions."""
    right_types: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    is_connector: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """[n]; empty for predictions."""
    lane_scores: NDArray[np.floating] = field(default_factory=lambda: np.zeros(0))
    """[n]; empty for labels, like the other scores."""
    area_scores: NDArray[np.floating] = field(default_factory=lambda: np.zeros(0))
    element_scores: NDArray[np.floating] = field(default_factory=lambda: np.zeros(0))


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
    mask_lidar: Tensor | None
    """[X, Y, Z] bool, None where the labels have no masks"""
    mask_camera: Tensor | None
    """[X, Y, Z] bool, None where the labels have no masks"""

    def map(self, change: Callable[[Tensor], Tensor]) -> OccupancyTargets:
        """``change`` of every tensor that is there."""
        masks = (None if mask is None else change(mask) for mask in (self.mask_lidar, self.mask_camera))
        return OccupancyTargets(change(self.semantics), *masks)

    def to(self, device: torch.device | str) -> OccupancyTargets:
        return self.map(lambda grid: grid.to(device))


@dataclass
class DepthTargets:
    """Depth of what the cells of one sample's images show, in metres along the viewing axis (un-flipped images).

    A cell has STRIDE_PX x STRIDE_PX pixels of the network's input, padding included. One depth says what it shows where
    nearest and farthest are close.
    """

    nearest_m: Tensor
    """[N, h, w]; inf where there is only sky, or no label."""
    farthest_m: Tensor
    """[N, h, w]; inf where there is some sky, 0 where there is no label."""

    STRIDE_PX: ClassVar[int] = 8

    def to(self, device: torch.device | str) -> DepthTargets:
        return DepthTargets(self.nearest_m.to(device), self.farthest_m.to(device))


@dataclass
class LaneTargets:
    """Lane labels of one sample as tensors; lanes in the EGO frame."""

    centrelines: list[Tensor]
    """n x [points, 3] metres"""
    elements_xyxy_px: Tensor
    """[k, 4] in the front image as network input (resized, cropped, not padded, never mirrored)."""
    attributes: Tensor
    """[k] long"""
    lane_lane: Tensor
    """[n, n] bool"""
    lane_element: Tensor
    """[n, k] bool"""
    front_camera: int | None = 0
    """Index of the camera that shows the elements; None: no camera looks ahead, and there are no elements."""

    def to(self, device: torch.device | str) -> LaneTargets:
        lines = [line.to(device) for line in self.centrelines]
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)[1:-1]}
        return replace(self, centrelines=lines, **moved)
