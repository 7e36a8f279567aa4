"""Fault figures: damaged inputs, killed runs, and folders that cannot be written; what must be zero, is counted.

    python benchmarks/faults.py --out faults.json            all parts
    python benchmarks/faults.py --parts inputs --kinds tables boxes --count 200
    python benchmarks/faults.py --long                       hours: ten times as many of all
    python benchmarks/faults.py --replay infos 17            one input again, with all that it printed

Inputs: for every reader and file kind, files with one random change each (bytes, structure, arrays, archives, attacks)
go through the verbs and the API. Right are: success, a list of broken rules, and one line with exit code 2. Faults are
tracebacks, `unexpected` errors, several lines, other exit codes, crashes, more than 5 s of CPU time beyond the
usual, more than 2 GB, code that ran out of a file, files that appeared outside the output folder.
Kills: SIGKILL, SIGTERM and SIGINT at random moments of every verb that writes, then the same command again.
Folders: full, read-only and occupied ones, a file in a folder's place, two runs into one folder.

Everything follows from --seed; results lie in --work, and a run that was stopped goes on where it was. They are made
anew when the code has changed. Needs Linux; one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: forked children must find no threads

import torch
from fault_checks import folders, kills
from fault_checks.base import make_base
from fault_checks.child import FAULTS
from fault_checks.inputs import KINDS, prime, run_kind, run_some, summary, table

import drivestack

PARTS = ("inputs", "kills", "folders")


def code_state() -> str:
    """A hash of the package's own files and of those that make and judge the inputs."""
    root, aside = Path(drivestack.__file__).parent, ("tests", "docs", "benchmarks", ".venv", "build", "runs")
    parts = [entry for entry in root.iterdir() if entry.name not in aside] + [Path(__file__).parent / "fault_checks"]
    files = [path for part in parts for path in ([part] if part.is_file() else part.rglob("*.py"))]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.suffix == ".py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def open_work(work: Path, seed: int) -> None:
    """Keep an earlier run's results if they are of this code and seed."""
    state, note = f"{code_state()} seed {seed}", work / "state.txt"
    if note.exists() and note.read_text() != state:
        print("results of other code or another seed are removed", flush=True)
        for path in [*work.glob("*.jsonl"), work / "faults", work / "base"]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(state)


def run_inputs(args: argparse.Namespace) -> dict[str, Any]:
    """Part one, by kind."""
    base = make_base(args.work / "base")
    prime(base)
    found: dict[str, Any] = {}
    for kind in args.kinds:
        rows, began = [], time.monotonic()
        for row in run_kind(kind, args.seed, args.count, base, args.work):
            rows.append(row)
            if len(rows) % 200 == 0 and sys.stderr.isatty():
                print(f"\r{kind} {len(rows)}/{args.count}", end="", file=sys.stderr, flush=True)
        found[kind] = summary(rows)
        bad = sum(found[kind][fault] for fault in FAULTS)
        print(f"{kind}: {len(rows)} inputs, {bad} faults, {time.monotonic() - began:.0f} s", flush=True)
        for place, entry in found[kind]["places"].items():
            print(f"  {entry['count']:5d}  {place}   (--replay {kind} {entry['example']})", flush=True)
    shutil.rmtree(args.work / "scratch", ignore_errors=True)
    return found


def replay(args: argparse.Namespace) -> None:
    """One input again."""
    kind, index = args.replay[0], int(args.replay[1])
    base = make_base(args.work / "base")
    prime(base)
    ((_, job, outcome),) = run_some(kind, args.seed, [index], base, args.work / "replay")
    print(f"drivestack {' '.join(job.arguments)}\n{job.change}\n{outcome.out}{outcome.err}")
    print(f"{outcome.kind}: exit {outcome.code}, {outcome.seconds:.2f} s CPU, {outcome.peak_mb:.0f} MB more")
    print(f"files in {args.work / 'replay'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="of damaged inputs")
    parser.add_argument("--count", type=int, default=2000, metavar="N", help="inputs per kind (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="in all (default: %(default)s)")
    parser.add_argument("--long", action="store_true", help="ten times as many inputs and kills")
    parser.add_argument(
        "--quick", action="store_true", help="five inputs per kind and five kills: does the program run"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/faults"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--replay", nargs=2, metavar=("KIND", "INDEX"), help="run one input again and show it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work = args.work.absolute()
    args.count, args.kills = (5, 5) if args.quick else (args.count, args.kills)
    if args.long:
        args.count, args.kills = 10 * args.count, 10 * args.kills
    open_work(args.work, args.seed)
    if args.replay:
        replay(args)
        return
    began, figures = time.monotonic(), {"seed": args.seed, "code": code_state()}
    if "inputs" in args.parts:
        figures["inputs"] = run_inputs(args)
        print("\n" + "\n".join(table(figures["inputs"])) + "\n", flush=True)
    if "kills" in args.parts:
        figures["kills"] = kills.run_kills(make_base(args.work / "base"), args.seed, args.kills, args.work)
        print("\n" + "\n".join(kills.table(figures["kills"])) + "\n", flush=True)
    if "folders" in args.parts:
        figures["folders"] = folders.run_folders(make_base(args.work / "base"), args.work)
        print("\n" + "\n".join(folders.table(figures["folders"])) + "\n", flush=True)
    figures["seconds"] = round(time.monotonic() - began)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
