"""Names of weights, whatever stood around the model when they were saved.

torch.compile, FSDP, activation checkpointing and (Distributed)DataParallel put a component of their own into every
key. It is read away from files, never written into them, and found again where a wrapped model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..errors import CheckpointError

StateDict = dict[str, Tensor]

WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module"))
"""Components of keys that no model's own module is called: torch.compile, FSDP, activation checkpointing, old FSDP."""
KNOWN_PREFIXES = ("backbone.", "img_backbone.", "model.", "model.backbone.", "model.img_backbone.", "network.")
SHOWN = 5  # keys of each kind in a message


def plain_key(key: str) -> str:
    """The key without the components that wrappers of modules add, but for ``module``."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS) if "._" in "." + key else key


def plain_keys(state: Mapping[str, Tensor], source: str) -> StateDict:
    """The state dict without wrappers' components, and without ``module.`` where every key begins with it.

    Raises CheckpointError where two keys become the same, which wrappers alone cannot do.
    """
    plain = {plain_key(key): value for key, value in state.items()}
    while plain and all(key.startswith("module.") for key in plain):
        plain = {key.removeprefix("module."): value for key, value in plain.items()}
    if len(plain) < len(state):
        counts: dict[str, str] = {}
        for key in state:
            if (other := counts.setdefault(plain_key(key).removeprefix("module."), key)) != key:
                raise CheckpointError(f"{source}: {other} and {key} name one weight; save the model's state dict again")
    return plain


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DataParallel, DistributedDataParallel, FSDP or activation checkpointing."""
    while True:
        inner = next((model._modules[name] for name in WRAPPERS if model._modules.get(name) is not None), None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def names_in(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Plain name -> key in ``state``, which is ``model.state_dict()``, in its order."""
    parallel = [
        f"{name}.module." if name else "module."
        for name, module in model.named_modules()
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    ]
    found = {}
    for key in state:
        plain = key
        for prefix in reversed(parallel):  # inner ones first: the outer ones' prefixes stay as they are
            if plain.startswith(prefix):
                plain = prefix.removesuffix("module.") + plain[len(prefix) :]
        found[plain_key(plain)] = key
    return found


def weights_of(model: nn.Module) -> StateDict:
    """``model.state_dict()`` under plain names: what is written into files."""
    state = model.state_dict()
    return {plain: state[key] for plain, key in names_in(model, state).items()}


def fit_prefix(
    state: StateDict, model: nn.Module, source: str, prefix: str | None = None, parts: Sequence[str] = ()
) -> StateDict:
    """Keys of a checkpoint without the prefix that the model's lack.

    prefix: take the keys that start with it; None finds the one that fits best: of KNOWN_PREFIXES, or where no key fits
    the only one under which most of the model's are found. parts: prefixes of the model's keys below which the
    checkpoint's may belong as well, as an encoder's alone do. ``module.`` inside keys, of a part that was wrapped by
    DistributedDataParallel, is left out where the model has none.
    """
    own = weights_of(model).keys()
    if any(".module." in key and key not in own for key in state):
        bare = {key if key in own else key.replace(".module.", "."): value for key, value in state.items()}
        state = bare if len(bare) == len(state) else state
    if prefix is None:
        prefix = prefix_in(state, list(own))
        counts = {part: sum(part + key in own for key in state) for part in parts}
        best = max(counts, key=counts.__getitem__, default="")
        if counts.get(best, 0) > sum(prefix + key in state for key in own):
            return {best + key: value for key, value in state.items()}
    if not prefix:
        return state
    taken = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not taken:
        raise CheckpointError(f"{source}: no key starts with {prefix!r}; the first are {some(list(state))}")
    return taken


def prefix_in(state: Mapping[str, Tensor], own: Sequence[str]) -> str:
    """What stands before the keys ``own`` in a checkpoint: of KNOWN_PREFIXES the one that fits best, or where no key
    fits the only one under which most are found; '' where that is not clear."""
    prefix = max(("", *KNOWN_PREFIXES), key=lambda p: sum(p + key in state for key in own))
    if not prefix and not any(key in state for key in own) and len(own) > 1:
        others = other_prefixes(state, own)
        prefix = others[0] if len(others) == 1 else prefix  # of two, student and teacher, none is chosen
    return prefix


def other_prefixes(state: Mapping[str, Tensor], own: Sequence[str]) -> list[str]:
    """Prefixes before the checkpoint's keys under which most of the model's are found, the fullest first."""
    first = next((key for key in own if any(stored.endswith("." + key) for stored in state)), None)
    if first is None:
        return []
    candidates = {key.removesuffix(first) for key in state if key.endswith("." + first)}
    counts = {prefix: sum(prefix + key in state for key in own) for prefix in candidates}
    return sorted((p for p, count in counts.items() if count * 2 > len(own)), key=lambda p: (-counts[p], p))


def some(items: Sequence[str], separator: str = ", ", limit: int = SHOWN) -> str:
    """The first of the items, and how many more there are."""
    return separator.join(items[:limit]) + (f"{separator}... {len(items) - limit} more" if len(items) > limit else "")
