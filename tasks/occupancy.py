"""Voxels: Occ3D submissions and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ..core.answers import OccupancyGrid, SceneAnswer
from ..core.errors import DataError
from ..core.frames import Frame
from ..core.once import warn_once
from ..core.progress import ProgressDisplay
from ..data_tools.labels.voxel_layouts import has_openocc_numbers, occ3d_numbers
from ..occupancy.classes import OCC3D_NUSCENES
from ..occupancy.evaluation import evaluate, rules, submission
from .base import GroundTruth, Predictions, Reader, all_there, foreign, refuse


@dataclass(frozen=True)
class Occupancy:
    """num_samples: how many a submission must hold where there is no ground truth; None: any number."""

    title: ClassVar[str] = "occupancy (Occ3D)"
    file: ClassVar[str] = "occupancy.zip"
    scores_file: ClassVar[str] = "occupancy_scores.json"
    summary_names: ClassVar[tuple[str, ...]] = ("mIoU", "mIoU unmasked", "RayIoU", "RayIoU@1", "RayIoU@2", "RayIoU@4")
    num_samples: int | None = None

    @staticmethod
    def folder(path: Path) -> Path:
        """The folder of single files before they are packed."""
        return path.with_suffix("")

    def keep(self, path: Path) -> Callable[[SceneAnswer], SceneAnswer]:
        """For ``engine.predict.predict``: voxels are written one frame at a time."""

        def keep(answer: SceneAnswer) -> SceneAnswer:
            assert answer.occupancy is not None  # the task was asked for
            submission.write_grid(self.folder(path), answer.occupancy)
            return replace(answer, occupancy=None)

        return keep

    def write(self, path: Path, predictions: Predictions, split: str) -> str:
        """Voxels of samples that an earlier run left in the folder are removed; what else lies there stays, said."""
        folder, tokens = self.folder(path), [frame.token for frame in predictions.frames]
        others = submission.clear_stale(folder, tokens)
        submission.pack(folder, path, tokens)
        text = f"voxels, also in {folder}/"
        if others:
            text += (
                f", where {len(others)} files are not of this run and stay ({others[0]}{', ...' * (len(others) > 1)})"
            )
        return text

    def check(self, path: Path, truth: GroundTruth | None) -> list[str]:
        if truth is None:
            return rules.check_submission(path, num_samples=self.num_samples)
        return rules.check_submission(path, truth.tokens, self._num_classes(truth), self.num_samples)

    @staticmethod
    def _num_classes(truth: GroundTruth) -> int:
        labelled = [frame for frame in truth.frames if frame.occupancy_path]
        return len(evaluate.classes_of(labelled) if labelled else OCC3D_NUSCENES)

    def demand_names(self, truth: GroundTruth) -> None:
        tokens: dict[str, str] = {}
        for token in truth.tokens:
            if (other := tokens.setdefault(submission.sample_name(token), token)) != token:
                raise DataError(
                    f"{truth.source}: voxels of the samples {other} and {token} would both be "
                    f"{submission.sample_name(token)}.npz; rename one of them"
                )

    def demand(self, truth: GroundTruth) -> None:
        self.demand_names(truth)
        evaluate.check_labels(truth.frames, read=True)

    def score(self, path: Path, truth: GroundTruth, progress: bool = True) -> dict[str, Any]:
        refuse(path, rules.check_submission(path, truth.tokens, self._num_classes(truth), strict=False))
        with ProgressDisplay("score occupancy", len(truth.frames), unit="samples", shown=progress) as display:
            return evaluate.evaluate(truth.frames, submission.VoxelFiles(path).read, on_sample=display.advance)

    def compared(self, truth: GroundTruth) -> str:
        return all_there(truth)

    def oddities(self, path: Path, truth: GroundTruth | None) -> list[str]:
        found = submission.VoxelFiles(path)
        numbered = [token for token in found.tokens if has_openocc_numbers(found.read(token))]
        if not numbered:
            return []
        return [
            f"{len(numbered)} of {len(found)} samples have no voxel of class 17 (free) and mostly 16 (vegetation), "
            f"such as {numbered[0]}; these look like OpenOcc's class numbers"
        ]

    def drawing_problems(self, path: Path, truth: GroundTruth, frames: Sequence[Frame]) -> list[str]:
        found = submission.VoxelFiles(path)
        problems = [f"{name}: {reason}" for name, reason in found.strange.items()]
        problems += [f"sample {token}: {count} files; keep one" for token, count in found.repeated.items()]
        problems += foreign(found.tokens, map(submission.sample_name, truth.tokens))
        drawn = [frame.token for frame in frames if frame.token in found]
        return problems + [problem for token in drawn for problem in rules.faults(found, token, strict=False)]

    def table(self, scores: dict[str, Any]) -> list[str]:
        return evaluate.table(scores)

    def summary(self, scores: dict[str, Any]) -> dict[str, float]:
        miou = scores["miou"]
        return {"mIoU": miou.get("camera", miou["none"]), "mIoU unmasked": miou["none"]} | scores["rayiou"]

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        found = submission.VoxelFiles(path)

        def grid(frame: Frame) -> OccupancyGrid | None:
            if frame.token not in found:
                return None
            voxels = found.read(frame.token)
            if has_openocc_numbers(voxels):
                warn_once(f"{path}: classes are read as OpenOcc's numbers (16 is free), as no voxel is of class 17")
                voxels = occ3d_numbers(voxels)
            return OccupancyGrid(frame.token, voxels)

        return grid
