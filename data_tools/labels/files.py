"""Files of voxel labels (the layouts of Occ3D) and of lane labels beside a set in the nuScenes schema.

    gts/<scene name>/<sample token>/labels.npz    semantics, mask_lidar, mask_camera: uint8 [200, 200, 16] as [x, y, z]
    <split>/<NNN>/<NNN>_04.npz                    Occ3D-Waymo: voxel_label and three masks, see ``read_occupancy_waymo``
    lanes/<scene name>/<sample token>.npz         the fields of core.labels.LaneLabels, centrelines end to end

Voxels: Occ3D, arXiv 2304.14365. The lane file is a format of drivestack; OpenLane-V2's collections are
read and written by data_tools.readers.openlane_files.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...core.files import atomic_path
from ...core.labels import ELEMENT_ATTRIBUTES, LaneLabels, OccupancyLabels
from ...geometry import OCC3D_GRID

NUM_OCCUPANCY_CLASSES = 18  # of Occ3D-nuScenes, free (17) among them
WAYMO_SUFFIX = "_04.npz"
WAYMO_FREE, WAYMO_FREE_ON_DISK = 15, 23
NUM_ATTRIBUTES = len(ELEMENT_ATTRIBUTES)


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


def waymo_occupancy_file(root: str | Path, split: str, segment: int, frame: int) -> Path:
    """Occ3D-Waymo's file of 0.4 m voxels; split: training, validation or test."""
    return Path(root) / split / f"{segment:03d}" / f"{frame:03d}{WAYMO_SUFFIX}"


def read_occupancy(path: str | Path, num_classes: int = NUM_OCCUPANCY_CLASSES) -> OccupancyLabels:
    """Voxel labels of one keyframe; a file of Occ3D-Waymo (``NNN_04.npz``) as ``read_occupancy_waymo`` reads it.

    Raises DataError, naming the file and the array, for a missing file or array, a shape other than [200, 200, 16], a
    dtype other than uint8 or bool, and a class that is none (255 for example).
    """
    if Path(path).name.endswith(WAYMO_SUFFIX):
        return read_occupancy_waymo(path)
    arrays = read_arrays(path, ("semantics", "mask_lidar", "mask_camera"))
    for name, array in arrays.items():
        _check_grid(path, name, array, (np.uint8, np.bool_), "convert it")
    highest = int(arrays["semantics"].max())
    if highest >= num_classes:
        raise DataError(
            f"{path}: semantics holds {highest}, but classes are 0..{num_classes - 1}: say in the masks what is unknown"
        )
    return OccupancyLabels(
        arrays["semantics"].astype(np.uint8), arrays["mask_lidar"].astype(bool), arrays["mask_camera"].astype(bool)
    )


def read_occupancy_waymo(path: str | Path, in_view: bool = True) -> OccupancyLabels:
    """Voxel labels of one frame of Occ3D-Waymo: 16 classes, free 15 (23 in the file). Frame, range and order of axes
    are those of Occ3D-nuScenes.

    ``mask_lidar`` is the file's ``origin_voxel_state``, ``mask_camera`` its ``final_voxel_state`` and, with
    ``in_view``, also its ``infov``: Waymo's five cameras do not look back. CVT-Occ trains and scores so.

    Raises DataError as ``read_occupancy``.
    """
    arrays = read_arrays(path, ("voxel_label", "origin_voxel_state", "final_voxel_state", "infov"))
    for name, array in arrays.items():
        kinds = (np.integer,) if name == "voxel_label" else (np.integer, np.bool_)
        _check_grid(path, name, array, kinds, f"take the 0.4 m file, <frame>{WAYMO_SUFFIX}")
    classes = arrays["voxel_label"]
    free = classes == WAYMO_FREE_ON_DISK
    strange = np.unique(classes[~free & ((classes < 0) | (classes > WAYMO_FREE))])
    if len(strange):
        raise DataError(
            f"{path}: voxel_label holds {strange[0]}, but classes are 0..{WAYMO_FREE - 1} and "
            f"{WAYMO_FREE_ON_DISK} (free): fetch the file again"
        )
    seen = arrays["final_voxel_state"].astype(bool)
    if in_view:
        seen &= arrays["infov"].astype(bool)
    semantics = np.where(free, WAYMO_FREE, classes).astype(np.uint8)
    return OccupancyLabels(semantics, arrays["origin_voxel_state"].astype(bool), seen)


def _check_grid(path: str | Path, name: str, array: NDArray, kinds: tuple[type, ...], fix: str) -> None:
    if array.shape != OCC3D_GRID.shape or not any(np.issubdtype(array.dtype, kind) for kind in kinds):
        shape = list(OCC3D_GRID.shape)
        raise DataError(
            f"{path}: {name} is {array.dtype} {list(array.shape)}, it must be uint8 {shape}, [x, y, z]; {fix}"
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
    if len(points) != counts.sum():
        raise DataError(
            f"{path}: points_per_lane adds up to {counts.sum()}, but points has {len(points)}; generate the file again"
        )
    lines = np.split(points, np.cumsum(counts)[:-1]) if len(counts) else []
    labels = LaneLabels(centrelines=lines, **arrays)
    check_lanes(labels, str(path))
    return labels


def write_lanes(path: str | Path, labels: LaneLabels) -> None:
    """Write atomically, compressed."""
    lines = labels.centrelines
    arrays: dict[str, NDArray] = {name: getattr(labels, name) for name in _LANE_ARRAYS[2:]}
    points = np.concatenate(lines) if lines else np.zeros((0, 3), np.float32)
    _write(path, {"points": points, "points_per_lane": np.array([len(line) for line in lines], np.int64), **arrays})


_NAMES = {"lane_lane": "lane_lane (topology_lclc)", "lane_element": "lane_element (topology_lcte)"}
"""Our names, and OpenLane-V2's."""


def check_lanes(labels: LaneLabels, place: str, front_size_px: tuple[int, int] | None = None) -> None:
    """Raises DataError, naming the place (file or sample), the lane, element or field, and the fix, for labels that
    cannot be used.

    front_size_px: (width, height) of the front image on disk; with it, every element's box must reach into the image.
    """

    def wrong(problem: str, fix: str) -> DataError:
        return DataError(f"{place}: {problem}; {fix}")

    for i, line in enumerate(labels.centrelines):
        if line.ndim != 2 or line.shape[1] != 3 or len(line) < 2:
            fix = "a centreline needs two or more, [n, 3]: add points, or remove the lane with its rows and columns"
            raise wrong(f"lane {i} has points {list(line.shape)}", fix)
        if not np.isfinite(line).all():
            raise wrong(f"lane {i} has points that are not finite", "make the label again, or remove the lane")
    n, k = len(labels.centrelines), len(labels.attributes)
    expected = {"is_connector": (n,), "elements_xyxy_px": (k, 4), "lane_lane": (n, n), "lane_element": (n, k)}
    for name, shape in expected.items():
        found = getattr(labels, name).shape
        if found != shape:
            needed = f"{n} lanes and {k} traffic elements need {list(shape)}"
            raise wrong(f"{_NAMES.get(name, name)} is {list(found)}", f"{needed}: make the label again")
    for name in ("lane_lane", "lane_element"):
        values = getattr(labels, name)
        if values.size and not np.isin(values, (0, 1)).all():
            i, j = np.argwhere(~np.isin(values, (0, 1)))[0]
            fix = "an edge is there (1) or not (0): make the label again"
            raise wrong(f"{_NAMES[name]} holds {values[i, j]} at [{i}, {j}]", fix)
    for i, (attribute, box) in enumerate(zip(labels.attributes, labels.elements_xyxy_px)):
        if not 0 <= attribute < NUM_ATTRIBUTES:
            raise wrong(f"traffic element {i} has attribute {attribute}", f"it must be one of 0..{NUM_ATTRIBUTES - 1}")
        text = f"traffic element {i} has the box {[round(float(x), 2) for x in box]}"
        if not np.isfinite(box).all():
            raise wrong(f"{text}, not finite", "make the label again, or remove the element with its column")
        if box[0] > box[2] or box[1] > box[3]:
            raise wrong(f"{text}, reversed", "a box is x1, y1, x2, y2 with x1 <= x2 and y1 <= y2: swap its corners")
        if front_size_px is not None and not (
            box[2] >= 0 and box[3] >= 0 and box[0] <= front_size_px[0] and box[1] <= front_size_px[1]
        ):
            size = "x".join(map(str, front_size_px))
            raise wrong(
                f"{text}, outside the front image of {size} pixels", "boxes are pixels of the front camera's own image"
            )


def _write(path: str | Path, arrays: Mapping[str, NDArray]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **dict[str, Any](arrays))
