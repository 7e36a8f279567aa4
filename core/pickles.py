"""Pickles of plain data, read without running code in them, and written for every NumPy.

A pickle can run any code while it loads, and a few bytes can ask for all memory. Ours may only make NumPy arrays,
dtypes and scalars and built-in containers; everything else is refused by name before it runs, and lengths are
compared with the file before memory is taken.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import LIBRARY_ERRORS, DataError
from .files import atomic_path

_PROTOCOL = 4  # the newest that Python 3.7 reads
COPIES_PER_BYTE = 16
"""What constructors (``list(...)``, ``bytes(...)``) may make in all, for each byte of the file."""
SMALL_BYTES = 1 << 24  # what any file may make


PICKLE_ERRORS = (*LIBRARY_ERRORS, SystemError)  # NumPy's for a state that it cannot read


class Allowed:
    """A function that a pickle may call. Nothing in a pickle can change it, as it could a bare function or class."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it sets {name} of a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


class Limits:
    """Counts what constructors copy, so that a small file cannot fill the memory by repeating itself."""

    def __init__(self, file_bytes: int) -> None:
        self.left = SMALL_BYTES + COPIES_PER_BYTE * file_bytes

    def copying(self, kind: Callable[..., Any]) -> Allowed:
        """``kind`` (list, bytes, ...) of something that is there already."""

        def make(*arguments: Any) -> Any:
            for argument in arguments[:1]:
                if not hasattr(argument, "__len__"):  # bytes(10**12)
                    raise pickle.UnpicklingError(f"it makes {kind.__name__} of {str(argument)[:40]}")
                self.left -= 8 * len(argument)
            if self.left < 0:
                raise pickle.UnpicklingError("it copies far more than the file holds")
            return kind(*arguments)

        return Allowed(make)


# ---- NumPy -----------------------------------------------------------------------------------------------------------

_rebuild_array: Any = np.empty(0).__reduce__()[0]
_rebuild_scalar: Any = np.float64(0).__reduce__()[0]
_array_from_buffer: Any = np.empty(1).__reduce_ex__(5)[0]


_PLAIN_DTYPE = re.compile(r"[<>|=]?[?a-zA-Z]\d{0,6}(\[\w{1,6}\])?|[a-z]{3,10}\d{0,3}")
_UNIT = re.compile(r"[a-zA-Z]{1,7}")


class Dtype:
    """Stands in for a dtype while a pickle loads: the state that a file gives to a real one can make NumPy crash."""

    __slots__ = ("real",)

    def __init__(self, name: Any, align: bool = False, copy: bool = False) -> None:
        if isinstance(name, bytes):
            name = name.decode("ascii")
        if not isinstance(name, str) or not _PLAIN_DTYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"it asks for the dtype {str(name)[:40]!r}")
        self.real = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        """(version, byte order, None, None, None, item size, alignment, flags[, unit of time])."""
        _, order, array, names, fields, size, _, _, *more = state
        if (array, names, fields) != (None, None, None) or size not in (-1, self.real.itemsize):
            raise pickle.UnpicklingError("it has a dtype with fields, or of a size that its name does not have")
        if more and self.real.kind in "mM":
            unit, count, *_ = more[0][1]
            unit = unit.decode("ascii") if isinstance(unit, bytes) else unit
            if not _UNIT.fullmatch(unit) or type(count) is not int or not 0 < count < 10**6:
                raise pickle.UnpicklingError("it has times of an unknown unit")
            self.real = np.dtype(f"{self.real.kind}8[{count}{unit}]")
        named: Any = order if isinstance(order, str) else order.decode("ascii")
        self.real = self.real.newbyteorder(named)


def _real(dtype: Any) -> np.dtype:
    if not isinstance(dtype, Dtype):
        raise pickle.UnpicklingError("it has an array without a dtype")
    return dtype.real


class PickledArray(np.ndarray):
    """An array whose values come later, with as many of them as its shape says, which NumPy checks for numbers only."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, columns_first, values = state
        real = dtype if isinstance(dtype, np.dtype) else _real(dtype)  # a real one: a copy in this process
        if real.hasobject and not (isinstance(values, list) and len(values) == math.prod(shape)):
            raise pickle.UnpicklingError("it has an array of objects with another number of them than its shape says")
        super().__setstate__((version, shape, real, columns_first, values))

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def empty_array(kind: Any, shape: Any, letter: Any) -> np.ndarray:
    """The array of no values that is filled afterwards."""
    if kind is not ndarray or shape not in ((0,), [0]):
        raise pickle.UnpicklingError(f"it makes an array of shape {str(shape)[:40]} without its values")
    return _rebuild_array(PickledArray, (0,), b"b")


def _array(shape: Any, dtype: Any = None, buffer: Any = None, *more: Any) -> np.ndarray:
    """numpy.ndarray with values."""
    real = Dtype(dtype).real if isinstance(dtype, str) else _real(dtype)
    if buffer is None or real.hasobject or real.itemsize == 0:
        raise pickle.UnpicklingError(f"it makes an array of shape {str(shape)[:40]} without its values")
    return np.ndarray(shape, real, buffer, *more)


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return _array_from_buffer(buffer, _real(dtype), shape, order)


def numpy_scalar(dtype: Any, value: Any = None) -> Any:
    """A NumPy scalar from its bytes."""
    if _real(dtype).hasobject or not isinstance(value, bytes | str):
        raise pickle.UnpicklingError("it makes a NumPy scalar of something other than bytes")
    return _rebuild_scalar(_real(dtype), value)


def latin1(text: str, encoding: str = "") -> bytes:
    """How pickle protocol 2 stores the bytes of an array (as ``_codecs.encode``, which could import modules)."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


ndarray = Allowed(_array)


def numpy_names() -> dict[tuple[str, str], Any]:
    """What pickles of arrays, dtypes and scalars name, for NumPy 1 and 2."""
    names: dict[tuple[str, str], Any] = {("numpy", "ndarray"): ndarray, ("numpy", "dtype"): Allowed(Dtype)}
    for core in ("numpy.core", "numpy._core"):
        names[core + ".multiarray", "_reconstruct"] = Allowed(empty_array)
        names[core + ".multiarray", "scalar"] = Allowed(numpy_scalar)
        names[core + ".numeric", "_frombuffer"] = Allowed(_from_buffer)
    return names


# ---- lengths before memory -------------------------------------------------------------------------------------------

# Opcodes with arguments of known size, and memo places below 2^23, many at a time; not STOP.
_PLAIN = re.compile(
    rb"(?:[()012NQRabdelostu}\]\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98]|[Khq\x80]."
    rb"|M..|j....|J....|G.{8}|r..[\x00-\x7f]\x00)++",
    re.DOTALL,
)
_LINES = re.compile(rb"[FILSVPg][^\n]*\n|p\d{1,7}\n|[ci][^\n]*\n[^\n]*\n")
# Tuples each of which holds the one before it: hashing such a chain as a key recurses until Python crashes.
_ATOM, _MEMO = rb"(?:[N)\x88\x89]|K.)", rb"(?:\x94|q.|r....)"
_DEEPEST = 100
_NESTED = re.compile(rb"(?:(?:\x85|%b\x86|%b%b\x87)%b*+){%d}" % (_ATOM, _ATOM, _ATOM, _MEMO, _DEEPEST + 1), re.DOTALL)
_LENGTH_BYTES = {b: 1 for b in b"U\x8a\x8cC"} | {b: 4 for b in b"TX\x8bB"} | {b: 8 for b in b"\x8d\x8e\x96"}
_FRAME, _LONG_BINPUT, _STOP = 0x95, 0x72, 0x2E


def check_lengths(data: bytes | mmap.mmap, start: int = 0) -> int:
    """Where a pickle that begins at ``start`` ends. Runs nothing of it and takes no memory.

    Raises pickle.UnpicklingError for a length or a memo place (for which the unpickler makes a table) that the file
    cannot have, for an unknown opcode, for plain chains of more than 100 tuples inside tuples (chains by way of other
    opcodes are not found) and for a pickle that is cut off.
    """
    size, place = len(data), start
    while place < size:
        if run := _PLAIN.match(data, place):
            if run.end() - place > _DEEPEST and _NESTED.search(data, place, run.end()):
                raise pickle.UnpicklingError("it has tuples inside tuples without end")
            place = run.end()
            continue
        code = data[place]
        place += 1
        width = _LENGTH_BYTES.get(code)
        if width is not None:
            place += width + int.from_bytes(data[place : place + width], "little")
        elif code == _STOP:
            return place
        elif code in (_FRAME, _LONG_BINPUT):
            width = 8 if code == _FRAME else 4
            if int.from_bytes(data[place : place + width], "little") > size:
                raise pickle.UnpicklingError("a number in it asks for more memory than the whole file")
            place += width
        else:
            line = _LINES.match(data, place - 1)
            if line is None:
                raise pickle.UnpicklingError(f"byte {place - 1} is no part of a pickle")
            place = line.end()
    raise pickle.UnpicklingError("it is cut off")


# ---- reading and writing ---------------------------------------------------------------------------------------------


class AllowListUnpickler(pickle.Unpickler):
    """Finds the classes and functions of ``allowed``, by (module, name), and no others."""

    def __init__(self, stream: IO[bytes], allowed: Mapping[tuple[str, str], Any], **options: Any) -> None:
        super().__init__(stream, **options)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        found = self._allowed.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return found


def _plain_data(limits: Limits) -> dict[tuple[str, str], Any]:
    names = numpy_names()
    names["_codecs", "encode"] = limits.copying(latin1)
    for kind in (set, frozenset, bytes, bytearray, list, dict, tuple):
        names["builtins", kind.__name__] = names["__builtin__", kind.__name__] = limits.copying(kind)
    names["builtins", "complex"] = names["__builtin__", "complex"] = Allowed(complex)
    return names


def load_pickle(path: str | Path) -> Any:
    """The content of a pickle made of built-in containers and NumPy arrays.

    Raises DataError naming the file: missing, truncated, or naming any other class or function (named).
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if size == 0:
                raise EOFError("it is empty")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                check_lengths(data)
            return AllowListUnpickler(stream, _plain_data(Limits(size))).load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a pickle file") from None
    except pickle.UnpicklingError as error:
        raise DataError(_refusal(path, " ".join(str(error).split()))) from None
    except PICKLE_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: broken or truncated pickle ({reason}); fetch or make the file again") from None


def _refusal(path: Path, reason: str) -> str:
    if not reason.startswith("it names "):
        return f"{path}: broken pickle: {reason}; fetch or make the file again"
    return (
        f"{path}: refused to unpickle: {reason}; only NumPy arrays and built-in containers are allowed. "
        "Do not load this file elsewhere if you do not trust its source; write it again with lists and arrays"
    )


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
