"""The samples of scenes in the nuScenes schema: by scene_token and in time, whatever their chain says.

The tables state an order twice: by scene_token and timestamp, and by first_sample_token, next and prev. Converters
leave the chain empty or break it; everything here and the official scores go by scene_token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ....core.errors import DataError
from ....core.files import file_name
from ....core.once import warn_once
from ..world import check_times


class SceneRow(Protocol):
    """What is used of a row of scene.json."""

    @property
    def token(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def first_sample_token(self) -> str: ...
    @property
    def nbr_samples(self) -> Any: ...


class SampleRow(Protocol):
    """What is used of a row of sample.json."""

    @property
    def token(self) -> str: ...
    @property
    def scene_token(self) -> str: ...
    @property
    def timestamp(self) -> int | float: ...
    @property
    def prev(self) -> str: ...
    @property
    def next(self) -> str: ...


AnySample = TypeVar("AnySample", bound=SampleRow)


def samples_in_order(
    folder: Path, scenes: Sequence[SceneRow], samples: Mapping[str, AnySample]
) -> dict[str, AnySample]:
    """Samples by token, in the order of the scenes and of time; one warning where chains of the tables disagree.

    Raises DataError naming table and sample for names that cannot be files, times that are not those of keyframes, and
    a scene without any of its samples.
    """
    of_scene: dict[str, list[AnySample]] = {scene.token: [] for scene in scenes}
    for sample in samples.values():
        file_name(sample.token, f"{folder / 'sample.json'}: sample token")
        if not math.isfinite(sample.timestamp):
            raise DataError(f"{folder / 'sample.json'}: sample {sample.token}: its timestamp is no number; correct it")
        of_scene[sample.scene_token].append(sample)
    disagreeing: list[str] = []
    for scene in scenes:
        file_name(scene.name, f"{folder / 'scene.json'}: scene name")
        members = sorted(of_scene[scene.token], key=lambda sample: sample.timestamp)
        of_scene[scene.token] = members
        with_place = f"{scene.name} of {folder / 'sample.json'}"
        check_times((m.timestamp for m in members), [m.token for m in members], with_place)
        if scene.first_sample_token and not members:
            raise DataError(
                f"{folder / 'sample.json'}: no sample has the scene_token of scene {scene.name}; the tables do not fit "
                "together: extract the metadata archive again"
            )
        if problem := chain_problem(scene, members):
            disagreeing.append(f"{scene.name}: {problem}")
    if disagreeing:
        more = f", and {len(disagreeing) - 1} other scenes" if len(disagreeing) > 1 else ""
        warn_once(
            f"{folder}: the chain of samples disagrees with scene_token (scene {disagreeing[0]}{more}); all samples "
            "are read by scene_token, in the order of time"
        )
    return {sample.token: sample for scene in scenes for sample in of_scene[scene.token]}


def chain_problem(scene: SceneRow, members: Sequence[SampleRow]) -> str:
    """How first_sample_token, next, prev and nbr_samples differ from the members in time; '' where they do not."""
    tokens = ["", *(member.token for member in members), ""]
    if scene.first_sample_token != tokens[1]:
        return f"first_sample_token is {scene.first_sample_token or 'empty'}, the first in time {tokens[1] or 'none'}"
    for k, member in enumerate(members, start=1):
        if (member.prev, member.next) != (tokens[k - 1], tokens[k + 1]):
            return f"prev and next of sample {member.token} are not its neighbours in time"
    if isinstance(scene.nbr_samples, int) and 0 <= scene.nbr_samples != len(members):
        return f"nbr_samples is {scene.nbr_samples}, of scene_token are {len(members)}"
    return ""
