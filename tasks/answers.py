"""A model's answer for one keyframe, for programs: EGO frame, metres, class names beside numbers.

Shapes: n boxes, lanes; k traffic elements; X, Y, Z voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.answers import Detections, LaneGraph, OccupancyGrid, SceneAnswer
from ..core.errors import DataError
from ..core.frames import Frame
from ..core.labels import ELEMENT_ATTRIBUTES
from ..core.rig import as_image
from ..geometry import OCC3D_GRID, VoxelGrid, transform_boxes
from ..occupancy.classes import OCC3D_NUSCENES

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Boxes:
    """3D boxes in the EGO frame (x ahead, y left, z up), best score first."""

    centre_m: NDArray[np.float32]
    """[n, 3], the middle of each box."""
    size_lwh_m: NDArray[np.float32]
    """[n, 3]: length along the heading, width, height."""
    yaw_rad: NDArray[np.float32]
    """[n], counter-clockwise from ahead."""
    velocity_mps: NDArray[np.float32]
    """[n, 2] over the ground."""
    scores: NDArray[np.float32]
    """[n]"""
    labels: NDArray[np.int64]
    """[n], index into the model's classes."""
    names: list[str]
    """n class names."""
    track_ids: NDArray[np.int64] | None = None
    """[n] the same number for the same object in all keyframes of a drive, -1 for a box of no track; None where the
    model gives none."""

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Boxes:
        """The boxes with at least this score."""
        kept = self.scores >= score
        held = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "names"}
        arrays: dict[str, Any] = {name: None if values is None else values[kept] for name, values in held.items()}
        return Boxes(**arrays, names=[name for name, own in zip(self.names, kept) if own])


@dataclass(frozen=True)
class Voxels:
    """Occupancy around the car in the EGO frame."""

    semantics: NDArray[np.uint8]
    """[X, Y, Z] class of each voxel."""
    class_names: tuple[str, ...]
    free: int
    """The class of empty voxels."""
    grid: VoxelGrid

    def occupied(self) -> tuple[NDArray[np.float64], list[str]]:
        """Centres [m, 3] in metres of the voxels that hold something, and the class of each."""
        where = np.argwhere(self.semantics != self.free)
        return self.grid.centres_of(where), [self.class_names[i] for i in self.semantics[tuple(where.T)]]


@dataclass(frozen=True)
class Lanes:
    """Centrelines in the EGO frame, traffic elements in the front camera's image, and their relations."""

    centrelines: NDArray[np.float32]
    """[n, points, 3] metres, directed along the traffic."""
    scores: NDArray[np.float32]
    """[n]"""
    elements_xyxy_px: NDArray[np.float32]
    """[k, 4] in the front camera's image as it was given."""
    element_names: list[str]
    """k of core.labels.ELEMENT_ATTRIBUTES, such as red or turn_left."""
    element_scores: NDArray[np.float32]
    """[k]"""
    lane_lane: NDArray[np.float32]
    """[n, n] probability that the end of lane i connects to the start of lane j."""
    lane_element: NDArray[np.float32]
    """[n, k] probability that element j governs lane i."""

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Answer:
    """The predictions for one keyframe; None for a task that the model does not have."""

    boxes: Boxes | None
    voxels: Voxels | None
    lanes: Lanes | None
    frame: Frame
    """The images and poses that it was made from."""
    raw: SceneAnswer
    """The same as the model gave it, boxes in the BEV frame."""
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, raw: SceneAnswer, frame: Frame, class_names: Sequence[str]) -> Answer:
        """From a model's output for a frame."""
        boxes = None if raw.boxes is None else _boxes(raw.boxes, frame, class_names)
        voxels = None if raw.occupancy is None else _voxels(raw.occupancy)
        lanes = None if raw.lanes is None else _lanes(raw.lanes)
        return cls(boxes, voxels, lanes, frame, raw, tuple(class_names))

    def picture(
        self, images: Mapping[str, Any] | None = None, score_threshold: float = 0.3, camera_width_px: int = 560
    ) -> Image:
        """Boxes, lanes and voxels drawn into the camera images and from above.

        images: others than the answer was made from, by camera name (paths, arrays, PIL images, tensors).
        """
        from PIL import Image

        from ..view.drawing import View
        from ..view.picture import render_answers

        frame = self.frame
        if images is not None:
            if missing := [view.name for view in frame.cameras if view.name not in images]:
                raise DataError(f"no image of camera {missing[0]}")
            pixels = {name: as_image(image, name) for name, image in images.items()}
            views = (
                replace(v, image_path=pixels[v.name][0], image=pixels[v.name][1], encoded=None) for v in frame.cameras
            )
            frame = replace(frame, cameras=tuple(views))
        view = View(score_threshold=score_threshold, camera_width_px=camera_width_px)
        return Image.fromarray(render_answers(frame, self.raw, self.class_names, view))

    def to_nuscenes(self, class_range_m: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
        """The boxes as entries of a nuScenes submission, in the global frame; other classes within 50 m."""
        from ..bev.evaluation.nuscenes_submission import NuScenesSubmission
        from .boxes import detection_settings

        if self.raw.boxes is None:
            return []
        ranges = detection_settings(list(self.class_names), class_range_m or {}).class_range_m
        made = NuScenesSubmission.from_detections([self.raw.boxes], [self.frame], self.class_names, ranges)
        return made.results[self.frame.token]

    def to_openlane(self, half: bool = False) -> dict[str, Any]:
        """The lanes as the ``predictions`` of a frame in an OpenLane-V2 submission."""
        from ..lane_topology.evaluation.submission import frame_entry

        if self.raw.lanes is None:
            raise DataError("this model answers no lanes")
        return frame_entry(self.raw.lanes, half)


def _boxes(found: Detections, frame: Frame, class_names: Sequence[str]) -> Boxes:
    boxes = transform_boxes(frame.ego_from_bev, np.asarray(found.boxes, np.float64)).astype(np.float32)  # [n, 9]
    names = [class_names[label] for label in found.labels]
    columns = boxes[:, :3], boxes[:, 3:6], boxes[:, 6], boxes[:, 7:9]
    return Boxes(*columns, found.scores, found.labels, names, found.track_ids)


def _voxels(found: OccupancyGrid) -> Voxels:
    return Voxels(found.semantics, OCC3D_NUSCENES, len(OCC3D_NUSCENES) - 1, OCC3D_GRID)


def _lanes(found: LaneGraph) -> Lanes:
    names = [ELEMENT_ATTRIBUTES[attribute] for attribute in found.attributes]
    return Lanes(
        found.centrelines,
        found.lane_scores,
        found.elements_xyxy_px,
        names,
        found.element_scores,
        found.lane_lane,
        found.lane_element,
    )
