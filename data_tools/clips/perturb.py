"""Wrong calibration on purpose: a model that uses geometry must get worse, one that memorised will not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ...core.errors import ConfigError
from ...core.frames import Frame
from ...geometry import pose, rotation_z


def perturb_calibration(frames: Sequence[Frame], how: str) -> list[Frame]:
    """The same images and labels with wrong camera poses.

    how: ``shuffle`` gives each camera the pose of the next one; ``yaw:DEG`` turns all cameras about the LiDAR's
    vertical axis by that many degrees. Intrinsics stay. Raises ConfigError for anything else.
    """
    if how == "shuffle":
        return [_shuffled(frame) for frame in frames]
    kind, _, degrees = how.partition(":")
    try:
        turn = pose(rotation_z(math.radians(float(degrees))), [0.0, 0.0, 0.0])
    except ValueError:
        kind = ""
    if kind != "yaw":
        raise ConfigError(f"calibration perturbation {how!r}: use 'shuffle' or 'yaw:DEGREES', for example yaw:10")
    return [
        replace(
            frame,
            cameras=tuple(
                replace(
                    view,
                    lidar_from_camera=turn @ view.lidar_from_camera,
                    global_from_camera=frame.global_from_lidar @ turn @ view.lidar_from_camera,
                )
                for view in frame.cameras
            ),
        )
        for frame in frames
    ]


def _shuffled(frame: Frame) -> Frame:
    others = frame.cameras[1:] + frame.cameras[:1]
    cameras = tuple(
        replace(view, lidar_from_camera=other.lidar_from_camera, global_from_camera=other.global_from_camera)
        for view, other in zip(frame.cameras, others)
    )
    return replace(frame, cameras=cameras)
