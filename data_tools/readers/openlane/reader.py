"""OpenLane-V2 to Frames.

The EGO frame is the vehicle frame of the info files. It is the BEV frame too. As in the official baselines
cameras are taken at the frame's own time and as pinholes: the images of subset A are published undistorted, although
its files state the distortion of the raw ones.

    subset A   Argoverse 2: seven ring cameras, ``ring_front_center`` 1550 x 2048, the others 2048 x 1550
    subset B   nuScenes: six cameras, 1600 x 900

Source: OpenLane-V2, arXiv 2304.10440.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ....core.cameras import cameras_of, front_camera_of
from ....core.errors import DataError, library_errors
from ....core.files import file_name
from ....core.frames import CameraView, Frame
from ....core.once import warn_once
from ....core.street_maps import STREET_KINDS, StreetMap
from ....geometry import CameraModel, pose
from ...labels.files import check_lanes
from ...labels.street_maps import check_street_map
from ..cameras import ImageSizes, camera_order
from ..checks import check_frames
from ..file_paths import path_below
from ..lenses import LensNotes
from ..links import link_frames
from ..registry import Conventions, register_reader
from .files import (
    EVALUATION_INTERVAL,
    RAW_POINTS,
    Identifier,
    collect,
    identifiers,
    lane_labels,
    read_collection,
    read_data_dict,
)

_NANOSECONDS_FROM = 10**17
"""Timestamps are nanoseconds in subset A (18 digits) and microseconds in subset B (16 digits)."""


@register_reader(
    "openlane",
    "OpenLane-V2: info files, collections, data_dict lists",
    Conventions(
        boxes="none",
        quaternions="none: rotations are matrices",
        time="nanoseconds in subset A, microseconds in subset B; distinguished by their digits",
        cameras="the front one first, then in the order of published models, others alphabetically; pinholes: the "
        "images are undistorted, what subset A states as distortion is of the raw ones and not applied; sizes from the "
        "file, or from one image of each camera",
        frames="EGO: the files' vehicle frame (x ahead, y left, z up); BEV maps lie in it",
    ),
)
def read_openlane(root: str | Path, split: str | Path, point_interval: int | None = None) -> list[Frame]:
    """Frames of an OpenLane-V2 folder, sorted by segment and time and linked in time within each segment.

    root: the folder that the image paths begin at. split: a split's folder (``train``, ``val``, ``test``), all of whose
    info files are read; or a file, here or in ``root``: a collection ``.pkl``, or a ``data_dict_*.json`` that lists the
    frames. point_interval: every which point of a centreline in the info files is kept; default as officially: all in
    the split ``train``, and in the others every twentieth of the official 201, which scores are made with. A collection
    holds what it was collected with.

    A frame's token is "split/segment/timestamp" (``identifier_of``), its scene "split/segment". The traffic
    elements lie in the front camera (core/cameras.py), which a frame may lack. Frames without annotation, as in the
    test split, have ``lanes`` None.

    Raises DataError naming the file, the frame and the field: a file that is missing or not of the format, an unusable
    calibration or pose, labels that ``check_lanes`` refuses.
    """
    root = Path(root)
    rig = _Rig(ImageSizes(), LensNotes(str(root), undistorted=True))
    frames: list[Frame] = []
    places: list[str] = []
    for identifier, (entry, file) in _entries(root, split, point_interval).items():
        for part in identifier:
            file_name(part, f"{file}: part of a frame's identifier")
        place = f"{file}, frame {'/'.join(identifier)}"
        with (
            library_errors(DataError, f"{place}: unusable entry", "fetch or collect it again"),
            np.errstate(over="ignore", invalid="ignore"),  # the checks name what is not finite
        ):
            frames.append(_frame(identifier, entry, root, rig, place))
        places.append(place)
    _check_labels(frames, places)
    rig.lenses.report()
    frames = link_frames(frames)
    check_frames(frames)
    return frames


class _Rig(NamedTuple):
    """What the frames share."""

    sizes: ImageSizes
    lenses: LensNotes


def _check_labels(frames: Sequence[Frame], places: Sequence[str]) -> None:
    front = front_camera_of(frames, cameras_of(frames))
    for frame, place in zip(frames, places):
        if frame.lanes is not None:
            sizes = [view.image_size_px for view in frame.cameras if view.name == front]
            check_lanes(frame.lanes, place, sizes[0] if sizes else None)


def _entries(root: Path, split: str | Path, interval: int | None) -> dict[Identifier, tuple[Mapping[str, Any], str]]:
    """Frame of a collection, and the file it comes from, by identifier."""
    file = next((path for path in (Path(split), root / split) if path.is_file()), None)
    if file is not None and file.suffix == ".pkl":
        return {key: (entry, str(file)) for key, entry in read_collection(file).items()}
    if file is not None and file.suffix == ".json":
        wanted = identifiers(read_data_dict(file))
    elif (root / split).is_dir():
        paths = [path for path in (root / split).glob("*/info/*.json") if not path.stem.endswith("-ls")]
        wanted = [(str(split), path.parent.parent.name, path.stem) for path in sorted(paths)]
    else:
        raise DataError(
            f"{root / split}: neither a split's folder (train, val, test) nor a collection .pkl or data_dict .json; "
            "give the folder OpenLane-V2 was unpacked to, and one of these"
        )
    if not wanted:
        raise DataError(f"{file or root / split}: names no frames (segment/info/timestamp.json); is it unpacked?")
    found: dict[Identifier, tuple[Mapping[str, Any], str]] = {}
    for key in wanted:
        entry = collect(root, [key], interval or 1)[key]
        if interval is None and key[0] != "train":
            for lane in (entry.get("annotation") or {}).get("lane_centerline", ()):
                if len(lane["points"]) == RAW_POINTS:
                    lane["points"] = lane["points"][::EVALUATION_INTERVAL]
        found[key] = entry, str(root.joinpath(*key[:2], "info", f"{key[2]}.json"))
    return found


def _frame(identifier: Identifier, entry: Mapping[str, Any], root: Path, rig: _Rig, place: str) -> Frame:
    time = int(entry["timestamp"])
    timestamp_us = time // 1000 if time >= _NANOSECONDS_FROM else time
    global_from_ego = pose(entry["pose"]["rotation"], entry["pose"]["translation"])
    views = []
    for camera in camera_order(name for name in entry["sensor"] if name != "sd_map"):
        sensor = entry["sensor"][camera]
        path = path_below(root, sensor["image_path"])
        intrinsic = sensor["intrinsic"]
        size = _image_size_px(sensor, camera, path, rig, place)
        try:
            ego_from_camera = pose(sensor["extrinsic"]["rotation"], sensor["extrinsic"]["translation"])
            pinhole = CameraModel(np.asarray(intrinsic["K"], np.float64), *size)
        except ValueError as error:
            raise DataError(f"{place}: camera {camera}: {error}; correct its calibration") from None
        rig.lenses.add(camera, pinhole, intrinsic, ("K",))
        views.append(CameraView(camera, pinhole, ego_from_camera, global_from_ego, timestamp_us, str(path)))
    return Frame(
        token="/".join(identifier),
        scene_token="/".join(identifier[:2]),
        scene_name=identifier[1],
        timestamp_us=timestamp_us,
        cameras=tuple(views),
        global_from_ego=global_from_ego,
        lanes=lane_labels(entry, place),
        street_map=_street_map(entry["sensor"].get("sd_map"), global_from_ego, place),
    )


def _street_map(lines: Mapping[str, Any] | None, global_from_ego: NDArray[np.float64], place: str) -> StreetMap | None:
    """The map of a collection made ``with_sd_map``, which lies around the car, in the GLOBAL frame."""
    if lines is None:
        return None
    found = [(np.asarray(line, np.float64), kind) for kind, own in lines.items() for line in own]
    if unknown := {kind for _, kind in found} - set(STREET_KINDS):
        raise DataError(f"{place}: sd_map has the category {sorted(unknown)[0]!r}, not of {', '.join(STREET_KINDS)}")
    # as officially, points around the car are (points - translation) @ rotation
    back = np.linalg.inv(global_from_ego[:2, :2])
    streets = StreetMap(
        [line @ back + global_from_ego[:2, 3] for line, _ in found],
        np.array([STREET_KINDS.index(kind) for _, kind in found], np.int64),
    )
    check_street_map(streets, f"{place}: sd_map")
    return streets


def _image_size_px(sensor: Mapping[str, Any], camera: str, path: Path, rig: _Rig, place: str) -> tuple[int, int]:
    """(width, height): as stated in the file (drivestack's only), from the image, or as in the two subsets."""
    if "image_size_px" in sensor:
        width, height = map(int, sensor["image_size_px"])
        return width, height
    try:
        return rig.sizes(camera, sensor["intrinsic"]["K"], path)
    except DataError as error:
        if camera.startswith("ring_"):
            size = (1550, 2048) if camera == "ring_front_center" else (2048, 1550)
            warn_once(f"camera {camera}: images are not there; taken as Argoverse 2's, {size[0]} x {size[1]} pixels")
            return size
        raise DataError(f"{place}: {error}; or state image_size_px [width, height] beside image_path") from None
