"""A new split whose parts lie apart: groups of scenes that are near one another stay together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ...core.errors import ConfigError
from ...core.files import write_json
from ..readers.nuscenes.splits import official_splits
from .places import MIN_APART_M, Place, check_distance, check_locations, read_lists

DIRECTIONS = 12
"""In which a group is tried to be cut."""
TOLERANCE = 0.02
"""Of all keyframes: no further group is cut where no part has more or less than this beside its share."""


@dataclass(frozen=True)
class Split:
    """Scenes by part, and how well the shares were met."""

    parts: dict[str, tuple[str, ...]]
    keyframes: dict[str, int]
    """By part."""
    left_out: tuple[str, ...]
    """Scenes on the border of a group that was cut."""
    left_out_keyframes: int
    groups: int
    """Of scenes that hang together."""
    largest: int
    """Keyframes of the largest group."""

    @property
    def shares(self) -> dict[str, float]:
        """Of the keyframes that are in a part."""
        total = sum(self.keyframes.values())
        return {name: count / total for name, count in self.keyframes.items()}


def connected(places: Sequence[Place], distance_m: float = MIN_APART_M) -> list[list[Place]]:
    """Groups of scenes that hang together by steps of at most ``distance_m`` within a location; largest first."""
    check_distance(distance_m)
    places = sorted(places, key=lambda place: (place.location, place.scene))  # whatever order they come in
    parent = list(range(len(places)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    by_location: dict[str, list[int]] = defaultdict(list)
    for i, place in enumerate(places):
        by_location[place.location].append(i)
    for held in by_location.values():
        corners = np.stack([places[i].corners_m for i in held])  # [scenes, 4]
        for k, i in enumerate(held):
            tree = None
            gap = np.maximum(corners[k, :2] - corners[k + 1 :, 2:], corners[k + 1 :, :2] - corners[k, 2:])
            for other in np.flatnonzero(np.hypot(*np.maximum(gap, 0).T) <= distance_m):
                j = held[k + 1 + int(other)]
                if root(i) == root(j):
                    continue
                tree = tree or cKDTree(places[i].xy_m)
                if tree.query(places[j].xy_m)[0].min() <= distance_m:
                    parent[root(j)] = root(i)
    groups: dict[int, list[Place]] = defaultdict(list)
    for i, place in enumerate(places):
        groups[root(i)].append(place)
    return sorted(groups.values(), key=lambda group: (-_keyframes(group), group[0].scene))


def make_split(
    places: Sequence[Place],
    shares: Mapping[str, float],
    distance_m: float = MIN_APART_M,
    seed: int = 0,
    cut: bool = False,
) -> Split:
    """Deal scenes out to parts by shares of the keyframes, so that no two parts come within ``distance_m``.

    shares: of each part, in any unit. seed: the same seed gives the same split. cut: where the shares are missed by
    more than TOLERANCE, cut groups along a straight line, the largest first; scenes of the larger side that are then
    near the smaller one are left out. Without it every scene is in a part, and one large group may spoil the shares.
    Raises ConfigError for shares that are none, and where there are fewer groups than parts.
    """
    names = list(shares)
    wanted = np.array([shares[name] for name in names], dtype=np.float64)
    if len(names) < 2 or not (np.isfinite(wanted).all() and (wanted > 0).all()):
        raise ConfigError(f"shares {dict(shares)}: name two parts or more, each with a share above 0")
    check_locations(places)
    groups = connected(places, distance_m)
    largest = _keyframes(groups[0]) if groups else 0
    fractions = wanted / wanted.sum()
    pieces, left_out = list(groups), list[Place]()
    target = fractions * sum(map(len, places))
    dealt, filled = _deal(pieces, target, seed)
    miss = _miss(filled, target)
    for group in groups if cut else []:  # the largest first
        if len(pieces) >= len(names) and (miss <= TOLERANCE or _keyframes(group) <= TOLERANCE * target.sum()):
            break
        others = [piece for piece in pieces if piece is not group]
        lack = np.maximum(target - _deal(others, target, seed)[1], 0)  # cut as the parts need it beside all others
        runs, lost = _cut(group, lack / lack.sum(), distance_m, seed)
        new_target = fractions * sum(map(_keyframes, [*others, *runs]))
        new_dealt, filled = _deal([*others, *runs], new_target, seed)
        if len(pieces) < len(names) or _miss(filled, new_target) < miss:
            pieces, left_out = others + runs, left_out + lost
            target, dealt, miss = new_target, new_dealt, _miss(filled, new_target)
    if len(pieces) < len(names):
        raise ConfigError(
            f"within {distance_m:g} m the scenes hang together in {len(groups)} group(s), which cannot be {len(names)} "
            "parts: choose a smaller distance" + ("" if cut else ", or let groups be cut (--cut)")
        )
    parts = {
        name: tuple(sorted(place.scene for piece, to in zip(pieces, dealt) if to == k for place in piece))
        for k, name in enumerate(names)
    }
    size = {place.scene: len(place) for place in places}
    return Split(
        parts,
        {name: sum(size[scene] for scene in held) for name, held in parts.items()},
        tuple(sorted(place.scene for place in left_out)),
        _keyframes(left_out),
        len(groups),
        largest,
    )


def _keyframes(group: Sequence[Place]) -> int:
    return sum(map(len, group))


def _miss(filled: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """What the worst part has beside its share, of all keyframes."""
    return float(np.abs(filled - target).max() / target.sum())


def _deal(
    pieces: Sequence[Sequence[Place]], target: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Part of each piece, and the keyframes of each part.

    Large pieces before small ones (of about one size in a random order), each goes to the part that lacks most; then
    pieces move while that helps. No part is empty where there are pieces enough.
    """
    sizes = np.array([_keyframes(piece) for piece in pieces], dtype=np.float64)
    order = np.argsort(-sizes * np.random.default_rng(seed).uniform(0.8, 1.25, len(sizes)), kind="stable")
    dealt = np.full(len(sizes), -1)
    filled = np.zeros(len(target))
    for i in order:
        dealt[i] = int(np.argmax(target - filled))
        filled[dealt[i]] += sizes[i]
    better = True
    while better:
        better = False
        for i in order:
            lack = target - filled
            lack[dealt[i]] += sizes[i]  # without this piece
            cost = (lack**2).sum() - lack**2 + (lack - sizes[i]) ** 2  # with it in each of the parts
            to = int(np.argmin(cost))
            if cost[to] < cost[dealt[i]] - 1e-9:
                filled[dealt[i]] -= sizes[i]
                filled[to] += sizes[i]
                dealt[i], better = to, True
    for k in range(len(target)):  # the smallest piece that another part can spare
        counts = np.bincount(dealt, minlength=len(target))
        spare = [i for i in np.argsort(sizes, kind="stable") if counts[dealt[i]] > 1]
        if counts[k] == 0 and spare:
            dealt[spare[0]] = k
    return dealt, np.array([sizes[dealt == k].sum() for k in range(len(target))], dtype=np.float64)


def _cut(
    group: Sequence[Place], shares: NDArray[np.float64], distance_m: float, seed: int
) -> tuple[list[list[Place]], list[Place]]:
    """A group in pieces of the shares (one may be 0), apart from one another, and the scenes that the borders cost.

    Scenes are sorted along a direction by their middle, and runs of them taken; of DIRECTIONS directions the one that
    costs the fewest keyframes.
    """
    middle = np.stack([place.corners_m.reshape(2, 2).mean(0) for place in group])  # [scenes, 2]
    first = np.random.default_rng(seed).uniform(0, 2 * math.pi)
    best: tuple[list[list[Place]], list[Place]] | None = None
    for angle in first + 2 * math.pi * np.arange(DIRECTIONS) / DIRECTIONS:
        along = np.argsort(middle @ [math.cos(angle), math.sin(angle)], kind="stable")
        ends = np.cumsum([len(group[i]) for i in along])
        borders = [0, *np.searchsorted(ends, np.cumsum(shares)[:-1] * ends[-1], side="left"), len(along)]
        runs = [[group[i] for i in along[a:b]] for a, b in pairwise(borders)]
        kept, lost = _apart([run for run in runs if run], distance_m)
        if len(kept) > 1 and (best is None or _keyframes(lost) < _keyframes(best[1])):
            best = kept, lost
    return best or ([list(group)], [])


def _apart(runs: Sequence[Sequence[Place]], distance_m: float) -> tuple[list[list[Place]], list[Place]]:
    """The runs, the smallest whole, each larger one without its scenes that are near those before it."""
    kept: list[list[Place]] = []
    lost: list[Place] = []
    for run in sorted(runs, key=_keyframes):
        if not kept:
            kept.append(list(run))
            continue
        tree = cKDTree(np.concatenate([place.xy_m for piece in kept for place in piece]))
        near = [bool(tree.query(place.xy_m)[0].min() <= distance_m) for place in run]
        lost += [place for place, close in zip(run, near) if close]
        if rest := [place for place, close in zip(run, near) if not close]:
            kept.append(rest)
    return kept, lost


def check_part_names(names: Iterable[str]) -> None:
    """Raises ConfigError for a part named like one of nuScenes' splits, which readers would take instead."""
    if taken := [name for name in names if name in official_splits()]:
        raise ConfigError(f"part {taken[0]!r} is a split of nuScenes, which readers take first; name it geo_{taken[0]}")


def write_split(path: str | Path, parts: Mapping[str, Sequence[str]]) -> list[str]:
    """Write the parts into a ``splits.json``, beside those that it already holds; names of the ones that are replaced.

    Raises what check_part_names does, and DataError for a file that holds something else.
    """
    check_part_names(parts)
    before = read_lists(path) if Path(path).is_file() else {}
    write_json(path, before | {name: list(held) for name, held in parts.items()}, indent=1)
    return [name for name in parts if name in before and sorted(before[name]) != sorted(parts[name])]
