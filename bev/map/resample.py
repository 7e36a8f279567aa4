"""A BEV map on another grid or in another frame: all interpolation of BEV maps.

Shapes: B batch, C channels; maps are [B, C, num_y, num_x] as described in geometry.BevGrid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.batch import BevFeatures
from ...geometry import BevGrid


def sample_bev(maps: Tensor, source: BevGrid, target: BevGrid, source_from_target: Tensor) -> Tensor:
    """Maps [B, C, num_y, num_x] of ``source`` at the cell centres of ``target``: [B, C, target.num_y, target.num_x].

    source_from_target: [B, 2, 3], metres: the linear map and shift of ground points. Bilinear, zero outside the source
    grid; coordinates in float32 also under autocast.
    """
    to_metres = dict(dtype=torch.float32, device=maps.device)
    centres = torch.tensor(target.cell_centres(), **to_metres)  # [num_y, num_x, 2]
    half = torch.tensor([source.x_max - source.x_min, source.y_max - source.y_min], **to_metres) / 2
    middle = torch.tensor([source.x_max + source.x_min, source.y_max + source.y_min], **to_metres) / 2
    with torch.autocast(maps.device.type, enabled=False):
        linear, shift = source_from_target[:, None, None].float().split([2, 1], -1)
        points = (linear * centres[None, ..., None, :]).sum(-1) + shift[..., 0]  # [B, num_y, num_x, 2]
        sampled = F.grid_sample(maps.float(), (points - middle) / half, mode="bilinear", align_corners=False)
    return sampled.to(maps.dtype)


def resample_bev(features: BevFeatures, target: BevGrid, ego_from_bev: Tensor) -> Tensor:
    """The map of the BEV frame on a grid of the EGO frame: [B, C, target.num_y, target.num_x].

    ego_from_bev: [B, 4, 4], points. Roll and pitch between the two frames are taken as none (they are below a degree
    on nuScenes), so that a ground point of one map is a ground point of the other. Zero where the map does not reach.
    """
    x_axis = ego_from_bev[:, :2, 0] / ego_from_bev[:, :2, 0].norm(dim=1, keepdim=True)  # [B, 2]
    # lidar from ego: the transposed rotation about the vertical
    linear = torch.stack([x_axis, torch.stack([-x_axis[:, 1], x_axis[:, 0]], 1)], 1)  # [B, 2, 2]
    shift = -(linear @ ego_from_bev[:, :2, 3:])  # [B, 2, 1]
    return sample_bev(features.bev, features.grid, target, torch.cat([linear, shift], 2))
