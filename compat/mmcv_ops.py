"""Our deformable attention in the place of mmcv's, for mmdet, mmdet3d, mmseg and plugins that build it by name.

    import drivestack.compat; drivestack.compat.patch_mmcv()      # before the model's modules are imported

mmcv (Apache 2.0) is imported only by `patch_mmcv`. With mmcv-lite, which has no compiled operators, `mmcv.ops` comes to
exist with our names alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from ..errors import DrivestackError
from . import ms_deform_attn as ours

NAMES = ("MultiScaleDeformableAttention", "MultiScaleDeformableAttnFunction", "multi_scale_deformable_attn_pytorch")
_FILE = "mmcv.ops.multi_scale_deform_attn"


class MmcvMissingError(DrivestackError, ImportError):
    """There is no mmcv to patch."""


def _stub(name: str) -> ModuleType:
    module = ModuleType(name, "Deformable attention of drivestack in place of mmcv's compiled operators.")

    def missing(attribute: str):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise ImportError(
            f"{name}.{attribute}: this mmcv has no compiled operators, and drivestack stands in only for "
            f"{', '.join(NAMES)}; install mmcv instead of mmcv-lite (pip install mmcv)"
        )

    module.__getattr__ = missing
    return module


def patch_mmcv() -> list[str]:
    """Put our layer and functions into `mmcv.ops` and our layer into MMEngine's registry; returns what was replaced.

    Names that other modules imported from mmcv before keep theirs: call this first. Calling it twice changes nothing.

    Raises:
        MmcvMissingError: mmcv is not installed.
    """
    if importlib.util.find_spec("mmcv") is None:
        raise MmcvMissingError("mmcv is not installed (pip install mmcv-lite is enough for the attention layer)")
    import mmcv

    try:
        operators, file = importlib.import_module("mmcv.ops"), importlib.import_module(_FILE)
    except ImportError:  # mmcv-lite, or operators compiled for another torch
        for name in [n for n in sys.modules if n == "mmcv.ops" or n.startswith("mmcv.ops.")]:
            del sys.modules[name]
        operators, file = _stub("mmcv.ops"), _stub(_FILE)
        operators.__path__ = []
        operators.multi_scale_deform_attn = file
        sys.modules["mmcv.ops"], sys.modules[_FILE], mmcv.ops = operators, file, operators
    for name in NAMES:
        for module in (operators, file):
            setattr(module, name, getattr(ours, name))
    from mmengine.registry import MODELS

    MODELS.register_module(name=NAMES[0], module=ours.MultiScaleDeformableAttention, force=True)
    return [f"mmcv.ops.{name}" for name in NAMES] + [f"MODELS[{NAMES[0]!r}]"]
