"""Lanes, lights and signs of a network of streets, and the lanes that its drive follows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from .families import Family
from .layout import Lane, TrafficElement, bend, lane_line, linked_lanes, make_light, make_sign
from .network import Arm, Crossing, Network, build_streets, corner_radius_m

_LANE_STEP_M = 1.0
_BEND_POINTS = 25
_LIGHTS_SHARE = 0.75  # of the junctions
_SIGN_SPACING_M = 22.0
_STRAIGHT_ON_RAD = np.deg2rad(20)


def build_network(rng: np.random.Generator, family: Family, kind: str, length_m: float) -> Network:
    """Draw the streets of a scene with lanes and traffic elements; the drive has length_m or more."""
    network = build_streets(rng, family, kind, length_m)
    network = replace(network, lanes=_lanes(network))
    network = replace(network, elements=tuple([*_lights(network, rng), *_signs(network, rng)]))
    return replace(network, route=_route(network, rng))


def _lanes(network: Network) -> dict[str, Lane]:
    lines: dict[str, np.ndarray] = {}
    for street in network.streets:
        s0, s1 = network.span(street, of_lanes=True)
        for k in range(street.lanes_per_direction):
            d = (k + 0.5) * street.lane_width_m
            lines[f"{street.name}f{k}"] = lane_line(street, s0, s1, -d, _LANE_STEP_M)
            lines[f"{street.name}b{k}"] = lane_line(street, s1, s0, d, _LANE_STEP_M)
    links: list[tuple[str, str]] = []
    connectors: set[str] = set()
    for junction in network.junctions:
        for a in junction.arms:
            for b, i, j in _movements(a, junction):
                one, two = f"{lane_prefix(a, inbound=True)}{i}", f"{lane_prefix(b, inbound=False)}{j}"
                name = f"{one}>{two}"
                lines[name] = _connector(lines[one], lines[two], _longest_bend_m(a, b, i))
                connectors.add(name)
                links.extend([(one, name), (name, two)])
    return linked_lanes(lines, links, connectors)


def _connector(line_in: np.ndarray, line_out: np.ndarray, longest_m: float) -> np.ndarray:
    """A bend as long on both sides of the corner, with straight pieces before or after: it never cuts the corner.

    longest_m: from either end of the bend to where the lanes' lines meet.
    """
    p0, p2 = line_in[-1], line_out[0]
    a, b = ((p - q) / np.linalg.norm(p - q) for p, q in ((line_in[-1], line_in[-2]), (line_out[1], line_out[0])))
    cross, gap = a[0] * b[1] - a[1] * b[0], p2 - p0
    if abs(cross) < np.sin(_STRAIGHT_ON_RAD):
        return bend(line_in, line_out, _BEND_POINTS)
    before, after = (gap[0] * b[1] - gap[1] * b[0]) / cross, (a[0] * gap[1] - a[1] * gap[0]) / cross
    length = min(before, after, longest_m)
    if length <= 0:
        return bend(line_in, line_out, _BEND_POINTS)
    corner = p0 + before * a
    start, end = corner - length * a, corner + length * b
    parts = [bend(np.stack([start - a, start]), np.stack([end, end + b]), _BEND_POINTS)]
    if before - length > _LANE_STEP_M / 2:
        parts.insert(0, _between(p0, start)[:-1])
    if after - length > _LANE_STEP_M / 2:
        parts.append(_between(end, p2)[1:])
    line = np.concatenate(parts)
    line[0], line[-1] = p0, p2
    return line


def _longest_bend_m(a: Arm, b: Arm, lane: int) -> float:
    """Of a turn to the right: to about where the kerb's corner begins; to the left there is room."""
    turn = _turn_rad(a, b)
    if turn >= 0:
        return np.inf
    street = a.street
    to_kerb = street.kerb_m - (lane + 0.5) * street.lane_width_m
    return (corner_radius_m(street.sidewalk_width_m) + to_kerb) * np.tan(-turn / 2) + 1.0


def _between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    steps = max(round(float(np.linalg.norm(end - start)) / _LANE_STEP_M), 1)
    return start + np.linspace(0, 1, steps + 1)[:, None] * (end - start)


def lane_prefix(arm: Arm, inbound: bool) -> str:
    """Of the names of an arm's lanes towards the junction, or away from it."""
    return f"{arm.street.name}{'f' if arm.at_end == inbound else 'b'}"


def _movements(a: Arm, junction: Crossing) -> list[tuple[Arm, int, int]]:
    """Where traffic from a may go: the arm, and numbers of the lanes it leaves and enters."""
    others = sorted((b for b in junction.arms if b is not a), key=lambda b: _turn_rad(a, b))  # from the right
    found = [(b, i, j) for b in others for i, j in _joined(a, b)]
    for k in range(a.street.lanes_per_direction):
        if all(i != k for _, i, _ in found):  # an outer lane where nobody may turn right
            found.append((others[0], k, min(k, others[0].street.lanes_per_direction - 1)))
    return found


def _joined(a: Arm, b: Arm) -> list[tuple[int, int]]:
    """Pairs of lanes (0 is the innermost) that traffic from a may use to leave by b."""
    n, m = a.street.lanes_per_direction, b.street.lanes_per_direction
    turn = _turn_rad(a, b)
    if abs(turn) < _STRAIGHT_ON_RAD:
        return [(k, k) for k in range(min(n, m))]
    return [(0, 0)] if turn > 0 else [(n - 1, m - 1)]


def _turn_rad(a: Arm, b: Arm) -> float:
    """By how much somebody turns who comes from a and leaves by b, left positive."""
    turn = b.heading_rad - (a.heading_rad + np.pi)
    return float(np.arctan2(np.sin(turn), np.cos(turn)))


def _route(network: Network, rng: np.random.Generator) -> tuple[str, ...]:
    """From the first leg to the last one, always in the lane that every turn of the drive allows."""
    legs = [street for street in network.streets if street.name.startswith("leg")]
    allowed = set(range(legs[0].lanes_per_direction))
    for junction in network.junctions:
        a = next(arm for arm in junction.arms if arm.street.name.startswith("leg") and arm.at_end)
        b = next(arm for arm in junction.arms if arm.street.name.startswith("leg") and not arm.at_end)
        allowed &= {i for i, j in _joined(a, b) if i == j}
    lane = sorted(allowed)[rng.integers(len(allowed))]
    names = [f"{leg.name}f{lane}" for leg in legs]
    route = names[:1]
    for before, name in pairwise(names):
        route += [f"{before}>{name}", name]
    return tuple(route)


def _lights(network: Network, rng: np.random.Generator) -> list[TrafficElement]:
    """One light per approach of most junctions; streets that cross see opposite colours."""
    elements = []
    for junction in network.junctions:
        state = str(rng.choice(["green", "yellow", "red"], p=[0.7, 0.1, 0.2]))
        other = "red" if state != "red" else "green"
        if rng.random() > _LIGHTS_SHARE:
            continue
        first = _first_arm(junction)
        for arm in junction.arms:
            straight_on = arm is first or abs(_turn_rad(first, arm)) < _STRAIGHT_ON_RAD
            # beside the mouth, to the right of those who arrive
            point = arm.outward(arm.mouth_m + 1.0, arm.street.kerb_m + 0.7)
            prefix = lane_prefix(arm, inbound=True)
            governed = tuple(name for name in network.lanes if name[:-1] == prefix)
            elements.append(
                make_light(f"light-{prefix}", state if straight_on else other, point, arm.heading_rad, governed)
            )
    return elements


def _first_arm(junction: Crossing) -> Arm:
    return next(arm for arm in junction.arms if arm.at_end)


def _signs(network: Network, rng: np.random.Generator) -> list[TrafficElement]:
    elements = []
    for street in network.streets:
        if not street.name.startswith("leg"):
            continue
        s0, s1 = network.span(street, True, 3.0, -4.0)
        for side in (-1, 1):
            for s in np.arange(s0 + rng.uniform(0, 12), s1, _SIGN_SPACING_M):
                point, heading = street.at(s, side * (street.kerb_m + 0.6))
                facing = float(heading) + (np.pi if side < 0 else 0.0)
                prefix = f"{street.name}{'f' if side < 0 else 'b'}"
                governed = tuple(name for name in network.lanes if name[:-1] == prefix)
                name = f"sign-{street.name}{'LR'[side < 0]}{s:.0f}"
                elements.append(make_sign(name, point, facing, side, governed))
    return elements
