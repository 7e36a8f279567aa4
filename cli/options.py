"""Options that verbs of the command line share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..tasks.run import Source

TASKS = ("boxes", "occupancy", "lanes")
METRIC_VERSIONS = ("v2.1", "v1.0", "fork-2023")


def verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, examples: Sequence[str]
) -> argparse.ArgumentParser:
    """A verb with its examples; ``run`` returns the exit code."""
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run, again="the same command starts again; nothing half-written is left")
    return parser


def add_source(parser: argparse.ArgumentParser, default: str = "") -> None:
    """The data set; ``source`` reads the options."""
    group = parser.add_argument_group(f"data (default: {default})" if default else "data")
    group.add_argument("--dataroot", metavar="DIR", help="nuScenes root: samples/ and the tables")
    group.add_argument("--version", dest="data_version", metavar="V", help="folder of tables, e.g. v1.0-trainval")
    group.add_argument("--split", metavar="S", help="train, val, test, mini_train, mini_val, or of splits.json")
    group.add_argument("--openlane", metavar="DIR", help="OpenLane-V2 root instead, with --split (or a collection)")


def add_info_pickle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--info-pickle", metavar="FILE", help="published info file instead of tables (with --dataroot)")


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="name of a shipped config, or a .py file")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change the config, e.g. --set train_cfg.max_iters=100; repeatable",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".pth or .safetensors of this config, or 'random'")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--perturb-calibration", metavar="HOW", help="shuffle or yaw:DEG: wrong camera poses, to see that they matter"
    )


def source(options: argparse.Namespace) -> Source:
    """The data set that the options of ``add_source`` and ``add_info_pickle`` name."""
    from ..tasks.run import Source

    pickle = getattr(options, "info_pickle", None)
    return Source(options.dataroot, options.data_version, options.split, pickle, options.openlane)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def seed_number(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be from 0 to {2**32 - 1}, got {value}")
    return value


def positive_minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value
