"""Which camera is which: cameras are known by name, and a rig is the union of what its frames have.

Shapes: N cameras.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .frames import CameraView, Frame

CAMERA_ORDER = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
"""nuScenes' cameras in the order of published models, whose camera embeddings go by position."""

RING_ORDER = (
    "ring_front_center", "ring_front_left", "ring_front_right", "ring_rear_left", "ring_rear_right", "ring_side_left",
    "ring_side_right",
)  # fmt: skip
"""Argoverse 2's ring cameras in the order of OpenLane-V2, which has the front one first."""

PUBLISHED_ORDERS = (CAMERA_ORDER, RING_ORDER)

FRONT_NAMES = (
    "cam_front", "ring_front_center", "front", "camera_front", "front_camera", "cam_front_center", "cam_f0",
)  # fmt: skip
"""Names of the camera that looks ahead, in lower case: nuScenes, Argoverse 2 (OpenLane-V2), Waymo, nuPlan, own rigs."""

MAX_FRONT_ANGLE_DEG = 45.0
"""A camera whose optical axis is further from straight ahead is no front camera."""


def in_published_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names: those of PUBLISHED_ORDERS in their order, then the others as they come."""
    distinct = tuple(dict.fromkeys(names))
    known = tuple(name for order in PUBLISHED_ORDERS for name in order if name in distinct)
    return known + tuple(name for name in distinct if name not in known)


def cameras_of(frames: Iterable[Frame]) -> tuple[str, ...]:
    """Names of all cameras that any of the frames has, see ``in_published_order``.

    Other names as the frame with the most cameras has them, so that a frame which lacks some changes no order.
    """
    rigs = {tuple(view.name for view in frame.cameras): None for frame in frames}
    return in_published_order(name for rig in sorted(rigs, key=len, reverse=True) for name in rig)


def embedding_rows(names: Sequence[str], num_embeddings: int) -> tuple[int, ...]:
    """Which of a model's camera embeddings belongs to each camera of a rig.

    Names of one of PUBLISHED_ORDERS have their places in it where the model has embeddings for all of them, so that a
    rig without one of these gives none of the others its embedding. Any other rig goes by position.
    """
    for order in PUBLISHED_ORDERS:
        if num_embeddings == len(order) and set(names) <= set(order):
            return tuple(order.index(name) for name in names)
    return tuple(range(len(names)))


def front_camera(axes_ego: Mapping[str, NDArray[np.floating]]) -> str | None:
    """Name of the camera that looks ahead, None where none does.

    axes_ego: each camera's optical axis [3] in the EGO frame (x ahead), in the rig's order. A known name (FRONT_NAMES,
    any case) decides; else the axis nearest to straight ahead, within MAX_FRONT_ANGLE_DEG, and of axes within a degree
    of it the first.
    """
    if named := front_by_name(axes_ego):
        return named
    angle_deg = {name: _angle_from_ahead_deg(axis) for name, axis in axes_ego.items()}
    least = min(angle_deg.values(), default=math.inf)
    if not least <= MAX_FRONT_ANGLE_DEG:
        return None
    return next(name for name, angle in angle_deg.items() if angle <= least + 1)


def front_by_name(names: Iterable[str]) -> str | None:
    """The name among ``names`` that says that its camera looks ahead (FRONT_NAMES, any case), None without one."""
    by_lower_name = {name.lower(): name for name in reversed(list(names))}
    return next((by_lower_name[known] for known in FRONT_NAMES if known in by_lower_name), None)


def _angle_from_ahead_deg(axis_ego: NDArray[np.floating]) -> float:
    x, y, z = (float(value) for value in axis_ego)
    return math.degrees(math.atan2(math.hypot(y, z), x))


def front_view(views: Iterable[CameraView]) -> CameraView | None:
    """The view of the camera that looks ahead, None where none does; see ``front_camera``."""
    by_name = {view.name: view for view in views}
    name = front_camera({name: view.ego_from_camera[:3, 2] for name, view in by_name.items()})
    return None if name is None else by_name[name]


def front_camera_of(frames: Iterable[Frame], names: Sequence[str]) -> str | None:
    """Of the named cameras the one that looks ahead, None where none does; see ``front_camera``.

    A camera counts as it is mounted in the first frame that has it.
    """
    axes: dict[str, NDArray[np.floating]] = {}
    for frame in frames:
        for view in frame.cameras:
            if view.name in names:
                axes.setdefault(view.name, view.ego_from_camera[:3, 2])
        if len(axes) == len(names):
            break
    return front_camera({name: axes[name] for name in names if name in axes})


def check_camera_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Raises ConfigError for configured names that occur twice, or that no frame has."""
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise ConfigError(f"camera_names: {twice[0]!r} is named twice")
    if strange := [name for name in names if name not in known]:
        raise ConfigError(
            f"camera_names: no frame has a camera {strange[0]!r}; there are {', '.join(known)}: correct camera_names, "
            "or leave it out to use all of them"
        )
