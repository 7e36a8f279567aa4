"""Labelled boxes: how many of each class, how large, how far, in which cameras, with how many LiDAR points.

Shapes: n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...core.frames import Frame
from ...geometry import box_corners, invert_pose, points_in_boxes, transform_points
from ..readers.lidar import read_lidar
from ..readers.lidar_check import MARGIN_M
from ..readers.world import is_one_of
from .cameras import in_image

MOST_FRAMES = 200
"""That are projected into cameras, evenly over the set."""
MOST_SWEEPS = 8
"""LiDAR sweeps that are read, likewise."""
NEAR_M = 25.0
_FEWEST = 10
"""Boxes that a statement about a set needs."""
_MAX_FLOAT_M = 0.5
_USUAL_M = {
    ("length", frozenset({"car", "pkw"})): (3.0, 6.5),
    ("height", frozenset({"pedestrian", "person", "adult", "worker"})): (1.2, 2.2),
}
"""(side, words of the class) -> between which its median lies."""
_SIDES = ("length", "width", "height")


def survey_boxes(frames: Sequence[Frame]) -> tuple[dict[str, Any], list[str]]:
    """Numbers, and what looks wrong."""
    labelled = [frame for frame in frames if frame.annotations is not None]
    numbers: dict[str, Any] = {"labelled_keyframes": len(labelled), "boxes": 0, "classes": {}}
    if not any(len(frame.annotations or ()) for frame in labelled):
        return numbers, []
    table = _Table(labelled)
    numbers |= {
        "boxes": len(table.names),
        "without_class": int((table.names == "").sum()),
        "per_keyframe": {"median": float(np.median(table.per_frame)), "max": int(max(table.per_frame))},
        "tracks": len({track for frame in labelled for track in frame.annotations.instance_tokens if track}),  # type: ignore[union-attr]
        "classes": {name: table.of_class(name) for name in sorted(set(table.names.tolist()))},
        "height_of_bottoms_m": _median(table.bottom_m[table.distance_m < NEAR_M]),
    }
    numbers["in_cameras"] = seen = _in_cameras(labelled)
    numbers["lidar"] = lidar = _lidar(labelled)
    return numbers, _wrong(table, numbers, seen, lidar)


class _Table:
    """All boxes of some frames, end to end."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        notes = [frame.annotations for frame in frames if frame.annotations is not None]
        self.per_frame = [len(note) for note in notes]
        self.names = np.array([name for note in notes for name in note.names], dtype=object)
        self.size_m = np.concatenate([note.size_lwh_m for note in notes])
        self.velocity_mps = np.concatenate([note.velocity_global_mps for note in notes])
        self.lidar_points = np.concatenate([note.num_lidar_points for note in notes])
        centres = [
            transform_points(invert_pose(frame.global_from_ego), frame.annotations.centre_global_m)
            for frame in frames
            if frame.annotations is not None
        ]
        self.centre_ego_m = np.concatenate(centres)
        self.distance_m = np.hypot(*self.centre_ego_m[:, :2].T)
        self.bottom_m = self.centre_ego_m[:, 2] - self.size_m[:, 2] / 2
        self._tokens, self._ends = [frame.token for frame in frames], np.cumsum(self.per_frame)

    def place(self, box: int) -> str:
        """Words for a box."""
        frame = int(np.searchsorted(self._ends, box, side="right"))
        return f"{self._tokens[frame]} object {box - int(self._ends[frame]) + self.per_frame[frame]}"

    def of_class(self, name: str) -> dict[str, Any]:
        own = np.flatnonzero(self.names == name)
        size, speed = self.size_m[own], np.hypot(*self.velocity_mps[own].T)
        out: dict[str, Any] = {"boxes": len(own)}
        for axis, side in enumerate(_SIDES):
            low, high = int(own[size[:, axis].argmin()]), int(own[size[:, axis].argmax()])
            out[f"{side}_m"] = {
                "median": _median(size[:, axis]),
                "min": _rounded(self.size_m[low, axis]),
                "min_in": self.place(low),
                "max": _rounded(self.size_m[high, axis]),
                "max_in": self.place(high),
            }
        known = speed[np.isfinite(speed)]
        return out | {
            "distance_m": {"median": _median(self.distance_m[own]), "max": _rounded(self.distance_m[own].max())},
            "speed_known": _rounded(len(known) / len(own)),
            "speed_max_mps": _rounded(known.max()) if len(known) else None,
            "without_lidar_points": _rounded((self.lidar_points[own] == 0).mean()),
        }


def _in_cameras(frames: Sequence[Frame]) -> dict[str, Any]:
    """How many boxes show up in cameras: with their middle or a corner, at each camera's own time."""
    places = np.unique(np.linspace(0, len(frames) - 1, min(MOST_FRAMES, len(frames))).round().astype(int))
    total = once = twice = 0
    by_camera: dict[str, int] = {}
    for frame in (frames[i] for i in places):
        boxes = frame.bev_boxes()
        if not len(boxes):
            continue
        points = np.concatenate([boxes[:, None, :3], box_corners(boxes[:, :7])], 1)  # [n, 9, 3]
        count = np.zeros(len(boxes), int)
        for view in frame.cameras:
            local = transform_points(invert_pose(frame.bev_from_camera(view)), points.reshape(-1, 3))
            inside = in_image(view.camera, local).reshape(points.shape[:2]).any(1)
            by_camera[view.name] = by_camera.get(view.name, 0) + int(inside.sum())
            count += inside
        total, once, twice = total + len(boxes), once + int((count > 0).sum()), twice + int((count > 1).sum())
    share = lambda number: _rounded(number / total) if total else None
    return {"keyframes": len(places), "boxes": total, "in_one": share(once), "in_several": share(twice),
            "by_camera": by_camera}  # fmt: skip


def _lidar(frames: Sequence[Frame]) -> dict[str, Any] | None:
    """How many near boxes hold points of the LiDAR; None where there is no sweep that can be read."""
    with_sweep = [frame for frame in frames if frame.lidar_path]
    places = np.unique(np.linspace(0, len(with_sweep) - 1, min(MOST_SWEEPS, len(with_sweep))).round().astype(int))
    points_in: list[int] = []
    read = 0
    for frame in (with_sweep[i] for i in places):
        try:
            points = read_lidar(frame)
        except DataError:
            continue
        if not len(points):
            continue
        read += 1
        boxes = frame.bev_boxes()
        boxes = boxes[np.linalg.norm(boxes[:, :2], axis=1) < NEAR_M]
        for box in boxes:
            box = box.copy()
            box[3:6] += 2 * MARGIN_M
            near = points[(np.abs(points - box[:3]) < np.linalg.norm(box[3:6])).all(1)]
            points_in.append(int(points_in_boxes(near, box[None, :7]).sum()))
    if not read:
        return None
    counts: NDArray[np.int64] = np.array(points_in, np.int64)
    return {
        "sweeps": read,
        "near_boxes": len(counts),
        "with_points": _rounded((counts > 0).mean()) if len(counts) else None,
        "median_points": float(np.median(counts)) if len(counts) else None,
    }


def _wrong(table: _Table, numbers: dict, seen: dict, lidar: dict | None) -> list[str]:
    out = []
    near = table.bottom_m[table.distance_m < NEAR_M]
    if len(near) >= _FEWEST and abs(middle := float(np.median(near))) > _MAX_FLOAT_M:
        out.append(
            f"boxes within {NEAR_M:g} m {'float' if middle > 0 else 'sink'}: their bottoms are {middle:.2f} m over the "
            "EGO origin; is it on the ground, and are centres the middles of boxes?"
        )
    if seen["boxes"] >= _FEWEST and seen["in_one"] == 0:
        out.append("no box shows up in any camera: check ego_from_camera, global_from_ego and the frame of the boxes")
    for (side, words), (low, high) in _USUAL_M.items():
        for name, facts in numbers["classes"].items():
            median = facts[f"{side}_m"]["median"]
            if facts["boxes"] >= _FEWEST and is_one_of(name, words) and not low <= median <= high:
                out.append(
                    f"class {name}: the median {side} is {median:.2f} m, usual are {low:g} to {high:g}: check sizes"
                )
    if lidar is not None and lidar["near_boxes"] >= _FEWEST and lidar["with_points"] < 0.5:
        out.append(
            f"only {lidar['with_points']:.0%} of {lidar['near_boxes']} boxes within {NEAR_M:g} m hold LiDAR points: "
            "boxes and sweeps differ in frame or time"
        )
    return out


def _median(values: NDArray[np.float64]) -> float | None:
    return _rounded(np.median(values)) if len(values) else None


def _rounded(value: Any) -> float:
    return round(float(value), 3)
