"""What a config leaves to its training data: names and number of classes, and the rates and lengths of its epochs.

A config may state

    sized_by_classes = ("model.network.num_classes",)   places that get the number of classes of the data
    weights_by_class = ("model.net.class_weights",)     weights by name, left out for classes that they do not name
    counts_by_class = ("model.occupancy_head.class_frequency",)   how often each class occurs in the labels
    epochs = dict(total=300, warmup=20, lr=5e-4, warmup_lr=5e-7, min_lr=5e-6, images_per_lr=512)

``lr`` and the other rates are for steps of ``images_per_lr`` images and grow with the images of a step: processes x
batch size x accumulated iterations. What the config states itself (train_cfg.max_iters, optim_wrapper.optimizer.lr,
param_scheduler) stays as it is.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from ..core.errors import ConfigError
from .config import build_dataset, override
from .config_check import check_types, shown
from .schedules import WarmupCosineLR

logger = logging.getLogger("drivestack")

EPOCHS: Mapping[str, Any] = {
    "total": None,
    "lr": None,
    "warmup": 0,
    "warmup_lr": 0.0,
    "min_lr": 0.0,
    "images_per_lr": 512,
}
"""Entries of ``epochs`` and their defaults; those without one must be given."""


def completed(config: Config) -> Config:
    """The config with everything stated that follows from its data; the same object where nothing is left to them.

    Builds the training data set. Raises ConfigError, DataError.
    """
    if not any(config.get(key) for key in ("epochs", "sized_by_classes", "counts_by_class")):
        return config
    check_types(config)
    loader = config.get("train_dataloader") or {}
    if not loader.get("dataset"):
        raise ConfigError(
            "the config has no train_dataloader.dataset, from which epochs, sized_by_classes or counts_by_class follow."
        )
    config = copy.deepcopy(config)
    loader = config.train_dataloader
    dataset = build_dataset(loader.dataset)
    names = list(getattr(dataset, "class_names", ()))
    if config.get("sized_by_classes"):
        _state_classes(config, names)
    if config.get("counts_by_class"):
        _state_counts(config, dataset)
    if config.get("epochs"):
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        _state_rates(config, len(dataset), world_size)  # type: ignore[arg-type]
    config.epochs = None  # what is written down is whole
    config.sized_by_classes, config.weights_by_class, config.counts_by_class = (), (), ()
    return config


def _state_classes(config: Config, names: list[str]) -> None:
    for part in (config.train_dataloader.dataset, config.get("test_dataset")):
        if part is not None and part.get("classes") is None:
            part["classes"] = names
    for place in config.sized_by_classes:
        node: Any = config._cfg_dict
        for key in place.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        if node != len(names):
            before = "" if node is None else f" (the config has {shown(node)})"
            logger.info("%s: %d, the classes of the training data%s", place, len(names), before)
        override(config, place, len(names))
    for place in config.get("weights_by_class") or ():
        node = config._cfg_dict
        for key in place.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
            continue  # given as numbers, or not at all
        strange = [name for name in names if name not in node]
        if strange:
            logger.warning("%s: left out, for it does not know class %s", place, strange[0])
        override(config, place, None if strange else [float(node[name]) for name in names])


def _state_counts(config: Config, dataset: Any) -> None:
    counted = getattr(dataset, "class_counts", None)
    if counted is None:
        raise ConfigError(f"counts_by_class: {type(dataset).__name__} counts no labels (no method class_counts)")
    counts = counted()
    for place in config.counts_by_class:
        logger.info("%s: %s, counted in the training data", place, counts)
        override(config, place, counts)


def _state_rates(config: Config, num_images: int, world_size: int) -> None:
    """Learning rates, schedule and iterations of ``epochs``."""
    given = {**EPOCHS, **config.epochs}
    if unknown := sorted(set(given) - set(EPOCHS)):
        raise ConfigError(f"epochs: unknown {', '.join(unknown)}; it has {', '.join(EPOCHS)}.")
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ConfigError(f"epochs.{key}: must be a number that is not negative, got {shown(value)}.")
    optim_wrapper, batch_size = config.optim_wrapper, config.train_dataloader.batch_size
    images = world_size * batch_size * optim_wrapper.get("accumulative_counts", 1)  # of a step
    scale = images / given["images_per_lr"]
    iterations = lambda epochs: round(epochs * num_images / (world_size * batch_size))
    total = max(iterations(given["total"]), optim_wrapper.get("accumulative_counts", 1))
    if config.get("train_cfg") is None:
        config.train_cfg = {}
    total = config.train_cfg.setdefault("max_iters", total)
    stated = "lr" in optim_wrapper.optimizer
    optim_wrapper.optimizer.setdefault("lr", given["lr"] * scale)
    if config.get("param_scheduler") is None:
        config.param_scheduler = [
            dict(
                type=WarmupCosineLR,
                total=total,
                warmup=min(iterations(given["warmup"]), total),
                warmup_lr=given["warmup_lr"] * scale,
                min_lr=given["min_lr"] * scale,
            )
        ]
    rate = "as stated" if stated else f"{given['lr']:g} x {images} / {given['images_per_lr']} images of a step"
    logger.info(
        "%d images, %d iterations, learning rate %.3g (%s)", num_images, total, optim_wrapper.optimizer.lr, rate
    )
