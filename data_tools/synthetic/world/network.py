"""A network of streets around a drive that turns: bends, crossings and T junctions at any angle.

The drive follows streets "leg0", "leg1", ... from junction to junction; the other arms of the junctions are "arm..."
and end at a house. Frames as in world/layout.py. Round a junction the arms lie counter-clockwise, each with its heading
away from the centre; a corner joins the left kerb of an arm with the right kerb of the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .families import Family
from .layout import ORIGIN_M, Lane, Street, TrafficElement

CROSSWALK_M = 3.0
"""Between the mouth of a street and the end of its lanes, where people cross."""
_NO_CROSSWALK_M = 0.4
_STEP_M = 0.5  # of reference lines
_LEAD_M = 3.0  # straight before and after a bend
_CORNER_EXTRA_M = 1.2  # radius of a kerb's corner beyond the sidewalk's width
_ALMOST_STRAIGHT_RAD = np.deg2rad(155)
_ARM_M = 64.0
_END_ROOM_M = 22.0  # behind an arm's end
_SHORTEST_ARM_M = 18.0  # beyond the mouth
_CROSSWALK_SHARE = 0.6  # of the junctions
_TRIES = 400


@dataclass(frozen=True)
class Arm:
    """A street where it meets a junction."""

    street: Street
    at_end: bool  # it arrives with growing s
    heading_rad: float  # away from the centre
    mouth_m: float  # along the street, from the centre to where the corners begin
    has_crosswalk: bool

    @property
    def lanes_m(self) -> float:
        """Along the street, from the centre to where its lanes begin."""
        return self.mouth_m + (CROSSWALK_M if self.has_crosswalk else _NO_CROSSWALK_M)

    def s_at(self, distance_m: float) -> float:
        """The street's s at a distance from the centre."""
        return self.street.length_m - distance_m if self.at_end else distance_m

    def side(self, left: bool) -> int:
        """Sign of the street's d on the left of somebody who leaves the junction."""
        return 1 if left != self.at_end else -1

    def outward(self, distance_m: float, d_left: float) -> np.ndarray:
        """[2] world point that far from the centre and d_left to the left of somebody who leaves."""
        return self.street.at(self.s_at(distance_m), -d_left if self.at_end else d_left)[0]


@dataclass(frozen=True)
class Crossing:
    """A junction of three or four arms."""

    centre: np.ndarray  # [2]
    arms: tuple[Arm, ...]  # counter-clockwise

    def corners(self) -> list[tuple[Arm, Arm]]:
        """Neighbours: the first one's left kerb leads to the second one's right kerb."""
        return list(zip(self.arms, self.arms[1:] + self.arms[:1]))


@dataclass(frozen=True)
class Network:
    """Everything fixed about the streets of one scene; the counterpart of layout.Layout."""

    kind: str
    streets: list[Street]  # the legs of the drive first
    junctions: tuple[Crossing, ...]  # in the order of the drive
    lanes: dict[str, Lane] = field(default_factory=dict)
    elements: tuple[TrafficElement, ...] = ()
    route: tuple[str, ...] = ()
    """Lanes that the ego car follows."""

    def span(
        self, street: Street, of_lanes: bool = False, beyond_m: float = 0.0, beyond_end_m: float = 0.0
    ) -> tuple[float, float]:
        """s from where to where a street runs between its junctions' mouths, or its lanes do, less ``beyond_m``;
        an end without junction lies ``beyond_end_m`` farther out."""
        low, high = -beyond_end_m, street.length_m + beyond_end_m
        for junction in self.junctions:
            for arm in junction.arms:
                start = (arm.lanes_m if of_lanes else arm.mouth_m) + beyond_m
                if arm.street is street and arm.at_end:
                    high = street.length_m - start
                elif arm.street is street:
                    low = start
        return low, high

    def dead_ends(self) -> list[tuple[Street, bool]]:
        """Streets with an end that meets no junction, and whether it is that of growing s."""
        met = {(arm.street.name, arm.at_end) for junction in self.junctions for arm in junction.arms}
        return [(s, at_end) for s in self.streets for at_end in (False, True) if (s.name, at_end) not in met]


def build_streets(rng: np.random.Generator, family: Family, kind: str, length_m: float) -> Network:
    """Draw streets without lanes until they do not come too near one another; the drive has length_m or more."""
    for _ in range(_TRIES):
        if (network := _draw(rng, family, kind, length_m)) is not None:
            return network
    raise RuntimeError(f"no streets of the family {kind!r} fit in {_TRIES} tries")


@dataclass(frozen=True)
class _Section:
    """A cross-section."""

    lane_m: float
    parking_m: float
    sidewalk_m: float

    def street(self, name: str, start_xy: np.ndarray, heading_rad: np.ndarray, lanes: int, length_m: float) -> Street:
        step = length_m / (len(heading_rad) - 1)
        middle = (heading_rad[1:] + heading_rad[:-1]) / 2
        moves = step * np.stack([np.cos(middle), np.sin(middle)], -1)
        xy = np.concatenate([[start_xy], np.asarray(start_xy) + np.cumsum(moves, 0)])
        s = np.linspace(0, length_m, len(heading_rad))
        return Street(name, s, xy, heading_rad, lanes, self.lane_m, self.parking_m, self.sidewalk_m)

    def kerb_m(self, lanes: int) -> float:
        return lanes * self.lane_m + self.parking_m


def _draw(rng: np.random.Generator, family: Family, kind: str, length_m: float) -> Network | None:
    section = _Section(*(float(rng.uniform(*r)) for r in (
        family.lane_width_m, family.parking_width_m, family.sidewalk_width_m)))  # fmt: skip
    lanes = 2 if rng.random() < family.two_lane_share else 1
    only_way = rng.choice([-1, 1])  # on two lanes the car keeps its lane, so it turns one way
    start, heading = np.array(ORIGIN_M), float(rng.uniform(-np.pi, np.pi))
    legs: list[Street] = []
    junctions: list[Crossing] = []
    mouth = 0.0  # of the leg at its start
    side_arms: list[list[tuple[float, float]]] = []  # of each junction: heading, mouth
    turns: list[tuple[float, dict[float, float]]] = []
    zebras: list[bool] = []
    driven = 0.0
    while True:
        last = driven > length_m - 45.0
        angles, turn = _junction_angles(rng, family, lanes, only_way)
        mouths = {} if last else _mouths(angles, turn, section, lanes)
        lead = mouth + CROSSWALK_M, (0.0 if last else mouths[np.pi] + CROSSWALK_M)
        curve = _block(rng, family, section.kerb_m(lanes) + section.sidewalk_m, lead, 45.0 if last else 0.0)
        leg = section.street(f"leg{len(legs)}_", start, heading + curve, lanes, _STEP_M * (len(curve) - 1))
        legs.append(leg)
        driven += leg.length_m
        start, heading = leg.table_xy[-1], float(leg.table_heading_rad[-1])
        if last:
            break
        turns.append((turn, mouths))
        zebras.append(bool(rng.random() < _CROSSWALK_SHARE))
        side_arms.append([(heading + a, m) for a, m in mouths.items() if a not in (np.pi, turn)])
        heading, mouth = heading + turn, mouths[turn]
    streets = list(legs)
    for number, sides in enumerate(side_arms):
        back, out = legs[number], legs[number + 1]
        turn, mouths = turns[number]
        zebra = zebras[number]
        arms = [Arm(back, True, float(back.table_heading_rad[-1]) + np.pi, mouths[np.pi], zebra)]
        arms.append(Arm(out, False, float(out.table_heading_rad[0]), mouths[turn], zebra))
        arms += [
            Arm(section.street(f"arm{number}{'ab'[k]}_", out.table_xy[0], np.full(2, a), 1, _ARM_M), False, a, m, zebra)
            for k, (a, m) in enumerate(sides)
        ]
        streets += [arm.street for arm in arms[2:]]
        ordered = sorted(arms, key=lambda arm: (arm.heading_rad - arms[0].heading_rad) % (2 * np.pi))
        junctions.append(Crossing(out.table_xy[0], tuple(ordered)))
    return _with_room(Network(kind, streets, tuple(junctions)), len(legs))


def _junction_angles(rng: np.random.Generator, family: Family, lanes: int, only_way: int) -> tuple[list[float], float]:
    """Headings of the arms relative to the drive's (back is pi), and the one that the drive takes."""
    angle = np.deg2rad(rng.uniform(*family.crossing_deg))
    left = float(angle if rng.random() < 0.5 else np.pi - angle)
    turn = 0.0
    if rng.random() < family.turn_share:
        way = only_way if lanes == 2 else rng.choice([-1, 1])
        turn = left if way > 0 else left - np.pi
    others = [a for a in (0.0, left, left - np.pi) if a != turn]
    if rng.random() < 0.5:
        others.pop(rng.integers(len(others)))
    return [np.pi, turn, *others], turn


def _mouths(angles: list[float], turn: float, section: _Section, lanes: int) -> dict[float, float]:
    """For each arm the distance from the centre at which both its corners have begun."""
    half = {a: section.kerb_m(lanes if a in (np.pi, turn) else 1) for a in angles}
    mouth = dict.fromkeys(angles, 2.0)
    ordered = sorted(angles, key=lambda a: a % (2 * np.pi))
    for a, b in zip(ordered, ordered[1:] + ordered[:1]):
        opening = (b - a) % (2 * np.pi)
        if opening < _ALMOST_STRAIGHT_RAD:
            tangent = corner_radius_m(section.sidewalk_m) / np.tan(opening / 2)
            mouth[a] = max(mouth[a], (half[a] * np.cos(opening) + half[b]) / np.sin(opening) + tangent)
            mouth[b] = max(mouth[b], (half[b] * np.cos(opening) + half[a]) / np.sin(opening) + tangent)
    return mouth


def corner_radius_m(sidewalk_m: float) -> float:
    """Of the kerb at a corner; the far edge of the sidewalk keeps a small radius."""
    return sidewalk_m + _CORNER_EXTRA_M


def _block(
    rng: np.random.Generator, family: Family, edge_m: float, lead_m: tuple[float, float], more_m: float
) -> np.ndarray:
    """Headings along a leg at even steps, relative to its start: straight at the junctions, perhaps bends between."""
    assert family.block_m is not None
    kinds = ["straight", "bend", "s"]
    kind = rng.choice(kinds, p=[1 - family.bend_share - family.s_share, family.bend_share, family.s_share])
    if kind == "straight":
        return np.zeros(_steps(sum(lead_m) + more_m + rng.uniform(*family.block_m)) + 1)
    way = rng.choice([-1, 1])
    pieces = [np.zeros(_steps(lead_m[0] + _LEAD_M))]
    for sign in (1, -1) if kind == "s" else (1,):
        radius = max(rng.uniform(*family.curve_radius_m), edge_m + 0.8)
        angle = np.deg2rad(rng.uniform(*family.bend_deg)) * (0.7 if kind == "s" else 1.0)
        pieces.append(np.full(_steps(radius * angle), sign * way / radius))
    pieces.append(np.zeros(_steps(lead_m[1] + _LEAD_M + more_m)))
    curvature = np.concatenate(pieces)
    return np.concatenate([[0.0], np.cumsum(curvature * _STEP_M)])


def _steps(length_m: float) -> int:
    return int(np.ceil(length_m / _STEP_M))


def _with_room(network: Network, legs: int) -> Network | None:
    """The same streets, side arms shortened until nothing comes near anything else; None if that is impossible."""
    spans = {street.name: network.span(street) for street in network.streets}
    placed: list[Street] = []
    for street in network.streets[:legs]:
        if not _clear_of_itself(street) or not all(_clear(street, other, spans) for other in placed):
            return None
        placed.append(street)
    shortened: dict[str, Street] = {}
    for street in network.streets[legs:]:
        least = spans[street.name][0] + CROSSWALK_M + _SHORTEST_ARM_M
        for length in np.arange(_ARM_M, least, -8.0):
            arm = _straight(street, float(length))
            tip = _straight(street, float(length + _END_ROOM_M))  # the house at its end needs room as well
            if all(_clear(tip, other, spans | {tip.name: (spans[tip.name][0], tip.length_m)}) for other in placed):
                placed.append(arm)
                shortened[arm.name] = arm
                spans[arm.name] = (spans[arm.name][0], float(length))
                break
    junctions = []
    for junction in network.junctions:
        arms = [replace(arm, street=shortened.get(arm.street.name, arm.street)) for arm in junction.arms]
        arms = [arm for arm in arms if any(arm.street is street for street in placed)]
        if len(arms) < 3:
            return None
        junctions.append(Crossing(junction.centre, tuple(arms)))
    return replace(network, streets=placed, junctions=tuple(junctions))


def _straight(street: Street, length_m: float) -> Street:
    """A straight street with the same start, as long as that."""
    heading = float(street.table_heading_rad[0])
    s = np.linspace(0, length_m, _steps(length_m) + 1)
    xy = street.table_xy[0] + s[:, None] * [np.cos(heading), np.sin(heading)]
    return replace(street, table_s=s, table_xy=xy, table_heading_rad=np.full(len(s), heading))


def _clear(a: Street, b: Street, spans: dict[str, tuple[float, float]]) -> bool:
    """Whether the sidewalks of neither street reach the other between the mouths of its junctions."""
    for one, other in ((a, b), (b, a)):
        inside = [(s.table_s >= spans[s.name][0]) & (s.table_s <= spans[s.name][1]) for s in (one, other)]
        line = other.table_xy[inside[1]][::2]
        for side in (-1, 0, 1):
            edge = one.at(one.table_s[inside[0]][::2], side * one.sidewalk_edge_m)[0]
            if np.linalg.norm(edge[:, None] - line[None], axis=-1).min() < other.sidewalk_edge_m + 0.4:
                return False
    return True


def _clear_of_itself(street: Street) -> bool:
    xy, s = street.table_xy[::4], street.table_s[::4]
    gap = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    far = np.abs(s[:, None] - s[None]) > 4 * street.sidewalk_edge_m
    return not far.any() or bool(gap[far].min() > 2 * street.sidewalk_edge_m + 1.0)
