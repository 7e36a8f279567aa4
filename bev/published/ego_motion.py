"""Ego motion as BEVFormer v1 and the models after it apply it to the previous BEV map; their weights depend on it.

Source: BEVFormer, arXiv 2203.17270; behaviour of the release.

Shapes: B batch, T frames, N cameras, C channels, num_y x num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import rotate

from ...core.batch import Batch
from ...core.errors import ConfigError
from ...geometry import BevGrid, invert_pose


def can_bus_deltas(
    can_bus: NDArray[np.float64], scene_tokens: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A clip's CAN-bus rows [T, 18] with translation and yaw (degrees) as differences to the frame before it.

    Also gives which frames [T] have a predecessor of the same scene in the clip; for the others both deltas are 0.
    """
    out = can_bus.copy()
    has_previous = np.array([t > 0 and scene_tokens[t] == scene_tokens[t - 1] for t in range(len(can_bus))], dtype=bool)
    for columns in (slice(0, 3), slice(17, 18)):
        difference = np.diff(can_bus[:, columns], axis=0, prepend=can_bus[:1, columns])
        out[:, columns] = np.where(has_previous[:, None], difference, 0)
    return out, has_previous


def ego_shift(can_bus: Tensor, grid: BevGrid) -> Tensor:
    """By which (x, y) fraction of the grid the previous map is displaced, [B, 2] float64.

    ``can_bus`` [B, 18]: [0:2] ego translation since the previous frame in metres (global axes), [-2] ego heading in
    radians. Heading and axes as upstream has them (docs/quirks.md#ego-shift-signs).
    """
    signal = can_bus.double()
    distance_m = signal[:, :2].norm(dim=1)
    angle = signal[:, -2] - torch.atan2(signal[:, 1], signal[:, 0])
    x = distance_m * angle.sin() / grid.cell_x_m / grid.num_x
    y = distance_m * angle.cos() / grid.cell_y_m / grid.num_y
    return torch.stack([x, y], 1)


def rotate_bev(bev: Tensor, angle_deg: Tensor, centre: tuple[int, int]) -> Tensor:
    """Rotates maps [B, C, num_y, num_x] by ``angle_deg`` [B] (counter-clockwise as an image) about cell ``centre``.

    Nearest cell, zeros from outside. The published configs rotate about cell (100, 100) whatever the grid
    (docs/quirks.md#rotation-about-cell-100). Unlike upstream the input is left as it is.
    """
    rotated = [rotate(m, float(angle), center=list(centre)) for m, angle in zip(bev, angle_deg.tolist())]
    return torch.stack(rotated)


def images_from_ego(batch: Batch) -> Tensor:
    """[B, T, N, 4, 4]: points of each frame's OWN EGO frame to pixels of its images.

    Raises ConfigError where a clip of several frames lacks their ego poses, and for cameras with a lens.
    """
    _check_pinholes(batch)
    bev_from_ego = invert_pose(batch.ego_from_bev.double())[:, None]  # [B, 1, 4, 4]
    if len(batch.frame_offsets) > 1:
        if batch.global_from_ego is None:
            raise ConfigError(
                f"samples {', '.join(batch.tokens)}: the batch lacks global_from_ego, the ego poses of its past frames"
            )
        now = batch.global_from_ego[:, batch.current, None].double()
        bev_from_ego = bev_from_ego @ (invert_pose(now) @ batch.global_from_ego.double())
    return (batch.image_from_bev.double() @ bev_from_ego[:, :, None]).to(batch.image_from_bev.dtype)


def images_from_own_bev(batch: Batch) -> Tensor:
    """[B, T, N, 4, 4]: points of each frame's OWN BEV frame to pixels of its images. Raises as images_from_ego."""
    if len(batch.frame_offsets) == 1:
        _check_pinholes(batch)
        return batch.image_from_bev
    return (images_from_ego(batch).double() @ batch.ego_from_bev.double()[:, None, None]).to(batch.image_from_bev.dtype)


def _check_pinholes(batch: Batch) -> None:
    if batch.lenses is not None:
        raise ConfigError(
            f"samples {', '.join(batch.tokens)}: a camera has a lens, and published models project by a matrix alone: "
            "give the dataset image settings with lens='undistort'"
        )
