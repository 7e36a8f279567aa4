"""What comes out of a model for one keyframe: boxes (Detections), voxels (OccupancyGrid) and lanes (LaneGraph).

Shapes: n lanes, k boxes or traffic elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_TRACK = -1
"""The id of a box that belongs to no track."""


@dataclass(frozen=True)
class Detections:
    """3D boxes found in one keyframe, best score first."""

    token: str
    boxes: NDArray[np.float32]
    """[k, 9] in the BEV frame, geometry.boxes convention."""
    scores: NDArray[np.float32]
    """[k]"""
    labels: NDArray[np.int64]
    """[k] index into the model's class list."""
    track_ids: NDArray[np.int64] | None = None
    """[k] the same number for the same object in all keyframes of a scene, NO_TRACK for a box of no track; None where
    nothing links keyframes."""


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
    """All that one model found in one keyframe; None for a task that was not requested."""

    token: str
    boxes: Detections | None = None
    occupancy: OccupancyGrid | None = None
    lanes: LaneGraph | None = None
