"""Wrong calibration on purpose: scores of a model that uses geometry must drop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ...core.errors import ConfigError
from ...core.frames import Frame
from ...geometry import pose, rotation_z


def perturb_calibration(frames: Sequence[Frame], how: str) -> list[Frame]:
    """The same images and labels with wrong camera poses.

    how: ``shuffle`` gives each camera the pose of the next one; ``yaw:DEG`` turns all cameras about the BEV
    frame's vertical axis by that many degrees. Intrinsics stay. Raises ConfigError for anything else.
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
                    ego_from_camera=frame.ego_from_bev @ turn @ frame.bev_from_camera(view),
                    global_from_ego=frame.global_from_ego,
                )
                for view in frame.cameras
            ),
        )
        for frame in frames
    ]


def _shuffled(frame: Frame) -> Frame:
    others = frame.cameras[1:] + frame.cameras[:1]
    cameras = tuple(
        replace(view, ego_from_camera=other.ego_from_camera, global_from_ego=other.global_from_ego)
        for view, other in zip(frame.cameras, others)
    )
    return replace(frame, cameras=cameras)
