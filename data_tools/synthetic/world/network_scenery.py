"""The still part of a network of streets: road surfaces with rounded corners, paint, houses, trees, lights, signs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .layout import Street
from .mesh import Material, Mesh, Semantic, flat_strip, from_triangles, join
from .network import Arm, Crossing, Network, corner_radius_m
from .overlap import Footprints
from .scenery import (
    ASPHALT_COLOUR,
    SIDEWALK_COLOUR,
    SIDEWALK_Z_M,
    Forecourt,
    Scenery,
    build_plot,
    clear_of_streets,
    crosswalk,
    draw_element,
    furnish,
    ground,
    house,
    kerb_stones,
    markings,
    road,
    roadside,
)

_KERB_M = 0.15
_STRAIGHT_RAD = 0.15  # of a plot: a bend has small houses and no yards
_END_HALF_WIDTHS_M = (30.0, 20.0, 13.0, 8.0)
_ARC_POINTS = 9


def build_network_scenery(network: Network, rng: np.random.Generator) -> Scenery:
    """Everything that does not move and is not annotated."""
    blocked = Footprints()
    parts = [ground(network.streets)]
    for street in network.streets:
        s0, s1 = network.span(street, beyond_end_m=8.0)
        parts.append(road(street, s0, s1, 0.0))
        s0, s1 = network.span(street)
        parts += [mesh for side in (1, -1) for mesh in roadside(street, side, s0, s1)]
        parts += markings(street, *network.span(street, of_lanes=True))
    for junction in network.junctions:
        parts += _junction(junction)
    parts += _end_houses(network, rng, blocked)
    parts += [draw_element(e) for e in network.elements]
    for e in network.elements:
        blocked.add(e.centre[:2], 0.0, (0.4, 0.4))
    houses, forecourts = _houses(network, rng, blocked)
    parts += houses
    for street in network.streets:
        for side in (1, -1):
            parts += furnish(street, side, *network.span(street, False, 4.0, -4.0), rng, blocked)
    return Scenery(join(parts), blocked, tuple(forecourts))


def corner_lines(a: Arm, b: Arm, offsets_m: tuple[float, ...]) -> list[np.ndarray]:
    """[n, 2] from a's mouth round the corner to b's mouth, each so far outside the kerb."""
    start, end = a.outward(a.mouth_m, a.street.kerb_m), b.outward(b.mouth_m, -b.street.kerb_m)
    opening = (b.heading_rad - a.heading_rad) % (2 * np.pi)
    normals = [a.heading_rad + np.pi / 2, b.heading_rad - np.pi / 2]
    radius = corner_radius_m(a.street.sidewalk_width_m)
    from_mouth = [_unit(normal) for normal in normals]
    if opening > np.deg2rad(155):
        return [np.stack([start + offset * from_mouth[0], end + offset * from_mouth[1]]) for offset in offsets_m]
    sine, cosine = np.sin(opening), np.cos(opening)
    along = (a.street.kerb_m * cosine + b.street.kerb_m) / sine + radius / np.tan(opening / 2)
    centre = a.outward(along, a.street.kerb_m + radius)
    angles = normals[0] + np.pi + np.linspace(0, opening - np.pi, _ARC_POINTS)  # towards the junction
    arc = np.stack([np.cos(angles), np.sin(angles)], -1)
    return [
        np.concatenate(
            [[start + offset * from_mouth[0]], centre + (radius - offset) * arc, [end + offset * from_mouth[1]]]
        )
        for offset in offsets_m
    ]


def _unit(angle_rad: float) -> np.ndarray:
    return np.array([np.cos(angle_rad), np.sin(angle_rad)])


def _junction(junction: Crossing) -> list[Mesh]:
    """The surface between the mouths, its corners, and the crosswalks in the mouths."""
    rim, parts = [], []
    for a, b in junction.corners():
        kerb, stone, far = corner_lines(a, b, (0.0, _KERB_M, a.street.sidewalk_width_m))
        rim.append(kerb)
        s = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(kerb, axis=0), axis=1))])
        # a strip takes its left line first: seen from the walker with the junction on the right
        walk = flat_strip(far, kerb, s, SIDEWALK_Z_M, SIDEWALK_COLOUR, Material.SLABS)
        parts += [walk.labelled(Semantic.SIDEWALK), kerb_stones(kerb, stone, s)]
    outline = np.concatenate(rim)[::-1]
    vertices = np.c_[np.concatenate([[junction.centre], outline]), np.zeros(len(outline) + 1)]
    i = np.arange(1, len(outline) + 1)
    faces = np.stack([np.zeros_like(i), i, np.roll(i, -1)], 1)
    surface = from_triangles(vertices, faces, ASPHALT_COLOUR, Material.ASPHALT)
    parts.append(surface.labelled(Semantic.DRIVEABLE_SURFACE))
    for arm in junction.arms if junction.arms[0].has_crosswalk else ():
        low = min(arm.s_at(arm.mouth_m + 0.1), arm.s_at(arm.mouth_m + 2.6))
        stop = low - 0.5 if arm.at_end else low + 3.0
        parts += crosswalk(arm.street, low, stop, -1 if arm.at_end else 1)
    return parts


def _end_houses(network: Network, rng: np.random.Generator, blocked: Footprints) -> list[Mesh]:
    """The view ends at a house across the street, as wide as there is room."""
    parts = []
    for street, at_end in network.dead_ends():
        point, heading = street.at(street.length_m + 14.0 if at_end else -14.0)
        others = [s for s in network.streets if s is not street]
        for half in _END_HALF_WIDTHS_M:
            free = clear_of_streets(others, point, float(heading), (6.0, half))
            if free and not blocked.hits(point, float(heading), (6.0, half)):
                blocked.add(point, float(heading), (6.0, half))
                parts.append(house(point, float(heading), (12.0, 2 * half, 13.4), rng))
                break
    return parts


def _houses(network: Network, rng: np.random.Generator, blocked: Footprints) -> tuple[list[Mesh], list[Forecourt]]:
    parts: list[Mesh] = []
    forecourts: list[Forecourt] = []
    taken = blocked.copy()  # with the yards, where objects may stand but no houses
    for street in network.streets:
        for side in (1, -1):
            for along in _plots(street, *network.span(street), rng):
                before = len(taken)
                houses, yards = build_plot(network.streets, street, side, along, rng, taken, yards_clear=True)
                blocked.extend(taken, before)
                parts += houses
                forecourts += yards
                for yard in yards:
                    middle, heading = street.at(sum(along) / 2, (yard.d0 + yard.d1) / 2)
                    half = ((along[1] - along[0]) / 2 - 0.3, abs(yard.d1 - yard.d0) / 2 - 0.3)
                    taken.add(middle, float(heading), half)
    return parts, forecourts


def _plots(street: Street, s0: float, s1: float, rng: np.random.Generator) -> Iterator[tuple[float, float]]:
    s = s0
    while s < s1 - 6:
        width = min(rng.uniform(12, 24), s1 - s)
        if np.ptp(street.at(np.linspace(s, s + width, 9))[1]) > _STRAIGHT_RAD:
            width = min(rng.uniform(7, 10), s1 - s)
        yield s, s + width
        s += width
