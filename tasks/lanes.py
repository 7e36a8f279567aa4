"""Lanes, traffic elements and their topology: OpenLane-V2 submissions and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..core.answers import LaneGraph
from ..core.errors import DataError
from ..core.frames import Frame
from ..core.progress import ProgressDisplay
from ..data_tools.readers.openlane.files import Identifier, identifier_of
from ..lane_topology.evaluation import evaluate, rules, submission
from .base import GroundTruth, Predictions, Reader, all_there, foreign, refuse


@dataclass(frozen=True)
class Lanes:
    """team, half: of the file to write; max_bytes: the largest file that the server takes; version: of the metric."""

    title: ClassVar[str] = "lanes and traffic elements (OpenLane-V2)"
    file: ClassVar[str] = "lanes.pkl"
    scores_file: ClassVar[str] = "lane_scores.json"
    summary_names: ClassVar[tuple[str, ...]] = (
        "OLS", "DET_L", "DET_T", "TOP_LL", "TOP_LT", "OLS_OCCURRING", "LANE_FSCORE",
    )  # fmt: skip
    team: submission.Team = submission.NOBODY
    half: bool = False
    max_bytes: int | None = None
    version: evaluate.Version = "v2.1"

    def write(self, path: Path, predictions: Predictions, split: str) -> str:
        graphs: dict[Identifier, LaneGraph] = {}
        for frame in predictions.frames:
            graph = predictions.answers[frame.token].lanes
            assert graph is not None  # the task was asked for
            graphs[identifier_of(frame, split)] = graph
        submission.write_submission(path, graphs, self.team, self.half)
        unnamed = "; it names no team yet (--team)" if self.team == submission.NOBODY else ""
        return f"{sum(len(graph.lane_scores) for graph in graphs.values())} lanes{unnamed}"

    def check(self, path: Path, truth: GroundTruth | None) -> list[str]:
        expected = None if truth is None else self._identifiers(truth).values()
        return rules.check_submission(path, expected, self.max_bytes)

    def _identifiers(self, truth: GroundTruth) -> dict[str, Identifier]:
        """By sample token. Raises DataError where two samples have one: a submission could hold one of them only."""
        found = {frame.token: identifier_of(frame, truth.split) for frame in truth.frames}
        tokens: dict[Identifier, str] = {}
        for token, identifier in found.items():
            if (other := tokens.setdefault(identifier, token)) != token:
                raise DataError(
                    f"{truth.source}: samples {other} and {token} are both {'/'.join(identifier)} (split, scene, time) "
                    "to OpenLane-V2; score one folder at a time, or give the scenes names of their own"
                )
        return found

    def demand(self, truth: GroundTruth) -> None:
        evaluate.check_labels(truth.frames)
        self.demand_names(truth)

    def demand_names(self, truth: GroundTruth) -> None:
        self._identifiers(truth)

    def compared(self, truth: GroundTruth) -> str:
        return all_there(truth)

    def oddities(self, path: Path, truth: GroundTruth | None) -> list[str]:
        return rules.oddities(submission.read_predictions(path))

    def drawing_problems(self, path: Path, truth: GroundTruth, frames: Sequence[Frame]) -> list[str]:
        problems = rules.check_submission(path)
        if problems:
            return problems
        expected = ["/".join(identifier) for identifier in self._identifiers(truth).values()]
        return foreign(["/".join(identifier) for identifier in submission.read_predictions(path)], expected)

    def score(self, path: Path, truth: GroundTruth, progress: bool = True) -> dict[str, Any]:
        refuse(path, self.check(path, truth))
        identifiers, found = self._identifiers(truth), submission.read_predictions(path)
        with ProgressDisplay("score lanes", len(truth.frames), unit="samples", shown=progress) as display:
            return evaluate.evaluate(
                truth.frames, lambda token: found[identifiers[token]], self.version, on_sample=display.advance
            )

    def table(self, scores: dict[str, Any]) -> list[str]:
        return evaluate.table(scores)

    def summary(self, scores: dict[str, Any]) -> dict[str, float]:
        found = {name: scores[name.lower()] for name in self.summary_names}
        return {name: math.nan if score is None else score for name, score in found.items()}

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        found = submission.read_predictions(path)
        return lambda frame: found.get(identifier_of(frame, split))
