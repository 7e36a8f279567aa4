"""Places that cannot be written: full, read-only, occupied; and two runs into one place.

Right is one line with exit code 2, or success where nothing was in the way; whatever lay there before lies there still,
nothing is half-written, and no temporary file stays. Full and read-only disks are small tmpfs mounts, which need root;
without it, those rows say that they were skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .base import Base
from .child import FAULTS as BAD_ENDINGS
from .runs import Run, Verb, content, files_of, half_written, is_temporary, verbs

LONG = ("synthesize", "train", "predict", "evaluate")
NOTES = "what someone wrote here before"


def run_folders(base: Base, work: Path) -> list[dict[str, Any]]:
    """One row per verb and condition: how it ended, and what is wrong with that."""
    notes, rows = work / "folders.jsonl", []
    if notes.exists():
        rows = [json.loads(line) for line in notes.read_text().splitlines()]
    jobs = [(name, condition) for name in verbs(base) for condition in CONDITIONS]
    with notes.open("a") as file:
        for name, condition in jobs[len(rows) :]:
            scratch = work / "folders"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            found = CONDITIONS[condition](verbs(base)[name], scratch)
            row = {"verb": name, "condition": condition, **found}
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            if row["faults"]:
                print(f"  {name}, {condition}: {'; '.join(row['faults'])}: {row['message']}", flush=True)
    shutil.rmtree(work / "folders", ignore_errors=True)
    return rows


def _finished(verb: Verb, place: Path, scratch: Path) -> Run:
    run = Run(verb.command(place), scratch)
    run.wait()
    return run


def _judged(run: Run, root: Path, refused: bool | None = True, names: str = "") -> dict[str, Any]:
    """A row. refused: whether it must be (None: either is right); names: what the message must name."""
    lines = [line for line in run.err.splitlines() if line.strip()]
    message = lines[-1] if lines else ""
    faults = [run.ending] if run.ending in BAD_ENDINGS else []
    if not faults and refused is not None and refused != (run.code == 2):
        faults.append("not refused" if refused else "refused")
    if run.code == 2 and names and names not in message:
        faults.append(f"does not name {names}")
    if broken := half_written(root):
        faults.append(f"half-written: {', '.join(broken)}")
    if left := [str(path.relative_to(root)) for path in files_of(root) if is_temporary(path, root)]:
        faults.append(f"temporary left: {', '.join(left[:3])}")
    return {"ending": run.ending, "message": message[:300], "faults": faults}


@contextlib.contextmanager
def _mounted(folder: Path, kilobytes: int, extra: str = "") -> Iterator[bool]:
    """A small disk; False where this user may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k{extra}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


SKIPPED = {"ending": "skipped", "message": "mounting needs root", "faults": []}


def _full_at(share: float) -> Any:
    """The disk holds a share of what the verb writes."""

    def check(verb: Verb, scratch: Path) -> dict[str, Any]:
        whole = scratch / "whole"
        whole.mkdir()
        _finished(verb, whole / verb.out, scratch)
        size_kb = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) / 1024
        shutil.rmtree(whole)
        disk = scratch / "disk"
        with _mounted(disk, max(int(share * size_kb) // 4 * 4, 4)) as mounted:
            if not mounted:
                return SKIPPED
            run = _finished(verb, disk / verb.out, scratch)
            row = _judged(run, disk, True, "disk")
            if "temporary left" in " ".join(row["faults"]) and verb.arguments[0] == "synthesize":
                row["faults"] = [fault for fault in row["faults"] if "temporary" not in fault]  # it goes on with them
            return row

    return check


def _read_only(verb: Verb, scratch: Path) -> dict[str, Any]:
    disk = scratch / "disk"
    with _mounted(disk, 64, ",ro") as mounted:
        if not mounted and os.geteuid() == 0:
            return SKIPPED
        if not mounted:
            disk.chmod(0o555)
        return _judged(_finished(verb, disk / verb.out, scratch), disk, True, "disk")


def _file_in_place(verb: Verb, scratch: Path) -> dict[str, Any]:
    """A file where a folder goes, or a folder where a file goes."""
    root = scratch / "place"
    root.mkdir()
    target = root / verb.out
    if target.suffix:
        target.mkdir()
        (target / "notes.txt").write_text(NOTES)
    else:
        target.write_text(NOTES)
    refused = None if verb.arguments[0] == "predict" else True  # it takes any folder for one of submissions
    row = _judged(_finished(verb, target, scratch), scratch, refused, verb.out)
    kept = (target / "notes.txt") if target.is_dir() else target
    return _unless_kept(row, kept)


def _file_above(verb: Verb, scratch: Path) -> dict[str, Any]:
    """A file where a folder above the output would be."""
    above = scratch / "above"
    above.write_text(NOTES)
    return _unless_kept(_judged(_finished(verb, above / "below" / verb.out, scratch), scratch, True, "above"), above)


def _occupied(verb: Verb, scratch: Path) -> dict[str, Any]:
    """A folder that holds someone's files; a file that someone wrote."""
    root = scratch / "place"
    target = root / verb.out
    if target.suffix:
        root.mkdir()
        target.write_text(NOTES)
        row = _judged(_finished(verb, target, scratch), scratch, None, verb.out)
        return _unless_kept(row, target) if row["ending"] == "refused" else row
    target.mkdir(parents=True)
    (target / "notes.txt").write_text(NOTES)
    return _unless_kept(_judged(_finished(verb, target, scratch), scratch, None, verb.out), target / "notes.txt")


def _twice(verb: Verb, scratch: Path) -> dict[str, Any]:
    """The same command after it has ended: another run is never overwritten without a word about it."""
    root = scratch / "place"
    root.mkdir()
    _finished(verb, root / verb.out, scratch)
    before = content(root)
    row = _judged(_finished(verb, root / verb.out, scratch), root, None, verb.out)
    if content(root) != before:
        row["faults"].append("other content than before")
    return row


def _two_at_once(verb: Verb, scratch: Path) -> dict[str, Any]:
    """A second run begins while the first is at work: one of them says so, and the other's result is whole.

    Verbs that take a moment and replace each file at once may both succeed.
    """
    alone = scratch / "alone"
    alone.mkdir()
    first = _finished(verb, alone / verb.out, scratch)
    seconds, right = first.seconds, content(alone)
    root = scratch / "place"
    root.mkdir()
    runs = [Run(verb.command(root / verb.out), scratch)]
    time.sleep(0.15 * seconds)  # early: the second needs as long as the first to reach its output
    overlapped = not runs[0].wait(0)
    runs.append(Run(verb.command(root / verb.out), scratch))
    for run in runs:
        run.wait()
    row = _judged(runs[1], root, None)
    if runs[0].code != 0 and runs[1].code != 0:
        row["faults"].append(f"neither succeeds: {runs[0].err[-200:]}")
    if overlapped and runs[0].code == 0 and runs[1].code == 0 and verb.arguments[0] in LONG:
        row["faults"].append("neither says that there is another")
    if content(root) != right:
        row["faults"].append("other content than of one run")
    return row


def _unless_kept(row: dict[str, Any], kept: Path) -> dict[str, Any]:
    if not kept.is_file() or kept.read_text() != NOTES:
        row["faults"].append(f"{kept.name}, which lay there before, is lost")
    return row


CONDITIONS = {
    "full": _full_at(0.0),
    "full midway": _full_at(0.5),
    "read-only": _read_only,
    "file in place": _file_in_place,
    "file above": _file_above,
    "occupied": _occupied,
    "twice": _twice,
    "two at once": _two_at_once,
}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line per verb: how each condition ended, ! where something is wrong with it."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row["verb"], {})[row["condition"]] = row["ending"] + (" !" if row["faults"] else "")
    lines = [f"{'verb':20}" + "".join(f"{name:>16}" for name in CONDITIONS)]
    return lines + [f"{verb:20}" + "".join(f"{by[name]:>16}" for name in by) for verb, by in cells.items()]
