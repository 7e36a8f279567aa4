"""The rules of a nuScenes detection submission, and a checker that reports each broken rule with its place and fix.

Format: https://www.nuscenes.org/object-detection ("Results format").
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...core.errors import DataError
from ...core.file_kinds import kind_of_file
from ...core.ids import ids_apart

MAX_BOXES_PER_SAMPLE = 500
MAX_NUMBER = 1e9
"""Of metres and m/s: with larger ones scores are no numbers, in the devkit too."""
MAX_FILE_BYTES = 8_000_000_000
"""Above what the 28,130 samples of the largest split need with 500 boxes each."""

_VEHICLE = ("vehicle.moving", "vehicle.parked", "vehicle.stopped")
_CYCLE = ("cycle.with_rider", "cycle.without_rider")
_PEDESTRIAN = ("pedestrian.moving", "pedestrian.sitting_lying_down", "pedestrian.standing")

CLASS_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "car": _VEHICLE,
    "truck": _VEHICLE,
    "bus": _VEHICLE,
    "trailer": _VEHICLE,
    "construction_vehicle": _VEHICLE,
    "pedestrian": _PEDESTRIAN,
    "motorcycle": _CYCLE,
    "bicycle": _CYCLE,
    "traffic_cone": (),
    "barrier": (),
}
"""Attributes a box of each class may carry; every class may also carry none ('')."""

META_FLAGS = ("use_camera", "use_lidar", "use_radar", "use_map", "use_external")


@dataclass(frozen=True)
class Problem:
    """One broken rule of a submission file."""

    message: str
    fix: str
    sample_token: str = ""
    box_index: int | None = None
    field: str = ""

    def __str__(self) -> str:
        where = []
        if self.sample_token:
            where.append(f"sample {self.sample_token}")
        if self.box_index is not None:
            where.append(f"box {self.box_index}")
        if self.field:
            where.append(self.field)
        place = ", ".join(where)
        return f"{place + ': ' if place else ''}{self.message}; {self.fix}"


def check_submission(
    path: str | os.PathLike[str], expected_tokens: Iterable[str] | None = None, own_classes: Iterable[str] = ()
) -> list[Problem]:
    """Every rule of the nuScenes detection format that the file breaks; an empty list means valid.

    expected_tokens: sample tokens of the split; without them missing and foreign samples
    are not reported. own_classes: names allowed beside the benchmark's; their boxes carry no attribute.
    Raises DataError if the file cannot be opened.
    """
    attributes = {**dict.fromkeys(own_classes, ()), **CLASS_ATTRIBUTES}
    content, problems = read_results(Path(path), expected_tokens, "detection", "detections")
    for token, boxes in content.items():
        problems += sample_problems(token, boxes, partial(_box_faults, attributes=attributes))
    return problems


def read_results(
    path: Path, expected_tokens: Iterable[str] | None, kind: str, words: str
) -> tuple[dict[str, Any], list[Problem]]:
    """Results by sample token ({} where there are none that can be looked at), and what is wrong with all but them.

    kind, words: "detection" or "tracking", which the fields of a box begin with, and what such a file holds.
    Raises DataError if the file cannot be opened.
    """
    content, problems = _read(path)
    if content is None:
        return {}, problems
    if not isinstance(content, dict):
        return {}, [Problem("the file holds no JSON object", "write {'meta': {...}, 'results': {...}}")]
    if other := _other_task(content, kind, words):
        return {}, [Problem(f"the file holds {other}", f"give the file of {words}, results: sample token -> boxes")]
    problems += _check_meta(content.get("meta"))
    if not isinstance(content.get("results"), dict):
        state = "missing" if "results" not in content else "not an object"
        return {}, [*problems, Problem(f"is {state}", "map each sample token to its list of boxes", field="results")]
    if expected_tokens is not None:
        problems += _check_tokens(content["results"], list(expected_tokens))
    return content["results"], problems


def _read(path: Path) -> tuple[Any, list[Problem]]:
    """The content, None where it is no JSON, and what is wrong with the file itself."""
    repeated: list[str] = []

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return content

    again = "write the file again with `drivestack predict`"
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            size = f"{path.stat().st_size / 1e9:.1f} GB, more than {MAX_FILE_BYTES / 1e9:.0f}"
            return None, [Problem(f"the file has {size}", "keep the best boxes of each sample")]
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read submission {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError:
        kind = kind_of_file(path)
        return None, [Problem(f"the file is {kind or 'not UTF-8 text'}", "submit the JSON file itself, not an archive")]
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        truncated = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated")
        reason = "the file ends too early (truncated)" if truncated and text.strip() else "not JSON"
        return None, [Problem(f"{reason}: {error.msg} at line {error.lineno} column {error.colno}", again)]
    except RecursionError:
        return None, [Problem("its objects are nested too deeply", again)]
    except (ValueError, MemoryError) as error:  # a number of thousands of digits, among others
        return None, [Problem(f"not JSON that can be read: {str(error)[:200] or type(error).__name__}", again)]
    problems = [Problem(f"key {short(key)} appears twice", "write each key once") for key in dict.fromkeys(repeated)]
    if content is None:
        return None, [*problems, Problem("the file holds no JSON object", "write {'meta': {...}, 'results': {...}}")]
    return content, problems


def _other_task(content: Mapping[str, Any], kind: str, words: str) -> str:
    """What the file is a submission of, if not of boxes with ``kind``_name, "" if it is."""
    results = content.get("results")
    if not isinstance(results, dict):
        known = {"images", "annotations", "categories"}
        return f"a COCO data set, not {words} of nuScenes" if known <= content.keys() else ""
    first = next((boxes for boxes in results.values() if boxes), None)
    if isinstance(first, dict) and "predictions" in first:
        return f"a submission of OpenLane-V2 (frames with 'predictions'; its files are pickles), not nuScenes {words}"
    box = first[0] if isinstance(first, list) else None
    if isinstance(box, dict) and f"{kind}_name" not in box:
        if "tracking_name" in box:
            return f"nuScenes tracking results (tracking_name, tracking_id), not {words} ({kind}_name)"
        if "detection_name" in box:
            return f"nuScenes detections (detection_name), not {words} ({kind}_name, {kind}_id)"
        if "forecast_boxes" in box or "prediction" in box:
            return f"nuScenes forecasts, not {words} ({kind}_name)"
    return ""


def _check_meta(meta: Any) -> list[Problem]:
    if not isinstance(meta, dict):
        return [Problem("is missing or not an object", f"state {', '.join(META_FLAGS)}", field="meta")]
    problems = []
    for flag in META_FLAGS:
        if flag not in meta:
            problems.append(Problem("is missing", "state it as true or false", field=f"meta.{flag}"))
        elif not isinstance(meta[flag], bool):
            problems.append(Problem(f"is {meta[flag]!r}", "state it as true or false", field=f"meta.{flag}"))
    if not problems and not any(meta[flag] for flag in META_FLAGS[:3]):
        fix = "set the flag of each sensor that the model reads, use_camera for this project's models"
        problems.append(Problem("says that no sensor was used", fix, field="meta"))
    return problems


def _check_tokens(results: dict[str, Any], expected: list[str]) -> list[Problem]:
    wanted = set(expected)
    missing = [
        Problem("is missing from the results", "predict on it, or give it an empty list", sample_token=token)
        for token in expected
        if token not in results
    ]
    extra = [
        Problem("does not belong to the split", "remove it, or name the right split", sample_token=token)
        for token in results
        if token not in wanted
    ]
    apart = ids_apart(list(results), expected)
    message, _, fix = apart.rpartition("; ")
    return [*([Problem(message, fix)] if apart else []), *missing, *extra]


Faults = list[tuple[str, str, str]]
"""(field, message, fix) of each broken rule of one box."""


def sample_problems(token: str, boxes: Any, box_faults: Callable[[str, dict[str, Any]], Faults]) -> list[Problem]:
    """What is wrong with the boxes of one sample; ``box_faults`` takes the token and a box."""
    if not isinstance(boxes, list):
        return [Problem("its results are not a list", "give a list of boxes, empty if none", sample_token=token)]
    problems = []
    if len(boxes) > MAX_BOXES_PER_SAMPLE:
        message = f"has {len(boxes)} boxes, at most {MAX_BOXES_PER_SAMPLE} are allowed"
        problems.append(Problem(message, "keep the best-scored ones", sample_token=token))
    for index, box in enumerate(boxes):
        if not isinstance(box, dict):
            problems.append(Problem(f"is {type(box).__name__}, not an object", "give an object", token, index))
            continue
        problems += [Problem(message, fix, token, index, name) for name, message, fix in box_faults(token, box)]
    return problems


_VECTORS = (("translation", 3), ("size", 3), ("rotation", 4), ("velocity", 2))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _box_faults(token: str, box: dict[str, Any], attributes: Mapping[str, tuple[str, ...]]) -> Faults:
    """``attributes``: class -> what a box of it may carry."""
    faults = common_faults(token, box, "detection_score")
    kind, attribute = box.get("detection_name"), box.get("attribute_name")
    if not isinstance(kind, str) or kind not in attributes:
        faults.append(("detection_name", f"is {short(kind)}", f"use one of {', '.join(attributes)}"))
    elif attribute is None:
        faults.append(("attribute_name", "is missing", "give '' or an attribute of the class"))
    elif attribute != "" and attribute not in attributes[kind]:
        allowed = ", ".join(("''", *attributes[kind]))
        message = f"is {short(attribute)}, which a {kind} cannot have"
        faults.append(("attribute_name", message, f"use one of {allowed}"))
    return faults


def common_faults(token: str, box: dict[str, Any], score_field: str) -> Faults:
    """Of place, size, heading, velocity, score and token, which boxes of detections and of tracks have alike."""
    faults = []
    for name, length in _VECTORS:
        value = box.get(name)
        if name not in box:
            faults.append((name, "is missing", f"give {length} numbers"))
        elif not isinstance(value, list) or len(value) != length or not all(map(_is_number, value)):
            faults.append((name, f"is {short(value)}", f"give a list of {length} numbers"))
        elif not all(map(_is_finite, value)):
            faults.append((name, f"holds NaN or infinity: {short(value)}", "drop the box or fix the model"))
        elif max(map(abs, value)) > MAX_NUMBER:
            faults.append((name, f"is beyond any map: {short(value)}", "give metres and m/s, or fix the model"))
        elif name == "size" and min(value) <= 0:
            faults.append(
                (name, f"is not positive: {short(value)}", "give width, length, height in metres, all above 0")
            )
        elif name == "rotation" and abs(math.hypot(*value) - 1) > 1e-3:
            message = f"is a quaternion of length {math.hypot(*value):.4g}"
            faults.append((name, message, "normalise (w, x, y, z) to length 1"))

    score: Any = box.get(score_field)
    if score_field not in box:
        faults.append((score_field, "is missing", "give a number"))
    elif not _is_number(score):
        faults.append((score_field, f"is {short(score)}", "give a number"))
    elif not _is_finite(score):
        faults.append((score_field, f"is {short(score)}", "drop the box or fix the model"))
    elif score < 0:
        faults.append((score_field, f"is {short(score)}, negative", "give confidences from 0 to 1"))

    if box.get("sample_token") != token:
        message = f"is {short(box.get('sample_token'))}, not the token it is listed under"
        faults.append(("sample_token", message, "repeat the key of the list"))
    return faults


def short(value: Any) -> str:
    """A value for a message, at most 60 letters."""
    try:
        text = " ".join(repr(value).split())  # arrays have lines
    except (RecursionError, ValueError):  # nested deeply, or an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
