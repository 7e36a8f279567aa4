"""The same scores by the benchmark's own program, the unmodified nuscenes-devkit (DetectionEval).

It needs the tables and the map pictures of the set, supports the benchmark's ten classes only, and reads the set again;
its published requirements exclude NumPy 2, with which its evaluation runs nevertheless. nuscenes_metrics.py gives the
same numbers from frames.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, DataError, SubmissionError, library_errors
from ...core.files import write_json
from .nuscenes_rules import CLASS_ATTRIBUTES, check_submission

INSTALL = "pip install 'drivestack[eval]' && pip install --no-deps nuscenes-devkit==1.2.0"
_ERRORS: Mapping[str, str] = {
    "trans_err": "mATE",
    "scale_err": "mASE",
    "orient_err": "mAOE",
    "vel_err": "mAVE",
    "attr_err": "mAAE",
}
"""The devkit's names of the errors, and the published ones."""
_DEVKIT_SPLITS = ("train", "val", "test", "mini_train", "mini_val", "train_detect", "train_track")


def require_devkit() -> None:
    """Raises ConfigError with the line that installs it where nuscenes-devkit's evaluation cannot be imported."""
    try:
        import nuscenes.eval.detection.evaluate  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--official needs nuscenes-devkit ({error}); install it: {INSTALL}") from None


def check_split(set_path: str | os.PathLike[str], split: str) -> None:
    """Raises ConfigError where the devkit does not score this split of this version.

    It goes by the version's name: train, val, train_detect, train_track of versions that end in "trainval", mini_train
    and mini_val of "mini", test of "test". Splits of a set's own splits.json go with any.
    """
    version, ending = Path(set_path).name, _ending(split)
    if split in _DEVKIT_SPLITS and not version.endswith(ending):
        fitting = [name for name in _DEVKIT_SPLITS if version.endswith(_ending(name))]
        instead = f"score {', '.join(fitting)} of it, or " if fitting else ""
        raise ConfigError(
            f"--official: nuscenes-devkit does not score split {split!r} of {set_path}, only of versions that end in "
            f"{ending!r}; {instead}leave --official out: our own metric gives the devkit's numbers"
        )


def _ending(split: str) -> str:
    return "mini" if split.startswith("mini_") else "test" if split == "test" else "trainval"


def check_attributes(dataroot: str | os.PathLike[str], version: str, objects: Iterable[str]) -> None:
    """Raises DataError for an object (token of its annotation) with several attributes, or one that nuScenes has not.

    objects: those of detection classes; the devkit looks at no others.
    """
    folder, wanted = Path(dataroot) / version, set(objects)
    with library_errors(DataError, folder, "extract or write the tables again"):
        names = {row["token"]: row["name"] for row in json.loads((folder / "attribute.json").read_bytes())}
        rows = json.loads((folder / "sample_annotation.json").read_bytes())
        known = {name for held in CLASS_ATTRIBUTES.values() for name in held}
        for row in rows:
            own = row["attribute_tokens"]
            if row["token"] in wanted and (len(own) > 1 or any(names.get(token) not in known for token in own)):
                found = ", ".join(str(names.get(token, token)) for token in own)
                raise DataError(
                    f"{folder / 'sample_annotation.json'}: object {row['token']} has the attributes {found}; "
                    f"nuscenes-devkit takes none or one of {', '.join(sorted(known))}: correct it, or leave "
                    "--official out"
                )


def evaluate_official(
    submission_path: str | os.PathLike[str],
    dataroot: str | os.PathLike[str],
    version: str,
    split: str,
    tokens: list[str],
    out_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Score a submission on a split of nuScenes, or of a set written in its schema, by nuscenes-devkit.

    tokens: the split's sample tokens. The set may hold only some scenes of the split (the devkit scores those present);
    it must hold annotations. Returns and writes what ``nuscenes_metrics.evaluate_submission`` does.

    Raises ConfigError where the devkit is not installed or does not score this split, SubmissionError if the file
    breaks a rule, DataError if the devkit cannot load or score the set, or it has no labels.
    """
    require_devkit()
    set_path = Path(dataroot) / version
    check_split(set_path, split)
    problems = check_submission(submission_path, tokens)
    if problems:
        more = f" (and {len(problems) - 1} more; see `drivestack check-submission`)" if len(problems) > 1 else ""
        raise SubmissionError(f"{submission_path}: {problems[0]}{more}")

    from nuscenes import NuScenes
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    config = config_factory("detection_cvpr_2019")
    with tempfile.TemporaryDirectory() as scratch, _silenced():
        with _devkit(f"nuscenes-devkit cannot load {set_path}", "correct or remake the set"):
            nusc = NuScenes(version=version, dataroot=str(dataroot), verbose=False)
            labelled = any(nusc.get("sample", token)["anns"] for token in tokens)
        if not labelled:
            raise DataError(f"split {split!r} of {set_path} has no annotations; score a labelled split")
        readable = _with_a_box(submission_path, Path(scratch))
        fix = "correct the set, or leave --official out: our own metric gives the devkit's numbers"
        with _devkit(f"nuscenes-devkit cannot score split {split!r} of {set_path}", fix):
            evaluation = DetectionEval(nusc, config, str(readable), split, scratch, verbose=False)
            metrics, _ = evaluation.evaluate()
    scores = summary(metrics.serialize())
    scores["num_ground_truths"] = _count(evaluation.gt_boxes)
    scores["num_predictions"] = _count(evaluation.pred_boxes)
    scores["num_samples"] = len(tokens)
    if out_dir is not None:
        write_json(Path(out_dir) / "metrics_summary.json", scores, indent=2)
    return scores


@contextlib.contextmanager
def _devkit(where: str, fix: str) -> Iterator[None]:
    """Within, only the devkit runs, which raises bare Exceptions about a set: each becomes one line."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())[:300] or "no reason given"
        raise DataError(f"{where}: {type(error).__name__}: {text}; {fix}") from error


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


def summary(official: dict[str, Any]) -> dict[str, Any]:
    """The devkit's serialized metrics under the names of this project."""
    return {
        "nds": official["nd_score"],
        "map": official["mean_ap"],
        "ap": {name: float(ap) for name, ap in official["mean_dist_aps"].items()},
        "ap_per_distance": {
            name: {str(distance): float(ap) for distance, ap in aps.items()}
            for name, aps in official["label_aps"].items()
        },
        "tp_errors": {published: _number(official["tp_errors"][name]) for name, published in _ERRORS.items()},
        "tp_errors_per_class": {
            name: {published: _number(errors[key]) for key, published in _ERRORS.items()}
            for name, errors in official["label_tp_errors"].items()
        },
    }
