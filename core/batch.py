"""What goes through a model: a Batch of clips in, a BEV map between its parts.

Shapes: B batch, T time steps of a clip, N cameras, n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..geometry import BevGrid
from .frames import Frame
from .labels import DepthTargets, LaneTargets, MonoTargets, OccupancyTargets
from .street_maps import StreetLines

LABELS = ("gt_boxes", "gt_labels", "mono", "occupancy", "lanes", "depth")
"""Fields of a Batch that a model learns from: per sample, None where the sample has none."""


@dataclass
class Batch:
    """What a BEV model takes: B clips of T frames (ascending in time) of N cameras."""

    images: Tensor
    """[B, T, N, 3, H, W] normalised, padded with zeros at the bottom and right (mirrored images: left, so that the
    features, mirrored back, have it right); zeros where a frame is missing."""
    frame_offsets: tuple[int, ...]
    """Time offsets in keyframes, ascending; the current frame is the one at 0."""
    frame_valid: Tensor
    """[B, T] bool: False where the scene has no frame at that offset."""
    image_from_bev: Tensor
    """[B, T, N, 4, 4]: points of the CURRENT frame's BEV frame to pixels of each (un-flipped) image; to points of the
    camera frame where the camera has a lens, which no matrix describes (``lenses``)."""
    image_size_px: Tensor
    """[B, T, N, 2] long (height, width) of each image before padding."""
    image_flipped: Tensor
    """[B] bool: the images are mirrored although the matrices are not; the model mirrors the features back."""
    bda: Tensor
    """[B, 3, 3]: BEV augmentation (flip @ scale @ rotation) that was applied to the boxes; identity if none."""
    intrinsics: Tensor
    """[B, N, 3, 3] of the current frame's (un-flipped) images."""
    bev_from_camera: Tensor
    """[B, N, 4, 4] of the current frame."""
    lenses: Tensor | None = None
    """[B, T, N, geometry.lenses.ROW]: lens and matrix of each (un-flipped) image's camera; None: all are pinholes."""
    gt_boxes: list[Tensor | None] = field(default_factory=list)
    """B x [n, 9] in the current BEV frame after BEV augmentation, None for a sample without annotations."""
    gt_labels: list[Tensor | None] = field(default_factory=list)
    """B x [n] long, None as above."""
    mono: list[list[MonoTargets | None] | None] = field(default_factory=list)
    """B, None for a sample without labels of single images; else N, None for an image in which nothing is labelled."""
    occupancy: list[OccupancyTargets | None] = field(default_factory=list)
    """B, None for a sample without voxel labels."""
    lanes: list[LaneTargets | None] = field(default_factory=list)
    """B, None for a sample without lane labels."""
    depth: list[DepthTargets | None] = field(default_factory=list)
    """B, depth of the current frame's images; None for a sample without."""
    ego_from_bev: Tensor | None = None
    """[B, 4, 4] of the current frame."""
    global_from_ego: Tensor | None = None
    """[B, T, 4, 4] float64, each frame's; identity where a frame is missing. A mirrored clip's world is mirrored."""
    can_bus: Tensor | None = None
    """[B, T, 18] float64, absolute numbers of each frame (data_tools/clips/can_bus.py)."""
    frames: list[Frame] = field(default_factory=list)
    """The current frames, for tokens and poses."""
    camera_names: list[tuple[str, ...]] = field(default_factory=list)
    """B x N: which camera is which; left out, they are the frames' own in their order."""
    camera_valid: list[tuple[bool, ...]] = field(default_factory=list)
    """B x N: False where the current frame lacks the camera: its image is zeros, nothing projects into it
    (``image_from_bev`` zeros), and its ``intrinsics`` and ``bev_from_camera`` are identities. Left out: all are there.
    What past frames lack has zeros in ``image_from_bev`` likewise."""
    front_cameras: list[int | None] = field(default_factory=list)
    """B: index of the camera that looks ahead, None where none does; left out: not known (made by hand)."""
    streams: list[str] = field(default_factory=list)
    """B: what a memory of the past belongs to. Samples that follow each other in time, seen alike (mirrored or not),
    have the same; left out: the frames' scenes."""
    mirrored: list[bool] = field(default_factory=list)
    """B: whether the sample is of the mirror world (data_tools/clips/mirror.py); left out: none is."""
    features: dict[str, Tensor] | None = None
    """Stored features of the current frames by name, each [B, ...], which the model takes in place of ``images``; only
    images that heads read themselves are then there, the others are zeros (engine/feature_cache.py)."""
    street_maps: list[StreetLines | None] = field(default_factory=list)
    """B, None for a sample without a map; left out: nobody asked for maps. An input, not a label."""

    def __post_init__(self) -> None:
        """Labels that are not given are None for every sample."""
        count = len(self.images)
        for name in LABELS:
            if not getattr(self, name):
                setattr(self, name, [None] * count)
        if not self.camera_names:
            self.camera_names = [tuple(view.name for view in frame.cameras) for frame in self.frames]

    @property
    def current_lenses(self) -> Tensor | None:
        """[B, N, ROW] of the current frame's cameras, None where all are pinholes."""
        return None if self.lenses is None else self.lenses[:, self.current]

    def without_labels(self) -> Batch:
        """The same batch as a model meets it at test time."""
        nothing: dict[str, Any] = {name: [] for name in LABELS}
        return replace(self, **nothing)

    @property
    def all_cameras_valid(self) -> bool:
        """Whether every current frame has all cameras."""
        return all(all(cameras) for cameras in self.camera_valid)

    @property
    def tokens(self) -> list[str]:
        return [frame.token for frame in self.frames]

    @property
    def current(self) -> int:
        """Index of the current frame along T."""
        return self.frame_offsets.index(0)

    @property
    def stream_keys(self) -> list[str]:
        """``streams``, or the scenes of the frames."""
        return self.streams or [frame.scene_token for frame in self.frames]

    @property
    def are_mirrored(self) -> list[bool]:
        """``mirrored``, of every sample."""
        return self.mirrored or [False] * len(self.images)

    def select(self, samples: Sequence[int]) -> Batch:
        """The batch of these samples, in this order."""
        if list(samples) == list(range(len(self.images))):
            return self

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[list(samples)]
            if isinstance(value, dict):
                return {key: pick(own) for key, own in value.items()}
            return [value[b] for b in samples] if isinstance(value, list) and value else value

        return replace(self, **{f.name: pick(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""

        def move(value: Any) -> Any:
            if isinstance(value, (Tensor, MonoTargets, OccupancyTargets, LaneTargets, DepthTargets, StreetLines)):
                return value.to(device)
            if isinstance(value, dict):
                return {key: move(v) for key, v in value.items()}
            return [move(v) for v in value] if isinstance(value, list) else value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class BevFeatures:
    """A BEV map [B, C, num_y, num_x] on a grid of the current BEV frame."""

    bev: Tensor
    grid: BevGrid
