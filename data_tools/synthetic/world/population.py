"""Who is in the scene: parked, standing and moving objects of the ten classes, and the drive of the ego car.

Shapes: T moments of the scene. Poses are (x, y, yaw) in the world frame, time in seconds from the first keyframe.
Everything is placed by drawing a spot and keeping it only if it touches nothing at any moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .assets import MEAN_SIZE_LWH, RIDDEN_HEIGHT_M, build_object
from .layout import LANE_WIDTH_M, Layout, Street, walk_lanes
from .mesh import Mesh, Semantic, Vector
from .motion import EgoDrive, Motion
from .overlap import Footprints, rectangles_overlap
from .scenery import Forecourt, Scenery

# Objects placed per 70 m of main street; about half of them are seen at a time. Cones and barriers come in groups.
STILL_PER_70M = {
    "bus": 2.5, "trailer": 2.6, "construction_vehicle": 2.6, "truck": 2.2, "car": 5.4, "motorcycle": 2.6,
    "bicycle": 2.8, "pedestrian": 3.6,
}  # fmt: skip
MOVING_PER_70M = {"car": 3.0, "truck": 0.6, "bus": 0.5, "motorcycle": 1.2, "bicycle": 1.3, "pedestrian": 3.6}
WORKS_PER_70M = 2.0
SPEED_MPS = {"pedestrian": (1.0, 1.5), "bicycle": (2.5, 5.0), "motorcycle": (3.0, 7.0)}
VEHICLE_SPEED_MPS = (2.0, 8.0)
_STEP_S = 0.25  # collisions are looked for at this pace
_AHEAD_M, _BEHIND_M = 36.0, 28.0
_ABSENT = 1e6
_STANDING_MPS = 0.2
_BARRIER_STRIP_M = 2.9  # a parking strip that holds a barrier across

Place = tuple[np.ndarray, float | np.ndarray]
"""A point and a heading."""


@dataclass(frozen=True)
class WorldObject:
    """One annotated thing."""

    instance: int  # 1, 2, ... within the scene
    name: str  # detection class
    size_lwh: tuple[float, float, float]
    attribute: str  # nuScenes attribute name, "" for cones and barriers
    motion: Motion
    mesh: Mesh  # object frame, faces labelled with the class and the instance

    def attribute_at(self, time_s: float) -> str:
        """The attribute at a moment: what moves may stand for a while."""
        if self.attribute.endswith(".moving") and self.motion.speed_at(time_s) < _STANDING_MPS:
            return "pedestrian.standing" if self.name == "pedestrian" else "vehicle.stopped"
        return self.attribute


def plan_ego(layout: Layout, start_s: float, mean_speed_mps: float, rng: np.random.Generator) -> EgoDrive:
    """Drive straight on along one of the main street's lanes."""
    lane = int(rng.integers(layout.main.lanes_per_direction))
    path = walk_lanes(layout.lanes, f"main0f{lane}", rng, straight=True)[:, :2]
    s_table = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    swing = float(min(mean_speed_mps, 1.5) * rng.uniform(-0.6, 0.6))
    return EgoDrive(path, s_table, start_s, mean_speed_mps, swing, 12.0)


class Crowd:
    """Objects placed so far and the test whether one more fits."""

    def __init__(self, blocked: Footprints, times_s: np.ndarray, ego: EgoDrive, rng: np.random.Generator) -> None:
        self.still = blocked
        self.times_s = times_s
        self.rng = rng
        self.objects: list[WorldObject] = []
        axle, yaw = ego.poses(times_s)
        centre = axle + 1.45 * np.stack([np.cos(yaw), np.sin(yaw)], -1)
        self.moving = [(centre, yaw, np.array([3.2, 1.35]))]

    def fits(self, motion: Motion, half: np.ndarray, gap: float, headway: float = 0.0) -> bool:
        """Whether a box of the given half extents, grown by `gap` (and along by `headway`), touches nothing."""
        grown = half + [gap + headway, gap]
        centre, yaw, present = motion.poses(self.times_s)
        if not present.any():
            return False
        once = slice(None) if motion.speed_mps else slice(1)
        if self.still.hits(centre[present][once], yaw[present][once], grown):
            return False
        centre = np.where(present[:, None], centre, _ABSENT)
        return not any(rectangles_overlap(centre, yaw, grown, c, y, h).any() for c, y, h in self.moving)

    def add(self, name: str, size: Vector, motion: Motion, attribute: str, ridden: bool = False) -> None:
        instance = len(self.objects) + 1
        length, width, height = (float(v) for v in size)
        mesh = build_object(name, (length, width, height), self.rng, ridden)
        labelled = mesh.labelled(Semantic[name.upper()], instance)
        self.objects.append(WorldObject(instance, name, (length, width, height), attribute, motion, labelled))
        half = np.array(size[:2]) / 2
        if motion.speed_mps:
            centre, yaw, present = motion.poses(self.times_s)
            self.moving.append((np.where(present[:, None], centre, _ABSENT), yaw, half))
        else:
            self.still.add(motion.path_xy[0], motion.heading_rad, half)


def draw_size(name: str, rng: np.random.Generator, ridden: bool = False) -> np.ndarray:
    mean = np.array(MEAN_SIZE_LWH[name])
    if ridden:
        mean[2] = RIDDEN_HEIGHT_M
    return mean * rng.uniform(0.92, 1.08, 3)


def stand(point: Vector, heading: float | np.ndarray) -> Motion:
    return Motion(np.asarray(point, float).reshape(1, 2), float(heading), 0.0, 0.0)


def still_attribute(name: str, stopped: bool, ridden: bool) -> str:
    if name == "pedestrian":
        return "pedestrian.standing"
    if name in ("motorcycle", "bicycle"):
        return "cycle.with_rider" if ridden else "cycle.without_rider"
    return "vehicle.stopped" if stopped else "vehicle.parked"


def collision_times(duration_s: float) -> np.ndarray:
    """[T] seconds at which nothing may touch anything."""
    return np.arange(0, duration_s + 1e-9, _STEP_S)


def populate(
    layout: Layout, scenery: Scenery, ego: EgoDrive, duration_s: float, rng: np.random.Generator
) -> list[WorldObject]:
    """Draw all objects of a scene around the stretch of street the ego car drives along."""
    crowd = Crowd(scenery.blocked, collision_times(duration_s), ego, rng)
    s_from, s_to = ego.arc_length(0.0) - _BEHIND_M, ego.arc_length(duration_s) + _AHEAD_M
    share = (s_to - s_from) / 70.0
    spots = Spots(layout, scenery.forecourts, (float(s_from), float(s_to)), rng)

    def count(per_70m: float) -> int:
        return int(np.floor(per_70m * share + rng.random()))

    def draw(name: str) -> Motion | None:
        speed = float(rng.uniform(*SPEED_MPS.get(name, VEHICLE_SPEED_MPS)))
        if name == "pedestrian":
            return _walk(layout, ego, speed, duration_s, rng)
        return _lane_drive(layout, ego, name, speed, duration_s, rng)

    for name in MOVING_PER_70M:
        for _ in range(count(MOVING_PER_70M[name])):
            add_mover(crowd, name, draw, rng)
    for _ in range(count(WORKS_PER_70M)):
        add_works(crowd, spots, rng)
    for name, per_70m in STILL_PER_70M.items():
        for _ in range(count(per_70m)):
            add_still(crowd, spots, name, rng)
    return crowd.objects


class Spots:
    """Draws places to stand: (point, heading) or None where the drawn place is too small."""

    def __init__(
        self, layout: Layout, yards: tuple[Forecourt, ...], reach: tuple[float, float], rng: np.random.Generator
    ) -> None:
        self.main = layout.main
        self.layout = layout
        self.reach = reach
        self.rng = rng
        self.yards = [y for y in yards if self._near(y)]

    def _near(self, yard: Forecourt) -> bool:
        if yard.street is self.main:
            return yard.s1 > self.reach[0] and yard.s0 < self.reach[1]
        return yard.s0 < 34 and self._junction_in_reach()

    def _junction_in_reach(self) -> bool:
        return any(self.reach[0] < j.s < self.reach[1] for j in self.layout.junctions)

    def along(self, side: int, length: float) -> tuple[Street | None, float]:
        """A street and an s along it where `length` metres do not reach into a junction."""
        rng = self.rng
        if self._junction_in_reach() and rng.random() < 0.2:
            streets = self.layout.junctions[0].streets
            street = streets[rng.integers(len(streets))]
            return street, rng.uniform(self.main.sidewalk_edge_m + 5 + length / 2, 42)
        s = rng.uniform(*self.reach)
        for a, b in self.layout.open_runs(6.0, side):
            if a + length / 2 <= s <= b - length / 2:
                return self.main, s
        return None, s

    def side(self) -> int:
        return int(self.rng.choice([-1, 1]))

    def parking(self, size: Vector, name: str) -> Place | None:
        side = self.side()
        street, s = self.along(side, size[0])
        if street is None:
            return None
        point, heading = street.at(s, side * (street.lanes_half_m + 1.72 + self.rng.normal(0, 0.06)))
        return point, heading + (np.pi if side > 0 else 0) + self.rng.normal(0, 0.03)

    def yard(self, size: Vector, name: str) -> Place | None:
        if not self.yards:
            return None
        yard = self.yards[self.rng.integers(len(self.yards))]
        turn = self.rng.choice([0, np.pi / 2, np.pi, -np.pi / 2]) + (
            self.rng.uniform(-0.6, 0.6) if self.rng.random() < 0.4 else self.rng.normal(0, 0.04)
        )
        along = (size[0] * abs(np.cos(turn)) + size[1] * abs(np.sin(turn))) / 2
        across = (size[0] * abs(np.sin(turn)) + size[1] * abs(np.cos(turn))) / 2
        low, high = min(yard.d0, yard.d1) + across, max(yard.d0, yard.d1) - across
        if yard.s0 + along >= yard.s1 - along or low >= high:
            return None
        nearer = self.rng.random() ** 1.5  # prefers the street side, where things are seen
        d = low + (high - low) * nearer if yard.d0 > 0 else high - (high - low) * nearer
        point, heading = yard.street.at(self.rng.uniform(yard.s0 + along, yard.s1 - along), d)
        return point, heading + turn

    def sidewalk(self, size: Vector, name: str) -> Place | None:
        side = self.side()
        street, s = self.along(side, size[0])
        if street is None:
            return None
        near, far = street.kerb_m + 0.2 + size[0] / 2, street.sidewalk_edge_m - size[0] / 2
        if near > far:
            return None
        d = self.rng.uniform(near, far)
        point, heading = street.at(s, side * d)
        if name == "pedestrian":
            return point, self.rng.uniform(-np.pi, np.pi)
        return point, heading + self.rng.choice([0, np.pi, np.pi / 2, -np.pi / 2]) + self.rng.normal(0, 0.15)


_ZONES: dict[str, list[tuple[str, float]]] = {
    "car": [("parking", 0.6), ("yard", 0.4)],
    "truck": [("parking", 0.55), ("yard", 0.45)],
    "bus": [("parking", 0.5), ("yard", 0.5)],
    "trailer": [("parking", 0.5), ("yard", 0.5)],
    "construction_vehicle": [("parking", 0.4), ("yard", 0.6)],
    "pedestrian": [("sidewalk", 0.75), ("yard", 0.25)],
    "motorcycle": [("sidewalk", 0.3), ("parking", 0.5), ("yard", 0.2)],
    "bicycle": [("sidewalk", 0.5), ("parking", 0.35), ("yard", 0.15)],
}


def add_still(crowd: Crowd, spots: Spots, name: str, rng: np.random.Generator) -> None:
    ridden = name in ("motorcycle", "bicycle") and rng.random() < 0.25
    size = draw_size(name, rng, ridden)
    zones, weights = zip(*_ZONES[name])
    for _ in range(40):
        spot = getattr(spots, zones[rng.choice(len(zones), p=weights)])(size, name)
        if spot is None:
            continue
        motion = stand(*spot)
        if crowd.fits(motion, size[:2] / 2, 0.35 if name != "pedestrian" else 0.2):
            stopped = rng.random() < 0.15
            crowd.add(name, size, motion, still_attribute(name, stopped, ridden), ridden)
            return


def add_mover(crowd: Crowd, name: str, draw: Callable[[str], Motion | None], rng: np.random.Generator) -> None:
    """One more object on a path that ``draw`` gives for its class; none where the drawn ones leave no room."""
    ridden = name in ("motorcycle", "bicycle")
    size = draw_size(name, rng, ridden)
    for _ in range(25):
        motion = draw(name)
        if motion is not None and crowd.fits(motion, size[:2] / 2, 0.25, 0.1 if name == "pedestrian" else 1.5):
            attribute = (
                "pedestrian.moving" if name == "pedestrian" else "cycle.with_rider" if ridden else "vehicle.moving"
            )
            crowd.add(name, size, motion, attribute, ridden)
            return


def _lane_drive(
    layout: Layout, ego: EgoDrive, name: str, speed: float, duration_s: float, rng: np.random.Generator
) -> Motion | None:
    """Along a route of lanes, in view of the ego car at a random moment; two-wheelers keep to the right edge."""
    starts = [lane.id for lane in layout.lanes.values() if not lane.predecessors]
    path = walk_lanes(layout.lanes, starts[rng.integers(len(starts))], rng)[:, :2]
    if name == "bicycle":
        steps = np.gradient(path, axis=0)
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        path = path + (LANE_WIDTH_M / 2 - 0.6) * np.stack([steps[:, 1], -steps[:, 0]], -1)
    when = rng.uniform(0, duration_s)
    here = ego.poses(when)[0][0]
    s_table = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    near = np.flatnonzero(np.linalg.norm(path - here, axis=1) < 38)
    if not len(near):
        return None
    s = rng.uniform(s_table[near[0]], s_table[near[-1]])
    return Motion(path, 0.0, float(s - speed * when), speed)


def _walk(layout: Layout, ego: EgoDrive, speed: float, duration_s: float, rng: np.random.Generator) -> Motion:
    """Along a sidewalk, now and then across the street."""
    main = layout.main
    when = rng.uniform(0, duration_s)
    s = float(ego.arc_length(when)) + rng.uniform(-28, 34)
    side, way = rng.choice([-1, 1], 2)
    if rng.random() < 0.25:
        ends = np.array([-side, side]) * (main.kerb_m + 1.5)
        path = main.at(np.array([s, s + rng.uniform(-3, 3)]), ends)[0]
        offset = rng.uniform(0.1, 0.9) * np.linalg.norm(path[1] - path[0])
        return Motion(path, 0.0, float(offset - speed * when), speed)
    d = side * rng.uniform(main.kerb_m + 1.4, main.sidewalk_edge_m - 0.4)
    grid = np.arange(0, main.length_m, 2.0)[::way]
    path = main.at(grid, d)[0]
    s_table = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    at = float(np.interp(s, grid[::way], s_table[::way]))
    return Motion(path, 0.0, at - speed * when, speed)


def add_works(crowd: Crowd, spots: Spots, rng: np.random.Generator) -> None:
    """Road works on the parking strip: a line of cones towards the lane, barriers at the ends, perhaps a machine."""
    for _ in range(20):
        side = spots.side()
        length = rng.uniform(5, 11)
        street, s = spots.along(side, length)
        if street is None:
            continue
        heading_way = 0.0 if side < 0 else np.pi
        d_lane = street.lanes_half_m + 0.35
        point, heading = street.at(s, side * (street.lanes_half_m + street.parking_width_m / 2))
        if crowd.still.hits(point, float(heading), (length / 2, street.parking_width_m / 2)):
            continue
        for s_cone in np.arange(s - length / 2 + 0.6, s + length / 2, rng.uniform(1.6, 2.6)):
            at, way = street.at(s_cone, side * (d_lane + rng.uniform(0, 0.15)))
            _add_if_fits(crowd, "traffic_cone", at, way + rng.uniform(-np.pi, np.pi), rng)
        for end in (-1, 1) if street.parking_width_m > _BARRIER_STRIP_M else ():
            at, way = street.at(s + end * (length / 2 + 0.4), side * (street.lanes_half_m + 1.7))
            _add_if_fits(crowd, "barrier", at, way + heading_way + rng.normal(0, 0.1), rng)
        if rng.random() < 0.7:
            for s_board in np.arange(s - length / 2 + 1.6, s + length / 2 - 1.2, 2.7):
                at, way = street.at(s_board, side * (street.kerb_m - 0.45))
                _add_if_fits(crowd, "barrier", at, way + np.pi / 2 + rng.normal(0, 0.06), rng)
        return


def _add_if_fits(crowd: Crowd, name: str, point: Vector, heading: float | np.ndarray, rng: np.random.Generator) -> None:
    size = draw_size(name, rng)
    motion = stand(point, heading)
    if crowd.fits(motion, size[:2] / 2, 0.03):
        crowd.add(name, size, motion, "")
