"""What a set of frames must show if its conventions are those that its reader takes: times, speeds, boxes.

Limits: core/physics.py. Statements about conventions (axes, order of sizes, frame of boxes) are made about a set, by
medians, never about one box: labels have errors, conventions do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...core.frames import Frame
from ...core.once import warn_once
from ...core.physics import MAX_DISTANCE_M, MAX_KEYFRAME_GAP_S, MAX_SIZE_M, MAX_SPEED_MPS, MIN_KEYFRAME_GAP_S
from ...geometry import yaw_of

MIN_WITNESSES = 5
"""Boxes or movements that a statement about conventions needs at least."""
MOVING_MPS = 2.0
FEW = 1e-3
"""Share of objects that may be too fast: two objects under one track, as happens in large sets, are no wrong unit."""
NEAR_M = 25.0
"""Within which the ground is taken as flat."""
LOW_M, HIGH_M = -0.5, 10.0
"""Median height of the centres of near boxes over the EGO origin (on the ground): outside, heights are others."""
CAR_WORDS = frozenset("car truck bus trailer van lorry pickup suv taxi ambulance pkw lkw".split())  # noqa: SIM905
LONG_WORDS = CAR_WORDS | {"bicycle", "motorcycle", "bike", "motorbike", "cyclist"}
_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
_USUAL_GAP_S = 0.02, 3.0
_EPOCH_S = 631_152_000, 4_102_444_800
"""Begin of 1990 and of 2100: times since 1970 show their unit."""


def is_one_of(name: str, words: frozenset[str]) -> bool:
    """Whether a class or category ("vehicle.bus.rigid") has one of the words among its parts."""
    return not words.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def unit_of(time: float) -> str:
    """ "seconds" ... "nanoseconds" of a time since 1970, '' where it lies outside 1990 to 2100 in every unit."""
    return next((unit for unit, per_s in _UNITS.items() if _EPOCH_S[0] <= time / per_s <= _EPOCH_S[1]), "")


def unit_hint(time: float, gap_s: float) -> str:
    """Words about the unit of times that were taken for microseconds: by their size since 1970, or by their gaps."""
    unit = unit_of(time)
    if not unit and gap_s > 0:
        unit = next((u for u, n in _UNITS.items() if _USUAL_GAP_S[0] <= gap_s * 1e6 / n <= _USUAL_GAP_S[1]), "")
    if unit in ("", "microseconds"):
        pause = ", or make two scenes where the drive pauses" if gap_s > MAX_KEYFRAME_GAP_S else ""
        return f"timestamps are microseconds; correct them{pause}"
    return f"timestamps are microseconds; these look like {unit}: convert them"


def check_gap(gap_us: float, place: str, time_us: float) -> None:
    """Raises DataError for neighbouring keyframes of a scene that are not MIN to MAX_KEYFRAME_GAP_S apart."""
    gap_s = gap_us * 1e-6
    if MIN_KEYFRAME_GAP_S <= gap_s <= MAX_KEYFRAME_GAP_S:
        return
    what = "have the same time" if gap_us == 0 else f"are {gap_s:.3g} s apart"
    raise DataError(
        f"{place} {what} (keyframes of a scene are {MIN_KEYFRAME_GAP_S:g} to {MAX_KEYFRAME_GAP_S:g} s apart): "
        + unit_hint(time_us, gap_s)
    )


def check_world(frames: Sequence[Frame]) -> None:
    """Raises DataError naming sample and fix where frames break a limit of the physical world, or a convention."""
    _check_drive(frames)
    labelled = [i for i, frame in enumerate(frames) if frame.annotations is not None and len(frame.annotations)]
    if labelled:
        boxes = _Boxes.of(frames, labelled)
        _check_each_box(boxes)
        _check_convention_of_boxes(boxes)


def _check_drive(frames: Sequence[Frame]) -> None:
    """Times and ego motion between neighbours in a scene."""
    index = {frame.token: i for i, frame in enumerate(frames)}
    before = [
        (p, i)
        for i, frame in enumerate(frames)
        if frame.prev_token and (p := index.get(frame.prev_token, i)) != i
        if frames[p].scene_token == frame.scene_token
    ]
    if not before:
        return
    first, last = np.array(before).T
    time_us = np.array([frame.timestamp_us for frame in frames], dtype=np.float64)
    poses = np.stack([frame.global_from_ego for frame in frames])
    gap_us = time_us[last] - time_us[first]
    gap_s = gap_us * 1e-6
    for k in np.flatnonzero(~((gap_s >= MIN_KEYFRAME_GAP_S) & (gap_s <= MAX_KEYFRAME_GAP_S)))[:1]:
        a, b = frames[first[k]], frames[last[k]]
        check_gap(float(gap_us[k]), f"scene {_scene(b)}: samples {a.token} and {b.token}", float(time_us[last[k]]))
    moved = poses[last, :3, 3] - poses[first, :3, 3]  # [k, 3]
    speed = np.linalg.norm(moved, axis=1) / gap_s
    for k in np.flatnonzero(speed > MAX_SPEED_MPS)[:1]:
        a, b = frames[first[k]], frames[last[k]]
        raise DataError(
            f"scene {_scene(b)}: the car moves at {speed[k]:.3g} m/s from sample {a.token} to {b.token}, over "
            f"{MAX_SPEED_MPS:g}; give global_from_ego in metres in one frame for the scene, and times in microseconds"
        )
    _check_heading(poses[last], moved, speed, f"scene {_scene(frames[last[0]])}")


def _check_heading(poses: NDArray[np.float64], moved: NDArray[np.float64], speed: NDArray, where: str) -> None:
    """A car moves along its x axis: poses [k, 4, 4], moved [k, 3]."""
    driving = speed > MOVING_MPS
    if driving.sum() < MIN_WITNESSES:
        return
    direction = moved[driving] / np.linalg.norm(moved[driving], axis=1, keepdims=True)
    ahead = np.sum(direction * poses[driving, :3, 0], 1)
    if np.median(np.abs(ahead)) < 0.5:
        raise DataError(
            f"{where} and others: the car moves across its x axis; EGO is x ahead, y left, z up: turn global_from_ego "
            "and the cameras' ego_from_camera (with quaternions in the order w x y z)"
        )


def _scene(frame: Frame) -> str:
    return frame.scene_name or frame.scene_token


@dataclass(frozen=True)
class _Boxes:
    """All boxes of some frames, end to end: n boxes."""

    frames: Sequence[Frame]
    frame_index: NDArray[np.int64]
    number: NDArray[np.int64]
    """Of each box within its frame."""
    centre_global_m: NDArray[np.float64]
    rotation: NDArray[np.float64]
    size_lwh_m: NDArray[np.float64]
    velocity_mps: NDArray[np.float64]

    @classmethod
    def of(cls, frames: Sequence[Frame], labelled: Sequence[int]) -> _Boxes:
        notes = [note for i in labelled if (note := frames[i].annotations) is not None]
        counts = [len(note) for note in notes]
        join = lambda name: np.concatenate([np.asarray(getattr(note, name), np.float64) for note in notes])
        return cls(
            frames,
            np.repeat(labelled, counts),
            np.concatenate([np.arange(n) for n in counts]),
            join("centre_global_m"),
            join("rotation_global"),
            join("size_lwh_m"),
            join("velocity_global_mps"),
        )

    def place(self, i: int) -> str:
        frame, number = self.frames[self.frame_index[i]], int(self.number[i])
        notes = frame.annotations
        assert notes is not None
        token = f" {notes.tokens[number]}" if notes.tokens[number] else ""
        name = notes.names[number] or (notes.categories[number] if notes.categories else "")
        return f"sample {frame.token}, object {number}{token}{f' ({name})' if name else ''}"

    def one_of(self, words: frozenset[str]) -> NDArray[np.bool_]:
        """[n] whether a box has a class (or, without class, a category) of these words."""
        known: dict[str, bool] = {}
        out = []
        for i in dict.fromkeys(self.frame_index.tolist()):
            notes = self.frames[i].annotations
            assert notes is not None
            for k, name in enumerate(notes.names):
                word = name or (notes.categories[k] if notes.categories else "")
                if word not in known:
                    known[word] = is_one_of(str(word), words)
                out.append(known[word])
        return np.array(out, bool)

    def centre_ego_m(self) -> NDArray[np.float64]:
        """[n, 3]"""
        poses = np.stack([frame.global_from_ego for frame in self.frames])[self.frame_index]  # [n, 4, 4]
        return np.einsum("nji,nj->ni", poses[:, :3, :3], self.centre_global_m - poses[:, :3, 3])


def _first(boxes: _Boxes, bad: NDArray[np.bool_] | np.bool_, what: str, fix: str) -> None:
    for i in np.flatnonzero(bad)[:1]:
        raise DataError(f"{boxes.place(int(i))}: {what}; {fix}")


def _check_each_box(boxes: _Boxes) -> None:
    size, velocity = boxes.size_lwh_m, boxes.velocity_mps
    _first(boxes, ~np.isfinite(boxes.centre_global_m).all(1), "its centre is not finite", "correct or leave it out")
    _first(boxes, ~np.isfinite(boxes.rotation).all((1, 2)), "its rotation is unusable", "give a quaternion w x y z")
    _first(boxes, ~(np.isfinite(size) & (size > 0)).all(1), "a size is not a number above 0", "correct or leave it out")
    for i in np.flatnonzero((size > MAX_SIZE_M).any(1))[:1]:
        raise DataError(f"{boxes.place(int(i))}: is {size[i].max():.3g} m in size, over {MAX_SIZE_M:g}; give metres")
    speed = np.hypot(*velocity.T)
    fast = speed > MAX_SPEED_MPS
    for i in np.flatnonzero(fast)[:1]:
        what = f"{boxes.place(int(i))}: moves at {speed[i]:.3g} m/s, over {MAX_SPEED_MPS:g}"
        if fast.mean() < FEW and np.nanmax(speed[fast]) < 10 * MAX_SPEED_MPS:
            warn_once(
                f"{what} ({fast.sum()} of {len(fast)} objects are so fast); their velocities are used as they are"
            )
            break
        raise DataError(
            f"{what}; give m/s (where velocities come from positions: times in microseconds), NaN where it is unknown"
        )


def _check_convention_of_boxes(boxes: _Boxes) -> None:
    centre = boxes.centre_ego_m()
    distance = np.linalg.norm(centre, axis=1)
    # boxes in the car's own frame lie around the global origin, wherever the car is
    if np.median(distance) > 3 * NEAR_M and np.median(np.linalg.norm(boxes.centre_global_m, axis=1)) < 3 * NEAR_M:
        raise DataError(
            f"{boxes.place(0)}: lies {distance[0]:.0f} m from the car, and the others too, but near the global origin: "
            "boxes look to be in the frame of the car or LiDAR; give them in the global frame (global_from_ego @ box)"
        )
    for i in np.flatnonzero(distance > MAX_DISTANCE_M)[:1]:
        raise DataError(
            f"{boxes.place(int(i))}: lies {distance[i]:.0f} m from the car, over {MAX_DISTANCE_M:g}; boxes and poses "
            "of the car must be in one global frame (UTM or local, not both), in metres"
        )
    near = np.linalg.norm(centre[:, :2], axis=1) < NEAR_M
    if near.sum() >= 2 * MIN_WITNESSES and not LOW_M < (height := float(np.median(centre[near, 2]))) < HIGH_M:
        raise DataError(
            f"{boxes.place(0)} and others: boxes within {NEAR_M:g} m have their centres at {height:.1f} m over the EGO "
            "origin, which is on the ground: boxes look to be in the frame of the LiDAR, or poses and boxes differ in "
            "height; give centres in the global frame of global_from_ego"
        )
    _check_orientation_of_boxes(boxes)


def _check_orientation_of_boxes(boxes: _Boxes) -> None:
    if len(boxes.size_lwh_m) >= MIN_WITNESSES and np.median(boxes.rotation[:, 2, 2]) < 0.7:
        raise DataError(
            f"{boxes.place(0)} and others: boxes do not stand upright; give rotations about z, quaternions as w x y z"
        )
    cars = boxes.one_of(CAR_WORDS)
    size = boxes.size_lwh_m[cars]
    if len(size) >= MIN_WITNESSES and np.median(size[:, 0] / size[:, 1]) < 1:
        raise DataError(
            f"{boxes.place(int(np.flatnonzero(cars)[0]))} and others: vehicles are wider than long (median "
            f"{np.median(size[:, 0]):.1f} m long, {np.median(size[:, 1]):.1f} m wide): length and width are exchanged; "
            "give them in the order that the reader states (nuScenes tables: width, length, height)"
        )
    velocity = boxes.velocity_mps[cars]
    moving = np.nan_to_num(np.hypot(*velocity.T)) > MOVING_MPS
    if moving.sum() >= MIN_WITNESSES:
        yaw = yaw_of(boxes.rotation[cars][moving])
        turn = np.abs(np.cos(yaw - np.arctan2(velocity[moving, 1], velocity[moving, 0])))
        if np.median(turn) < 0.5:
            raise DataError(
                f"{boxes.place(int(np.flatnonzero(cars)[0]))} and others: vehicles move across their headings; yaw is "
                "counter-clockwise from x to the direction of the length"
            )


def check_times(times_us: Iterable[float], tokens: Sequence[str], scene: str) -> None:
    """Holds the times of one scene's samples, in order, against MIN to MAX_KEYFRAME_GAP_S. Raises DataError."""
    times = list(times_us)
    for k, (a, b) in enumerate(pairwise(times)):
        check_gap(b - a, f"scene {scene}: samples {tokens[k]} and {tokens[k + 1]}", b)
