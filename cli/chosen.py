"""The tasks that options and config of a verb choose, and on which benchmark."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .options import METRIC_VERSIONS

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..tasks.base import Task
    from ..tasks.boxes import Boxes


def mapped_boxes(
    options: argparse.Namespace, class_names: Sequence[str] = (), class_range_m: Mapping[str, float] | None = None
) -> Boxes | None:
    """The boxes' task by ``--mapping``, None without it. It takes the place of any other: its metric is one for all."""
    from ..bev.evaluation.class_mapping import read_mapping
    from ..core.errors import ConfigError
    from ..tasks.across import AcrossSets
    from ..tasks.boxes import Boxes

    if not options.mapping:
        return None
    if options.class_range:
        raise ConfigError("--class-range beside --mapping: state the radii of the common classes there, in range_m")
    if options.tasks and "boxes" not in options.tasks:
        raise ConfigError("--mapping is of boxes, and --tasks leaves them out: leave one of them out")
    across = AcrossSets(read_mapping(options.mapping))
    return Boxes(class_names, dict(class_range_m or {}), options.official, across)


def chosen_tasks(
    options: argparse.Namespace,
    class_names: Sequence[str] = (),
    config: Config | None = None,
    submissions: Mapping[str, Path] | None = None,
) -> dict[str, Task]:
    """Every task, as the options want it; ``--class-range`` goes before the config's ranges.

    The benchmark of boxes is the config's, else that of the file among ``submissions``, else nuScenes.
    """
    from ..bev.evaluation.waymo_submission import read_entry
    from ..core.errors import ConfigError
    from ..engine.config import parse_override
    from ..lane_topology.evaluation.submission import NOBODY, read_team
    from ..occupancy.evaluation.rules import SPLIT_SAMPLES
    from ..tasks.argoverse2_boxes import Argoverse2Boxes
    from ..tasks.registry import BENCHMARKS, Boxes, Lanes, Occupancy, Tracks, benchmark_of
    from ..tasks.run import box_task

    given = vars(options)
    everywhere = given.get("everywhere", False)
    megabytes = given.get("max_mb")
    ranges = dict(parse_override(text) for text in given.get("class_range", ()))
    for name, radius in ranges.items():
        if isinstance(radius, bool) or not isinstance(radius, (int, float)) or not 0 < radius < math.inf:
            raise ConfigError(f"--class-range {name}={radius}: write a radius in metres, for example {name}=50")
    lanes = Lanes(
        team=read_team(options.team) if given.get("team") else NOBODY,
        half=given.get("half", False),
        max_bytes=None if megabytes is None else round(megabytes * 1e6),
        version=given.get("metric_version", METRIC_VERSIONS[0]),
    )
    num_samples = None if options.dataroot or options.openlane else SPLIT_SAMPLES.get(options.split)
    official, file = given.get("official", False), (submissions or {}).get("boxes")
    boxes: Task
    if config is not None:
        entry = read_entry(options.waymo_entry) if given.get("waymo_entry") else {}
        boxes = box_task(config, ranges, official, entry, everywhere)
    elif file is not None and (benchmark := benchmark_of(file)) != "nuscenes":
        if official or ranges:
            raise ConfigError(f"{file} is scored by the metric of {benchmark}: leave out --official and --class-range")
        if everywhere and benchmark != "argoverse2":
            raise ConfigError(f"{file} is scored by the metric of {benchmark}: leave out --everywhere")
        boxes = Argoverse2Boxes(region=False) if everywhere else BENCHMARKS[benchmark]()
    elif everywhere:
        raise ConfigError("--everywhere is of Argoverse 2's score: leave it out, or name a .feather file")
    else:
        boxes = Boxes(class_names, ranges, official)
    return {"boxes": boxes, "occupancy": Occupancy(num_samples), "lanes": lanes, "tracks": Tracks()}
