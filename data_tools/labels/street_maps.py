"""Files of street maps beside a set in the nuScenes schema: ``street_map/<scene name>.npz``.

    points            float64 [all points, 2] metres, GLOBAL frame, lines end to end
    points_per_line   int [s]
    kinds             int [s] indices into core.street_maps.STREET_KINDS

A format of drivestack.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...core.errors import DataError
from ...core.files import atomic_path
from ...core.street_maps import STREET_KINDS, StreetMap
from .files import demand_arrays, open_arrays

_ARRAYS = ("points", "points_per_line", "kinds")


def street_map_file(root: str | Path, scene_name: str) -> Path:
    return Path(root) / "street_map" / f"{scene_name}.npz"


def read_street_map(path: str | Path) -> StreetMap:
    """The map of a scene. Raises DataError, naming the file, for one that is missing, broken or no street map."""
    with open_arrays(path) as stored:
        demand_arrays(stored, _ARRAYS)
        arrays = {name: stored.read(name) for name in _ARRAYS}
    points, counts = arrays["points"], arrays["points_per_line"]
    whole = counts.ndim == 1 and counts.dtype.kind in "iu" and (counts >= 0).all()
    if points.ndim != 2 or points.shape[1] != 2 or not whole or counts.sum() != len(points):
        raise DataError(
            f"{path}: points {list(points.shape)} are not the lines that points_per_line counts; write it again"
        )
    lines = np.split(points.astype(np.float64), np.cumsum(counts)[:-1]) if len(counts) else []
    found = StreetMap(lines, arrays["kinds"])
    check_street_map(found, str(path))
    return found


def write_street_map(path: str | Path, streets: StreetMap) -> None:
    """Write atomically. Raises DataError as ``check_street_map``."""
    check_street_map(streets, str(path))
    points = np.concatenate(streets.lines) if streets.lines else np.zeros((0, 2))
    counts = np.array([len(line) for line in streets.lines], np.int64)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, points=points, points_per_line=counts, kinds=streets.kinds)


def check_street_map(streets: StreetMap, place: str) -> None:
    """Raises DataError, naming the place, the line and the fix, for a map that cannot be used."""
    if streets.kinds.shape != (len(streets.lines),) or streets.kinds.dtype.kind not in "iu":
        raise DataError(
            f"{place}: kinds is {list(streets.kinds.shape)}; one whole number for each of {len(streets.lines)} lines"
        )
    for i, (line, kind) in enumerate(zip(streets.lines, streets.kinds)):
        if line.ndim != 2 or line.shape[1] != 2 or len(line) < 2 or not np.isfinite(line).all():
            raise DataError(f"{place}: street {i} is no line of two or more finite points [n, 2]; correct or remove it")
        if not 0 <= kind < len(STREET_KINDS):
            raise DataError(
                f"{place}: street {i} has kind {kind}; kinds are 0..{len(STREET_KINDS) - 1} ({', '.join(STREET_KINDS)})"
            )
