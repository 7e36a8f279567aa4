"""Triangle meshes that know what every face is, and the primitives the world is put together from.

Shapes: V vertices, F faces. Lengths in metres. Object frame: x forward, y left, z up, origin on the ground below the
centre. Colours are sRGB in 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike

Colour = tuple[float, float, float]
Vector = Sequence[float] | np.ndarray


class Material(IntEnum):
    """How a face reacts to light; the renderer draws one procedural texture per entry."""

    PLAIN = 0
    ASPHALT = 1
    SLABS = 2
    GRASS = 3
    FACADE = 4
    FOLIAGE = 5
    GLASS = 6
    LAMP = 7
    STRIPES = 8
    RIBS = 9
    PAINT = 10
    BRICK = 11


class Semantic(IntEnum):
    """Occupancy classes in the order of Occ3D-nuScenes."""

    OTHERS = 0
    BARRIER = 1
    BICYCLE = 2
    BUS = 3
    CAR = 4
    CONSTRUCTION_VEHICLE = 5
    MOTORCYCLE = 6
    PEDESTRIAN = 7
    TRAFFIC_CONE = 8
    TRAILER = 9
    TRUCK = 10
    DRIVEABLE_SURFACE = 11
    OTHER_FLAT = 12
    SIDEWALK = 13
    TERRAIN = 14
    MANMADE = 15
    VEGETATION = 16


class Structure(IntEnum):
    """What the occupancy class MANMADE is in detail; images tell these apart."""

    NONE = 0
    BUILDING = 1
    FURNITURE = 2  # poles, lamps, benches, bins
    TRAFFIC_ELEMENT = 3  # signal heads and sign plates


@dataclass(frozen=True)
class Mesh:
    """Triangles with one colour, material, semantic class and instance number each."""

    vertices: np.ndarray  # [V, 3] float32
    faces: np.ndarray  # [F, 3] int32
    colour: np.ndarray  # [F, 3] float32
    material: np.ndarray  # [F] uint8, Material
    uv: np.ndarray  # [F, 3, 2] float32, metres along the surface at the three corners
    semantic: np.ndarray  # [F] uint8, Semantic
    instance: np.ndarray  # [F] int32, 0 where the face belongs to no annotated object
    structure: np.ndarray  # [F] uint8, Structure

    def labelled(self, semantic: Semantic, instance: int = 0, structure: Structure = Structure.NONE) -> Mesh:
        """The same mesh, every face of the given class, instance and structure."""
        n = len(self.faces)
        return replace(
            self,
            semantic=np.full(n, semantic, np.uint8),
            instance=np.full(n, instance, np.int32),
            structure=np.full(n, structure, np.uint8),
        )

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw_rad: float = 0.0) -> Mesh:
        """Turned by yaw_rad about the vertical axis through the origin, then shifted."""
        cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
        rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        vertices = (self.vertices @ rotation.T + [x, y, z]).astype(np.float32)
        return replace(self, vertices=vertices)

    def sample_points(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count, 3] points spread evenly over the surface."""
        corners = self.vertices[self.faces]  # [F, 3, 3]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        face = rng.choice(len(area), count, p=area / area.sum())
        a, b = rng.random((2, count, 1))
        a, b = np.where(a + b > 1, 1 - a, a), np.where(a + b > 1, 1 - b, b)
        p = corners[face]
        return p[:, 0] + a * (p[:, 1] - p[:, 0]) + b * (p[:, 2] - p[:, 0])


def join(meshes: list[Mesh]) -> Mesh:
    """One mesh out of many."""
    offsets = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + np.int32(o) for m, o in zip(meshes, offsets)]).astype(np.int32),
        np.concatenate([m.colour for m in meshes]),
        np.concatenate([m.material for m in meshes]),
        np.concatenate([m.uv for m in meshes]),
        np.concatenate([m.semantic for m in meshes]),
        np.concatenate([m.instance for m in meshes]),
        np.concatenate([m.structure for m in meshes]),
    )


def from_triangles(
    vertices: ArrayLike,
    faces: Sequence[ArrayLike] | np.ndarray,
    colour: Colour,
    material: Material = Material.PLAIN,
    uv: ArrayLike | None = None,
) -> Mesh:
    """A mesh of one colour and material, not labelled yet."""
    n = len(faces)
    return Mesh(
        np.asarray(vertices, np.float32),
        np.asarray(faces, np.int32),
        np.tile(np.asarray(colour, np.float32), (n, 1)),
        np.full(n, material, np.uint8),
        np.zeros((n, 3, 2), np.float32) if uv is None else np.asarray(uv, np.float32),
        np.zeros(n, np.uint8),
        np.zeros(n, np.int32),
        np.zeros(n, np.uint8),
    )


_BOX_QUADS = np.array(  # corner numbers, seen from outside: bottom, top, front +x, back, left +y, right
    [[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [2, 3, 7, 6], [1, 2, 6, 5], [3, 0, 4, 7]]
)
_BOX_SIGNS = np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]])


def box(
    centre: Vector, size: Vector, colour: Colour, material: Material = Material.PLAIN, top: Vector = (1.0, 1.0, 0.0)
) -> Mesh:
    """A box of `size` (x, y, z) around `centre`.

    `top` = (scale x, scale y, shift x in metres) of the upper face makes cabins and hoods of it.
    """
    half = np.asarray(size, float) / 2
    plan = _BOX_SIGNS * half[:2]
    lower = np.c_[plan, np.full(4, -half[2])]
    upper = np.c_[plan * top[:2] + [top[2], 0], np.full(4, half[2])]
    vertices = np.concatenate([lower, upper]) + np.asarray(centre, float)
    faces, uv = [], []
    for quad in _BOX_QUADS:
        corner = vertices[quad]
        across = np.linalg.norm(corner[1] - corner[0])
        up = np.linalg.norm(corner[3] - corner[0])
        plane = np.array([[0, 0], [across, 0], [across, up], [0, up]])
        for triple in ([0, 1, 2], [0, 2, 3]):
            faces.append(quad[triple])
            uv.append(plane[triple])
    return from_triangles(vertices, faces, colour, material, uv)


def beam(start: Vector, end: Vector, thickness: float, colour: Colour, material: Material = Material.PLAIN) -> Mesh:
    """A square bar from start to end."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    axis = (end - start) / np.linalg.norm(end - start)
    side = np.cross(axis, [0, 0, 1.0] if abs(axis[2]) < 0.9 else [1.0, 0, 0])
    side /= np.linalg.norm(side)
    up = np.cross(side, axis)
    bar = box((0, 0, 0), (float(np.linalg.norm(end - start)), thickness, thickness), colour, material)
    vertices = bar.vertices @ np.stack([axis, side, up]) + (start + end) / 2
    return from_triangles(vertices, bar.faces, colour, material, bar.uv)


def frustum(base: Vector, radius_low: float, radius_high: float, height: float, colour: Colour,
            material: Material = Material.PLAIN, sides: int = 10) -> Mesh:  # fmt: skip
    """An upright cylinder or cone piece standing on `base`, closed at the top."""
    angle = np.arange(sides) * 2 * np.pi / sides
    circle = np.c_[np.cos(angle), np.sin(angle)]
    base = np.asarray(base, float)
    vertices = np.concatenate(
        [
            np.c_[circle * radius_low, np.zeros(sides)],
            np.c_[circle * radius_high, np.full(sides, height)],
            [[0, 0, height]],
        ]
    )
    i = np.arange(sides)
    j = (i + 1) % sides
    faces = np.concatenate(
        [np.c_[i, j, j + sides], np.c_[i, j + sides, i + sides], np.c_[i + sides, j + sides, i * 0 + 2 * sides]]
    )
    uv = np.stack([vertices[faces][..., 0] + vertices[faces][..., 1], vertices[faces][..., 2]], -1)
    return from_triangles(vertices + base, faces, colour, material, uv)


def wheel(x: float, y: float, radius: float, width: float, sides: int = 12) -> Mesh:
    """A road wheel on the ground whose axle runs along y: dark tyre, light hub on both faces."""
    angle = np.arange(sides) * 2 * np.pi / sides
    ring = np.c_[np.cos(angle), np.zeros(sides), np.sin(angle)]
    centre = np.array([x, y, radius])
    i = np.arange(sides)
    j = (i + 1) % sides
    parts = []
    left, right = ring * radius + [0, width / 2, 0], ring * radius - [0, width / 2, 0]
    parts.append(
        from_triangles(
            np.concatenate([left, right]) + centre,
            np.concatenate([np.c_[i, j, j + sides], np.c_[i, j + sides, i + sides]]),
            (0.09, 0.09, 0.1),
        )
    )
    for sign in (1, -1):
        rim = np.concatenate([ring * radius, ring * radius * 0.58, [[0, 0, 0]]]) + [0, sign * width / 2, 0] + centre
        tyre = np.concatenate([np.c_[i, j, j + sides], np.c_[i, j + sides, i + sides]])
        hub = np.c_[i + sides, j + sides, i * 0 + 2 * sides]
        parts += [from_triangles(rim, tyre, (0.09, 0.09, 0.1)), from_triangles(rim, hub, (0.55, 0.56, 0.58))]
    return join(parts)


def hoop(x: float, radius: float, colour: Colour, sides: int = 16, share: float = 0.16) -> Mesh:
    """A bicycle wheel in the x-z plane touching the ground: a flat ring `share` of the radius wide, with spokes."""
    angle = np.arange(sides) * 2 * np.pi / sides
    ring = np.c_[np.cos(angle), np.zeros(sides), np.sin(angle)]
    vertices = np.concatenate([ring * radius, ring * radius * (1 - share)]) + [x, 0, radius]
    i = np.arange(sides)
    j = (i + 1) % sides
    rim = from_triangles(vertices, np.concatenate([np.c_[i, j, j + sides], np.c_[i, j + sides, i + sides]]), colour)
    spokes = [beam((x, 0, radius), (x + radius * np.cos(a), 0, radius + radius * np.sin(a)), 0.015, (0.6, 0.6, 0.62))
              for a in np.arange(4) * np.pi / 2]  # fmt: skip
    return join([rim, *spokes])


def ball(
    centre: Vector,
    radius: float | Vector,
    colour: Colour,
    material: Material = Material.PLAIN,
    rings: int = 5,
    sides: int = 8,
) -> Mesh:
    """An ellipsoid; `radius` is one number or (x, y, z)."""
    theta = np.linspace(0, np.pi, rings + 1)[:, None]
    phi = (np.arange(sides) * 2 * np.pi / sides)[None]
    unit = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta) + 0 * phi], -1)
    index = np.arange((rings + 1) * sides).reshape(rings + 1, sides)
    a, b = index[:-1], np.roll(index, -1, 1)[:-1]
    c, d = index[1:], np.roll(index, -1, 1)[1:]
    faces = np.concatenate([np.stack([a, c, d], -1).reshape(-1, 3), np.stack([a, d, b], -1).reshape(-1, 3)])
    vertices = unit.reshape(-1, 3) * radius + np.asarray(centre, float)
    corner = vertices[faces]
    keep = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1) > 1e-9
    return from_triangles(vertices, faces[keep], colour, material)


def flat_strip(left: np.ndarray, right: np.ndarray, along: np.ndarray, z: float, colour: Colour,
               material: Material = Material.PLAIN) -> Mesh:  # fmt: skip
    """A horizontal ribbon between two polylines [n, 2]; uv = (metres along, metres across)."""
    n = len(along)
    vertices = np.c_[np.concatenate([left, right]), np.full(2 * n, z)]
    width = np.linalg.norm(left - right, axis=1)
    plane = np.concatenate([np.c_[along, width], np.c_[along, 0 * width]])
    i = np.arange(n - 1)
    faces = np.concatenate([np.c_[i, i + n, i + 1], np.c_[i + 1, i + n, i + n + 1]])
    return from_triangles(vertices, faces, colour, material, plane[faces])
