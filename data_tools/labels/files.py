"""Files of voxel labels (the layouts of Occ3D) and of lane labels beside a set in the nuScenes schema.

    gts/<scene name>/<sample token>/labels.npz    semantics, mask_lidar, mask_camera: uint8 [200, 200, 16] as [x, y, z];
                                                  OpenOcc's files have semantics and flow
    <split>/<NNN>/<NNN>_04.npz                    Occ3D-Waymo: voxel_label and three masks, see ``read_occupancy_waymo``
    lanes/<scene name>/<sample token>.npz         the fields of core.labels.LaneLabels, centrelines end to end

Voxels: Occ3D, arXiv 2304.14365. The lane file is a format of drivestack; OpenLane-V2's collections are
read and written by data_tools.readers.openlane.files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.archives import ArrayFile, ArrayHeader
from ...core.errors import DataError
from ...core.files import atomic_path
from ...core.labels import ELEMENT_ATTRIBUTES, LaneLabels, OccupancyLabels
from ...core.once import warn_once
from ...core.physics import MAX_DISTANCE_M
from ...geometry import OCC3D_GRID
from .voxel_layouts import has_openocc_numbers, known_grid, occ3d_numbers

NUM_OCCUPANCY_CLASSES = 18  # of Occ3D-nuScenes, free (17) among them
WAYMO_SUFFIX = "_04.npz"
WAYMO_FREE, WAYMO_FREE_ON_DISK = 15, 23
NUM_ATTRIBUTES = len(ELEMENT_ATTRIBUTES)


def occupancy_file(root: str | Path, scene_name: str, sample_token: str) -> Path:
    return Path(root) / "gts" / scene_name / sample_token / "labels.npz"


def lanes_file(root: str | Path, scene_name: str, sample_token: str) -> Path:
    return Path(root) / "lanes" / scene_name / f"{sample_token}.npz"


def open_arrays(path: str | Path) -> ArrayFile:
    """An .npz file of labels, to be closed. Raises DataError if it is missing or broken, before its arrays are read."""
    path = Path(path)
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "no such label file"
        raise DataError(f"{path}: {state}; download or generate the labels of this split")
    return ArrayFile(path, str(path), DataError, "fetch or generate it again")


def demand_arrays(stored: ArrayFile, names: tuple[str, ...]) -> None:
    """Raises DataError for the first of the arrays that a file lacks."""
    if missing := [name for name in names if name not in stored.names]:
        raise DataError(
            f"{stored.place}: no array {missing[0]!r}, it has {', '.join(stored.names) or 'none'}; is it a label file?"
        )


def waymo_occupancy_file(root: str | Path, split: str, segment: int, frame: int) -> Path:
    """Occ3D-Waymo's file of 0.4 m voxels; split: training, validation or test."""
    return Path(root) / split / f"{segment:03d}" / f"{frame:03d}{WAYMO_SUFFIX}"


def read_occupancy(path: str | Path, num_classes: int | None = None) -> OccupancyLabels:
    """Voxel labels of one keyframe; a file of Occ3D-Waymo (``NNN_04.npz``) as ``read_occupancy_waymo`` reads it.
    num_classes: what the file must be numbered by; default ``occupancy_classes``.

    Integers of any width are read where their values fit. OpenOcc's labels have no masks, which are None then; their
    class numbers become Occ3D's where they are OpenOcc's (see ``occ3d_numbers``).

    Raises DataError, naming the file and the array, before it is read, for a missing file or array, a shape other than
    [200, 200, 16] (another grid is named where it is a known one), a dtype that is none of integers or bool; and for a
    class that is none (255 for example).
    """
    named = occupancy_classes(path)
    num_classes = named if num_classes is None else num_classes
    if Path(path).name.endswith(WAYMO_SUFFIX):
        if num_classes != named:
            raise DataError(f"{path}: has Occ3D-Waymo's {named} classes, where {num_classes} are expected")
        return read_occupancy_waymo(path)
    with open_arrays(path) as stored:
        if "voxel_label" in stored.names and "semantics" not in stored.names:
            raise DataError(f"{path}: holds arrays of Occ3D-Waymo; its files are named <frame>{WAYMO_SUFFIX}")
        demand_arrays(stored, ("semantics",))
        masks = [name for name in ("mask_lidar", "mask_camera") if name in stored.names]
        if len(masks) == 1:
            demand_arrays(stored, ("mask_lidar", "mask_camera"))
        for name in ("semantics", *masks):
            _check_grid(path, name, stored.headers[name], "write integers")
        semantics = stored.read("semantics")
        seen = {name: stored.read(name).astype(bool) for name in masks}
    lowest, highest = int(semantics.min()), int(semantics.max())
    if lowest < 0 or highest >= num_classes:
        raise DataError(
            f"{path}: semantics holds {highest if lowest >= 0 else lowest}, but classes are 0..{num_classes - 1}: say "
            "in the masks what is unknown"
        )
    semantics = semantics.astype(np.uint8)
    openocc = num_classes == NUM_OCCUPANCY_CLASSES and has_openocc_numbers(semantics)
    if openocc:
        warn_once("voxel labels are numbered as OpenOcc's (free is 16); read with Occ3D's numbers (free is 17)")
        semantics = occ3d_numbers(semantics)
    return OccupancyLabels(semantics, seen.get("mask_lidar"), seen.get("mask_camera"), openocc)


def occupancy_classes(path: str | Path) -> int:
    """How many classes a file of voxel labels is numbered by, free among them; its name tells."""
    return WAYMO_FREE + 1 if Path(path).name.endswith(WAYMO_SUFFIX) else NUM_OCCUPANCY_CLASSES


def read_occupancy_waymo(path: str | Path, in_view: bool = True) -> OccupancyLabels:
    """Voxel labels of one frame of Occ3D-Waymo: 16 classes, free 15 (23 in the file). Frame, range and order of axes
    are those of Occ3D-nuScenes.

    ``mask_lidar`` is the file's ``origin_voxel_state``, ``mask_camera`` its ``final_voxel_state`` and, with
    ``in_view``, also its ``infov``: Waymo's five cameras do not look back. CVT-Occ trains and scores so.

    Raises DataError as ``read_occupancy``.
    """
    names = ("voxel_label", "origin_voxel_state", "final_voxel_state", "infov")
    with open_arrays(path) as stored:
        demand_arrays(stored, names)
        for name in names:
            _check_grid(path, name, stored.headers[name], f"take the 0.4 m file, <frame>{WAYMO_SUFFIX}")
        arrays = {name: stored.read(name) for name in names}
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


def _check_grid(path: str | Path, name: str, header: ArrayHeader, fix: str) -> None:
    if header.shape != OCC3D_GRID.shape or header.dtype.kind not in "iub":
        shape = list(OCC3D_GRID.shape)
        known = known_grid(header.shape)
        raise DataError(
            f"{path}: {name} is {header}{known and f', {known}'}; it must be uint8 {shape}, [x, y, z]; "
            f"{'labels of the grid of Occ3D are needed' if known else fix}"
        )


def write_occupancy(path: str | Path, labels: OccupancyLabels) -> None:
    """Write atomically, compressed; a mask that is None is left out."""
    masks = {"mask_lidar": labels.mask_lidar, "mask_camera": labels.mask_camera}
    given = {name: mask.astype(np.uint8) for name, mask in masks.items() if mask is not None}
    write_arrays(path, {"semantics": labels.semantics} | given)


_LANE_ARRAYS = (
    "points", "points_per_lane", "is_connector", "elements_xyxy_px", "attributes", "lane_lane", "lane_element",
)  # fmt: skip


def read_lanes(path: str | Path) -> LaneLabels:
    """Lane labels of one keyframe. Raises DataError as ``check_lanes``, and for a missing or broken file."""
    with open_arrays(path) as stored:
        demand_arrays(stored, _LANE_ARRAYS)
        for name in _LANE_ARRAYS:
            if stored.headers[name].dtype.kind not in "biuf":
                raise DataError(f"{path}: {name} is {stored.headers[name]}, no numbers; generate the file again")
        arrays = {name: stored.read(name) for name in _LANE_ARRAYS}
    points, counts = arrays.pop("points"), arrays.pop("points_per_lane")
    whole = counts.ndim == 1 and counts.dtype.kind in "iu" and (counts >= 0).all()
    if points.ndim != 2 or not whole or len(points) != counts.sum():
        total = counts.sum() if whole else f"{counts.dtype} {list(counts.shape)}"
        raise DataError(
            f"{path}: points_per_lane adds up to {total}, but points has {len(points) if points.ndim else 0}; "
            "generate the file again"
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
    write_arrays(
        path, {"points": points, "points_per_lane": np.array([len(line) for line in lines], np.int64), **arrays}
    )


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
        if np.abs(line).max() > MAX_DISTANCE_M:
            fix = "lanes are in metres around the car, in its EGO frame: make the label again"
            raise wrong(f"lane {i} has a point {np.abs(line).max():.4g} m from the car", fix)
    if labels.attributes.ndim != 1:
        raise wrong(
            f"attributes is {list(labels.attributes.shape)}", "one number for each traffic element: make it again"
        )
    n, k = len(labels.centrelines), len(labels.attributes)
    expected = {
        "is_connector": (n,),
        "elements_xyxy_px": (k, 4),
        "lane_lane": (n, n),
        "lane_element": (n, k),
    }
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
        text = f"traffic element {i} has the box [{', '.join(f'{x:.6g}' for x in box)}]"
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


def write_arrays(path: str | Path, arrays: Mapping[str, NDArray]) -> None:
    """Write an .npz file atomically, compressed."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **dict[str, Any](arrays))
