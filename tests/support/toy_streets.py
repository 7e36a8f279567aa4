"""Toy street scenes whose BEV maps and pyramid maps show the labels plainly: what a lane head must be able to learn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from drivestack.core.batch import Batch, BevFeatures
from drivestack.core.frames import Frame
from drivestack.core.labels import LaneTargets
from drivestack.geometry import BevGrid

CHANNELS = 32
GRID = BevGrid(-42.0, -42.0, 42.0, 42.0, 42, 42)
IMAGE = (128, 256)
STRIDE = 8


def street(rng: np.random.Generator) -> LaneTargets:
    """Two lanes that follow each other, a branch to the side, one that comes the other way; one light, one sign."""
    y, x0 = rng.uniform(-8, 0), rng.uniform(-5, 5)
    t = np.linspace(0, 1, 21)[:, None]
    line = lambda a, b: (1 - t) * np.array([*a, 0.0]) + t * np.array([*b, 0.0])
    turn = (1 - t) ** 2 * [x0, y, 0] + 2 * t * (1 - t) * [x0 + 12, y, 0] + t**2 * [x0 + 12, y - 10, 0]
    lines = [line((-35, y), (x0, y)), line((x0, y), (38, y)), turn, line((35, y + 7), (-30, y + 7))]
    lane_lane = torch.zeros(4, 4, dtype=torch.bool)
    lane_lane[0, 1] = lane_lane[0, 2] = True
    left, top = rng.uniform(20, 200), rng.uniform(5, 90)
    boxes = torch.tensor([[left, top, left + 10, top + 22], [230 - left, 100 - top, 250 - left, 120 - top]])
    lane_element = torch.tensor([[True, False], [False, True], [False, True], [False, False]])
    return LaneTargets(
        centrelines=[torch.from_numpy(points).float() for points in lines],
        elements_xyxy_px=boxes.float(),
        attributes=torch.tensor([int(rng.integers(1, 4)), 5]),
        lane_lane=lane_lane,
        lane_element=lane_element,
    )


def _drawn(targets: LaneTargets, mix: Tensor) -> Tensor:
    """[C, num_y, num_x]: direction and presence of each lane in its cells, mixed into all channels."""
    plain = torch.zeros(6, GRID.num_y, GRID.num_x)
    for i, line in enumerate(targets.centrelines):
        dense = torch.nn.functional.interpolate(line.T[None], 200, mode="linear", align_corners=True)[0].T
        cells, inside = GRID.cells_of(dense.numpy())
        ix, iy = torch.from_numpy(cells[inside]).T
        way = torch.nn.functional.normalize(dense[1:] - dense[:-1], dim=1)[
            torch.from_numpy(inside)[:-1].nonzero()[:, 0]
        ]
        ix, iy = ix[: len(way)], iy[: len(way)]
        plain[0, iy, ix] = 1
        plain[1:3, iy, ix] = way[:, :2].T
        plain[3, iy[0], ix[0]] = plain[4, iy[-1], ix[-1]] = 1
        plain[5, iy, ix] = float(i)
    return torch.einsum("kc,kyx->cyx", mix, plain)


def _shown(targets: LaneTargets, mix: Tensor) -> Tensor:
    """[C, h, w]: boxes and kinds in the front image's cells."""
    plain = torch.zeros(6, IMAGE[0] // STRIDE, IMAGE[1] // STRIDE)
    for (x1, y1, x2, y2), kind in zip(targets.elements_xyxy_px / STRIDE, targets.attributes):
        ys, xs = slice(int(y1), int(y2) + 1), slice(int(x1), int(x2) + 1)
        plain[0, ys, xs], plain[1, ys, xs] = 1, float(kind) / 3
        plain[2, ys, xs], plain[3, ys, xs] = (x1 + x2) / 2 % 1, (y1 + y2) / 2 % 1
        plain[4, ys, xs], plain[5, ys, xs] = x2 - x1, y2 - y1
    return torch.einsum("kc,kyx->cyx", mix, plain)


def scenes(count: int, labelled: tuple[int, ...] | None = None) -> tuple[BevFeatures, list[Tensor], Batch]:
    """BEV map, pyramid maps [B, 1, C, h, w] and batch; ``labelled``: which samples have labels (default: all)."""
    rng = np.random.default_rng(0)
    mix = torch.randn(6, CHANNELS, generator=torch.Generator().manual_seed(0))
    streets = [street(rng) for _ in range(count)]
    maps = torch.stack([_drawn(s, mix) for s in streets])
    level = torch.stack([_shown(s, mix) for s in streets])[:, None]
    identity = np.eye(4)
    frames = [
        Frame(f"sample{i}", "scene", "scene", 0, (), ego_from_bev=identity, global_from_ego=identity)
        for i in range(count)
    ]
    labelled = range(count) if labelled is None else labelled
    eye = torch.eye(4).expand(count, 1, 4, 4)
    batch = Batch(
        images=torch.zeros(count, 1, 1, 3, *IMAGE),
        frame_offsets=(0,),
        frame_valid=torch.ones(count, 1, dtype=torch.bool),
        image_from_bev=eye[:, None],
        image_size_px=torch.tensor(IMAGE).expand(count, 1, 1, 2),
        image_flipped=torch.zeros(count, dtype=torch.bool),
        bda=torch.eye(3).expand(count, 3, 3),
        intrinsics=torch.eye(3).expand(count, 1, 3, 3),
        bev_from_camera=eye,
        lanes=[s if i in labelled else None for i, s in enumerate(streets)],
        ego_from_bev=torch.eye(4).expand(count, 4, 4),
        frames=frames,
    )
    return BevFeatures(maps, GRID), [level], batch


SMALL = dict(
    in_channels=CHANNELS,
    channels=32,
    lane_range=(-50.0, -25.0, -2.3, 50.0, 25.0, 1.7),
    bev_size=(25, 50),
    num_queries=8,
    num_proposals=12,
    num_layers=2,
    num_heads=4,
    ffn_dims=64,
    hidden=32,
    max_elements=6,
)
