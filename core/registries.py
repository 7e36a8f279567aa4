"""MMEngine's registries in a scope of our own: names that other packages take are no matter here, nor ours to them.

``type="BevMap"`` finds ours first, then MMEngine's; from other packages' configs it is ``type="drivestack.BevMap"``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine import registry as mmengine

SCOPE = "drivestack"


class ScopedRegistry(mmengine.Registry):
    """Looks here first whatever MMEngine's default scope is, which a running training or another package sets."""

    def __init__(self, parent: mmengine.Registry) -> None:
        super().__init__(parent.name, parent=parent, scope=SCOPE)

    def _register_module(self, module: Any, module_name: Any = None, force: bool = False) -> None:
        """Also register what a reloaded module defines anew: the newest class of that file replaces the one before."""
        names = [module_name or module.__name__] if module_name is None or isinstance(module_name, str) else module_name
        known = [self._module_dict[name] for name in names if name in self._module_dict]
        again = all((old.__module__, old.__qualname__) == (module.__module__, module.__qualname__) for old in known)
        super()._register_module(module, module_name, force or again)

    @contextmanager
    def switch_scope_and_registry(self, scope: str | None) -> Iterator[mmengine.Registry]:
        if scope is None:
            yield self
        else:
            with super().switch_scope_and_registry(scope) as found:
                yield found


def _scoped(parent: mmengine.Registry) -> mmengine.Registry:
    """Our child of a registry of MMEngine's, made once: a reload of this module finds it with its entries."""
    known = parent.children.get(SCOPE)
    return ScopedRegistry(parent) if known is None else known


MODELS = _scoped(mmengine.MODELS)
DATASETS = _scoped(mmengine.DATASETS)
DATA_SAMPLERS = _scoped(mmengine.DATA_SAMPLERS)
FUNCTIONS = _scoped(mmengine.FUNCTIONS)
HOOKS = _scoped(mmengine.HOOKS)
LOOPS = _scoped(mmengine.LOOPS)
METRICS = _scoped(mmengine.METRICS)
OPTIM_WRAPPERS = _scoped(mmengine.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = _scoped(mmengine.OPTIM_WRAPPER_CONSTRUCTORS)
