"""The 18 CAN-bus numbers of BEVFormer v1: absolute values in the info files, deltas along a clip for the model.

Layout: [0:3] ego translation (m, global), [3:7] ego rotation (quaternion), [7:16] raw CAN signals, [16] yaw (rad),
[17] yaw (degrees). Source: BEVFormer (arXiv 2203.17270) and its release.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...geometry import matrix_to_quaternion, yaw_of

SIGNALS = slice(7, 16)
_MIRRORED_SIGNALS = np.array([1, -1, 1, -1, 1, -1, 1, -1, 1])  # left for right: turning is about the other way


def can_bus_of_pose(
    global_from_ego: NDArray[np.float64], signals: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Absolute numbers [18] of an ego pose [4, 4] and a Frame's ``can_signals`` [9]; without these zeros, as upstream
    has them for drives without a recording.
    """
    signal = np.zeros(18)
    if signals is not None:
        signal[SIGNALS] = signals
    signal[:3] = global_from_ego[:3, 3]
    signal[3:7] = matrix_to_quaternion(global_from_ego[:3, :3])
    signal[-2] = yaw_of(global_from_ego[:3, :3]) % (2 * np.pi)
    signal[-1] = np.degrees(signal[-2])
    return signal


def mirror_can_bus(can_bus: NDArray[np.float64], global_from_ego: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute rows [T, 18] in the mirror world, whose ego poses [T, 4, 4] are given."""
    return np.stack(
        [can_bus_of_pose(pose, row[SIGNALS] * _MIRRORED_SIGNALS) for row, pose in zip(can_bus, global_from_ego)]
    )
