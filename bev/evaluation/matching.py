"""Greedy matching of scored predictions with ground truth by distance, for a whole data set at once.

The rule: predictions, best score first, each take the nearest object of their sample and class that is not taken yet,
if it is closer than a threshold. Taken one prediction at a time this is a loop over a million boxes. The same outcome
follows from deferred acceptance over all at once (Gale and Shapley, 1962): every prediction proposes to its nearest
object, an object keeps the best-scored proposal, and rejected predictions propose to the next nearest. As all objects
prefer by the same score, exactly one outcome is stable, and it is the greedy one.

Shapes: P predictions, G ground-truth objects, K pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PAIRS_AT_ONCE = 4_000_000


class Pairs(NamedTuple):
    """Predictions with the objects in their reach: by prediction, nearest object first."""

    prediction: NDArray[np.int64]
    """[K]"""
    truth: NDArray[np.int64]
    """[K]"""
    distance_m: NDArray[np.float64]
    """[K]"""


def pairs_within(
    prediction_group: NDArray[np.int64],
    prediction_xy_m: NDArray[np.float64],
    truth_group: NDArray[np.int64],
    truth_xy_m: NDArray[np.float64],
    reach_m: float,
) -> Pairs:
    """All pairs of one group (a sample and class) closer than ``reach_m``.

    prediction_group: [P] and truth_group: [G] number the groups; prediction_xy_m: [P, 2] and truth_xy_m: [G, 2], in one
    frame for each group. Of objects at equal distance the one with the lower index comes first.
    """
    found = []
    for p, g in _pairs_of_groups(prediction_group, truth_group):
        dx, dy = (prediction_xy_m[p] - truth_xy_m[g]).T
        distance = np.sqrt(dx * dx + dy * dy)
        near = distance < reach_m
        found.append((p[near], g[near], distance[near]))
    if not found:
        nothing = np.zeros(0, dtype=np.int64)
        return Pairs(nothing, nothing, np.zeros(0))
    p, g, distance = (np.concatenate(column) for column in zip(*found))
    by_distance = np.lexsort((g, distance, p))
    return Pairs(p[by_distance], g[by_distance], distance[by_distance])


def nearest_truth(
    prediction_group: NDArray[np.int64],
    prediction_m: NDArray[np.float64],
    truth_group: NDArray[np.int64],
    truth_m: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest object of its group for each prediction, and its distance: [P], [P]; -1, inf where there is none.

    Arguments as of pairs_within, centres [P, D] and [G, D]. Of objects at equal distance the one with the lower index.
    """
    nearest, distance = np.full(len(prediction_group), -1), np.full(len(prediction_group), np.inf)
    for p, g in _pairs_of_groups(prediction_group, truth_group):
        if not len(p):
            continue
        square = np.zeros(len(p))
        for mine, its in zip(prediction_m.T, truth_m.T):  # axis by axis: quicker than rows of three
            square += (mine[p] - its[g]) ** 2
        apart = np.sqrt(square)  # [k], by prediction
        start = np.flatnonzero(np.diff(p, prepend=-1))
        least = np.minimum.reduceat(apart, start)  # of each prediction that has objects
        equal = np.flatnonzero(apart == np.repeat(least, np.diff(start, append=len(p))))
        own, first = np.unique(p[equal], return_index=True)
        nearest[own], distance[own] = g[equal[first]], least
    return nearest, distance


def _pairs_of_groups(
    prediction_group: NDArray[np.int64], truth_group: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs (prediction [k], truth [k]) of one group, by prediction and then truth, _PAIRS_AT_ONCE at a time."""
    order = np.argsort(truth_group, kind="stable")
    first = np.searchsorted(truth_group, prediction_group, "left", sorter=order)  # [P]
    counts = np.searchsorted(truth_group, prediction_group, "right", sorter=order) - first  # [P]
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, "right")))
        chunk = counts[start:stop]
        p = np.repeat(np.arange(start, stop), chunk)  # [k]
        within = np.arange(len(p)) - np.repeat(np.cumsum(chunk) - chunk, chunk)
        yield p, order[first[p] + within]
        start = stop


def match(pairs: Pairs, rank: NDArray[np.int64], num_truths: int, threshold_m: float) -> NDArray[np.int64]:
    """The object that each prediction takes, -1 for none: [P].

    rank: [P], distinct: the order in which predictions may choose, lowest first. A pair must be closer than
    ``threshold_m``, which is at most the reach that the pairs were sought with.
    """
    near = pairs.distance_m < threshold_m
    wanted_by, wanted = pairs.prediction[near], pairs.truth[near]
    predictions = np.arange(len(rank))
    at = np.searchsorted(wanted_by, predictions, "left")  # [P] the pair that a prediction proposes next
    end = np.searchsorted(wanted_by, predictions, "right")
    best_rank = np.full(num_truths, np.iinfo(np.int64).max)
    holder = np.full(num_truths, -1)
    asking = predictions[at < end]
    while len(asking):
        truth = wanted[at[asking]]
        np.minimum.at(best_rank, truth, rank[asking])
        wins = best_rank[truth] == rank[asking]
        displaced = holder[truth[wins]]
        holder[truth[wins]] = asking[wins]
        refused = np.concatenate([asking[~wins], displaced[displaced >= 0]])
        at[refused] += 1
        asking = refused[at[refused] < end[refused]]
    taken = np.full(len(rank), -1)
    held = np.flatnonzero(holder >= 0)
    taken[holder[held]] = held
    return taken


def match_nearest_first(pairs: Pairs, num_predictions: int, num_truths: int) -> NDArray[np.int64]:
    """The object that each prediction takes, -1 for none: [P]. The nearest of all pairs first, scores do not count."""
    taken, free = np.full(num_predictions, -1), np.ones(num_truths, bool)
    for k in np.argsort(pairs.distance_m, kind="stable"):
        prediction, truth = pairs.prediction[k], pairs.truth[k]
        if taken[prediction] < 0 and free[truth]:
            taken[prediction], free[truth] = truth, False
    return taken
