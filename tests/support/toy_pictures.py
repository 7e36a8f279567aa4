"""Frames and answers to draw: grey cameras around the car, boxes, lanes, voxels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from drivestack.core.answers import Detections, LaneGraph
from drivestack.core.frames import Annotations, CameraView, Frame
from drivestack.core.labels import LaneLabels
from drivestack.geometry import CameraModel, pose, rotation_z

FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead
EGO_FROM_LIDAR = pose(rotation_z(-np.pi / 2), [0.0, 0.0, 0.0])  # x to the right, y forward, as on nuScenes
RING_DEGREES = {"FRONT": 0, "FRONT_RIGHT": -55, "FRONT_LEFT": 55, "BACK": 180, "BACK_LEFT": 110, "BACK_RIGHT": -110}


def camera_view(folder: Path, name: str, degrees: float, size_px: tuple[int, int] = (160, 90)) -> CameraView:
    """A grey camera of 90 degrees, turned to the left by ``degrees``, 1.5 m above the ego origin."""
    width_px, height_px = size_px
    matrix = np.array([[width_px / 2, 0, width_px / 2], [0, width_px / 2, height_px / 2], [0, 0, 1]])
    ego_from_camera = pose(rotation_z(np.radians(degrees)) @ FORWARD, [0.0, 0.0, 1.5])
    path = folder / f"{name}.png"
    Image.new("RGB", size_px, (90, 90, 90)).save(path)
    return CameraView(name, CameraModel(matrix, width_px, height_px), ego_from_camera, np.eye(4), 0, str(path))


def annotations(boxes_ego: Sequence[Sequence[float]], names: list[str]) -> Annotations:
    """Labels of boxes [n, 7] in the ego frame, which is the global one here."""
    boxes, count = np.array(boxes_ego, float).reshape(-1, 7), len(names)
    empty = [""] * count
    seen, unseen = np.ones(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    turned = rotation_z(boxes[:, 6])
    return Annotations(
        names, boxes[:, :3], turned, boxes[:, 3:6], np.zeros((count, 2)), empty, seen, unseen, empty, empty
    )


def detections(boxes_ego: Sequence[Sequence[float]], labels: Sequence[int], score: float = 0.9) -> Detections:
    """Boxes [n, 7] of the ego frame as a model finds them in the BEV frame."""
    boxes = np.array(boxes_ego, float).reshape(-1, 7)
    found = np.zeros((len(boxes), 9), np.float32)
    found[:, :3] = boxes[:, :3] @ EGO_FROM_LIDAR[:3, :3]
    found[:, 3:6], found[:, 6] = boxes[:, 3:6], boxes[:, 6] + np.pi / 2
    return Detections("token", found, np.full(len(boxes), score, np.float32), np.array(labels, np.int64))


def toy_frame(folder: Path, cameras: Sequence[tuple] | None = None, **fields: object) -> Frame:
    """One keyframe; cameras: (name, degrees, size) each, default a ring of six."""
    cameras = list(RING_DEGREES.items()) if cameras is None else cameras
    views = tuple(camera_view(folder, *camera) for camera in cameras)
    return Frame("token", "s", "scene-0001", 0, views, np.eye(4), EGO_FROM_LIDAR, **fields)


def lane_graph(attribute: int = 1) -> LaneGraph:
    """Two lanes, the first ends where the second starts, and a light for the first (1 red, 2 green)."""
    x = np.linspace(0, 20, 11, dtype=np.float32)
    line = np.stack([x, np.full(11, 4, np.float32), np.zeros(11, np.float32)], 1)
    return LaneGraph(
        "token",
        np.stack([line, line + [20, 0, 0]]).astype(np.float32),
        np.array([0.9, 0.8], np.float32),
        np.array([[60, 10, 80, 30]], np.float32),
        np.array([attribute]),
        np.array([0.9], np.float32),
        np.array([[0, 0.9], [0, 0]], np.float32),
        np.array([[0.9], [0]], np.float32),
    )


def lane_labels(attribute: int = 1) -> LaneLabels:
    graph = lane_graph(attribute)
    return LaneLabels(
        list(graph.centrelines),
        np.zeros(2, bool),
        graph.elements_xyxy_px,
        graph.attributes,
        (graph.lane_lane > 0.5).astype(np.int8),
        (graph.lane_element > 0.5).astype(np.int8),
    )


def voxels() -> np.ndarray:
    """A road (11) and a car (4)."""
    out = np.full((200, 200, 16), 17, np.uint8)
    out[:, :, 2] = 11
    out[120:130, 100:105, 3:7] = 4
    return out


def shows(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Pixels of the colour's hue, as thin lines blend with what is under them."""
    hue = np.subtract(colour, np.mean(colour))
    hues = picture - picture.mean(-1, keepdims=True)
    strength = np.linalg.norm(hues, axis=-1)
    return int(((hues @ hue > 0.97 * np.linalg.norm(hue) * strength) & (strength > 25)).sum())
