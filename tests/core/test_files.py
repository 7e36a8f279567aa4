"""Folders are put in place whole, and what cannot be written is known beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivestack.core.errors import OutputError
from drivestack.core.files import replace_folder, writable_folder


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    for name in ("built", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "empty").mkdir()
    replace_folder(tmp_path / "built", tmp_path / "empty")
    assert (tmp_path / "empty" / "file").read_text() == "built"
    with pytest.raises(OSError, match="not empty"):
        replace_folder(tmp_path / "other", tmp_path / "empty")
    assert (tmp_path / "other" / "file").read_text() == "other"
    assert (tmp_path / "empty" / "file").read_text() == "built"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert writable_folder(tmp_path / "new" / "one").is_dir()
    assert list((tmp_path / "new" / "one").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/run: cannot be written \(Not a directory\)"):
        writable_folder(tmp_path / "file" / "run")
