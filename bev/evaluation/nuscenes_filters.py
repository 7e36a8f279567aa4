"""Which boxes nuScenes counts, in its detection and tracking scores alike.

Shapes: n boxes of all samples, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...core.frames import Frame

RACKS: Mapping[str, tuple[str, ...]] = {"static_object.bicycle_rack": ("bicycle", "motorcycle")}
"""Category of the data set -> classes that do not count inside of its boxes."""


def counted(
    sample: NDArray[np.int64],
    label: NDArray[np.int64],
    centre_m: NDArray[np.float64],
    frames: Sequence[Frame],
    class_range_m: Mapping[str, float],
    excluded_in: Mapping[str, tuple[str, ...]] = RACKS,
) -> NDArray[np.bool_]:
    """[n] whether a box is of a class that is scored, in its radius around the ego, and outside of what excludes it.

    sample: [n] index of the frame, which has labels; label: [n] index into ``class_range_m``, -1 for other classes;
    centre_m: [n, 3] in the global frame.
    """
    names = list(class_range_m)
    radius = np.array([*class_range_m.values(), 0.0], dtype=np.float64)  # label -1: the last, within which nothing is
    ego_xy = np.stack([frame.global_from_ego[:2, 3] for frame in frames])  # [S, 2]
    dx, dy = (centre_m[:, :2] - ego_xy[sample]).T
    kept = np.sqrt(dx * dx + dy * dy) < radius[label]
    for i, frame in enumerate(frames):
        notes = frame.annotations
        zones = [] if notes is None else [k for k, name in enumerate(notes.categories) if name in excluded_in]
        if notes is None or not zones:
            continue
        here = np.flatnonzero((sample == i) & kept)
        for k in zones:
            classes = [names.index(name) for name in excluded_in[notes.categories[k]] if name in names]
            local = (centre_m[here] - notes.centre_global_m[k]) @ notes.rotation_global[k]  # [., 3] in the zone
            inside = (np.abs(local) <= notes.size_lwh_m[k] / 2).all(1)
            kept[here[inside & np.isin(label[here], classes)]] = False
    return kept
