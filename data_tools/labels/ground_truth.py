"""Which annotated objects a detector is trained and scored on, as boxes of the current BEV frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...core.frames import Frame
from ...geometry import wrap_angle
from ..clips.transforms import BdaDraw


def ground_truth(
    frame: Frame,
    classes: Sequence[str],
    pc_range: Sequence[float],
    use_valid_flag: bool = True,
    bda: BdaDraw = BdaDraw(),  # noqa: B008 (frozen)
    keep_unknown_velocity: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Boxes [n, 9] and labels [n] of a frame; none if it has no annotations.

    Kept are objects with a LiDAR or radar point (``use_valid_flag``) or with a LiDAR point (otherwise), of one of the
    classes, whose centre after the BEV augmentation lies strictly inside pc_range (x_min, y_min, z_min, x_max, y_max,
    z_max) in x and y. An unknown velocity becomes 0 (docs/quirks.md#unknown-velocity-is-zero), or stays NaN
    (``keep_unknown_velocity``), which the losses of bev/ leave out.
    """
    notes = frame.annotations
    if notes is None:
        return np.zeros((0, 9), np.float32), np.zeros(0, np.int64)
    label_of = {name: i for i, name in enumerate(classes)}
    labels = np.array([label_of.get(name, -1) for name in notes.names], dtype=np.int64)
    boxes = frame.bev_boxes()
    if not keep_unknown_velocity:
        boxes[:, 7:] = np.nan_to_num(boxes[:, 7:])
    boxes = bda.boxes(boxes)
    points = notes.num_lidar_points + (notes.num_radar_points if use_valid_flag else 0)
    low, high = np.array(pc_range[:2]), np.array(pc_range[3:5])
    inside = ((boxes[:, :2] > low) & (boxes[:, :2] < high)).all(1)
    keep = (labels >= 0) & (points > 0) & inside
    boxes[:, 6] = wrap_angle(boxes[:, 6])
    return boxes[keep].astype(np.float32), labels[keep]
