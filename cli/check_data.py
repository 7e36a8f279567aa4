"""The verb that holds a data set against the physical world, for a look at calibration and labels before training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .answers import INVALID_SUBMISSION
from .options import add_source, at_least_zero, known_source, positive, verb
from .outputs import writing


def add_check_data(verbs: Any) -> None:
    examples = [
        "drivestack check-data recording.mcap --option boxes=labels.json",
        "drivestack check-data data/own_rig --reader my_reader.py --split val",
        "drivestack check-data data/nuscenes --version v1.0-mini --split mini_val --out runs/check",
    ]
    summary = "does a data set fit: border checks, what looks wrong, numbers, boxes and ground in every camera"
    parser = verb(verbs, "check-data", _run_check_data, summary, examples)
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="the same as --dataroot")
    add_source(parser)
    parser.add_argument(
        "--out", metavar="DIR", default="runs/check-data", help="report.json and pictures (default: %(default)s)"
    )
    parser.add_argument(
        "--pictures", type=at_least_zero, default=3, metavar="N", help="keyframes to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--camera-width", type=positive, default=560, metavar="PX", help="of a camera in them (default: %(default)s)"
    )


def _run_check_data(options: argparse.Namespace) -> int:
    from ..core.errors import ConfigError
    from ..tasks.check_data import REPORT, check_data, lines_of

    if options.source is not None:
        if options.dataroot is not None:
            raise ConfigError("SOURCE is the same as --dataroot: give one of them")
        options.dataroot = options.source
        if options.reader is None and options.source.endswith(".mcap"):
            options.reader = "mcap"
    source, out = known_source(options), Path(options.out)
    with writing("check-data", [out / REPORT], [out]):
        found = check_data(source, out, options.pictures, options.camera_width)
    print("\n".join(lines_of(found)))
    print(f"\nreport      {out / REPORT}")
    if found.pictures:
        print(f"pictures    {out}: {found.pictures[0]} and {len(found.pictures) - 1} others")
    return 0 if found.fits else INVALID_SUBMISSION
