"""Registration with torch.library that may be repeated, as `importlib.reload` and IPython's autoreload do.

torch.library refuses a second definition, and a kernel that replaces another while calls hold on to the first is
unsafe. So every function is registered once, as a call of whatever the newest version of the module gave. The table of
these lies where the operators live, in torch.ops: a module that is removed and imported anew finds it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "drivestack"


def _table(name: str) -> dict[Any, Any]:
    return vars(getattr(torch.ops, NAMESPACE)).setdefault(f"_{name}", {})


def define(name: str, schema: str, tags: tuple[torch.Tag, ...] = ()) -> None:
    """Define operator `drivestack::name`, once.

    Raises:
        RuntimeError: it is defined with another schema: kernels and callers were made for that one.
    """
    schemas = _table("schemas")
    known = schemas.setdefault(name, schema)
    if known != schema:
        raise RuntimeError(
            f"{NAMESPACE}::{name} is {known} in this process and {schema} in the reloaded file: start a new process"
        )
    if not hasattr(getattr(torch.ops, NAMESPACE), name):
        torch.library.define(f"{NAMESPACE}::{name}", schema, tags=tags)


def implement(name: str, kind: str, function: Callable) -> None:
    """Let `function` be what operator `name` does for a dispatch key, or for `kind` "fake" or "vmap"."""
    functions, place = _table("functions"), (name, kind)
    registered = place in functions
    functions[place] = function
    if registered:
        return

    def newest(*args: Any, **kwargs: Any) -> Any:
        return functions[place](*args, **kwargs)

    qualified = f"{NAMESPACE}::{name}"
    if kind == "fake":
        torch.library.register_fake(qualified, newest)
    elif kind == "vmap":
        torch.library.register_vmap(qualified, newest)
    else:
        torch.library.impl(qualified, kind, newest)


def count_flops(name: str, formula: Callable[..., int]) -> None:
    """What torch.utils.flop_counter counts for operator `name`: formula(*inputs), a multiply-add being two."""
    from torch.utils.flop_counter import flop_registry

    flop_registry[getattr(getattr(torch.ops, NAMESPACE), name)] = lambda *inputs, **_: formula(*inputs)
