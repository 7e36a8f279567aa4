"""Lane labels of a keyframe in the sense of OpenLane-V2 (arXiv 2304.10440): what the map says around the car, and the
lights and signs that the front camera sees.

Shapes: n lanes, k traffic elements.
"""

from __future__ import annotations

import numpy as np

from ....core.labels import ELEMENT_ATTRIBUTES, LaneLabels
from ....core.street_maps import STREET_KINDS, StreetMap
from ....geometry import invert_pose, transform_points
from ...labels.mono_targets import nearness_m
from ..sensing.renderer import RayCaster
from ..sensing.sensors import RigCamera
from ..world.layout import Lane, Layout, TrafficElement
from ..world.network import Network

LANE_RANGE_M = ((-50.0, 50.0), (-25.0, 25.0))  # x forward, y left of the ego frame
LANE_POINTS = 201
_STEP_M = 0.1
_MIN_LENGTH_M = 2.0
_MIN_SIDE_SHARE = 0.008  # of the image's longer side: 13 px at 1600
_MIN_VISIBLE = 0.5
_REACH_M = 0.3


def label_lanes(
    layout: Layout | Network, caster: RayCaster, world_from_ego: np.ndarray, front: RigCamera
) -> LaneLabels:
    """Labels of one keyframe. caster: everything there is at that moment; front: the camera for traffic elements.

    A lane that leaves the range and comes back is two lanes; its pieces are connected to a neighbour only where the
    joint itself lies in range. Lanes shorter than 2 m are left out.
    """
    ego_from_world = invert_pose(world_from_ego)
    names: list[str] = []
    lines: list[np.ndarray] = []
    starts, ends = [], []  # whether the piece begins, ends where its lane does
    for lane in layout.lanes.values():
        for line, is_start, is_end in _pieces(lane, ego_from_world):
            names.append(lane.id)
            lines.append(line)
            starts.append(is_start)
            ends.append(is_end)
    n = len(lines)
    successors = {lane.id: set(lane.successors) for lane in layout.lanes.values()}
    lane_lane = np.array(
        [[ends[i] and starts[j] and names[j] in successors[names[i]] for j in range(n)] for i in range(n)], np.int8
    ).reshape(n, n)
    seen = [(e, box) for e in layout.elements if (box := _front_box(e, caster, world_from_ego, front)) is not None]
    return LaneLabels(
        centrelines=lines,
        is_connector=np.array([layout.lanes[name].is_connector for name in names], bool),
        elements_xyxy_px=np.array([box for _, box in seen], np.float32).reshape(-1, 4),
        attributes=np.array([ELEMENT_ATTRIBUTES.index(e.state) for e, _ in seen], np.int64),
        lane_lane=lane_lane,
        lane_element=np.array([[name in e.lane_ids for e, _ in seen] for name in names], np.int8).reshape(n, len(seen)),
    )


def street_graph(layout: Layout | Network) -> StreetMap:
    """The middle lines of a scene's streets, exactly where they are; training shifts them at random, as real maps are
    never exact (clips/street_maps.py)."""
    kinds = ["side_road" if street.name.startswith(("side", "arm")) else "main_road" for street in layout.streets]
    return StreetMap([street.table_xy for street in layout.streets], np.array([STREET_KINDS.index(k) for k in kinds]))


def _pieces(lane: Lane, ego_from_world: np.ndarray) -> list[tuple[np.ndarray, bool, bool]]:
    """Parts of a lane in range, [201, 3] points at even distances in the ego frame, and which ends are the lane's."""
    points = transform_points(ego_from_world, lane.centreline)
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    s = np.linspace(0, along[-1], max(int(along[-1] / _STEP_M), 2) + 1)
    dense = np.stack([np.interp(s, along, points[:, axis]) for axis in range(3)], 1)
    inside = np.all([(dense[:, a] >= low) & (dense[:, a] <= high) for a, (low, high) in enumerate(LANE_RANGE_M)], 0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]])))
    found = []
    for first, stop in edges.reshape(-1, 2):
        if s[stop - 1] - s[first] < _MIN_LENGTH_M:
            continue
        at = np.linspace(s[first], s[stop - 1], LANE_POINTS)
        line = np.stack([np.interp(at, along, points[:, axis]) for axis in range(3)], 1)
        found.append((line.astype(np.float32), first == 0, stop == len(s)))
    return found


def _front_box(
    element: TrafficElement, caster: RayCaster, world_from_ego: np.ndarray, front: RigCamera
) -> np.ndarray | None:
    """[4] pixels around a light's or sign's face; None if it is turned away, hidden, cut off, too small or no element
    of OpenLane-V2."""
    if element.state not in ELEMENT_ATTRIBUTES:
        return None
    world_from_camera = world_from_ego @ front.ego_from_camera
    eye = world_from_camera[:3, 3]
    normal = np.array([np.cos(element.yaw_rad), np.sin(element.yaw_rad), 0.0])
    side = np.array([-normal[1], normal[0], 0.0])
    length, width, height = element.size_lwh
    grid = np.linspace(-0.5, 0.5, 5)
    across, up = (g.ravel()[:, None] for g in np.meshgrid(grid, grid))
    face = np.asarray(element.centre) + length / 2 * normal + across * width * side + up * height * [0, 0, 1]  # [25, 3]
    away = face - eye
    distance = np.linalg.norm(away, axis=1)
    if (away @ normal / distance).mean() > -0.2:
        return None
    in_camera = transform_points(invert_pose(world_from_camera), face)
    uv, _ = front.camera.project(in_camera)
    if nearness_m(in_camera, front.camera).min() < 1.0 or not np.isfinite(uv).all():
        return None
    box = np.concatenate([uv.min(0), uv.max(0)])
    size = np.array([front.camera.width_px, front.camera.height_px])
    if (box[:2] < 0).any() or (box[2:] > size).any() or (box[2:] - box[:2]).min() < _MIN_SIDE_SHARE * size.max():
        return None
    hits = caster.first_hits(eye, (away / distance[:, None]).astype(np.float32))
    inner = (np.abs(across) < 0.4).ravel() & (np.abs(up) < 0.4).ravel()
    visible = hits.distance_m[inner] > distance[inner] - _REACH_M
    return box if visible.mean() >= _MIN_VISIBLE else None
