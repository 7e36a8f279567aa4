"""3D boxes: nuScenes submissions and scores, for the benchmark's classes and for any others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..bev.evaluation import nuscenes_metrics, nuscenes_official, nuscenes_rules
from ..bev.evaluation.nuscenes_metrics import DETECTION_CVPR_2019, DetectionSettings
from ..bev.evaluation.nuscenes_rules import CLASS_ATTRIBUTES
from ..bev.evaluation.nuscenes_submission import CLASS_RANGE_M, NuScenesSubmission, read_detections
from ..core.errors import ConfigError, DataError
from ..core.frames import Frame
from .base import GroundTruth, Predictions, Reader

OTHER_RANGE_M = 50.0
"""Default radius around the car within which classes that are not nuScenes' are scored."""


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
    """

    title: ClassVar[str] = "3D boxes (nuScenes)"
    file: ClassVar[str] = "submission.json"
    scores_file: ClassVar[str] = "metrics_summary.json"
    class_names: Sequence[str] = ()
    class_range_m: Mapping[str, float] = field(default_factory=dict)
    official: bool = False

    def write(self, path: Path, predictions: Predictions, split: str) -> str:
        found = predictions.detections
        NuScenesSubmission.from_detections(
            found.values(), predictions.frames, predictions.class_names, self._ranges(predictions.class_names)
        ).write(path)
        return f"{sum(len(own.boxes) for own in found.values())} boxes"

    def _ranges(self, class_names: Sequence[str]) -> dict[str, float]:
        return dict(detection_settings(class_names, self.class_range_m).class_range_m)

    def _classes(self, truth: GroundTruth | None) -> list[str]:
        """All classes that may be named: the model's, else nuScenes' and those of the labels."""
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
        tokens = None if truth is None else truth.tokens
        return [str(problem) for problem in nuscenes_rules.check_submission(path, tokens, self._classes(truth))]

    def demand(self, truth: GroundTruth) -> None:
        if self.official:
            nuscenes_official.require_devkit()
            self._official_split(truth)
        if not any(frame.annotations is not None and len(frame.annotations) for frame in truth.frames):
            raise DataError(f"{truth.source} has no annotations; score a labelled split")
        settings = self.settings(truth)
        names = {name for frame in truth.frames if frame.annotations is not None for name in frame.annotations.names}
        if not names & set(settings.class_range_m):
            raise DataError(
                f"{truth.source}: no label is of the classes {', '.join(settings.class_range_m)}; it has "
                f"{', '.join(sorted(names - {''})) or 'none that is a class'}"
            )

    @staticmethod
    def _official_split(truth: GroundTruth) -> tuple[str, str, str]:
        version = truth.source.options.get("version")
        if truth.source.reader != "nuscenes" or version is None or len(truth.source.roots) != 1:
            raise ConfigError(
                "--official reads the set's own tables: give --dataroot, --version and --split of one nuScenes root"
            )
        return str(truth.source.roots[0]), str(version), truth.split

    def score(self, path: Path, truth: GroundTruth, progress: bool = True) -> dict[str, Any]:
        if self.official:
            return nuscenes_official.evaluate_official(path, *self._official_split(truth), truth.tokens)
        return nuscenes_metrics.evaluate_submission(path, truth.frames, self.settings(truth))

    def table(self, scores: dict[str, Any]) -> list[str]:
        return nuscenes_metrics.table(scores)

    def summary(self, scores: dict[str, Any]) -> dict[str, float]:
        return {"NDS": scores["nds"], "mAP": scores["map"]} | dict(scores["tp_errors"])

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        found = read_detections(path, frames, class_names)
        return lambda frame: found.get(frame.token)
