"""Street (SD) maps: where streets run, without lanes; an input of the lane head, never a label.

Shapes: s lines, P points of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STREET_KINDS = ("road", "main_road", "side_road", "cross_walk", "side_walk")
"""By number. OpenLane-V2's maps have road, cross_walk and side_walk; synthetic ones main_road and side_road."""


@dataclass(frozen=True)
class StreetMap:
    """The streets of a scene, in the GLOBAL frame. Which way a line runs means nothing."""

    lines: list[NDArray[np.float64]]
    """s x [points, 2] metres"""
    kinds: NDArray[np.int64]
    """[s] indices into STREET_KINDS"""


@dataclass
class StreetLines:
    """What of a map lies around the car, as a model takes it."""

    lines: Tensor
    """[s, P, 2] metres, EGO frame, P points at even distances"""
    kinds: Tensor
    """[s] long"""

    def to(self, device: torch.device | str) -> StreetLines:
        return StreetLines(self.lines.to(device), self.kinds.to(device))
