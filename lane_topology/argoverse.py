"""Lane labels from the vector map of an Argoverse 2 log, the source of OpenLane-V2's subset A.

A centreline runs midway between a lane's boundaries. Labels have lanes only: the maps know no traffic elements.
Format: https://argoverse.github.io/user-guide/api/hd_maps.html.
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

from ..errors import DataError
from ..geometry import invert_pose, transform_points
from ..structures import LaneLabels
from .collection import resample_line

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
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        lanes = [lane for lane in content["lane_segments"].values() if lane["lane_type"] in lane_types]
        return {int(lane["id"]): _lane(lane) for lane in lanes}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the map of an Argoverse 2 log") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: no Argoverse 2 map ({type(error).__name__}: {error})") from None


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


def _lane(entry: Mapping[str, Any]) -> MapLane:
    left, right = (
        resample_line(np.array([[p["x"], p["y"], p["z"]] for p in entry[f"{side}_lane_boundary"]]), _RAW_POINTS)
        for side in ("left", "right")
    )
    middle = (left.astype(np.float64) + right) / 2
    return MapLane(middle, frozenset(map(int, entry["successors"])), bool(entry["is_intersection"]))
