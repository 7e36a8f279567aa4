"""Voxels from the shared BEV map: convolutions on an EGO grid, then one linear layer that unfolds each column.

The height is in the channels ("channel to height", FlashOcc, arXiv 2311.12058). The trunk runs on a coarse grid; its
features are interpolated to the columns of the voxel grid and unfolded there. Training unfolds a sample of the columns
only, which is what makes it quick.

Shapes: B batch, C channels, X, Y, Z voxels, n columns, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bev.boxes.losses import mean_over_ranks
from ..bev.map.resample import resample_bev, sample_bev
from ..core.answers import OccupancyGrid
from ..core.batch import Batch, BevFeatures
from ..core.errors import ConfigError
from ..core.finite import check_answer
from ..core.labels import OccupancyTargets
from ..core.once import warn_once
from ..core.registries import MODELS
from ..geometry import OCC3D_GRID, BevGrid
from .losses import VoxelLoss
from .rays import RayLoss

GRID = OCC3D_GRID


@MODELS.register_module()
class OccupancyHead(nn.Module):
    """A task head of bev.bevformer_v2.BEVFormerV2 on the Occ3D grid (200 x 200 x 16 voxels of 0.4 m).

    in_channels: C of the BEV map. channels, num_blocks: width and depth of the trunk.
    coarse_cells: cells per side of the trunk's grid, over the voxel grid's 80 m.
    num_classes: K, ``free`` among them.
    mask, loss_weights, class_weights, hidden_weight, class_frequency: what is learned from which voxels, see
        losses.VoxelLoss.
    columns_per_sample: columns unfolded in training, None for all; half of them are drawn from those in which
        something stands, as far as there are any. With mask "mixed" a quarter as many are drawn for hidden voxels.
    column_weights: "frequency": columns are drawn with the weight f^-0.25, f the ``class_frequency`` of their rarest
        class that counts (ALOcc, arXiv 2411.07725, draws voxels so); None: evenly.
    ray_loss: settings of rays.RayLoss, None for none.
    free_bias: added to the logit of free in predictions and along rays, not where sampled columns are learned. These
        show standing things more often than the world does, and a head that learns from them finds too many (logit
        adjustment, arXiv 2007.07314).

    Raises ConfigError as VoxelLoss and RayLoss, and for column_weights with class_weights: they would multiply.
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
        class_weights: Sequence[float] | str | None = None,
        columns_per_sample: int | None = None,
        hidden_weight: float = 0.2,
        class_frequency: Sequence[int] | None = None,
        column_weights: str | None = None,
        ray_loss: RayLoss | Mapping[str, Any] | None = None,
        free_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.voxel_loss = VoxelLoss(
            num_classes, free, mask, loss_weights, class_weights, hidden_weight, class_frequency
        )
        self.ray_loss = ray_loss if ray_loss is None or isinstance(ray_loss, RayLoss) else RayLoss(**ray_loss)
        if column_weights not in (None, "frequency"):
            raise ConfigError(f"column_weights: {column_weights!r} is no rule; write 'frequency', or None")
        if column_weights and class_weights is not None:
            raise ConfigError("column_weights and class_weights would multiply: give one of them")
        rarity, frequency = None, self.voxel_loss.class_frequency
        if column_weights and frequency is not None:
            rarity = torch.tensor(frequency, dtype=torch.float64).clamp(min=1).pow(-0.25).float()
        self.column_weights = column_weights
        self.register_buffer("rarity", rarity, persistent=False)
        self.free, self.num_classes, self.free_bias = free, num_classes, free_bias
        self.columns_per_sample = columns_per_sample
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

    def pyramid_views(self, batch: Batch) -> list[tuple[int, int]]:
        """(level, camera) of the pyramid maps that ``forward`` reads: none."""
        return []

    def forward(self, features: BevFeatures, levels: Sequence[Tensor], batch: Batch) -> Tensor:
        """Trunk features [B, C, coarse, coarse] of the EGO frame; ``levels`` are not used."""
        return self.trunk(resample_bev(features, self.coarse, batch.ego_from_bev))

    def column_logits(self, columns: Tensor) -> Tensor:
        """Logits [n, Z, K] of column features [n, C], as they are learned from sampled columns."""
        return self.unfold(columns).view(-1, GRID.num_z, self.num_classes)

    def _for_the_world(self, logits: Tensor) -> Tensor:
        """Logits [..., K] of voxels as often as they are in the world; the argument may be changed."""
        if self.free_bias:
            logits[..., self.free] += self.free_bias
        return logits

    # ---- training ------------------------------------------------------------------------------------------------

    def loss(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean over all ranks' labelled samples of each term; zeros that keep the graph where none is labelled."""
        nothing = outputs.sum() * 0.0 + sum(p.sum() for p in self.unfold.parameters()) * 0.0
        labelled = [(b, target) for b, target in enumerate(batch.occupancy) if target is not None]
        learned = [self._learned_voxels(outputs[b], target) for b, target in labelled]
        found = self.voxel_loss(learned, nothing)
        if self.voxel_loss.has_hidden:
            hidden = [self._learned_voxels(outputs[b], target, hidden=True) for b, target in labelled]
            found |= self.voxel_loss(hidden, nothing, hidden=True)
        if self.ray_loss is not None:
            drawn = [self._ray_term(outputs[b], target, batch.ego_from_bev[b]) for b, target in labelled]
            terms = [term for term in drawn if term is not None]
            count = mean_over_ranks(torch.tensor(float(len(terms)), device=nothing.device))
            found["loss_occ_rays"] = torch.stack(terms).sum() / count if terms else nothing
        return found

    def _learned_voxels(
        self, features: Tensor, target: OccupancyTargets, hidden: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Logits [V, K] and classes [V]."""
        counts = self.voxel_loss.hidden(target) if hidden else self.voxel_loss.counts(target)
        budget = self.columns_per_sample
        ix, iy = self._chosen_columns(counts, target.semantics, budget // 4 if hidden and budget else budget)
        chosen = counts[ix, iy]  # [n, Z]
        return self.column_logits(self._columns_at(features, ix, iy))[chosen], target.semantics[ix, iy][chosen]

    def _columns_at(self, features: Tensor, ix: Tensor, iy: Tensor) -> Tensor:
        """[n, C]: features [C, coarse, coarse] at the middles of columns [n] of the voxel grid."""
        # -1..1 over the common range
        where = torch.stack([(2 * ix + 1) / GRID.num_x - 1, (2 * iy + 1) / GRID.num_y - 1], -1)  # [n, 2] (x, y)
        with torch.autocast(features.device.type, enabled=False):
            columns = F.grid_sample(features[None].float(), where.float()[None, None], align_corners=False)
        return columns[0, :, 0].T

    def _ray_term(self, features: Tensor, target: OccupancyTargets, ego_from_bev: Tensor) -> Tensor | None:
        """The weighted ray loss of one sample, None without a ray that hits something."""
        assert self.ray_loss is not None
        rays = self.ray_loss.draw(target.semantics, target.mask_lidar, self.free, ego_from_bev)
        if not len(rays.classes):
            x, y, z = ego_from_bev[:3, 3].tolist()
            warn_once(
                f"ray_loss: in a sample no ray from ({x:.1f}, {y:.1f}, {z:.1f}) m of the ego frame meets an observed "
                "surface, so it teaches nothing there: is the LiDAR at that place (ego_from_bev)?"
            )
            return None
        return self.ray_loss(rays, lambda voxels: self._log_probabilities(features, voxels), self.free)

    def _log_probabilities(self, features: Tensor, voxels: Tensor) -> Tensor:
        """[V, K] float32 of flat voxel indices [V], lowest layer first: of each column only the voxel that is asked for
        is unfolded."""
        column, iz = voxels // GRID.num_z, voxels % GRID.num_z
        first, activation, last = self.unfold
        weights, biases = (own.unflatten(0, (GRID.num_z, -1)) for own in (last.weight, last.bias))
        # float32: sizes differ each time, and oneDNN prepares its bfloat16 products anew for each size
        with torch.autocast(features.device.type, enabled=False):
            hidden = activation(first(self._columns_at(features, column // GRID.num_y, column % GRID.num_y)))
            layers = hidden.split(iz.bincount(minlength=GRID.num_z).tolist())
            logits = torch.cat([F.linear(*parts) for parts in zip(layers, weights, biases)])
        return self._for_the_world(logits).log_softmax(-1)

    def _chosen_columns(self, counts: Tensor, semantics: Tensor, budget: int | None) -> tuple[Tensor, Tensor]:
        """(ix, iy) [n] of the columns to learn from, those with a voxel that counts."""
        usable = counts.any(-1)
        if budget is None:
            return tuple(usable.nonzero().T)
        occupied = (semantics != self.free) & counts
        standing = (occupied.sum(-1) > 1).flatten()  # more than the ground
        usable = usable.flatten()
        weights = None
        if self.column_weights:
            self.voxel_loss.demand_frequency()
            weights = torch.where(counts, self.rarity[semantics.long()], 0.0).amax(-1).flatten()
        things = self._draw(standing & usable, budget // 2, weights)
        rest = self._draw(usable, budget - len(things), weights)
        column = torch.cat([things, rest])
        return column // GRID.num_y, column % GRID.num_y

    @staticmethod
    def _draw(allowed: Tensor, count: int, weights: Tensor | None) -> Tensor:
        candidates = allowed.nonzero()[:, 0]
        if weights is not None and 0 < count < len(candidates):
            return candidates[torch.multinomial(weights[candidates], count)]
        return candidates[torch.randperm(len(candidates), device=allowed.device)[:count]]

    # ---- inference -----------------------------------------------------------------------------------------------

    def _unfolded(self, outputs: Tensor) -> Tensor:
        """[B, X, Y, C]: trunk features at the voxel grid's columns."""
        if self.coarse != self.columns:
            same = torch.eye(2, 3, device=outputs.device).expand(len(outputs), 2, 3)
            outputs = sample_bev(outputs, self.coarse, self.columns, same)
        return outputs.permute(0, 3, 2, 1)

    def logits(self, outputs: Tensor) -> Tensor:
        """All logits [B, X, Y, Z, K] of trunk features, as predictions are made of them."""
        columns = self._unfolded(outputs)
        return self._for_the_world(self.column_logits(columns.flatten(0, 2))).unflatten(0, columns.shape[:3])

    def predict(self, outputs: Tensor, batch: Batch) -> list[OccupancyGrid]:
        """The class of every voxel, one grid per sample; a few rows at a time, as all logits are 46 MB.

        Raises PredictionError for logits that are not finite.
        """
        found = []
        for features, token in zip(outputs, batch.tokens):
            rows = self._unfolded(features[None])[0].split(20)
            # max rather than argmax, which takes twice as long
            best = [self._for_the_world(self.column_logits(slab.flatten(0, 1))).max(-1) for slab in rows]
            check_answer("occupancy", token, *(slab.values for slab in best))
            classes = torch.cat([slab.indices.to(torch.uint8) for slab in best])
            found.append(OccupancyGrid(token, classes.view(GRID.shape).cpu().numpy()))
        return found
