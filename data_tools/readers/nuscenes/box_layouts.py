"""Which of two layouts the boxes of an info file have: both stand under the same keys.

    wlh   (x, y, z, w, l, h, -yaw - pi/2)   mmdet3d < 1.0 and what followed it: BEVFormer, BEVDet, UniAD
    lwh   (x, y, z, l, w, h, yaw)           mmdet3d 1.0: StreamPETR, SparseBEV, BEVDet dev2.1 and later, FB-OCC

Both have gravity centres. The data tell them apart: vehicles are longer than wide and move along their headings.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ....core.errors import DataError
from ....geometry import boxes_from_legacy
from ..world import LONG_WORDS, MIN_WITNESSES, is_one_of

BoxLayout = Literal["wlh", "lwh"]
BOX_LAYOUTS = ("wlh", "lwh")
_MOVING_MPS = 1.0
_CLEAR_RATIO, _CLEAR_COSINE = 1.15, 0.3


def from_layout(boxes: NDArray[np.float64], layout: BoxLayout) -> NDArray[np.float64]:
    """Boxes [n, 7] of a file as (x, y, z, l, w, h, yaw), gravity centres, counter-clockwise yaw."""
    if layout == "lwh":
        return boxes
    old = boxes.copy()
    old[:, 2] -= old[:, 5] / 2  # the old convention of our function has bottom centres
    return boxes_from_legacy(old)


def layout_of(boxes: NDArray[np.float64], names: list[str], velocity_mps: NDArray[np.float64], place: str) -> BoxLayout:
    """The layout of all boxes [n, 7] of a file, with their class names and velocities [n, 2] (NaN: unknown).

    Raises DataError naming the option where neither sizes nor headings decide, or where they contradict one another.
    """
    votes = {"sizes": _by_size(boxes, names), "headings": _by_heading(boxes, velocity_mps)}
    found = {layout for layout in votes.values() if layout is not None}
    if len(found) == 1:
        return found.pop()
    if not len(boxes):
        return "wlh"  # nothing to read either way
    said = ", ".join(f"by {what} it is {layout}" for what, layout in votes.items() if layout)
    reason = said or f"fewer than {MIN_WITNESSES} vehicles show it"
    raise DataError(
        f"{place}: layout of gt_boxes is open ({reason}): name it with the reader's option box_layout (--option "
        "box_layout=wlh for mmdet3d < 1.0 and BEVFormer, box_layout=lwh for mmdet3d 1.0, StreamPETR, SparseBEV, FB-OCC)"
    )


def _by_size(boxes: NDArray[np.float64], names: list[str]) -> BoxLayout | None:
    is_long = {name: is_one_of(name, LONG_WORDS) for name in set(names)}
    size = boxes[np.array([is_long[name] for name in names], bool), 3:5]
    size = size[(size > 0).all(1)]
    if len(size) < MIN_WITNESSES:
        return None
    ratio = float(np.median(size[:, 0] / size[:, 1]))
    if max(ratio, 1 / ratio) < _CLEAR_RATIO:
        return None
    return "lwh" if ratio > 1 else "wlh"


def _by_heading(boxes: NDArray[np.float64], velocity_mps: NDArray[np.float64]) -> BoxLayout | None:
    """Whatever moves, moves along its heading: yaw in one layout, -yaw - pi/2 in the other."""
    moving = np.nan_to_num(np.hypot(*velocity_mps.T)) > _MOVING_MPS
    if moving.sum() < MIN_WITNESSES:
        return None
    along = np.arctan2(velocity_mps[moving, 1], velocity_mps[moving, 0])
    along_heading = lambda layout: float(np.median(np.cos(from_layout(boxes[moving], layout)[:, 6] - along)))
    new, old = along_heading("lwh"), along_heading("wlh")
    if abs(new - old) < _CLEAR_COSINE:
        return None
    return "lwh" if new > old else "wlh"
