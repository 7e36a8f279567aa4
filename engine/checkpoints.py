"""Checkpoint files: written whole or not at all, read without running anything that is inside them.

A training checkpoint is a dict of tensors and plain values: ``meta``, ``state_dict`` (the averaged weights where EMA
is on), ``ema_state_dict`` (then: the raw weights), ``optimizer``, ``param_schedulers``, ``memory`` (of a model that
carries one from iteration to iteration: what the next one starts from). `export_weights` publishes its ``state_dict``
as safetensors: a published model starts every scene anew. Weights alone are read by core.checkpoint.load_checkpoint.

``meta`` holds ``iter``, ``seed``, ``world_size``, ``settings`` (resume.py), ``config`` (its name), ``torch``;
``lineage`` (the trainings behind the weights, this one last: core/weights/lineage.py); ``classes`` and ``cameras``
(names in the model's order) where the config has them; in best.pth ``best`` (metric, score,
iter).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from ..core.checkpoint import check_finite, save_safetensors
from ..core.errors import CheckpointError, DataError
from ..core.files import atomic_path, file_name
from ..core.finite import not_finite
from ..core.weights.files import is_safetensors, read_pth, read_safetensors
from ..core.weights.lineage import KEY, stages_of, to_json

logger = logging.getLogger("drivestack")

POINTER = "last_checkpoint"


def save_checkpoint(checkpoint: dict[str, Any], path: Path, is_last: bool = True) -> None:
    """Write ``checkpoint`` atomically, then (``is_last``) let ``last_checkpoint`` beside it name it."""
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)
    if not is_last:
        return
    with atomic_path(path.parent / POINTER) as temporary:
        temporary.write_text(path.name + "\n", encoding="utf-8")


def latest_checkpoint(work_dir: Path) -> Path | None:
    """The file that ``last_checkpoint`` names, None where training has not saved yet."""
    pointer = work_dir / POINTER
    if not pointer.is_file():
        return None
    return work_dir / file_name(pointer.read_text(encoding="utf-8", errors="replace").strip(), f"{pointer}: checkpoint")


def saved_checkpoints(work_dir: Path) -> list[Path]:
    """The ``iter_N.pth`` of a folder, those of most iterations first."""
    matches = [(re.fullmatch(r"iter_(\d+)\.pth", path.name), path) for path in work_dir.glob("iter_*.pth")]
    return [path for _, path in sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)]


def last_good_checkpoint(work_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, and its content; None where training has not saved yet.

    That is the one ``last_checkpoint`` names; where it is damaged or missing, the one before, which is reported.
    Raises CheckpointError where none can be read.
    """
    try:
        named = latest_checkpoint(work_dir)
    except DataError as error:
        logger.warning("%s", error)
        named = None
    others = [path for path in saved_checkpoints(work_dir) if path != named]
    candidates = others if named is None else [named, *others]
    failures = []
    for path in candidates:
        try:
            content = read_checkpoint(path)
        except CheckpointError as error:
            failures.append(str(error))
            continue
        if failures:
            logger.warning("%s; going on from %s", failures[0], path.name)
        return path, content
    if failures:
        raise CheckpointError(
            f"{'; '.join(failures)}; no other checkpoint is left in {work_dir}: start anew in another --work-dir."
        )
    return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint on the CPU.

    Raises CheckpointError if it is missing, broken, holds more than data, or lacks a part or has one of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file.")
    advice = "If it holds weights, start from them with --load-from or --fine-tune."
    if is_safetensors(path):
        raise CheckpointError(
            f"{path}: holds weights (safetensors), no training state. Start from it with --load-from."
        )
    checkpoint = read_pth(path)
    if not isinstance(checkpoint, dict) or not PARTS.keys() <= checkpoint.keys():
        raise CheckpointError(f"{path}: holds no training state ({', '.join(PARTS)}). {advice}")
    for part, kind in {**PARTS, **{name: kind for name, kind in MORE_PARTS.items() if name in checkpoint}}.items():
        if not isinstance(checkpoint[part], kind):
            raise _wrong(path, part, checkpoint[part])
    for name, value in checkpoint["meta"].items():
        if name in META and not isinstance(value, META[name]):
            raise _wrong(path, f"meta.{name}", value)
    if wrong := [name for name in REQUIRED_META if checkpoint["meta"].get(name, 0) < 0]:
        raise _wrong(path, f"meta.{wrong[0]}", checkpoint["meta"][wrong[0]])
    if absent := [name for name in REQUIRED_META if name not in checkpoint["meta"]]:
        raise CheckpointError(f"{path}: its meta lacks {', '.join(absent)}: not a checkpoint of `train`. {advice}")
    for part in ("state_dict", "ema_state_dict"):
        for name, value in checkpoint.get(part, {}).items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise _wrong(path, f"{part}.{name}", value)
    optimizer = checkpoint["optimizer"]
    if "param_groups" in optimizer and not (
        isinstance(optimizer["param_groups"], list)
        and all(isinstance(group, dict) for group in optimizer["param_groups"])
    ):
        raise _wrong(path, "optimizer.param_groups", optimizer["param_groups"])
    return checkpoint


PARTS: dict[str, type] = {"meta": dict, "state_dict": dict, "optimizer": dict}
MORE_PARTS: dict[str, type] = {"ema_state_dict": dict, "param_schedulers": list, "memory": dict}
REQUIRED_META = ("iter", "seed", "world_size")
META: dict[str, Any] = {
    "iter": int,
    "seed": int,
    "world_size": int,
    "config": str,
    "classes": list | tuple,
    "cameras": list | tuple,
    "pc_range": list | tuple,
    "best": dict,
    "settings": dict,
    KEY: list,
}


def _wrong(path: Path, part: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{path}: damaged: {part} is {type(value).__name__} {str(value)[:40]!r}: take an earlier one"
    )


def export_weights(
    checkpoint: str | Path,
    out: str | Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Publish the (EMA) weights of a training checkpoint as safetensors, floating-point tensors as ``dtype``.

    ``metadata`` (command, commit, data recipe, ...) is written into the file's header beside the config's name, the
    iteration, the seed, the ``lineage`` of the weights (core/weights/lineage.py) and, as JSON lists, the names of
    ``classes`` and ``cameras`` and the ``pc_range`` of the BEV map where the training had them. Raises CheckpointError
    as read_checkpoint, and for weights that are not finite, or are no longer in ``dtype``; OutputError where ``out``
    cannot be written.
    """
    content = read_checkpoint(checkpoint)
    meta = content["meta"]
    notes = {key: meta[key] for key in ("config", "iter", "seed") if key in meta}
    notes |= {key: json.dumps(list(meta[key])) for key in ("classes", "cameras", "pc_range") if meta.get(key)}
    if KEY in meta:
        notes[KEY] = to_json(stages_of(meta[KEY], str(checkpoint)))
    raw = content["state_dict"]
    check_finite(raw, {}, str(checkpoint))
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in raw.items()}
    if large := not_finite(state):
        raise CheckpointError(
            f"{checkpoint}: {large[0]} holds values beyond {str(dtype).removeprefix('torch.')}: export without --half"
        )
    save_safetensors(state, out, notes | {"dtype": str(dtype).removeprefix("torch.")} | dict(metadata or {}))
    return Path(out)


@contextmanager
def safe_loaders() -> Iterator[None]:
    """Within, MMEngine's checkpoint loaders read data only: its own repeat a refused load with code execution on.

    ``init_cfg=dict(type="Pretrained", checkpoint=...)`` goes through them. They are MMEngine's own again afterwards.
    """

    def load_from_local(path: str, map_location: Any) -> Any:
        return read_safetensors(Path(path)) if is_safetensors(Path(path)) else read_pth(Path(path))

    def load_from_afar(path: str, map_location: Any) -> Any:
        raise CheckpointError(f"{path}: download the file, check where it comes from, and name the local copy.")

    before = CheckpointLoader._schemes.copy()
    for scheme in before:
        CheckpointLoader.register_scheme(scheme, load_from_afar if scheme else load_from_local, force=True)
    try:
        yield
    finally:
        CheckpointLoader._schemes = before
