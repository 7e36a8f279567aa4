"""State dicts under the keys of released checkpoints, whatever the names of the modules here.

A model that is built of other parts than its published ancestor gives and takes state dicts under the published keys:
checkpoints, exports and strict loading know nothing of the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def renamed(key: str, prefixes: Mapping[str, str]) -> str:
    """The key with the longest prefix that ``prefixes`` holds replaced; unchanged where none fits."""
    fitting = [prefix for prefix in prefixes if key.startswith(prefix)]
    if not fitting:
        return key
    prefix = max(fitting, key=len)
    return prefixes[prefix] + key[len(prefix) :]


def keep_published_keys(module: nn.Module, published: Mapping[str, str]) -> None:
    """Let ``module.state_dict()`` and ``load_state_dict`` use published keys.

    published: prefix of our own keys -> prefix in published state dicts. Longest prefixes win, in either direction.
    """
    own = {theirs: ours for ours, theirs in published.items()}
    if len(own) != len(published):
        raise ValueError(f"two prefixes have one published name: {published}")

    places: list[str] = []  # where modules with these hooks (copies share them) are being loaded

    def give(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
        for key in [key for key in state if key.startswith(prefix)]:  # re-inserted in order
            state[prefix + renamed(key[len(prefix) :], published)] = state.pop(key)

    def take(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        places.append(prefix)
        for key in [key for key in state if key.startswith(prefix)]:
            state[prefix + renamed(key[len(prefix) :], own)] = state.pop(key)

    def report(module: nn.Module, incompatible: Any) -> None:
        prefix = places.pop()
        for keys in (incompatible.missing_keys, incompatible.unexpected_keys):
            keys[:] = [
                prefix + renamed(key.removeprefix(prefix), published) if key.startswith(prefix) else key for key in keys
            ]

    module.published_prefixes = dict(published)  # type: ignore[assignment]  # torch knows tensors and modules only
    module.register_state_dict_post_hook(give)
    module.register_load_state_dict_pre_hook(take)
    module.register_load_state_dict_post_hook(report)


def published_name(module: nn.Module, name: str) -> str:
    """What a parameter or buffer of the module is called in its state dict."""
    return renamed(name, getattr(module, "published_prefixes", {}))


def own_name(module: nn.Module, key: str) -> str:
    """What a key of the module's state dict is called inside it; the reverse of ``published_name``."""
    return renamed(key, {theirs: ours for ours, theirs in getattr(module, "published_prefixes", {}).items()})
