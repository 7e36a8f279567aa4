"""Inputs in a child process, and a judgement of how each ended.

A child is a fork of this program, which has imported everything. It handles some inputs in turn, as forks of so large a
process take longer than most inputs, and reports each over a pipe; when one kills it, the next goes to a new child. An
input that looks like a fault is run again alone in a child of its own, and that run counts. Needs Linux.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from drivestack.cli.main import main
from drivestack.core.errors import DrivestackError

MEMORY_LIMIT_MB = 2048
"""Above what the child has at its start; more is a fault."""
ADDRESS_LIMIT_MB = 6144
"""Above what the child has at its start; there the kernel refuses, for the sake of the machine."""
CPU_LIMIT_S = 5
"""Above what the same command takes for undamaged files; more is a hang."""
WALL_LIMIT_S = 60
"""On a busy machine a process may get a tenth of a core."""
INPUTS_PER_CHILD = 40

FAULTS = ("traceback", "unexpected", "many lines", "exit code", "crash", "hang", "memory", "payload", "escaped")
"""Outcomes that must not be; the others are refused (exit 2, one line), invalid (exit 1) and success."""
TRACEBACK_EXIT = 70
_NO_MEMORY = re.compile(r"MemoryError|unable to allocate|can't allocate|cannot allocate|out of memory", re.IGNORECASE)
_PROGRESS = re.compile(r"\d+/\d+ .*\beta\b|\d+/\d+  loss |^warning: |^\s*$")
"""Lines on standard error that are no message about the end."""


@dataclass
class Input:
    """A command whose input was damaged."""

    arguments: list[str]
    """Of the command line, or ``["api.read", ...]`` and the like (inputs.FUNCTIONS)."""
    change: str
    """What was damaged how."""
    files: list[Path] = field(default_factory=list)
    """The damaged ones, to keep."""
    usual_s: float = 1.0
    """CPU seconds of the command with undamaged files."""
    big: bool = False
    """The change itself may ask for any amount of memory (a config's sizes): a refusal of memory is right."""


@dataclass
class Outcome:
    """How it ended."""

    kind: str
    code: int
    seconds: float
    """CPU time."""
    peak_mb: float
    """Above what the child had before."""
    out: str
    err: str

    @property
    def place(self) -> str:
        """Where the fault is: the innermost line of ours in a traceback with the exception's name, else the message."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        own = re.findall(r'File "[^"]*/drivestack/([^"]+)", line (\d+), in (\S+)', self.err)
        own = [place for place in own if not place[0].startswith(("benchmarks/", "cli/main.py", ".venv/"))]
        last = lines[-1][:160] if lines else ""
        if self.kind == "traceback" and own:
            file, line, function = own[-1]
            return f"{file}:{line} {function}: {last.partition(':')[0]}"
        return re.sub(r"(?<![\w.])/\S+", "PATH", last)[:120]


Functions = dict[str, Callable[..., object]]
MakeInput = Callable[[int, Path, Path], Input]
"""(index, folder, canary) -> input."""


def run_all(
    indices: Sequence[int], make: MakeInput, scratch: Path, functions: Functions
) -> Iterator[tuple[int, Input, Outcome]]:
    """Outcomes in order. scratch: a folder of this run alone, emptied for every input."""
    pending = list(indices)
    while pending:
        some = pending[:INPUTS_PER_CHILD]
        for index, job, outcome in _run_some(some, make, scratch, functions):
            if outcome.kind in FAULTS and len(some) > 1:
                ((_, job, outcome),) = _run_some([index], make, scratch, functions)
            pending.remove(index)
            yield index, job, outcome


def _run_some(
    indices: Sequence[int], make: MakeInput, scratch: Path, functions: Functions
) -> list[tuple[int, Input, Outcome]]:
    """Of one child; where an input kills it, that one is the last."""
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _work(indices, make, scratch, functions, write_end)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        lines = [json.loads(line) for line in pipe if line.endswith("\n")]
    _, status, usage = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # loader workers that outlived it
    found, started = [], None
    for line in lines:
        if "start" in line:
            started = line
            continue
        assert started is not None
        found.append((started["start"], _input(started), Outcome(**line)))
        started = None
    if started is not None:
        job, code = _input(started), os.waitstatus_to_exitcode(status)
        out, err = (_text(scratch / name) for name in ("stdout.txt", "stderr.txt"))
        kind = judge(job, code if code else TRACEBACK_EXIT, err, 0.0)
        found.append((started["start"], job, Outcome(kind, code, usage.ru_utime + usage.ru_stime, 0.0, out, err)))
    elif not found:
        raise SystemExit(f"no input could be made: {_text(scratch / 'stderr.txt')}")
    return found


def _input(line: dict) -> Input:
    return Input(**{**line["input"], "files": [Path(name) for name in line["input"]["files"]]})


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def judge(job: Input, code: int, err: str, peak_mb: float) -> str:
    """The outcome's kind, of how the process ended and what it said."""
    if code in (-signal.SIGXCPU, -signal.SIGALRM):
        return "hang"
    if code < 0:
        return "crash"
    if peak_mb > MEMORY_LIMIT_MB:
        return "memory"
    if code == TRACEBACK_EXIT or "Traceback (most recent call last)" in err:
        return "traceback"
    lines = [line for line in err.splitlines() if not _PROGRESS.search(line)]
    if lines and lines[-1].startswith("error: unexpected"):
        return "unexpected"
    if _NO_MEMORY.search(err) and not job.big:
        return "memory"
    if code == 0:
        return "success"
    if code == 1 and job.arguments[0] == "check-submission":
        return "invalid"
    if code != 2:
        return "exit code"
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    return "refused" if errors == [len(lines) - 1] else "many lines"


# ------------------------------------------------------------------------------------------------- within the child


def _work(indices: Sequence[int], make: MakeInput, scratch: Path, functions: Functions, write_end: int) -> None:
    """Handle inputs; never returns."""
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for index in indices:
            os.chdir("/")
            shutil.rmtree(scratch, ignore_errors=True)
            folder = scratch / "a" / "b" / "c" / "d"  # deep, so that paths out of it are seen
            folder.mkdir(parents=True)
            _send_output_to(scratch)
            canary = scratch / "canary"
            job = make(index, folder, canary)
            plain = {**asdict(job), "files": list(map(str, job.files))}
            _say(write_end, {"start": index, "input": plain})
            outcome = _run(job, folder, functions, canary, scratch)
            _say(write_end, asdict(outcome))
            if outcome.peak_mb > 256:  # freed memory that stays would hide what the next input takes
                break
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(TRACEBACK_EXIT)


def _say(write_end: int, line: dict) -> None:
    data = (json.dumps(line) + "\n").encode()
    while data:
        data = data[os.write(write_end, data) :]


def _send_output_to(scratch: Path) -> None:
    for stream, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        handle = os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, stream)
        os.close(handle)


def _run(job: Input, folder: Path, functions: Functions, canary: Path, scratch: Path) -> Outcome:
    expected = {path.name for path in scratch.iterdir()}
    os.chdir(folder)
    start_mb, start_s = _status_mb("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    _limit(start_s + CPU_LIMIT_S + 2 * job.usual_s, _status_mb("VmSize") + ADDRESS_LIMIT_MB, WALL_LIMIT_S)
    try:
        code = _call(job.arguments, functions)
    except BaseException:
        traceback.print_exc()
        code = TRACEBACK_EXIT
    _limit(None, None, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    seconds, peak_mb = time.process_time() - start_s, max(_status_mb("VmHWM") - start_mb, 0.0)
    out, err = (_text(scratch / name) for name in ("stdout.txt", "stderr.txt"))
    kind = judge(job, code, err, peak_mb)
    escaped = sorted({path.name for path in scratch.iterdir()} - expected - {canary.name})
    if canary.exists():
        kind = "payload"
    elif escaped:
        kind, err = "escaped", f"{err}\nwrote {', '.join(escaped)} outside"
    return Outcome(kind, code, seconds, peak_mb, out[-10_000:], err[-20_000:])


def _limit(cpu_s: float | None, address_mb: float | None, wall_s: int) -> None:
    """Soft limits, None for none."""
    signal.alarm(wall_s)
    for which, value in (
        (resource.RLIMIT_CPU, None if cpu_s is None else int(cpu_s + 0.999)),
        (resource.RLIMIT_AS, None if address_mb is None else int(address_mb * 2**20)),
    ):
        resource.setrlimit(which, (resource.RLIM_INFINITY if value is None else value, resource.RLIM_INFINITY))


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _call(arguments: Sequence[str], functions: Functions) -> int:
    name, *rest = arguments
    try:
        if name not in functions:
            return main(arguments)
        functions[name](*rest)
    except SystemExit as end:  # argparse
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except (DrivestackError, OSError) as error:  # as the command line; some have several lines in a program
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
