"""Where a verb writes: checked before the work begins, and locked against a second run while it lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..core.files import check_writable, check_writable_folder
from ..core.folders import file_lock, folder_lock


def run_folder(config: str) -> Path:
    """The folder of runs of a config by default; a work folder's config.py has the folder's name."""
    path = Path(config)
    return Path("runs") / (path.resolve().parent.name if path.name == "config.py" else path.stem)


def check_outputs(files: Iterable[str | Path] = (), folders: Iterable[str | Path] = ()) -> None:
    """Raises OutputError for the first that cannot be written. Leaves nothing behind."""
    for folder in folders:
        check_writable_folder(folder)
    for file in files:
        check_writable(file)


@contextmanager
def writing(job: str, files: Iterable[Path] = (), folders: Iterable[Path] = ()) -> Iterator[None]:
    """Within, no other run writes these files, or into these folders (core.folders).

    Raises OutputError for a place that cannot be written, or where another run, which is named, is writing.
    """
    files, folders = list(files), list(folders)
    check_outputs(files, folders)
    with ExitStack() as locks:
        for folder in folders:
            locks.enter_context(folder_lock(folder, job))
        for file in files:
            if not any(file.absolute().is_relative_to(folder.absolute()) for folder in folders):
                locks.enter_context(file_lock(file, job))
        yield
