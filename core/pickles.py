"""Pickles of plain data, read without running code in them, and written for every NumPy.

A pickle can run any code while it loads. Ours may only make NumPy arrays, dtypes and scalars and built-in containers;
everything else is refused by name before it runs.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .files import atomic_path

_PROTOCOL = 4  # the newest that Python 3.7 reads


def _latin1(text: str, encoding: str) -> bytes:
    """How pickle protocol 2 stores the bytes of an array (as ``_codecs.encode``, which could import modules)."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


_NUMPY_1, _NUMPY_2 = "numpy.core", "numpy._core"
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}
for _core in (_NUMPY_1, _NUMPY_2):
    _ALLOWED[_core + ".multiarray", "_reconstruct"] = np.empty(0).__reduce__()[0]
    _ALLOWED[_core + ".multiarray", "scalar"] = np.float64(0).__reduce__()[0]
    _ALLOWED[_core + ".numeric", "_frombuffer"] = np.empty(1).__reduce_ex__(5)[0]
for _kind in (set, frozenset, bytes, bytearray, complex, list, dict, tuple):
    _ALLOWED["builtins", _kind.__name__] = _ALLOWED["__builtin__", _kind.__name__] = _kind


class _AllowListUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None and module == "numpy.dtypes" and name.endswith("DType"):
            found = getattr(np.dtypes, name, None)
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return found


def load_pickle(path: str | Path) -> Any:
    """The content of a pickle made of built-in containers and NumPy arrays.

    Raises DataError naming the file: missing, truncated, or naming any other class or function (named).
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            return _AllowListUnpickler(stream).load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a pickle file") from None
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: refused to unpickle: {error}; only NumPy arrays and built-in containers are allowed. "
            "Do not load this file elsewhere if you do not trust its source; write it again with lists and arrays"
        ) from None
    except (EOFError, ValueError, AttributeError, IndexError, TypeError, KeyError) as error:
        raise DataError(f"{path}: broken or truncated pickle ({error}); fetch or make the file again") from None


class _PortablePickler(pickle.Pickler):
    """Writes an array as a call of numpy.ndarray: NumPy 1 and 2 name their own reconstruction functions differently."""

    def reducer_override(self, item: Any) -> Any:
        if isinstance(item, np.ndarray):
            item = np.ascontiguousarray(item)
            return np.ndarray, (item.shape, item.dtype.str, bytearray(item.tobytes()))
        return NotImplemented


def write_pickle(path: str | os.PathLike[str], content: Any) -> None:
    """Pickle built-in containers and arrays, atomically, for any NumPy."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        _PortablePickler(file, _PROTOCOL).dump(content)
