"""Where the scenes of a data set lie, and which of two parts of it lie near one another.

A model that is tested where it was trained has seen the houses, lanes and parked cars before. Two keyframes count as
near if their cars stand within a distance of one another on the ground (x, y of the global frame; a bridge is near the
road below it), whatever the time between them. Only keyframes of one location are compared: every city of nuScenes or
Argoverse 2 has a global frame of its own. All in float64, since coordinates of UTM have seven digits before the point.

Shapes: n keyframes of a scene.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ...core.errors import ConfigError, DataError
from ...core.frames import Frame
from ...core.once import warn_once

MIN_APART_M = 100.0
"""Default distance: nothing within 50 m of the car, as far as most sets are scored, is seen from both parts."""
SAME_START_M = 1.0
"""Scenes of a real drive do not begin closer than this to one another; those of a frame per scene do."""


@dataclass(frozen=True)
class Place:
    """The keyframes of one scene."""

    scene: str
    """Its name, or its token where it has none."""
    location: str
    """'' where the set does not say."""
    xy_m: NDArray[np.float64]
    """[n, 2], in the global frame of the location."""

    def __len__(self) -> int:
        return len(self.xy_m)

    @property
    def corners_m(self) -> NDArray[np.float64]:
        """[4]: least x, y and greatest x, y."""
        return np.concatenate([self.xy_m.min(0), self.xy_m.max(0)])


@dataclass(frozen=True)
class Near:
    """A scene of one part that comes near the other part."""

    scene: str
    location: str
    keyframes: int
    near: int
    """Of its keyframes, those within the distance of any keyframe of the other part."""
    least_m: float
    """Smallest distance."""
    others: tuple[tuple[str, int, float], ...]
    """Scenes of the other part: name, near keyframes that are nearest to it, their smallest distance; most first."""


@dataclass(frozen=True)
class Overlap:
    """What of two parts lies within a distance of the other."""

    distance_m: float
    first: tuple[Near, ...]
    second: tuple[Near, ...]
    shared: tuple[str, ...]
    """Scenes in both."""

    @property
    def disjoint(self) -> bool:
        return not (self.first or self.second or self.shared)


def places_of(frames: Iterable[Frame], locations: Mapping[str, str] | None = None) -> list[Place]:
    """The scenes of frames, sorted by name. locations: of scenes by name, where the frames do not state them.

    Raises DataError for a scene of several locations.
    """
    held: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        held[frame.scene_name or frame.scene_token].append(frame)
    known = locations or {}
    if strange := sorted(set(known) - set(held)):
        raise ConfigError(f"locations: no scene {strange[0]!r} here; name scenes such as {next(iter(held), 'none')!r}")
    out = []
    for scene, own in sorted(held.items()):
        stated = {known.get(scene) or str(frame.conditions.get("location", "")) for frame in own}
        if len(stated) > 1:
            raise DataError(f"scene {scene} is in {len(stated)} locations: {', '.join(sorted(stated))}; correct them")
        xy = np.array([frame.global_from_ego[:2, 3] for frame in own], dtype=np.float64).reshape(-1, 2)
        out.append(Place(scene, stated.pop(), xy))
    return out


def check_locations(places: Sequence[Place]) -> None:
    """Raises DataError where only some scenes have a location: their distances from the others mean nothing. Warns
    where poses look as if every scene had a frame of its own."""
    nowhere = [place.scene for place in places if not place.location]
    if nowhere and len(nowhere) < len(places):
        raise DataError(
            f"{len(nowhere)} of {len(places)} scenes have no location, such as {nowhere[0]}, so they cannot be "
            "compared with the others; state it for all of them (--locations)"
        )
    begin: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for place in {place.scene: place for place in places}.values():
        begin[place.location].append(place.xy_m[0])
    for location, starts in begin.items():
        distance, _ = cKDTree(np.stack(starts)).query(np.stack(starts), k=2)  # [scenes, 2], itself first
        same = int((distance[:, 1] < SAME_START_M).sum())
        if same > max(2, len(starts) / 2):
            warn_once(
                f"{same} of {len(starts)} scenes{f' of {location}' if location else ''} begin within "
                f"{SAME_START_M:g} m of another one: their poses look local to each scene; distances between scenes "
                "then mean nothing (name a location for each: --locations)"
            )


def overlap(first: Sequence[Place], second: Sequence[Place], distance_m: float = MIN_APART_M) -> Overlap:
    """Scenes of each part with keyframes within ``distance_m`` of a keyframe of the other part.

    A scene in both parts (its keyframes may be dealt out) is compared like any other, and listed as shared.
    """
    check_distance(distance_m)
    check_locations([*first, *second])
    shared = {place.scene for place in first} & {place.scene for place in second}
    near = _near(first, second, distance_m), _near(second, first, distance_m)
    return Overlap(distance_m, *near, tuple(sorted(shared)))


def check_distance(distance_m: float) -> None:
    """Raises ConfigError for one that is negative or not finite."""
    if not (np.isfinite(distance_m) and distance_m >= 0):
        raise ConfigError(f"distance {distance_m} m: give metres from 0 on")


def _near(places: Sequence[Place], others: Sequence[Place], distance_m: float) -> tuple[Near, ...]:
    """The scenes that come near any of the others, most keyframes first."""
    by_location: dict[str, list[Place]] = defaultdict(list)
    for other in others:
        by_location[other.location].append(other)
    trees = {location: cKDTree(np.concatenate([own.xy_m for own in held])) for location, held in by_location.items()}
    owner = {location: np.repeat(np.arange(len(held)), list(map(len, held))) for location, held in by_location.items()}
    found = []
    for place in places:
        if place.location not in trees:
            continue
        distance, nearest = trees[place.location].query(place.xy_m)  # [n], [n]
        close = distance <= distance_m
        rows = []
        for k in np.unique(owner[place.location][nearest[close]]):
            own = close & (owner[place.location][nearest] == k)
            rows.append((by_location[place.location][k].scene, int(own.sum()), float(distance[own].min())))
        if rows:
            rows.sort(key=lambda row: (-row[1], row[2], row[0]))
            least = float(distance.min())
            found.append(Near(place.scene, place.location, len(place), int(close.sum()), least, tuple(rows)))
    return tuple(sorted(found, key=lambda own: (-own.near, own.scene)))


def read_lists(path: str | Path) -> dict[str, list[str]]:
    """Parts of a split: a JSON object, part -> names or tokens of scenes, or tokens of samples. Raises DataError."""
    content = _read_json(path)
    if not isinstance(content, dict) or not all(isinstance(part, list) for part in content.values()):
        raise DataError(f"{path}: must map names of parts to lists of scenes or samples; correct it")
    for name, part in content.items():
        if not part or not all(isinstance(entry, str) for entry in part):
            raise DataError(f"{path}: part {name!r} is empty or holds other things than names; correct it")
    return content


def read_locations(path: str | Path) -> dict[str, str]:
    """Scene -> location, a JSON object. Raises DataError."""
    content = _read_json(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) and name for name in content.values()):
        raise DataError(f"{path}: must map names of scenes to their location; correct it")
    return content


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); correct it") from None


def frames_of_list(frames: Sequence[Frame], entries: Sequence[str], place: str) -> list[Frame]:
    """The frames that a list names, by scene name, scene token or sample token. place: of the list, for messages.

    Raises DataError for entries that no frame has: they would be taken to lie nowhere.
    """
    wanted = set(entries)
    chosen = [frame for frame in frames if wanted & {frame.scene_name, frame.scene_token, frame.token}]
    known = {name for frame in chosen for name in (frame.scene_name, frame.scene_token, frame.token)}
    if missing := [entry for entry in entries if entry not in known]:
        raise DataError(
            f"{place}: {len(missing)} of {len(entries)} entries are no scene or sample of the data, such as "
            f"{missing[0]!r}; name the source of every part (--and split=val)"
        )
    return chosen
