"""Files and folders are put in place whole, what cannot be written is known beforehand, errors name the path."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from drivestack.core import files
from drivestack.core.errors import OutputError
from drivestack.core.files import (
    atomic_path,
    check_writable,
    check_writable_folder,
    remove_stale_files,
    replace_folder,
    write_json,
)
from drivestack.core.folders import file_lock, folder_lock

BIG = 1 << 20


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


# ------------------------------------------------------------------------------------------------ before long work


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    check_writable_folder(tmp_path / "new" / "one")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/run: cannot be written \(.*/file is a file\)"):
        check_writable_folder(tmp_path / "file" / "run")
    with pytest.raises(OutputError, match="is a file; name a folder"):
        check_writable_folder(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "is a folder; name a file"),
        ("file/x.json", "is a file"),
        ("file/deep/er/x.json", "is a file"),
        ("link/x.json", "is a link to nothing"),
        ("a\0b.json", "control characters"),
        ("a\nb.json", "control characters"),
        ("n" * 300, "longer than 255 bytes"),
        ("/".join(["n" * 200] * 30), "name too long"),
        ("pipe", "is a device or pipe"),
    ],
)
def test_a_place_that_takes_no_file_is_refused_by_name(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=f"(?i){reason}") as refused:
        check_writable(tmp_path / name)
    with pytest.raises(OutputError, match=f"(?i){reason}"):
        write_json(tmp_path / name, 1)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"


def test_checks_leave_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "c.json")
    check_writable_folder(tmp_path / "a" / "b")
    check_writable_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "tmpabc"))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    for check in (check_writable, check_writable_folder):
        with pytest.raises(OutputError, match=r"new/place: cannot be written \(Read-only file system\); choose"):
            check(tmp_path / "new" / "place")


# ------------------------------------------------------------------------------------------------------- disk full


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may become larger than 64 kB; Python ignores the signal, so that writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_gif(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (800, 800, 3), np.uint8)
    Image.fromarray(noise).save(path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text.json": lambda path: path.write_text("x" * BIG),
    "numpy.npz": lambda path: np.savez(path, np.zeros(BIG)),
    "torch.pth": lambda path: torch.save({"a": torch.zeros(BIG)}, path),
    "tensors.safetensors": lambda path: save_file({"a": torch.zeros(BIG)}, path),
    "picture.png": save_gif,
    "picture.jpg": save_gif,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_error_with_the_path_whatever_writes(tmp_path: Path, name: str, small_disk: None) -> None:
    (tmp_path / name).write_text("before")
    with pytest.raises(OutputError) as full, atomic_path(tmp_path / name) as temporary:
        WRITERS[name](temporary)
    assert str(full.value).startswith(f"{tmp_path / name}: cannot be written (File too large; ")
    assert "MB are free there" in str(full.value)
    assert (tmp_path / name).read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_errors_of_a_writer_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    with pytest.raises(FileNotFoundError, match="input"), atomic_path(tmp_path / "x.json"):
        (tmp_path / "input.json").read_text()
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ files of killed runs


def run_and_kill(tmp_path: Path, body: str) -> None:
    """A program that is killed where it sleeps, in the middle of what it does."""
    program = tmp_path / "killed.py"
    program.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from drivestack.core.files import atomic_path\n"
        "from drivestack.core.folders import file_lock, folder_lock\n"
        "def stop():\n    print('here', flush=True)\n    time.sleep(60)\n"
        f"folder = Path({str(tmp_path)!r}) / 'out'\n" + body
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGKILL)
    program.unlink()


HALF_WRITTEN = "with atomic_path(folder / 'a.json') as temporary:\n    temporary.write_text('half')\n    stop()\n"


def test_a_temporary_file_of_a_killed_run_is_used_by_the_next_that_writes_the_same(tmp_path: Path) -> None:
    run_and_kill(tmp_path, HALF_WRITTEN)
    assert len(list((tmp_path / "out").iterdir())) == 1
    write_json(tmp_path / "out" / "a.json", [1])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.json"]
    assert (tmp_path / "out" / "a.json").read_text() == "[1]"


def test_only_files_that_nobody_writes_any_more_are_removed(tmp_path: Path) -> None:
    run_and_kill(tmp_path, HALF_WRITTEN)
    out = tmp_path / "out"
    (out / ".own-notes.json").write_text("of the user")
    with atomic_path(out / "b.json") as alive:
        alive.write_text("2")
        remove_stale_files(out)
        assert {path.name for path in out.iterdir()} == {".own-notes.json", alive.name}
    assert {path.name for path in out.iterdir()} == {".own-notes.json", "b.json"}


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "x.json") as first, atomic_path(tmp_path / "x.json") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "x.json").read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 1


def test_long_names_have_temporary_files_too(tmp_path: Path) -> None:
    for name in ("n" * 251 + ".txt", "ü" * 125 + ".txt"):
        write_json(tmp_path / name, 1)
        assert (tmp_path / name).read_text() == "1"


# ----------------------------------------------------------------------------------------------------------- locks


def test_the_second_run_into_a_folder_is_told_who_is_there(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "x"
    with folder_lock(out, "train tiny"):
        line = rf"runs/x: process {os.getpid()} on \S+ \(train tiny\) is writing here; wait for it, or choose another"
        with pytest.raises(OutputError, match=line), folder_lock(out, "train other"):
            pytest.fail("two runs in one folder")
    assert list(tmp_path.iterdir()) == []


def test_the_second_run_into_a_file_is_refused_and_other_files_beside_it_are_not(tmp_path: Path) -> None:
    with (
        file_lock(tmp_path / "x.json", "predict"),
        file_lock(tmp_path / "y.json", "predict"),
        pytest.raises(OutputError, match=r"x\.json: process"),
        file_lock(tmp_path / "x.json", "predict"),
    ):
        pytest.fail("two runs for one file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lock", ["folder_lock", "file_lock"])
def test_the_lock_of_a_killed_run_is_no_obstacle(tmp_path: Path, lock: str) -> None:
    run_and_kill(tmp_path, f"with {lock}(folder / 'x', 'job'):\n    stop()\n")
    assert any(path.name.endswith(".drivestack.lock") for path in tmp_path.rglob("*"))
    with {"folder_lock": folder_lock, "file_lock": file_lock}[lock](tmp_path / "out" / "x", "next") as place:
        write_json(place / "kept.json" if lock == "folder_lock" else place, 1)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".drivestack.lock")]


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path: Path) -> None:
    child = "    if not os.fork():\n        os.write(there, b'x')\n        time.sleep(3)\n        os._exit(0)\n"
    body = f"here, there = os.pipe()\nwith folder_lock(folder, 'job'):\n{child}    os.read(here, 1)\n    stop()\n"
    run_and_kill(tmp_path, body)
    with folder_lock(tmp_path / "out", "next"):
        pass


def test_the_next_run_into_a_folder_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    run_and_kill(tmp_path, HALF_WRITTEN)
    with folder_lock(tmp_path / "out", "next") as out:
        write_json(out / "other.json", 1)
    assert [path.name for path in out.iterdir()] == ["other.json"]


def test_the_log_of_a_run_names_itself_on_a_full_disk(tmp_path: Path, small_disk: None) -> None:
    from drivestack.engine.run_log import RunLog

    with pytest.raises(OutputError, match=r"log\.jsonl: cannot be written \(File too large"):
        RunLog(tmp_path).write({"iter": 1, "text": "x" * BIG})
