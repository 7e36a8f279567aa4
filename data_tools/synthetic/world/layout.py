"""Streets, junctions, lanes and traffic elements: where things may drive, stand and grow.

Street frame: s metres along the reference line, d metres to its left. Traffic keeps to the right, so the lanes with
d < 0 run with growing s. World frame: x, y in metres on flat ground z = 0, z up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

LANE_WIDTH_M = 3.5
PARKING_WIDTH_M = 3.2
SIDEWALK_WIDTH_M = 4.0
LIGHT_HEIGHT_M, SIGN_HEIGHT_M = 2.6, 2.3  # of their centres: low enough for a front camera twelve metres away
# OpenLane-V2's signs that say where to go, and two that only look like them
_SIGNS = {
    "go_straight": 0.2, "turn_left": 0.12, "turn_right": 0.16, "no_left_turn": 0.14, "no_right_turn": 0.12,
    "no_u_turn": 0.1, "speed_limit": 0.08, "no_parking": 0.08,
}  # fmt: skip
ORIGIN_M = (500.0, 500.0)  # where each main street starts: keeps all coordinates positive, as on nuScenes maps


@dataclass(frozen=True)
class Street:
    """A reference line with a cross-section: lanes, parking strip, kerb and sidewalk on both sides."""

    name: str
    table_s: np.ndarray  # [n] ascending, metres
    table_xy: np.ndarray  # [n, 2]
    table_heading_rad: np.ndarray  # [n]
    lanes_per_direction: int
    lane_width_m: float = LANE_WIDTH_M
    parking_width_m: float = PARKING_WIDTH_M
    sidewalk_width_m: float = SIDEWALK_WIDTH_M

    @property
    def length_m(self) -> float:
        return float(self.table_s[-1])

    @property
    def lanes_half_m(self) -> float:
        """Distance from the middle to the outer edge of the lanes."""
        return self.lanes_per_direction * self.lane_width_m

    @property
    def kerb_m(self) -> float:
        """Distance from the middle to the kerb."""
        return self.lanes_half_m + self.parking_width_m

    @property
    def sidewalk_edge_m(self) -> float:
        """Distance from the middle to the far edge of the sidewalk."""
        return self.kerb_m + self.sidewalk_width_m

    def at(self, s: ArrayLike, d: ArrayLike = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """World points [..., 2] and headings [...] at (s, d); beyond the ends the line goes on straight."""
        s = np.asarray(s, float)
        inside = np.clip(s, 0, self.length_m)
        heading = np.interp(inside, self.table_s, self.table_heading_rad)
        centre = np.stack([np.interp(inside, self.table_s, self.table_xy[:, k]) for k in (0, 1)], -1)
        forward = np.stack([np.cos(heading), np.sin(heading)], -1)
        left = np.stack([-np.sin(heading), np.cos(heading)], -1)
        return centre + (s - inside)[..., None] * forward + np.asarray(d, float)[..., None] * left, heading


@dataclass(frozen=True)
class Junction:
    """A side street meeting the main street at s; `sides` are +1 (left) and -1 (right)."""

    s: float
    sides: tuple[int, ...]
    half_m: float  # half the kerb-to-kerb width of the side street
    streets: tuple[Street, ...]  # one per side, leading away from the main street's middle line


@dataclass(frozen=True)
class Lane:
    """A directed lane; `successors` and `predecessors` are lane ids."""

    id: str
    centreline: np.ndarray  # [n, 3] world, in driving direction
    is_connector: bool
    predecessors: tuple[str, ...] = ()
    successors: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrafficElement:
    """A traffic light or sign: what it says, where it hangs, and the lanes it is meant for."""

    id: str
    kind: str  # "light" or "sign"
    state: str  # red, yellow, green; or the sign's name
    centre: tuple[float, float, float]
    size_lwh: tuple[float, float, float]
    yaw_rad: float  # direction the face looks at
    lane_ids: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Everything fixed about the streets of one scene."""

    kind: str
    main: Street
    junctions: tuple[Junction, ...]
    lanes: dict[str, Lane] = field(default_factory=dict)
    elements: tuple[TrafficElement, ...] = ()

    @property
    def streets(self) -> list[Street]:
        return [self.main, *(street for junction in self.junctions for street in junction.streets)]

    def open_runs(self, margin_m: float, side: int) -> list[tuple[float, float]]:
        """Intervals of s along one side of the main street (+1 left, -1 right) that no side street cuts."""
        runs, start = [], 0.0
        for junction in self.junctions:
            if side in junction.sides:
                runs.append((start, junction.s - junction.half_m - margin_m))
                start = junction.s + junction.half_m + margin_m
        return [*runs, (start, self.main.length_m)]


def _street(name: str, start_xy: ArrayLike, heading_rad: np.ndarray, step_m: float, lanes: int) -> Street:
    middle = (heading_rad[1:] + heading_rad[:-1]) / 2
    moves = step_m * np.stack([np.cos(middle), np.sin(middle)], -1)
    xy = np.concatenate([[start_xy], np.asarray(start_xy) + np.cumsum(moves, 0)])
    return Street(name, np.arange(len(heading_rad)) * step_m, xy, heading_rad, lanes)


def build_layout(rng: np.random.Generator, length_m: float, reach: tuple[float, float]) -> Layout:
    """Draw the streets of a scene; the car will see the main street between s = reach[0] and reach[1].

    Straight, gently curved or winding; a crossing or a T in most straight and gentle scenes.
    """
    kind = rng.choice(["straight", "gentle", "winding"], p=[0.45, 0.3, 0.25])
    amplitude = {"straight": 0.0, "gentle": rng.uniform(0.12, 0.24), "winding": rng.uniform(0.4, 0.65)}[kind]
    step = 1.0
    s = np.arange(0.0, length_m + step, step)
    wave, phase = rng.uniform(180, 260), rng.uniform(0, 2 * np.pi)
    heading = rng.uniform(-np.pi, np.pi) + amplitude * np.sin(2 * np.pi * s / wave + phase)
    main = _street("main", ORIGIN_M, heading, step, int(rng.choice([1, 2], p=[0.6, 0.4])))
    junctions = []
    if kind != "winding" and rng.random() < 0.8:
        place = rng.uniform(reach[0] + 5, reach[1] - 2)
        sides = [(1, -1), (1,), (-1,)][rng.choice(3, p=[0.5, 0.25, 0.25])]
        centre, at_heading = main.at(place)
        branches = []
        for side in sides:
            direction = np.full(66, float(at_heading) + side * np.pi / 2)
            branches.append(_street(f"side{'LR'[side < 0]}", centre, direction, step, 1))
        junctions.append(Junction(float(place), tuple(sides), branches[0].kerb_m, tuple(branches)))
    layout = Layout(str(kind), main, tuple(junctions))
    lanes = _lanes(layout)
    layout = Layout(str(kind), main, tuple(junctions), lanes)
    return Layout(str(kind), main, tuple(junctions), lanes, _traffic_elements(layout, rng))


def lane_line(street: Street, s0: float, s1: float, d: float, step_m: float = 2.0) -> np.ndarray:
    """[n, 3] world points along a street from s0 to s1, d to the left of its middle."""
    s = np.linspace(s0, s1, max(int(abs(s1 - s0) / step_m), 1) + 1)
    return np.c_[street.at(s, d)[0], np.zeros(len(s))]


def bend(line_in: np.ndarray, line_out: np.ndarray, points: int = 13) -> np.ndarray:
    """A quadratic Bezier through a junction, from the end of one lane to the start of another."""
    p0, p2 = line_in[-1, :2], line_out[0, :2]
    a = line_in[-1, :2] - line_in[-2, :2]
    b = line_out[1, :2] - line_out[0, :2]
    cross = a[0] * b[1] - a[1] * b[0]
    if abs(cross) < 1e-3 * np.linalg.norm(a) * np.linalg.norm(b):
        p1 = (p0 + p2) / 2
    else:
        gap = p2 - p0
        p1 = p0 + a * (gap[0] * b[1] - gap[1] * b[0]) / cross
    t = np.linspace(0, 1, points)[:, None]
    return np.c_[(1 - t) ** 2 * p0 + 2 * t * (1 - t) * p1 + t**2 * p2, np.zeros(points)]


def _lanes(layout: Layout) -> dict[str, Lane]:
    lines: dict[str, np.ndarray] = {}
    links: list[tuple[str, str]] = []
    connectors: set[str] = set()
    main, n = layout.main, layout.main.lanes_per_direction
    cuts = [(j.s - j.half_m - 3.0, j.s + j.half_m + 3.0) for j in layout.junctions]
    edges = [0.0, *(c for cut in cuts for c in cut), main.length_m]
    for part in range(len(edges) // 2):
        s0, s1 = edges[2 * part], edges[2 * part + 1]
        for k in range(n):
            d = (k + 0.5) * LANE_WIDTH_M
            lines[f"main{part}f{k}"] = lane_line(main, s0, s1, -d)
            lines[f"main{part}b{k}"] = lane_line(main, s1, s0, d)

    def connect(a: str, b: str) -> None:
        name = f"{a}>{b}"
        lines[name] = bend(lines[a], lines[b])
        connectors.add(name)
        links.extend([(a, name), (name, b)])

    for number, junction in enumerate(layout.junctions):
        before, after = f"main{number}", f"main{number + 1}"
        for k in range(n):
            connect(f"{before}f{k}", f"{after}f{k}")
            connect(f"{after}b{k}", f"{before}b{k}")
        outer = n - 1
        names = []
        for side, street in zip(junction.sides, junction.streets):
            name = street.name
            names.append(name)
            start = main.kerb_m + 3.0
            lines[f"{name}f0"] = lane_line(street, start, street.length_m, -LANE_WIDTH_M / 2)  # away from main
            lines[f"{name}b0"] = lane_line(street, street.length_m, start, LANE_WIDTH_M / 2)
            right_in, left_in = (f"{before}f", f"{after}b") if side < 0 else (f"{after}b", f"{before}f")
            connect(f"{right_in}{outer}", f"{name}f0")
            connect(f"{left_in}0", f"{name}f0")
            right_out, left_out = (f"{after}f", f"{before}b") if side < 0 else (f"{before}b", f"{after}f")
            connect(f"{name}b0", f"{right_out}{outer}")
            connect(f"{name}b0", f"{left_out}0")
        if len(names) == 2:
            connect(f"{names[0]}b0", f"{names[1]}f0")
            connect(f"{names[1]}b0", f"{names[0]}f0")
    return linked_lanes(lines, links, connectors)


def linked_lanes(lines: dict[str, np.ndarray], links: list[tuple[str, str]], connectors: set[str]) -> dict[str, Lane]:
    """Lanes by id, out of their centrelines [n, 3] and the links (from, to) between them."""
    return {
        name: Lane(
            name,
            line,
            name in connectors,
            tuple(a for a, b in links if b == name),
            tuple(b for a, b in links if a == name),
        )
        for name, line in lines.items()
    }


def _traffic_elements(layout: Layout, rng: np.random.Generator) -> tuple[TrafficElement, ...]:
    """One light per approach of each junction (main and side streets see opposite colours), signs along the way."""
    elements = []
    main = layout.main
    for number, junction in enumerate(layout.junctions):
        main_state = str(rng.choice(["green", "yellow", "red"], p=[0.8, 0.1, 0.1]))
        side_state = "red" if main_state != "red" else "green"
        approaches = [
            (main, junction.s - junction.half_m - 1.0, -1, f"main{number}f", main_state),
            (main, junction.s + junction.half_m + 1.0, 1, f"main{number + 1}b", main_state),
        ]
        approaches += [(street, main.kerb_m + 1.0, 1, f"{street.name}b", side_state) for street in junction.streets]
        for street, s, side, prefix, state in approaches:
            point, heading = street.at(s, side * (street.kerb_m + 0.7))
            facing = heading + np.pi if side < 0 else heading
            governed = tuple(name for name in layout.lanes if name[:-1] == prefix)
            elements.append(make_light(f"light-{prefix}", state, point, float(facing), governed))
    for side in (-1, 1):
        for s in np.arange(rng.uniform(5, 20), main.length_m, 24.0):
            if not any(a + 3 < s < b - 3 for a, b in layout.open_runs(0.0, side)):
                continue
            point, heading = main.at(s, side * (main.kerb_m + 0.6))
            rng.choice(4)  # what stands on a sign is drawn apart, so that it does not change the rest of the scene
            facing = heading + np.pi if side < 0 else heading
            nearest = [
                name
                for name, lane in layout.lanes.items()
                if name.startswith("main") and not lane.is_connector and ("f" if side < 0 else "b") in name[4:]
                and np.linalg.norm(lane.centreline[:, :2] - point, axis=1).min() < main.kerb_m + 3
            ]  # fmt: skip
            elements.append(make_sign(f"sign-{'LR'[side < 0]}{s:.0f}", point, float(facing), side, tuple(nearest)))
    return tuple(elements)


def make_light(
    name: str, state: str, point_xy: np.ndarray, yaw_rad: float, lane_ids: tuple[str, ...]
) -> TrafficElement:
    """A traffic light on a pole at a point of the world; yaw_rad: where it looks."""
    centre = (float(point_xy[0]), float(point_xy[1]), LIGHT_HEIGHT_M)
    return TrafficElement(name, "light", state, centre, (0.3, 0.4, 1.05), yaw_rad, lane_ids)


def make_sign(name: str, point_xy: np.ndarray, yaw_rad: float, side: int, lane_ids: tuple[str, ...]) -> TrafficElement:
    """A sign on a pole; what it says follows from its place."""
    own = np.random.default_rng([*(np.abs(point_xy) * 1000).astype(np.int64), side + 1])
    says = str(own.choice(list(_SIGNS), p=list(_SIGNS.values())))
    centre = (float(point_xy[0]), float(point_xy[1]), SIGN_HEIGHT_M)
    return TrafficElement(name, "sign", says, centre, (0.06, 0.7, 0.7), yaw_rad, lane_ids)


def walk_lanes(lanes: dict[str, Lane], start: str, rng: np.random.Generator, straight: bool = False) -> np.ndarray:
    """Centreline [n, 3] of a drive along `start` and drawn successors to the end; `straight` takes the first one."""
    name, pieces = start, [lanes[start].centreline]
    while lanes[name].successors and len(pieces) < 8:
        options = lanes[name].successors
        name = options[0] if straight else options[rng.integers(len(options))]
        pieces.append(lanes[name].centreline[1:])
    return np.concatenate(pieces)
