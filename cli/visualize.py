"""The verb that draws: labels of a data set, and what submissions hold for them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chosen import chosen_tasks
from .options import add_source, known_source, positive, share, verb
from .outputs import writing

if TYPE_CHECKING:
    from ..core.answers import SceneAnswer
    from ..core.frames import Frame


def add_visualize(verbs: Any) -> None:
    examples = [
        "drivestack visualize --dataroot data/synthetic --version v1.0-trainval --split val --out pictures",
        "drivestack visualize --dataroot data/nuscenes --version v1.0-mini --split mini_val \\",
        "    --submission submission.json --scene scene-0103 --clip clip.gif",
        "drivestack visualize --submission runs/answers --dataroot D --version v1.0-trainval --split val",
    ]
    summary = "draw boxes, lanes and voxels: labels, and predictions of submissions"
    parser = verb(verbs, "visualize", _run_visualize, summary, examples)
    add_source(parser)
    parser.add_argument(
        "--submission",
        metavar="PATH",
        action="append",
        default=[],
        help="draw what it holds too: a file, or a folder as predict writes it; repeatable",
    )
    parser.add_argument("--scene", metavar="NAME", help="this scene only")
    parser.add_argument("--sample", metavar="TOKEN", action="append", default=[], help="this sample; repeatable")
    parser.add_argument("--max", type=positive, default=10, metavar="N", help="pictures at most (default: %(default)s)")
    parser.add_argument("--score-threshold", type=share, default=0.3, metavar="P", help="default: %(default)s")
    parser.add_argument(
        "--classes", nargs="+", metavar="CLASS", default=(), help="classes of the submission that no label has"
    )
    parser.add_argument("--out", metavar="DIR", default="pictures", help="folder of PNGs (default: %(default)s)")
    parser.add_argument("--clip", metavar="FILE", help="also a .gif or .mp4 of the chosen frames")


def _run_visualize(options: argparse.Namespace) -> int:
    from ..view.clips import check_clip_path

    if options.clip:
        check_clip_path(options.clip)
    with writing("visualize", [Path(options.clip)] if options.clip else [], [Path(options.out)]):
        _draw(options)
    return 0


def _draw(options: argparse.Namespace) -> None:
    from ..tasks.base import GroundTruth, refuse
    from ..tasks.registry import answer_reader, find
    from ..tasks.run import choose_frames
    from ..view.drawing import View
    from ..view.picture import draw_pictures, render_answer_clip

    where = known_source(options)
    paths: dict[str, Path] = {}
    for path in options.submission:
        paths |= find(path)
    truth = GroundTruth(where)
    frames = choose_frames(truth.frames, options.scene, options.sample, options.max)
    names = _class_names(options, truth.frames, paths)
    chosen = chosen_tasks(options, names, submissions=paths)
    for name, path in paths.items():
        refuse(path, chosen[name].drawing_problems(path, truth, frames))
    read = answer_reader(chosen, paths, frames, names, where.split)
    _print_undrawn(frames, read, list(paths))
    written = draw_pictures(frames, read, names, Path(options.out), options.score_threshold, truth.frames)
    print(f"wrote {len(written)} pictures to {options.out}")
    if options.clip:
        view = View(camera_width_px=360, score_threshold=options.score_threshold)
        render_answer_clip(frames, read, names, options.clip, view)
        print(f"wrote {options.clip}")


def _print_undrawn(frames: Sequence[Frame], read: Callable[[Frame], SceneAnswer], tasks: Sequence[str]) -> None:
    """Pictures show labels alone where a submission says nothing about a sample."""
    from ..tasks.registry import MADE_OF

    for task in tasks:
        bare = [frame.token for frame in frames if getattr(read(frame), MADE_OF.get(task, task)) is None]
        if bare:
            print(
                f"warning: {len(bare)} of {len(frames)} pictures have no {task} of the submission, which holds nothing "
                f"for them (sample {bare[0]})",
                file=sys.stderr,
            )


def _class_names(options: argparse.Namespace, frames: Sequence[Frame], paths: Mapping[str, Path]) -> list[str]:
    """nuScenes' classes, or those of the file's benchmark, and others: of the labels, and named by --classes."""
    from ..bev.evaluation.nuscenes_rules import CLASS_ATTRIBUTES
    from ..bev.evaluation.waymo_submission import CLASS_TYPES
    from ..core.argoverse2 import EVALUATED_CLASSES
    from ..tasks.registry import benchmark_of

    of_benchmark = {"nuscenes": CLASS_ATTRIBUTES, "waymo": CLASS_TYPES, "argoverse2": EVALUATED_CLASSES}
    benchmark = of_benchmark[benchmark_of(paths["boxes"]) if "boxes" in paths else "nuscenes"]
    labelled = {name for frame in frames if frame.annotations is not None for name in frame.annotations.names if name}
    return list(dict.fromkeys([*benchmark, *options.classes, *sorted(labelled)]))
