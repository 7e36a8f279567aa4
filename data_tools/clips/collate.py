"""Clips to a Batch: images of mixed sizes are padded with zeros, right and bottom.

A mirrored image is padded on the left instead: mirroring its features back then puts the image at the left and the
padding at the right, where the matrices expect them. (Upstream pads right in both cases:
docs/quirks.md#padding-of-mirrored-images.)

Shapes: B clips, T frames, N cameras, H, W padded image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.batch import Batch
from ...core.feature_store import stack
from ...core.frames import Frame
from ...core.labels import LaneTargets, MonoTargets, OccupancyTargets
from ...core.registries import FUNCTIONS
from ...core.street_maps import StreetLines
from .depth import DepthPoints, depth_targets


@dataclass
class ClipSample:
    """One clip, augmented and normalised, before it is padded into a batch."""

    images: list[list[NDArray[np.float32] | None] | None]
    """T x N images [3, h, w]; None for a frame that the scene does not have, and for a camera that a frame lacks."""
    frame_offsets: tuple[int, ...]
    image_from_bev: NDArray[np.float32]
    """[T, N, 4, 4], zeros where there is no image"""
    image_flipped: bool
    bda: NDArray[np.float32]
    """[3, 3]"""
    intrinsics: NDArray[np.float32]
    """[N, 3, 3]"""
    bev_from_camera: NDArray[np.float32]
    """[N, 4, 4]"""
    frame: Frame
    camera_names: tuple[str, ...]
    """N, in the order of the images."""
    front_camera: int | None = None
    """Index of the camera that looks ahead, None where none does."""
    lenses: NDArray[np.float32] | None = None
    """[T, N, geometry.lenses.ROW], zeros where there is no image; None: all cameras are pinholes."""
    gt_boxes: NDArray[np.float32] | None = None
    """[n, 9], None if the frame is not annotated."""
    gt_labels: NDArray[np.int64] | None = None
    mono: list[MonoTargets | None] | None = None
    """N, None for an image in which nothing is labelled; None where they were not requested or not annotated."""
    ego_from_bev: NDArray[np.float32] | None = None
    """[4, 4]; None: that of the frame. A mirrored clip has its own."""
    global_from_ego: NDArray[np.float64] | None = None
    """[T, 4, 4], identity where a frame is missing; None: not known."""
    can_bus: NDArray[np.float64] | None = None
    """[T, 18], see can_bus.py; None where the poses are."""
    occupancy: OccupancyTargets | None = None
    lanes: LaneTargets | None = None
    stream: str | None = None
    """See Batch.streams; None: the frame's scene."""
    mirrored: bool = False
    """Whether `mirror_clip` made it."""
    depth: DepthPoints | None = None
    """N, see depth.py; None where the frame has no labels of depth."""
    features: dict[str, torch.Tensor] | None = None
    """Stored features of the current frame, see Batch."""
    street_map: StreetLines | None = None


@FUNCTIONS.register_module()
def collate_clips(samples: Sequence[ClipSample], size_divisor: int = 32) -> Batch:
    """A batch of B clips that have the same frame offsets and number of cameras.

    Raises ValueError otherwise (mixed rigs belong into separate batches).
    """
    first = samples[0]
    shape = first.image_from_bev.shape[:2]
    for sample in samples:
        if sample.frame_offsets != first.frame_offsets or sample.image_from_bev.shape[:2] != shape:
            raise ValueError(
                f"samples {first.frame.token} and {sample.frame.token} differ in frame offsets or number of cameras "
                f"({first.frame_offsets} x {shape[1]}, {sample.frame_offsets} x {sample.image_from_bev.shape[1]})"
            )
    sizes = np.zeros((len(samples), *shape, 2), dtype=np.int64)
    for b, sample in enumerate(samples):
        for t, views in enumerate(sample.images):
            if views is not None:
                sizes[b, t] = [(0, 0) if view is None else view.shape[1:] for view in views]
    height, width = (-(-int(side) // size_divisor) * size_divisor for side in sizes.max((0, 1, 2)))
    images = torch.zeros(len(samples), *shape, 3, height, width)
    for b, sample in enumerate(samples):
        for t, views in enumerate(sample.images):
            for n, view in enumerate(views or ()):
                if view is None:
                    continue
                left = width - view.shape[2] if sample.image_flipped else 0
                images[b, t, n, :, : view.shape[1], left : left + view.shape[2]] = torch.from_numpy(view)

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

    current = first.frame_offsets.index(0)
    depth = [
        None if sample.depth is None else depth_targets(sample.depth, sizes[b, current].tolist(), height, width)
        for b, sample in enumerate(samples)
    ]
    with_poses = all(sample.global_from_ego is not None for sample in samples)

    def tensor(array: NDArray | None) -> torch.Tensor | None:
        return None if array is None else torch.from_numpy(array)

    return Batch(
        images=images,
        frame_offsets=first.frame_offsets,
        frame_valid=torch.tensor([[views is not None for views in sample.images] for sample in samples]),
        image_from_bev=stack("image_from_bev"),
        image_size_px=torch.from_numpy(sizes),
        image_flipped=torch.tensor([sample.image_flipped for sample in samples]),
        bda=stack("bda"),
        intrinsics=stack("intrinsics"),
        bev_from_camera=stack("bev_from_camera"),
        lenses=_lenses(samples),
        gt_boxes=[tensor(sample.gt_boxes) for sample in samples],
        gt_labels=[tensor(sample.gt_labels) for sample in samples],
        mono=[sample.mono for sample in samples],
        occupancy=[sample.occupancy for sample in samples],
        lanes=[sample.lanes for sample in samples],
        depth=depth,
        ego_from_bev=torch.from_numpy(np.stack([_ego_from_bev(sample) for sample in samples])),
        global_from_ego=stack("global_from_ego") if with_poses else None,
        can_bus=stack("can_bus") if with_poses else None,
        frames=[sample.frame for sample in samples],
        camera_names=[sample.camera_names for sample in samples],
        camera_valid=[tuple(own) for own in sizes[:, current, :, 0].astype(bool).tolist()],
        front_cameras=[sample.front_camera for sample in samples],
        streams=[sample.frame.scene_token if sample.stream is None else sample.stream for sample in samples],
        mirrored=[sample.mirrored for sample in samples],
        features=_features(samples),
        street_maps=[sample.street_map for sample in samples],
    )


def _features(samples: Sequence[ClipSample]) -> dict[str, torch.Tensor] | None:
    if first := samples[0].features:
        return {name: stack([(sample.features or {})[name] for sample in samples]) for name in first}
    return None


def _lenses(samples: Sequence[ClipSample]) -> torch.Tensor | None:
    known = [sample.lenses for sample in samples if sample.lenses is not None]
    if not known:
        return None
    pinholes = np.zeros_like(known[0])  # their matrices say all
    return torch.from_numpy(np.stack([pinholes if s.lenses is None else s.lenses for s in samples]))


def _ego_from_bev(sample: ClipSample) -> NDArray[np.float32]:
    given = sample.ego_from_bev
    return sample.frame.ego_from_bev.astype(np.float32) if given is None else given
