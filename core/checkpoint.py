"""Loading weights, published or your own, into any model, with a report of what did not fit; and saving them.

weights/files.py reads the files, names.py knows the keys of wrapped models, hints.py what to do about a mismatch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import CheckpointError, OutputError
from .files import atomic_path
from .finite import not_finite
from .weights.files import read_state_dict
from .weights.hints import Mismatch, hint
from .weights.names import StateDict, fit_prefix, names_in, plain_keys, some, unwrapped, weights_of
from .weights.shards import shared_out, whole

logger = logging.getLogger("drivestack")

HEAD_KEYS = ("head.weight", "head.bias")
RANDOM_HEAD_SCALE = 0.001  # InternImage release, RAND_INIT_FT_HEAD


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
    """What the checkpoint looks like, where it does not fit, and what to do."""
    without_values: tuple[str, ...] = ()
    """Tensors of a model on the meta device that the checkpoint gives no values; the model cannot run."""

    @property
    def clean(self) -> bool:
        """True if the keys of both sides are the same, and every tensor of the model has values."""
        return not (self.missing or self.unexpected or self.wrong_shape or self.without_values)

    @property
    def problems(self) -> list[str]:
        """What does not fit, a phrase for each kind."""
        found = []
        if self.missing:
            found.append(f"missing in the checkpoint ({len(self.missing)}): {some(self.missing)}")
        if self.unexpected:
            found.append(f"not in the model ({len(self.unexpected)}): {some(self.unexpected)}")
        if self.wrong_shape:
            shapes = [f"{key} is {list(have)}, the model's {list(want)}" for key, have, want in self.wrong_shape]
            found.append(f"wrong shape ({len(shapes)}): {some(shapes, '; ')}")
        if self.without_values:
            found.append(f"still on meta, without values ({len(self.without_values)}): {some(self.without_values)}")
        return found

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.loaded} tensors fit {self.model}", *self.problems, *self.notes]
        return "\n  ".join([*lines, f"hint: {self.hint}"] if self.hint else lines)


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

    Understood are safetensors and .pth files, indexes of sharded ones and folders of these, that hold the weights at
    top level or at a known place (weights.files.PLACES), with keys prefixed `module.`, `backbone.`, `img_backbone.`,
    `model.` or by torch.compile and FSDP; the model may be wrapped by these as well. A model with a method
    `adapt_checkpoint(state) -> (state, notes)` first translates keys of related checkpoints; a method
    `describe_checkpoint(state) -> str or None` says in messages what a checkpoint looks like. Tensors of a model on
    the meta device are replaced, of the model's dtypes.

    Args:
        path: the file; it may have been trained at any image size.
        prefix: take only keys that start with this and strip it; None finds the prefix that fits best.
        strict: raise unless every key of model and checkpoint fits; False loads what fits and reports the rest.
        use_ema: take the averaged weights (weights.files.EMA_PLACES) instead.
        class_rows: rows of the checkpoint's classification layer to keep, one per class of the model
            (`conversion.read_class_rows`).
        random_head: keep the model's classification layer, scaled by 0.001, instead of the checkpoint's.
        may_lack: prefixes of the model's keys that the checkpoint may be without, such as a new head's; those keep
            the model's values, and a note says how many.

    Returns:
        A report; with `strict` it is clean.

    Raises:
        CheckpointError: if the file is missing, broken or not a checkpoint, holds NaN or infinity, or (strict) does
            not fit or leaves tensors on the meta device. The model is then unchanged.
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
    inner = unwrapped(model)
    notes: list[str] = []
    adapt: Callable[[StateDict], tuple[StateDict, list[str]]] | None = getattr(inner, "adapt_checkpoint", None)
    state = plain_keys(state, source)
    if adapt is not None:
        state, notes = adapt(state)
    own = weights_of(model)
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
        notes = [*notes, f"{len(fresh)} tensors start afresh: {some(fresh)}"]
    fitting = {key: value for key, value in state.items() if key in own and key not in wrong}
    check_finite(fitting, own, source)
    report = LoadReport(
        path=source,
        model=type(inner).__name__,
        loaded=len(fitting),
        missing=tuple(key for key in absent if not key.startswith(tuple(may_lack))),
        unexpected=tuple(key for key in state if key not in own),
        wrong_shape=wrong_shape,
        notes=tuple(notes),
        without_values=tuple(left_on_meta(model, fitting)),
    )
    if not report.clean:
        mismatch = Mismatch(state, own, report.loaded, report.missing, report.unexpected, wrong, report.without_values)
        report = replace(report, hint=hint(mismatch, inner, source))
        if strict:
            problems = "; ".join(report.problems)
            raise CheckpointError(f"{source}: does not fit {report.model}: {problems}; {report.hint}")
        logger.warning("%s", report)
    put(model, fitting)
    return report


def check_finite(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError naming the tensors with NaN or infinity, unless the model's are infinite there as well."""
    bad = [key for key in not_finite(state) if not _same_infinities(state[key], own.get(key))]
    if bad:
        raise CheckpointError(
            f"{source}: {len(bad)} of {len(state)} tensors hold NaN or infinity: {some(bad)}; the training diverged or "
            "the file is damaged: take an earlier checkpoint or copy it again"
        )


def _same_infinities(value: Tensor, own: Tensor | None) -> bool:
    """Masks of -inf are part of some models."""
    if own is None or own.is_meta or own.shape != value.shape or bool(value.isnan().any()):
        return False
    return torch.equal(value.isinf(), own.isinf().to(value.device))


def left_on_meta(model: nn.Module, given: Mapping[str, Tensor]) -> list[str]:
    """Parameters and buffers on the meta device for which there is no value in ``given`` (plain names)."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    if not any(value.is_meta for _, value in tensors):
        return []
    own = model.state_dict(keep_vars=True)
    names = names_in(model, own)
    published = {id(own[key]): plain for plain, key in names.items()}
    filled = {id(own[key]) for plain, key in names.items() if plain in given}
    return [published.get(id(value), name) for name, value in tensors if value.is_meta and id(value) not in filled]


def put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values, by plain names, into the model; where it is on the meta device, they become its tensors."""
    own = model.state_dict(keep_vars=True)
    names = names_in(model, own)
    copied = {
        names[plain]: shared_out(value, own[names[plain]])
        for plain, value in values.items()
        if not own[names[plain]].is_meta
    }
    if copied:
        model.load_state_dict(copied, strict=False)
    made: dict[int, Tensor] = {}  # a tensor with two names stays one
    assigned = {}
    for plain, value in values.items():
        empty = own[names[plain]]
        if not empty.is_meta:
            continue
        if id(empty) not in made:
            tensor = value.detach().to(empty.dtype, copy=True).contiguous()
            made[id(empty)] = nn.Parameter(tensor, empty.requires_grad) if isinstance(empty, nn.Parameter) else tensor
        assigned[names[plain]] = made[id(empty)]
    if assigned:
        model.load_state_dict(assigned, strict=False, assign=True)


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


def save_safetensors(
    model_or_state: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights to `path`, which at any time holds either the old or the new content.

    Args:
        metadata: notes to keep with the weights: text by text, for example the command and the seed.
    """
    if isinstance(model_or_state, nn.Module):
        state: Mapping[str, Tensor] = weights_of(model_or_state)
    else:
        state = plain_keys(model_or_state, str(path))
    if empty := [key for key, value in state.items() if value.is_meta]:
        raise CheckpointError(f"{path}: {len(empty)} tensors are on the meta device, without values: {some(empty)}")
    # Copies: the format refuses views and shared memory.
    tensors = {key: whole(value.detach()).cpu().contiguous().clone() for key, value in state.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, {key: str(value) for key, value in (metadata or {}).items()})
        except UnicodeEncodeError as error:  # of a damaged checkpoint
            raise CheckpointError(
                f"{path}: a key or a note holds letters that no text has ({ascii(error.object)[:60]}); rename it"
            ) from None
        except SafetensorError as error:  # a full disk, among others: it wraps what the system says
            raise OutputError(
                f"{path}: cannot be written ({error}); free some space or choose another place"
            ) from error
