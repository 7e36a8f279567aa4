"""What a training run records of itself and of the weights that it starts from, and whether those saw the test data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, ConfigError, DataError
from ..core.frames import Frame
from ..core.weights.lineage import MOST_SCENES, Stage, data_settings, lineage_of, seen_before, split_in
from ..data_tools.readers.registry import DataSource
from ..data_tools.splits.places import overlap, places_of
from .config import task_names
from .resume import plain_settings

logger = logging.getLogger("drivestack")


def own_stage(config: Mapping[str, Any], seed: int, dataset: Any, command: str = "") -> Stage:
    """The record of a training on ``dataset``, as far as it is known before it begins."""
    data = data_settings(plain_settings(config["train_dataloader"]["dataset"]))
    scenes = sorted({str(scene) for scene in dataset.scene_tokens} - {""})
    return Stage(
        recipe=config.get("config_name", ""),
        data=data,
        split=split_in(data),
        scenes=tuple(scenes) if len(scenes) <= MOST_SCENES else (),
        classes=tuple(getattr(dataset, "class_names", None) or task_names(config).get("classes", ())),
        samples=len(dataset),
        seed=int(seed),
        command=command,
    )


def earlier_stages(config: Mapping[str, Any], weights: Path | None) -> tuple[Stage, ...]:
    """The trainings behind the weights that a run starts from: ``weights``, else what its model names as pretrained."""
    if weights is not None:
        return lineage_of(weights)
    stages: list[Stage] = []
    for path in _pretrained(config["model"]):
        try:
            stages += [stage for stage in lineage_of(path) if stage not in stages]
        except CheckpointError as error:  # whoever loads it says what is wrong
            logger.debug("%s", error)
    return tuple(stages)


def _pretrained(node: Any) -> Iterator[str]:
    """Files that parts of a model's config name as ``pretrained``."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if key == "pretrained" and isinstance(value, str):
            yield value
        yield from _pretrained(value)


def warn_if_seen(config: Mapping[str, Any], stages: tuple[Stage, ...]) -> None:
    """Warn of each of the trainings that saw data which the config validates on (its ``test_dataset``)."""
    test = config.get("test_dataset") or {}
    if not stages or not test.get("source"):
        return
    try:
        source = DataSource.of(test["source"])
    except ConfigError:  # of single images, for example, which have no scenes
        return
    try:
        scenes = {frame.scene_token for frame in source.read()} if any(stage.scenes for stage in stages) else set()
    except (DataError, ConfigError) as error:
        logger.debug("the scenes of the validation data are not known: %s", error)
        scenes = set()
    for phrase in seen_before(stages, scenes, source.split, str(source.reader)):
        logger.warning(
            "the weights to start from have seen validation data: %s; scores there are not those of unseen data",
            phrase,
        )


def warn_if_near(config: Mapping[str, Any], dataset: Any) -> None:
    """Warn where the config scores on places that it trains on, as far as the sets state their cities.

    Only with ``validation`` in the config; nothing is said of frames without a location, whose poses may be local.
    """
    test = config.get("test_dataset") or {}
    if not config.get("validation") or not test.get("source"):
        return
    located = _located(getattr(dataset, "frames", ()))
    try:
        frames = _located(DataSource.of(test["source"]).read() if located else ())
        found = overlap(places_of(frames), places_of(located))
    except (DataError, ConfigError) as error:
        logger.debug("the places of the validation data are not known: %s", error)
        return
    if near := sum(scene.near for scene in found.first):
        cities = sorted({scene.location for scene in found.first})
        logger.warning(
            "%d of %d keyframes of the validation data lie within %g m of training data (%s): scores do not say how "
            "the model does at places that it has not seen; see `drivestack check-splits` and `make-splits`",
            near,
            len(frames),
            found.distance_m,
            ", ".join(cities[:6]) + (", ..." if len(cities) > 6 else ""),
        )


def _located(frames: Iterable[Any]) -> list[Frame]:
    return [frame for frame in frames if isinstance(frame, Frame) and frame.conditions.get("location")]
