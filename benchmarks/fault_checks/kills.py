"""Runs that are killed at random moments, and the same command again.

SIGKILL: moments are uniform over an undisturbed run; verbs run in forks of this program, without the seconds of
imports. SIGTERM and SIGINT: new interpreters, with loader and synthesis processes, as from a terminal or a scheduler.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

from .base import Base
from .runs import Run, Verb, content, files_of, half_written, is_temporary, verbs

VERBS = ("synthesize", "train", "predict", "evaluate", "export-weights")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXITS = {signal.SIGTERM: (143,), signal.SIGINT: (130, -2)}
"""-2 is 130 in a shell: CPython ends itself by SIGINT where that came during ``exec``, handled or not."""
FAULTS = ("half-written", "not restarted", "not equal", "temporary left", "bad ending", "alive after")
START_S = 1.0
"""A new interpreter is at work after this time, on an idle machine."""


def run_kills(base: Base, seed: int, count: int, work: Path) -> dict[str, Any]:
    """Counts by signal and verb. count: of SIGKILL in all; each other signal meets each verb count // 50 times."""
    notes, rows = work / "kills.jsonl", []
    if notes.exists():
        rows = [json.loads(line) for line in notes.read_text().splitlines()]
    jobs = [(signal.SIGKILL, VERBS[i % len(VERBS)], i) for i in range(count)]
    jobs += [(number, verb, i) for number in SIGNALS for verb in VERBS for i in range(max(count // 50, 1))]
    undisturbed: dict[tuple[str, bool], tuple[float, dict[str, Any]]] = {}
    with notes.open("a") as file:
        for number, name, index in jobs[len(rows) :]:
            fresh = number != signal.SIGKILL
            verb = _with_processes(verbs(base)[name]) if fresh else verbs(base)[name]
            scratch = work / "kills"
            if (name, fresh) not in undisturbed:
                undisturbed[name, fresh] = _undisturbed(verb, scratch, fresh)
            draw = random.Random(f"{seed} {number} {name} {index}").random()
            row = _one(verb, number, draw, *undisturbed[name, fresh], scratch, fresh)
            row = {"signal": number.name, "verb": name, **row}
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            if bad := [f"{fault}: {row[fault]}" for fault in FAULTS if row[fault]]:
                print(f"  {number.name} {name} at {row['moment_s']} s: {'; '.join(bad)}"[:600], flush=True)
    shutil.rmtree(work / "kills", ignore_errors=True)
    return _counts(rows)


def _with_processes(verb: Verb) -> Verb:
    words = list(verb.arguments)
    if "--workers" in words:
        words[words.index("--workers") + 1] = "2"
    elif words[0] in ("predict", "evaluate"):
        words += ["--workers", "1"]
    return Verb(words, verb.out, verb.again)


def _undisturbed(verb: Verb, scratch: Path, fresh: bool) -> tuple[float, dict[str, Any]]:
    """Seconds, and what is left in the end."""
    shutil.rmtree(scratch, ignore_errors=True)
    run = Run(verb.command(scratch / verb.out), scratch, fresh)
    run.wait()
    if run.code != 0:
        raise SystemExit(f"drivestack {' '.join(run.arguments)} fails undisturbed: {run.err}")
    return run.seconds, content(scratch / verb.out)


def _one(
    verb: Verb, number: signal.Signals, draw: float, seconds: float, right: dict[str, Any], scratch: Path, fresh: bool
) -> dict[str, Any]:
    shutil.rmtree(scratch, ignore_errors=True)
    place = scratch / verb.out
    moment_s = START_S + draw * max(seconds - START_S, 0.0) if fresh else draw * seconds
    run = Run(verb.command(place), scratch, fresh)
    finished = run.wait(moment_s)
    if not finished:
        run.send(number, group=number == signal.SIGINT)  # a terminal's Ctrl-C reaches all its processes
        run.wait()
    alive = run.left_alive() if fresh else []
    row: dict[str, Any] = {"moment_s": round(moment_s, 2), "finished": finished, "exit": run.code}
    row["half-written"] = half_written(scratch)
    row["alive after"] = len(alive)
    lines = [line for line in run.err.splitlines() if line and "eta" not in line and "loss" not in line]
    right_exit = not fresh or finished or run.code == 0 or (run.code in EXITS[number] and bool(lines))
    wrong = not right_exit or (fresh and ("Traceback" in run.err or len(lines) > 2))
    row["bad ending"] = f"exit {run.code}: {' | '.join(lines)[-300:]}" if wrong else ""
    again = Run(verb.command(place, again=True), scratch)
    again.wait()
    row["not restarted"] = "" if again.code == 0 else f"exit {again.code}: {again.err[-300:]}"
    found = content(place) if place.exists() else {}
    # a resumed run may have kept checkpoints of other iterations; the last one counts
    names = [name for name in right if name in found] if "--resume" in verb.again else list(right)
    same = bool(names) and all(found.get(name) == right[name] for name in names) and sorted(right)[-1] in found
    row["not equal"] = "" if same else ", ".join(n for n in right if found.get(n) != right[n])[:300] or "missing"
    row["temporary left"] = [str(p.relative_to(scratch)) for p in files_of(scratch) if is_temporary(p, scratch)][:5]
    return row


def _counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in rows:
        entry = found.setdefault(
            f"{row['signal']} {row['verb']}", {"runs": 0, "finished first": 0} | dict.fromkeys(FAULTS, 0)
        )
        entry["runs"] += 1
        entry["finished first"] += row["finished"]
        for fault in FAULTS:
            entry[fault] += bool(row[fault])
    return found


def table(found: dict[str, Any]) -> list[str]:
    """One line per signal and verb."""
    columns = ("runs", "finished first", *FAULTS)
    lines = [f"{'signal and verb':24}" + "".join(f"{column:>16}" for column in columns)]
    return lines + [f"{name:24}" + "".join(f"{row[column]:16}" for column in columns) for name, row in found.items()]
