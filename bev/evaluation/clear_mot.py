"""CLEAR MOT: tracks compared with labelled tracks, keyframe by keyframe.

In words: a labelled object first keeps the predicted track that it was matched with last, if that is there and within
reach; the objects and predictions that are left are matched so that the sum of their distances is least. A match with
another track than the last one is a switch of identity. What is left is a miss or a false alarm.

Source: Bernardin and Stiefelhagen, "Evaluating multiple object tracking performance: the CLEAR MOT metrics", EURASIP
Journal on Image and Video Processing 2008, and the behaviour of motmetrics 1.4.0, on which nuScenes' scores stand.

Shapes: g labelled objects and p predictions of a keyframe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

KEYFRAME_S = 0.5
"""What nuScenes' scores in seconds take for the time between keyframes."""


@dataclass(frozen=True)
class Keyframe:
    """The objects of one class in one keyframe."""

    truth_ids: NDArray[np.int64]
    """[g], distinct"""
    ids: NDArray[np.int64]
    """[p] predicted tracks, distinct"""
    scores: NDArray[np.float64]
    """[p]"""
    distance_m: NDArray[np.float64]
    """[g, p], NaN where a pair is out of reach"""

    @staticmethod
    def of(
        truth_ids: NDArray[np.int64],
        truth_xy_m: NDArray[np.float64],
        ids: NDArray[np.int64],
        xy_m: NDArray[np.float64],
        scores: NDArray[np.float64],
        reach_m: float,
    ) -> Keyframe:
        """From centres on the ground [g, 2] and [p, 2], in one frame; pairs must be closer than ``reach_m``."""
        dx, dy = np.moveaxis(truth_xy_m[:, None] - xy_m[None], -1, 0)
        distance = np.sqrt(dx * dx + dy * dy)
        return Keyframe(truth_ids, ids, scores, np.where(distance < reach_m, distance, np.nan))


@dataclass
class Comparison:
    """What came of the comparison of whole scenes."""

    matches: int = 0
    switches: int = 0
    misses: int = 0
    false_alarms: int = 0
    keyframes: int = 0
    """With an object or a prediction."""
    distance_m: float = 0.0
    """Sum over matches and switches."""
    found: dict[tuple[int, int], list[bool]] = field(default_factory=dict)
    """Scene and labelled object -> whether it was found, in each of its keyframes."""
    match_scores: list[float] = field(default_factory=list)
    """Of the predictions that were matched without a switch."""

    @property
    def objects(self) -> int:
        """Labels in all keyframes."""
        return self.matches + self.switches + self.misses

    @property
    def detections(self) -> int:
        return self.matches + self.switches

    @property
    def shares_found(self) -> NDArray[np.float64]:
        """Of the keyframes of each labelled object."""
        return np.array([np.mean(own) for own in self.found.values()])

    @property
    def fragments(self) -> int:
        """How often an object was lost that is found again later."""
        lost = 0
        for own in self.found.values():
            seen = np.flatnonzero(own)
            if len(seen):
                lost += int((np.diff(np.array(own, np.int64)[: seen[-1] + 1][seen[0] :]) == -1).sum())
        return lost

    def seconds_to_first(self) -> float:
        """Mean over the objects that are found: from their first keyframe to the first in which they are. NaN: none."""
        waits = [own.index(True) for own in self.found.values() if any(own)]
        return float(np.mean(waits)) * KEYFRAME_S if waits else float("nan")

    def longest_gap_s(self) -> float:
        """Mean over the objects that are found: the longest time for which they are not. NaN: none."""
        gaps = [
            max((len(list(run)) for seen, run in groupby(own) if not seen), default=0)
            for own in self.found.values()
            if any(own)
        ]
        return float(np.mean(gaps)) * KEYFRAME_S if gaps else float("nan")


def compare(scenes: Sequence[Sequence[Keyframe]], min_score: float | None = None) -> Comparison:
    """Compare scenes of keyframes in time order; only predictions of at least ``min_score`` count, None: all."""
    result = Comparison()
    for number, keyframes in enumerate(scenes):
        held: dict[int, int] = {}  # labelled object -> the track that it was matched with last
        for keyframe in keyframes:
            _compare_keyframe(keyframe, min_score, number, held, result)
    return result


def _compare_keyframe(
    keyframe: Keyframe, min_score: float | None, scene: int, held: dict[int, int], result: Comparison
) -> None:
    ids, scores, distance = keyframe.ids, keyframe.scores, keyframe.distance_m
    if min_score is not None:
        chosen = scores >= min_score
        ids, scores, distance = ids[chosen], scores[chosen], distance[:, chosen]
    truth_ids = keyframe.truth_ids.tolist()
    if not truth_ids and not len(ids):
        return
    result.keyframes += 1
    column = {own: j for j, own in enumerate(ids.tolist())}
    taken: dict[int, int] = {}  # row -> column
    switched = set()
    for i, truth in enumerate(truth_ids):
        j = column.get(held.get(truth, -1))
        if j is not None and np.isfinite(distance[i, j]) and j not in taken.values():
            taken[i] = j
    for i, j in _nearest_pairs(distance, taken):
        taken[i] = j
        if held.get(truth_ids[i], int(ids[j])) != int(ids[j]):
            switched.add(i)
    for i, truth in enumerate(truth_ids):
        result.found.setdefault((scene, truth), []).append(i in taken)
    for i, j in taken.items():
        held[truth_ids[i]] = int(ids[j])
        result.distance_m += float(distance[i, j])
        if i not in switched:
            result.match_scores.append(float(scores[j]))
    result.switches += len(switched)
    result.matches += len(taken) - len(switched)
    result.misses += len(truth_ids) - len(taken)
    result.false_alarms += len(ids) - len(taken)


def _nearest_pairs(distance: NDArray[np.float64], taken: dict[int, int]) -> list[tuple[int, int]]:
    """Pairs within reach of least total distance among the rows and columns that are not taken."""
    left = distance.copy()
    left[list(taken), :] = np.nan
    left[:, list(taken.values())] = np.nan
    near = np.isfinite(left)
    if not near.any():
        return []
    # So large that a pair out of reach is chosen only where nothing else is left; those are dropped again.
    far = 2 * min(left.shape) * (left[near].max() + 1) + 1
    rows, columns = linear_sum_assignment(np.where(near, left, far))
    return [(int(i), int(j)) for i, j in zip(rows, columns) if near[i, j]]
