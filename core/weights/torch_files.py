"""What ``torch.save`` wrote, read as data: tensors, containers, numbers. No code in a file is run.

``torch.load(weights_only=True)`` runs none either, but takes memory by the numbers that a damaged file states (a tensor
larger than its storage, ``bytearray(12 * 10**9)``) and reads past the end of storages. Here every size is compared with
the file before memory is taken, and the checksums of the archive are compared too. Both formats are known: the archive
(a zip file) and the older stream of pickles. Layout of both: torch/serialization.py, BSD-3-Clause.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..pickles import (
    PICKLE_ERRORS,
    SMALL_BYTES,
    Allowed,
    AllowListUnpickler,
    Limits,
    check_lengths,
    latin1,
    numpy_names,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MOST_DIMENSIONS = 25
MOST_INFLATED = 8  # times the file, of an archive that somebody compressed
CHUNK_BYTES = 1 << 22
READ_ERRORS = (*PICKLE_ERRORS, OSError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error)
"""What reading a broken file may raise."""


class Entries(dict):
    """A mapping as the file has it, without the attributes that a file may give to an OrderedDict."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Attributes, such as the versions of modules in a state dict, are left out."""

    def __reduce__(self) -> tuple:
        return OrderedDict, (), None, None, iter(self.items())


class Ignored:
    """Stands in for objects beside the weights that hold nothing we read, such as MMEngine's log buffers."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Whatever it held is left out."""


class UnreadObjectError(pickle.UnpicklingError):
    """The file holds objects of a kind that is not read."""


class QuantisedError(pickle.UnpicklingError):
    """The file holds torch's quantised tensors."""


class _Storage:
    """The numbers of one or more tensors: their bytes, and how many of which type the file says they are."""

    def __init__(self, bytes_of: torch.UntypedStorage, dtype: torch.dtype, numel: int) -> None:
        self.bytes_of, self.dtype, self.numel = bytes_of, dtype, numel


def read_torch_file(path: Path) -> Any:
    """The content of a .pth file, on the CPU.

    Raises UnreadObjectError naming classes that are not read, QuantisedError, and one of READ_ERRORS where the file is
    broken.
    """
    with path.open("rb") as stream:
        if stream.read(4) == b"PK\x03\x04":
            return _read_archive(path, path.stat().st_size)
        stream.seek(0)
        return _read_stream(stream, path.stat().st_size)


def _read_archive(path: Path, size: int) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("it is a zip file, but not one of torch.save")
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in members.values())
        most = size if stored else MOST_INFLATED * size
        if len(members) != len(archive.infolist()) or sum(info.file_size for info in members.values()) > most:
            raise pickle.UnpicklingError("its parts claim more than the file holds")
        if not any(info.CRC for info in members.values()):  # torch.serialization.set_crc32_options(False)
            for info in members.values():
                info.CRC = None  # type: ignore[assignment]  # not compared
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in members and archive.read(root + "byteorder") not in (b"little", b""):
            raise pickle.UnpicklingError("its numbers are big-endian")
        content = archive.read(pickles[0])

        def load(key: str, nbytes: int) -> torch.UntypedStorage:
            info = members[f"{root}data/{key}"]
            if nbytes != info.file_size:
                raise pickle.UnpicklingError(f"storage {key} is {info.file_size} bytes, not {nbytes} as stated")
            storage = torch.UntypedStorage(nbytes)
            with archive.open(info) as stream:
                _fill(storage, stream)
            return storage

        check_lengths(content)
        return _TensorUnpickler(size, load).load(content)


def _read_stream(stream: IO[bytes], size: int) -> Any:
    """The format before torch 1.6: pickles of a number, a version, the machine, the content, the storages' keys."""
    if size == 0:
        raise EOFError("it is empty")
    storages: dict[str, torch.UntypedStorage] = {}
    left = size

    def prepare(key: str, nbytes: int) -> torch.UntypedStorage:
        nonlocal left
        left -= nbytes
        if left < 0:
            raise pickle.UnpicklingError("its storages claim more than the file holds")
        return storages.setdefault(key, torch.UntypedStorage(nbytes))

    unpickler, begin = _TensorUnpickler(size, prepare), 0
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:

        def next_pickle() -> Any:
            nonlocal begin
            end = check_lengths(data, begin)
            content, begin = data[begin:end], end
            return unpickler.load(content)

        if next_pickle() != LEGACY_MAGIC or next_pickle() != LEGACY_PROTOCOL:
            raise pickle.UnpicklingError("it is a pickle, but not one of torch.save")
        machine, content, keys = next_pickle(), next_pickle(), next_pickle()
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise pickle.UnpicklingError("its numbers are big-endian")
        if not isinstance(keys, list) or set(keys) != set(storages):
            raise pickle.UnpicklingError("its storages are not those of its tensors")
        stream.seek(begin)
        for key in keys:
            numel = int.from_bytes(stream.read(8), "little")
            if numel != unpickler.numel_of[key]:
                raise pickle.UnpicklingError(f"storage {key} has {numel} values, not {unpickler.numel_of[key]}")
            _fill(storages[key], stream)
    return content


def _fill(storage: torch.UntypedStorage, stream: IO[bytes]) -> None:
    """All bytes of the storage from the stream."""
    if storage.nbytes() == 0:
        stream.read(1 if isinstance(stream, zipfile.ZipExtFile) else 0)
        return
    values: Any = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    buffer = memoryview(values)
    done = 0
    while done < len(buffer):
        count = stream.readinto(buffer[done : done + CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("it is cut off")
        done += count
    if isinstance(stream, zipfile.ZipExtFile):
        stream.read(1)  # the end: here the checksum is compared


# ---- what the pickles name -------------------------------------------------------------------------------------------


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any, dtype: torch.dtype | None = None) -> Tensor:
    """torch._utils._rebuild_tensor_v2: a view of a storage, all of which lies inside it."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor in it has no storage")
    dtype = dtype or storage.dtype
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS or any(type(n) is not int or n < 0 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor in it has the size {str(size)[:60]}, stride {str(stride)[:60]}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if math.prod(size) else offset - 1
    most = max(storage.bytes_of.nbytes(), SMALL_BYTES)  # an expanded view takes memory when it is copied
    if (last + 1) * dtype.itemsize > storage.bytes_of.nbytes() or math.prod(size) > most:
        raise pickle.UnpicklingError(f"a tensor of size {list(size)} is larger than its storage")
    return torch.empty(0, dtype=dtype).set_(storage.bytes_of, offset, tuple(size), tuple(stride))


def _tensor_of_type(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v3, of types without storages of their own."""
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor in it has no dtype")
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _parameter(data: Any, *_: Any) -> Tensor:
    """torch._utils._rebuild_parameter, and torch.nn.Parameter: the tensor alone."""
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter in it is no tensor")
    return data


def _tensor_with_attributes(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """torch._tensor._rebuild_from_type_v2: a plain tensor, whose attributes are left out."""
    if not isinstance(rebuild, Allowed) or kind not in (_TENSOR, _PARAMETER):
        raise UnreadObjectError("tensors of a class of their own")
    return rebuild(*arguments)


def _entries(pairs: Any = ()) -> Entries:
    """collections.OrderedDict."""
    return Entries(pairs)


def _counter(counts: Any = ()) -> Counter:
    return Counter(dict(counts))


def _size(sizes: Any = ()) -> torch.Size:
    return torch.Size(sizes)


def _history_method(owner: Any, name: Any) -> Any:
    """``getattr``, which MMEngine's checkpoints use to name the methods of HistoryBuffer, and only that."""
    if owner is not _IGNORED:
        raise UnreadObjectError("builtins.getattr")
    return None


class _Unchanging(type):
    """A class that a pickle can make objects of, but not change."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it sets {name} of a class")


class _IGNORED(Ignored, metaclass=_Unchanging):
    __slots__ = ()

    def __new__(cls, *arguments: Any) -> Any:
        return object.__new__(cls)


class _ENTRIES(Entries, metaclass=_Unchanging):
    __slots__ = ()


_TENSOR, _PARAMETER = Allowed(_parameter), Allowed(_parameter)
QUANTISED = ("torch._utils._rebuild_qtensor", "torch.QInt8Storage", "torch.QUInt8Storage", "torch.QInt32Storage")
_STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def _torch_names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
    }
    names |= {("torch", name): dtype for name, dtype in _STORAGE_TYPES.items()}
    names |= {("torch.cuda", name): dtype for name, dtype in _STORAGE_TYPES.items()}
    names |= {
        ("torch.storage", "UntypedStorage"): torch.uint8,
        ("torch", "device"): Allowed(str),
        ("torch", "Tensor"): _TENSOR,
        ("torch._tensor", "Tensor"): _TENSOR,
        ("torch.nn.parameter", "Parameter"): _PARAMETER,
        ("torch._utils", "_rebuild_tensor"): Allowed(_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): Allowed(_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): Allowed(_tensor_of_type),
        ("torch._utils", "_rebuild_parameter"): Allowed(_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): Allowed(_parameter),
        ("torch._tensor", "_rebuild_from_type_v2"): Allowed(_tensor_with_attributes),
        ("yacs.config", "CfgNode"): _ENTRIES,  # options in InternImage's classification checkpoints
        ("mmengine.logging.history_buffer", "HistoryBuffer"): _IGNORED,
        ("builtins", "getattr"): Allowed(_history_method),
        ("__builtin__", "getattr"): Allowed(_history_method),
        ("builtins", "complex"): Allowed(complex),
        ("__builtin__", "complex"): Allowed(complex),
    }
    return names


class _TensorUnpickler:
    """Unpickles what torch.save pickled; ``load`` gives the bytes of a storage by its key."""

    def __init__(self, file_bytes: int, load: Callable[[str, int], torch.UntypedStorage]) -> None:
        self._load = load
        self._storages: dict[str, torch.UntypedStorage] = {}
        self.numel_of: dict[str, int] = {}
        limits = Limits(file_bytes)
        self._allowed = numpy_names() | _torch_names()
        for kind in (set, frozenset, bytes, bytearray, list, dict, tuple):
            self._allowed["builtins", kind.__name__] = self._allowed["__builtin__", kind.__name__] = limits.copying(
                kind
            )
        self._allowed["_codecs", "encode"] = limits.copying(latin1)
        self._allowed["collections", "OrderedDict"] = limits.copying(_entries)
        self._allowed["collections", "Counter"] = limits.copying(_counter)
        self._allowed["torch", "Size"] = limits.copying(_size)

    def load(self, content: bytes) -> Any:
        """What one pickle holds; several share their storages."""
        unpickler = AllowListUnpickler(io.BytesIO(content), self._allowed, encoding="utf-8")
        unpickler.persistent_load = self._storage  # type: ignore[method-assign]
        try:
            return unpickler.load()
        except pickle.UnpicklingError as error:
            if str(error).startswith("it names "):
                name = str(error).removeprefix("it names ")
                raise (QuantisedError if name in QUANTISED else UnreadObjectError)(name) from None
            raise

    def _storage(self, stated: Any) -> _Storage:
        """("storage", type, key, device, number of values[, view of another])."""
        if not isinstance(stated, tuple) or len(stated) not in (5, 6) or stated[0] not in ("storage", b"storage"):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        _, dtype, key, _, numel, *view = stated
        if not isinstance(dtype, torch.dtype) or type(numel) is not int or numel < 0 or view not in ([], [None]):
            raise pickle.UnpicklingError("it describes a storage in an unknown way")
        key = str(key)
        if key not in self._storages:
            self._storages[key] = self._load(key, numel * dtype.itemsize)
            self.numel_of[key] = numel
        return _Storage(self._storages[key], dtype, numel)
