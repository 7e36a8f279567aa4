"""Options shared by the verbs of the command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..data_tools.readers.registry import DataSource

TASKS = ("boxes", "occupancy", "lanes", "tracks")
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
    group.add_argument("--dataroot", metavar="DIR", help="root of the set; nuScenes: samples/ and the tables")
    group.add_argument("--version", dest="data_version", metavar="V", help="folder of tables, e.g. v1.0-trainval")
    group.add_argument(
        "--split",
        metavar="S",
        help="train, val, test, mini_train, mini_val, or of splits.json; Waymo's challenge: test_camera_only",
    )
    group.add_argument(
        "--reader",
        metavar="NAME",
        help="another data set than nuScenes: openlane, nuscenes_infos, ..., or a .py file with your own reader "
        "(docs/own_data.md)",
    )
    group.add_argument(
        "--option",
        dest="reader_options",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="another option of the reader; repeatable",
    )
    group.add_argument("--openlane", metavar="DIR", help="the same as --reader openlane --dataroot DIR")
    group.add_argument("--info-pickle", metavar="FILE", help="published info file instead of tables (with --dataroot)")


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
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a .pth or .safetensors file of this config, a shipped model's name, or 'random'",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "auto"),
        default="fp32",
        help="of the model; auto: bf16 where the device computes it, else fp32 (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="keyframes at once (default: 1)")
    parser.add_argument(
        "--workers", type=at_least_zero, default=0, metavar="N", help="processes that read images (default: 0)"
    )
    parser.add_argument(
        "--perturb-calibration", metavar="HOW", help="shuffle or yaw:DEG: wrong camera poses, to see that they matter"
    )


def source(options: argparse.Namespace) -> DataSource | None:
    """The data set that the options of ``add_source`` name, None where they name none.

    Raises ConfigError for options that do not belong together.
    """
    from ..core.errors import ConfigError
    from ..data_tools.readers.registry import DataSource
    from ..engine.config import parse_override

    given = dict(parse_override(text) for text in options.reader_options)
    if options.data_version is not None:
        given["version"] = options.data_version
    if options.split is not None:
        given["split"] = options.split
    reader, root = options.reader, options.dataroot
    if options.openlane is not None:
        if reader is not None or root is not None:
            raise ConfigError("--openlane names reader and folder: give no --reader and no --dataroot beside it")
        reader, root = "openlane", options.openlane
    if options.info_pickle is not None:
        if reader not in (None, "nuscenes_infos"):
            raise ConfigError(f"--info-pickle goes with the reader nuscenes_infos, not with {reader}")
        reader, given["info_pickle"] = "nuscenes_infos", options.info_pickle
        given.pop("version", None)
        given.pop("split", None)
    if root is None:
        if reader is not None or set(given) - {"split"}:
            raise ConfigError("--reader, --version, --option and --info-pickle need --dataroot, the folder of the set")
        return None
    if options.data_version is None and options.split is None and reader is None:
        raise ConfigError("--dataroot needs --version and --split, for example --version v1.0-trainval --split val")
    return DataSource(reader or "nuscenes", root, given)


def known_source(options: argparse.Namespace, config: Config | None = None) -> DataSource:
    """The data set of the options, or of the config's test_dataset. Raises ConfigError where neither names one."""
    from ..core.errors import ConfigError
    from ..tasks.run import source_of

    found = source(options)
    if found is not None:
        return found
    if config is None:
        raise ConfigError(
            "no data named: give --dataroot with --version and --split, --dataroot with --info-pickle, --openlane, or "
            "--reader with --dataroot"
        )
    own = source_of(config)
    return own if options.split is None else own.changed(split=options.split)


def notes_of(texts: Sequence[str]) -> dict[str, str]:
    """``--note KEY=VALUE`` as a mapping. Raises ConfigError for a text without the equals sign."""
    from ..core.errors import ConfigError

    if bad := [text for text in texts if "=" not in text]:
        raise ConfigError(f"--note {bad[0]!r}: write it as key=value, for example --note data='100 scenes, seed 1'")
    return dict(text.split("=", 1) for text in texts)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def at_least_zero(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def above_zero(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def seed_number(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be from 0 to {2**32 - 1}, got {value}")
    return value
