"""Official nuScenes detection scores, by the unmodified nuscenes-devkit (DetectionEval, detection_cvpr_2019).

In words: for each class and each of four distances (0.5, 1, 2, 4 m between centres on the ground) predictions claim
ground truths greedily, best score first; average precision (AP) is the area under precision over recall above 10 % of
each. mAP averages classes and distances. Matches within 2 m give five errors per class: translation (m), scale (1 -
IoU of aligned boxes), orientation (rad), velocity (m/s), attribute (1 - accuracy). NDS = (5 mAP + sum over errors of
max(0, 1 - mean error)) / 10. A class without ground truth in the split counts as AP 0 and errors 1.
(Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", CVPR 2020, section 3.1.)
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import DataError, SubmissionError
from ...core.files import write_json
from .nuscenes_rules import check_submission, split_tokens

TP_ERRORS: Mapping[str, str] = {
    "trans_err": "mATE",
    "scale_err": "mASE",
    "orient_err": "mAOE",
    "vel_err": "mAVE",
    "attr_err": "mAAE",
}
"""Devkit name -> published name of the five true-positive errors."""


def evaluate_nuscenes(
    submission_path: str | os.PathLike[str],
    dataroot: str | os.PathLike[str],
    version: str,
    split: str,
    out_dir: str | os.PathLike[str] | None = None,
    class_range_m: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Score a submission on a split of nuScenes, or of a set written in its schema.

    The set may hold only some scenes of the split (the devkit scores those present); it must hold annotations.
    class_range_m: other radii of evaluation than the benchmark's; then the scores are not the official ones.

    Returns ``nds``, ``map``, ``ap`` (per class), ``ap_per_distance`` (class -> metres -> AP), ``tp_errors`` (mATE,
    mASE, mAOE, mAVE, mAAE), ``tp_errors_per_class`` (None where undefined, as orientation of a cone),
    ``num_ground_truths`` and ``num_predictions`` (per class, after the range filter) and ``num_samples``.
    With ``out_dir`` the same lies in ``out_dir/metrics_summary.json``.

    Raises SubmissionError if the file breaks a rule, DataError if the set or split is missing or has no labels.
    """
    tokens = split_tokens(dataroot, version, split)
    problems = check_submission(submission_path, tokens)
    if problems:
        more = f" (and {len(problems) - 1} more; see `drivestack check-submission`)" if len(problems) > 1 else ""
        raise SubmissionError(f"{submission_path}: {problems[0]}{more}")

    from nuscenes import NuScenes
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    set_path = Path(dataroot) / version
    config = config_factory("detection_cvpr_2019")
    config.class_range = {**config.class_range, **(class_range_m or {})}
    config.class_names = config.class_range.keys()
    with tempfile.TemporaryDirectory() as scratch, _silenced():
        try:
            nusc = NuScenes(version=version, dataroot=str(dataroot), verbose=False)
        except (AssertionError, OSError, ValueError, KeyError) as error:
            raise DataError(f"nuscenes-devkit cannot load {set_path}: {error}; mend or remake the set") from error
        if not any(nusc.get("sample", token)["anns"] for token in tokens):
            raise DataError(f"split {split!r} of {set_path} has no annotations; score a labelled split")
        readable = _with_a_box(submission_path, Path(scratch))
        evaluation = DetectionEval(nusc, config, str(readable), split, scratch, verbose=False)
        metrics, _ = evaluation.evaluate()
    summary = _summary(metrics.serialize())
    summary["num_ground_truths"] = _count(evaluation.gt_boxes)
    summary["num_predictions"] = _count(evaluation.pred_boxes)
    summary["num_samples"] = len(tokens)
    if out_dir is not None:
        write_json(Path(out_dir) / "metrics_summary.json", summary, indent=2)
    return summary


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """The devkit draws progress bars that no option turns off."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _with_a_box(submission_path: str | os.PathLike[str], scratch: Path) -> Path:
    """The submission, or, if it holds no box at all, a copy with one that the range filter drops.

    The devkit learns the type of the boxes from the first one and fails where there is none.
    """
    content = json.loads(Path(submission_path).read_text(encoding="utf-8"))
    if any(content["results"].values()):
        return Path(submission_path)
    token = next(iter(content["results"]))
    content["results"][token] = [
        {
            "sample_token": token,
            "translation": [1e7, 1e7, 0.0],
            "size": [1.0, 1.0, 1.0],
            "rotation": [1.0, 0.0, 0.0, 0.0],
            "velocity": [0.0, 0.0],
            "detection_name": "car",
            "detection_score": 0.0,
            "attribute_name": "",
        }
    ]
    write_json(scratch / "submission.json", content)
    return scratch / "submission.json"


def _count(boxes: Any) -> dict[str, int]:
    return dict(Counter(box.detection_name for box in boxes.all))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _summary(official: dict[str, Any]) -> dict[str, Any]:
    return {
        "nds": official["nd_score"],
        "map": official["mean_ap"],
        "ap": {name: float(ap) for name, ap in official["mean_dist_aps"].items()},
        "ap_per_distance": {
            name: {str(distance): float(ap) for distance, ap in aps.items()}
            for name, aps in official["label_aps"].items()
        },
        "tp_errors": {published: _number(official["tp_errors"][name]) for name, published in TP_ERRORS.items()},
        "tp_errors_per_class": {
            name: {published: _number(errors[key]) for key, published in TP_ERRORS.items()}
            for name, errors in official["label_tp_errors"].items()
        },
    }


def table(scores: Mapping[str, Any]) -> list[str]:
    """The scores as lines of text: the two sums, the errors, and a row per class."""
    errors = scores["tp_errors"]
    lines = [
        f"NDS {scores['nds']:.4f}    mAP {scores['map']:.4f}    "
        + "  ".join(f"{name} {_digits(value)}" for name, value in errors.items()),
        "",
        f"{'class':<22}{'AP':>8}" + "".join(f"{name[1:]:>8}" for name in errors) + f"{'labels':>9}{'boxes':>8}",
    ]
    for name, ap in sorted(scores["ap"].items(), key=lambda entry: -entry[1]):
        row = "".join(f"{_digits(value):>8}" for value in scores["tp_errors_per_class"][name].values())
        labels, boxes = (scores[key].get(name, 0) for key in ("num_ground_truths", "num_predictions"))
        lines.append(f"{name:<22}{ap:>8.3f}{row}{labels:>9}{boxes:>8}")
    return lines


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
