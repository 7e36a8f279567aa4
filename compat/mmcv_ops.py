"""Our deformable attention instead of mmcv's, for mmdet, mmdet3d, mmseg and plugins that build it by name.

    import drivestack.compat; drivestack.compat.patch_mmcv()      # before the model's modules are imported

mmcv (Apache 2.0) is imported only by `patch_mmcv`. mmcv-lite will do, it needs no compiler: the compiled module that it
lacks is that of compat.mmcv_ext. A compiled `mmcv._ext` that loads is left alone.
"""

from __future__ import annotations

import importlib
import sys

from . import mmcv_ext
from . import ms_deform_attn as ours
from .mmcv_boxes import MmcvMissingError

NAMES = ("MultiScaleDeformableAttention", "MultiScaleDeformableAttnFunction", "multi_scale_deformable_attn_pytorch")
_OPERATORS, _FILE = "mmcv.ops", "mmcv.ops.multi_scale_deform_attn"


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
    fresh = mmcv_ext.NAME not in sys.modules
    supplied = mmcv_ext.install()
    problem = _import_operators()
    if problem is not None:
        if fresh and supplied:
            del sys.modules[mmcv_ext.NAME]
        raise MmcvMissingError(f"mmcv.ops does not import: {problem}; install mmcv-lite 2.0 or newer") from problem
    operators, file = importlib.import_module(_OPERATORS), importlib.import_module(_FILE)
    for name in NAMES:
        for module in (operators, file):
            setattr(module, name, getattr(ours, name))
    from mmengine.registry import MODELS

    MODELS.register_module(name=NAMES[0], module=ours.MultiScaleDeformableAttention, force=True)
    return [f"{_OPERATORS}.{name}" for name in NAMES] + [f"MODELS[{NAMES[0]!r}]"]
