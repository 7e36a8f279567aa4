"""The verb that makes one submission of several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import above_zero, add_source, positive, share, source, verb
from .outputs import writing

METHODS = ("wbf", "matrix-nms", "wbf+matrix-nms")


def add_ensemble(verbs: Any) -> None:
    examples = [
        "drivestack ensemble a.tar.gz b.tar.gz c.tar.gz --weights 1 0.8 0.5 --out fused.tar.gz",
        "drivestack ensemble a.json b.json --out fused.json --dataroot D --version v1.0-trainval --split val",
        "drivestack ensemble a.json b.json --out fused.json --iou standard --threshold car=0.4",
    ]
    summary = "fuse boxes of several submissions (nuScenes or Waymo): weighted box fusion, matrix NMS, LET-IoU"
    parser = verb(verbs, "ensemble", _run, summary, examples)
    parser.add_argument("paths", metavar="FILE", nargs="+", help="submissions of one split, all .json or all .tar.gz")
    parser.add_argument("--out", metavar="FILE", required=True, help="the fused submission, of the same kind")
    parser.add_argument("--weights", type=above_zero, nargs="+", default=[], metavar="W", help="of each (default: 1)")
    parser.add_argument("--method", choices=METHODS, default="wbf", help="default: %(default)s")
    parser.add_argument(
        "--iou",
        choices=("let", "standard"),
        default="let",
        help="how boxes are compared: let forgives depth errors as Waymo's metric does (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold",
        metavar="CLASS=IOU",
        action="append",
        default=[],
        help="from which boxes of a class are one; repeatable (default: vehicle 0.5, others 0.3)",
    )
    parser.add_argument("--sigma", type=float, metavar="S", help="of matrix NMS; 0: linear (default: 0.5)")
    parser.add_argument(
        "--min-score", type=share, default=0.01, metavar="P", help="leave lower ones out (default: %(default)s)"
    )
    parser.add_argument(
        "--max-boxes",
        type=positive,
        metavar="N",
        help="keep the best of each frame; what is left out is counted (default: nuScenes' 500; of Waymo's files all)",
    )
    parser.add_argument(
        "--waymo-entry",
        metavar="FILE",
        help="JSON: account, method, ... (default: as in the first file, past and future frames the most of any)",
    )
    add_source(parser, "none; LET-IoU of nuScenes' files needs it")


def _run(options: argparse.Namespace) -> int:
    from ..bev.evaluation.ensemble import Fusion
    from ..bev.evaluation.waymo_submission import read_entry
    from ..core.errors import ConfigError
    from ..engine.config import parse_override
    from ..tasks.ensemble import ensemble

    thresholds = dict(parse_override(text) for text in options.threshold)
    if bad := [name for name, v in thresholds.items() if isinstance(v, bool) or not isinstance(v, (int, float))]:
        raise ConfigError(f"--threshold {bad[0]}={thresholds[bad[0]]}: write an IoU, for example {bad[0]}=0.4")
    how = Fusion(options.method, options.iou == "let", thresholds, options.sigma, options.min_score, options.max_boxes)
    entry = read_entry(options.waymo_entry) if options.waymo_entry else None
    named = source(options)
    out = Path(options.out)
    with writing("ensemble", [out]):
        frames = None if named is None else named.read()
        held = ensemble([Path(path) for path in options.paths], out, options.weights, how, frames, entry)
    print(f"wrote {out}: {held}")
    return 0
