"""Tracks from single-frame boxes: each keyframe's boxes are linked to those of the keyframes before, greedily.

In words: a box, moved back by its velocity over the time since the last keyframe, takes the nearest track of its class
that is free and closer than a reach, boxes of higher score first. A box without a track begins one. A track without a
box goes on at its last velocity, unseen, and ends when it was not seen for too long, at a gap in time, or with its
scene. Source: CenterPoint (arXiv 2006.11275, section 4.3); one reach for all classes as StreamPETR's tracks have.

It is what tracks of a model must be compared with: it needs no training.

Shapes: k boxes of a keyframe, n live tracks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...core.answers import NO_TRACK
from ...core.errors import ConfigError
from ...core.frames import Frame
from .matching import match, match_nearest_first, pairs_within
from .nuscenes_boxes import ScoredBoxes


@dataclass(frozen=True)
class LinkSettings:
    """How boxes are linked. Raises ConfigError for values out of range."""

    reach_m: float = 2.5
    """On the ground, between a track and a box that was moved back; a link is shorter."""
    min_score: float = 0.2
    """Boxes below it are in no track. More of them find more objects, but also more that are not there: on the tiny
    model's boxes AMOTA falls below 0.2 (docs/tracking.md)."""
    max_unseen_s: float = 1.75
    """A track that was not seen for longer ends: three keyframes of nuScenes may be missing."""
    max_gap_s: float = 2.0
    """No track goes on where keyframes lie farther apart."""
    nearest_first: bool = False
    """The nearest pairs are linked first, instead of the boxes of the highest scores."""

    def __post_init__(self) -> None:
        for name in ("reach_m", "max_unseen_s", "max_gap_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a number above 0")


@dataclass
class _Live:
    """The tracks that a box may join, one row each."""

    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    names: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, np.str_))
    xy_m: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    velocity_mps: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    seen_us: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def take(self, chosen: NDArray[np.bool_]) -> _Live:
        return _Live(**{name: values[chosen] for name, values in vars(self).items()})

    def joined(self, other: _Live) -> _Live:
        return _Live(**{name: np.concatenate([own, getattr(other, name)]) for name, own in vars(self).items()})


class Linker:
    """Gives ids to the boxes of one drive, keyframe after keyframe; ids count from 0 and are never used again."""

    def __init__(self, settings: LinkSettings | None = None) -> None:
        self.settings = settings or LinkSettings()
        self.next_id = 0
        self._live = _Live()
        self._last_us: int | None = None

    def __call__(self, boxes: ScoredBoxes, timestamp_us: int) -> NDArray[np.int64]:
        """The track [k] of each box of the next keyframe, NO_TRACK for those below the least score.

        Boxes without a velocity (NaN) count as standing. Raises ValueError for a time that does not rise.
        """
        last_us, self._last_us = self._last_us, timestamp_us
        if last_us is not None and timestamp_us <= last_us:
            raise ValueError(f"keyframes are linked in time: {timestamp_us} us is not after {last_us}")
        dt_s = 0.0 if last_us is None else (timestamp_us - last_us) / 1e6
        settings, live = self.settings, self._live
        if dt_s > settings.max_gap_s:
            live = _Live()
        kept = np.flatnonzero(boxes.scores >= settings.min_score)
        velocity = np.nan_to_num(boxes.velocity_global_mps[kept])
        found = _Live(
            ids=np.full(len(kept), NO_TRACK),
            names=np.array([boxes.names[i] for i in kept], dtype=np.str_),
            xy_m=boxes.centre_global_m[kept, :2],
            velocity_mps=velocity,
            seen_us=np.full(len(kept), timestamp_us),
        )
        groups = np.unique(np.concatenate([found.names, live.names]), return_inverse=True)[1]
        pairs = pairs_within(
            groups[: len(kept)], found.xy_m - velocity * dt_s, groups[len(kept) :], live.xy_m, settings.reach_m
        )
        if settings.nearest_first:
            taken = match_nearest_first(pairs, len(kept), len(live.ids))  # [k]
        else:
            rank = np.empty(len(kept), np.int64)
            rank[np.argsort(-boxes.scores[kept], kind="stable")] = np.arange(len(kept))
            taken = match(pairs, rank, len(live.ids), settings.reach_m)
        linked = taken >= 0
        found.ids[linked] = live.ids[taken[linked]]
        found.ids[~linked] = self.next_id + np.arange((~linked).sum())
        self.next_id += int((~linked).sum())

        free = np.ones(len(live.ids), dtype=bool)
        free[taken[linked]] = False
        unseen = live.take(free & ((timestamp_us - live.seen_us) / 1e6 <= settings.max_unseen_s))
        unseen.xy_m = unseen.xy_m + unseen.velocity_mps * dt_s
        self._live = found.joined(unseen)
        ids = np.full(len(boxes), NO_TRACK)
        ids[kept] = found.ids
        return ids


def link_boxes(
    frames: Sequence[Frame], boxes: Mapping[str, ScoredBoxes], settings: LinkSettings | None = None
) -> dict[str, NDArray[np.int64]]:
    """The track [k] of each box, by sample token; ids count from 0 in each scene (``Linker``).

    boxes: of every frame, by sample token. Frames of a scene are linked in the order of their times.
    Raises KeyError for a frame without boxes.
    """
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scenes.setdefault(frame.scene_token, []).append(frame)
    found = {}
    for own in scenes.values():
        linker = Linker(settings)
        for frame in sorted(own, key=lambda frame: frame.timestamp_us):
            found[frame.token] = linker(boxes[frame.token], frame.timestamp_us)
    return found
