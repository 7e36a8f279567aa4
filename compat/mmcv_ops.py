"""Our deformable attention instead of mmcv's, for mmdet, mmdet3d, mmseg and plugins that build it by name.

    import drivestack.compat; drivestack.compat.patch_mmcv()      # before the model's modules are imported

mmcv (Apache 2.0) is imported only by `patch_mmcv`. mmcv-lite will do: it needs no compiler and has all Python files of
`mmcv.ops`, but not the compiled module `mmcv._ext` under them. There a module of that one name is put in its place,
whose functions raise when they are called. A compiled `mmcv._ext` that loads is left alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from ..core.errors import DrivestackError
from . import ms_deform_attn as ours

NAMES = ("MultiScaleDeformableAttention", "MultiScaleDeformableAttnFunction", "multi_scale_deformable_attn_pytorch")
_OPERATORS, _FILE, _COMPILED = "mmcv.ops", "mmcv.ops.multi_scale_deform_attn", "mmcv._ext"


class MmcvMissingError(DrivestackError, ImportError):
    """There is no mmcv to patch, or an operator of mmcv is used that is not there."""


def _missing_function(name: str) -> Callable[..., NoReturn]:
    """Module attribute `name` of the replacement of mmcv's compiled module: it can be looked up, but not called."""
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise MmcvMissingError(
            f"{_COMPILED}.{name} is used, but this mmcv has no compiled operators and drivestack only brings "
            f"{', '.join(NAMES)}; install mmcv instead of mmcv-lite (it compiles for minutes)"
        )

    return missing


def _import_operators() -> ImportError | None:
    """Import `mmcv.ops` and its file of deformable attention; why that fails, or None."""
    try:
        importlib.import_module(_FILE)
    except ImportError as error:
        for name in [name for name in sys.modules if name == _OPERATORS or name.startswith(f"{_OPERATORS}.")]:
            del sys.modules[name]
        return error
    return None


def patch_mmcv() -> list[str]:
    """Put our layer and functions into `mmcv.ops` and our layer into MMEngine's registry; returns what was replaced.

    Names that other modules imported from mmcv before keep theirs: call this first. Calling it twice changes nothing.

    Raises:
        MmcvMissingError: mmcv is not installed, or its `mmcv.ops` does not import even without compiled operators.
    """
    if importlib.util.find_spec("mmcv") is None:
        raise MmcvMissingError("mmcv is not installed (pip install mmcv-lite is enough for the attention layer)")
    if _import_operators() is not None:  # mmcv-lite, or compiled for another torch
        compiled = ModuleType(_COMPILED, "Stands for mmcv's compiled operators, made by drivestack.")
        compiled.__dict__["__getattr__"] = _missing_function
        sys.modules[_COMPILED] = compiled
        problem = _import_operators()
        if problem is not None:
            del sys.modules[_COMPILED]
            raise MmcvMissingError(f"mmcv.ops does not import: {problem}; install mmcv-lite 2.0 or newer") from problem
    operators, file = importlib.import_module(_OPERATORS), importlib.import_module(_FILE)
    for name in NAMES:
        for module in (operators, file):
            setattr(module, name, getattr(ours, name))
    from mmengine.registry import MODELS

    MODELS.register_module(name=NAMES[0], module=ours.MultiScaleDeformableAttention, force=True)
    return [f"{_OPERATORS}.{name}" for name in NAMES] + [f"MODELS[{NAMES[0]!r}]"]
