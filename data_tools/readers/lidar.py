"""LiDAR sweeps, for pictures and as witnesses of labels: float32 points as nuScenes and most recorders write them.

Shapes: n points.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...core.frames import Frame

_FARTHEST_M = 1000.0  # no LiDAR of a car reaches farther; other bytes read as floats do
_MOST_RINGS = 1024


def read_lidar(frame: Frame) -> NDArray[np.float64]:
    """The frame's sweep [n, 3] x, y, z in the BEV frame; none where the frame has no file.

    The file holds float32 values only: x, y, z, intensity, and on nuScenes the number of the ring. Whether a point has
    4 or 5 follows from the file's size. Where that is a multiple of both, ``frame.lidar_floats_per_point`` says it, or
    the values: 5 where every fifth is a whole number, as a ring has it. Raises DataError, naming sample and file, for
    one that is neither.
    """
    path = Path(frame.lidar_path)
    if not frame.lidar_path or not path.is_file():
        return np.zeros((0, 3))

    def wrong(problem: str) -> DataError:
        return DataError(
            f"sample {frame.token}: LiDAR file {path}: {problem}; store x, y, z, intensity (and ring) of each point as "
            "float32, or leave the frame's lidar_path empty"
        )

    try:
        data = path.read_bytes()
    except OSError as error:
        raise wrong(f"cannot be read ({error.strerror})") from None
    fitting = [count for count in (4, 5) if len(data) % (4 * count) == 0]
    if not fitting:
        raise wrong(f"its {len(data)} bytes are no whole number of points, of 4 floats or of 5")
    values, stated = np.frombuffer(data, np.float32), frame.lidar_floats_per_point
    if len(fitting) == 1:
        (width,) = fitting
    else:
        width = stated or (5 if _are_rings(values[4::5]) else 4)
    if width not in fitting:
        raise wrong(f"the frame says {width} floats per point (lidar_floats_per_point), it must be 4 or 5")
    points = values.reshape(-1, width)[:, :3].astype(np.float64)
    points = points[np.isfinite(points).all(1)]
    near = (np.abs(points) < _FARTHEST_M).all(1)
    if len(data) and near.sum() < 0.5 * len(data) / (4 * width):
        raise wrong(f"most of it is no points within {_FARTHEST_M:.0f} m")
    return points[near]


def _are_rings(values: NDArray[np.float32]) -> bool:
    return bool(((values >= 0) & (values < _MOST_RINGS) & (values == np.floor(values))).all())
