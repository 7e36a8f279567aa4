"""Frames in their order in time, each with its neighbours in its scene."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import PurePosixPath

from ...core.frames import Frame
from ...core.once import warn_once
from ...core.physics import MAX_KEYFRAME_GAP_S

_PAUSE_US = round(MAX_KEYFRAME_GAP_S * 1e6)

SCENE_GAP_US = 1_500_000
"""mmdet3d's layout names no scenes: a pause longer than this within one drive starts a new one (keyframes: 0.5 s)."""


def link_frames(frames: list[Frame]) -> list[Frame]:
    """Frames sorted by scene and time, each with its neighbours in time within the scene.

    No links lead across a pause over MAX_KEYFRAME_GAP_S, as lists of chosen frames have them: one warning. Where most
    gaps are that long the links stay, and ``check_frames`` names the likely unit.
    """
    frames = sorted(frames, key=lambda f: f.timestamp_us)
    drives: dict[str, tuple[str, int]] = {}  # drive (log) to its current scene and last time
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scene = frame.scene_token
        if not scene:
            drive = _drive(frame)
            scene, last_us = drives.get(drive, ("", -SCENE_GAP_US))
            if not scene or frame.timestamp_us - last_us > SCENE_GAP_US:
                scene = f"{drive}@{frame.timestamp_us}"
            drives[drive] = scene, frame.timestamp_us
        scenes.setdefault(scene, []).append(frame)
    gaps = [b.timestamp_us - a.timestamp_us for members in scenes.values() for a, b in pairwise(members)]
    pauses = sum(gap > _PAUSE_US for gap in gaps)
    cut = 0 < pauses <= len(gaps) / 2
    if cut:
        warn_once(f"{pauses} of {len(gaps)} keyframes follow a pause of over {MAX_KEYFRAME_GAP_S:g} s: without history")
    out = []
    for scene, members in scenes.items():
        before = ""
        for frame, after in zip(members, [*members[1:], None]):
            pause = after is None or (cut and after.timestamp_us - frame.timestamp_us > _PAUSE_US)
            following = "" if after is None or pause else after.token
            out.append(replace(frame, scene_token=scene, prev_token=before, next_token=following))
            before = "" if pause else frame.token
    return out


def in_scene_order(frames: Iterable[Frame]) -> list[Frame]:
    """The frames scene by scene, in the order in which scenes first occur, each in the order of time."""
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scenes.setdefault(frame.scene_token, []).append(frame)
    return [frame for own in scenes.values() for frame in sorted(own, key=lambda frame: frame.timestamp_us)]


def _drive(frame: Frame) -> str:
    """Name of the recording as nuScenes' files begin with it, '' where file names do not have that form."""
    path = frame.lidar_path or (frame.cameras[0].image_path if frame.cameras else "")
    drive, separator, _ = PurePosixPath(path).name.partition("__")
    return drive if separator else ""
