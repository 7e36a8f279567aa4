"""Many damaged inputs of a kind: each made from (seed, kind, index), run, judged, and noted in a file.

The file has one line of JSON per input; a run that was stopped goes on after the last. The damaged files and the log of
an input that is a fault are kept in ``FOLDER/faults/KIND-INDEX``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import drivestack
from drivestack.cli.main import main
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.engine.config import build_dataset, load_config, parse_override
from drivestack.tasks.run import input_dataset, input_settings, load_model, source_of

from . import data_kinds, file_kinds
from .base import SPLIT, VERSION, Base
from .child import FAULTS, Input, Outcome, run_all

KINDS = {**data_kinds.KINDS, **file_kinds.KINDS}
KEPT_PER_KIND = 300
KEPT_BYTES = 4 << 20


def _read(reader: str, root: str, *options: str) -> None:
    drivestack.read(root, reader, **dict(option.split("=", 1) for option in options))


def _load(config: str, weights: str) -> None:
    drivestack.load(config, weights, device="cpu")


def _item(config: str, root: str, index: str) -> None:
    """What training reads of a frame: images, voxels, lanes."""
    frames = read_nuscenes(root, VERSION, SPLIT)
    settings = input_settings(load_config(config))
    build_dataset({**settings, "frames": frames, "occupancy": True, "lanes": True})[int(index)]


def _build(config: str, *overrides: str) -> None:
    """What ``predict`` does before the first frame."""
    loaded = load_config(config, dict(map(parse_override, overrides)))
    model = load_model(loaded, None)
    input_dataset(loaded, model, source_of(loaded).read())


FUNCTIONS: dict[str, Callable[..., object]] = {
    "api.read": _read,
    "api.load": _load,
    "api.item": _item,
    "api.build": _build,
}


def prime(base: Base) -> None:
    """Run and read everything once here, so that children find all modules imported and all contents read."""
    _ = base.frames, base.table_bytes, base.infos, base.collection, base.lanes, base.arrays
    source = data_kinds.source(base.root)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for task in ("boxes", "occupancy", "lanes"):
            main(["score", str(base.answers), "--tasks", task, *source])
        main(["visualize", *source, "--max", "1", "--out", str(base.folder / "pictures")])
        _build(str(base.config))
        _load(str(base.config), str(base.weights))
        _item(str(base.config), str(base.root), "0")
        _read("argoverse2", str(base.log))
        main(["export-weights", str(base.checkpoint), str(base.folder / "again.safetensors")])
        arguments = ["train", str(base.config), "--work-dir", str(base.folder / "primed")]
        main([*arguments, "--set", "train_cfg.max_iters=1"])
    shutil.rmtree(base.folder / "primed", ignore_errors=True)
    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)  # a fork copies the page table: less memory here, quicker children


def run_some(
    kind: str, seed: int, indices: Sequence[int], base: Base, scratch: Path
) -> Iterator[tuple[int, Input, Outcome]]:
    """Make and run inputs of a kind."""

    def make(index: int, folder: Path, canary: Path) -> Input:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy and zipfile, about what is damaged here
            return KINDS[kind](random.Random(f"{seed} {kind} {index}"), base, folder, str(canary))

    return run_all(indices, make, scratch, FUNCTIONS)


def run_kind(kind: str, seed: int, count: int, base: Base, work: Path) -> Iterator[dict[str, Any]]:
    """Rows of all inputs 0 .. count - 1 of a kind, those of an earlier run first."""
    notes = work / f"inputs-{kind}.jsonl"
    rows = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    yield from rows[:count]
    kept = sum(row["outcome"] in FAULTS for row in rows)
    with notes.open("a") as file:
        for index, job, outcome in run_some(kind, seed, range(len(rows), count), base, work / "scratch"):
            row = {
                "kind": kind,
                "index": index,
                "outcome": outcome.kind,
                "seconds": round(outcome.seconds, 3),
                "peak_mb": round(outcome.peak_mb),
                "verb": job.arguments[0],
                "late": outcome.kind == "refused" and " samples  eta" in outcome.err,
            }
            if outcome.kind in FAULTS:
                row |= {"place": outcome.place, "change": job.change[:300]}
                if kept < KEPT_PER_KIND:
                    _keep(job, outcome, work / "faults" / f"{kind}-{index}")
                kept += 1
            file.write(json.dumps(row) + "\n")
            file.flush()
            yield row


def _keep(job: Input, outcome: Outcome, folder: Path) -> None:
    """The log and what is left of the damaged files (a fault is run alone at last, so they are its own)."""
    folder.mkdir(parents=True, exist_ok=True)
    log = f"drivestack {' '.join(job.arguments)}\n{job.change}\n{outcome.kind}, exit {outcome.code}\n\n{outcome.err}"
    (folder / "log.txt").write_text(log, errors="replace")
    for path in job.files:
        if path.is_file() and path.stat().st_size < KEPT_BYTES:
            shutil.copy(path, folder / path.name)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of a kind's outcomes, the largest time and memory, faults by place with one example each.

    late: refused after predictions had begun, which is right for images alone: they are opened one by one.
    """
    counts = Counter(row["outcome"] for row in rows)
    places: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["outcome"] in FAULTS:
            entry = places.setdefault(f"{row['outcome']}: {row['place']}", {"count": 0, "example": row["index"]})
            entry["count"] += 1
    return {
        "inputs": len(rows),
        "refused": counts["refused"],
        "late": sum(row["late"] for row in rows),
        "invalid": counts["invalid"],
        "success": counts["success"],
        **{fault: counts[fault] for fault in FAULTS},
        "longest_s": max((row["seconds"] for row in rows), default=0.0),
        "largest_mb": max((row["peak_mb"] for row in rows), default=0),
        "places": dict(sorted(places.items(), key=lambda item: -item[1]["count"])),
    }


def table(kinds: dict[str, dict[str, Any]]) -> list[str]:
    """One line per kind."""
    columns = ("inputs", "refused", "late", "invalid", "success", *FAULTS, "longest_s", "largest_mb")
    lines = [["kind", *columns]]
    lines += [[kind, *(f"{found[column]:g}" for column in columns)] for kind, found in kinds.items()]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
            for line in lines]  # fmt: skip
