"""Drives, their rates and gaps, the car's way, and when cameras fire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core.frames import Frame

_GAP = 1.5
"""Times the usual time between keyframes of a drive: longer ones are counted as gaps."""
_FEWEST = 4
"""Keyframes of a drive that a statement about it needs."""
_STILL_M = 0.01


def survey_times(frames: Sequence[Frame]) -> tuple[dict[str, Any], list[str]]:
    """Numbers, and what looks wrong."""
    drives: dict[str, list[Frame]] = {}
    for frame in frames:
        drives.setdefault(frame.scene_token, []).append(frame)
    problems: list[str] = []
    gaps, periods, speeds, lengths = [], [], [], []
    for members in drives.values():
        members.sort(key=lambda frame: frame.timestamp_us)
        steps_s = np.diff([frame.timestamp_us for frame in members]) * 1e-6
        if not len(steps_s):
            continue
        way = np.stack([frame.global_from_ego[:3, 3] for frame in members])
        moved_m = np.linalg.norm(np.diff(way, axis=0), axis=1)
        usual = float(np.median(steps_s))
        periods.append(usual)
        gaps += [(float(s), members[i]) for i, s in enumerate(steps_s) if s > _GAP * usual]
        speeds += (moved_m / np.maximum(steps_s, 1e-6)).tolist()
        if len(members) >= _FEWEST:
            lengths.append(float(moved_m.sum()))
    if lengths and max(lengths) < _STILL_M:
        problems.append(
            "the car never moves: if it drove, global_from_ego is missing, and models over several keyframes learn "
            "nothing from the past"
        )
    longest = max(gaps, key=lambda gap: gap[0], default=None)
    offsets, missing = _cameras(frames)
    if periods:
        late = {name: ms for name, (_, ms) in offsets.items() if ms > 500 * float(np.median(periods))}
        problems += [
            f"camera {name} fires up to {ms:.0f} ms from its keyframe, more than half the time between keyframes: "
            "its images belong to others, or clocks differ"
            for name, ms in late.items()
        ]
    numbers = {
        "drives": len(drives),
        "keyframes": len(frames),
        "keyframes_per_drive": [min(map(len, drives.values())), max(map(len, drives.values()))] if drives else [],
        "rate_hz": round(1 / float(np.median(periods)), 3) if periods else None,
        "gaps": len(gaps),
        "longest_gap_s": None if longest is None else round(longest[0], 3),
        "longest_gap_after": None if longest is None else longest[1].token,
        "speed_mps": {"median": _rounded(np.median(speeds)), "max": _rounded(max(speeds))} if speeds else None,
        "longest_drive_m": round(max(lengths), 1) if lengths else None,
        "camera_offset_ms": {name: {"median": a, "max": b} for name, (a, b) in offsets.items()},
        "keyframes_without_camera": missing,
    }
    return numbers, problems


def _cameras(frames: Sequence[Frame]) -> tuple[dict[str, tuple[float, float]], dict[str, int]]:
    """Of each camera: median and largest time from its keyframe in ms; in how many keyframes it is missing."""
    times: dict[str, list[float]] = {}
    for frame in frames:
        for view in frame.cameras:
            times.setdefault(view.name, []).append(abs(view.timestamp_us - frame.timestamp_us) * 1e-3)
    offsets = {name: (_rounded(np.median(ms)), _rounded(max(ms))) for name, ms in times.items()}
    return offsets, {name: len(frames) - len(ms) for name, ms in times.items() if len(ms) < len(frames)}


def _rounded(value: Any) -> float:
    return round(float(value), 3)
