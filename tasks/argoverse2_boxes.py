"""3D boxes on Argoverse 2: submissions of its detection benchmark, and its score (CDS)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..bev.evaluation import argoverse2_metrics, argoverse2_rules
from ..bev.evaluation.argoverse2_region import RegionOfInterest, grid_of
from ..bev.evaluation.argoverse2_submission import read_detections, read_rows, score_submission, write_submission
from ..core.argoverse2 import EVALUATED_CLASSES, sweep_time_ns
from ..core.errors import ConfigError, DataError, NoLabelsError
from ..core.frames import Frame
from ..core.once import warn_once
from ..data_tools.readers.argoverse2.lanes import map_path, read_areas
from ..data_tools.readers.argoverse2.sensor import log_folder
from .base import GroundTruth, Predictions, Reader, all_there, foreign, refuse


@dataclass(frozen=True)
class Argoverse2Boxes:
    """class_names: those of the model; default: the 26 that are evaluated, which are always scored all. region: score
    only what is on or near the maps' drivable areas, as the leaderboard does; default: where all logs have a map.

    Raises ConfigError for class names that are not Argoverse 2's.
    """

    title: ClassVar[str] = "3D boxes (Argoverse 2)"
    file: ClassVar[str] = "detections.feather"
    scores_file: ClassVar[str] = "argoverse2_scores.json"
    summary_names: ClassVar[tuple[str, ...]] = argoverse2_metrics.SUMMARY
    class_names: Sequence[str] = ()
    region: bool | None = None
    _answered: dict[str, frozenset[str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By path of what this object has written: the sweeps that were predicted, also those without a box."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.class_names if name not in EVALUATED_CLASSES]:
            raise ConfigError(
                f"benchmark argoverse2: class {unknown[0]!r} is not one of its 26 ({', '.join(EVALUATED_CLASSES)}); "
                "name the config's classes so, or leave benchmark out"
            )

    def write(self, path: Path, predictions: Predictions, split: str) -> str:
        num = write_submission(path, predictions.detections, predictions.frames, predictions.class_names)
        self._answered[str(path.absolute())] = frozenset(frame.token for frame in predictions.frames)
        return f"{num} boxes"

    def check(self, path: Path, truth: GroundTruth | None) -> list[str]:
        return self._problems(path, truth, every_sweep=True)

    def _problems(self, path: Path, truth: GroundTruth | None, every_sweep: bool) -> list[str]:
        sweeps = None if truth is None else argoverse2_rules.sweeps_of(truth.frames)
        answered = frozenset() if every_sweep else self._answered.get(str(path.absolute()), frozenset())
        found = argoverse2_rules.check_submission(path, sweeps, every_sweep=every_sweep, answered=answered)
        return [str(problem) for problem in found]

    def compared(self, truth: GroundTruth) -> str:
        return all_there(truth)

    def oddities(self, path: Path, truth: GroundTruth | None) -> list[str]:
        return argoverse2_rules.oddities(path)

    def demand_names(self, truth: GroundTruth) -> None:
        for frame in truth.frames:
            sweep_time_ns(frame)

    def demand(self, truth: GroundTruth) -> None:
        self.demand_names(truth)
        notes = [frame.annotations for frame in truth.frames if frame.annotations is not None]
        if not any(len(own) for own in notes):
            raise NoLabelsError(f"{truth.source} has no annotations; score a labelled split")
        if bare := [frame.token for frame in truth.frames if frame.annotations is None]:
            raise NoLabelsError(f"{truth.source}: {len(bare)} frames have no annotations, such as {bare[0]}")
        names = {name for own in notes for name in own.names}
        if not names & set(EVALUATED_CLASSES):
            found = ", ".join(sorted(names - {""})[:20]) or "no class"
            raise NoLabelsError(
                f"{truth.source}: its labels are of {found}, none of the 26 of Argoverse 2; read the set with the "
                "reader argoverse2_sensor, without the option classes"
            )
        if not argoverse2_metrics.any_counts(truth.frames, EVALUATED_CLASSES, self._region_of(truth)):
            raise NoLabelsError(f"{truth.source}: {argoverse2_metrics.NOTHING_COUNTS}")

    def _region_of(self, truth: GroundTruth) -> Callable[[str], RegionOfInterest] | None:
        """The region of interest of a log, by its name; None: boxes are scored everywhere.

        Raises DataError for a log without a map where ``region`` is wanted, and for a map that cannot be used.
        """
        if self.region is False:
            return None
        areas: dict[str, list[NDArray[np.float64]]] = {}
        for frame in {frame.scene_token: frame for frame in truth.frames}.values():
            try:
                path = map_path(log_folder(frame))
            except DataError:
                if self.region:
                    raise
                warn_once(
                    f"log {frame.scene_token} has no map (map/log_map_archive_*.json): boxes are scored everywhere, "
                    "the leaderboard scores those on or near drivable areas"
                )
                return None
            areas[frame.scene_token] = read_areas(path)
            try:
                grid_of(areas[frame.scene_token])
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
        return lambda log: RegionOfInterest.of_areas(areas[log])

    def score(self, path: Path, truth: GroundTruth, progress: bool = True) -> dict[str, Any]:
        refuse(path, self._problems(path, truth, every_sweep=False))
        region_of = self._region_of(truth)
        scores = score_submission(path, truth.frames, EVALUATED_CLASSES, region_of)
        return scores | {"within_region_of_interest": region_of is not None}

    def table(self, scores: dict[str, Any]) -> list[str]:
        where = "on or near drivable areas" if scores["within_region_of_interest"] else "everywhere"
        return [*argoverse2_metrics.table(scores), f"(within 150 m, {where})"]

    def summary(self, scores: dict[str, Any]) -> dict[str, float]:
        return argoverse2_metrics.summary(scores)

    def drawing_problems(self, path: Path, truth: GroundTruth, frames: Sequence[Frame]) -> list[str]:
        refuse(path, self._problems(path, None, every_sweep=False))
        return foreign(read_rows(path).sweeps()[0], truth.tokens)

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        refuse(path, self._problems(path, None, every_sweep=False))
        found = read_detections(path, frames, class_names)
        return lambda frame: found.get(frame.token)
