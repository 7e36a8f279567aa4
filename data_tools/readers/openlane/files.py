"""OpenLane-V2 on disk: info files, collections made of them, and their labels as LaneLabels.

    <root>/<split>/<segment>/info/<timestamp>.json       one frame: cameras, pose, centrelines, traffic elements
    <root>/<split>/<segment>/info/<timestamp>-ls.json    the same frame with lane segments and areas (2.x)
    <root>/<split>/<segment>/sdmap.json                  standard-definition map of the segment
    <root>/<name>.pkl                                    a collection: {(split, segment, timestamp): frame}

Lanes lie in the EGO frame. Source: OpenLane-V2, arXiv 2304.10440.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import LineString, box

from ....core.cameras import front_view
from ....core.errors import LIBRARY_ERRORS, DataError
from ....core.files import file_name, write_json
from ....core.frames import Frame
from ....core.labels import LaneLabels, LaneSegments
from ....core.once import warn_once
from ....core.pickles import load_pickle, write_pickle
from ....geometry import invert_pose
from ...labels.files import check_lanes

Identifier = tuple[str, str, str]
"""Split, segment, timestamp."""

SD_MAP_CATEGORIES = ("road", "cross_walk", "side_walk")
SD_MAP_RANGE_M = (-50.0, -25.0, 50.0, 25.0)
RAW_POINTS, EVALUATION_INTERVAL = 201, 20  # OpenLane-V2 2.1.0, preprocess.py
"""Points of a centreline in an info file; scores are made with every twentieth."""
SEGMENT_POINTS = 10
AREA_POINTS = 20
_FIRST_SIGN = 4  # attributes from here on belong to road signs


def identifier_of(frame: Frame, split: str) -> Identifier:
    """The identifier of a frame in a submission.

    A frame of an OpenLane-V2 set has it as its token, "split/segment/timestamp"; for others segment is the scene's
    name, timestamp that of the keyframe (collection.write_frame).
    """
    parts = frame.token.split("/")
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else (split, frame.scene_name, str(frame.timestamp_us))


def identifiers(data_dict: Mapping[str, Mapping[str, Sequence[str]]]) -> list[Identifier]:
    """Frames that a ``data_dict_*.json`` ({split: {segment: ["<timestamp>.json", ...]}}) names."""
    return [
        (split, segment, name.split(".")[0])
        for split, segments in data_dict.items()
        for segment, names in segments.items()
        for name in names
    ]


def read_data_dict(path: str | Path) -> dict[str, dict[str, list[str]]]:
    """The frames of each segment of each split, as a ``data_dict_*.json`` lists them. Raises DataError naming it."""
    content = _read_json(Path(path))
    segments = list(content.values()) if isinstance(content, dict) else [None]
    lists = [names for by_name in segments if isinstance(by_name, dict) for names in by_name.values()]
    if (
        not all(isinstance(by_name, dict) for by_name in segments)
        or not all(isinstance(names, list) for names in lists)
        or not all(isinstance(name, str) for names in lists for name in names)
    ):
        raise DataError(
            f"{path}: no list of frames ({{split: {{segment: ['<timestamp>.json', ...]}}}}); fetch it again"
        )
    return content


def collect(
    root: str | Path,
    frames: Sequence[Identifier],
    point_interval: int = 1,
    with_sd_map: bool = False,
    segments: bool = False,
) -> dict[Identifier, dict[str, Any]]:
    """Info files as the frames of a collection: lists become arrays of the official dtypes.

    point_interval: every which point of a centreline is kept (officially 1 for training, 20 for evaluation).
    with_sd_map: ``sensor["sd_map"]`` holds the map around the car, as officially only in frames that have labels.
    segments: read the files of lane segments; lines are resampled to 10 points, areas to 20.
    Raises DataError naming the file that is missing or not of the format.
    """
    collection = {}
    for split, segment, timestamp in frames:
        for part in (split, segment, timestamp):
            file_name(part, f"{root}: part of a frame's name")
        folder = Path(root) / split / segment
        path = folder / "info" / f"{timestamp}{'-ls' if segments else ''}.json"
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # check_lanes names what is not finite
                frame = _arrays(_read_json(path), point_interval)
            if with_sd_map and frame.get("annotation") is not None:
                frame["sensor"]["sd_map"] = _sd_map(_read_json(folder / "sdmap.json"), frame["pose"])
        except (*LIBRARY_ERRORS, OSError) as error:
            raise DataError(
                f"{path}: not an OpenLane-V2 info file ({type(error).__name__}: {error}); fetch it again"
            ) from None
        collection[split, segment, timestamp] = frame
    return collection


def write_collection(path: str | Path, collection: Mapping[Identifier, Mapping[str, Any]]) -> None:
    """Pickle a collection, atomically, so that any version of NumPy reads it."""
    write_pickle(path, dict(collection))


def read_collection(path: str | Path) -> dict[Identifier, dict[str, Any]]:
    """A collection, official or ours, loaded without running any code in it.

    Raises DataError for a file that cannot be read, holds anything but containers and arrays, or is no collection.
    """
    content = load_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(key, tuple) and len(key) == 3 for key in content):
        raise DataError(f"{path}: no collection, its keys are not (split, segment, timestamp); make it with collect")
    return content


def lane_labels(frame: Mapping[str, Any], place: str) -> LaneLabels | None:
    """Labels of a frame of a collection; None where it has none (the test split).

    Of the collections of lane segments (2024: lane_segment, topology_lsls, topology_lste) the centrelines, of 10
    points, and their topology are read, which is logged once; ``segment_labels`` reads all that they hold.
    Raises DataError naming the place, for a lane of one point or a matrix of the wrong size among others.
    """
    if frame.get("annotation") is None:
        return None
    try:
        entry = frame["annotation"]
        points, lane_lane, lane_element = "points", "topology_lclc", "topology_lcte"
        lanes = entry.get("lane_centerline")
        if lanes is None and "lane_segment" in entry:
            _log_segments()
            lanes, points, lane_lane, lane_element = (
                entry["lane_segment"],
                "centerline",
                "topology_lsls",
                "topology_lste",
            )
        elif lanes is None:
            raise KeyError("lane_centerline")
        boxes, attributes = _elements(entry)
        labels = LaneLabels(
            [np.asarray(lane[points], np.float32) for lane in lanes],
            np.array([lane.get("is_intersection_or_connector", False) for lane in lanes], bool),
            boxes,
            attributes,
            _matrix(entry[lane_lane], len(lanes), len(lanes)),
            _matrix(entry[lane_element], len(lanes), len(attributes)),
        )
    except LIBRARY_ERRORS as error:
        raise DataError(f"{place}: broken annotation ({type(error).__name__}: {error}); collect it again") from None
    check_lanes(labels, place)
    return labels


@cache
def _log_segments() -> None:
    getLogger("drivestack").info(
        "these are lane segments of OpenLane-V2: their centrelines, of 10 points, and topology are read as lanes "
        "(scores of whole segments: lane_topology.evaluation.segments)"
    )


def segment_labels(frame: Mapping[str, Any], place: str) -> LaneSegments | None:
    """Lane segments and areas of a frame of a ``segments`` collection; None where it has no labels.

    Raises DataError naming the place for a broken entry, and a frame of the other layout, which ``lane_labels`` reads.
    """
    if frame.get("annotation") is None:
        return None
    try:
        entry = frame["annotation"]
        if "lane_segment" not in entry and "lane_centerline" in entry:
            raise DataError(
                f"{place}: holds centrelines, not lane segments; read it with lane_labels, or collect segments"
            )
        lanes, areas = entry["lane_segment"], entry["area"]
        boxes, attributes = _elements(entry)
        lines = {
            key: [np.asarray(lane[key], np.float32) for lane in lanes]
            for key in ("centerline", "left_laneline", "right_laneline")
        }
        return LaneSegments(
            lines["centerline"],
            lines["left_laneline"],
            lines["right_laneline"],
            [np.asarray(area["points"], np.float32) for area in areas],
            np.array([area["category"] for area in areas], np.int64),
            boxes,
            attributes,
            _matrix(entry["topology_lsls"], len(lanes), len(lanes)),
            _matrix(entry["topology_lste"], len(lanes), len(attributes)),
            np.array([lane["left_laneline_type"] for lane in lanes], np.int64),
            np.array([lane["right_laneline_type"] for lane in lanes], np.int64),
            np.array([lane["is_intersection_or_connector"] for lane in lanes], bool),
        )
    except LIBRARY_ERRORS as error:
        raise DataError(f"{place}: broken annotation ({type(error).__name__}: {error}); collect it again") from None


def write_frame(root: str | Path, split: str, frame: Frame, front_camera: str | None = None) -> Identifier:
    """Write the info file of a Frame, with its lanes where it has them; any number of cameras, the front one first.

    Segment is the scene's name, timestamp that of the keyframe. Images stay where they are: ``image_path`` is theirs,
    and ``image_size_px`` [width, height], which official files lack, stands beside it.
    front_camera: the one that shows the traffic elements; default: the one that looks ahead, else the first.
    Raises ValueError if the frame has no such camera.
    """
    names = [view.name for view in frame.cameras]
    front = (front_view(frame.cameras) or frame.cameras[0]).name if front_camera is None else front_camera
    if front not in names:
        raise ValueError(f"no camera {front!r} among {', '.join(names)}")
    identifier = (split, frame.scene_name, str(frame.timestamp_us))
    sensor = {}
    for view in sorted(frame.cameras, key=lambda view: view.name != front):
        ego_from_camera = frame.ego_from_bev @ frame.bev_from_camera(view)
        if view.camera.lens is not None:
            kind = view.camera.lens.kind
            warn_once(f"camera {view.name}: OpenLane-V2's files have no place for its {kind} lens, which is left out")
        sensor[view.name] = {
            "image_path": view.image_path,
            "image_size_px": [view.camera.width_px, view.camera.height_px],
            "extrinsic": _pose_entry(ego_from_camera),
            "intrinsic": {"K": view.camera.intrinsics.tolist(), "distortion": [0.0, 0.0, 0.0]},
        }
    content = {
        "version": "drivestack",
        "segment_id": frame.scene_name,
        "meta_data": {"source": "drivestack", "source_id": frame.token},
        "timestamp": frame.timestamp_us,
        "sensor": sensor,
        "pose": _pose_entry(frame.global_from_ego),
    }
    if frame.lanes is not None:
        content["annotation"] = annotation(frame.lanes)
    write_json(Path(root) / split / frame.scene_name / "info" / f"{frame.timestamp_us}.json", content)
    return identifier


def annotation(labels: LaneLabels) -> dict[str, Any]:
    """Lane labels as an info file has them, in lists; ids count through lanes and elements."""
    n = len(labels.centrelines)
    return {
        "lane_centerline": [
            {"id": str(i), "points": line.tolist(), "is_intersection_or_connector": bool(connector)}
            for i, (line, connector) in enumerate(zip(labels.centrelines, labels.is_connector))
        ],
        "traffic_element": [
            {
                "id": str(n + i),
                "category": 2 if attribute >= _FIRST_SIGN else 1,
                "attribute": int(attribute),
                "points": xyxy.reshape(2, 2).tolist(),
            }
            for i, (xyxy, attribute) in enumerate(zip(labels.elements_xyxy_px, labels.attributes))
        ],
        "topology_lclc": labels.lane_lane.tolist(),
        "topology_lcte": labels.lane_element.tolist(),
    }


def ego_from_camera(frame: Mapping[str, Any], camera: str) -> NDArray[np.float64]:
    """[4, 4] mounting of a camera of a frame of a collection. Raises KeyError if it has no such camera."""
    return _pose_matrix(frame["sensor"][camera]["extrinsic"])


def image_from_ego(frame: Mapping[str, Any], camera: str) -> NDArray[np.float64]:
    """[4, 4]: ego points (x, y, z, 1) to (u * depth, v * depth, depth, 1) of a frame of a collection."""
    intrinsics = np.eye(4)
    intrinsics[:3, :3] = frame["sensor"][camera]["intrinsic"]["K"]
    return intrinsics @ invert_pose(ego_from_camera(frame, camera))


def resample_line(line: NDArray[np.floating], num_points: int) -> NDArray[np.float32]:
    """[num_points, D] evenly along a line [n, D] as seen from above (officially too); its ends stay."""
    line = np.asarray(line, np.float64)
    along = np.concatenate([[0.0], np.linalg.norm(np.diff(line[:, :2], axis=0), axis=1).cumsum()])
    at = np.linspace(0, along[-1], num_points)
    return np.stack([np.interp(at, along, line[:, i]) for i in range(line.shape[1])], axis=-1).astype(np.float32)


def _arrays(frame: dict[str, Any], interval: int) -> dict[str, Any]:
    frame["pose"] = {key: np.array(value, np.float64) for key, value in frame["pose"].items()}
    for camera in frame["sensor"].values():
        for part in ("intrinsic", "extrinsic"):
            camera[part] = {key: np.array(value, np.float64) for key, value in camera[part].items()}
    entry = frame.get("annotation")
    if entry is None:
        return frame
    for lane in entry.get("lane_centerline", ()):
        lane["points"] = np.array(lane["points"][::interval], np.float32)
    for lane in entry.get("lane_segment", ()):
        for key in ("centerline", "left_laneline", "right_laneline"):
            lane[key] = resample_line(np.array(lane[key]), SEGMENT_POINTS)
    for area in entry.get("area", ()):
        area["points"] = resample_line(np.array(area["points"]), AREA_POINTS)
    for element in entry["traffic_element"]:
        element["points"] = np.array(element["points"], np.float32)
    for key in ("topology_lclc", "topology_lcte", "topology_lsls", "topology_lste"):
        if key in entry:
            entry[key] = np.array(entry[key], np.int8)
    return frame


def _sd_map(elements: list[dict[str, Any]], pose: Mapping[str, NDArray]) -> dict[str, list[NDArray[np.float32]]]:
    """Lines of the map in the ego frame within SD_MAP_RANGE_M, by category; a line that leaves and returns is two."""
    out: dict[str, list[NDArray[np.float32]]] = {category: [] for category in SD_MAP_CATEGORIES}
    for element in elements:
        points = (np.array(element["points"]) - pose["translation"][:2]) @ pose["rotation"][:2, :2]
        inside = LineString(points).intersection(box(*SD_MAP_RANGE_M))
        for part in getattr(inside, "geoms", [inside]):
            if not part.is_empty:
                out[element["category"]].append(np.array(part.coords, np.float32))
    return out


def _elements(entry: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    elements = entry["traffic_element"]
    boxes = np.array([np.asarray(e["points"]).reshape(4) for e in elements], np.float32).reshape(-1, 4)
    return boxes, np.array([e["attribute"] for e in elements], np.int64)


def _matrix(values: Any, rows: int, columns: int) -> NDArray[np.int8]:
    """An empty list says nothing of its shape; what is neither 0 nor 1 is left for ``check_lanes`` to name."""
    values = np.asarray(values)
    if not values.size or np.isin(values, (0, 1)).all():
        values = values.astype(np.int8)
    return values.reshape(rows, columns) if values.size == 0 == rows * columns else values


def _pose_entry(matrix: NDArray[np.float64]) -> dict[str, list]:
    return {"rotation": matrix[:3, :3].tolist(), "translation": matrix[:3, 3].tolist()}


def _pose_matrix(entry: Mapping[str, Any]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = entry["rotation"], entry["translation"]
    return matrix


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); is this frame downloaded?") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); fetch it again") from None
