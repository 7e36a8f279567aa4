"""Lenses: from a direction in front of a camera to a point of its image plane and back, for NumPy and torch.

Camera frame: x right, y down, z ahead. A lens maps a point to plane coordinates (a, b); the camera's matrix makes
pixels of them: (u, v, 1) = K (a, b, 1). Every lens is scaled so that (a, b) = (x / z, y / z) near the optical axis,
hence K is that of the equivalent pinhole, and resizing, cropping and flipping touch K alone.

Past a certain angle the polynomial of most lenses turns back (42 degrees for Waymo's cameras), and points far outside
the image would land inside it: each lens carries that angle, and what lies beyond is not seen.

Sources: OpenCV's documentation (Brown-Conrady, fisheye, omnidir); Kannala and Brandt 2006; Mei and Rives 2007; Usenko
et al. 2018 (double sphere, arXiv 1807.08957); NVIDIA's f-theta camera.

Shapes: n points, m rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = Any
"""NDArray[np.floating] or torch.Tensor; what goes in comes out."""

KINDS = ("brown_conrady", "kannala_brandt", "f_theta", "f_theta_backward", "mei", "double_sphere", "cylinder")
"""Coefficients of each: k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4 | k1 k2 k3 k4 | c2 .. c8 of rho = t + c2 t^2 + .. in the
angle t | c2 .. c8 of t = rho + c2 rho^2 + .. | xi k1 k2 p1 p2 | xi alpha | none."""

MAX_COEFFICIENTS = 12
ROW = 8 + MAX_COEFFICIENTS
"""Numbers of a camera in a table of rows: 1 + index of the kind (0: pinhole), the largest angle, the first two rows of
K, the coefficients, padded with zeros."""

MAX_LENS_ANGLE = math.radians(85)
"""Beyond it a direction through a lens has hardly any depth along the optical axis: no single-image box lies there."""

_ODD = {"brown_conrady": (3, 8, 9), "mei": (4,)}  # coefficients of terms that are even in x where x should be odd
_BISECTIONS, _NEWTON_STEPS = 24, 6
_POWERS = {"kannala_brandt": (3, 5, 7, 9), "f_theta": tuple(range(2, 9)), "f_theta_backward": tuple(range(2, 9))}


@dataclass(frozen=True)
class Lens:
    """How a camera bends the image of the world away from a pinhole's.

    kind: one of KINDS; coefficients: see there, missing ones are zero; max_angle_rad: from the optical axis, beyond
    which nothing is seen; None: where the image would begin to fold back. Raises ValueError for an unknown kind, or
    coefficients that are too many, not finite or outside the model's range.
    """

    kind: str
    coefficients: tuple[float, ...] = ()
    max_angle_rad: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"lens {self.kind!r}: choose from {', '.join(KINDS)}")
        given, count = tuple(float(c) for c in self.coefficients), num_coefficients(self.kind)
        if len(given) > count or not all(map(math.isfinite, given)):
            raise ValueError(f"lens {self.kind} has up to {count} finite coefficients, got {list(given)}")
        object.__setattr__(self, "coefficients", given + (0.0,) * (count - len(given)))
        if self.kind == "mei" and self.coefficients[0] < 0:
            raise ValueError(f"lens mei: xi must be at least 0, got {self.coefficients[0]}")
        if self.kind == "double_sphere" and not (-1 < self.coefficients[0] < 1 and 0 <= self.coefficients[1] <= 1):
            raise ValueError(f"lens double_sphere: xi in -1..1 and alpha in 0..1, got {list(self.coefficients)}")
        fold = fold_angle(self.kind, self.coefficients)
        limit = fold if self.max_angle_rad is None else min(float(self.max_angle_rad), fold)
        if not limit > 0:
            raise ValueError(f"lens {self.kind}: it sees nothing: the largest angle is {limit} rad")
        object.__setattr__(self, "max_angle_rad", limit)

    @property
    def limit_rad(self) -> float:
        """Points further from the optical axis than this are not seen."""
        assert self.max_angle_rad is not None  # set above
        return self.max_angle_rad

    def plane(self, points_camera: Array) -> tuple[Array, Array]:
        """Plane coordinates [..., 2] of points [..., 3], and which of them [...] are seen."""
        with np.errstate(invalid="ignore", over="ignore"):
            return _plane(self.kind, points_camera, self.coefficients, self.limit_rad)

    def rays(self, plane: Array) -> tuple[Array, Array]:
        """Unit directions [..., 3] of plane coordinates [..., 2], float64, and for which [...] there is one."""
        double = plane.double() if isinstance(plane, torch.Tensor) else np.asarray(plane, np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            return _rays(self.kind, double, self.coefficients, self.limit_rad)

    @classmethod
    def of_row(cls, row: Sequence[float]) -> Lens | None:
        """The lens of a row [ROW], None of a pinhole's."""
        if not row[0]:
            return None
        kind = KINDS[round(row[0]) - 1]
        return cls(kind, tuple(row[8 : 8 + num_coefficients(kind)]), row[1])

    def row(self, intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
        """[ROW], see there; intrinsics [3, 3]."""
        out = pinhole_row(intrinsics)
        out[:2] = 1 + KINDS.index(self.kind), self.limit_rad
        out[8 : 8 + len(self.coefficients)] = self.coefficients
        return out


def pinhole_row(intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
    """The row [ROW] of a camera without lens."""
    out = np.zeros(ROW)
    out[1], out[2:8] = math.pi / 2, np.asarray(intrinsics)[:2].ravel()
    return out


def mirrored_row(row: NDArray[np.floating], width_px: int) -> NDArray[np.floating]:
    """The row [ROW] of the camera that sees the mirrored world (x negated) as the mirrored image (u -> width - u)."""
    out = row.copy()
    out[3:6] = -row[3], width_px - row[4], -row[5]
    for i in _ODD.get(KINDS[round(float(row[0])) - 1], ()) if row[0] else ():
        out[8 + i] = -row[8 + i]
    return out


def project_rows(points_camera: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels [m, 2] of points [m, 3], each through the camera of its own row [m, ROW], and which [m] are seen."""
    k = rows[:, 2:8].unflatten(1, (2, 3))
    plane, seen = _by_kind(points_camera, rows, _plane, 2)
    return (k[:, :, :2] @ plane[..., None])[..., 0] + k[:, :, 2], seen


def ray_rows(points_px: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit directions [m, 3] through pixels [m, 2] of the cameras of rows [m, ROW], and for which [m] there is one.

    Gradients reach the pixels, by finite differences of the inverse in float64: it is found by iterations that
    autograd had better not follow.
    """
    with torch.no_grad():
        pixels, double = points_px.double(), rows.double()
        k = double[:, 2:8].unflatten(1, (2, 3))
        # a row of zeros stands for an image that is missing, or a pinhole whose matrix says all
        empty = (k == 0).flatten(1).all(1)[:, None, None]
        inverse = torch.linalg.inv(torch.where(empty, torch.eye(2, dtype=k.dtype, device=k.device), k[:, :, :2]))
        centre = (inverse @ (pixels - k[:, :, 2])[..., None])[..., 0]
        ray, seen = _by_kind(centre, double, _rays, 3)
    if not (torch.is_grad_enabled() and points_px.requires_grad):
        return ray.to(points_px.dtype), seen
    with torch.no_grad():
        step = 1e-6
        columns = []
        for axis in range(2):
            shift = torch.zeros_like(centre)
            shift[:, axis] = step
            ahead, _ = _by_kind(centre + shift, double, _rays, 3)
            behind, _ = _by_kind(centre - shift, double, _rays, 3)
            columns.append((ahead - behind) / (2 * step))
        jacobian = (torch.stack(columns, -1) @ inverse).nan_to_num()  # [m, 3, 2] per pixel
    moved = (jacobian.to(points_px.dtype) @ (points_px - points_px.detach())[..., None])[..., 0]
    return ray.to(points_px.dtype) + moved, seen


def _by_kind(
    points: torch.Tensor, rows: torch.Tensor, function: Callable, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``function`` of each kind of lens on the points that have it."""
    out = points.new_zeros((len(points), width))
    seen = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    kinds = rows[:, 0].round().long()
    for index in kinds.unique().tolist():
        own = kinds == index
        everything = bool(own.all())
        p, r = (points, rows) if everything else (points[own], rows[own])
        name = "pinhole" if index == 0 else KINDS[index - 1]
        found, valid = function(name, p, r[:, 8:].unbind(1), r[:, 1])
        if everything:
            return found, valid
        out[own], seen[own] = found, valid
    return out, seen


def num_coefficients(kind: str) -> int:
    """How many a kind of lens has."""
    return {"brown_conrady": 12, "kannala_brandt": 4, "mei": 5, "double_sphere": 2, "cylinder": 0}.get(kind, 7)


def _namespace(x: Array) -> Any:
    return torch if isinstance(x, torch.Tensor) else np


def _plane(kind: str, points: Array, c: Sequence[Any], limit: Any) -> tuple[Array, Array]:
    xp = _namespace(points)
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    if kind in ("pinhole", "brown_conrady"):
        ahead = z > 0
        safe = xp.where(ahead, z, xp.ones_like(z))
        a, b = x / safe, y / safe
        seen = ahead & (xp.hypot(a, b) <= _tan(limit, xp)) if kind == "brown_conrady" else ahead
        if kind == "brown_conrady":
            a, b = _distorted(a, b, c)
        return xp.stack([a, b], -1), seen
    if kind == "cylinder":
        away = xp.hypot(x, z)
        seen = away > 0
        return xp.stack([xp.arctan2(x, z), y / xp.where(seen, away, xp.ones_like(away))], -1), seen
    away = xp.hypot(x, y)
    angle = xp.arctan2(away, z)
    seen = (angle <= limit) & (away + abs(z) > 0)
    if kind in _POWERS:
        rho = _polynomial(angle, kind, c) if kind != "f_theta_backward" else _inverse(kind, angle, c, _MAX_RHO)
        on_axis = away == 0
        scale = xp.where(on_axis, xp.zeros_like(rho), rho / xp.where(on_axis, xp.ones_like(away), away))
        return xp.stack([x * scale, y * scale], -1), seen
    length = xp.sqrt(x * x + y * y + z * z)
    length = xp.where(length > 0, length, xp.ones_like(length))
    if kind == "mei":
        xi = c[0]
        deep = z / length + xi
        deep = xp.where(seen, deep, xp.ones_like(deep))
        a, b = _distorted(x / length / deep, y / length / deep, (*c[1:5], 0 * c[0]))
        return xp.stack([a * (1 + xi), b * (1 + xi)], -1), seen
    xi, alpha = c[0], c[1]
    second = xi * length + z
    deep = alpha * xp.sqrt(x * x + y * y + second * second) + (1 - alpha) * second
    deep = xp.where(seen, deep, xp.ones_like(deep))
    return xp.stack([x / deep * (1 + xi), y / deep * (1 + xi)], -1), seen


def _rays(kind: str, plane: Array, c: Sequence[Any], limit: Any) -> tuple[Array, Array]:
    xp = _namespace(plane)
    a, b = plane[..., 0], plane[..., 1]
    if kind in ("pinhole", "brown_conrady"):
        seen = xp.isfinite(a) & xp.isfinite(b)
        if kind == "brown_conrady":
            a, b, seen = _undistorted(a, b, c, _tan(limit, xp))
        return _unit(a, b, xp.ones_like(a)), seen
    if kind == "cylinder":
        return _unit(xp.sin(a), b, xp.cos(a)), abs(a) <= math.pi
    rho = xp.hypot(a, b)
    if kind in _POWERS:
        if kind == "f_theta_backward":
            angle, seen = _polynomial(rho, kind, c), rho <= _MAX_RHO
        else:
            angle = _inverse(kind, rho, c, limit)
            seen = rho <= _polynomial(limit + 0 * rho, kind, c) * (1 + 1e-12)
        on_axis = rho == 0
        sine = xp.where(on_axis, xp.zeros_like(rho), xp.sin(angle) / xp.where(on_axis, xp.ones_like(rho), rho))
        return xp.stack([a * sine, b * sine, xp.cos(angle)], -1), seen & (angle <= limit * (1 + 1e-12))
    xi = c[0]
    a, b = a / (1 + xi), b / (1 + xi)
    if kind == "mei":
        edge = _sin(limit, xp) / (_cos(limit, xp) + xi)
        a, b, seen = _undistorted(a, b, (*c[1:5], 0 * c[0]), edge)
        q = a * a + b * b
        root = 1 + (1 - xi * xi) * q
        seen = seen & (root >= 0)
        factor = (xi + xp.sqrt(xp.where(root >= 0, root, xp.zeros_like(root)))) / (q + 1)
        ray = _unit(factor * a, factor * b, factor - xi)
    else:
        alpha, q = c[1], a * a + b * b
        root = 1 - (2 * alpha - 1) * q
        seen = root >= 0
        below = alpha * xp.sqrt(xp.where(seen, root, xp.zeros_like(root))) + 1 - alpha
        mz = (1 - alpha * alpha * q) / xp.where(below == 0, xp.ones_like(below), below)
        inner = mz * mz + (1 - xi * xi) * q
        k = (mz * xi + xp.sqrt(xp.where(inner >= 0, inner, xp.zeros_like(inner)))) / (mz * mz + q)
        seen = seen & (inner >= 0)
        ray = _unit(k * a, k * b, k * mz - xi)
    return ray, seen & (xp.arctan2(xp.hypot(ray[..., 0], ray[..., 1]), ray[..., 2]) <= limit * (1 + 1e-12))


def _distorted(a: Array, b: Array, c: Sequence[Any]) -> tuple[Array, Array]:
    """Brown-Conrady on plane coordinates, coefficients in OpenCV's order (5 or 12)."""
    q = a * a + b * b
    factor = 1 + q * (c[0] + q * (c[1] + q * c[4]))
    u = 2 * c[2] * a * b + c[3] * (q + 2 * a * a)
    v = c[2] * (q + 2 * b * b) + 2 * c[3] * a * b
    if len(c) > 5:
        factor = factor / (1 + q * (c[5] + q * (c[6] + q * c[7])))
        u, v = u + q * (c[8] + q * c[9]), v + q * (c[10] + q * c[11])
    return a * factor + u, b * factor + v


def _undistorted(a: Array, b: Array, c: Sequence[Any], edge: Any) -> tuple[Array, Array, Array]:
    """Inverse of ``_distorted`` within the radius ``edge``, and where there is one.

    The radius alone by bisection, which cannot miss it, then both coordinates by Newton's method, for the tangential
    terms.
    """
    xp = _namespace(a)
    edge = xp.clip(edge + 0 * a, 0, 1e3)
    target = xp.hypot(a, b)
    zero = xp.zeros_like(a)
    radial = [0 * k if i in (2, 3, 8, 9, 10, 11) else k for i, k in enumerate(c)]
    grown = lambda r: _distorted(r, zero, radial)[0]
    low, high = zero, edge
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        beyond = grown(middle) > target
        low, high = xp.where(beyond, low, middle), xp.where(beyond, middle, high)
    share = xp.where(target > 0, (low + high) / 2 / xp.where(target > 0, target, xp.ones_like(a)), xp.ones_like(a))
    x, y = a * share, b * share
    for _ in range(_NEWTON_STEPS):
        u, v = _distorted(x, y, c)
        du, dv = u - a, v - b
        step = 1e-7
        ux, vx = (i - j for i, j in zip(_distorted(x + step, y, c), _distorted(x - step, y, c)))
        uy, vy = (i - j for i, j in zip(_distorted(x, y + step, c), _distorted(x, y - step, c)))
        ux, vx, uy, vy = (d / (2 * step) for d in (ux, vx, uy, vy))
        determinant = ux * vy - uy * vx
        determinant = xp.where(abs(determinant) > 1e-12, determinant, xp.ones_like(determinant))
        x, y = x - (vy * du - uy * dv) / determinant, y - (ux * dv - vx * du) / determinant
    u, v = _distorted(x, y, c)
    tolerance = 1e-9 * (1 + target)
    found = (abs(u - a) <= tolerance) & (abs(v - b) <= tolerance) & (xp.hypot(x, y) <= edge * (1 + 1e-9))
    return x, y, found


def _polynomial(t: Array, kind: str, c: Sequence[Any]) -> Array:
    powers = _POWERS[kind]
    out = 0 * t
    for power, k in zip(reversed(powers), reversed(c[: len(powers)])):
        out = out + k * t**power
    return t + out


_MAX_RHO = 1e3  # of the plane, for a lens whose radius is not bounded by an angle


def _inverse(kind: str, value: Array, c: Sequence[Any], largest: Any) -> Array:
    """t in 0 .. largest with ``_polynomial(t) = value``, by bisection and Newton's method."""
    xp = _namespace(value)
    if kind == "f_theta_backward":  # nearly linear, and where it turns back is not known here
        t, steps = value + 0 * value, 4 * _NEWTON_STEPS
    else:
        low, high = 0 * value, largest + 0 * value
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            beyond = _polynomial(middle, kind, c) > value
            low, high = xp.where(beyond, low, middle), xp.where(beyond, middle, high)
        t, steps = (low + high) / 2, _NEWTON_STEPS
    for _ in range(steps):
        slope = 1 + sum(p * k * t ** (p - 1) for p, k in zip(_POWERS[kind], c))
        t = t - (_polynomial(t, kind, c) - value) / xp.where(slope > 1e-6, slope, xp.ones_like(slope))
    return t


def _unit(x: Array, y: Array, z: Array) -> Array:
    xp = _namespace(x)
    length = xp.sqrt(x * x + y * y + z * z)
    return xp.stack([x / length, y / length, z / length], -1)


def _tan(angle: Any, xp: Any) -> Any:
    """Of an angle up to 90 degrees, where it is very large."""
    half = math.pi / 2 - 1e-9
    return math.tan(min(angle, half)) if isinstance(angle, float) else xp.tan(xp.clip(angle, 0, half))


def _sin(angle: Any, xp: Any) -> Any:
    return math.sin(angle) if isinstance(angle, float) else xp.sin(angle)


def _cos(angle: Any, xp: Any) -> Any:
    return math.cos(angle) if isinstance(angle, float) else xp.cos(angle)


@lru_cache(maxsize=1024)
def fold_angle(kind: str, coefficients: tuple[float, ...]) -> float:
    """Angle from the optical axis, rad, up to which the distance from the image's centre grows, tangential terms aside.

    At most what the model itself allows: 90 degrees for Brown-Conrady, where mei and double_sphere divide by zero.
    """
    c = coefficients
    if kind == "cylinder":
        return math.pi
    if kind == "brown_conrady":
        most = math.pi / 2 - 1e-6
    elif kind == "mei":
        most = math.acos(-1 / c[0] if c[0] > 1 else -c[0]) * (1 - 1e-6)  # rounded to float32 it stays below
    elif kind == "double_sphere":
        w1 = c[1] / (1 - c[1]) if c[1] <= 0.5 else (1 - c[1]) / c[1]
        most = math.acos(-(w1 + c[0]) / math.sqrt(2 * w1 * c[0] + c[0] ** 2 + 1))
    else:
        most = math.pi
    if kind == "f_theta_backward":
        rho = np.linspace(0, 20, 40001)[1:]
        angles = _polynomial(rho, kind, c)
        turn = np.flatnonzero((np.diff(angles) <= 0) | (angles[1:] > math.pi))
        return float(min(math.pi, angles[turn[0]] if len(turn) else angles[-1]))
    radial = list(c)
    for i in {"brown_conrady": (2, 3, 8, 9, 10, 11), "mei": (3, 4)}.get(kind, ()):
        radial[i] = 0.0

    def radius(angle: Any) -> NDArray[np.float64]:
        points = np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], -1)
        with np.errstate(all="ignore"):
            return _plane(kind, points, radial, math.inf)[0][..., 0]

    angles = np.linspace(0, most, 20002)[1:-1]
    grown = radius(angles)
    turn = np.flatnonzero(~(np.diff(grown) > 0))
    if not len(turn):
        return most
    low, high = angles[max(turn[0] - 1, 0)], angles[min(turn[0] + 1, len(angles) - 1)]
    for _ in range(60):  # the largest radius, between two samples around it
        third = (high - low) / 3
        if radius(low + third) < radius(high - third):
            low += third
        else:
            high -= third
    return float(low)
