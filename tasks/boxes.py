"""3D boxes: nuScenes submissions and scores, for the benchmark's classes and for any others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..bev.evaluation import nuscenes_metrics, nuscenes_official, nuscenes_rules
from ..bev.evaluation.class_mapping import errors_not_stated
from ..bev.evaluation.nuscenes_boxes import ScoredBoxes, read_submission
from ..bev.evaluation.nuscenes_metrics import DETECTION_CVPR_2019, DetectionSettings
from ..bev.evaluation.nuscenes_rules import CLASS_ATTRIBUTES
from ..bev.evaluation.nuscenes_submission import CLASS_RANGE_M, OTHER_RANGE_M, NuScenesSubmission, read_detections
from ..bev.evaluation.oddities import all_far_away, oddities
from ..core.errors import ConfigError, NoLabelsError
from ..core.frames import Frame
from ..core.once import warn_once
from .across import AcrossSets
from .base import GroundTruth, Predictions, Reader, all_there, foreign, refuse


def detection_settings(class_names: Sequence[str], class_range_m: Mapping[str, float]) -> DetectionSettings:
    """How boxes of these classes are scored: as nuScenes does where all are its classes and no other range is given.

    Other classes are scored within OTHER_RANGE_M, or ``class_range_m``; they have no attributes.
    Raises ConfigError for a range of a class that is not there.
    """
    if unknown := [name for name in class_range_m if name not in class_names]:
        raise ConfigError(f"class range of {unknown[0]!r}: the classes are {', '.join(class_names)}")
    if set(class_names) <= set(CLASS_RANGE_M) and not class_range_m:
        return DETECTION_CVPR_2019
    undefined: dict[str, tuple[str, ...]] = {
        name: () if name in CLASS_ATTRIBUTES else ("mAAE",) for name in class_names
    }
    undefined |= {name: own for name, own in DETECTION_CVPR_2019.undefined_errors.items() if name in class_names}
    return DetectionSettings(
        class_range_m={name: class_range_m.get(name, CLASS_RANGE_M.get(name, OTHER_RANGE_M)) for name in class_names},
        undefined_errors=undefined,
        half_turn_classes=tuple(name for name in DETECTION_CVPR_2019.half_turn_classes if name in class_names),
        excluded_in=DETECTION_CVPR_2019.excluded_in,
    )


@dataclass(frozen=True)
class Boxes:
    """class_names: those of the model; default: what labels and submission name. class_range_m: radius within which a
    class is scored, where it is not nuScenes'. official: score with nuscenes-devkit instead of our own, equal metric.
    across: how boxes are scored on a data set of other classes (bev/evaluation/class_mapping.py).
    """

    title: ClassVar[str] = "3D boxes (nuScenes)"
    file: ClassVar[str] = "submission.json"
    scores_file: ClassVar[str] = "metrics_summary.json"
    summary_names: ClassVar[tuple[str, ...]] = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
    class_names: Sequence[str] = ()
    class_range_m: Mapping[str, float] = field(default_factory=dict)
    official: bool = False
    across: AcrossSets | None = None

    def write(self, path: Path, predictions: Predictions, split: str) -> str:
        found = predictions.detections
        NuScenesSubmission.from_detections(
            found.values(), predictions.frames, predictions.class_names, self._ranges(predictions.class_names)
        ).write(path)
        return f"{sum(len(own.boxes) for own in found.values())} boxes"

    def _ranges(self, class_names: Sequence[str]) -> dict[str, float]:
        if self.across is not None:
            return self.across.mapping.writing_ranges_m(self.class_range_m)
        return dict(detection_settings(class_names, self.class_range_m).class_range_m)

    def _classes(self, truth: GroundTruth | None) -> list[str]:
        """All classes that may be named: the model's, else nuScenes' and those of the labels."""
        if self.across is not None:
            return [*CLASS_RANGE_M, *(name for name in self.across.mapping.predictions if name not in CLASS_RANGE_M)]
        if self.class_names:
            return list(self.class_names)
        notes = [] if truth is None else [frame.annotations for frame in truth.frames]
        labelled = {name for own in notes if own is not None for name in own.names if name}
        return [*CLASS_RANGE_M, *sorted(labelled - set(CLASS_RANGE_M)), *sorted(set(self.class_range_m) - labelled)]

    def settings(self, truth: GroundTruth) -> DetectionSettings:
        """How this split is scored: nuScenes' classes, or the labels' where any of them is not nuScenes'."""
        names = self._classes(truth)
        if not self.class_names and len(names) > len(CLASS_RANGE_M):
            used = {name for frame in truth.frames if frame.annotations is not None for name in frame.annotations.names}
            names = [name for name in names if name in used or name in self.class_range_m]
        return detection_settings(names, self.class_range_m)

    def check(self, path: Path, truth: GroundTruth | None) -> list[str]:
        tokens, classes = None if truth is None else truth.tokens, self._classes(truth)
        problems = [str(problem) for problem in nuscenes_rules.check_submission(path, tokens, classes)]
        if (
            truth is not None
            and not problems
            and (far := all_far_away(read_submission(path, tokens, classes), truth.frames))
        ):
            return [far]
        return problems

    def compared(self, truth: GroundTruth) -> str:
        return all_there(truth)

    def oddities(self, path: Path, truth: GroundTruth | None) -> list[str]:
        return oddities(read_submission(path, None, self._classes(truth)), [] if truth is None else truth.frames)

    def demand_names(self, truth: GroundTruth) -> None:
        """Nothing: samples go by their tokens, which readers hold to be distinct."""

    def demand(self, truth: GroundTruth) -> None:
        if self.official and self.across is not None:
            raise ConfigError("--official scores nuScenes' classes as they are: leave --mapping or --official out")
        if self.official:
            nuscenes_official.require_devkit()
            root, version, split = self._official_split(truth)
            nuscenes_official.check_split(Path(root) / version, split)
        if not any(frame.annotations is not None and len(frame.annotations) for frame in truth.frames):
            raise NoLabelsError(f"{truth.source} has no annotations; score a labelled split")
        if self.across is not None:
            self.across.mapping.demand(truth.frames, self.class_names)
            return
        self._demand_classes(truth)
        if self.official:
            notes = [frame.annotations for frame in truth.frames if frame.annotations is not None]
            objects = [token for own in notes for token, name in zip(own.tokens, own.names) if name]
            nuscenes_official.check_attributes(root, version, objects)

    def _demand_classes(self, truth: GroundTruth) -> None:
        """Raises DataError, naming what is there, where no label is of a class that is scored."""
        settings = self.settings(truth)
        notes = [frame.annotations for frame in truth.frames if frame.annotations is not None]
        names = {name for own in notes for name in own.names}
        if names & set(settings.class_range_m):
            return
        categories = sorted({category for own in notes for category in own.categories} - {""})
        found = f"classes {', '.join(sorted(names - {''})[:20])}" if names - {""} else "no class"
        if categories:
            found += f", of the categories {', '.join(categories[:20])}{', ...' * (len(categories) > 20)}"
        raise NoLabelsError(
            f"{truth.source}: no label is of the classes that are scored ({', '.join(settings.class_range_m)}); its "
            f"labels have {found}: name the categories as nuScenes does (vehicle.car, human.pedestrian.adult, ...), or "
            "score them as own classes (docs/own_data.md)"
        )

    def _official_split(self, truth: GroundTruth) -> tuple[str, str, str]:
        if self.class_range_m:
            raise ConfigError("--official scores nuScenes' classes within nuScenes' ranges: leave --class-range out")
        version = truth.source.options.get("version")
        if truth.source.reader != "nuscenes" or version is None or len(truth.source.roots) != 1:
            raise ConfigError(
                "--official reads the set's own tables: give --dataroot, --version and --split of one nuScenes root"
            )
        return str(truth.source.roots[0]), str(version), truth.split

    def score(self, path: Path, truth: GroundTruth, progress: bool = True) -> dict[str, Any]:
        if self.official:
            refuse(path, self.check(path, truth))
            return nuscenes_official.evaluate_official(path, *self._official_split(truth), truth.tokens)
        if self.across is not None:
            boxes = read_submission(path, truth.tokens, self._classes(truth))
            refuse(path, [far] if (far := all_far_away(boxes, truth.frames)) else [])
            return self.across.score(truth, boxes, self.class_range_m)
        settings = self.settings(truth)
        boxes = read_submission(path, truth.tokens, settings.class_names)
        self._demand_known_ranges(boxes, truth)
        refuse(path, [far] if (far := all_far_away(boxes, truth.frames)) else [])
        for error in errors_not_stated(truth.frames):
            if all(error in settings.undefined_errors.get(name, ()) for name in settings.class_names):
                continue
            what = {"mAVE": "velocities", "mAAE": "attributes"}[error]
            warn_once(f"{truth.source}: no label states {what}, so {error} is 1, which takes 0.1 from NDS")
        return nuscenes_metrics.evaluate(truth.frames, boxes, settings)

    def _demand_known_ranges(self, boxes: Mapping[str, ScoredBoxes], truth: GroundTruth) -> None:
        """Raises ConfigError for the range of a class that nobody names: its AP of 0 would lower the mean."""
        named = {*self.class_names, *CLASS_RANGE_M, *(name for own in boxes.values() for name in own.names)}
        notes = [frame.annotations for frame in truth.frames if frame.annotations is not None]
        named |= {name for own in notes for name in own.names}
        if unknown := [name for name in self.class_range_m if name not in named]:
            known = ", ".join(sorted(named - {""}))
            raise ConfigError(
                f"class range of {unknown[0]!r}: neither labels nor submission have it; there are {known}"
            )

    def drawing_problems(self, path: Path, truth: GroundTruth, frames: Sequence[Frame]) -> list[str]:
        return foreign(read_submission(path, None, self._classes(truth)), truth.tokens)

    def table(self, scores: dict[str, Any]) -> list[str]:
        report = scores["across_sets"]["report"] if "across_sets" in scores else []
        return [*report, *([""] if report else []), *nuscenes_metrics.table(scores)]

    def summary(self, scores: dict[str, Any]) -> dict[str, float]:
        return {"NDS": scores["nds"], "mAP": scores["map"]} | dict(scores["tp_errors"])

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        found = read_detections(path, frames, class_names)
        return lambda frame: found.get(frame.token)
