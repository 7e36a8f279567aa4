"""How cameras are mounted, what they see, and where two of them see the same.

Angles of a camera: yaw of its optical axis, counter-clockwise from straight ahead; pitch, above the horizon; roll, its
right side down. All in degrees, in the EGO frame.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.frames import CameraView, Frame
from ...geometry import CameraModel, invert_pose, transform_points

RING_M = 15.0
"""Distance at which coverage is asked, 1 m over the ground."""
_STEP_DEG = 0.5
_HEIGHT_M = 0.15, 5.0
_MAX_ROLL_DEG, _MAX_PITCH_DEG = 20.0, 30.0
_OFF_CENTRE, _UNEQUAL = 0.2, 0.1
_MAX_PINHOLE_DEG = 150.0
_SIDES = {"left": 1.0, "right": -1.0}


def survey_cameras(frames: Sequence[Frame]) -> tuple[dict[str, Any], list[str]]:
    """Numbers, and what looks wrong. A camera counts as it is in the first frame that has it."""
    first: dict[str, CameraView] = {}
    kinds: dict[str, set[bytes]] = {}
    for frame in frames:
        for view in frame.cameras:
            first.setdefault(view.name, view)
            lens = view.camera.lens
            key = (view.camera.intrinsics.tobytes(), np.round(view.ego_from_camera, 6).tobytes(), repr(lens).encode())
            kinds.setdefault(view.name, set()).add(b"".join(key))
    seen = {name: covered(view) for name, view in first.items()}
    each = {name: mounting(view) | {"calibrations": len(kinds[name])} for name, view in first.items()}
    numbers = {"each": each, "covered_deg": 0.0, "unseen_deg": [], "overlaps_deg": overlaps(first, seen)}
    if seen:
        anywhere = np.logical_or.reduce(list(seen.values()))
        numbers |= {"covered_deg": _STEP_DEG * float(anywhere.sum()), "unseen_deg": _runs(~anywhere)}
    problems = [text for name, view in first.items() for text in _wrong(name, view, each[name])]
    for a in first:
        for b in list(first)[list(first).index(a) + 1 :]:
            if np.allclose(first[a].ego_from_camera, first[b].ego_from_camera, atol=1e-6):
                problems.append(f"cameras {a} and {b} have the same pose: give each its own ego_from_camera")
    return numbers, problems


def mounting(view: CameraView) -> dict[str, Any]:
    """Place, angles, focal lengths, fields of view and lens of a camera."""
    pose, camera = view.ego_from_camera, view.camera
    right, down, ahead = pose[:3, 0], pose[:3, 1], pose[:3, 2]
    horizontal, vertical = field_of_view_deg(camera)
    lens = camera.lens
    return {
        "position_m": np.round(pose[:3, 3], 3).tolist(),
        "yaw_deg": _degrees(np.arctan2(ahead[1], ahead[0])),
        "pitch_deg": _degrees(np.arcsin(np.clip(ahead[2], -1, 1))),
        "roll_deg": _degrees(np.arctan2(-right[2], -down[2])),
        "size_px": list(view.image_size_px),
        "focal_px": np.round([camera.intrinsics[0, 0], camera.intrinsics[1, 1]], 2).tolist(),
        "principal_point_px": np.round(camera.intrinsics[:2, 2], 2).tolist(),
        "field_of_view_deg": [horizontal, vertical],
        "lens": "pinhole" if lens is None else lens.kind,
        "coefficients": [] if lens is None else list(lens.coefficients),
    }


def field_of_view_deg(camera: CameraModel) -> tuple[float, float]:
    """Along the row and the column of the principal point, as far as the lens sees."""
    u, v = camera.intrinsics[:2, 2]
    out = []
    for axis, side in ((0, camera.width_px), (1, camera.height_px)):
        pixels = np.tile([u, v], (129, 1)).astype(np.float64)
        pixels[:, axis] = np.linspace(0, side, 129)
        rays = camera.unproject(pixels)
        angles = np.degrees(np.arctan2(rays[:, axis], rays[:, 2]))
        angles = angles[np.isfinite(angles)]
        out.append(round(float(angles.max() - angles.min()), 1) if len(angles) else 0.0)
    return out[0], out[1]


def in_image(camera: CameraModel, points_camera: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points [..., 3] of the camera frame lie in the image."""
    pixels, _ = camera.project(points_camera)
    with np.errstate(invalid="ignore"):
        return np.asarray(((pixels >= 0) & (pixels <= [camera.width_px, camera.height_px])).all(-1))


def covered(view: CameraView) -> NDArray[np.bool_]:
    """[720] which directions around the car, counter-clockwise from straight ahead, a camera sees at RING_M."""
    azimuth = np.radians(np.arange(0, 360, _STEP_DEG))
    ring = np.stack([RING_M * np.cos(azimuth), RING_M * np.sin(azimuth), np.ones_like(azimuth)], 1)
    return in_image(view.camera, transform_points(invert_pose(view.ego_from_camera), ring))


def overlaps(views: dict[str, CameraView], seen: dict[str, NDArray[np.bool_]]) -> dict[str, float]:
    """ "left / right" of the cameras that see the same directions -> how many degrees."""
    yaw = {name: float(np.arctan2(*view.ego_from_camera[[1, 0], 2])) for name, view in views.items()}
    around = sorted(views, key=lambda name: -yaw[name])
    pairs = {}
    for i, a in enumerate(around):
        for b in around[i + 1 :]:
            both = _STEP_DEG * float((seen[a] & seen[b]).sum())
            left, right = (a, b) if (yaw[a] - yaw[b]) % (2 * np.pi) <= np.pi else (b, a)
            if both:
                pairs[f"{left} / {right}"] = both
    return pairs


def _runs(flags: NDArray[np.bool_]) -> list[list[float]]:
    """From, to in degrees of each run of directions, which may lead over 360."""
    if flags.all() or not flags.any():
        return [[0.0, 360.0]] if flags.all() else []
    begins = np.flatnonzero(flags & ~np.roll(flags, 1))
    ends = np.flatnonzero(flags & ~np.roll(flags, -1))
    ends = ends if ends[0] >= begins[0] else np.roll(ends, -1)
    return [[float(a * _STEP_DEG), float((b + 1) * _STEP_DEG)] for a, b in zip(begins, ends)]


def _wrong(name: str, view: CameraView, facts: dict[str, Any]) -> list[str]:
    out = []
    height = facts["position_m"][2]
    if not _HEIGHT_M[0] <= height <= _HEIGHT_M[1]:
        out.append(f"stands {height:.2f} m over the ground: is the EGO origin on the ground?")
    if abs(facts["roll_deg"]) > _MAX_ROLL_DEG:
        out.append(f"is rolled by {facts['roll_deg']:.0f} degrees: check its pose")
    if facts["pitch_deg"] > _MAX_PITCH_DEG:
        out.append(f"looks {facts['pitch_deg']:.0f} degrees up: check its pose")
    out += _wrong_name(name, facts["yaw_deg"])
    camera = view.camera
    off = np.abs(camera.intrinsics[:2, 2] / [camera.width_px, camera.height_px] - 0.5)
    if (off > _OFF_CENTRE).any():
        out.append(
            f"principal point {facts['principal_point_px']} is far from the middle of {camera.width_px} x "
            f"{camera.height_px} pixels: are intrinsics those of this image size?"
        )
    ratio = abs(camera.intrinsics[0, 0]) / camera.intrinsics[1, 1]
    if abs(ratio - 1) > _UNEQUAL:
        out.append(f"focal lengths {facts['focal_px']} differ: was the image resized in one direction?")
    if camera.lens is None and max(facts["field_of_view_deg"]) > _MAX_PINHOLE_DEG:
        out.append(
            f"a pinhole with a field of view of {max(facts['field_of_view_deg']):.0f} degrees: is a lens missing?"
        )
    return [f"camera {name}: {text}" for text in out]


def _wrong_name(name: str, yaw_deg: float) -> list[str]:
    """Where the name says another side than the optical axis."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    side = np.sin(np.radians(yaw_deg))
    out = [
        f"its name says {word}, but it looks to the {'right' if sign > 0 else 'left'} (yaw {yaw_deg:.0f} degrees)"
        for word, sign in _SIDES.items()
        if word in words and not words & (_SIDES.keys() - {word}) and side * sign < -0.2
    ]
    if words & {"front", "forward"} and abs(yaw_deg) > 120:
        out.append(f"its name says front, but it looks back (yaw {yaw_deg:.0f} degrees)")
    if words & {"back", "rear"} and abs(yaw_deg) < 60:
        out.append(f"its name says back, but it looks ahead (yaw {yaw_deg:.0f} degrees)")
    return out


def _degrees(angle_rad: float) -> float:
    return round(float(np.degrees(angle_rad)), 2) or 0.0  # never -0
