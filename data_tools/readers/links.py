"""Frames in their order in time, each with its neighbours in its scene."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from ...core.frames import Frame

SCENE_GAP_US = 1_500_000
"""mmdet3d's layout names no scenes: a pause longer than this within one drive starts a new one (keyframes: 0.5 s)."""


def link_frames(frames: list[Frame]) -> list[Frame]:
    """Frames sorted by scene and time, each with its neighbours in time within the scene."""
    frames = sorted(frames, key=lambda f: f.timestamp_us)
    drives: dict[str, tuple[str, int]] = {}  # drive (log) to its current scene and last time
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scene = frame.scene_token
        if not scene:
            drive = PurePosixPath(frame.lidar_path).name.split("__")[0]
            scene, last_us = drives.get(drive, ("", -SCENE_GAP_US))
            if frame.timestamp_us - last_us > SCENE_GAP_US:
                scene = f"{drive}@{frame.timestamp_us}"
            drives[drive] = scene, frame.timestamp_us
        scenes.setdefault(scene, []).append(frame)
    out = []
    for scene, members in scenes.items():
        tokens = ["", *(frame.token for frame in members), ""]
        for i, frame in enumerate(members):
            out.append(replace(frame, scene_token=scene, prev_token=tokens[i], next_token=tokens[i + 2]))
    return out
