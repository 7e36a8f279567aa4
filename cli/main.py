"""The command `drivestack`: one verb per job; errors that a user can fix come as one line and exit code 2.

Heavy imports (torch and what needs it) happen inside the verbs, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import ConfigError, DataError
from .answers import INVALID_SUBMISSION, add_check, add_evaluate, add_predict, add_score
from .border import run_verb
from .check_data import add_check_data
from .classifiers import add_features, add_throughput
from .ensemble import add_ensemble
from .hand_over import add_hand_over
from .options import above_zero, add_config, at_least_zero, notes_of, positive, seed_number, share, verb
from .outputs import run_folder, writing
from .splits import add_check_splits, add_make_splits
from .track import add_track
from .visualize import add_visualize


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code (0 success, 1 the checked thing is invalid, 2 an error, 130 and 143 interrupted)."""
    options = build_parser().parse_args(arguments)
    keep_freed_memory()
    with _messages():
        return run_verb(options)


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory in this process instead of returning it to the operating system; True if supported.

    By default every frame of a model gets the memory of its larger maps afresh, and the kernel clears it page by page:
    a fifth of the time of a small model on a CPU. Process-wide, so a matter of the program and not of a library call;
    the memory that the largest frame took is held until the end.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return bool(
        (mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25)) and mallopt(trim_threshold, 1 << 30)
    )


@contextlib.contextmanager
def _messages() -> Iterator[None]:
    """Log lines of `drivestack` and warnings go to standard error, bare."""
    log = logging.getLogger("drivestack")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            log.propagate = propagate


# ---------------------------------------------------------------------------------------------------------- parser


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="drivestack",
        description="Surround-view camera images to 3D boxes, voxels and lanes: data, training, evaluation, pictures.",
        epilog="start with:\n  drivestack demo\neach verb explains itself, with examples:\n  drivestack VERB --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"drivestack {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add in (
        _demo,
        _synthesize,
        _train,
        add_evaluate,
        add_predict,
        add_score,
        add_check,
        add_ensemble,
        add_track,
        add_check_data,
        add_check_splits,
        add_make_splits,
        add_visualize,
        add_features,
        add_throughput,
        _export,
        add_hand_over,
        _doctor,
    ):
        add(verbs)
    return parser


# ----------------------------------------------------------------------------------------------------------- verbs


def _demo(verbs: Any) -> None:
    examples = [
        "drivestack demo",
        "drivestack demo --out runs/random --random-weights           # the baseline: about 0",
        "drivestack demo --out runs/shuffled --perturb-calibration shuffle   # geometry matters",
    ]
    parser = verb(
        verbs,
        "demo",
        _run_demo,
        "boxes, voxels and lanes on held-out synthetic scenes with the shipped weights",
        examples,
    )
    parser.add_argument("--out", metavar="DIR", default="runs/demo", help="where results go (default: %(default)s)")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights", metavar="FILE", help="other weights than the shipped ones")
    weights.add_argument("--random-weights", action="store_true", help="untrained model")
    parser.add_argument("--config", metavar="CONFIG", help="config of the weights (default: that of the shipped ones)")
    parser.add_argument("--perturb-calibration", metavar="HOW", help="shuffle or yaw:DEG: wrong camera poses")
    parser.add_argument("--scenes", type=positive, metavar="N", help="number of scenes (default: 10)")
    parser.add_argument("--keyframes", type=positive, metavar="N", help="keyframes per scene (default: 8)")
    parser.add_argument(
        "--drive",
        type=at_least_zero,
        metavar="N",
        help="keyframes of the drive that the clip plays (default: 20); 0: it plays the first scene",
    )
    parser.add_argument(
        "--pictures",
        type=at_least_zero,
        default=6,
        metavar="N",
        help="pictures; 0: no clip either (default: %(default)s)",
    )
    parser.add_argument(
        "--score-threshold",
        type=share,
        default=0.3,
        metavar="P",
        help="draw boxes above this score (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--workers",
        type=positive,
        default=os.cpu_count() or 2,
        metavar="N",
        help="processes that synthesize (default: all cores)",
    )


def _run_demo(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from ..data_tools.synthetic.recipes import RECIPES
    from .demo import DEMO_CONFIG, DEMO_WEIGHTS, run_demo

    sizes = {"num_scenes": options.scenes, "keyframes_per_scene": options.keyframes}
    recipe = replace(RECIPES["demo"], **{key: value for key, value in sizes.items() if value is not None})
    length = RECIPES["demo_drive"].keyframes_per_scene if options.drive is None else options.drive
    drive = replace(RECIPES["demo_drive"], keyframes_per_scene=length) if length else None
    out = Path(options.out)
    with writing("demo", folders=[out]):
        result = run_demo(
            options.out,
            recipe,
            options.config or DEMO_CONFIG,
            None if options.random_weights else options.weights or DEMO_WEIGHTS,
            options.perturb_calibration,
            options.device,
            options.workers,
            options.pictures,
            options.score_threshold,
            drive,
            say=lambda line: print(line, flush=True),
        )
    times_s, files = result["times"], result["files"]
    print(f"\nscores      {out / 'metrics.json'}")
    print("submissions " + ", ".join(str(out / name) for name in files["submissions"].values()) + " (valid)")
    if files["pictures"]:
        print(f"pictures    {out / 'pictures'} ({len(files['pictures'])}), {out / files['clip']}")
    parts = ", ".join(f"{name} {times_s[name]:.0f} s" for name in ("synthesize", "predict", "evaluate", "draw"))
    print(f"time        {times_s['total']:.0f} s ({parts})")
    size_mb = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 2**20
    print(f"disk        {size_mb:.0f} MB in {out}")
    return 0


def _synthesize(verbs: Any) -> None:
    examples = [
        "drivestack synthesize data/synthetic --split train --scenes 100 --seed 1",
        "drivestack synthesize data/judge --recipe judge",
        "drivestack synthesize data/small --split val --scenes 2 --keyframes 5 --image-width 320",
    ]
    summary = "write a synthetic street data set in the nuScenes v1.0 schema"
    parser = verb(verbs, "synthesize", _run_synthesize, summary, examples)
    parser.add_argument("out", metavar="DIR", help="root of the new set (version v1.0-trainval)")
    parser.add_argument(
        "--recipe",
        choices=(
            *("demo", "long_scenes", "demo_drive", "judge", "towns"),
            *("train100", "train101", "train102", "train_drives"),
        ),
        help="a set by name: split, scenes, keyframes, seed, width, streets, and labels where none are given",
    )
    parser.add_argument("--split", choices=("train", "val"), help="default: train")
    parser.add_argument("--scenes", type=positive, metavar="N", help="default: 20")
    parser.add_argument("--keyframes", type=positive, metavar="N", help="per scene (default: 20)")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--image-width", type=positive, metavar="PX", help="default: 640")
    parser.add_argument(
        "--streets",
        choices=("plain", "turning", "mixed", "towns"),
        help="straight on, drives that turn, both, or streets unlike them that are held out for tests (default: plain)",
    )
    parser.add_argument(
        "--rig",
        default="nuscenes",
        choices=("nuscenes", "argoverse2", "distorted", "fisheye", "waymo"),
        help="six cameras, seven, six with lens distortion, six with a 120 degree fisheye ahead, or Waymo's five with "
        "lens distortion and two sizes of images (default: %(default)s)",
    )
    parser.add_argument(
        "--labels",
        nargs="*",
        choices=("occupancy", "lanes", "depth", "street_map", "coco", "segmentation", "classes", "mono", "nuimages"),
        metavar="KIND",
        help="what to label besides boxes: %(choices)s (default: occupancy lanes)",
    )
    parser.add_argument(
        "--also",
        nargs="*",
        default=(),
        choices=("waymo_v1", "waymo_v2", "argoverse2", "py123d", "mcap"),
        metavar="FORMAT",
        help="write it in these formats, too, each in a folder of its name below DIR: %(choices)s",
    )
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 2, metavar="N", help="processes (default: all cores)"
    )
    parser.set_defaults(again="the same command goes on with the scenes that are missing")


def _run_synthesize(options: argparse.Namespace) -> int:
    from ..data_tools.synthetic import synthesize
    from ..data_tools.synthetic.files.other_formats import check_formats, write_other_formats

    check_formats(options.also, options.rig)
    wanted = _set_arguments(options)
    try:
        synthesize(out_dir=Path(options.out), rig=options.rig, workers=options.workers, **wanted)
    except ValueError as error:
        raise DataError(str(error)) from error
    print(f"wrote {options.out}: --dataroot {options.out} --version v1.0-trainval --split {wanted['split']}")
    if options.also:
        for folder in write_other_formats(options.out, [wanted["split"]], options.also):
            print(f"wrote {folder}")
    return 0


def _set_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What decides a synthetic set: of the recipe, or of the options; an option that a recipe says as well is
    refused."""
    from ..data_tools.synthetic.recipes import RECIPES, SetRecipe

    of_options = {"split": "split", "scenes": "num_scenes", "keyframes": "keyframes_per_scene", "seed": "seed",
                  "image_width": "image_width_px", "streets": "streets"}  # fmt: skip
    given = {name: getattr(options, name) for name in of_options if getattr(options, name) is not None}
    if options.recipe and given:
        named = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"--recipe {options.recipe} says {named}; leave out one or the other")
    recipe = RECIPES[options.recipe] if options.recipe else SetRecipe("train", 0, 20)
    wanted = recipe.arguments() | {of_options[name]: value for name, value in given.items()}
    return wanted if options.labels is None else wanted | {"labels": tuple(options.labels)}


def _train(verbs: Any) -> None:
    examples = [
        "for n in 100 101 102; do drivestack synthesize data/train$n --scenes 100 --keyframes 6 --seed $n; done",
        "drivestack train bevformerv2_tiny_synthetic",
        "drivestack train bevformerv2_tiny_synthetic --work-dir runs/mine --set max_iters=2000 --seed 1",
        "drivestack train bevformerv2_tiny_synthetic --work-dir runs/mine --resume   # after a kill",
        "drivestack train my_config.py --fine-tune bevformerv2_tiny_synthetic   # own classes",
        "torchrun --nproc-per-node 8 -m drivestack train bevformerv2_r50_t1_24ep   # needs data/nuscenes",
    ]
    parser = verb(verbs, "train", _run_train, "train a model", examples)
    add_config(parser)
    default = "runs/CONFIG; of a work folder's config.py that folder's name"
    parser.add_argument("--work-dir", metavar="DIR", help=f"checkpoints and log (default: {default})")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        default=False,
        metavar="CHECKPOINT",
        help="go on from the last checkpoint of the work dir, or from this one",
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--load-from", metavar="FILE", help="start from these weights, iteration 0; all must fit")
    weights.add_argument(
        "--fine-tune",
        metavar="FILE",
        help="the same for other classes, range, grid, queries, cameras or heads: takes and adapts what fits",
    )
    parser.add_argument("--seed", type=seed_number, metavar="N", help="overrides the config's")
    parser.add_argument("--max-minutes", type=above_zero, metavar="M", help="save and stop after this time")
    parser.set_defaults(again="with --resume it goes on from the last checkpoint")


def _run_train(options: argparse.Namespace) -> int:
    from ..api import train

    checkpoint = train(
        options.config,
        options.work_dir or run_folder(options.config),
        resume=options.resume,
        seed=options.seed,
        overrides=options.overrides,
        load_from=options.load_from,
        fine_tune=options.fine_tune,
        max_minutes=options.max_minutes,
        command=shlex.join(["drivestack", *sys.argv[1:]]),
    )
    print(f"checkpoint  {checkpoint}")
    return 0


def _export(verbs: Any) -> None:
    examples = [
        "drivestack export-weights runs/bevformerv2_tiny_synthetic/iter_10800.pth tiny.safetensors --half \\",
        "    --note command='drivestack train bevformerv2_tiny_synthetic' --note commit=$(git rev-parse HEAD)",
    ]
    summary = "publish the weights of a training checkpoint as safetensors"
    parser = verb(verbs, "export-weights", _run_export, summary, examples)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("out", metavar="FILE", help="name it .safetensors")
    parser.add_argument("--half", action="store_true", help="16-bit floats: half the size")
    parser.add_argument(
        "--note", metavar="KEY=VALUE", action="append", default=[], help="kept in the file's header; repeatable"
    )


def _run_export(options: argparse.Namespace) -> int:
    import torch

    from ..engine.checkpoints import export_weights

    notes = notes_of(options.note)
    if Path(options.out).suffix != ".safetensors":
        raise ConfigError(f"{options.out}: the name must end in .safetensors")
    dtype = torch.float16 if options.half else torch.float32
    with writing(f"export-weights {options.checkpoint}", [Path(options.out)]):
        path = export_weights(options.checkpoint, options.out, notes, dtype)
    print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MB)")
    return 0


def _doctor(verbs: Any) -> None:
    summary = "show what is installed, which kernels run, and what to do about what is missing"
    verb(verbs, "doctor", _run_doctor, summary, ["drivestack doctor"])


def _run_doctor(options: argparse.Namespace) -> int:
    from .doctor import BROKEN, examine

    findings = examine()
    for finding in findings:
        print(f"{finding.status:<7} {finding.name:<22} {finding.detail}")
        if finding.fix:
            print(f"{'':<7} {'':<22} -> {finding.fix}")
    broken = [finding.name for finding in findings if finding.status == BROKEN]
    if broken:
        print(f"error: {', '.join(broken)} must be fixed", file=sys.stderr)
        return INVALID_SUBMISSION
    print("all that is required is here")
    return 0
