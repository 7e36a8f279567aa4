"""Who is in a scene of a network of streets: objects around the drive, walkers that stop, traffic that turns.

Shapes: T moments, n points of a path. World frame, metres, seconds from the first keyframe.
"""

from __future__ import annotations

import numpy as np

from .drive import Stop, Timetable, arc_lengths, plan_timetable
from .families import Family
from .layout import Street
from .mesh import Vector
from .motion import EgoDrive, TimedDrive, TimedMotion
from .network import Network
from .network_scenery import corner_lines
from .population import (
    MOVING_PER_70M,
    SPEED_MPS,
    STILL_PER_70M,
    VEHICLE_SPEED_MPS,
    WORKS_PER_70M,
    Crowd,
    Place,
    Spots,
    WorldObject,
    add_mover,
    add_still,
    add_works,
    collision_times,
)
from .scenery import Forecourt, Scenery

_NEAR_M = 42.0  # of the drive: where objects stand
_MOVER_NEAR_M = 38.0
_DENSITY = 0.62  # side streets count as well: beside the main street of world/layout.py they do not
_WALKERS = 1.6  # times those of world/layout.py
_CAR_AHEAD_M = 4.0  # from the rear axle to the bumper, and a little
_LATERAL_MPS2 = (1.7, 2.8)  # that the driver takes bends with
_STOP_S = (1.5, 4.0)
_STOPPING_SHARE = 0.2  # of the traffic
_PAUSE_SHARE = 0.4  # of the walkers
_ROUTE_LANES = 9


def plan_network_ego(
    network: Network, family: Family, start_s: float, duration_s: float, rng: np.random.Generator
) -> EgoDrive:
    """Along the network's route: slow in bends, with a stop on the way in some scenes, or parked."""
    path = np.concatenate([network.lanes[name].centreline[k > 0 :, :2] for k, name in enumerate(network.route)])
    s_table = arc_lengths(path)
    lateral = float(rng.uniform(*_LATERAL_MPS2))
    wanted, kind = float(rng.uniform(*family.speed_mps)), rng.random()
    if kind < family.parked_share:
        standing = Timetable(np.array([-2.0, duration_s + 2.0]), np.array([start_s, start_s]))
        return TimedDrive(path, s_table, start_s, 0.0, 0.0, 1.0, standing)
    stops: list[Stop] = []
    if kind < family.parked_share + family.stop_share:
        ends = np.cumsum([arc_lengths(network.lanes[n].centreline)[-1] for n in network.route])[:-1:2] - _CAR_AHEAD_M
        ahead = [end for end in ends if 6.0 < end - start_s < 40.0]
        place = float(ahead[0]) if ahead else start_s + rng.uniform(6.0, 25.0)
        stops = [(place, float(rng.uniform(*_STOP_S)))]
    return TimedDrive(path, s_table, start_s, wanted, 0.0, 1.0, plan_timetable(path, wanted, start_s, stops, lateral))


def populate_network(
    network: Network, scenery: Scenery, ego: EgoDrive, duration_s: float, rng: np.random.Generator
) -> list[WorldObject]:
    """Draw all objects of a scene around the streets that the ego car drives along."""
    crowd = Crowd(scenery.blocked, collision_times(duration_s), ego, rng)
    spots = _NetworkSpots(network, scenery.forecourts, ego.poses(np.linspace(0, duration_s, 12))[0], rng)
    share = _DENSITY * spots.near_m / 70.0

    def count(per_70m: float) -> int:
        return int(np.floor(per_70m * share + rng.random()))

    traffic = _Traffic(network, ego, duration_s, rng)
    for name, per_70m in MOVING_PER_70M.items():
        more = _WALKERS if name == "pedestrian" else 1.0
        for _ in range(count(more * per_70m)):
            add_mover(crowd, name, traffic.walk if name == "pedestrian" else traffic.drive, rng)
    for _ in range(count(WORKS_PER_70M)):
        add_works(crowd, spots, rng)
    for name, per_70m in STILL_PER_70M.items():
        for _ in range(count(per_70m)):
            add_still(crowd, spots, name, rng)
    return crowd.objects


class _NetworkSpots(Spots):
    """Draws places to stand beside the streets near the drive."""

    def __init__(
        self, network: Network, yards: tuple[Forecourt, ...], drive_xy: np.ndarray, rng: np.random.Generator
    ) -> None:
        self.rng = rng
        self._network = network
        self._drive_xy = drive_xy
        self._places: list[tuple[Street, float]] = []
        for street in network.streets:
            s = np.arange(*network.span(street, of_lanes=True), 1.0)
            self._places += [(street, float(v)) for v in s[self._is_near(street.at(s)[0])]]
        self.near_m = float(len(self._places))
        self.yards = [y for y in yards if self._is_near(y.street.at([(y.s0 + y.s1) / 2], y.d0)[0])[0]]

    def _is_near(self, points: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points[:, None] - self._drive_xy[None], axis=-1).min(1) < _NEAR_M

    def along(self, side: int, length: float) -> tuple[Street | None, float]:
        """A street and an s along it where ``length`` metres do not reach into a junction."""
        street, s = self._places[self.rng.integers(len(self._places))]
        s += self.rng.uniform(0, 1)
        low, high = self._network.span(street, True, 2.0)
        return (street if low + length / 2 <= s <= high - length / 2 else None), s

    def parking(self, size: Vector, name: str) -> Place | None:
        """In the parking strip, if it is wide enough, also in a bend."""
        side = self.side()
        street, s = self.along(side, size[0])
        if street is None:
            return None
        middle = street.lanes_half_m + max(size[1] / 2 + 0.1, street.parking_width_m / 2 + self.rng.normal(0.1, 0.06))
        point, heading = street.at(s, side * middle)
        yaw = float(heading) + (np.pi if side > 0 else 0) + self.rng.normal(0, 0.03)
        across = np.abs(_across(street, s, _corners(point, yaw, size)))
        inside = across.min() > street.lanes_half_m - 0.1 and across.max() < street.kerb_m + 0.1
        return (point, yaw) if inside else None


def _corners(point: np.ndarray, yaw_rad: float, size: Vector) -> np.ndarray:
    """[8, 2] corners of a footprint and the middles of its sides."""
    signs = np.array([[1, 1], [1, 0], [1, -1], [0, -1], [-1, -1], [-1, 0], [-1, 1], [0, 1]])
    along, across = (signs * np.asarray(size[:2]) / 2).T
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    return point + np.stack([cos * along - sin * across, sin * along + cos * across], -1)


def _across(street: Street, s: float, points: np.ndarray) -> np.ndarray:
    """Offsets d of points near s from the middle of a street."""
    near = np.abs(street.table_s - s) < 12.0
    line, heading = street.table_xy[near], street.table_heading_rad[near]
    gap = points[:, None] - line[None]
    k = np.linalg.norm(gap, axis=-1).argmin(1)
    chosen = gap[np.arange(len(points)), k]
    return chosen[:, 1] * np.cos(heading[k]) - chosen[:, 0] * np.sin(heading[k])


class _Traffic:
    """Draws the motions of vehicles along lanes and of people along sidewalks and across streets."""

    def __init__(self, network: Network, ego: EgoDrive, duration_s: float, rng: np.random.Generator) -> None:
        self._network = network
        self._ego = ego
        self._duration_s = duration_s
        self._rng = rng
        corners = [(a, b) for junction in network.junctions for a, b in junction.corners()]
        self._corners = [(a, b) for a, b in corners if a.street is not b.street]

    def drive(self, name: str) -> TimedMotion | None:
        """Along a route of lanes, near the ego car at a random moment; two-wheelers keep to the right edge."""
        rng = self._rng
        when, here = self._moment()
        lanes = [lane.id for lane in self._network.lanes.values() if not lane.is_connector]
        middle = lanes[rng.integers(len(lanes))]
        line = self._network.lanes[middle].centreline[:, :2]
        if np.linalg.norm(line - here, axis=1).min() > _MOVER_NEAR_M:
            return None
        names = self._route_through(middle)
        path = np.concatenate([self._network.lanes[n].centreline[k > 0 :, :2] for k, n in enumerate(names)])
        if name == "bicycle":
            steps = np.gradient(path, axis=0)
            steps /= np.linalg.norm(steps, axis=1, keepdims=True)
            width = self._network.streets[0].lane_width_m
            path = path + (width / 2 - 0.6) * np.stack([steps[:, 1], -steps[:, 0]], -1)
        s_table = arc_lengths(path)
        near = np.flatnonzero(np.linalg.norm(path - here, axis=1) < _MOVER_NEAR_M)
        if not len(near):
            return None
        s = rng.uniform(s_table[near[0]], s_table[near[-1]])
        speed = float(rng.uniform(*SPEED_MPS.get(name, VEHICLE_SPEED_MPS)))
        stops: list[Stop] = []
        if rng.random() < _STOPPING_SHARE:
            stops = [(s + float(rng.uniform(-8, 15)), float(rng.uniform(*_STOP_S)))]
        table = plan_timetable(path, speed, 0.0, stops).passing(s, when)
        return TimedMotion(path, 0.0, 0.0, speed, table)

    def _moment(self) -> tuple[float, np.ndarray]:
        when = float(self._rng.uniform(0, self._duration_s))
        return when, self._ego.poses(when)[0][0]

    def _route_through(self, middle: str) -> list[str]:
        lanes, names = self._network.lanes, [middle]
        while (options := lanes[names[0]].predecessors) and len(names) < _ROUTE_LANES // 2:
            names.insert(0, options[self._rng.integers(len(options))])
        while (options := lanes[names[-1]].successors) and len(names) < _ROUTE_LANES:
            names.append(options[self._rng.integers(len(options))])
        return names

    def walk(self, name: str) -> TimedMotion | None:
        """Along sidewalks, round a corner or across a street, some with a pause on the way."""
        rng = self._rng
        when, here = self._moment()
        path = self._crossing_path() if rng.random() < 0.3 else self._sidewalk_path()
        if rng.random() < 0.5:
            path = path[::-1]
        s_table = arc_lengths(path)
        dense = np.arange(0, s_table[-1], 1.0)
        points = np.stack([np.interp(dense, s_table, path[:, k]) for k in (0, 1)], -1)
        near = np.flatnonzero(np.linalg.norm(points - here, axis=1) < _MOVER_NEAR_M)
        if not len(near):
            return None
        s = float(dense[near[rng.integers(len(near))]])
        speed = float(rng.uniform(*SPEED_MPS[name]))
        stops: list[Stop] = []
        if rng.random() < _PAUSE_SHARE:
            stops = [(s + float(rng.uniform(-4, 4)), float(rng.uniform(1.5, 6.0)))]
        return TimedMotion(path, 0.0, 0.0, speed, plan_timetable(path, speed, 0.0, stops).passing(s, when))

    def _sidewalk_path(self) -> np.ndarray:
        """Along one street to a junction, round the corner and along the next street."""
        a, b = self._corners[self._rng.integers(len(self._corners))]
        walk = a.street.sidewalk_width_m
        offset = float(self._rng.uniform(min(1.4, 0.5 * walk), walk - 0.5))
        corner = corner_lines(a, b, (offset,))[0]
        pieces = []
        for arm, left in ((a, True), (b, False)):
            ends = self._network.span(arm.street)
            far = ends[0] if arm.at_end else ends[1]
            s = np.linspace(far, arm.s_at(arm.mouth_m), max(int(abs(far - arm.s_at(arm.mouth_m))), 2))
            side = arm.side(left)
            pieces.append(arm.street.at(s, side * (arm.street.kerb_m + offset))[0])
        return np.concatenate([pieces[0], corner[1:-1], pieces[1][::-1]])

    def _crossing_path(self) -> np.ndarray:
        """Across a street, in the crosswalk of a junction or anywhere."""
        rng = self._rng
        junctions = self._network.junctions
        if rng.random() < 0.6:
            arms = junctions[rng.integers(len(junctions))].arms
            arm = arms[rng.integers(len(arms))]
            street, s = arm.street, arm.s_at(arm.mouth_m + rng.uniform(0.6, 2.1))
            slant = 0.0
        else:
            street = self._network.streets[rng.integers(len(self._network.streets))]
            s, slant = rng.uniform(*self._network.span(street, of_lanes=True)), rng.uniform(-3, 3)
        side = rng.choice([-1, 1])
        ends = np.array([-side, side]) * (street.kerb_m + min(1.5, street.sidewalk_width_m - 0.6))
        return street.at(np.array([s, s + slant]), ends)[0]
