"""OpenLane-V2 submissions: one pickle with the team's details and the predictions of every frame.

The file holds built-in containers, numbers, text and ``numpy.ndarray`` only, pickled by protocol 4 and without NumPy's
internal functions, so Python 3.8 with any NumPy reads it, whichever wrote it. The rules are in rules.py.
Source: the package openlanev2 2.1.0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.answers import LaneGraph
from ...core.errors import LIBRARY_ERRORS, DataError, SubmissionError, library_errors
from ...core.file_kinds import kind_of_file
from ...core.pickles import load_pickle, write_pickle
from ...data_tools.readers.openlane.files import Identifier


@dataclass(frozen=True)
class Team:
    """The submitting team; the server requires every field."""

    method: str
    authors: tuple[str, ...]
    """At most 10."""
    email: str
    institution: str
    country: str
    """A code or name of ISO 3166-1."""

    def entries(self) -> dict[str, Any]:
        """Under the names of the file format."""
        return {
            "method": self.method,
            "authors": list(self.authors),
            "e-mail": self.email,
            "institution / company": self.institution,
            "country / region": self.country,
        }


NOBODY = Team("unnamed", ("nobody",), "nobody@example.com", "none", "AQ")
"""Placeholder for files that are only scored locally; its country code is that of Antarctica."""


def read_team(path: str | os.PathLike[str]) -> Team:
    """A team from a JSON file with the fields of Team. Raises SubmissionError naming the invalid field."""
    names = [f.name for f in fields(Team)]
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SubmissionError(f"{path}: cannot be read as JSON ({error}); write {', '.join(names)}") from None
    if not isinstance(content, dict) or set(content) != set(names):
        raise SubmissionError(f"{path}: must be an object of {', '.join(names)}, all of them and nothing else")
    for name, value in content.items():
        texts = value if name == "authors" else [value]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise SubmissionError(f"{path}: {name} must be {'a list of texts' if name == 'authors' else 'a text'}")
    return Team(**{**content, "authors": tuple(content["authors"])})


def frame_entry(graph: LaneGraph, half: bool = False) -> dict[str, Any]:
    """``predictions`` of one frame in the file format; points and matrices in float16 if half.

    Lanes get the ids 0 .. n-1, elements n .. n+k-1. Half precision rounds a lane at 50 m to 3 cm. Elements whose box
    has no area, as the rules forbid, are left out: those at the very border of the image.
    """
    dtype = np.float16 if half else np.float32
    n = len(graph.lane_scores)
    lanes = [
        {"id": i, "points": np.asarray(line, dtype), "confidence": float(score)}
        for i, (line, score) in enumerate(zip(graph.centrelines, graph.lane_scores))
    ]
    # in full precision: half would move a corner by a pixel
    boxes = np.asarray(graph.elements_xyxy_px, np.float32).reshape(-1, 2, 2)
    kept = np.flatnonzero((boxes[:, 1] > boxes[:, 0]).all(1))
    elements = [
        {
            "id": n + i,
            "attribute": int(graph.attributes[j]),
            "points": boxes[j],
            "confidence": float(graph.element_scores[j]),
        }
        for i, j in enumerate(kept)
    ]
    return {
        "lane_centerline": lanes,
        "traffic_element": elements,
        "topology_lclc": np.asarray(graph.lane_lane, dtype),
        "topology_lcte": np.asarray(graph.lane_element, dtype)[:, kept],
    }


def write_submission(
    path: str | os.PathLike[str], predictions: Mapping[Identifier, LaneGraph], team: Team, half: bool = False
) -> None:
    """Write all frames, atomically. half: float16, half the size (see ``frame_entry``)."""
    results = {identifier: {"predictions": frame_entry(graph, half)} for identifier, graph in predictions.items()}
    write_pickle(path, {**team.entries(), "results": results})


def read_content(path: str | os.PathLike[str]) -> Any:
    """What a submission file holds, without running any code in it.

    Raises SubmissionError for a file that cannot be read or holds anything but containers and arrays.
    """
    kind = kind_of_file(path)
    if kind not in ("", "a pickle"):
        raise SubmissionError(
            f"{path}: is {kind}; submissions of lanes are pickles: name the right file, or its --tasks"
        )
    try:
        with library_errors(SubmissionError, path, "write it again with `drivestack predict`"):
            return load_pickle(Path(path))
    except DataError as error:
        raise SubmissionError(str(error)) from None


def read_predictions(path: str | os.PathLike[str]) -> dict[Identifier, LaneGraph]:
    """Predictions of every frame; ``token`` is "split/segment/timestamp".

    Lanes of different numbers of points come as a list instead of one array.
    Raises SubmissionError for a file that cannot be read, or whose frames are not of the format: check it for details.
    """
    content = read_content(path)
    try:
        return {
            identifier: graph_of("/".join(identifier), entry["predictions"])
            for identifier, entry in content["results"].items()
        }
    except LIBRARY_ERRORS as error:
        raise SubmissionError(
            f"{path}: not an OpenLane-V2 submission ({type(error).__name__}: {error}); check_submission names the fault"
        ) from None


def graph_of(token: str, entry: Mapping[str, Any]) -> LaneGraph:
    """A frame's predictions from the file format. Raises KeyError, TypeError or ValueError where they are not that."""
    lanes, elements = entry["lane_centerline"], entry["traffic_element"]

    def column(items: list[dict[str, Any]], key: str, dtype: type[np.generic]) -> NDArray:
        return np.array([item[key] for item in items], dtype)

    lines: Any = [np.asarray(lane["points"], np.float32) for lane in lanes]
    if len({len(line) for line in lines}) <= 1:
        lines = np.stack(lines) if lines else np.zeros((0, 11, 3), np.float32)
    return LaneGraph(
        token,
        lines,
        column(lanes, "confidence", np.float32),
        column(elements, "points", np.float32).reshape(-1, 4),
        column(elements, "attribute", np.int64),
        column(elements, "confidence", np.float32),
        np.asarray(entry["topology_lclc"], np.float32).reshape(len(lanes), len(lanes)),
        np.asarray(entry["topology_lcte"], np.float32).reshape(len(lanes), len(elements)),
    )
