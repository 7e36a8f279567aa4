"""The module `mmcv._ext`, which mmcv-lite lacks: `import mmcv.ops` and the toolboxes on it work without a compiler.

    from drivestack.compat.mmcv_ext import install; install()     # before anything imports mmcv.ops

`make openmmlab` writes a file `mmcv/_ext.py` that does the same, for programs that know nothing of drivestack. The
operators are those of compat.mmcv_boxes and compat.mmcv_operators, which import no mmcv. Every other name of the
compiled module can be looked up, since mmcv does so when it is imported, and raises MmcvMissingError when called.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NoReturn

from ..core.files import atomic_path
from ..core.once import warn_once
from . import mmcv_boxes, mmcv_operators
from .mmcv_boxes import *  # noqa: F403
from .mmcv_boxes import MmcvMissingError
from .mmcv_operators import *  # noqa: F403

SUPPLIED = (*mmcv_boxes.__all__, *mmcv_operators.__all__)
"""Names of the operators that are here."""

NAME = "mmcv._ext"
_FILE_TEXT = f'''"""Written by drivestack's `make openmmlab`: operators for an mmcv that has no compiled ones."""

import sys

from {__package__} import mmcv_ext

sys.modules[__name__] = mmcv_ext
'''


def install() -> bool:
    """Put this module in the place of a missing `mmcv._ext`; False where mmcv has a compiled one that loads.

    A compiled one that does not load (it was made for another torch) is replaced, with a warning. Calling it twice
    changes nothing.

    Raises:
        MmcvMissingError: mmcv is not installed.
    """
    if importlib.util.find_spec("mmcv") is None:
        raise MmcvMissingError("mmcv is not installed (pip install mmcv-lite will do, it needs no compiler)")
    ours = sys.modules[__name__]
    try:
        return importlib.import_module(NAME) is ours
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError) or error.name != NAME:
            warn_once(f"{NAME} of this mmcv does not load ({error}); drivestack's operators are used in its place")
    sys.modules[NAME] = ours
    return True


def write_module() -> Path | None:
    """Write `mmcv/_ext.py` into the installed mmcv, so that `import mmcv.ops` works in programs that do not `install`.

    Returns the file; None where mmcv has a compiled module, which Python would import first in any case.

    Raises:
        MmcvMissingError: mmcv is not installed. OutputError: its folder cannot be written.
    """
    found = importlib.util.find_spec("mmcv")
    if found is None or not found.submodule_search_locations:
        raise MmcvMissingError("mmcv is not installed (pip install mmcv-lite will do, it needs no compiler)")
    folder = Path(found.submodule_search_locations[0])
    if any((folder / f"_ext{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
        return None
    path = folder / "_ext.py"
    with atomic_path(path) as temporary:
        temporary.write_text(_FILE_TEXT, encoding="utf-8")
    return path


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """An operator that is not here: it can be looked up, but not called."""
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise MmcvMissingError(
            f"{NAME}.{name} is used, but this mmcv has no compiled operators and drivestack only brings "
            f"{', '.join(SUPPLIED)}; install mmcv with compiled operators for it"
        )

    return missing
