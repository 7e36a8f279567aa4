"""MMEngine's registries in a scope of our own: names that other packages take are no matter here, nor ours to them.

``type="BevMap"`` finds ours first, then MMEngine's; from other packages' configs it is ``type="drivestack.BevMap"``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine import registry as mmengine


class ScopedRegistry(mmengine.Registry):
    """Looks here first whatever MMEngine's default scope is, which a running training or another package sets."""

    def __init__(self, parent: mmengine.Registry) -> None:
        super().__init__(parent.name, parent=parent, scope="drivestack")

    @contextmanager
    def switch_scope_and_registry(self, scope: str | None) -> Iterator[mmengine.Registry]:
        if scope is None:
            yield self
        else:
            with super().switch_scope_and_registry(scope) as found:
                yield found


MODELS = ScopedRegistry(mmengine.MODELS)
DATASETS = ScopedRegistry(mmengine.DATASETS)
DATA_SAMPLERS = ScopedRegistry(mmengine.DATA_SAMPLERS)
FUNCTIONS = ScopedRegistry(mmengine.FUNCTIONS)
HOOKS = ScopedRegistry(mmengine.HOOKS)
LOOPS = ScopedRegistry(mmengine.LOOPS)
OPTIM_WRAPPERS = ScopedRegistry(mmengine.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = ScopedRegistry(mmengine.OPTIM_WRAPPER_CONSTRUCTORS)
