"""Depth of a clip's images as labels: read, moved into the network's input, and sorted into its cells.

Until the batch is made, labels stay depth points (labels/depth.py) in pixels of the network's input: crops, other sizes
and mirrors move points exactly, cells they would cut.

Shapes: N cameras, m points of an image, h x w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.errors import ConfigError, DataError
from ...core.frames import CameraView, Frame
from ...core.labels import DepthTargets
from ...core.once import warn_once
from ...geometry import invert_pose
from ..labels.depth import image_sizes, points_of_cells, points_of_sweep, read_depth
from ..readers.lidar import read_lidar
from .transforms import ImageDraw, ImagePlacement, ImageSettings

DepthSource = bool | Literal["lidar"]
"""True: the file of depth where a frame has one, else its LiDAR sweep; "lidar": the sweep always; False: no labels."""
DepthPoints = list[NDArray[np.float32] | None]
"""N x [m, 4] rows (u, v, nearest_m, farthest_m) in pixels of the network's (un-flipped) input; None: no image."""


def check_depth_source(source: DepthSource, frames: Sequence[Frame]) -> None:
    """Raises ConfigError for another word, and where no frame has what labels of depth are made of."""
    if source not in (False, True, "lidar"):
        raise ConfigError(f"depth {source!r}: choose True (a file of depth, or else the LiDAR), 'lidar' or False")
    if source and not any(frame.lidar_path or (frame.depth_path and source is True) for frame in frames):
        raise ConfigError(
            f"depth={source!r}, but none of {len(frames)} frames (first: sample {frames[0].token}) has a "
            + ("LiDAR file" if source == "lidar" else "file of depth or a LiDAR file")
            + ": leave depth out, or read a set that has them (drivestack synthesize --labels occupancy lanes depth)"
        )


def read_depth_points(
    frame: Frame, views: Sequence[CameraView | None], settings: ImageSettings, draw: ImageDraw, source: DepthSource
) -> DepthPoints | None:
    """Depth points of a frame's images as network input, None where the frame has no labels of depth.

    views: N, as the network meets them: virtual where images are re-projected. Raises DataError, naming sample and
    file, for labels that cannot be used.
    """
    if source is True and frame.depth_path:
        return _of_file(frame, views, settings, draw)
    if not source or not frame.lidar_path:
        return None
    sweep = read_lidar(frame)
    if not len(sweep):
        warn_once(f"LiDAR file {frame.lidar_path} is not there, or empty: its sample has no labels of depth")
        return None
    points: DepthPoints = []
    for view in views:
        if view is None:
            points.append(None)
            continue
        camera = settings.placement(view.name, view.camera, draw.height_px).camera(view.camera)
        points.append(points_of_sweep(sweep, invert_pose(frame.bev_from_camera(view)), camera))
    return points


def _of_file(frame: Frame, views: Sequence[CameraView | None], settings: ImageSettings, draw: ImageDraw) -> DepthPoints:
    real = {view.name: view for view in frame.cameras}
    wanted = tuple(real[view.name] for view in views if view is not None)
    try:
        cells = read_depth(frame.depth_path, image_sizes(wanted))
    except DataError as error:
        raise DataError(f"sample {frame.token}: {error}") from error
    points: DepthPoints = []
    for view in views:
        if view is None:
            points.append(None)
            continue
        camera = real[view.name].camera
        own = points_of_cells(cells[view.name], camera)
        if settings.rectified(camera) is not None:  # a virtual camera looks the same way: depths stay
            uv, _ = view.camera.project(camera.unproject(own[:, :2]))
            own = np.concatenate([uv.astype(np.float32), own[:, 2:]], 1)
        points.append(_placed(own, settings.placement(view.name, view.camera, draw.height_px)))
    return points


def _placed(points: NDArray[np.float32], placement: ImagePlacement) -> NDArray[np.float32]:
    """Depth points [m, 4] of a whole image, in its crop as network input; those outside are left out."""
    uv = (points[:, :2] - [placement.left_px, placement.top_px]) * placement.scale_xy
    with np.errstate(invalid="ignore"):  # NaN: what the virtual camera cannot see
        inside = ((uv > -0.5) & (uv < [placement.width_px, placement.height_px])).all(1)
    return np.concatenate([uv, points[:, 2:]], 1)[inside].astype(np.float32)


def mirror_depth(points: DepthPoints, widths_px: Sequence[int | None]) -> DepthPoints:
    """Depth points of images that are mirrored whole (mirror.py): with their pixels, column c to width - 1 - c."""
    mirrored: DepthPoints = []
    for own, width_px in zip(points, widths_px):
        if own is None or width_px is None:
            mirrored.append(None)
            continue
        mirrored.append(np.concatenate([np.float32(width_px - 1) - own[:, :1], own[:, 1:]], 1))
    return mirrored


def depth_targets(
    points: DepthPoints, sizes_px: Sequence[tuple[int, int]], height_px: int, width_px: int
) -> DepthTargets:
    """The cells of N images from their depth points.

    sizes_px: N x (height, width) of the images as network input; height_px, width_px: of the padded batch. Points
    beside their image are left out; one at (u, v) lies in the cell of its nearest pixel.
    """
    stride = DepthTargets.STRIDE_PX
    h, w = -(-height_px // stride), -(-width_px // stride)
    nearest = np.full((len(points), h * w), np.inf, np.float32)
    farthest = np.zeros((len(points), h * w), np.float32)
    for n, (own, size) in enumerate(zip(points, sizes_px)):
        if own is None:
            continue
        column, row = np.floor(own[:, :2] + 0.5).astype(np.int64).T
        inside = (column >= 0) & (row >= 0) & (column < size[1]) & (row < size[0])
        cell = (row // stride * w + column // stride)[inside]
        np.minimum.at(nearest[n], cell, own[inside, 2])
        np.maximum.at(farthest[n], cell, own[inside, 3])
    shape = len(points), h, w
    return DepthTargets(torch.from_numpy(nearest.reshape(shape)), torch.from_numpy(farthest.reshape(shape)))
