"""Features that training does not change, on disk and mapped into memory: one copy for all processes and runs.

A store is a folder: ``index.json`` (samples, mirrored or not, shapes) and one flat file per feature, an entry after the
other. What is read stays in the system's file cache. Axes keep their order in memory (channels last, say), because the
rounding of a convolution may depend on it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import DataError
from .files import write_json

INDEX = "index.json"
DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


def memory_order(value: Tensor) -> list[int]:
    """Axes from the outermost to the innermost in memory."""
    strides = value.stride()
    return sorted(range(value.dim()), key=lambda axis: (-strides[axis], axis))


def stack(values: Sequence[Tensor]) -> Tensor:
    """torch.stack along a new first axis, with the order of the others in memory kept."""
    axes = memory_order(values[0])
    return torch.stack([value.permute(axes) for value in values]).permute(_placed(axes))


def _placed(axes: Sequence[int]) -> list[int]:
    """How to permute entries [n, *axes in memory order] to the order that they are named in."""
    return [0, *(1 + axes.index(axis) for axis in range(len(axes)))]


class FeatureStore:
    """Tensors by name for every (sample token, mirrored).

    folder: of a store that `create` has made. Raises DataError, naming it, where its index or a file does not fit.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        fix = "remove the folder, and the next training writes it again"
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            self.views = 2 if index["mirrored"] else 1
            self.places = {token: i for i, token in enumerate(index["tokens"])}
            self.layout = {
                name: (DTYPES[dtype], tuple(shape), tuple(axes))
                for name, (dtype, shape, axes) in index["layout"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self.folder / INDEX}: no index of stored features ({error}); {fix}") from None
        for name, (dtype, shape, _) in self.layout.items():
            path, expected = self._path(name), len(self) * math.prod(shape) * dtype.itemsize
            size = path.stat().st_size if path.is_file() else 0
            if size != expected:
                raise DataError(f"{path}: {size} bytes of stored features, the index has {expected}; {fix}")
        self._tensors: dict[str, Tensor] = {}

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        tokens: Iterable[str],
        mirrored: bool,
        example: Mapping[str, Tensor],
    ) -> FeatureStore:
        """A store of zeros, to be written. example: the features of one entry; mirrored: also of the mirror world."""
        path, tokens = Path(folder), list(tokens)
        path.mkdir(parents=True, exist_ok=True)
        layout = {name: (str(v.dtype), list(v.shape), memory_order(v)) for name, v in example.items()}
        entries = len(tokens) * (2 if mirrored else 1)
        for name, value in example.items():
            with (path / f"{name}.bin").open("wb") as file:
                if size := entries * value.numel() * value.element_size():  # a full disk shows now, as an error
                    os.posix_fallocate(file.fileno(), 0, size)
        write_json(path / INDEX, {"tokens": tokens, "mirrored": mirrored, "layout": layout})
        return cls(path)

    def __len__(self) -> int:
        """Entries: samples, each once or with its mirror image."""
        return len(self.places) * self.views

    def read(self, token: str, mirrored: bool) -> dict[str, Tensor]:
        """The features of one entry, copied. Raises DataError for one that is not there."""
        return {name: self._mapped(name)[self._at(token, mirrored)].clone() for name in self.layout}

    def write(self, token: str, mirrored: bool, features: Mapping[str, Tensor]) -> None:
        """Put the features of one entry in place."""
        for name, value in features.items():
            self._mapped(name)[self._at(token, mirrored)].copy_(value)

    def _at(self, token: str, mirrored: bool) -> int:
        if token not in self.places or (mirrored and self.views == 1):
            words = f"sample {token}" + ", mirrored," * mirrored
            raise DataError(f"{self.folder}: has no features of {words}; remove the folder, and it is written again")
        return self.places[token] * self.views + mirrored

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def _mapped(self, name: str) -> Tensor:
        if name not in self._tensors:
            dtype, shape, axes = self.layout[name]
            count = len(self) * math.prod(shape)
            mapped = torch.from_file(str(self._path(name)), shared=True, size=count, dtype=dtype)
            self._tensors[name] = mapped.view(len(self), *(shape[axis] for axis in axes)).permute(_placed(axes))
        return self._tensors[name]

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the files itself."""
        return {**self.__dict__, "_tensors": {}}
