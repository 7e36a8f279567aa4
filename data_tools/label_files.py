"""Files of voxel labels (the Occ3D-nuScenes layout) and of lane labels beside a set in the nuScenes schema.

    gts/<scene name>/<sample token>/labels.npz    semantics, mask_lidar, mask_camera: uint8 [200, 200, 16] as [x, y, z]
    lanes/<scene name>/<sample token>.npz         the fields of structures.LaneLabels, centrelines end to end

Voxels: Occ3D, arXiv 2304.14365, spec/occupancy.md section 1.1. The lane file is drivestack's own; OpenLane-V2's
collections are read and written in lane_topology.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..files import atomic_path
from ..geometry import OCC3D_GRID
from ..structures import LaneLabels, OccupancyLabels

NUM_OCCUPANCY_CLASSES = 18  # of Occ3D-nuScenes, free (17) among them


def occupancy_file(root: str | Path, scene_name: str, sample_token: str) -> Path:
    return Path(root) / "gts" / scene_name / sample_token / "labels.npz"


def lanes_file(root: str | Path, scene_name: str, sample_token: str) -> Path:
    return Path(root) / "lanes" / scene_name / f"{sample_token}.npz"


def read_arrays(path: str | Path, names: tuple[str, ...]) -> dict[str, NDArray]:
    """Arrays of an .npz file by name. Raises DataError if the file is missing or broken, or has not all of them."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [name for name in names if name not in stored.files]
            if missing:
                raise DataError(
                    f"{path}: no array {missing[0]!r}, it has {', '.join(stored.files)}; is it a label file?"
                )
            return {name: stored[name] for name in names}
    except FileNotFoundError:
        raise DataError(f"{path}: no such label file; download or generate the labels of this split") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: not a readable .npz file ({error}); fetch or generate it again") from None


def read_occupancy(path: str | Path, num_classes: int = NUM_OCCUPANCY_CLASSES) -> OccupancyLabels:
    """Voxel labels of one keyframe.

    Raises DataError, naming the file and the array, for a missing file or array, a shape other than [200, 200, 16], a
    dtype other than uint8 or bool, and a class that is none (255 for example).
    """
    arrays = read_arrays(path, ("semantics", "mask_lidar", "mask_camera"))
    shape = list(OCC3D_GRID.shape)
    for name, array in arrays.items():
        if array.shape != OCC3D_GRID.shape or array.dtype not in (np.uint8, np.bool_):
            raise DataError(
                f"{path}: {name} is {array.dtype} {list(array.shape)}, it must be uint8 {shape}, [x, y, z]; convert it"
            )
    highest = int(arrays["semantics"].max())
    if highest >= num_classes:
        raise DataError(
            f"{path}: semantics holds {highest}, but classes are 0..{num_classes - 1}: say in the masks what is unknown"
        )
    return OccupancyLabels(
        arrays["semantics"].astype(np.uint8), arrays["mask_lidar"].astype(bool), arrays["mask_camera"].astype(bool)
    )


def write_occupancy(path: str | Path, labels: OccupancyLabels) -> None:
    """Write atomically, compressed."""
    masks = {"mask_lidar": labels.mask_lidar, "mask_camera": labels.mask_camera}
    _write(path, {"semantics": labels.semantics} | {name: mask.astype(np.uint8) for name, mask in masks.items()})


_LANE_ARRAYS = (
    "points", "points_per_lane", "is_connector", "elements_xyxy_px", "attributes", "lane_lane", "lane_element",
)  # fmt: skip


def read_lanes(path: str | Path) -> LaneLabels:
    """Lane labels of one keyframe. Raises DataError as ``check_lanes``, and for a missing or broken file."""
    arrays = read_arrays(path, _LANE_ARRAYS)
    points, counts = arrays.pop("points"), arrays.pop("points_per_lane")
    lines = np.split(points, np.cumsum(counts)[:-1]) if len(counts) else []
    labels = LaneLabels(centrelines=lines, **arrays)
    check_lanes(labels, str(path))
    return labels


def write_lanes(path: str | Path, labels: LaneLabels) -> None:
    """Write atomically, compressed."""
    lines = labels.centrelines
    _write(
        path,
        {
            "points": np.concatenate(lines) if lines else np.zeros((0, 3), np.float32),
            "points_per_lane": np.array([len(line) for line in lines], np.int64),
        }
        | {name: getattr(labels, name) for name in _LANE_ARRAYS[2:]},
    )


def check_lanes(labels: LaneLabels, place: str) -> None:
    """Raises DataError, naming the place (file or sample) and the lane or field, where labels cannot be used."""
    for i, line in enumerate(labels.centrelines):
        if line.ndim != 2 or line.shape[1] != 3 or len(line) < 2:
            raise DataError(f"{place}: lane {i} has points {list(line.shape)}; a centreline needs two or more, [n, 3]")
        if not np.isfinite(line).all():
            raise DataError(f"{place}: lane {i} has points that are not finite")
    n, k = len(labels.centrelines), len(labels.attributes)
    expected = {"is_connector": (n,), "elements_xyxy_px": (k, 4), "lane_lane": (n, n), "lane_element": (n, k)}
    for name, shape in expected.items():
        found = getattr(labels, name).shape
        if found != shape:
            raise DataError(f"{place}: {name} is {list(found)}, {n} lanes and {k} traffic elements need {list(shape)}")


def _write(path: str | Path, arrays: Mapping[str, NDArray]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
