"""The OpenLane-V2 score of predictions on Frames, with all its parts and the F-score, and the metric version stated.

Sources: ols.py, fscore.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...core.answers import LaneGraph
from ...core.errors import NoLabelsError
from ...core.frames import Frame
from ...core.labels import ELEMENT_ATTRIBUTES, LaneLabels
from ...data_tools.labels.files import check_lanes
from ...data_tools.readers.openlane.files import EVALUATION_INTERVAL, RAW_POINTS
from . import ols as evaluation
from .fscore import fscore
from .ols import LANE_THRESHOLDS_M, Version


def evaluate(
    frames: Sequence[Frame],
    predicted: Callable[[str], LaneGraph],
    version: Version = "v2.1",
    on_sample: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Scores of ``predicted(sample token)`` on all frames.

    Labelled lanes of 201 points, OpenLane-V2's raw form, are thinned to 11 as the official preprocessing does for val
    and test: the Frechet distance is one between points, so the number of points decides it.

    Returns what ``evaluation.evaluate`` and ``fscore.fscore`` return, in one.
    Raises DataError as ``check_labels``.
    """
    check_labels(frames)
    truths = [thinned(frame.lanes) for frame in frames if frame.lanes is not None]  # all, as checked
    graphs = [predicted(frame.token) for frame in frames]
    return evaluation.evaluate(truths, graphs, on_sample, version) | fscore(truths, graphs)


def thinned(labels: LaneLabels) -> LaneLabels:
    """Raw lanes as the official preprocessing has them for val and test."""
    lines = [line[::EVALUATION_INTERVAL] if len(line) == RAW_POINTS else line for line in labels.centrelines]
    return replace(labels, centrelines=lines)


def check_labels(frames: Sequence[Frame]) -> None:
    """Raises NoLabelsError, naming the sample, if a frame has no lane labels, DataError if it has unusable ones."""
    bare = [frame for frame in frames if frame.lanes is None]
    if bare or not frames:
        where = f"sample {bare[0].token}: no lane labels" if bare else "no frame at all"
        raise NoLabelsError(f"{where} ({len(bare)} of {len(frames)} frames have none); score a split that is labelled")
    for frame in frames:
        if frame.lanes is not None:
            check_lanes(frame.lanes, f"sample {frame.token}")


def _occurring(scores: Mapping[str, Any]) -> list[str]:
    if scores["ols_occurring"] is None:
        return ["(no label has a traffic element: DET_t says nothing here)"]
    return [
        f"OLS {scores['ols_occurring']:.4f}    DET_t {scores['det_t_occurring']:.4f}    over the attributes that labels"
        " have (not official)"
    ]


def table(scores: Mapping[str, Any]) -> list[str]:
    """The scores as lines of text."""
    parts = "   ".join(f"{name} {scores[name.lower()]:.4f}" for name in ("DET_l", "DET_t", "TOP_ll", "TOP_lt"))
    ways = "   ".join(f"{name} {scores[f'lane_{name}']:.4f}" for name in ("recall", "precision"))
    lines = [
        f"OLS {scores['ols']:.4f}    {parts}    metric {scores['metric_version']}, {scores['frames']} frames",
        *_occurring(scores),
        f"F-score of lanes {scores['lane_fscore']:.4f}    {ways}",
        "",
        f"{'lanes found within':<22}" + "".join(f"{f'{t:g} m':>8}" for t in LANE_THRESHOLDS_M),
    ]
    for name in ("DET_l", "TOP_ll", "TOP_lt"):
        by_threshold = scores[f"{name.lower()}_by_threshold"].values()
        lines.append(f"{name:<22}" + "".join(f"{value:>8.3f}" for value in by_threshold))
    lines += ["", f"{'traffic element':<22}{'DET_t':>8}    (1 where neither labels nor predictions have any)"]
    return lines + [f"{name:<22}{v:>8.3f}" for name, v in zip(ELEMENT_ATTRIBUTES, scores["det_t_by_attribute"])]
