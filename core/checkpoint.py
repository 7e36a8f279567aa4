"""Reading weights: published .pth files and safetensors into any model, with a report of what did not fit.

Only tensors and plain containers are ever unpickled (`weights_only=True`); the few classes that published
checkpoints carry beside their weights are read as inert stand-ins.
"""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import CheckpointError
from .files import atomic_path

logger = logging.getLogger("drivestack")

StateDict = dict[str, Tensor]

HEAD_KEYS = ("head.weight", "head.bias")
RANDOM_HEAD_SCALE = 0.001  # InternImage release, RAND_INIT_FT_HEAD
KNOWN_PREFIXES = ("backbone.", "img_backbone.", "model.", "model.backbone.")
SHOWN = 5  # keys of each kind in a message


@dataclass(frozen=True)
class LoadReport:
    """How well a checkpoint fitted a model."""

    path: str
    model: str
    loaded: int
    """Number of tensors that fit and were copied."""
    missing: tuple[str, ...]
    """Keys of the model that the checkpoint lacks; they keep their values."""
    unexpected: tuple[str, ...]
    """Keys of the checkpoint that the model lacks."""
    wrong_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """(key, shape in the checkpoint, shape in the model); these keep the model's values."""
    notes: tuple[str, ...] = ()
    """Conversions that were applied."""
    hint: str = ""
    """What the checkpoint looks like, where it does not fit."""

    @property
    def clean(self) -> bool:
        """True if the keys of both sides are the same."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.loaded} tensors fit {self.model}"]
        if self.missing:
            lines.append(f"  missing in the checkpoint ({len(self.missing)}): {_some(self.missing)}")
        if self.unexpected:
            lines.append(f"  not in the model ({len(self.unexpected)}): {_some(self.unexpected)}")
        if self.wrong_shape:
            shapes = [f"{key} is {list(have)}, the model's {list(want)}" for key, have, want in self.wrong_shape]
            lines.append(f"  wrong shape ({len(shapes)}): {_some(shapes, '; ')}")
        lines += [f"  {note}" for note in self.notes]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    strict: bool = True,
    use_ema: bool = False,
    class_rows: Sequence[int] | Tensor | None = None,
    random_head: bool = False,
    may_lack: Sequence[str] = (),
) -> LoadReport:
    """Load published weights, or your own, into `model`.

    Understood are safetensors and .pth files that hold the weights under `state_dict`, `model`, `module` or at top
    level, with keys prefixed `module.`, `backbone.`, `img_backbone.` or `model.`. A model with a method
    `adapt_checkpoint(state) -> (state, notes)` first translates keys of related checkpoints; a method
    `describe_checkpoint(state) -> str or None` says in messages what a checkpoint looks like.

    Args:
        path: the file; it may have been trained at any image size.
        prefix: take only keys that start with this and strip it; None finds the prefix that fits best.
        strict: raise unless every key of model and checkpoint fits; False loads what fits and reports the rest.
        use_ema: take the averaged weights (`model_ema` in InternImage's classification checkpoints) instead.
        class_rows: rows of the checkpoint's classification layer to keep, one per class of the model
            (`conversion.read_class_rows`).
        random_head: keep the model's classification layer, scaled by 0.001, instead of the checkpoint's.
        may_lack: prefixes of the model's keys that the checkpoint may be without, such as a new head's; those keep
            the model's values, and a note says how many.

    Returns:
        A report; with `strict` it is clean.

    Raises:
        CheckpointError: if the file is missing, broken or not a checkpoint, or (strict) does not fit. The model is
            then unchanged.
    """
    state = fit_prefix(read_state_dict(path, use_ema=use_ema), model, str(path), prefix)
    return load_state(
        model,
        state,
        source=str(path),
        strict=strict,
        class_rows=class_rows,
        random_head=random_head,
        may_lack=may_lack,
    )


def load_state(
    model: nn.Module,
    state: StateDict,
    *,
    source: str = "state dict",
    strict: bool = True,
    class_rows: Sequence[int] | Tensor | None = None,
    random_head: bool = False,
    may_lack: Sequence[str] = (),
) -> LoadReport:
    """Load weights that are in memory already; see `load_checkpoint`. `source` names them in messages."""
    notes: list[str] = []
    adapt: Callable[[StateDict], tuple[StateDict, list[str]]] | None = getattr(model, "adapt_checkpoint", None)
    if adapt is not None:
        state, notes = adapt(state)
    own = model.state_dict()
    if class_rows is not None:
        state = select_classes(state, class_rows)
    if random_head:
        scaled = {key: own[key] * RANDOM_HEAD_SCALE for key in HEAD_KEYS if key in own}
        state = {**state, **scaled}
        notes = [*notes, f"random classification layer, scaled by {RANDOM_HEAD_SCALE}"]
    wrong_shape = tuple(
        (key, tuple(value.shape), tuple(own[key].shape))
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    )
    wrong = {key for key, _, _ in wrong_shape}
    absent = [key for key in own if key not in state]
    if fresh := [key for key in absent if key.startswith(tuple(may_lack))]:
        notes = [*notes, f"{len(fresh)} tensors start afresh: {_some(fresh)}"]
    fitting = {key: value for key, value in state.items() if key in own and key not in wrong}
    report = LoadReport(
        path=source,
        model=type(model).__name__,
        loaded=len(fitting),
        missing=tuple(key for key in absent if not key.startswith(tuple(may_lack))),
        unexpected=tuple(key for key in state if key not in own),
        wrong_shape=wrong_shape,
        notes=tuple(notes),
    )
    if not report.clean:
        report = _with_hint(report, state, own, getattr(model, "describe_checkpoint", None))
        if strict:
            fix = "use the config that it was trained with, or start training from what fits with `train --fine-tune`"
            raise CheckpointError(f"the checkpoint does not fit the model; {fix}:\n{report}")
        logger.warning("%s", report)
    model.load_state_dict(fitting, strict=False)
    return report


def select_classes(state: StateDict, class_rows: Sequence[int] | Tensor) -> StateDict:
    """Keep these rows of the classification layer, for example the 1000 ImageNet-1K classes of 21841.

    Raises:
        CheckpointError: if there is no such layer or a row is outside it.
    """
    rows = torch.as_tensor(class_rows, dtype=torch.long)
    if "head.weight" not in state:
        raise CheckpointError("class_rows: the checkpoint has no classification layer (head.weight)")
    num_classes = state["head.weight"].shape[0]
    if rows.numel() == 0 or rows.min() < 0 or rows.max() >= num_classes:
        raise CheckpointError(f"class_rows must be numbers from 0 to {num_classes - 1}, the checkpoint's classes")
    return {**state, **{key: state[key][rows] for key in ("head.weight", "head.bias") if key in state}}


def read_state_dict(path: str | os.PathLike[str], *, use_ema: bool = False) -> StateDict:
    """Read the weights of a checkpoint file as name -> tensor on the CPU, keys as stored but for `module.`.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        if use_ema:
            raise CheckpointError(f"{path}: a safetensors file holds one set of weights, use_ema does not apply")
        state = _read_safetensors(path)
    else:
        state = _find_weights(read_pth(path), path, use_ema)
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The notes stored in a safetensors file by `save_safetensors`."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def save_safetensors(
    model_or_state: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights to `path`, which at any time holds either the old or the new content.

    Args:
        metadata: notes to keep with the weights: text by text, for example the command and the seed.
    """
    state = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    # Copies: the format refuses views and shared memory.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {key: str(value) for key, value in (metadata or {}).items()})


class _YacsConfig:
    """Stands in for the training options (yacs.config.CfgNode) in InternImage's classification checkpoints."""

    def __new__(cls) -> Any:  # the restricted unpickler fills no other kind of mapping
        return OrderedDict()


def _history_method(owner: Any, name: str) -> Any:
    """Stands in for `getattr`, which MMEngine's checkpoints use to name the methods of HistoryBuffer, and only that."""
    if owner is not HistoryBuffer:
        raise pickle.UnpicklingError(f"refused getattr({owner!r}, {name!r})")
    return getattr(HistoryBuffer, name)


def _safe_globals() -> list[Any]:
    scalar = np.float64(0.0).__reduce__()[0]  # numpy's, wherever this version keeps it
    array = np.zeros(1).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in (bool, np.int32, np.int64, np.float32, np.float64, "U1")]
    legacy = [(scalar, "numpy.core.multiarray.scalar"), (array, "numpy.core.multiarray._reconstruct")]
    modern = [(scalar, "numpy._core.multiarray.scalar"), (array, "numpy._core.multiarray._reconstruct")]
    stand_ins = [(_history_method, "builtins.getattr"), (_YacsConfig, "yacs.config.CfgNode")]
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *legacy, *modern, *stand_ins]


def read_pth(path: Path) -> Any:
    """What a .pth file holds, on the CPU. Raises CheckpointError if it is broken or holds more than data."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a git-lfs pointer, not the file itself: run `git lfs pull`")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path}: a web page, not a checkpoint: download the file itself")
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _unknown_globals(path)
        if wanted:
            raise CheckpointError(
                f"{path}: holds Python objects that are not read for safety ({', '.join(wanted)}): where you trust "
                "the file, save its weights alone with torch.save or save_safetensors"
            ) from error
        raise CheckpointError(f"{path}: broken or not a checkpoint") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: broken or not a checkpoint ({_first_line(error)}): copy it again") from error


def _unknown_globals(path: Path) -> list[str]:
    try:
        known = {entry[1] if isinstance(entry, tuple) else _full_name(entry) for entry in _safe_globals()}
        return sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - known)
    except Exception:  # the file is broken: the caller says so
        return []


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _read_safetensors(path: Path) -> StateDict:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: broken or not safetensors ({_first_line(error)}): copy it again") from error


def _find_weights(content: Any, path: Path, use_ema: bool) -> StateDict:
    """The name -> tensor mapping inside what a .pth file holds."""
    places = ("model_ema",) if use_ema else ("state_dict", "model", "module")
    if isinstance(content, Mapping):
        for place in places:
            if isinstance(content.get(place), Mapping):
                content = content[place]
                break
        else:
            if use_ema:
                raise CheckpointError(f"{path}: holds no averaged weights (model_ema)")
        state = OrderedDict((key, value) for key, value in content.items() if isinstance(value, Tensor))
        if state:
            return state
    raise CheckpointError(f"{path}: holds no weights under state_dict, model or module, nor at top level")


def fit_prefix(
    state: StateDict, model: nn.Module, source: str, prefix: str | None = None, parts: Sequence[str] = ()
) -> StateDict:
    """Keys of a checkpoint without the prefix that the model's lack.

    prefix: take the keys that start with it; None finds the one of KNOWN_PREFIXES that fits best. parts: prefixes of
    the model's keys below which the checkpoint's may belong as well, as an encoder's alone do.
    """
    own = model.state_dict().keys()
    if prefix is None:
        prefix = max(("", *KNOWN_PREFIXES), key=lambda p: sum(p + key in state for key in own))
        counts = {part: sum(part + key in own for key in state) for part in parts}
        best = max(counts, key=counts.__getitem__, default="")
        if counts.get(best, 0) > sum(prefix + key in state for key in own):
            return {best + key: value for key, value in state.items()}
    if not prefix:
        return state
    taken = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not taken:
        raise CheckpointError(f"{source}: no key starts with {prefix!r}; the first are {_some(list(state))}")
    return taken


def _with_hint(
    report: LoadReport,
    state: StateDict,
    own: Mapping[str, Tensor],
    describe: Callable[[StateDict], str | None] | None,
) -> LoadReport:
    hints = []
    if describe is not None and (stored := describe(state)) and stored != (wanted := describe(dict(own))):
        hints.append(f"the checkpoint looks like {stored}" + (f", the model is {wanted}" if wanted else ""))
    if "head.weight" in {key for key, _, _ in report.wrong_shape}:
        classes, own_classes = state["head.weight"].shape[0], own["head.weight"].shape[0]
        hints.append(
            f"the checkpoint has {classes} classes, the model {own_classes}: give class_rows (one row of the "
            "checkpoint per class) or random_head=True"
        )
    if not report.loaded:
        hints.append(
            f"no key fits: the checkpoint has {_some(list(state), limit=3)}, the model {_some(list(own), limit=3)}"
        )
    return replace(report, hint="; ".join(hints))


def _some(items: Sequence[str], separator: str = ", ", limit: int = SHOWN) -> str:
    return separator.join(items[:limit]) + (f"{separator}... {len(items) - limit} more" if len(items) > limit else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
