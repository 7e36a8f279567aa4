"""A toy model of boxes, voxels and lanes on one map, and a batch that is labelled for all three."""

from dataclasses import replace

import torch
from torch import nn

from drivestack.bev.map.resample import resample_bev
from drivestack.core.answers import OccupancyGrid
from drivestack.core.labels import LaneTargets, OccupancyTargets
from drivestack.geometry import BevGrid
from support import toy_rig

EGO_GRID = BevGrid(-10.0, -10.0, 10.0, 10.0, num_x=4, num_y=4)


class VoxelHead(nn.Module):
    """Three classes in one layer of voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Conv2d(32, 3, 1)

    def forward(self, features, levels, batch):
        return self.classify(resample_bev(features, EGO_GRID, batch.ego_from_bev))

    def loss(self, outputs, batch):
        total = outputs.sum() * 0.0
        for logits, target in zip(outputs, batch.occupancy):
            if target is not None:
                total = total + nn.functional.cross_entropy(logits[None], target.semantics[None, ..., 0].long())
        return {"loss_occ_ce": total}

    def predict(self, outputs, batch):
        classes = outputs.argmax(1)[..., None].byte().numpy()
        return [OccupancyGrid(token, grid) for token, grid in zip(batch.tokens, classes)]


class LaneHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(32, 1)

    def forward(self, features, levels, batch):
        return self.score(features.bev.mean((2, 3)))

    def loss(self, outputs, batch):
        seen = [o.sum() ** 2 for o, t in zip(outputs, batch.lanes) if t is not None]
        return {"loss_lane_score": sum(seen, outputs.sum() * 0.0)}

    def predict(self, outputs, batch):
        return [None] * len(outputs)


def model(**more):
    return toy_rig.build(occupancy_head=VoxelHead(), lane_head=LaneHead(), **more)


def labelled(**labels):
    frames, images = toy_rig.scene(1)
    voxels = OccupancyTargets(torch.ones(4, 4, 1, dtype=torch.uint8), *torch.ones(2, 4, 4, 1, dtype=torch.bool))
    none = torch.zeros(0, 0, dtype=torch.bool)
    lanes = LaneTargets([], torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), none, none)
    return replace(toy_rig.clip(frames, images, 0, (0,)), **({"occupancy": [voxels], "lanes": [lanes]} | labels))
