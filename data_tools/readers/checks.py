"""Border checks of every reader's output: what would otherwise only degrade training, or write outside a folder.

Here: what one frame or camera shows by itself. What a whole set shows (times, speeds, boxes): world.py.
"""

from __future__ import annotations

from collections.abc import Iterable

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


def check_frames(frames: Iterable[Frame]) -> None:
    """Holds frames against what files, cameras and the physical world allow.

    Frame by frame: names that can be parts of paths, at least one camera, rigid poses, EGO upright, cameras on the car
    and not inverted, label arrays of equal length. As a set: times, speeds, sizes and places of boxes (world.py).
    Raises DataError naming sample, camera or box, path and fix at the first that fails.
    """
    frames = list(frames)
    for frame in frames:
        _check_names(frame)
        _check_poses(frame)
        _check_mountings(frame)
        if frame.annotations is not None:
            check_label_shapes(frame.annotations, f"sample {frame.token}")
    check_world(frames)


def rigid_problem(poses: NDArray[np.float64]) -> tuple[int, str] | None:
    """Index and description of the first of the poses [k, 4, 4] that is not a finite rigid transform, or None."""
    finite = np.all(np.isfinite(poses), axis=(1, 2))
    rotation = np.where(finite[:, None, None], poses, np.eye(4))[:, :3, :3]
    error = np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max((1, 2))
    proper = (error < 1e-3) & (np.linalg.det(rotation) > 0)
    for i in np.flatnonzero(~(finite & proper)):
        return int(i), "has a NaN or infinite entry" if not finite[i] else "is not a rotation and translation"
    return None


def _check_names(frame: Frame) -> None:
    """Tokens may have parts ("split/segment/time"), each of which becomes a folder or file."""
    if not isinstance(frame.token, str):
        raise DataError(f"sample {str(frame.token)[:100]!r}: a token must be a text; write it as one")
    for what, text in (("sample token", frame.token), ("scene token", frame.scene_token)):
        for part in str(text).split("/") if text else ():
            file_name(part, what)
    if frame.scene_name:
        file_name(frame.scene_name, f"scene name of sample {frame.token}")
    for view in frame.cameras:
        file_name(view.name, f"camera name of sample {frame.token}")
    for what, time in (("sample", frame.timestamp_us), *((f"camera {v.name}", v.timestamp_us) for v in frame.cameras)):
        if not -INT64 <= time < INT64:
            raise DataError(f"sample {frame.token}: time of {what} is {time:.3g} microseconds; correct its timestamp")


def _check_poses(frame: Frame) -> None:
    if not frame.cameras:
        raise DataError(f"sample {frame.token}: no camera; a frame needs at least one image")
    poses = [frame.ego_from_bev, frame.global_from_ego]
    names = ["ego_from_bev", "global_from_ego"]
    for view in frame.cameras:
        poses += [view.ego_from_camera, view.global_from_ego]
        names += ["ego_from_camera", "global_from_ego"]
    for name, matrix in zip(names, poses):
        if np.shape(matrix) != (4, 4):
            raise DataError(f"sample {frame.token}: {name} has shape {np.shape(matrix)}, expected (4, 4)")
    stacked = np.stack(poses).astype(np.float64)
    if problem := rigid_problem(stacked):
        i, what = problem
        raise DataError(
            f"{_place(frame, i)}: pose {names[i]} {what}: {poses[i].tolist()}; "
            "correct the calibration or ego pose of this sample"
        )
    up = stacked[1, 2, 2]  # of the keyframe: the cameras' own may be split between mounting and ego pose at will
    if up < MIN_UP:
        tilt = np.degrees(np.arccos(np.clip(up, -1, 1)))
        raise DataError(
            f"sample {frame.token}: pose global_from_ego tilts the car by {tilt:.0f} degrees: "
            + orientation_fix(stacked[1, :3, :3])
        )


def orientation_fix(rotation: NDArray[np.float64]) -> str:
    """What to do about a pose [3, 3] whose z axis does not point up: what would put it upright."""
    if other_quaternion_order(rotation)[2, 2] > 0.95:
        return "its quaternion looks to be x y z w: write w x y z"
    return "give poses that map from the car (x ahead, y left, z up) to a global frame with z up"


def other_quaternion_order(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotations [..., 3, 3] as they would be if quaternions read as w x y z were x y z w in the file."""
    return quaternion_to_matrix(matrix_to_quaternion(rotations)[..., [3, 0, 1, 2]])


def _place(frame: Frame, i: int) -> str:
    """Words for pose i of ``_check_poses``."""
    if i < 2:
        return f"sample {frame.token}"
    view = frame.cameras[(i - 2) // 2]
    return f"sample {frame.token}, camera {view.name} ({view.source})"


def _check_mountings(frame: Frame) -> None:
    mounted = np.stack([view.ego_from_camera for view in frame.cameras])  # [N, 4, 4]
    for view, distance_m in zip(frame.cameras, np.linalg.norm(mounted[:, :3, 3], axis=1)):
        if distance_m > MAX_MOUNTING_M:
            raise DataError(
                f"sample {frame.token}, camera {view.name} ({view.source}): ego_from_camera lies {distance_m:.1f} m "
                "from the car's origin; give metres, and the pose of the camera on the car, not in the world"
            )
        if not (0 < view.camera.width_px <= MAX_SIDE_PX and 0 < view.camera.height_px <= MAX_SIDE_PX):
            raise DataError(
                f"sample {frame.token}, camera {view.name} ({view.source}): image size {view.camera.width_px} x "
                f"{view.camera.height_px} is over {MAX_SIDE_PX} pixels; correct it"
            )
    # The image's v axis points down. If every pose does so only when it is inverted, the file holds the inverses.
    down, down_inverted = -mounted[:, 2, 1], -mounted[:, 1, 2]
    if np.all(down_inverted > MIN_UP) and not np.all(down > MIN_UP):
        raise DataError(
            f"sample {frame.token}: the poses of its cameras are inverted (camera_from_ego): as given, images lie on "
            "their side, inverted they stand upright; give ego_from_camera"
        )
    if np.all(down < -MIN_UP) and np.all(mounted[:, 2, 2] < MIN_UP):
        warn_once(f"sample {frame.token}: all cameras are upside down; images are used as they are")
    if np.all(mounted[:, 2, 2] > MIN_UP):
        warn_once(
            f"sample {frame.token}: all cameras look at the sky; camera frames are x right, y down, z ahead: check "
            "ego_from_camera"
        )


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
    for name, shape in shapes.items():
        if np.shape(getattr(notes, name)) != shape:
            raise DataError(
                f"{where}: {n} names of objects, but {name} has shape {list(np.shape(getattr(notes, name)))}, "
                f"not {list(shape)}; give one row for each object"
            )
    for name in ("attributes", "tokens", "instance_tokens", "categories"):
        length = len(getattr(notes, name))
        if length != n and not (name == "categories" and length == 0):
            raise DataError(f"{where}: {n} names of objects, but {length} {name}; give one for each object")
