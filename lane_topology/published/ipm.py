"""BEV map by inverse perspective mapping: image features sampled at the points of stacked horizontal planes.

The view transformer of OpenLane-V2's small baseline (R18), keys ``img_view_transformer.``. Its shapes follow from the
published keys; no recorded numbers exist for it, so the order of its input channels (plane by plane: features, then
the point's coordinates) is not verified against published weights.

Shapes: B batch, N cameras, C channels, P planes, num_y x num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...bev.map.encoder import project_to_images
from ...core.registries import MODELS


@MODELS.register_module()
class IpmViewTransformer(nn.Module):
    """channels: C, in and out; point_range: (x_min, y_min, z_min, x_max, y_max, z_max) metres of the EGO frame;
    bev_size: (num_y, num_x); num_planes: P heights, both ends of the range included.
    """

    def __init__(
        self,
        channels: int = 128,
        point_range: Sequence[float] = (-50.0, -25.0, -3.0, 50.0, 25.0, 2.0),
        bev_size: tuple[int, int] = (50, 100),
        num_planes: int = 11,
    ) -> None:
        super().__init__()
        x_min, y_min, z_min, x_max, y_max, z_max = map(float, point_range)
        num_y, num_x = bev_size
        x = x_min + (torch.arange(num_x) + 0.5) * (x_max - x_min) / num_x
        y = y_min + (torch.arange(num_y) + 0.5) * (y_max - y_min) / num_y
        z = torch.linspace(z_min, z_max, num_planes)
        zyx = torch.meshgrid(z, y, x, indexing="ij")
        self.bev_planes = nn.Parameter(torch.stack(zyx[::-1], -1), requires_grad=False)  # [P, num_y, num_x, 3]
        self.outconvs = nn.Conv2d((channels + 3) * num_planes, channels, 3, padding=1)

    def forward(
        self, maps: Tensor, image_from_ego: Tensor, image_size_px: Tensor, padded_size: tuple[int, int]
    ) -> Tensor:
        """[B, C, num_y, num_x] from maps [B, N, C, h, w]; a point's features are the mean over the cameras that see it.

        image_from_ego [B, N, 4, 4]; image_size_px [B, N, 2] (height, width) inside padded_size.
        """
        batch, num_cams, channels = maps.shape[:3]
        planes, num_y, num_x, _ = self.bev_planes.shape
        points = self.bev_planes.flatten(1, 2)  # [P, num_y * num_x, 3]
        uv, visible = project_to_images(points, image_from_ego, padded_size, image_size_px)
        sampled = F.grid_sample(
            maps.flatten(0, 1).float(), uv.flatten(0, 1) * 2 - 1, mode="bilinear", align_corners=False
        ).unflatten(0, (batch, num_cams))  # [B, N, C, P, num_y * num_x]
        seen = visible[:, :, None].to(sampled)
        mean = (sampled * seen).sum(1) / seen.sum(1).clamp(min=1)  # [B, C, P, num_y * num_x]
        where = points.permute(2, 0, 1).expand(batch, -1, -1, -1).to(mean)
        stacked = torch.cat([mean, where], 1).transpose(1, 2)  # [B, P, C + 3, num_y * num_x]
        return self.outconvs(stacked.reshape(batch, planes * (channels + 3), num_y, num_x).to(maps.dtype))
