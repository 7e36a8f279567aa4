"""Meshes of the ten detection classes, each filling its box exactly.

Every builder takes the box size (length, width, height) in metres and a random generator and returns a mesh in the
object frame (x forward, y left, z up, origin on the ground below the centre). Front and rear differ in shape and
lamps, so that the heading can be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .mesh import Colour, Material, Mesh, Semantic, Vector, ball, beam, box, frustum, hoop, join, wheel

MEAN_SIZE_LWH: dict[str, tuple[float, float, float]] = {
    "car": (4.6, 1.95, 1.7),
    "truck": (7.0, 2.5, 3.0),
    "bus": (10.5, 2.9, 3.4),
    "trailer": (9.5, 2.8, 3.7),
    "construction_vehicle": (6.3, 2.7, 3.1),
    "pedestrian": (0.72, 0.66, 1.75),
    "motorcycle": (2.1, 0.8, 1.45),
    "bicycle": (1.75, 0.6, 1.3),
    "traffic_cone": (0.42, 0.42, 0.95),
    "barrier": (0.5, 2.3, 1.0),
}
RIDDEN_HEIGHT_M = 1.72  # two-wheelers with somebody on them

_CAR_COLOURS: list[Colour] = [
    (0.75, 0.76, 0.78), (0.9, 0.9, 0.9), (0.12, 0.12, 0.13), (0.35, 0.36, 0.38), (0.6, 0.08, 0.08), (0.1, 0.2, 0.5),
    (0.15, 0.32, 0.2), (0.55, 0.5, 0.42), (0.2, 0.4, 0.6), (0.7, 0.45, 0.1),
]  # fmt: skip
_CLOTHES: list[Colour] = [
    (0.15, 0.16, 0.22), (0.5, 0.1, 0.12), (0.12, 0.28, 0.5), (0.75, 0.72, 0.65), (0.2, 0.4, 0.25), (0.8, 0.6, 0.15),
    (0.4, 0.25, 0.45), (0.3, 0.3, 0.32), (0.85, 0.85, 0.85),
]  # fmt: skip
_SKIN: list[Colour] = [(0.9, 0.72, 0.6), (0.75, 0.55, 0.42), (0.5, 0.34, 0.25)]
_GLASS: Colour = (0.12, 0.15, 0.18)
_DARK: Colour = (0.1, 0.1, 0.11)
_HEADLIGHT: Colour = (1.0, 0.98, 0.9)
_TAIL: Colour = (0.85, 0.05, 0.05)
_AMBER: Colour = (1.0, 0.6, 0.1)


def _pick(colours: list[Colour], rng: np.random.Generator, spread: float = 0.06) -> Colour:
    base = np.asarray(colours[rng.integers(len(colours))]) + rng.normal(0, spread, 3)
    return tuple(np.clip(base, 0.03, 0.97))


def _lamps(length: float, w: float, z_front: float, z_rear: float, height: float, width: float) -> list[Mesh]:
    """White lamps in the two front corners, red ones in the rear corners, flush with the ends of the box."""
    parts = []
    for y in (w / 2 - width / 2 - 0.04, -w / 2 + width / 2 + 0.04):
        parts.append(box((length / 2 - 0.03, y, z_front), (0.06, width, height), _HEADLIGHT, Material.LAMP))
        parts.append(box((-length / 2 + 0.03, y, z_rear), (0.06, width, height), _TAIL, Material.LAMP))
    return parts


def _plates(length: float, z: float) -> list[Mesh]:
    return [box((sign * (length / 2 - 0.015), 0, z), (0.03, 0.5, 0.12), (0.92, 0.92, 0.88)) for sign in (1, -1)]


def _wheels(xs: Vector, w: float, radius: float, width: float) -> list[Mesh]:
    return [wheel(x, side * (w / 2 - width / 2), radius, width) for x in xs for side in (1, -1)]


def car(length: float, w: float, h: float, rng: np.random.Generator) -> Mesh:
    """Sedan, hatchback or estate."""
    paint = _pick(_CAR_COLOURS, rng)
    belt = 0.56 * h
    rear, front = {"sedan": (-0.36, 0.2), "hatch": (-0.46, 0.2), "estate": (-0.48, 0.24)}[
        str(rng.choice(["sedan", "hatch", "estate"]))
    ]
    x0, x1 = rear * length, front * length
    cabin_h = h - belt
    parts = [
        box((0, 0, (0.2 + belt) / 2), (length - 0.04, w - 0.06, belt - 0.2), paint, Material.PAINT),
        box((0, 0, 0.3), (length, w - 0.05, 0.2), tuple(0.35 * np.asarray(paint))),
        box(((x0 + x1) / 2, 0, belt + cabin_h / 2 - 0.03), (x1 - x0, w * 0.92, cabin_h - 0.06), _GLASS, Material.GLASS,
            (0.7, 0.82, -0.04 * length)),
        box(((x0 + x1) / 2 - 0.04 * length, 0, h - 0.04), ((x1 - x0) * 0.71, w * 0.77, 0.08), paint, Material.PAINT),
        box((length / 2 - 0.02, 0, 0.32 * h), (0.04, w * 0.45, 0.12 * h), _DARK),
    ]  # fmt: skip
    for x in (x0 + 0.3 * (x1 - x0), x0 + 0.62 * (x1 - x0)):  # pillars
        for side in (1, -1):
            parts.append(beam((x, side * w * 0.46, belt), (x - 0.03 * length, side * w * 0.385, h - 0.05), 0.07, paint))
    parts += _lamps(length, w, 0.42 * h, 0.46 * h, 0.13 * h, 0.2 * w)
    parts += _plates(length, 0.27 * h)
    parts += _wheels((0.3 * length, -0.3 * length), w, min(0.36, 0.21 * h), 0.22)
    return join(parts)


def truck(length: float, w: float, h: float, rng: np.random.Generator) -> Mesh:
    """Cab in front, cargo box behind."""
    cab_l = 0.27 * length
    paint = _pick([(0.9, 0.9, 0.9), (0.1, 0.25, 0.55), (0.65, 0.1, 0.1), (0.85, 0.65, 0.1), (0.15, 0.4, 0.3)], rng)
    cargo = _pick([(0.88, 0.88, 0.86), (0.6, 0.62, 0.65), (0.3, 0.42, 0.55), (0.75, 0.7, 0.55)], rng)
    cab_h = 0.78 * h
    x = length / 2 - cab_l / 2
    parts = [
        box((0, 0, 0.62), (length - 0.06, w * 0.8, 0.24), _DARK),
        box((x, 0, (0.45 + 0.55 * cab_h) / 2), (cab_l - 0.04, w * 0.96, 0.55 * cab_h - 0.45), paint, Material.PAINT),
        box(
            (x - 0.02 * length, 0, 0.75 * cab_h),
            (cab_l - 0.04 * length, w * 0.93, 0.4 * cab_h),
            paint,
            Material.PAINT,
            (0.86, 0.92, -0.02 * length),
        ),
        box(
            (x + cab_l * 0.37, 0, 0.74 * cab_h),
            (0.18 * cab_l, w * 0.86, 0.3 * cab_h),
            _GLASS,
            Material.GLASS,
            (0.6, 0.95, -0.03 * length),
        ),
        box((x + 0.05, 0, 0.76 * cab_h), (cab_l * 0.42, w * 0.95, 0.24 * cab_h), _GLASS, Material.GLASS),
        box((length / 2 - 0.02, 0, 0.3 * h), (0.04, w * 0.6, 0.14 * h), _DARK),
        box(
            (-length / 2 + (length - cab_l - 0.25) / 2 + 0.02, 0, (0.75 + h) / 2),
            (length - cab_l - 0.25, w, h - 0.75),
            cargo,
            Material.RIBS,
        ),
        box((-length / 2 + 0.02, 0, (0.85 + h) / 2), (0.04, 0.06, h - 1.0), _DARK),
        box((-length / 2 + 0.03, 0, 0.62), (0.06, w * 0.94, 0.1), (0.8, 0.15, 0.1)),
    ]
    parts += _lamps(length, w * 0.96, 0.62, 0.7, 0.16, 0.3)
    parts += _plates(length, 0.5)
    parts += _wheels((0.36 * length, -0.22 * length, -0.36 * length), w, 0.46, 0.3)
    return join(parts)


def bus(length: float, w: float, h: float, rng: np.random.Generator) -> Mesh:
    """City bus: window band all round, doors on the right, destination board in front."""
    paint = _pick(
        [(0.75, 0.12, 0.1), (0.85, 0.8, 0.2), (0.15, 0.45, 0.35), (0.85, 0.85, 0.88), (0.12, 0.35, 0.65)], rng
    )
    low, high = 0.4 * h, 0.8 * h
    parts = [
        box((0, 0, (0.3 + low) / 2), (length - 0.04, w - 0.06, low - 0.3), paint, Material.PAINT),
        box((0, 0, (low + high) / 2), (length - 0.1, w - 0.12, high - low), _GLASS, Material.GLASS),
        box((0, 0, (high + h) / 2), (length - 0.04, w - 0.06, h - high), paint, Material.PAINT, (0.98, 0.92, 0)),
        box((length / 2 - 0.03, 0, 0.88 * h), (0.06, 0.62 * w, 0.1 * h), _AMBER, Material.LAMP),
        box((length / 2 - 0.04, 0, 0.34 * h), (0.06, w * 0.9, 0.12 * h), _GLASS, Material.GLASS),
        box(
            (-length / 2 + 0.03, 0, 0.5 * h), (0.06, w * 0.96, 0.34 * h), tuple(0.75 * np.asarray(paint)), Material.RIBS
        ),
    ]
    for x in np.linspace(-length / 2 + 0.3, length / 2 - 0.3, 7):  # posts between the windows
        parts += [
            box((x, side * (w / 2 - 0.05), (low + high) / 2), (0.12, 0.06, high - low), paint) for side in (1, -1)
        ]
    for x in (0.36 * length, -0.05 * length):
        parts.append(box((x, -w / 2 + 0.025, 0.42 * h), (1.2, 0.05, 0.62 * h), _DARK, Material.GLASS))
    parts += _lamps(length, w, 0.2 * h, 0.24 * h, 0.14, 0.38)
    parts += _plates(length, 0.16 * h)
    parts += _wheels((0.29 * length, -0.27 * length), w, 0.48, 0.3)
    return join(parts)


def trailer(length: float, w: float, h: float, rng: np.random.Generator) -> Mesh:
    """Semi-trailer without its tractor: container or tarpaulin body, axles at the rear, landing legs in front."""
    body = _pick([(0.82, 0.82, 0.8), (0.2, 0.35, 0.6), (0.6, 0.2, 0.15), (0.25, 0.45, 0.35), (0.8, 0.5, 0.15)], rng)
    parts = [
        box((0, 0, (1.15 + h) / 2), (length, w, h - 1.15), body, Material.RIBS),
        box((0, 0, 1.05), (length - 0.04, w * 0.6, 0.2), _DARK),
        box((-length / 2 + 0.05, 0, 0.72), (0.1, w * 0.96, 0.16), (0.95, 0.95, 0.95), Material.STRIPES),
    ]
    for side in (1, -1):
        parts.append(box((0.3 * length, side * 0.3 * w, 0.5), (0.14, 0.14, 1.0), (0.5, 0.5, 0.52)))
        parts.append(box((0.3 * length, side * 0.3 * w, 0.04), (0.4, 0.3, 0.08), (0.5, 0.5, 0.52)))
        parts.append(box((-0.02 * length, side * (w / 2 - 0.05), 0.8), (0.36 * length, 0.04, 0.3), (0.7, 0.7, 0.7)))
        parts.append(box((-length / 2 + 0.03, side * 0.42 * w, 0.95), (0.06, 0.3, 0.14), _TAIL, Material.LAMP))
    parts += _wheels((-0.24 * length, -0.35 * length), w, 0.48, 0.32)
    return join(parts)


def construction_vehicle(length: float, w: float, h: float, rng: np.random.Generator) -> Mesh:
    """Excavator on tracks or wheel loader; arm and bucket point forward."""
    yellow = _pick([(0.93, 0.68, 0.08), (0.9, 0.55, 0.08)], rng, 0.03)
    parts = []
    if rng.random() < 0.5:
        for side in (1, -1):
            parts.append(
                box(
                    (-0.14 * length, side * (w / 2 - 0.3), 0.45),
                    (0.68 * length, 0.6, 0.9),
                    _DARK,
                    Material.RIBS,
                    (0.85, 1, 0),
                )
            )
        house_l = 0.5 * length
        x = -length / 2 + house_l / 2
        parts += [
            box((x, 0, 1.35), (house_l, w * 0.9, 0.9), yellow),
            box((-length / 2 + 0.2, 0, 1.5), (0.4, w * 0.9, 1.1), (0.25, 0.25, 0.26)),
            box(
                (x + 0.22 * house_l, 0.22 * w, (1.8 + h) / 2),
                (0.45 * house_l, 0.45 * w, h - 1.8),
                _GLASS,
                Material.GLASS,
                (0.85, 0.9, -0.05),
            ),
            box((x + 0.2 * house_l, 0.22 * w, h - 0.05), (0.42 * house_l, 0.42 * w, 0.1), yellow),
            beam((x + 0.4 * house_l, -0.15 * w, 1.6), (0.26 * length, -0.15 * w, h - 0.2), 0.34, yellow),
            beam((0.26 * length, -0.15 * w, h - 0.2), (0.4 * length, -0.15 * w, 0.9), 0.26, yellow),
            box(
                (0.42 * length, -0.15 * w, 0.5),
                (0.16 * length, 0.4 * w, 0.8),
                (0.3, 0.3, 0.3),
                Material.PLAIN,
                (0.6, 1, -0.05 * length),
            ),
        ]
    else:
        parts += [
            box(
                (-0.22 * length, 0, 1.25),
                (0.56 * length, w * 0.6, 0.9),
                yellow,
                Material.PLAIN,
                (0.9, 0.9, 0.05 * length),
            ),
            box(
                (-0.05 * length, 0, (1.6 + h) / 2),
                (0.24 * length, w * 0.55, h - 1.6),
                _GLASS,
                Material.GLASS,
                (0.85, 0.85, 0),
            ),
            box((-0.05 * length, 0, h - 0.05), (0.24 * length, w * 0.56, 0.1), yellow),
            box((-length / 2 + 0.1, 0, 1.2), (0.2, w * 0.62, 0.7), (0.2, 0.2, 0.2)),
            beam((0.1 * length, 0.2 * w, 1.5), (0.4 * length, 0.2 * w, 0.6), 0.28, yellow),
            beam((0.1 * length, -0.2 * w, 1.5), (0.4 * length, -0.2 * w, 0.6), 0.28, yellow),
            box(
                (0.43 * length, 0, 0.55),
                (0.14 * length, w, 0.9),
                (0.35, 0.33, 0.3),
                Material.PLAIN,
                (0.5, 1, -0.03 * length),
            ),
        ]
        parts += _wheels((0.18 * length, -0.28 * length), w, 0.72, 0.5)
    parts.append(frustum((-0.05 * length, 0, h - 0.22), 0.09, 0.07, 0.22, _AMBER, Material.LAMP, 6))
    return join(parts)


def _person(h: float, stride: float, width: float, depth: float, rng: np.random.Generator) -> list[Mesh]:
    """A standing or walking figure; `stride` is how far the feet are apart along x."""
    top, trousers = (
        _pick(_CLOTHES, rng),
        _pick([(0.12, 0.13, 0.2), (0.3, 0.27, 0.22), (0.2, 0.22, 0.26), (0.5, 0.45, 0.4)], rng),
    )
    skin, hair = _pick(_SKIN, rng, 0.02), _pick([(0.1, 0.08, 0.06), (0.35, 0.22, 0.1), (0.6, 0.5, 0.3)], rng, 0.02)
    hip, shoulder = 0.48 * h, 0.84 * h
    parts = []
    for side in (1, -1):
        y = side * 0.13 * width / 0.5
        foot = side * stride / 2
        parts.append(beam((foot, y, 0.04), (0, y * 0.9, hip + 0.03), 0.14, trousers))
        parts.append(box((min(foot, depth / 2 - 0.15) + 0.03, y, 0.04), (0.24, 0.1, 0.08), _DARK))
        hand = -foot * 0.8
        parts.append(
            beam(
                (0, side * (width / 2 - 0.06), shoulder - 0.03), (hand, side * (width / 2 - 0.06), hip - 0.02), 0.1, top
            )
        )
    parts += [
        box((0, 0, (hip + shoulder) / 2), (0.24, width * 0.72, shoulder - hip), top, Material.PLAIN, (1.05, 1.15, 0)),
        frustum((0, 0, shoulder - 0.02), 0.06, 0.06, h - 0.2 - shoulder, skin, sides=6),
        ball((0.02, 0, h - 0.115), (0.095, 0.085, 0.115), skin),
        ball((-0.015, 0, h - 0.09), (0.1, 0.092, 0.09), hair),
    ]
    return parts


def pedestrian(length: float, w: float, h: float, rng: np.random.Generator) -> Mesh:
    """A walker in mid-step; some carry a bag."""
    parts = _person(h, length - 0.26, w, length, rng)
    if rng.random() < 0.4:
        parts.append(box((-0.2, 0, 0.68 * h), (0.16, 0.3, 0.26 * h), _pick(_CLOTHES, rng)))
    return join(parts)


def _rider(seat_z: float, h: float, lean: float, grip: Vector, peg: Vector, rng: np.random.Generator) -> list[Mesh]:
    top, trousers = _pick(_CLOTHES, rng), _pick([(0.12, 0.13, 0.2), (0.25, 0.25, 0.28)], rng)
    helmet = _pick([(0.85, 0.85, 0.85), (0.1, 0.1, 0.12), (0.7, 0.12, 0.1)], rng)
    hip, neck = np.array([-0.15, 0, seat_z + 0.08]), np.array([-0.15 + lean, 0, h - 0.25])
    parts = [beam(hip, neck, 0.27, top), ball((neck[0] + 0.05, 0, h - 0.13), 0.13, helmet)]
    for side in (1, -1):
        shift = np.array([0, side * 0.15, 0])
        knee = (hip + peg) / 2 + shift + [0.2, 0, 0.1]
        parts += [
            beam(hip + shift * 0.6, knee, 0.13, trousers),
            beam(knee, np.asarray(peg) + shift, 0.11, trousers),
            beam(neck - [0, 0, 0.06] + shift, np.asarray(grip) + shift * 1.2, 0.09, top),
        ]
    return parts


def motorcycle(length: float, w: float, h: float, rng: np.random.Generator, ridden: bool = False) -> Mesh:
    """A motorcycle, with a rider if `ridden`; unridden ones carry a windscreen up to the top of the box."""
    paint = _pick(_CAR_COLOURS, rng)
    r = 0.31
    bike_h = 1.2
    parts = [
        wheel(length / 2 - r, 0, r, 0.14),
        wheel(-length / 2 + r, 0, r, 0.16),
        box((0, 0, 0.48), (0.6, 0.28, 0.34), (0.3, 0.3, 0.32)),
        box((0.15, 0, 0.76), (0.55, 0.3, 0.24), paint, Material.PAINT, (0.8, 0.7, 0)),
        box((-0.4, 0, 0.74), (0.7, 0.28, 0.12), _DARK),
        box((-length / 2 + 0.25, 0, 0.72), (0.36, 0.22, 0.14), paint, Material.PAINT),
        beam((length / 2 - r, 0.09, r), (0.42, 0.09, 0.95), 0.07, (0.6, 0.6, 0.62)),
        beam((length / 2 - r, -0.09, r), (0.42, -0.09, 0.95), 0.07, (0.6, 0.6, 0.62)),
        beam((0.38, -w / 2, 1.0), (0.38, w / 2, 1.0), 0.06, _DARK),
        box((0.52, 0, 0.86), (0.14, 0.2, 0.18), _HEADLIGHT, Material.LAMP),
        box((-length / 2 + 0.05, 0, 0.74), (0.06, 0.2, 0.1), _TAIL, Material.LAMP),
    ]
    if ridden:
        parts += _rider(0.75, h, 0.3, (0.36, 0, 1.0), (0.0, 0, 0.35), rng)
    else:
        parts.append(
            box(
                (0.42, 0, (bike_h - 0.25 + h) / 2),
                (0.05, 0.36, h - bike_h + 0.25),
                _GLASS,
                Material.GLASS,
                (1, 0.7, -0.08),
            )
        )
    return join(parts)


def bicycle(length: float, w: float, h: float, rng: np.random.Generator, ridden: bool = False) -> Mesh:
    """A bicycle, with a cyclist if `ridden`; unridden ones carry a child seat up to the top of the box."""
    paint = _pick(_CAR_COLOURS, rng)
    r = 0.34
    front, rear = length / 2 - r, -length / 2 + r
    parts = [
        hoop(front, r, _DARK),
        hoop(rear, r, _DARK),
        beam((rear, 0, r), (-0.15, 0, 0.85), 0.05, paint),
        beam((rear, 0, r), (0.0, 0, 0.3), 0.05, paint),
        beam((0.0, 0, 0.3), (-0.18, 0, 0.9), 0.05, paint),
        beam((0.0, 0, 0.3), (front - 0.18, 0, 0.85), 0.06, paint),
        beam((-0.15, 0, 0.82), (front - 0.18, 0, 0.85), 0.05, paint),
        beam((front, 0, r), (front - 0.2, 0, 1.0), 0.05, paint),
        beam((front - 0.2, -w / 2, 1.02), (front - 0.2, w / 2, 1.02), 0.05, _DARK),
        box((-0.2, 0, 0.94), (0.26, 0.16, 0.08), _DARK),
        box((front - 0.1, 0, 0.9), (0.08, 0.08, 0.08), _HEADLIGHT, Material.LAMP),
        box((rear - 0.1, 0, 0.72), (0.06, 0.1, 0.1), _TAIL, Material.LAMP),
    ]
    if ridden:
        parts += _rider(0.92, h, 0.28, (front - 0.2, 0, 1.02), (0.0, 0, 0.25), rng)
    else:
        parts.append(
            box(
                (rear + 0.1, 0, (0.78 + h) / 2),
                (0.28, 0.26, h - 0.78),
                _pick(_CLOTHES, rng),
                Material.PLAIN,
                (0.8, 1, -0.1),
            )
        )
    return join(parts)


def traffic_cone(length: float, w: float, h: float, rng: np.random.Generator) -> Mesh:
    """Orange with a white band on a dark foot."""
    orange = _pick([(0.95, 0.35, 0.05)], rng, 0.03)
    radius = 0.38 * min(length, w)
    cuts = np.array([0.05, 0.42, 0.7, h])
    radii = radius * (1 - 0.85 * (cuts - cuts[0]) / (h - cuts[0]))
    parts = [box((0, 0, 0.025), (length, w, 0.05), (0.2, 0.2, 0.2))]
    for i, colour in enumerate([orange, (0.95, 0.95, 0.95), orange]):
        parts.append(frustum((0, 0, cuts[i]), radii[i], radii[i + 1], cuts[i + 1] - cuts[i], colour))
    return join(parts)


def barrier(length: float, w: float, h: float, rng: np.random.Generator) -> Mesh:
    """A red and white striped board on two feet; x is across the board, as nuScenes labels it."""
    del rng
    parts = [
        box((0, 0, 0.77 * h), (0.08, w, 0.46 * h), (0.95, 0.95, 0.95), Material.STRIPES),
        box((0, 0, 0.28 * h), (0.06, w, 0.2 * h), (0.95, 0.95, 0.95), Material.STRIPES),
    ]
    for side in (1, -1):
        y = side * (w / 2 - 0.15)
        parts += [
            box((0, y, 0.06), (length, 0.14, 0.12), _DARK),
            box((0, y, 0.45 * h), (0.07, 0.07, 0.9 * h), (0.8, 0.8, 0.78)),
        ]
    return join(parts)


_BUILDERS: dict[str, Callable[..., Mesh]] = {
    "car": car, "truck": truck, "bus": bus, "trailer": trailer, "construction_vehicle": construction_vehicle,
    "pedestrian": pedestrian, "motorcycle": motorcycle, "bicycle": bicycle, "traffic_cone": traffic_cone,
    "barrier": barrier,
}  # fmt: skip


def build_object(
    name: str, size_lwh: tuple[float, float, float], rng: np.random.Generator, ridden: bool = False
) -> Mesh:
    """The mesh of a detection class in its box; its extent is exactly the box (vertices are fitted to it)."""
    length, w, h = size_lwh
    builder = _BUILDERS[name]
    mesh = (
        builder(length, w, h, rng, ridden=ridden) if name in ("motorcycle", "bicycle") else builder(length, w, h, rng)
    )
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    target_low, target_high = np.array([-length / 2, -w / 2, 0]), np.array([length / 2, w / 2, h])
    fitted = (mesh.vertices - low) / (high - low) * (target_high - target_low) + target_low
    return replace(mesh, vertices=fitted.astype(np.float32)).labelled(Semantic[name.upper()])
