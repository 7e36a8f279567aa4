"""Our deformable attention in the place of mmcv's, for mmdet, mmdet3d, mmseg and plugins that build it by name.

    import drivestack.compat; drivestack.compat.patch_mmcv()      # before the model's modules are imported

mmcv (Apache 2.0) is imported only by `patch_mmcv`. mmcv-lite will do, which needs no compiler but has no `mmcv.ops`:
there every other operator becomes a stand-in that can be imported and raises when it is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from ..core.errors import DrivestackError
from . import ms_deform_attn as ours

NAMES = ("MultiScaleDeformableAttention", "MultiScaleDeformableAttnFunction", "multi_scale_deformable_attn_pytorch")
_OPERATORS, _FILE = "mmcv.ops", "mmcv.ops.multi_scale_deform_attn"


class MmcvMissingError(DrivestackError, ImportError):
    """There is no mmcv to patch, or an operator of mmcv is used that is not there."""


class _Missing:
    """Base of the stand-ins for compiled operators; calling or constructing one is an error."""

    def __init__(self, *args, **kwargs) -> None:
        raise MmcvMissingError(
            f"{type(self).__module__}.{type(self).__qualname__} is used, but this mmcv has no compiled operators and "
            f"drivestack only brings {', '.join(NAMES)}; install mmcv instead of mmcv-lite (it compiles for minutes)"
        )


class _StandIns(MetaPathFinder, Loader):
    """Modules `mmcv.ops` and below, with any name that one asks for."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        inside = name == _OPERATORS or name.startswith(f"{_OPERATORS}.")
        return ModuleSpec(name, self, is_package=name == _OPERATORS) if inside else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name, "Stand-ins for mmcv's compiled operators, made by drivestack.")

    def exec_module(self, module: ModuleType) -> None:
        def stand_in(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return vars(module).setdefault(name, type(name, (_Missing,), {"__module__": module.__name__}))

        module.__getattr__ = stand_in


def _has_operators() -> bool:
    """Whether `mmcv.ops` imports; it does not in mmcv-lite, nor compiled for another torch."""
    try:
        importlib.import_module(_FILE)
    except ImportError:
        for name in [name for name in sys.modules if name == _OPERATORS or name.startswith(f"{_OPERATORS}.")]:
            del sys.modules[name]
        return False
    return True


def patch_mmcv() -> list[str]:
    """Put our layer and functions into `mmcv.ops` and our layer into MMEngine's registry; returns what was replaced.

    Names that other modules imported from mmcv before keep theirs: call this first. Calling it twice changes nothing.

    Raises:
        MmcvMissingError: mmcv is not installed.
    """
    if importlib.util.find_spec("mmcv") is None:
        raise MmcvMissingError("mmcv is not installed (pip install mmcv-lite is enough for the attention layer)")
    if not _has_operators():
        sys.meta_path.insert(0, _StandIns())
    operators, file = importlib.import_module(_OPERATORS), importlib.import_module(_FILE)
    for name in NAMES:
        for module in (operators, file):
            setattr(module, name, getattr(ours, name))
    from mmengine.registry import MODELS

    MODELS.register_module(name=NAMES[0], module=ours.MultiScaleDeformableAttention, force=True)
    return [f"{_OPERATORS}.{name}" for name in NAMES] + [f"MODELS[{NAMES[0]!r}]"]
