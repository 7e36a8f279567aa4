"""Border checks of every reader's output: what would otherwise only degrade training, or write outside a folder.

Here: what one frame or camera shows by itself. What a whole set shows (times, speeds, boxes): world.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...core.files import file_name
from ...core.frames import Annotations, Frame
from ...core.once import warn_once
from ...geometry import matrix_to_quaternion, quaternion_to_matrix
from .cameras import MAX_SIDE_PX
from .world import check_world

MAX_MOUNTING_M = 20.0
"""Of a camera from the EGO origin: a bus is 18 m long."""
MIN_UP = 0.7
"""Cosine of the angle between the EGO frame's z axis and the global one: about 45 degrees."""
INT64 = 2**63
_MAX_COORDINATE_M = 1e9


def check_frames(frames: Iterable[Frame]) -> None:
    """Holds frames against what files, cameras and the physical world allow.

    Frame by frame: names that can be parts of paths, at least one camera, rigid poses, EGO upright, cameras on the car
    and not inverted, label arrays of equal length. As a set: times, speeds, sizes and places of boxes (world.py).
    Raises DataError naming sample, camera or box, path and fix at the first that fails.
    """
    frames = list(frames)
    for check in (_check_each, _check_all_poses, check_world):
        with noting():
            check(frames)


_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)


@contextmanager
def problems_noted() -> Iterator[list[str]]:
    """Within, what the border checks would refuse is noted in this list, so that a set with a wrong calibration or
    label can be looked at. Its frames may hold anything."""
    problems: list[str] = []
    token = _noted.set(problems)
    try:
        yield problems
    finally:
        _noted.reset(token)


@contextmanager
def noting() -> Iterator[None]:
    """Around a check: its DataError passes, or is noted within ``problems_noted``."""
    problems = _noted.get()
    try:
        yield
    except DataError as error:
        if problems is None:
            raise
        if str(error) not in problems:
            problems.append(str(error))


def _check_each(frames: Sequence[Frame]) -> None:
    names: set[tuple[str, str]] = set()
    for frame in frames:
        _check_names(frame, names)
        if frame.annotations is not None:
            check_label_shapes(frame.annotations, f"sample {frame.token}")


def _check_all_poses(frames: Sequence[Frame]) -> None:
    if frames:
        poses = _Poses.of(frames)
        _check_poses(poses)
        _check_mountings(poses)


def rigid_problem(poses: NDArray[np.float64]) -> tuple[int, str] | None:
    """Index and description of the first of the poses [k, 4, 4] that is not a finite rigid transform, or None."""
    finite = np.all(np.abs(poses) < _MAX_COORDINATE_M, axis=(1, 2))  # NaN fails too
    rotation = np.where(finite[:, None, None], poses, np.eye(4))[:, :3, :3]
    error = np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max((1, 2))
    proper = (error < 1e-3) & (np.linalg.det(rotation) > 0)
    for i in np.flatnonzero(~(finite & proper)):
        return int(i), "has a NaN, infinite or absurd entry" if not finite[i] else "is not a rotation and translation"
    return None


def _check_names(frame: Frame, known: set[tuple[str, str]]) -> None:
    """Tokens may have parts ("split/segment/time"), each of which becomes a folder or file; known: checked before."""
    if not isinstance(frame.token, str) or not isinstance(frame.scene_token, str):
        raise DataError(f"sample {str(frame.token)[:100]!r}: tokens must be texts; write them as such")
    if not frame.cameras:
        raise DataError(f"sample {frame.token}: no camera; a frame needs at least one image")
    wanted = [("sample token", part) for part in frame.token.split("/") if frame.token]
    wanted += [("scene token", part) for part in frame.scene_token.split("/") if frame.scene_token]
    wanted += [("scene name", frame.scene_name)] if frame.scene_name else []
    for what, text in (*wanted, *(("camera name", view.name) for view in frame.cameras)):
        if (what, text) not in known:
            file_name(text, f"sample {frame.token[:100]}: {what}")
            known.add((what, text))
    for view in frame.cameras:
        width, height = view.image_size_px
        if not (width <= MAX_SIDE_PX and height <= MAX_SIDE_PX):
            raise DataError(
                f"sample {frame.token}, camera {view.name} ({view.source}): image size {width} x {height} is over "
                f"{MAX_SIDE_PX} pixels; correct it"
            )
        if not -INT64 <= view.timestamp_us < INT64:
            raise DataError(f"sample {frame.token}, camera {view.name}: timestamp_us is no time; give microseconds")
    if not -INT64 <= frame.timestamp_us < INT64:
        raise DataError(f"sample {frame.token}: timestamp_us is no time; give microseconds")


@dataclass(frozen=True)
class _Poses:
    """All poses of some frames. F frames, N cameras of all frames together."""

    frames: Sequence[Frame]
    frame_of_camera: NDArray[np.int64]
    """[N]"""
    by_name: dict[str, NDArray[np.float64]]
    """ego_from_bev, global_from_ego: [F, 4, 4]; ego_from_camera, camera's global_from_ego: [N, 4, 4]."""

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> _Poses:
        counts = [len(frame.cameras) for frame in frames]
        of_frame: dict[str, list] = {
            "ego_from_bev": [frame.ego_from_bev for frame in frames],
            "global_from_ego": [frame.global_from_ego for frame in frames],
            "ego_from_camera": [view.ego_from_camera for frame in frames for view in frame.cameras],
            "global_from_ego of a camera": [view.global_from_ego for frame in frames for view in frame.cameras],
        }
        self = cls(frames, np.repeat(np.arange(len(frames)), counts), {})
        for name, matrices in of_frame.items():
            for i, matrix in enumerate(matrices):
                if np.shape(matrix) != (4, 4):
                    shape = np.shape(matrix)
                    raise DataError(f"{self.place(name, i)}: {name} has shape {shape}, expected (4, 4); give a pose")
            self.by_name[name] = np.array(matrices, dtype=np.float64)
        return self

    def place(self, name: str, i: int) -> str:
        """Words for pose i of that name."""
        if name in ("ego_from_bev", "global_from_ego"):
            return f"sample {self.frames[i].token}"
        frame = int(self.frame_of_camera[i])
        view = self.frames[frame].cameras[i - int(np.searchsorted(self.frame_of_camera, frame))]
        return f"sample {self.frames[frame].token}, camera {view.name} ({view.source})"


def _check_poses(poses: _Poses) -> None:
    for name, matrices in poses.by_name.items():
        if problem := rigid_problem(matrices):
            i, what = problem
            raise DataError(
                f"{poses.place(name, i)}: pose {name} {what}: {matrices[i].tolist()}; "
                "correct the calibration or ego pose of this sample"
            )
    # of the keyframe only: the cameras' own may be split between mounting and ego pose at will
    turned = poses.by_name["global_from_ego"][:, :3, :3]
    for i in np.flatnonzero(turned[:, 2, 2] < MIN_UP)[:1]:
        tilt = np.degrees(np.arccos(np.clip(turned[i, 2, 2], -1, 1)))
        raise DataError(
            f"sample {poses.frames[i].token}: pose global_from_ego tilts the car by {tilt:.0f} degrees: "
            + orientation_fix(turned[i])
        )


def orientation_fix(rotation: NDArray[np.float64]) -> str:
    """What to do about a pose [3, 3] whose z axis does not point up: what would put it upright."""
    if other_quaternion_order(rotation)[2, 2] > 0.95:
        return "its quaternion looks to be x y z w: write w x y z"
    return "give poses that map from the car (x ahead, y left, z up) to a global frame with z up"


def other_quaternion_order(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotations [..., 3, 3] as they would be if quaternions read as w x y z were x y z w in the file."""
    return quaternion_to_matrix(matrix_to_quaternion(rotations)[..., [3, 0, 1, 2]])


def _check_mountings(poses: _Poses) -> None:
    name = "ego_from_camera"
    mounted, frame = poses.by_name[name], poses.frame_of_camera  # [N, 4, 4], [N]
    distance_m = np.linalg.norm(mounted[:, :3, 3], axis=1)
    for i in np.flatnonzero(distance_m > MAX_MOUNTING_M)[:1]:
        raise DataError(
            f"{poses.place(name, int(i))}: ego_from_camera lies {distance_m[i]:.1f} m from the car's origin; give "
            "metres, and the pose of the camera on the car, not in the world"
        )
    every = lambda flags: np.logical_and.reduceat(flags, np.searchsorted(frame, np.arange(len(poses.frames))))  # [F]
    # The image's v axis points down. If every pose does so only when it is inverted, the file holds the inverses.
    down, down_inverted, sky = -mounted[:, 2, 1], -mounted[:, 1, 2], mounted[:, 2, 2]
    for i in np.flatnonzero(every(down_inverted > MIN_UP) & ~every(down > MIN_UP))[:1]:
        raise DataError(
            f"sample {poses.frames[i].token}: the poses of its cameras are inverted (camera_from_ego): as given, "
            "images lie on their side, inverted they stand upright; give ego_from_camera"
        )
    for flags, what in (
        (every(down < -MIN_UP), "all cameras are upside down; images are used as they are (check ego_from_camera)"),
        (every(sky > MIN_UP), "all cameras look at the sky; camera frames are x right, y down, z ahead"),
    ):
        if flags.any():
            warn_once(f"sample {poses.frames[int(flags.argmax())].token}: {what}")


def check_label_shapes(notes: Annotations, where: str) -> None:
    """Raises DataError where the arrays and lists of annotations are not as long as their names, or not numbers."""
    n = len(notes.names)
    shapes: dict[str, tuple[int, ...]] = {
        "centre_global_m": (n, 3),
        "rotation_global": (n, 3, 3),
        "size_lwh_m": (n, 3),
        "velocity_global_mps": (n, 2),
        "num_lidar_points": (n,),
        "num_radar_points": (n,),
    }
    optional = ("difficulty", "num_top_lidar_points", "visibility")
    shapes |= {name: (n,) for name in optional if getattr(notes, name) is not None}
    for name, shape in shapes.items():
        if np.shape(getattr(notes, name)) != shape:
            raise DataError(
                f"{where}: {n} names of objects, but {name} has shape {list(np.shape(getattr(notes, name)))}, "
                f"not {list(shape)}; give one row for each object"
            )
    for name in ("attributes", "tokens", "instance_tokens", "categories", "most_visible_cameras"):
        if getattr(notes, name) is None:
            continue
        length = len(getattr(notes, name))
        if length != n and not (name == "categories" and length == 0):
            raise DataError(f"{where}: {n} names of objects, but {length} {name}; give one for each object")
