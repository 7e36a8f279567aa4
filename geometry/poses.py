"""Rigid transforms as 4x4 matrices named ``destination_from_source``.

``ego_from_bev @ point_lidar`` gives the point in the ego frame, so the inner names of a product must match:
``global_from_bev = global_from_ego @ ego_from_bev``. Quaternions are Hamilton, scalar first (w, x, y, z), as in
nuScenes. Matrices are float64 NumPy arrays; :func:`transform_points` also takes torch tensors.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Array = TypeVar("Array", NDArray[np.float64], NDArray[np.floating], torch.Tensor)


def quaternion_to_matrix(quaternion_wxyz: ArrayLike) -> NDArray[np.float64]:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] (w, x, y, z); they are normalised first.

    Raises ValueError for a zero or non-finite quaternion.
    """
    q = np.asarray(quaternion_wxyz, dtype=np.float64)
    if q.shape[-1] != 4:
        raise ValueError(f"a quaternion has 4 components (w, x, y, z), got shape {q.shape}")
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if not np.all(np.isfinite(norm)) or np.any(norm < 1e-12):
        raise ValueError(f"quaternion of zero or non-finite length: {q}")
    w, x, y, z = np.moveaxis(q / norm, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def matrix_to_quaternion(rotation: ArrayLike) -> NDArray[np.float64]:
    """Unit quaternions [..., 4] (w, x, y, z), w >= 0, of rotation matrices [..., 3, 3].

    Takes the largest of the four candidate components as pivot, so it is stable for every rotation
    (Shepperd, 1978).
    """
    r = np.asarray(rotation, dtype=np.float64)
    trace = r[..., 0, 0] + r[..., 1, 1] + r[..., 2, 2]
    diagonal = np.stack([trace, r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]], -1)  # [..., 4]
    pivot = diagonal.argmax(-1)
    a = r[..., 2, 1] - r[..., 1, 2]
    b = r[..., 0, 2] - r[..., 2, 0]
    c = r[..., 1, 0] - r[..., 0, 1]
    d = r[..., 0, 1] + r[..., 1, 0]
    e = r[..., 0, 2] + r[..., 2, 0]
    f = r[..., 1, 2] + r[..., 2, 1]
    square = 1 - trace[..., None] + 2 * diagonal[..., 1:]
    candidates = np.stack(
        [
            np.stack([1 + trace, a, b, c], -1),
            np.stack([a, square[..., 0], d, e], -1),
            np.stack([b, d, square[..., 1], f], -1),
            np.stack([c, e, f, square[..., 2]], -1),
        ],
        -2,
    )  # [..., 4 pivots, 4]
    q = np.take_along_axis(candidates, pivot[..., None, None].repeat(4, -1), axis=-2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[..., :1] < 0, -q, q)


def rotation_z(yaw_rad: ArrayLike) -> NDArray[np.float64]:
    """Rotation matrices [..., 3, 3] about +z, counter-clockwise seen from above."""
    yaw = np.asarray(yaw_rad, dtype=np.float64)
    c, s, o, i = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw), np.ones_like(yaw)
    return np.stack([np.stack([c, -s, o], -1), np.stack([s, c, o], -1), np.stack([o, o, i], -1)], -2)


def yaw_of(rotation: ArrayLike) -> NDArray[np.float64]:
    """Heading (rad, counter-clockwise from +x) of the rotated x axis projected onto the xy plane."""
    r = np.asarray(rotation, dtype=np.float64)
    return np.arctan2(r[..., 1, 0], r[..., 0, 0])


def wrap_angle(angle_rad: Array) -> Array:
    """The same angle in [-pi, pi)."""
    pi = float(np.pi)
    return (angle_rad + pi) % (2 * pi) - pi


def pose(rotation: ArrayLike, translation: ArrayLike) -> NDArray[np.float64]:
    """A pose [4, 4] from a rotation matrix [3, 3] or quaternion [4] (w, x, y, z) and a translation [3] in metres.

    Raises ValueError for other shapes, or a matrix that is not a rotation to 1e-3.
    """
    r = np.asarray(rotation, dtype=np.float64)
    t = np.asarray(translation, dtype=np.float64)
    if r.shape == (4,):
        r = quaternion_to_matrix(r)
    if r.shape != (3, 3) or t.shape != (3,):
        raise ValueError(f"pose needs a rotation [3, 3] or [4] and a translation [3], got {r.shape} and {t.shape}")
    if not np.allclose(r @ r.T, np.eye(3), atol=1e-3) or np.linalg.det(r) < 0 or not np.all(np.isfinite(t)):
        raise ValueError(f"not a rigid transform: rotation {r.tolist()}, translation {t.tolist()}")
    out = np.eye(4)
    out[:3, :3] = r
    out[:3, 3] = t
    return out


def invert_pose(a_from_b: Array) -> Array:
    """``b_from_a`` of rigid transforms [..., 4, 4], by transposition (exact, no matrix inverse)."""
    rotation_t = a_from_b[..., :3, :3].swapaxes(-1, -2)
    translation = -(rotation_t @ a_from_b[..., :3, 3:])
    out = a_from_b.clone() if isinstance(a_from_b, torch.Tensor) else a_from_b.copy()
    out[..., :3, :3] = rotation_t
    out[..., :3, 3:] = translation
    return out


def slerp(start: NDArray[np.float64], end: NDArray[np.float64], share: ArrayLike) -> NDArray[np.float64]:
    """Unit quaternions [..., 4] at shares [...] in 0..1 of the shorter way between two (Shoemake, 1985)."""
    share = np.asarray(share, np.float64)[..., None]
    cosine = (start * end).sum(-1, keepdims=True)
    end, cosine = np.where(cosine < 0, -end, end), np.abs(cosine)
    angle = np.arctan2(np.linalg.norm(end - cosine * start, axis=-1, keepdims=True), cosine)
    near = angle < 1e-8  # so near that the chord is the arc
    sine = np.sin(np.where(near, 1.0, angle))
    first = np.where(near, 1 - share, np.sin((1 - share) * angle) / sine)
    second = np.where(near, share, np.sin(share * angle) / sine)
    mixed = first * start + second * end
    return mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)


def interpolate_poses(start: NDArray[np.float64], end: NDArray[np.float64], share: ArrayLike) -> NDArray[np.float64]:
    """Poses [..., 4, 4] at shares [...] in 0..1 of the way: translations linear, rotations spherical-linear."""
    share = np.asarray(share, np.float64)
    out = start + share[..., None, None] * (end - start)
    first, second = (matrix_to_quaternion(pose[..., :3, :3]) for pose in (start, end))
    out[..., :3, :3] = quaternion_to_matrix(slerp(first, second, share))
    return out


def transform_points(a_from_b: Array, points_b: Array) -> Array:
    """Points [..., n, 3] (or one point [3]) of frame b in frame a; ``a_from_b`` is [..., 4, 4]."""
    if points_b.ndim == 1:
        return a_from_b[..., :3, :3] @ points_b + a_from_b[..., :3, 3]
    return points_b @ a_from_b[..., :3, :3].swapaxes(-1, -2) + a_from_b[..., None, :3, 3]


def nearest_rigid(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """The rigid transform [4, 4] nearest to one that was rounded, such as to float32 in a file.

    Only rounding is taken away: a matrix whose rotation is off by more than 1e-3 comes back as it is, for the checks to
    name.
    """
    out = np.array(matrix, dtype=np.float64)
    if not np.isfinite(out).all() or np.abs(out[:3, :3] @ out[:3, :3].T - np.eye(3)).max() > 1e-3:
        return out
    u, _, vt = np.linalg.svd(out[:3, :3])
    out[:3, :3] = u @ vt
    return out
