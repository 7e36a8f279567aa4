"""Occupancy predictions on disk: one <sample token>.npz per keyframe in a folder, or the same in a zip file.

The format of the CVPR 2023 occupancy challenge: one array ``arr_0``, uint8
[200, 200, 16] as [x, y, z] of the EGO frame, classes 0..17. The rules are checked in rules.py.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.answers import OccupancyGrid
from ...core.archives import ArrayFile, ArrayHeader, is_plain_name, open_zip, read_member
from ...core.errors import DataError, SubmissionError
from ...core.files import atomic_path, file_name

MAX_SAMPLE_BYTES = 1 << 27
"""Of one sample's file: 134 MB; a grid of bytes has 0.6 MB before it is packed."""
_ARRAYS = ("arr_0", "pred")
_SUFFIXES = (".npz", ".npy")
_OURS = b"written by drivestack"
"""Comment of the zip file that an .npz is: a later run may replace it."""


def sample_name(token: str) -> str:
    """Of a sample's file, without its ending; the parts of tokens such as "val/00492/3159" are joined by "_".

    Raises DataError for a token that cannot name a file (core.files.file_name).
    """
    return "_".join(file_name(part, f"sample token {token!r}:") for part in str(token).split("/"))


def write_grid(folder: str | os.PathLike[str], grid: OccupancyGrid) -> Path:
    """Write one keyframe's voxels, atomically. Raises DataError for a token that cannot name a file."""
    path = Path(folder) / f"{sample_name(grid.token)}.npz"
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            np.savez_compressed(file, grid.semantics.astype(np.uint8))
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = _OURS
    return path


def clear_stale(folder: str | os.PathLike[str], tokens: Iterable[str]) -> list[str]:
    """Remove voxels that an earlier run left in ``folder`` for samples other than ``tokens``.

    Only files that bear the mark of ``write_grid`` go. Returns the names of the others, which stay.
    """
    wanted = {f"{sample_name(token)}.npz" for token in tokens}
    others = []
    for path in sorted(Path(folder).iterdir()):
        if path.name in wanted:
            continue
        if path.suffix == ".npz" and path.is_file() and _is_ours(path):
            path.unlink()
        else:
            others.append(path.name)
    return others


def _is_ours(path: Path) -> bool:
    """The comment stands at the very end of a zip file."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(_OURS), 0))
        return file.read() == _OURS


def pack(folder: str | os.PathLike[str], path: str | os.PathLike[str], tokens: Iterable[str]) -> None:
    """Put the files of ``tokens`` into a zip file to upload, below the folder's name.

    Raises SubmissionError naming the first sample that has no file.
    """
    folder = Path(folder)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for token in tokens:
            source = folder / f"{sample_name(token)}.npz"
            if not source.is_file():
                raise SubmissionError(f"{folder}: no file for sample {token}; predict it first (the rest is kept)")
            archive.write(source, f"{folder.name}/{source.name}")


class VoxelFiles:
    """Read access to a folder or zip file of predictions, by sample token.

    Read are .npz files with the one array ``arr_0``, which the challenge asks for, or with an array ``pred``, as
    SparseOcc and FB-OCC write them, and .npy files. ``strange``: names that are no sample's, each with the reason;
    ``repeated``: samples with more than one file.
    Raises SubmissionError if there is neither folder nor zip file, or the zip file is broken.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._archive: zipfile.ZipFile | None = None
        if self.path.is_dir():
            names = sorted(p.name for p in self.path.iterdir() if p.is_file())
        elif self.path.suffix == ".npz" and self.path.is_file():
            raise SubmissionError(f"{self.path}: is the file of one sample; give the folder or zip file of all samples")
        elif self.path.is_file():
            if not zipfile.is_zipfile(self.path):
                raise SubmissionError(f"{self.path}: neither a folder nor a zip file of predictions")
            self._archive = open_zip(self.path, SubmissionError, "pack the samples' .npz files again")
            names = [name for name in self._archive.namelist() if not name.endswith("/")]
        else:
            raise SubmissionError(f"{self.path}: no such folder or zip file")
        self.strange: dict[str, str] = {}
        self.repeated: dict[str, int] = {}
        self._by_token: dict[str, str] = {}
        for name in names:
            self._place(name)

    def _place(self, name: str) -> None:
        """Under its sample, or among what is strange."""
        token, suffix = os.path.splitext(name.rpartition("/")[2])
        if not is_plain_name(name):
            self.strange[name[:100]] = "leads out of the folder that it is unpacked to; name it <sample token>.npz"
        elif suffix not in _SUFFIXES:
            self.strange[name[:100]] = "only .npz files belong into a submission; remove it"
        else:
            try:
                file_name(token, f"{self.path}: sample")
            except DataError as error:
                self.strange[name[:100]] = str(error)
                return
            if token in self._by_token:
                self.repeated[token] = self.repeated.get(token, 1) + 1
            self._by_token[token] = name

    @property
    def tokens(self) -> list[str]:
        """Samples, by the names of their files (``sample_name``)."""
        return list(self._by_token)

    def __contains__(self, token: str) -> bool:
        return sample_name(token) in self._by_token

    def __len__(self) -> int:
        return len(self._by_token)

    def name(self, token: str) -> str:
        """Of the sample's file."""
        return self._by_token[sample_name(token)]

    def header(self, token: str) -> tuple[str, ArrayHeader]:
        """The name of a sample's array, its shape and dtype, before it is read. Raises as ``read``."""
        with self._open(token) as (stored, array):
            return array, stored.headers[array]

    def read(self, token: str) -> NDArray:
        """The array of a sample as it is stored, whatever its shape and dtype (core.archives limits its size).

        Raises SubmissionError naming the sample where there is none, or its file cannot be read or has other arrays.
        """
        with self._open(token) as (stored, array):
            return stored.read(array)

    @contextmanager
    def _open(self, token: str) -> Iterator[tuple[ArrayFile, str]]:
        """The file of a sample, and which of its arrays is the prediction."""
        if token not in self:
            raise SubmissionError(f"{self.path}: no file for sample {token}")
        name = self.name(token)
        place, fix = f"{self.path}: {name}", "write it again"
        source: Path | bytes = self.path / name
        if self._archive is not None:
            source = read_member(self._archive, name, place, SubmissionError, fix, MAX_SAMPLE_BYTES)
        with ArrayFile(source, place, SubmissionError, fix) as stored:
            array = next((key for key in _ARRAYS if key in stored.names), None)
            if array is None or (array == "arr_0" and len(stored.names) > 1):
                raise SubmissionError(
                    f"{place} holds {', '.join(stored.names) or 'nothing'}, it must hold the one array arr_0: write it "
                    "with numpy.savez_compressed(path, voxels)"
                )
            yield stored, array
