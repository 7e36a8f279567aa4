"""Feather files (Arrow's IPC format), in which Argoverse 2 keeps its tables. Needs pyarrow (extra ``argoverse``).

Shapes: n rows.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, DataError
from .files import atomic_path


class FeatherTable:
    """The columns of a Feather file, held against what is expected of them when they are asked for."""

    def __init__(self, path: str | os.PathLike[str], fix: str = "fetch it again") -> None:
        """fix: what a user can do about a file that is missing or broken. Raises DataError; ConfigError: no pyarrow."""
        self.path, self.fix = Path(path), fix
        arrow = _pyarrow(self.path)
        try:
            with arrow.OSFile(str(path)) as file:
                self._table = arrow.ipc.open_file(file).read_all()
            self._table.validate(full=True)  # a damaged file may hold offsets beyond its end, which would crash
            self.names: list[str] = self._table.column_names
        except FileNotFoundError:
            raise DataError(f"{path}: cannot be read (no such file); {fix}") from None
        except (OSError, UnicodeDecodeError, arrow.ArrowException) as error:
            raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); {fix}") from None

    def __len__(self) -> int:
        return self._table.num_rows

    def __contains__(self, name: str) -> bool:
        return self.names.count(name) == 1

    def numbers(self, *names: str) -> NDArray[np.float64]:
        """Columns of numbers [n] or, of several names, [n, names]. Raises DataError: not there, no numbers, or none."""
        columns = [self._column(name, "number").astype(np.float64) for name in names]
        return columns[0] if len(names) == 1 else np.stack(columns, -1)

    def whole_numbers(self, name: str) -> NDArray[np.int64]:
        """A column [n] of integers. Raises DataError where it is not there, or holds anything else."""
        return self._column(name, "whole number").astype(np.int64)

    def texts(self, name: str) -> tuple[list[str], NDArray[np.int64]]:
        """The distinct texts of a column, and which of them each row [n] has. Raises DataError as the others."""
        import pyarrow as arrow

        column = self._entry(name)
        if arrow.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not (arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type)) or column.null_count:
            raise self._wrong(name, column.type, "text")
        coded = column.combine_chunks().dictionary_encode()
        if isinstance(coded, arrow.ChunkedArray):
            coded = coded.combine_chunks()
        return coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)

    def _column(self, name: str, what: str) -> NDArray[Any]:
        column = self._entry(name)
        values = column.to_numpy() if column.null_count == 0 else np.zeros(0, object)
        if values.dtype.kind not in ("iu" if what == "whole number" else "iuf"):
            raise self._wrong(name, column.type, what)
        return values

    def _entry(self, name: str) -> Any:
        if name not in self:
            found = "twice" if name in self.names else f"not among {', '.join(self.names)}"
            raise DataError(f"{self.path}: column {name} is there {found}"[:400] + f"; {self.fix}")
        return self._table[name]

    def _wrong(self, name: str, kind: Any, what: str) -> DataError:
        return DataError(f"{self.path}: column {name} holds {kind}, or gaps, not a {what} in each row; {self.fix}")


def write_feather(
    path: str | os.PathLike[str], columns: Mapping[str, NDArray[Any] | Sequence[str]], texts: Collection[str] = ()
) -> None:
    """Write columns of equal length, in their order, atomically. texts: names of columns of texts, where they may be
    empty.

    Raises OutputError for a place that cannot be written, ConfigError without pyarrow.
    """
    arrow = _pyarrow(Path(path))
    kind_of = dict.fromkeys(texts, arrow.string())
    table = arrow.table({name: arrow.array(values, kind_of.get(name)) for name, values in columns.items()})
    options = arrow.ipc.IpcWriteOptions(compression="lz4" if arrow.Codec.is_available("lz4") else None)
    with atomic_path(path) as temporary, arrow.ipc.new_file(str(temporary), table.schema, options=options) as file:
        file.write_table(table)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError(
            f"{path}: Feather files need pyarrow ({error}); pip install 'drivestack[argoverse]'"
        ) from None
    return pyarrow
