"""Voxels from the shared BEV map: convolutions on an EGO grid, then one linear layer that unfolds each column.

The height is in the channels ("channel to height", FlashOcc, arXiv 2311.12058). The trunk runs on a coarse grid; its
features are interpolated to the columns of the voxel grid and unfolded there. Training unfolds a sample of the columns
only, which is what makes it quick.

Shapes: B batch, C channels, X, Y, Z voxels, n columns, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..bev.resample import resample_bev, sample_bev
from ..errors import ConfigError
from ..geometry import OCC3D_GRID, BevGrid
from ..structures import Batch, BevFeatures, OccupancyGrid, OccupancyTargets
from . import losses

GRID = OCC3D_GRID
MASKS = ("camera", "lidar", "none")
TERMS = ("cross_entropy", "lovasz", "semantic_affinity", "geometric_affinity")


@MODELS.register_module()
class OccupancyHead(nn.Module):
    """A task head of bev.perception on the Occ3D grid (200 x 200 x 16 voxels of 0.4 m).

    in_channels: C of the BEV map. channels, num_blocks: width and depth of the trunk.
    coarse_cells: cells per side of the trunk's grid, over the voxel grid's 80 m.
    num_classes: K, ``free`` among them.
    mask: voxels that count in the losses: those the cameras see, those a LiDAR ray met, or all.
    loss_weights: factor of each term that is used, of TERMS.
    class_weights: K factors of the cross entropy, or None.
    columns_per_sample: columns unfolded in training, None for all; half of them are drawn from those in which
        something stands, as far as there are any.

    Raises ConfigError for a mask or term that does not exist, or weights of another length than K.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 128,
        num_blocks: int = 2,
        coarse_cells: int = 200,
        num_classes: int = 18,
        free: int = 17,
        mask: str = "camera",
        loss_weights: Mapping[str, float] | None = None,
        class_weights: Sequence[float] | None = None,
        columns_per_sample: int | None = None,
    ) -> None:
        super().__init__()
        self.loss_weights = dict({"cross_entropy": 1.0} if loss_weights is None else loss_weights)
        if unknown := set(self.loss_weights) - set(TERMS):
            raise ConfigError(f"loss_weights: {sorted(unknown)[0]!r} is no loss; choose from {', '.join(TERMS)}")
        if mask not in MASKS:
            raise ConfigError(f"mask must be one of {', '.join(MASKS)}, got {mask!r}")
        if class_weights is not None and len(class_weights) != num_classes:
            raise ConfigError(f"{len(class_weights)} class_weights for {num_classes} classes")
        self.mask, self.free, self.num_classes = mask, free, num_classes
        self.columns_per_sample = columns_per_sample
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.coarse = BevGrid(GRID.x_min, GRID.y_min, GRID.x_max, GRID.y_max, coarse_cells, coarse_cells)
        self.columns = BevGrid(GRID.x_min, GRID.y_min, GRID.x_max, GRID.y_max, GRID.num_x, GRID.num_y)
        layers: list[nn.Module] = []
        for i in range(num_blocks):
            layers += [
                nn.Conv2d(in_channels if i == 0 else channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        self.trunk = nn.Sequential(*layers)
        width = channels if num_blocks else in_channels
        # ReLU where FlashOcc has Softplus, which took a third of a prediction's time on a CPU
        self.unfold = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(inplace=True), nn.Linear(2 * width, GRID.num_z * num_classes)
        )

    def forward(self, features: BevFeatures, levels: Sequence[Tensor], batch: Batch) -> Tensor:
        """Trunk features [B, C, coarse, coarse] of the EGO frame; ``levels`` are not used."""
        return self.trunk(resample_bev(features, self.coarse, batch.ego_from_lidar))

    def column_logits(self, columns: Tensor) -> Tensor:
        """Logits [n, Z, K] of column features [n, C]."""
        return self.unfold(columns).view(-1, GRID.num_z, self.num_classes)

    # ---- training ------------------------------------------------------------------------------------------------

    def loss(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean over the labelled samples of each term; zeros that keep the graph where none is labelled."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.loss_weights}
        for features, target in zip(outputs, batch.occupancy):
            if target is not None:
                for name, value in self._terms(features, target).items():
                    found[name].append(value)
        nothing = outputs.sum() * 0.0 + sum(p.sum() for p in self.unfold.parameters()) * 0.0
        return {
            f"loss_occ_{name}": weight * (torch.stack(found[name]).mean() if found[name] else nothing)
            for name, weight in self.loss_weights.items()
        }

    def _counts(self, target: OccupancyTargets) -> Tensor:
        """[X, Y, Z] bool: the voxels that count."""
        if self.mask == "none":
            return torch.ones_like(target.mask_camera)
        return target.mask_camera if self.mask == "camera" else target.mask_lidar

    def _terms(self, features: Tensor, target: OccupancyTargets) -> dict[str, Tensor]:
        counts = self._counts(target)
        ix, iy = self._chosen_columns(counts, target.semantics)
        # centres of the columns in the trunk's grid, -1..1 over the common range
        where = torch.stack([(2 * ix + 1) / GRID.num_x - 1, (2 * iy + 1) / GRID.num_y - 1], -1)  # [n, 2] (x, y)
        with torch.autocast(features.device.type, enabled=False):
            columns = F.grid_sample(features[None].float(), where.float()[None, None], align_corners=False)
        logits = self.column_logits(columns[0, :, 0].T)  # [n, Z, K]
        chosen = counts[ix, iy]  # [n, Z]
        logits, truth = logits[chosen].float(), target.semantics[ix, iy][chosen].long()
        return self._voxel_terms(logits, truth)

    def _voxel_terms(self, logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """The configured terms of logits [V, K] against classes [V], without their weights."""
        out = {}
        probabilities = logits.softmax(-1) if set(self.loss_weights) - {"cross_entropy"} else None
        for name in self.loss_weights:
            if name == "cross_entropy":
                out[name] = losses.cross_entropy(logits, truth, self.class_weights)
            elif name == "lovasz":
                out[name] = losses.lovasz_softmax(probabilities, truth)
            elif name == "semantic_affinity":
                out[name] = losses.scene_class_affinity(probabilities, truth)
            else:
                out[name] = losses.geometric_affinity(probabilities, truth, self.free)
        return out

    def _chosen_columns(self, counts: Tensor, semantics: Tensor) -> tuple[Tensor, Tensor]:
        """(ix, iy) [n] of the columns to learn from, those with a voxel that counts."""
        usable = counts.any(-1)
        if self.columns_per_sample is None:
            return tuple(usable.nonzero().T)
        # more than one kind of occupied voxel above one another, or anything above the ground's layer: something stands
        occupied = (semantics != self.free) & counts
        standing = (occupied.sum(-1) > 1).flatten()
        usable = usable.flatten()
        things = self._draw(standing & usable, self.columns_per_sample // 2)
        rest = self._draw(usable, self.columns_per_sample - len(things))
        column = torch.cat([things, rest])
        return column // GRID.num_y, column % GRID.num_y

    @staticmethod
    def _draw(allowed: Tensor, count: int) -> Tensor:
        candidates = allowed.nonzero()[:, 0]
        return candidates[torch.randperm(len(candidates), device=allowed.device)[:count]]

    # ---- inference -----------------------------------------------------------------------------------------------

    def _unfolded(self, outputs: Tensor) -> Tensor:
        """[B, X, Y, C]: trunk features at the voxel grid's columns."""
        if self.coarse != self.columns:
            same = torch.eye(2, 3, device=outputs.device).expand(len(outputs), 2, 3)
            outputs = sample_bev(outputs, self.coarse, self.columns, same)
        return outputs.permute(0, 3, 2, 1)

    def logits(self, outputs: Tensor) -> Tensor:
        """All logits [B, X, Y, Z, K] of trunk features."""
        columns = self._unfolded(outputs)
        return self.column_logits(columns.flatten(0, 2)).unflatten(0, columns.shape[:3])

    def predict(self, outputs: Tensor, batch: Batch) -> list[OccupancyGrid]:
        """The class of every voxel, one grid per sample; a few rows at a time, as all logits are 46 MB."""
        found = []
        for features, token in zip(outputs, batch.tokens):
            rows = self._unfolded(features[None])[0].split(20)
            # max rather than argmax, which takes twice as long
            classes = [self.column_logits(slab.flatten(0, 1)).max(-1).indices.to(torch.uint8) for slab in rows]
            found.append(OccupancyGrid(token, torch.cat(classes).view(GRID.shape).cpu().numpy()))
        return found
