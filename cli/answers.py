"""The verbs about answers: boxes, voxels, lanes, each with its submission, rules and scores (tasks/registry.py)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files import remove_stale_files
from .chosen import chosen_tasks, mapped_boxes
from .images import add_images, evaluate_images, predict_images, refuse_images
from .options import (
    METRIC_VERSIONS,
    TASKS,
    above_zero,
    add_model,
    add_source,
    known_source,
    positive,
    source,
    verb,
)
from .outputs import check_outputs, run_folder, writing

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..tasks.base import GroundTruth, Predictions, Task

INVALID_SUBMISSION = 1
_SCORED = "nuScenes, Waymo and Argoverse 2 detection, nuScenes tracking, Occ3D voxel metrics, OpenLane-V2"


def _add_tasks(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=(), help=f"default: {default}")


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--official", action="store_true", help="score boxes with nuscenes-devkit itself (our own metric equals it)"
    )
    parser.add_argument(
        "--metric-version",
        choices=METRIC_VERSIONS,
        default=METRIC_VERSIONS[0],
        help="of the OpenLane-V2 score (default: %(default)s)",
    )
    parser.add_argument(
        "--everywhere",
        action="store_true",
        help="score Argoverse 2's boxes everywhere, not only on or near the maps' drivable areas",
    )


def _add_lane_file(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("OpenLane-V2 submission")
    group.add_argument("--team", metavar="FILE", help="JSON: method, authors, email, institution, country")
    group.add_argument("--half", action="store_true", help="16-bit floats: half the size, a lane at 50 m within 3 cm")


def _add_waymo_entry(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Waymo submission")
    group.add_argument(
        "--waymo-entry",
        metavar="FILE",
        help="JSON: account, method (at most 25 characters), authors, affiliation, description, link, past_frames, "
        "future_frames; goes before the config's waymo_entry",
    )


def _add_class_range(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--class-range",
        metavar="CLASS=M",
        action="append",
        default=[],
        help="radius in metres within which boxes of a class count, where it is neither the config's class_range_m nor "
        "nuScenes' (own classes: 50); repeatable",
    )


def _add_mapping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mapping",
        metavar="FILE",
        help="score boxes on a set of other classes: JSON with predictions and labels, each class -> common class "
        "(docs/across_sets.md)",
    )


def _image_config(options: argparse.Namespace) -> Config | None:
    """The config where its model answers single images, else None."""
    from ..engine.config import load_config
    from ..tasks.images import is_image_config

    config = load_config(options.config, options.overrides)
    if is_image_config(config):
        return config
    refuse_images(options)
    return None


class _Run:
    """A model and the frames to run it on, as the options name them."""

    def __init__(self, options: argparse.Namespace) -> None:
        from ..data_tools.clips.perturb import perturb_calibration
        from ..engine.config import load_config
        from ..tasks.registry import chosen_of_model
        from ..tasks.run import class_names, class_ranges_m, load_model, parse_device

        if options.device is not None:
            parse_device(options.device)
        if options.perturb_calibration is not None:
            perturb_calibration([], options.perturb_calibration)
        self.options = options
        self.config = load_config(options.config, options.overrides)
        self.source = known_source(options, self.config)
        self.chosen = chosen_tasks(options, config=self.config)
        weights = None if options.checkpoint == "random" else options.checkpoint
        self.model = load_model(self.config, weights)
        mapped = None
        if "mapping" in options:
            mapped = mapped_boxes(options, class_names(self.config), class_ranges_m(self.config))
        tasks = options.tasks or (("boxes",) if mapped else None)
        names, benchmark = class_names(self.config), self.config.get("benchmark", "nuscenes")
        self.tasks = chosen_of_model(self.model, tasks, names, benchmark)
        self.frames = self.seen = self.source.read()
        if mapped is not None and mapped.across is not None:
            across = mapped.across.with_model(self.config, self.model, self.frames, weights)
            self.chosen["boxes"] = replace(mapped, across=across)
            self.seen = across.mapping.renamed(self.frames)

    def write(self, paths: dict[str, Path]) -> Predictions:
        """Predict, and write the submissions; voxels are written one frame at a time."""
        from ..data_tools.clips.perturb import perturb_calibration
        from ..tasks.base import GroundTruth
        from ..tasks.registry import Occupancy
        from ..tasks.run import predict_frames

        for task in paths:  # before the work
            self.chosen[task].demand_names(GroundTruth(self.source, self.frames))
        if "occupancy" in paths:
            folder = Occupancy.folder(paths["occupancy"])
            check_outputs(folders=[folder])
            remove_stale_files(folder)
        how, frames = self.options.perturb_calibration, self.seen
        seen = frames if how is None else perturb_calibration(frames, how)
        voxels = self.chosen["occupancy"]
        keep = (
            {"keep": voxels.keep(paths["occupancy"])} if "occupancy" in paths and isinstance(voxels, Occupancy) else {}
        )
        found = predict_frames(
            self.config,
            self.model,
            seen,
            device=self.options.device,
            tasks=self.tasks,
            precision=self.options.precision,
            batch_size=self.options.batch_size,
            num_workers=self.options.workers,
            **keep,
        )
        for task, path in paths.items():
            held = self.chosen[task].write(path, found, self.source.split)
            print(f"wrote {path}: {len(frames)} samples, {held}")
        return found


def add_predict(verbs: Any) -> None:
    examples = [
        "drivestack predict bevformerv2_tiny_synthetic bevformerv2_tiny_synthetic \\",
        "    --dataroot data/synthetic --version v1.0-trainval --split val --out submission.json",
        "drivestack predict perception_tiny_synthetic CHECKPOINT --dataroot data/synthetic \\",
        "    --version v1.0-trainval --split val --out runs/answers --tasks occupancy lanes",
        "drivestack predict bevformerv2_r50_t1_24ep t1.pth --dataroot data/nuscenes --version v1.0-test --split test",
        "drivestack predict bevformerv2_waymo_internimage_t CHECKPOINT --waymo-entry entry.json",
        "drivestack predict openlanev2_subset_a CHECKPOINT --openlane data/OpenLane-V2 --split test --team team.json",
        "drivestack predict bevformerv2_r50_t1_24ep random --info-pickle infos_val.pkl --dataroot data/nuscenes",
    ]
    summary = "run a model and write valid submissions (boxes, voxels, lanes), or answer single images"
    parser = verb(verbs, "predict", _run_predict, summary, examples)
    add_model(parser)
    _add_tasks(parser, "all that the model answers")
    add_source(parser, "the config's test dataset")
    _add_class_range(parser)
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="a folder, or the file of a single task: .json boxes or tracks (boxes of Waymo .tar.gz, of Argoverse 2 "
        ".feather), .zip occupancy, .pkl lanes (default: submission.json or the benchmark's file for boxes alone, else "
        "submission/)",
    )
    _add_lane_file(parser)
    _add_waymo_entry(parser)
    add_images(parser)


def _run_predict(options: argparse.Namespace) -> int:
    from ..tasks.registry import ENDINGS, places

    if options.out and Path(options.out).suffix in ENDINGS and not os.path.isdir(options.out):
        check_outputs([options.out])
    else:
        check_outputs(folders=[options.out or "."])
    if (config := _image_config(options)) is not None:
        return predict_images(options, config)
    run = _Run(options)
    out = Path(options.out or (run.chosen["boxes"].file if run.tasks == ("boxes",) else "submission"))
    paths = places(out, run.tasks, run.chosen)
    folders = [] if out in paths.values() else [out]
    with writing(f"predict {options.config}", paths.values(), folders):
        run.write(paths)
    return 0


def add_evaluate(verbs: Any) -> None:
    examples = [
        "drivestack evaluate bevformerv2_tiny_synthetic runs/bevformerv2_tiny_synthetic/iter_10800.pth",
        "drivestack evaluate bevformerv2_r50_t1_24ep t1.pth --dataroot D --version v1.0-trainval --split val",
        "drivestack evaluate perception_tiny_synthetic CHECKPOINT --tasks occupancy lanes",
    ]
    parser = verb(
        verbs,
        "evaluate",
        _run_evaluate,
        f"run a model and score it: {_SCORED}; image models by their config's test data",
        examples,
    )
    add_model(parser)
    _add_tasks(parser, "all that the model answers")
    add_source(parser, "the config's test dataset")
    _add_class_range(parser)
    _add_mapping(parser)
    default = "runs/CONFIG/evaluation; of a work folder's config.py that folder's name"
    parser.add_argument("--out", metavar="DIR", help=f"submissions and scores (default: {default})")
    _add_metrics(parser)


def _run_evaluate(options: argparse.Namespace) -> int:
    from ..tasks.base import GroundTruth
    from ..tasks.registry import in_folder

    out = Path(options.out or run_folder(options.config) / "evaluation")
    check_outputs(folders=[out])
    if (config := _image_config(options)) is not None:
        return evaluate_images(options, config)
    run = _Run(options)
    truth = GroundTruth(run.source, run.frames)
    _demand({task: run.chosen[task] for task in run.tasks}, truth)  # before the work
    paths = in_folder(out, run.tasks, run.chosen)
    scores = [out / run.chosen[task].scores_file for task in run.tasks]
    with writing(f"evaluate {options.config}", [*paths.values(), *scores], [out]):
        run.write(paths)
        return _score_all(run.chosen, paths, truth, out)


def _demand(chosen: Mapping[str, Task], truth: GroundTruth) -> None:
    """What the tasks' ``demand`` raises; where only some lack labels the message names those that can be scored."""
    from ..core.errors import NoLabelsError

    usable, missing = [], []
    for name, task in chosen.items():
        try:
            task.demand(truth)
        except NoLabelsError as error:
            missing.append(str(error))
        else:
            usable.append(name)
    if missing:
        raise NoLabelsError(missing[0] + (f", or choose --tasks {' '.join(usable)}" if usable else ""))


def _score_all(chosen: dict[str, Task], paths: dict[str, Path], truth: GroundTruth, out: Path | None) -> int:
    """Score, print, and write the scores into ``out``."""
    from ..core.files import write_json

    for name, path in paths.items():
        task = chosen[name]
        scores = task.score(path, truth)
        print("\n".join(["", task.title, "", *task.table(scores)]), flush=True)
        if out is not None:
            write_json(out / task.scores_file, scores, indent=2)
            print(f"\nscores      {out / task.scores_file}")
    return 0


def add_score(verbs: Any) -> None:
    examples = [
        "drivestack score submission.json --dataroot data/nuscenes --version v1.0-trainval --split val",
        "drivestack score runs/answers --dataroot data/synthetic --version v1.0-trainval --split val",
        "drivestack score lanes.pkl --metric-version v1.0 --dataroot D --version v1.0-trainval --split val",
    ]
    parser = verb(verbs, "score", _run_score, f"score submissions: {_SCORED}", examples)
    parser.add_argument("path", metavar="PATH", help="a submission, or a folder of submissions as predict writes it")
    _add_tasks(parser, "what the file is, what the folder holds")
    add_source(parser)
    _add_class_range(parser)
    _add_mapping(parser)
    parser.add_argument("--out", metavar="DIR", help="also write the scores here, as JSON")
    _add_metrics(parser)


def _run_score(options: argparse.Namespace) -> int:
    from ..core.errors import ConfigError
    from ..tasks.base import GroundTruth
    from ..tasks.registry import benchmark_of, find

    paths = find(options.path, options.tasks or (("boxes",) if options.mapping else ()))
    if options.mapping and "boxes" in paths and (benchmark := benchmark_of(paths["boxes"])) != "nuscenes":
        raise ConfigError(
            f"{paths['boxes']} is a submission to {benchmark}: --mapping scores nuScenes' files (.json); predict with "
            "a config without benchmark, or leave --mapping out"
        )
    chosen = chosen_tasks(options, submissions=paths)
    if (mapped := mapped_boxes(options)) is not None:
        chosen["boxes"] = mapped
    out = Path(options.out) if options.out else None
    files = [] if out is None else [out / chosen[name].scores_file for name in paths]
    with writing(f"score {options.path}", files, [] if out is None else [out]):
        truth = GroundTruth(known_source(options))
        _demand({name: chosen[name] for name in paths}, truth)
        code = _score_all(chosen, paths, truth, out)
    for name, path in paths.items():
        _print_oddities(chosen[name], path, truth)
    return code


def add_check(verbs: Any) -> None:
    examples = [
        "drivestack check-submission submission.json",
        "drivestack check-submission submission.json --dataroot data/nuscenes --version v1.0-test --split test",
        "drivestack check-submission occupancy.zip --split test     # without tables: 6008 samples?",
        "drivestack check-submission lanes.pkl --max-mb 100",
        "drivestack check-submission waymo_submission.tar.gz --reader waymo --dataroot data/waymo \\",
        "    --split test_camera_only        # the challenge's set",
    ]
    summary = (
        "say every rule that submissions break: boxes (nuScenes, Waymo, Argoverse 2), nuScenes tracks, Occ3D voxels, "
        "OpenLane-V2 lanes"
    )
    parser = verb(verbs, "check-submission", _run_check, summary, examples)
    parser.add_argument("path", metavar="PATH", help="a submission, or a folder of submissions as predict writes it")
    _add_tasks(parser, "what the file is, what the folder holds")
    add_source(parser)
    parser.add_argument("--limit", type=positive, default=20, metavar="N", help="problems to print (default: 20)")
    parser.add_argument("--max-mb", type=above_zero, metavar="MB", help="the largest lane file that the server takes")


def _run_check(options: argparse.Namespace) -> int:
    from ..tasks.base import GroundTruth
    from ..tasks.registry import Occupancy, find

    paths = find(options.path, options.tasks)
    chosen = chosen_tasks(options, submissions=paths)
    named = None if list(paths) == ["occupancy"] and options.split and not options.dataroot else source(options)
    counted, voxels = None, chosen["occupancy"]
    if list(paths) == ["occupancy"] and named is None and isinstance(voxels, Occupancy):
        counted = voxels.num_samples
    if named is None and options.split and not counted:
        known_source(options)  # says what is missing
    truth = None if named is None else GroundTruth(named)
    valid = [_report(chosen[name], path, truth, options.limit, counted) for name, path in paths.items()]
    return 0 if all(valid) else INVALID_SUBMISSION


def _report(task: Task, path: Path, truth: GroundTruth | None, limit: int, counted: int | None) -> bool:
    problems = task.check(path, truth)
    for problem in problems[:limit]:
        print(problem)
    if len(problems) > limit:
        print(f"... and {len(problems) - limit} more (--limit shows more)")
    if problems:
        print(f"error: {path} is invalid: {len(problems)} broken rule(s)", file=sys.stderr)
        return False
    scope = "its samples were not compared with a split (name --dataroot, --version, --split)"
    if truth is not None:
        scope = task.compared(truth)
    elif counted:
        scope = f"it holds {counted} samples, which were not compared with the split's tables"
    print(f"{path} is valid; {scope}")
    _print_oddities(task, path, truth)
    return True


def _print_oddities(task: Task, path: Path, truth: GroundTruth | None) -> None:
    """What the benchmark takes and nobody means."""
    for oddity in task.oddities(path, truth):
        print(f"warning: {path}: {oddity}", file=sys.stderr)
