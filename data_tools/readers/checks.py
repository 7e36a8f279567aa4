"""Checks of a reader's output: wrong calibration and poses that would otherwise only degrade training."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...core.frames import Frame


def rigid_problem(poses: NDArray[np.float64]) -> tuple[int, str] | None:
    """Index and description of the first of the poses [k, 4, 4] that is not a finite rigid transform, or None."""
    finite = np.all(np.isfinite(poses), axis=(1, 2))
    rotation = np.where(finite[:, None, None], poses, np.eye(4))[:, :3, :3]
    error = np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max((1, 2))
    proper = (error < 1e-3) & (np.linalg.det(rotation) > 0)
    for i in np.flatnonzero(~(finite & proper)):
        return int(i), "has a NaN or infinite entry" if not finite[i] else "is not a rotation and translation"
    return None


def check_frames(frames: Iterable[Frame]) -> None:
    """Raises DataError naming sample, camera, path and fix at the first bad pose or a frame without cameras."""
    for frame in frames:
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
        problem = rigid_problem(np.stack(poses))
        if problem is None:
            continue
        i, what = problem
        where = f"sample {frame.token}"
        if i >= 2:
            view = frame.cameras[(i - 2) // 2]
            where += f", camera {view.name} ({view.source})"
        raise DataError(
            f"{where}: pose {names[i]} {what}: {poses[i].tolist()}; correct the calibration or ego pose of this sample"
        )
