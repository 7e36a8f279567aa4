"""Scored boxes in the global frame, and submission files read into them.

Shapes: k boxes of a sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...core.errors import SubmissionError, library_errors
from ...geometry import quaternion_to_matrix, yaw_of
from .nuscenes_rules import CLASS_ATTRIBUTES, MAX_BOXES_PER_SAMPLE, MAX_FILE_BYTES, MAX_NUMBER, check_submission


@dataclass(frozen=True)
class ScoredBoxes:
    """The predicted boxes of one sample, in the GLOBAL frame."""

    names: list[str]
    """Class of each box."""
    scores: NDArray[np.float64]
    """[k]"""
    centre_global_m: NDArray[np.float64]
    """[k, 3]"""
    size_lwh_m: NDArray[np.float64]
    """[k, 3]"""
    yaw_rad: NDArray[np.float64]
    """[k], counter-clockwise from the global x axis."""
    velocity_global_mps: NDArray[np.float64]
    """[k, 2], NaN where the model states none."""
    attributes: list[str]
    """'' where the model states none."""

    def __len__(self) -> int:
        return len(self.names)


class _Box(msgspec.Struct, gc=False):
    sample_token: str
    translation: tuple[float, float, float]
    size: tuple[float, float, float]  # width, length, height
    rotation: tuple[float, float, float, float]
    velocity: tuple[float, float]
    detection_name: str
    detection_score: float
    attribute_name: str


class _Meta(msgspec.Struct):
    use_camera: bool
    use_lidar: bool
    use_radar: bool
    use_map: bool
    use_external: bool


class _File(msgspec.Struct):
    meta: _Meta
    results: dict[str, msgspec.Raw]


class _Inputs(msgspec.Struct):
    meta: _Meta


def read_inputs(path: str | os.PathLike[str]) -> dict[str, bool]:
    """``meta`` of a submission that ``read_submission`` reads: which inputs made it."""
    return msgspec.structs.asdict(msgspec.json.decode(Path(path).read_bytes(), type=_Inputs).meta)


def read_submission(
    path: str | os.PathLike[str], expected_tokens: Iterable[str] | None = None, own_classes: Iterable[str] = ()
) -> dict[str, ScoredBoxes]:
    """Boxes of a submission file by sample token, in the order of the file.

    expected_tokens, own_classes: as :func:`nuscenes_rules.check_submission` takes them. A file in order is read and
    checked in one quick pass; with any other, that function reports what is wrong.

    Raises SubmissionError naming the first broken rule, DataError if the file cannot be opened.
    """
    attributes = {**dict.fromkeys(own_classes, ()), **CLASS_ATTRIBUTES}
    expected = None if expected_tokens is None else set(expected_tokens)
    found = _quick(Path(path), expected, attributes)
    if found is not None:
        return found
    problems = check_submission(path, expected_tokens, own_classes)
    if problems:
        more = f" (and {len(problems) - 1} more; see `drivestack check-submission`)" if len(problems) > 1 else ""
        raise SubmissionError(f"{path}: {problems[0]}{more}")
    with library_errors(SubmissionError, path, "write it again with `drivestack predict`"):
        try:
            results = json.loads(Path(path).read_text(encoding="utf-8"))["results"]
            return {token: _scored(msgspec.convert(boxes, list[_Box])) for token, boxes in results.items()}
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from None


def boxes_of_entries(entries: Iterable[Mapping[str, Any]], kind: str = "detection") -> ScoredBoxes:
    """The boxes of a sample from entries of a submission that keep its rules; ``kind``: "detection" or "tracking".

    Tracks have no attributes. Raises ValueError for numbers against the rules.
    """
    renamed = (
        {
            **{key: entry[key] for key in ("sample_token", "translation", "size", "rotation", "velocity")},
            "detection_name": entry[f"{kind}_name"],
            "detection_score": entry[f"{kind}_score"],
            "attribute_name": entry.get("attribute_name", ""),
        }
        for entry in entries
    )
    return _scored(msgspec.convert(list(renamed), list[_Box]))


def _quick(
    path: Path, expected: set[str] | None, attributes: Mapping[str, tuple[str, ...]]
) -> dict[str, ScoredBoxes] | None:
    """The boxes of a file that breaks no rule; None where one may be broken."""
    allowed = {(name, own) for name, held in attributes.items() for own in ("", *held)}
    decoder = msgspec.json.Decoder(list[_Box])
    found = {}
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return None
        content = path.read_bytes()
        file = msgspec.json.decode(content, type=_File)
        for token, raw in file.results.items():
            boxes = decoder.decode(raw)
            if len(boxes) > MAX_BOXES_PER_SAMPLE or any(box.sample_token != token for box in boxes):
                return None
            if not {(box.detection_name, box.attribute_name) for box in boxes} <= allowed:
                return None
            found[token] = _scored(boxes)
    except (OSError, msgspec.DecodeError, ValueError, OverflowError, RecursionError, MemoryError):
        return None
    # Of two equal keys the decoder keeps the last. A file without such has a list per sample and four per box.
    twice = content.count(b"[") != len(found) + 4 * sum(map(len, found.values()))
    sensor = file.meta.use_camera or file.meta.use_lidar or file.meta.use_radar
    if twice or not sensor or (expected is not None and expected != found.keys()):
        return None
    return found


def _scored(boxes: list[_Box]) -> ScoredBoxes:
    """Raises ValueError for numbers against the rules."""
    rotation = np.array([box.rotation for box in boxes], dtype=np.float64).reshape(-1, 4)
    size_wlh = np.array([box.size for box in boxes], dtype=np.float64).reshape(-1, 3)
    found = ScoredBoxes(
        names=[box.detection_name for box in boxes],
        scores=np.array([box.detection_score for box in boxes], dtype=np.float64),
        centre_global_m=np.array([box.translation for box in boxes], dtype=np.float64).reshape(-1, 3),
        size_lwh_m=size_wlh[:, [1, 0, 2]],
        yaw_rad=yaw_of(quaternion_to_matrix(rotation)),
        velocity_global_mps=np.array([box.velocity for box in boxes], dtype=np.float64).reshape(-1, 2),
        attributes=[box.attribute_name for box in boxes],
    )
    numbers = (found.scores, found.centre_global_m, found.size_lwh_m, found.yaw_rad, found.velocity_global_mps)
    if not all(np.isfinite(values).all() for values in numbers):
        raise ValueError("a number is not finite")
    if any((np.abs(values) > MAX_NUMBER).any() for values in numbers[1:]):
        raise ValueError("a number is beyond any map")
    if (found.scores < 0).any() or (size_wlh <= 0).any() or (np.abs(np.linalg.norm(rotation, axis=1) - 1) > 1e-3).any():
        raise ValueError("a score, a size or a quaternion breaks the rules")
    return found
