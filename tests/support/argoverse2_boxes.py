"""Invented sweeps of two Argoverse 2 logs: truths, predictions, poses and maps, the same for every run.

tests/reference/bev/argoverse2_cds.json has the official package's scores of them (av2 0.3.6, unrounded).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from drivestack.core.argoverse2 import EVALUATED_CLASSES
from drivestack.geometry import pose, quaternion_to_matrix

LOGS = ("11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222")
TIMES_NS = (315_966_253_660_357_000, 315_966_253_760_004_000, 315_966_253_859_652_000)
CLASSES = (3, 5, 14, 15, 17, 24)  # of EVALUATED_CLASSES; the last has predictions only


class Boxes(NamedTuple):
    """log, time_ns, label: [n]; boxes [n, 7] in the EGO frame of the sweep; counts [n]: scores, or LiDAR points."""

    log: np.ndarray
    time_ns: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    counts: np.ndarray


def invented_boxes() -> tuple[Boxes, Boxes]:
    """Truths, predictions: some far away, some without a LiDAR point, and more than 100 of one class in one sweep."""
    rng = np.random.default_rng(5)
    truths, predictions = [], []
    for log in range(2):
        for sweep in range(3):
            for label in CLASSES:
                n = rng.integers(4, 25) if label != CLASSES[-1] else 0
                centre = np.stack([rng.uniform(-170, 170, n), rng.uniform(-90, 90, n), rng.uniform(-1, 1, n)], 1)
                size = rng.uniform(0.5, 5, (n, 3))
                yaw = rng.uniform(-np.pi, np.pi, n)
                truth = np.concatenate([centre, size, yaw[:, None]], 1)
                truths.append((log, sweep, label, truth, rng.integers(0, 6, n)))
                again = np.repeat(truth, 2, 0)  # two for each, and some for nothing
                again[:, :3] += rng.normal(0, 0.9, (2 * n, 3))
                again[:, 3:6] *= rng.uniform(0.7, 1.4, (2 * n, 3))
                again[:, 6] += rng.normal(0, 0.6, 2 * n)
                extra = 110 if (log, sweep, label) == (1, 2, 15) else 6
                places = np.concatenate(
                    [rng.uniform(-100, 100, (extra, 2)), np.zeros((extra, 1)), rng.uniform(1, 3, (extra, 4))], 1
                )
                found = np.concatenate([again, places])
                predictions.append((log, sweep, label, found, rng.uniform(0.01, 1, len(found))))
    return _joined(truths), _joined(predictions)


def _joined(parts: list) -> Boxes:
    counts = [len(part[3]) for part in parts]
    spread = lambda values: np.repeat(values, counts)
    return Boxes(
        spread([LOGS[part[0]] for part in parts]),
        spread([TIMES_NS[part[1]] for part in parts]),
        spread([part[2] for part in parts]),
        np.concatenate([part[3] for part in parts]),
        np.concatenate([part[4] for part in parts]),
    )


def invented_poses() -> dict[tuple[str, int], np.ndarray]:
    """city_from_ego [4, 4] of each sweep, a little tilted."""
    rng = np.random.default_rng(6)
    poses = {}
    for i, log in enumerate(LOGS):
        for k, time in enumerate(TIMES_NS):
            yaw = 0.8 * i + 0.1 * k
            quaternion = [np.cos(yaw / 2), *rng.uniform(-0.01, 0.01, 2), np.sin(yaw / 2)]
            quaternion = np.array(quaternion) / np.linalg.norm(quaternion)
            poses[log, time] = pose(quaternion_to_matrix(quaternion), [1000.0 * i + 3 * k, -500.0 + k, 20.0])
    return poses


def invented_areas(log: str) -> list[np.ndarray]:
    """Outlines [points, 3] of drivable areas, city frame: a road and a bent one that crosses it."""
    x, y = 1000.0 * LOGS.index(log), -500.0
    road = [[x - 150.3, y - 8.2, 20], [x + 120.7, y - 6.1, 20], [x + 121.2, y + 7.4, 20], [x - 149.9, y + 5.5, 20]]
    bend = [[x + 20, y - 60, 20], [x + 33.3, y - 61, 20], [x + 40, y + 40, 20], [x + 25, y + 45.5, 20]]
    return [np.array(road, float), np.array(bend, float)]


def category_of(label: int) -> str:
    return EVALUATED_CLASSES[label]
