"""The rules of a nuScenes tracking submission, and a checker that reports each broken rule with its place and fix.

Format: https://www.nuscenes.org/tracking ("Results format"): that of detections, with ``tracking_id``,
``tracking_name`` and ``tracking_score`` in place of class, score and attribute.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .nuscenes_rules import Faults, Problem, common_faults, read_results, sample_problems, short

TRACKING_CLASSES = ("bicycle", "bus", "car", "motorcycle", "pedestrian", "trailer", "truck")


def check_tracks(path: str | os.PathLike[str], expected_tokens: Iterable[str] | None = None) -> list[Problem]:
    """Every rule of the nuScenes tracking format that the file breaks; an empty list means valid.

    expected_tokens: sample tokens of the split; without them missing and foreign samples are not reported.
    Raises DataError if the file cannot be opened.
    """
    results, problems = read_results(Path(path), expected_tokens, "tracking", "tracks")
    names: dict[str, tuple[str, str]] = {}  # track -> its class, and the sample that said so
    for token, boxes in results.items():
        own = sample_problems(token, boxes, _box_faults)
        problems += own or _id_problems(token, boxes, names)
    return problems


def _box_faults(token: str, box: dict[str, Any]) -> Faults:
    faults = common_faults(token, box, "tracking_score")
    score = box.get("tracking_score")
    if not any(field == "tracking_score" for field, _, _ in faults) and isinstance(score, (int, float)) and score > 1:
        faults.append(("tracking_score", f"is {short(score)}, above 1", "give confidences from 0 to 1"))
    name = box.get("tracking_name")
    if not isinstance(name, str) or name not in TRACKING_CLASSES:
        fix = f"use one of {', '.join(TRACKING_CLASSES)}; boxes of other classes are not tracked"
        faults.append(("tracking_name", f"is {short(name)}", fix))
    track = box.get("tracking_id")
    if "tracking_id" not in box:
        faults.append(("tracking_id", "is missing", "give the track's name, a text"))
    elif not isinstance(track, str) or not track:
        faults.append(("tracking_id", f"is {short(track)}", "give the track's name, a text that is not empty"))
    return faults


def _id_problems(token: str, boxes: list[Mapping[str, Any]], names: dict[str, tuple[str, str]]) -> list[Problem]:
    """Of tracks that are in one sample twice, or of another class than before; ``names`` is brought up to date."""
    problems = []
    first: dict[str, int] = {}
    for index, box in enumerate(boxes):
        track, name = box["tracking_id"], box["tracking_name"]
        if first.setdefault(track, index) != index:
            message = f"is {short(track)}, as of box {first[track]} of the sample"
            problems.append(Problem(message, "a track has one box in a sample", token, index, "tracking_id"))
        known, where = names.setdefault(track, (name, token))
        if known != name:
            message = f"is {name!r}, but track {short(track)} is a {known} in sample {where}"
            problems.append(Problem(message, "a track keeps its class", token, index, "tracking_name"))
    return problems
