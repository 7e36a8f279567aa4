"""Ray casting with Embree and shading with procedural textures.

Shapes: R rays, F faces, H x W pixels. Directions and points in the world frame, metres, float32. Colours are linear
RGB until the last step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ....core.errors import DataError
from ..world.mesh import Material, Mesh

if TYPE_CHECKING:
    from ..world.world import Light

_SHADOW_OFFSET_M = 0.02
_NOISE_SIZE = 256
_EXPOSURE = 1.35


@dataclass(frozen=True)
class Hits:
    """What each of R rays met first; `face` is -1 and `distance_m` infinite where it met nothing."""

    face: np.ndarray  # [R] int32
    distance_m: np.ndarray  # [R] float32
    barycentric: np.ndarray  # [R, 2] float32, weights of the face's second and third corner


class RayCaster:
    """First hits and shadows against one mesh. Raises DataError where Embree is not installed."""

    def __init__(self, mesh: Mesh) -> None:
        try:
            from embreex import rtcore_scene
            from embreex.mesh_construction import TriangleMesh
        except ImportError as error:
            raise DataError(
                f"rendering synthetic scenes needs embreex ({error}); install it: pip install 'drivestack[synthetic]'"
            ) from None
        self.mesh = mesh
        corners = mesh.vertices[mesh.faces]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self.normals = (normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        self._scene = rtcore_scene.EmbreeScene()
        # kept: Embree holds a pointer to it
        self._geometry = TriangleMesh(
            self._scene, np.ascontiguousarray(mesh.vertices), np.ascontiguousarray(mesh.faces)
        )

    def first_hits(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Cast R rays from origins [R, 3] or [3] along unit directions [R, 3]."""
        origins = np.ascontiguousarray(np.broadcast_to(origins, directions.shape), np.float32)
        found = self._scene.run(origins, np.ascontiguousarray(directions, np.float32), query="INTERSECT", output=1)
        face = found["primID"]
        distance = np.where(face >= 0, found["tfar"], np.float32(np.inf))
        return Hits(face, distance, np.stack([found["u"], found["v"]], -1))

    def distances(self, origin: np.ndarray, directions: np.ndarray, limits_m: np.ndarray) -> np.ndarray:
        """[R] metres from one place [3] along unit directions [R, 3] to the first face, at most limits_m [R].

        Quicker than first_hits: nothing behind the limit is looked at. Below the limit it gives the same numbers.
        """
        origins = np.ascontiguousarray(np.broadcast_to(origin, directions.shape), np.float32)
        reach = np.array(limits_m, np.float32)  # a copy: Embree writes into it
        return self._scene.run(origins, np.ascontiguousarray(directions, np.float32), reach, query="DISTANCE")

    def in_shadow(self, points: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """[R] bool: whether something lies between points [R, 3] and a light at infinity along `direction` [3]."""
        towards = np.ascontiguousarray(np.broadcast_to(direction, points.shape), np.float32)
        return self._scene.run(np.ascontiguousarray(points, np.float32), towards, query="OCCLUDED") >= 0


def _noise_table() -> np.ndarray:
    """Tileable value noise [256, 256] in -1..1: blurred white noise on a torus, the same for every scene."""
    white = np.random.default_rng(20).standard_normal((_NOISE_SIZE, _NOISE_SIZE))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(_NOISE_SIZE), np.fft.fftfreq(_NOISE_SIZE)))
    smooth = np.fft.ifft2(np.fft.fft2(white) / (1 + (frequency * 12) ** 2)).real
    return np.clip(smooth / (2.2 * smooth.std()), -1, 1).astype(np.float32)


_NOISE = _noise_table()


def _noise(x: np.ndarray, y: np.ndarray, cells_per_m: float) -> np.ndarray:
    i = np.floor(x * cells_per_m).astype(np.int32) & (_NOISE_SIZE - 1)
    j = np.floor(y * cells_per_m).astype(np.int32) & (_NOISE_SIZE - 1)
    return _NOISE[i, j]


def _smooth_noise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The noise table at cell coordinates, bilinear."""
    i, j = np.floor(x), np.floor(y)
    a, b = x - i, y - j
    i, j = i.astype(np.int32) & (_NOISE_SIZE - 1), j.astype(np.int32) & (_NOISE_SIZE - 1)
    i1, j1 = (i + 1) & (_NOISE_SIZE - 1), (j + 1) & (_NOISE_SIZE - 1)
    return (1 - a) * ((1 - b) * _NOISE[i, j] + b * _NOISE[i, j1]) + a * ((1 - b) * _NOISE[i1, j] + b * _NOISE[i1, j1])


def _asphalt(colour: np.ndarray, uv: np.ndarray, point: np.ndarray, fade: np.ndarray) -> np.ndarray:
    x, y = point[:, 0], point[:, 1]
    grain = 0.16 * fade * _noise(x, y, 24.0) + 0.12 * _noise(x, y, 1.1) + 0.06 * _noise(y, x, 0.13)
    return colour * (1 + grain)[:, None]


def _slabs(colour: np.ndarray, uv: np.ndarray, point: np.ndarray, fade: np.ndarray) -> np.ndarray:
    u, v = uv[:, 0], uv[:, 1]
    joint = ((u % 1.0) < 0.05) | ((v % 1.0) < 0.05)
    tone = (
        1 + 0.12 * _noise(np.floor(u) * 7, np.floor(v) * 5, 1.0) + 0.1 * fade * _noise(point[:, 0], point[:, 1], 20.0)
    )
    return colour * (tone - 0.3 * fade * joint)[:, None]


def _grass(colour: np.ndarray, uv: np.ndarray, point: np.ndarray, fade: np.ndarray) -> np.ndarray:
    x, y = point[:, 0], point[:, 1]
    return colour * (1 + 0.35 * fade * _noise(x, y, 12.0) + 0.25 * _noise(x, y, 0.7))[:, None]


def _bricks(colour: np.ndarray, uv: np.ndarray, point: np.ndarray, fade: np.ndarray) -> np.ndarray:
    u, v = uv[:, 0], uv[:, 1]
    row = np.floor(v / 0.2)
    shifted = u / 0.5 + 0.5 * (row % 2)
    joint = ((v % 0.2) < 0.03) | ((shifted % 1.0) < 0.06)
    tone = 1 + 0.15 * fade * _noise(np.floor(shifted), row, 1.0) + 0.1 * _noise(u, v, 0.6)
    return colour * (tone - 0.25 * fade * joint)[:, None]


def _facade(colour: np.ndarray, uv: np.ndarray, point: np.ndarray, fade: np.ndarray) -> np.ndarray:
    """Brick with a grid of windows; shop fronts below 3.2 m."""
    wall = _bricks(colour, uv, point, fade)
    u, z = uv[:, 0], point[:, 2]
    storey = (z - 3.6) % 3.2
    column = u % 2.6
    window = (z > 3.6) & (storey > 0.7) & (storey < 2.4) & (column > 0.6) & (column < 2.0)
    frame = window & ((storey < 0.8) | (storey > 2.3) | (column < 0.7) | (column > 1.9) | (np.abs(column - 1.3) < 0.05))
    bay = u % 4.2
    shop = (z > 0.5) & (z < 2.8) & (bay > 0.4) & (bay < 3.8)
    shop_frame = shop & ((z < 0.6) | (np.abs(bay - 2.1) < 0.06))
    bright = 0.5 + 0.5 * _noise(
        np.floor(u / 2.6) * 3 + np.floor(point[:, 0] / 9),
        np.floor((z - 3.6) / 3.2) * 5 + np.floor(point[:, 1] / 9),
        1.0,
    )
    glass = np.array([0.05, 0.07, 0.09], np.float32) + bright[:, None] * np.array([0.16, 0.19, 0.22], np.float32)
    pane = (window & ~frame) | (shop & ~shop_frame)
    out = np.where(pane[:, None], glass, wall)
    return np.where((frame | shop_frame)[:, None], np.float32(0.55), out)


def _foliage(colour: np.ndarray, uv: np.ndarray, point: np.ndarray, fade: np.ndarray) -> np.ndarray:
    lumps = _noise(point[:, 0] + 0.7 * point[:, 2], point[:, 1] + 1.3 * point[:, 2], 5.0)
    leaves = _noise(point[:, 0] + 1.7 * point[:, 2], point[:, 1] - point[:, 2], 22.0)
    return colour * (1 + 0.4 * lumps + 0.5 * fade * leaves)[:, None]


def _stripes(colour: np.ndarray, uv: np.ndarray, point: np.ndarray, fade: np.ndarray) -> np.ndarray:
    red = ((uv[:, 0] + uv[:, 1]) % 0.5) < 0.25
    return np.where(red[:, None], np.array([0.62, 0.03, 0.03], np.float32), colour)


def _ribs(colour: np.ndarray, uv: np.ndarray, point: np.ndarray, fade: np.ndarray) -> np.ndarray:
    return colour * (1 - 0.22 * ((uv[:, 0] % 0.5) < 0.12))[:, None]


_TEXTURES = {
    Material.ASPHALT: _asphalt, Material.SLABS: _slabs, Material.GRASS: _grass, Material.FACADE: _facade,
    Material.BRICK: _bricks, Material.FOLIAGE: _foliage, Material.STRIPES: _stripes, Material.RIBS: _ribs,
}  # fmt: skip


def sky_colour(directions: np.ndarray, light: Light) -> np.ndarray:
    """[R, 3] linear colour of the sky along unit directions [R, 3]; `light` is a world.Light."""
    up = np.clip(directions[:, 2], 0, 1)[:, None]
    sky = np.asarray(light.sky_horizon, np.float32) * (1 - up) ** 3 + np.asarray(light.sky_zenith, np.float32) * (
        1 - (1 - up) ** 3
    )
    plane = directions[:, :2] / np.maximum(directions[:, 2:], 0.04)
    cloud = _smooth_noise(plane[:, 0] * 18, plane[:, 1] * 18) + 0.5 * _smooth_noise(plane[:, 1] * 55, plane[:, 0] * 55)
    sky += (0.2 * np.clip(cloud, 0, 1) * np.clip(directions[:, 2] * 4, 0, 1))[:, None]
    glow = np.clip(directions @ np.asarray(light.sun_direction, np.float32), 0, 1) ** 24
    return (sky + glow[:, None] * 0.5 * np.asarray(light.sun_colour, np.float32)).astype(np.float32)


def _surface_coordinates(uv_corners: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Corner coordinates [R, 3, 2] blended with barycentric weights [R, 2]."""
    first, second, third = uv_corners[:, 0], uv_corners[:, 1], uv_corners[:, 2]
    return first + weight[:, :1] * (second - first) + weight[:, 1:] * (third - first)


def shade(caster: RayCaster, origin: np.ndarray, directions: np.ndarray, hits: Hits, light: Light) -> np.ndarray:
    """[R, 3] linear colours of rays from `origin` [3] along `directions` [R, 3]."""
    out = np.empty(directions.shape, np.float32)
    seen = hits.face >= 0
    out[~seen] = sky_colour(directions[~seen], light)
    direction, face, distance = directions[seen], hits.face[seen], hits.distance_m[seen]
    mesh = caster.mesh
    point = origin.astype(np.float32) + direction * distance[:, None]
    normal = caster.normals[face]
    normal = np.where((np.einsum("ij,ij->i", normal, direction) > 0)[:, None], -normal, normal)
    weight = hits.barycentric[seen]
    colour = np.square(mesh.colour)[face]
    material = mesh.material[face]
    fade = np.clip(1.4 - distance / 22, 0, 1)
    for kind, texture in _TEXTURES.items():
        of_kind = np.flatnonzero(material == kind)
        if len(of_kind):
            uv = _surface_coordinates(mesh.uv[face[of_kind]], weight[of_kind])
            colour[of_kind] = texture(colour[of_kind], uv, point[of_kind], fade[of_kind])
    sun_direction = np.asarray(light.sun_direction, np.float32)
    facing = normal @ sun_direction
    lit = np.flatnonzero(facing > 0)
    lit = lit[~caster.in_shadow(point[lit] + _SHADOW_OFFSET_M * normal[lit], sun_direction)]
    sun = np.zeros(len(face), np.float32)
    sun[lit] = facing[lit]
    ambient = (0.62 + 0.38 * normal[:, 2]) * (0.8 + 0.2 * np.clip(point[:, 2], 0, 1))  # darker near the ground
    result = colour * (
        sun[:, None] * np.asarray(light.sun_colour, np.float32)
        + ambient[:, None] * np.asarray(light.ambient_colour, np.float32)
    )
    shiny = np.flatnonzero((material == Material.GLASS) | (material == Material.PAINT))
    if len(shiny):
        d, n = direction[shiny], normal[shiny]
        cos = -np.einsum("ij,ij->i", d, n)
        mirror = d + 2 * cos[:, None] * n
        strength = np.where(material[shiny] == Material.GLASS, 0.22, 0.05) + 0.5 * (1 - np.clip(cos, 0, 1)) ** 4
        sky = sky_colour(mirror, light) * np.clip(mirror[:, 2:] * 3 + 0.4, 0.15, 1)
        result[shiny] += strength[:, None] * 0.7 * sky
    lamp = material == Material.LAMP
    result[lamp] = 0.25 * result[lamp] + 0.8 * colour[lamp]
    haze = np.exp(-distance * np.float32(light.haze_per_m))[:, None]
    out[seen] = result * haze + np.asarray(light.sky_horizon, np.float32) * (1 - haze)
    return out


def to_image(linear: np.ndarray, height_px: int, width_px: int, rng: np.random.Generator) -> np.ndarray:
    """[H, W, 3] uint8: filmic exposure, gamma and a little sensor noise."""
    value = np.sqrt(1 - np.exp(-np.float32(_EXPOSURE) * linear)) * 255
    value += rng.standard_normal(value.shape, np.float32) * np.float32(1.8)
    return np.clip(value + 0.5, 0, 255).astype(np.uint8).reshape(height_px, width_px, 3)
