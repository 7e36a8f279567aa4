"""Occupancy predictions on disk: one <sample token>.npz per keyframe in a folder, or the same in a zip file.

The format of the CVPR 2023 occupancy challenge: one array ``arr_0``, uint8
[200, 200, 16] as [x, y, z] of the EGO frame, classes 0..17. The rules are checked in rules.py.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.answers import OccupancyGrid
from ...core.errors import SubmissionError
from ...core.files import atomic_path


def write_grid(folder: str | os.PathLike[str], grid: OccupancyGrid) -> Path:
    """Write one keyframe's voxels, atomically; an interrupted run continues with the missing files."""
    path = Path(folder) / f"{grid.token}.npz"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, grid.semantics.astype(np.uint8))
    return path


def pack(folder: str | os.PathLike[str], path: str | os.PathLike[str], tokens: Iterable[str]) -> None:
    """Put the files of ``tokens`` into a zip file to upload, below the folder's name.

    Raises SubmissionError naming the first sample that has no file.
    """
    folder = Path(folder)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for token in tokens:
            source = folder / f"{token}.npz"
            if not source.is_file():
                raise SubmissionError(f"{folder}: no file for sample {token}; predict it first (the rest is kept)")
            archive.write(source, f"{folder.name}/{source.name}")


class VoxelFiles:
    """Read access to a folder or zip file of predictions, by sample token.

    Raises SubmissionError if there is neither, or the zip file is broken.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._archive: zipfile.ZipFile | None = None
        if self.path.is_dir():
            self.files = sorted(p.name for p in self.path.iterdir() if p.is_file())
        elif self.path.is_file():
            try:
                self._archive = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile:
                raise SubmissionError(f"{self.path}: neither a folder nor a zip file of predictions") from None
            self.files = [name for name in self._archive.namelist() if not name.endswith("/")]
        else:
            raise SubmissionError(f"{self.path}: no such folder or zip file")
        self._by_token = {Path(name).stem: name for name in self.files if name.endswith(".npz")}

    @property
    def tokens(self) -> list[str]:
        return list(self._by_token)

    def read(self, token: str) -> NDArray:
        """The array of a sample as it is stored, whatever its shape and dtype.

        Raises SubmissionError naming the sample where there is none, or not exactly one array ``arr_0``.
        """
        if token not in self._by_token:
            raise SubmissionError(f"{self.path}: no file for sample {token}")
        name = self._by_token[token]
        try:
            content = self._archive.read(name) if self._archive else (self.path / name).read_bytes()
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                if stored.files != ["arr_0"]:
                    raise SubmissionError(
                        f"{self.path}: {name} holds {', '.join(stored.files) or 'nothing'}, it must hold the one array "
                        "arr_0: write it with numpy.savez_compressed(path, voxels)"
                    )
                return stored["arr_0"]
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise SubmissionError(
                f"{self.path}: {name} is not a readable .npz file ({error}); write it again"
            ) from None
