"""Argoverse 2 logs, the source of OpenLane-V2's subset A: Frames with lane labels from the vector map.

    <log>/map/log_map_archive_*.json                  lanes, drivable areas
    <log>/city_SE3_egovehicle.feather                 poses of the car
    <log>/calibration/{intrinsics,egovehicle_SE3_sensor}.feather
    <log>/sensors/cameras/<camera>/<nanoseconds>.jpg  where the images were downloaded

A centreline runs midway between a lane's boundaries. Labels have lanes only: the maps know no traffic elements.
Format: https://argoverse.github.io/user-guide/api/hd_maps.html. Feather files need pyarrow (extra ``argoverse``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import LineString, box

from ....core.argoverse2 import sweep_token
from ....core.errors import LIBRARY_ERRORS, DataError
from ....core.frames import Frame
from ....core.labels import LaneLabels
from ....geometry import invert_pose, transform_points
from ..checks import check_frames
from ..links import link_frames
from ..openlane.files import resample_line
from ..registry import Conventions, register_reader
from .files import (
    MAX_IMAGE_DELAY_NS,
    REPAIR,
    MissingImages,
    conditions_of,
    read_cameras,
    read_trajectory,
    views_at,
)

RANGE_M = (-50.0, -25.0, 50.0, 25.0)  # x and y of the ego frame
_RAW_POINTS = 201
_MIN_LENGTH_M = 1.0


@dataclass(frozen=True)
class MapLane:
    """A lane of the map, in the city frame."""

    centreline: NDArray[np.float64]
    """[points, 3] metres, directed along the traffic."""
    successors: frozenset[int]
    is_connector: bool


def read_map(path: str | Path, lane_types: tuple[str, ...] = ("VEHICLE", "BUS")) -> dict[int, MapLane]:
    """Lanes of a ``log_map_archive_*.json`` by id.

    Raises DataError naming the file that cannot be read or is no such map.
    """
    try:
        lanes = [lane for lane in _read(path, "lane_segments") if lane["lane_type"] in lane_types]
        return {int(lane["id"]): _lane(lane) for lane in lanes}
    except LIBRARY_ERRORS as error:
        raise DataError(f"{path}: no Argoverse 2 map ({type(error).__name__}: {error}); fetch it again") from None


def read_areas(path: str | Path) -> list[NDArray[np.float64]]:
    """Outlines [points, 3] of the drivable areas of a ``log_map_archive_*.json``, city frame; 3 points or more.

    Raises as read_map.
    """
    areas = _read(path, "drivable_areas")
    try:
        outlines = [_points(area["area_boundary"]) for area in areas]
    except LIBRARY_ERRORS as error:
        raise DataError(f"{path}: no Argoverse 2 map ({type(error).__name__}: {error}); fetch it again") from None
    if few := [len(outline) for outline in outlines if len(outline) < 3]:
        raise DataError(f"{path}: a drivable area has {few[0]} corners, at least 3 are needed; fetch it again")
    return outlines


def map_path(log: str | Path) -> Path:
    """The vector map of a log. Raises DataError if it has none."""
    found = sorted(Path(log).glob("map/log_map_archive_*.json"))
    if not found:
        raise DataError(f"{log}: no map/log_map_archive_*.json; give the folder of an Argoverse 2 log")
    return found[0]


@register_reader(
    "argoverse2",
    "an Argoverse 2 log: ring cameras, and lanes from its vector map",
    Conventions(
        boxes="not read",
        quaternions="w x y z",
        time="nanoseconds",
        cameras="front centre first, seven in all; images are undistorted: k1 k2 k3 do not apply; sizes as calibrated",
        frames="EGO: x ahead, y left, z up, at the rear axle; BEV maps lie in it; global: the city frame",
    ),
)
def read_log(log: str | Path, interval_s: float = 0.5, num_points: int = 201) -> list[Frame]:
    """Keyframes of a log every ``interval_s`` seconds, with the seven ring cameras and lane labels of num_points each.

    The EGO frame is Argoverse's vehicle frame, the global one its city frame; BEV maps live in the EGO
    frame. Each camera shows the image nearest in time, from where the car was then; without one within 25 ms it is
    left out, and a keyframe without any camera, too: both are counted in a warning. A log without the folder
    ``sensors/cameras`` gives cameras at the keyframe's own time, and ``image_path`` where the image would lie.
    ``conditions["location"]`` is the city, from the map's name.
    Raises DataError naming the file that is missing or broken, or saying that pyarrow is.
    """
    log = Path(log)
    if not interval_s > 0:
        raise DataError(f"interval_s {interval_s}: give seconds above 0 between keyframes")
    lanes = read_map(map_path(log))
    trajectory, cameras = read_trajectory(log), read_cameras(log)
    times_ns = trajectory.times_ns
    wanted_ns = np.arange(times_ns[0], times_ns[-1] + 1, round(interval_s * 1e9))
    keyframes_ns = times_ns[[trajectory.nearest(int(wanted)) for wanted in wanted_ns]]
    missing, conditions = MissingImages(), conditions_of(log)
    views = views_at(log, keyframes_ns, trajectory, cameras, missing)
    missing.report(str(log), 1, "keyframe")
    frames = [
        Frame(
            token=sweep_token(log.name, now_ns),
            scene_token=log.name,
            scene_name=log.name,
            timestamp_us=now_ns // 1000,
            cameras=tuple(own),
            global_from_ego=pose,
            lanes=map_labels(lanes, pose, num_points),
            conditions=conditions,
        )
        for now_ns, own, pose in zip(keyframes_ns.tolist(), views, trajectory.at(keyframes_ns))
        if own
    ]
    if not frames:
        raise DataError(
            f"{log}: sensors/cameras holds no image within {MAX_IMAGE_DELAY_NS // 1_000_000} ms of a keyframe; {REPAIR}"
        )
    frames = link_frames(frames)
    check_frames(frames)
    return frames


def map_labels(lanes: Mapping[int, MapLane], city_from_ego: NDArray[np.float64], num_points: int = 201) -> LaneLabels:
    """Labels around the car: lanes cut to RANGE_M, of num_points points each, and which continues which.

    A lane that leaves the range and comes back is two lanes. Two lanes are connected if the map says so and the joint
    lies in range; pieces shorter than 1 m are left out.
    """
    ego_from_city = invert_pose(city_from_ego)
    area = box(*RANGE_M)
    ids, lines, starts, ends, connectors = [], [], [], [], []
    for lane_id, lane in lanes.items():
        whole = transform_points(ego_from_city, lane.centreline)
        inside = LineString(whole).intersection(area)
        for part in getattr(inside, "geoms", [inside]):
            if part.geom_type != "LineString" or part.length < _MIN_LENGTH_M:
                continue
            line = np.array(part.coords)
            ids.append(lane_id)
            lines.append(resample_line(line, num_points))
            starts.append(np.allclose(line[0, :2], whole[0, :2]))
            ends.append(np.allclose(line[-1, :2], whole[-1, :2]))
            connectors.append(lane.is_connector)
    n = len(ids)
    follows = [[ends[i] and starts[j] and ids[j] in lanes[ids[i]].successors for j in range(n)] for i in range(n)]
    return LaneLabels(
        centrelines=lines,
        is_connector=np.array(connectors, bool),
        elements_xyxy_px=np.zeros((0, 4), np.float32),
        attributes=np.zeros(0, np.int64),
        lane_lane=np.array(follows, np.int8).reshape(n, n),
        lane_element=np.zeros((n, 0), np.int8),
    )


def _read(path: str | Path, part: str) -> list[dict[str, Any]]:
    """Items of a part of the map."""
    try:
        return list(json.loads(Path(path).read_text(encoding="utf-8"))[part].values())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the map of an Argoverse 2 log") from None
    except LIBRARY_ERRORS as error:
        raise DataError(f"{path}: no Argoverse 2 map ({type(error).__name__}: {error}); fetch it again") from None


def _points(entries: list[dict[str, float]]) -> NDArray[np.float64]:
    points = np.array([[p["x"], p["y"], p["z"]] for p in entries], np.float64)
    if not np.isfinite(points).all():
        raise ValueError("a point that is not finite")
    return points


def _lane(entry: Mapping[str, Any]) -> MapLane:
    left, right = (
        resample_line(_points(entry[f"{side}_lane_boundary"]), _RAW_POINTS).astype(np.float64)
        for side in ("left", "right")
    )
    return MapLane((left + right) / 2, frozenset(map(int, entry["successors"])), bool(entry["is_intersection"]))
