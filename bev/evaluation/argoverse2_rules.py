"""The rules of an Argoverse 2 detection submission, and a checker that reports each broken one with its place and fix.

Rules: SUBMISSION_FORMAT.md of argoverse/av2-api, and what its evaluation takes for granted. A file may have millions of
rows: each rule is held against whole columns, and reported once, with its first row and how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.argoverse2 import EVALUATED_CLASSES, sweep_time_ns, sweep_token
from ...core.errors import DataError
from ...core.feather import FeatherTable
from ...core.file_kinds import kind_of_file
from ...core.frames import Frame
from ...core.ids import ids_apart
from .argoverse2_metrics import MAX_PREDICTIONS, MAX_RANGE_M
from .argoverse2_submission import CENTRE, QUATERNION, SIZE, WRITE_AGAIN, read_rows
from .nuscenes_rules import MAX_NUMBER, Problem

NUMBERS = (*CENTRE, *SIZE, *QUATERNION, "score")
TEXTS = ("log_id", "category")


def sweeps_of(frames: Iterable[Frame]) -> dict[str, set[int]]:
    """Times (ns) of the sweeps of each log. Raises DataError for frames that are no sweeps of Argoverse 2."""
    sweeps: dict[str, set[int]] = {}
    for frame in frames:
        sweeps.setdefault(frame.scene_token, set()).add(sweep_time_ns(frame))
    return sweeps


def check_submission(
    path: str | os.PathLike[str],
    sweeps: Mapping[str, Collection[int]] | None = None,
    class_names: Sequence[str] = EVALUATED_CLASSES,
    every_sweep: bool = True,
    answered: Collection[str] = (),
) -> list[Problem]:
    """Every rule that the file breaks; an empty list means valid.

    sweeps: times (ns) by log id of the whole split (sweeps_of); without them foreign and missing sweeps are not
    reported. every_sweep: each sweep needs a box, for a file cannot tell a sweep where nothing was found from one that
    was forgotten; False: each log does. answered: tokens of sweeps that are known to be predicted, also where they have
    no box; a log with one of them needs none.
    Raises DataError if the file does not exist, ConfigError without pyarrow.
    """
    if not Path(path).is_file():
        raise DataError(f"cannot read submission {path}: no such file; check the path")
    try:
        table = FeatherTable(path, WRITE_AGAIN)
    except DataError:
        kind = kind_of_file(path)
        what = f" but {kind}" if kind and "Feather" not in kind else ", or damaged"
        return [Problem(f"the file is no Feather file{what}", "give the file that predict or pandas' to_feather wrote")]
    problems = _check_columns(table)
    if problems:
        return problems
    if not len(table) and not answered:
        return [Problem("the file has no rows", "predict on every sweep of the split")]
    check = _Rows(table)
    check.numbers()
    check.classes(class_names)
    if sweeps is not None:
        known = set(answered)
        done = {log for log, times in sweeps.items() if any(sweep_token(log, time) in known for time in times)}
        check.sweeps(sweeps, every_sweep, done)
    return check.problems


def oddities(path: str | os.PathLike[str]) -> list[str]:
    """What breaks no rule and is hardly meant: rows that cannot count, scores that say nothing."""
    rows = read_rows(path)
    _, sweep = rows.sweeps()
    _, counts = np.unique(sweep * len(rows.category_names) + rows.category, return_counts=True)
    found = []
    if (more := counts[counts > MAX_PREDICTIONS]).size:
        surplus = int((more - MAX_PREDICTIONS).sum())
        found.append(
            f"{surplus} boxes are beyond the {MAX_PREDICTIONS} best of their sweep and class, in {more.size} of these, "
            "and are not looked at"
        )
    far = np.linalg.norm(rows.boxes[:, :3], axis=1) >= MAX_RANGE_M
    if far.any():
        found.append(
            f"{int(far.sum())} of {len(far)} boxes are {MAX_RANGE_M:g} m or more from the car and do not count"
        )
    odd = (rows.counts < 0) | (rows.counts > 1)
    if odd.any():
        found.append(f"{int(odd.sum())} of {len(odd)} scores are not from 0 to 1, such as {rows.counts[odd][0]:g}")
    if len(far) > 1 and np.ptp(rows.counts) == 0:
        found.append(f"all scores are {rows.counts[0]:g}: boxes cannot be ranked")
    return found


def _check_columns(table: FeatherTable) -> list[Problem]:
    problems = []
    for name in (*NUMBERS, "timestamp_ns", *TEXTS):
        if name not in table:
            problems.append(Problem("is missing, or there twice", "give all columns of the format once", field=name))
            continue
        try:
            read = table.texts if name in TEXTS else table.whole_numbers if name == "timestamp_ns" else table.numbers
            read(name)
        except DataError as error:
            what = str(error).partition(" holds ")[2].rpartition("; ")[0]
            problems.append(Problem(f"holds {what}", WRITE_AGAIN, field=name))
    return problems


class _Rows:
    """A file with all its columns, rule after rule."""

    def __init__(self, table: FeatherTable) -> None:
        self.table = table
        self.logs, self.log = table.texts("log_id")
        self.time_ns = table.whole_numbers("timestamp_ns")
        self.problems: list[Problem] = []

    def report(self, bad: NDArray[np.bool_], field: str, message: str, fix: str) -> None:
        """message: of the first of the rows [n] that are bad."""
        rows = np.flatnonzero(bad)
        if not len(rows):
            return
        row = int(rows[0])
        others = f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else ""
        sweep = f"{self.logs[self.log[row]][:100]} {self.time_ns[row]}"
        self.problems.append(Problem(message + others, fix, sweep, row, field))

    def numbers(self) -> None:
        values = {name: self.table.numbers(name) for name in NUMBERS}
        for name, column in values.items():
            self.report(~np.isfinite(column), name, "is NaN or infinite", "drop the box or fix the model")
        finite = {name: np.nan_to_num(column, posinf=0.0, neginf=0.0) for name, column in values.items()}
        for name in (*CENTRE, *SIZE):
            self.report(np.abs(finite[name]) > MAX_NUMBER, name, "is beyond any map", "give metres, or fix the model")
        for name in SIZE:
            self.report(values[name] <= 0, name, "is not above 0", "give metres")
        length = np.linalg.norm(np.stack([finite[name] for name in QUATERNION], 1), axis=1)
        known = np.isfinite(np.stack([values[name] for name in QUATERNION], 1)).all(1)
        self.report(
            known & (np.abs(length - 1) > 1e-3), "qw qx qy qz", "is no quaternion of length 1", "normalise (w, x, y, z)"
        )
        distance = np.linalg.norm(np.stack([finite[name] for name in CENTRE], 1), axis=1)
        if len(distance) and distance.min() >= MAX_RANGE_M:
            fix = "give boxes in the EGO frame of their sweep, not in the city's"
            self.problems.append(Problem(f"no box lies within {MAX_RANGE_M:g} m of the car", fix))

    def classes(self, class_names: Sequence[str]) -> None:
        names, category = self.table.texts("category")
        for number, name in enumerate(names):
            if name not in class_names:
                fix = f"use one of {', '.join(class_names)}"
                self.report(category == number, "category", f"is {name[:60]!r}", fix)

    def sweeps(self, sweeps: Mapping[str, Collection[int]], every_sweep: bool, done: Collection[str]) -> None:
        """done: logs that need no box."""
        if apart := ids_apart(self.logs, list(sweeps), "logs"):
            message, _, fix = apart.rpartition("; ")
            self.problems.append(Problem(message, fix))
            return
        for number, name in enumerate(self.logs):
            own = self.log == number
            if name not in sweeps:
                self.report(own, "log_id", "does not belong to the split", "remove it, or name the right split")
                continue
            known = np.array(sorted(sweeps[name]), np.int64)
            strange = own & ~np.isin(self.time_ns, known)
            self.report(strange, "timestamp_ns", "is no sweep of its log", "give the sweep's time in nanoseconds")
            missing = known[~np.isin(known, self.time_ns[own])]
            if len(missing) and every_sweep and not strange[own].all():
                self._missing(f"{name} {missing[0]}", f"{len(missing)} of {len(known)} sweeps of this log have no box")
        for name in sorted(sweeps.keys() - set(self.logs) - set(done)):
            self._missing(name, "this log has no box")

    def _missing(self, place: str, message: str) -> None:
        fix = "predict on every sweep of the split; one where nothing was found may have a box of score 0"
        self.problems.append(Problem(message, fix, place))
