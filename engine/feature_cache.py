"""Training of heads alone, on features of the frozen parts that are computed once for all runs.

Where everything up to the heads is frozen and images are a function of (sample, mirrored), each training clip costs the
encoder the same work again and again. The config's ``cache_features`` names a folder in which the features lie instead,
one store for every combination of frozen weights, data and precision: runs with other heads, seeds or schedules share
it. Stored are the very bits that training without it computes (of frozen parts with dropout or BatchNorm: those of
evaluation). The images are then not loaded at all, but for those that heads read themselves.

A model takes part with two methods: ``fixed_state()`` and ``fixed_features(batch)`` (bev/bevformer_v2.py); a dataset
with ``undrawn(index, mirrored)`` and ``use_features(store)`` (data_tools/clips/clip_dataset.py).
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier
from mmengine.hooks import Hook
from torch import Tensor

from ..core.errors import ConfigError
from ..core.feature_store import FeatureStore
from ..core.files import sync_files, write_errors
from ..core.folders import file_lock
from ..core.progress import ProgressDisplay
from .loop import local_device

logger = logging.getLogger("drivestack")


class CacheFeatures(Hook):
    """Before training: writes what is missing and gives the store to the training data.

    folder: of the stores, each in a folder of its fingerprint's name; they are never removed here.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def before_train(self, runner: Any) -> None:
        model, dataset = runner.bare_model, runner.train_loop.dataloader.dataset
        for part, method in ((model, "fixed_features"), (dataset, "undrawn")):
            if not hasattr(part, method):
                raise ConfigError(f"cache_features: {type(part).__name__} has no {method}(); switch cache_features off")
        with torch.no_grad():
            state = model.fixed_state()
        compute = lambda index, mirrored: self._features(runner, index, mirrored)
        first = compute(0, False)
        store = self.folder / fingerprint(state, first, dataset, str(runner.optim_wrapper.autocast_dtype))
        lock = file_lock(store, "store features") if runner.rank == 0 else nullcontext()
        with lock:
            if not _is_there(store, runner):
                self._write(store, runner, first, compute)
        dataset.use_features(FeatureStore(store))

    @staticmethod
    def _features(runner: Any, index: int, mirrored: bool) -> dict[str, Tensor]:
        """One clip at a time: rounding may depend on the size of a batch."""
        loader = runner.train_loop.dataloader
        batch = loader.collate_fn([loader.dataset.undrawn(index, mirrored)]).to(local_device())
        # with gradients enabled, as in training: inference may take operators that round otherwise
        with torch.enable_grad(), runner.optim_wrapper.autocast():
            found = runner.bare_model.fixed_features(batch)
        return {name: value[0].detach().cpu() for name, value in found.items()}

    @staticmethod
    def _write(store: Path, runner: Any, first: Mapping[str, Tensor], compute: Any) -> None:
        dataset, began = runner.train_loop.dataloader.dataset, time.monotonic()
        temporary = store.with_name(f".{store.name}.unfinished")
        with write_errors(store):
            if runner.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                FeatureStore.create(temporary, dataset.tokens, dataset.mirror, first)
            barrier()
            unfinished = FeatureStore(temporary)
            mine = range(runner.rank, len(dataset), runner.world_size)
            with ProgressDisplay("store features", len(mine), unit="samples", shown=runner.rank == 0) as display:
                for index in mine:
                    for mirrored in (False, True)[: unfinished.views]:
                        unfinished.write(dataset.tokens[index], mirrored, compute(index, mirrored))
                    display.advance()
            barrier()
            if runner.rank == 0:
                sync_files(temporary.iterdir())
                temporary.rename(store)
            barrier()
        if runner.rank == 0:
            logger.info("stored features of %d samples in %.0f s: %s", len(dataset), time.monotonic() - began, store)


def _is_there(store: Path, runner: Any) -> bool:
    """The same answer for all ranks: none of them begins to write before all have looked."""
    found = store.is_dir()
    barrier()
    if found and runner.rank == 0:
        logger.info("features are stored: %s", store)
    return found


def fingerprint(state: Mapping[str, Tensor], first: Mapping[str, Tensor], dataset: Any, precision: str) -> str:
    """Name of the store: of the frozen weights, the data and the precision.

    first: the features of one sample, which change with whatever else goes into them (code, layers, image settings).
    Images go by path, size and time of change, cameras by their calibration.
    """
    digest = hashlib.sha256(repr((precision, dataset.mirror, dataset.camera_names, dataset.image)).encode())
    for tensors in (state, first):
        for name, value in sorted(tensors.items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    for frame in dataset.frames:
        digest.update(repr((frame.token, frame.scene_token)).encode() + frame.ego_from_bev.tobytes())
        for view in frame.cameras:
            path = Path(view.image_path) if view.image_path else None
            stat = path.stat() if path is not None and path.is_file() else None
            digest.update(repr((view.name, view.image_path, stat and (stat.st_size, stat.st_mtime_ns))).encode())
            digest.update(repr(view.camera.row).encode() + frame.bev_from_camera(view).tobytes())
    return digest.hexdigest()[:16]
