"""The still part of a scene: ground, kerbs, paint, buildings, trees, poles, lights, signs, benches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .layout import Layout, Street, TrafficElement
from .mesh import (
    Colour,
    Material,
    Mesh,
    Semantic,
    Structure,
    Vector,
    ball,
    beam,
    box,
    flat_strip,
    from_triangles,
    frustum,
    join,
)
from .overlap import Footprints

_WALLS: list[Colour] = [
    (0.62, 0.42, 0.34), (0.72, 0.66, 0.56), (0.55, 0.56, 0.58), (0.8, 0.76, 0.68), (0.48, 0.36, 0.3), (0.66, 0.6, 0.62),
    (0.58, 0.62, 0.55), (0.82, 0.8, 0.78),
]  # fmt: skip
_GREY: Colour = (0.35, 0.36, 0.37)
ASPHALT_COLOUR: Colour = (0.27, 0.27, 0.28)
SIDEWALK_COLOUR: Colour = (0.56, 0.55, 0.53)
SIDEWALK_Z_M = -0.01
_LIGHTS = {"red": (1.0, 0.1, 0.08), "yellow": (1.0, 0.75, 0.1), "green": (0.1, 0.9, 0.35)}
_BLUE, _RED, _WHITE, _BLACK = (0.1, 0.3, 0.75), (0.85, 0.1, 0.1), (0.95, 0.95, 0.93), (0.08, 0.08, 0.08)
_CIRCLE = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], 1)
# Convex pieces of symbols on a sign of radius 1, (to the reader's right, up).
_STRAIGHT = [
    np.array([[-0.12, -0.6], [0.12, -0.6], [0.12, 0.15], [-0.12, 0.15]]),
    np.array([[-0.38, 0.1], [0.38, 0.1], [0.0, 0.62]]),
]
_TURN_RIGHT = [
    np.array([[-0.42, -0.55], [-0.18, -0.55], [-0.18, 0.2], [-0.42, 0.2]]),
    np.array([[-0.42, 0.0], [0.15, 0.0], [0.15, 0.24], [-0.42, 0.24]]),
    np.array([[0.1, -0.26], [0.62, 0.12], [0.1, 0.5]]),
]
_TURN_BACK = [
    np.array([[0.2, -0.55], [0.42, -0.55], [0.42, 0.3], [0.2, 0.3]]),
    np.array([[-0.42, 0.2], [0.42, 0.2], [0.42, 0.44], [-0.42, 0.44]]),
    np.array([[-0.42, -0.1], [-0.2, -0.1], [-0.2, 0.3], [-0.42, 0.3]]),
    np.array([[-0.62, 0.0], [-0.31, -0.5], [0.0, 0.0]]),
]
_BAR = [np.array([[-0.74, -0.56], [-0.56, -0.74], [0.74, 0.56], [0.56, 0.74]])]
_NUMBER = [np.array([[x - 0.14, -0.4], [x + 0.14, -0.4], [x + 0.14, 0.4], [x - 0.14, 0.4]]) for x in (-0.25, 0.25)]


def _mirrored(pieces: list[np.ndarray]) -> list[np.ndarray]:
    return [piece * [-1, 1] for piece in pieces]


# Disc, inner disc, symbol and bar: (colour, pieces) from back to front.
_SIGNS = {
    "go_straight": [(_BLUE, [_CIRCLE]), (_WHITE, _STRAIGHT)],
    "turn_right": [(_BLUE, [_CIRCLE]), (_WHITE, _TURN_RIGHT)],
    "turn_left": [(_BLUE, [_CIRCLE]), (_WHITE, _mirrored(_TURN_RIGHT))],
    "no_right_turn": [(_RED, [_CIRCLE]), (_WHITE, [0.8 * _CIRCLE]), (_BLACK, _TURN_RIGHT), (_RED, _BAR)],
    "no_left_turn": [(_RED, [_CIRCLE]), (_WHITE, [0.8 * _CIRCLE]), (_BLACK, _mirrored(_TURN_RIGHT)), (_RED, _BAR)],
    "no_u_turn": [(_RED, [_CIRCLE]), (_WHITE, [0.8 * _CIRCLE]), (_BLACK, _TURN_BACK), (_RED, _BAR)],
    "speed_limit": [(_RED, [_CIRCLE]), (_WHITE, [0.8 * _CIRCLE]), (_BLACK, _NUMBER)],
    "no_parking": [(_RED, [_CIRCLE]), (_BLUE, [0.8 * _CIRCLE]), (_RED, _BAR)],
}


@dataclass(frozen=True)
class Forecourt:
    """A paved yard between sidewalk and building: s0..s1 along the street, d0..d1 (signed) across it."""

    street: Street
    s0: float
    s1: float
    d0: float
    d1: float


@dataclass(frozen=True)
class Scenery:
    """The joined mesh, the footprints nothing may stand in, and the yards where vehicles may park."""

    mesh: Mesh
    blocked: Footprints
    forecourts: tuple[Forecourt, ...]


def build_scenery(layout: Layout, rng: np.random.Generator) -> Scenery:
    """Everything that does not move and is not annotated."""
    blocked = Footprints()
    parts = [ground(layout.streets)]
    for street in layout.streets:
        parts += _surface(layout, street)
    parts += _crosswalks(layout)
    houses, forecourts = _buildings(layout, rng, blocked)
    parts += houses
    parts += [draw_element(e) for e in layout.elements]
    for e in layout.elements:
        blocked.add(e.centre[:2], 0.0, (0.4, 0.4))
    parts += _furniture(layout, rng, blocked)
    return Scenery(join(parts), blocked, tuple(forecourts))


def ground(streets: list[Street]) -> Mesh:
    points = np.concatenate([street.table_xy for street in streets])
    low, high = points.min(0) - 150, points.max(0) + 150
    corners = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
    vertices = np.c_[corners, np.full(4, -0.03)]
    uv = corners[np.array([[0, 1, 2], [0, 2, 3]])]
    ground = from_triangles(vertices, [[0, 1, 2], [0, 2, 3]], (0.33, 0.4, 0.22), Material.GRASS, uv)
    return ground.labelled(Semantic.TERRAIN)


def _ribbon(
    street: Street, s0: float, s1: float, d0: float, d1: float, z: float, colour: Colour, material: Material
) -> Mesh:
    s = np.linspace(s0, s1, max(int((s1 - s0) / 3), 1) + 1)
    return flat_strip(street.at(s, max(d0, d1))[0], street.at(s, min(d0, d1))[0], s, z, colour, material)


def _surface(layout: Layout, street: Street) -> list[Mesh]:
    main = street is layout.main
    start = 0.0 if main else layout.main.lanes_half_m
    runs = {side: layout.open_runs(0.0, side) if main else [(layout.main.kerb_m, street.length_m)] for side in (1, -1)}
    cuts = [(j.s - j.half_m - 3, j.s + j.half_m + 3) for j in layout.junctions] if main else []
    edges = [0.0 if main else layout.main.kerb_m + 3, *(c for cut in cuts for c in cut), street.length_m]
    parts = [road(street, start - (30 if main else 0), street.length_m + 30, 0.0 if main else -0.006)]
    for side in (1, -1):
        for s0, s1 in runs[side]:
            parts += roadside(street, side, s0, s1, 0.0 if main else 4.0)
    for s0, s1 in zip(edges[::2], edges[1::2]):
        parts += markings(street, s0, s1)
    return parts


def road(street: Street, s0: float, s1: float, z: float) -> Mesh:
    """The asphalt from kerb to kerb."""
    ribbon = _ribbon(street, s0, s1, -street.kerb_m, street.kerb_m, z, ASPHALT_COLOUR, Material.ASPHALT)
    return ribbon.labelled(Semantic.DRIVEABLE_SURFACE)


def roadside(street: Street, side: int, s0: float, s1: float, walk_later_m: float = 0.0) -> list[Mesh]:
    """Sidewalk, kerb and the marks of the parking bays along one side (+1 left, -1 right)."""
    walk0, near, far = s0 + walk_later_m, side * street.kerb_m, side * street.sidewalk_edge_m
    walk = _ribbon(street, walk0, s1, near, far, SIDEWALK_Z_M, SIDEWALK_COLOUR, Material.SLABS)
    parts = [walk.labelled(Semantic.SIDEWALK), _kerb(street, s0, s1, near)]
    white = (0.8, 0.8, 0.78)
    for s in np.arange(s0 + 2, s1 - 2, 6.5):
        mark = _ribbon(street, s, s + 0.12, side * street.lanes_half_m, near, 0.006, white, Material.PLAIN)
        parts.append(mark.labelled(Semantic.DRIVEABLE_SURFACE))
    return parts


def markings(street: Street, s0: float, s1: float) -> list[Mesh]:
    """Lines of the lanes."""
    parts = [_paint(street, s0, s1, d - 0.06, d + 0.06, (0.85, 0.68, 0.15)) for d in (0.09, -0.09)]
    for side in (1, -1):
        edge = side * street.lanes_half_m
        parts.append(_paint(street, s0, s1, edge - 0.06, edge + 0.06, (0.82, 0.82, 0.8)))
        for k in range(1, street.lanes_per_direction):
            d = side * k * street.lane_width_m
            parts += [
                _paint(street, s, s + 3, d - 0.07, d + 0.07, (0.85, 0.85, 0.83)) for s in np.arange(s0, s1 - 3, 8.0)
            ]
    return parts


def _paint(street: Street, s0: float, s1: float, d0: float, d1: float, colour: Colour) -> Mesh:
    return _ribbon(street, s0, s1, d0, d1, 0.006, colour, Material.ASPHALT).labelled(Semantic.DRIVEABLE_SURFACE)


def _kerb(street: Street, s0: float, s1: float, d: float) -> Mesh:
    s = np.linspace(s0, s1, max(int((s1 - s0) / 3), 1) + 1)
    return kerb_stones(street.at(s, d)[0], street.at(s, d + np.sign(d) * 0.15)[0], s)


def kerb_stones(inner: np.ndarray, outer: np.ndarray, s: np.ndarray) -> Mesh:
    """A stone 12 cm high between two lines [n, 2] along the edge of the road."""
    n = len(s)
    top = flat_strip(inner, outer, s, 0.12, (0.68, 0.67, 0.65))
    i = np.arange(n - 1)
    walls = []
    for line in (inner, outer):
        vertices = np.concatenate([np.c_[line, np.full(n, -0.02)], np.c_[line, np.full(n, 0.12)]])
        walls.append(
            from_triangles(
                vertices, np.concatenate([np.c_[i, i + 1, i + n], np.c_[i + 1, i + n + 1, i + n]]), (0.62, 0.61, 0.6)
            )
        )
    return join([top, *walls]).labelled(Semantic.SIDEWALK)


def _crosswalks(layout: Layout) -> list[Mesh]:
    parts = []
    for junction in layout.junctions:
        for s, approach in ((junction.s - junction.half_m - 2.6, -1), (junction.s + junction.half_m + 0.1, 1)):
            parts += crosswalk(layout.main, s, s - 1.0 if approach < 0 else s + 3.1, approach)
        for street in junction.streets:
            s = layout.main.kerb_m + 0.1
            parts += crosswalk(street, s, s + 3.1, 1)
    return parts


def crosswalk(street: Street, s: float, stop_s: float, approach: int) -> list[Mesh]:
    """Bars from s on, and the line where lanes on one side (-1 right, +1 left of the middle) stop."""
    white = (0.85, 0.85, 0.83)
    half = street.lanes_half_m
    bars = [_paint(street, s, s + 2.5, d, d + 0.5, white) for d in np.arange(-half + 0.4, half - 0.4, 1.0)]
    return [*bars, _paint(street, stop_s, stop_s + 0.4, 0.2 * approach, approach * (half - 0.1), white)]


def _buildings(layout: Layout, rng: np.random.Generator, blocked: Footprints) -> tuple[list[Mesh], list[Forecourt]]:
    """Houses along all streets; about half of them stand back behind a paved yard."""
    parts, forecourts = [], []
    for street in layout.streets:
        is_main = street is layout.main
        for side in (1, -1):
            runs = layout.open_runs(5.0, side) if is_main else [(layout.main.sidewalk_edge_m + 1, street.length_m)]
            for s0, s1 in runs:
                s = s0
                while s < s1 - 6:
                    width = min(rng.uniform(12, 24), s1 - s)
                    houses, yards = build_plot(layout.streets, street, side, (s, s + width), rng, blocked)
                    parts += houses
                    forecourts += yards
                    s += width
    for street in layout.streets:  # the view ends at a house across the street
        for s in [street.length_m + 14, *([-14.0] if street is layout.main else [])]:
            point, heading = street.at(s)
            blocked.add(point, float(heading), (6, 30))
            parts.append(house(point, float(heading), (12.0, 60.0, 13.4), rng))
    return parts, forecourts


def build_plot(
    streets: list[Street],
    street: Street,
    side: int,
    along: tuple[float, float],
    rng: np.random.Generator,
    blocked: Footprints,
    yards_clear: bool = False,
) -> tuple[list[Mesh], list[Forecourt]]:
    """A house between two s of a street, perhaps behind a yard; nothing where it has no room.

    yards_clear: the yard, too, needs room.
    """
    (s0, s1), edge = along, street.sidewalk_edge_m
    width = s1 - s0
    setback = rng.uniform(10, 15) if rng.random() < 0.6 else rng.uniform(0.3, 1.5)
    depth, height = rng.uniform(9, 13), float(rng.choice([7.0, 10.2, 13.4, 16.6]))
    point, heading = street.at(s0 + width / 2, side * (edge + setback + depth / 2))
    half = (width / 2 - 0.2, depth / 2)
    if not clear_of_streets(streets, point, float(heading), half) or blocked.hits(point, float(heading), half):
        return [], []
    has_yard = setback > 5
    if has_yard and yards_clear:
        middle, _ = street.at(s0 + width / 2, side * (edge + 0.3 + setback / 2))
        yard_half = (width / 2, setback / 2)
        if not clear_of_streets(streets, middle, float(heading), yard_half):
            return [], []
        if blocked.hits(middle, float(heading), yard_half):
            return [], []
    blocked.add(point, float(heading), half)
    parts = [house(point, float(heading), (width - 0.4, depth, height), rng)]
    if not has_yard:
        return parts, []
    yard = Forecourt(street, s0, s1, side * edge, side * (edge + setback))
    z, shade = -0.02, rng.uniform(0.36, 0.52)
    paving = _ribbon(street, s0, s1, yard.d0, yard.d1, z, (shade, shade, shade * 0.97), Material.SLABS)
    return [*parts, paving.labelled(Semantic.OTHER_FLAT)], [yard]


def clear_of_streets(streets: list[Street], centre: Vector, yaw: float, half: Vector) -> bool:
    """No corner or edge point of the rectangle lies on a street or sidewalk."""
    u, v = np.meshgrid(np.linspace(-half[0], half[0], 7), np.linspace(-half[1], half[1], 5))
    cos, sin = np.cos(yaw), np.sin(yaw)
    points = np.stack([cos * u - sin * v, sin * u + cos * v], -1).reshape(-1, 1, 2) + centre
    for street in streets:
        line = street.table_xy[None]
        if np.linalg.norm(points - line, axis=-1).min() < street.sidewalk_edge_m - 0.2:
            return False
    return True


def house(point: Vector, heading: float, size: Vector, rng: np.random.Generator) -> Mesh:
    length, w, h = size
    shade = np.asarray(_WALLS[rng.integers(len(_WALLS))]) * rng.uniform(0.85, 1.1)
    wall: Colour = tuple(np.clip(shade, 0, 1))
    parts = [
        box((0, 0, h / 2), (length, w, h), wall, Material.FACADE),
        box((0, 0, h + 0.2), (length + 0.3, w + 0.3, 0.4), tuple(0.75 * np.asarray(wall))),
        box((0, 0, 3.35), (length + 0.16, w + 0.16, 0.22), tuple(0.85 * np.asarray(wall))),
    ]
    if rng.random() < 0.5:
        parts.append(box((0, 0, h + 1.2), (length, w, 1.8), (0.4, 0.2, 0.16), Material.RIBS, (0.9, 0.3, 0)))
    return (
        join(parts)
        .moved(float(point[0]), float(point[1]), 0, heading)
        .labelled(Semantic.MANMADE, structure=Structure.BUILDING)
    )


def draw_element(e: TrafficElement) -> Mesh:
    """Pole with a signal head of three lamps, or with a sign plate."""
    x, y, z = e.centre
    length, w, h = e.size_lwh
    pole = frustum((-0.12 - length / 2, 0, 0), 0.07, 0.06, z + h / 2 - 0.05, _GREY, sides=8)
    parts = []
    if e.kind == "light":
        parts.append(box((0, 0, z), (length, w, h), (0.08, 0.09, 0.09)))
        for k, colour in enumerate(("red", "yellow", "green")):
            lit = colour == e.state
            shade = np.asarray(_LIGHTS[colour]) * (1.0 if lit else 0.18)
            lamp = ball(
                (length / 2, 0, z + h * (0.32 - 0.32 * k)),
                (0.05, 0.13, 0.13),
                tuple(shade),
                Material.LAMP if lit else Material.PLAIN,
                4,
                8,
            )
            parts.append(lamp)
    else:
        for layer, (paint, pieces) in enumerate(_SIGNS[e.state]):
            for piece in pieces:
                right, up = 0.35 * piece.T  # who reads it stands at +x, so their right is +y
                rim = np.c_[np.full(len(piece), 0.012 * layer), right, z + up]
                fan = np.array([[0, i, i + 1] for i in range(1, len(piece) - 1)])
                parts.append(from_triangles(rim, fan, paint))
    face = join(parts).labelled(Semantic.MANMADE, structure=Structure.TRAFFIC_ELEMENT)
    return join([_furnishing([pole]), face]).moved(x, y, 0, e.yaw_rad)


def _furnishing(parts: list[Mesh]) -> Mesh:
    return join(parts).labelled(Semantic.MANMADE, structure=Structure.FURNITURE)


def _furniture(layout: Layout, rng: np.random.Generator, blocked: Footprints) -> list[Mesh]:
    parts = []
    for street in layout.streets:
        start = 0.0 if street is layout.main else layout.main.sidewalk_edge_m + 2
        for side in (1, -1):
            runs = layout.open_runs(5.0, side) if street is layout.main else [(start, street.length_m)]
            for s0, s1 in runs:
                parts += furnish(street, side, s0, s1, rng, blocked)
    return parts


def furnish(
    street: Street, side: int, s0: float, s1: float, rng: np.random.Generator, blocked: Footprints
) -> list[Mesh]:
    """Trees, street lamps, bins and benches along a sidewalk."""
    parts = []
    for s in np.arange(s0 + rng.uniform(1, 8), s1, 11.0):
        kind = str(rng.choice(["tree", "lamp", "bin", "bench"], p=[0.45, 0.25, 0.15, 0.15]))
        point, heading = street.at(
            s, side * (street.kerb_m + min(2.1 if kind == "tree" else 0.9, street.sidewalk_width_m - 0.4))
        )
        yaw = float(heading) + (0 if side < 0 else np.pi)
        half = {"tree": (0.25, 0.25), "lamp": (0.15, 0.15), "bin": (0.3, 0.3), "bench": (0.9, 0.35)}[kind]
        if blocked.hits(point, yaw, (half[0] + 0.4, half[1] + 0.2)):
            continue
        blocked.add(point, yaw, half)
        mesh = _FURNITURE[kind](rng)
        parts.append(mesh.moved(float(point[0]), float(point[1]), 0, yaw))
    return parts


def _tree(rng: np.random.Generator) -> Mesh:
    trunk_h, crown = rng.uniform(2.6, 3.4), rng.uniform(1.0, 1.4)
    green = tuple(np.clip(np.array([0.2, 0.34, 0.12]) * rng.uniform(0.75, 1.3) + rng.normal(0, 0.02, 3), 0.03, 1))
    parts = [frustum((0, 0, 0), 0.16, 0.1, trunk_h + 0.5, (0.3, 0.22, 0.15), sides=7)]
    for _ in range(4):
        offset = rng.uniform(-0.5, 0.5, 3)
        parts.append(
            ball(
                offset + [0, 0, trunk_h + crown * 0.8],
                crown * rng.uniform(0.65, 0.95, 3),
                green,
                Material.FOLIAGE,
                6,
                9,
            )
        )
    return join(parts).labelled(Semantic.VEGETATION)


def _lamp_post(rng: np.random.Generator) -> Mesh:
    del rng
    arm = beam((0, 0, 6.4), (0, 1.6, 6.7), 0.1, _GREY)  # reaches over the road, which lies to the left of the pole
    head = box((0, 1.7, 6.68), (0.3, 0.6, 0.12), (0.8, 0.8, 0.75))
    return _furnishing([frustum((0, 0, 0), 0.11, 0.06, 6.5, _GREY, sides=8), arm, head])


def _bin(rng: np.random.Generator) -> Mesh:
    colour = [(0.15, 0.3, 0.2), (0.3, 0.3, 0.32), (0.2, 0.25, 0.4)][rng.integers(3)]
    return _furnishing([frustum((0, 0, 0), 0.24, 0.28, 0.85, colour), frustum((0, 0, 0.85), 0.3, 0.2, 0.1, _GREY)])


def _bench(rng: np.random.Generator) -> Mesh:
    del rng
    wood = (0.45, 0.3, 0.18)
    legs = [box((x, 0, 0.22), (0.08, 0.45, 0.44), _GREY) for x in (-0.6, 0.6)]
    return _furnishing(
        [box((0, 0, 0.46), (1.6, 0.5, 0.06), wood), box((0, -0.24, 0.72), (1.6, 0.05, 0.4), wood), *legs]
    )


_FURNITURE = {"tree": _tree, "lamp": _lamp_post, "bin": _bin, "bench": _bench}
