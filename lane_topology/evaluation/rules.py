"""Every rule of an OpenLane-V2 submission that a file breaks, each with the place and the fix.

These are the rules of the official ``check_results``, and those that its evaluation takes for granted: numbers that are
finite, attributes that exist, lanes with two points or more, boxes with an area. Source: the
package openlanev2 2.1.0.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.answers import LaneGraph
from ...core.ids import ids_apart
from ...core.physics import MAX_DISTANCE_M
from .countries import is_country
from .ols import NUM_ATTRIBUTES
from .submission import Identifier, read_content

MAX_AUTHORS = 10
_TEXTS = ("method", "e-mail", "institution / company", "country / region")
_MATRICES = {"topology_lclc": "lane_centerline", "topology_lcte": "traffic_element"}


def check_submission(
    path: str | os.PathLike[str], expected: Iterable[Identifier] | None = None, max_bytes: int | None = None
) -> list[str]:
    """Problems as one line each; an empty list means valid.

    expected: (split, segment, timestamp) of the frames of the split; without them missing and foreign ones are not
    reported. max_bytes: the largest file that the server takes.
    Raises SubmissionError if the file cannot be read, or holds more than containers and arrays.
    """
    size = Path(path).stat().st_size if Path(path).is_file() else 0
    problems = check_content(read_content(path), expected)
    if max_bytes is not None and size > max_bytes:
        fix = "write it with half=True, or fewer lanes and elements"
        problems.append(f"the file has {size / 1e6:.3g} MB, more than {max_bytes / 1e6:.3g}; {fix}")
    return problems


def check_content(content: Any, expected: Iterable[Identifier] | None = None) -> list[str]:
    """As ``check_submission``, of what the file holds."""
    if not isinstance(content, dict):
        return ["the file holds no dict; write it with write_submission"]
    problems = _check_team(content)
    results = content.get("results")
    if not isinstance(results, dict):
        state = "is missing" if "results" not in content else "is no dict"
        return [*problems, f"results {state}; map (split, segment, timestamp) to {{'predictions': ...}}"]
    if any(map(_holds_segments, results.values())):
        return [
            *problems,
            "the frames hold lane segments (lane_segment, area, topology_lsls, topology_lste), OpenLane-V2's map "
            "element task; here centrelines are checked and scored (lane_centerline, topology_lclc, topology_lcte): "
            "score segments with lane_topology.evaluation.segments.evaluate_segments",
        ]
    if expected is not None:
        wanted = set(expected)
        apart = ids_apart(set(map(_name, results)), set(map(_name, wanted)), "frames")
        problems += [apart] if apart else []
        problems += [f"frame {_name(key)}: missing; predict it" for key in sorted(wanted - set(results))]
        foreign = sorted(set(results) - wanted, key=str)
        problems += [f"frame {_name(key)}: not of this split; remove it" for key in foreign]
    for key, entry in results.items():
        if not (isinstance(key, tuple) and len(key) == 3 and all(isinstance(part, str) for part in key)):
            problems.append(f"frame {_short(key)}: the key must be (split, segment, timestamp), three texts")
        problems += [f"frame {_name(key)}: {problem}" for problem in _check_frame(entry)]
    return problems


def _name(key: Any) -> str:
    return ("/".join(map(str, key)) if isinstance(key, tuple) else str(key))[:200]


def _short(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())  # arrays have lines
    except (RecursionError, ValueError):  # nested deeply, or an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _holds_segments(entry: Any) -> bool:
    found = entry.get("predictions") if isinstance(entry, dict) else None
    return isinstance(found, dict) and "lane_segment" in found and "lane_centerline" not in found


def _is_finite(value: Any) -> bool:
    """Whether it is one real number that a float holds."""
    if not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _fits_float32(values: NDArray[Any]) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values.astype(np.float32)).all())


def _check_team(content: Mapping[str, Any]) -> list[str]:
    problems = []
    for key in _TEXTS:
        if key not in content:
            problems.append(f"{key} is missing; state it")
        elif not isinstance(content[key], str):
            problems.append(f"{key} is no text; write a str")
        elif key == "country / region" and not is_country(content[key]):
            problems.append(f"country / region {_short(content[key])} is not in ISO 3166-1; write a code like 'AT'")
    if "authors" not in content:
        problems.append("authors is missing; state a list of names")
    elif not isinstance(content["authors"], list):
        problems.append("authors is no list; write a list of names")
    elif len(content["authors"]) > MAX_AUTHORS:
        problems.append(f"authors has {len(content['authors'])} names; {MAX_AUTHORS} are allowed")
    return problems


def _check_frame(entry: Any) -> list[str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("predictions"), dict):
        return ["has no dict 'predictions'; write {'predictions': {...}}"]
    entry = entry["predictions"]
    problems: list[str] = []
    ids: list[Any] = []
    counts: dict[str, int] = {}
    for kind in ("lane_centerline", "traffic_element"):
        items = entry.get(kind)
        if not isinstance(items, list):
            problems.append(f"{kind} {'is no list' if kind in entry else 'is missing'}; write a list, empty if none")
            continue
        counts[kind] = len(items)
        for i, item in enumerate(items):
            if not isinstance(item, dict):
                problems.append(f"{kind} {i}: no dict; write id, points, confidence")
                continue
            ids += [item["id"]] if "id" in item else []
            problems += [f"{kind} {i}: {problem}" for problem in _check_item(kind, item)]
    plain = (int(i) if isinstance(i, (int, np.integer)) else i for i in ids)  # NumPy's have another text
    repeated = sorted(text for text, count in Counter(map(_short, plain)).items() if count > 1)
    if repeated:
        listed = f"{', '.join(repeated[:10])}{', ...' * (len(repeated) > 10)}"
        problems.append(f"id {listed} more than once; ids are unique over lanes and elements of a frame")
    for name, kind in _MATRICES.items():
        problems += [f"{name} {problem}" for problem in _check_matrix(entry, name, counts, kind)]
    return problems


def _check_item(kind: str, item: Mapping[str, Any]) -> list[str]:
    wanted = ["id", "points", "confidence"] + (["attribute"] if kind == "traffic_element" else [])
    missing = [key for key in wanted if key not in item]
    if missing:
        return [f"{', '.join(missing)} missing"]
    problems = []
    if not isinstance(item["id"], (int, np.integer)):
        problems.append(f"id {_short(item['id'])} is no int")
    points = item["points"]
    if not isinstance(points, np.ndarray):
        problems.append(f"points is a {type(points).__name__}; write a numpy.ndarray")
    elif kind == "lane_centerline" and (points.ndim != 2 or points.shape[1] != 3 or len(points) < 2):
        problems.append(f"points has shape {list(points.shape)}; it must be [points, 3] with two points or more")
    elif kind == "traffic_element" and points.shape != (2, 2):
        problems.append(f"points has shape {list(points.shape)}; it must be [2, 2], [[x1, y1], [x2, y2]]")
    elif points.dtype.kind not in "fiu" or not _fits_float32(points):
        problems.append("points are not all finite numbers")
    elif kind == "traffic_element" and not (points[1] > points[0]).all():
        problems.append("the box has no area; points are [[x1, y1], [x2, y2]] with x1 < x2 and y1 < y2")
    confidence = item["confidence"]
    if not _is_finite(confidence):
        problems.append(f"confidence {_short(confidence)} is no finite number")
    if kind == "traffic_element":
        attribute = item["attribute"]
        if not isinstance(attribute, (int, np.integer)) or not 0 <= attribute < NUM_ATTRIBUTES:
            problems.append(f"attribute {_short(attribute)}; it must be an int of 0..{NUM_ATTRIBUTES - 1}")
    return problems


def _check_matrix(entry: Mapping[str, Any], name: str, counts: Mapping[str, int], kind: str) -> list[str]:
    if name not in entry:
        return ["is missing; write a matrix of confidences"]
    values = entry[name]
    if not isinstance(values, np.ndarray):
        return [f"is a {type(values).__name__}; write a numpy.ndarray"]
    if len(counts) == 2 and values.shape != (counts["lane_centerline"], counts[kind]):
        shape = [counts["lane_centerline"], counts[kind]]
        return [f"has shape {list(values.shape)}; it must be {shape}, [lane_centerline, {kind}]"]
    if values.dtype.kind not in "fiub" or not _fits_float32(values):
        return ["has entries that are not finite numbers"]
    return []


def oddities(predictions: Mapping[Identifier, LaneGraph]) -> list[str]:
    """What a valid submission says that no street has, one line each: the official score takes it all the same."""
    far, total, unlikely = [], 0, []
    for identifier, graph in predictions.items():
        lanes = [np.abs(line).max() for line in graph.centrelines]
        total += len(lanes)
        far += [(identifier, i) for i, reach_m in enumerate(lanes) if reach_m > MAX_DISTANCE_M]
        numbers = np.concatenate(
            [graph.lane_scores, graph.element_scores, graph.lane_lane.ravel(), graph.lane_element.ravel()]
        )
        unlikely += [identifier] * bool(((numbers < 0) | (numbers > 1)).any())
    lines = []
    if far:
        example = f"frame {_name(far[0][0])}, lane_centerline {far[0][1]}"
        lines.append(
            f"{len(far)} of {total} lanes reach farther than {MAX_DISTANCE_M:g} m ({example}); points are metres in "
            "the frame's own vehicle frame"
        )
    if unlikely:
        lines.append(
            f"{len(unlikely)} of {len(predictions)} frames have confidences outside of 0..1, such as frame "
            f"{_name(unlikely[0])}; write probabilities"
        )
    return lines
