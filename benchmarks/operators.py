"""Times our operators against their peers, all in one process and one run.

    python benchmarks/operators.py                            every shape, about 10 minutes on 2 cores
    python benchmarks/operators.py --quick                    the short table, one minute
    python benchmarks/operators.py --only "stage 1" --dtype bfloat16 --threads 1
    python benchmarks/operators.py --only cross_attention --locations uniform --json rows.json

Peers: the PyTorch formulations of the original projects (written here), torchvision's deform_conv2d where it computes
the same, mmcv and deformops where installed; on demand a Hugging Face kernel (downloaded), our float64-exact reference
and torch.compile of it.

Protocol: every contender is first checked against the reference in float64 (values and gradients, on a part of the
queries and one head or group); one that is wrong is listed as failing and not timed. Then contenders take turns in
rotated order. A turn of a quick one is an untimed call (inputs are warm in a network too), then calls for 3 ms, of
which the mean counts. Each gets its own conversions charged. Medians and minima of the turns; ratio = peer / ours. "%
copy": every input and result once, over our median, as a share of the bandwidth that copying 256 MB reaches here; in
the caches, or where few queries read little of a large map, it exceeds 100. Trust the ratios, not the milliseconds, and
neither where the machine has other work. With GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in front of the command all
contenders get huge pages.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from cases import Call, Case, Law, all_cases, exact, ours
from peers import DEFAULT_PEERS, PEERS
from tables import TITLE, Row, as_json, as_markdown, line
from torch import Tensor

from drivestack.ops import backend_report

# Mean difference over mean magnitude, worst tensor: result, gradients. Gradients to locations jump at pixel borders,
# where float32 may round to the other side, so that a largest difference would say nothing.
TOLERANCE = {
    torch.float64: (1e-9, 1e-6),
    torch.float32: (1e-4, 2e-3),
    torch.bfloat16: (1e-2, 3e-2),
    torch.float16: (2e-3, 1e-2),
}
PASSES = ("forward", "backward", "forward+backward")
TURN_MS = 3.0
WARM_UP_MS = 50.0


@dataclass
class Contender:
    name: str
    function: Callable[..., Tensor]
    errors: tuple[float, float] = (0.0, 0.0)
    """Of the result, of the worst tensor."""
    estimate_ms: dict[bool, float] = field(default_factory=dict)
    """A call without and with backward."""
    times: dict[str, list[float]] = field(default_factory=dict)


class Clock:
    """Moments in time on a device, read after the work is done."""

    def __init__(self, device: str) -> None:
        self.cuda = device != "cpu"

    def mark(self) -> float | torch.cuda.Event:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: float | torch.cuda.Event, last: float | torch.cuda.Event) -> float:
        """Milliseconds."""
        if not self.cuda:
            return (last - first) * 1e3
        last.synchronize()
        return first.elapsed_time(last)


def run(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], gradient: Tensor, clock: Clock) -> list:
    """One call and its backward: the moments before, between and after, the result and the gradients."""
    start = clock.mark()
    out = function(*tensors)
    middle = clock.mark()
    gradients = torch.autograd.grad(out, tensors, gradient)
    return [start, middle, clock.mark(), out.detach(), gradients]


def error(found: Tensor, expected: Tensor) -> float:
    scale = expected.abs().mean().clamp(min=1e-12)
    return float((found.double() - expected).abs().mean() / scale)


class Comparison:
    """All contenders at one case."""

    def __init__(self, case: Case, call: Call, device: str) -> None:
        self.case, self.device, self.clock = case, device, Clock(device)
        (self.tensors, self.fixed) = call
        self.leaves = tuple(t.detach().requires_grad_() for t in self.tensors)
        self.contenders: list[Contender] = []
        with torch.no_grad():
            out = ours(case.kind, *self.tensors, **self.fixed)
        self.part_gradient = case.part_gradient(out)
        self.gradient = torch.ones_like(out)
        whole = case.kind.endswith("_whole")
        part = (t.detach() if whole else t.double() for t in case.part(self.tensors))
        part = tuple(t.requires_grad_() for t in part)
        fixed = {
            name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
            for name, x in case.part_fixed(self.fixed).items()
        }
        part_of_gradient = case.part_out(self.part_gradient).double()
        self.expected, self.expected_gradients = run(
            partial(exact, case.kind, **fixed), part, part_of_gradient, self.clock
        )[3:]

    def bytes(self, label: str) -> int:
        """That have to move: each input and each result once."""
        inputs = sum(t.nbytes for t in self.tensors)
        constants = sum(t.nbytes for t in self.fixed.values() if isinstance(t, Tensor))
        forward, backward = inputs + constants + self.gradient.nbytes, 2 * inputs + constants + self.gradient.nbytes
        return {"forward": forward, "backward": backward}.get(label, forward + backward)

    def enter(self, name: str, function: Callable[..., Tensor]) -> str | None:
        """Checks a contender, twice where it is quick (also warms it up); says what is wrong with it."""
        contender = Contender(name, partial(function, **self.fixed))
        try:
            for _ in range(2):
                moments = run(contender.function, self.leaves, self.part_gradient, self.clock)
                forward, total = (self.clock.between(moments[0], moments[i]) for i in (1, 2))
                contender.estimate_ms = {False: forward, True: total}
                if total > 500:
                    break
        except Exception as problem:  # a peer may fail in any way, the others go on
            return f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
        out_error = error(self.case.part_out(moments[3]), self.expected)
        gradients = zip(self.case.part(moments[4]), self.expected_gradients)
        contender.errors = (out_error, max(out_error, *(error(f, e) for f, e in gradients)))
        allowed = TOLERANCE[self.tensors[0].dtype]
        if not (contender.errors[0] <= allowed[0] and contender.errors[1] <= allowed[1]):
            return "wrong: off by {:.1e}, gradients {:.1e} (relative)".format(*contender.errors)
        self.contenders.append(contender)
        return None

    def call(self, contender: Contender, backward: bool) -> list:
        """The moments of one call."""
        if backward:
            return run(contender.function, self.leaves, self.gradient, self.clock)[:3]
        with torch.no_grad():
            start = self.clock.mark()
            contender.function(*self.tensors)
            return [start, self.clock.mark()]

    def turn(self, contender: Contender, backward: bool) -> None:
        """An untimed call first, where it is quick: so that no contender pays for caches and heap left by another."""
        estimate = contender.estimate_ms[backward]
        repeats = max(1, min(100, round(TURN_MS / max(estimate, 1e-3))))
        if estimate < WARM_UP_MS:
            self.call(contender, backward)
        moments = [self.call(contender, backward) for _ in range(repeats)]
        between = lambda i, j: sum(self.clock.between(m[i], m[j]) for m in moments) / repeats
        labels = {"backward": (1, 2), "forward+backward": (0, 2)} if backward else {"forward": (0, 1)}
        for label, (i, j) in labels.items():
            contender.times.setdefault(label, []).append(between(i, j))

    def measure(self, backward: bool, rounds: int, seconds: float) -> None:
        """Rounds in rotated order. Slow contenders skip some: each gets its share of the seconds, and 3 turns."""
        share = 1e3 * seconds / len(self.contenders)
        every = []
        for contender in self.contenders:
            turn_ms = max(TURN_MS, contender.estimate_ms[backward])
            every.append(rounds / max(min(3, rounds), min(rounds, int(share / turn_ms))))
        for round_ in range(rounds):
            due = [c for c, n in zip(self.contenders, every) if int(round_ / n) != int((round_ - 1) / n) or round_ == 0]
            for i in range(len(due)):
                self.turn(due[(i + round_) % len(due)], backward)


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read and written, of copying 256 MB: the best of 10."""
    source = torch.ones(64 << 20, device=device)
    target = torch.empty_like(source)
    clock, best = Clock(device), float("inf")
    for _ in range(10):
        start = clock.mark()
        target.copy_(source)
        best = min(best, clock.between(start, clock.mark()))
    return 2e3 * source.nbytes / best


def machine(device: str, threads: int) -> str:
    """The lines above the table."""
    report = backend_report()
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = re.findall(r"model name\s*: (.*)", information.read_text())
        processor = names[0] if names else processor
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    pages = re.findall(r"\[(\w+)\]", pages.read_text())[0] if pages.is_file() else "unknown"
    allocator = os.environ.get("LD_PRELOAD") or "glibc malloc"
    tunables = os.environ.get("GLIBC_TUNABLES", "no tunables")
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    lines = [
        f"{time.strftime('%Y-%m-%d %H:%M')}, torch {torch.__version__}, Python {platform.python_version()}",
        f"{processor}, {os.cpu_count()} cores; {threads} threads, {report['instruction_set']} kernels, "
        f"{allocator} ({tunables}), transparent huge pages: {pages}, load {load}",
    ]
    if device != "cpu":
        lines.append(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, kernels {report['cuda']}")
    return "\n".join(lines)


def warnings(device: str) -> Iterator[str]:
    report = backend_report()
    reason = report["reason"] if device == "cpu" else report["cuda"]["reason"]
    if reason:
        yield f"ours is the slow PyTorch reference here: {reason}"
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if load > 0.5:
        yield f"the machine is busy (load {load:.1f} per core): times are too long, ratios are rough"


def rows_of(comparison: Comparison, label: str, common: dict, copy: float) -> Iterator[Row]:
    ours_, *peers = comparison.contenders
    case = comparison.case
    which = 0 if label == "forward" else 1
    ours_ms, ours_min = statistics.median(ours_.times[label]), min(ours_.times[label])
    bandwidth = comparison.bytes(label) / ours_ms * 1e3
    for peer in peers:
        peer_ms, peer_min = statistics.median(peer.times[label]), min(peer.times[label])
        yield Row(
            op=case.op,
            shape=case.shape,
            pass_=label,
            ours_ms=ours_ms,
            peer=peer.name,
            peer_ms=peer_ms,
            ratio=peer_ms / ours_ms,
            ours_min_ms=ours_min,
            peer_min_ms=peer_min,
            ratio_of_minima=peer_min / ours_min,
            ours_turns=len(ours_.times[label]),
            peer_turns=len(peer.times[label]),
            gigabytes_per_s=bandwidth / 1e9,
            share_of_copy=bandwidth / copy,
            ours_error=ours_.errors[which],
            peer_error=peer.errors[which],
            **common,
        )


def benchmark(args: argparse.Namespace, rows: list[Row]) -> list[str]:
    """Prints the table, fills `rows`; returns what failed."""
    dtype, law = getattr(torch, args.dtype), Law(args.locations == "uniform")
    cases = [
        c for c in all_cases(args.device) if re.search(args.only, f"{c.op} {c.shape}") and (c.quick or not args.quick)
    ]
    copy = copy_bandwidth(args.device)
    print(machine(args.device, args.threads))
    print(f"copy {copy / 1e9:.0f} GB/s; {args.rounds} rounds at most, {args.dtype}, locations: {args.locations}")
    for text in warnings(args.device):
        print(f"warning: {text}", file=sys.stderr)
    print(TITLE, flush=True)
    common = {
        "dtype": args.dtype,
        "device": torch.device(args.device).type,
        "locations": args.locations,
        "threads": args.threads,
        "torch": torch.__version__,
        "instruction_set": backend_report()["instruction_set"] or "",
    }
    failures, absent, end = [], {}, time.monotonic() + args.time_budget
    for number, case in enumerate(cases):
        comparison = Comparison(case, case.inputs(law, dtype, args.device), args.device)
        problem = comparison.enter("ours", partial(ours, case.kind))
        if problem:
            failures.append(f"ours, {case.op}, {case.shape}: {problem}")
            print(f"error: {failures[-1]}; not timed", file=sys.stderr, flush=True)
            continue
        for name, load in (PEERS[key] for key in args.peers):
            try:
                function = load(case.kind, args.device)
            except (ImportError, SyntaxError, OSError) as reason:
                absent[name] = f"{type(reason).__name__}: {reason}"
                continue
            problem = comparison.enter(name, function) if function else None
            if problem:
                print(f"fails: {name}, {case.op}, {case.shape}: {problem}", flush=True)
        gc.collect()
        gc.disable()
        for backward in (False, True):
            left = 2 * (len(cases) - number) - backward
            comparison.measure(backward, args.rounds, max(0.5, (end - time.monotonic()) / left))
        gc.enable()
        for label in PASSES:
            for row in rows_of(comparison, label, common, copy):
                rows.append(row)
                print(line(row), flush=True)
        if sys.stderr.isatty():
            print(f"{number + 1} of {len(cases)}", end="\r", file=sys.stderr, flush=True)
    for name, reason in absent.items():
        print(f"not installed: {name} ({reason})")
    return failures


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help='cases whose "operator shape" matches')
    parser.add_argument("--quick", action="store_true", help="a few cases and the upstream formulations, one minute")
    parser.add_argument("--dtype", choices=[str(t).removeprefix("torch.") for t in TOLERANCE], default="float32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (larger batches there); default cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU; default 2")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each contender at most; default 30")
    parser.add_argument(
        "--time-budget", type=float, metavar="S", help="aims at this many seconds; default 540, quick 50"
    )
    parser.add_argument("--peers", metavar="LIST", help=f"of {', '.join(PEERS)}; default {DEFAULT_PEERS}")
    parser.add_argument(
        "--locations",
        choices=["typical", "uniform"],
        default="typical",
        help="typical: near the pixel, or where six cameras see a BEV; uniform: anywhere, the worst case for caches",
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows here, also after an interruption")
    parser.add_argument("--markdown", metavar="FILE", help="write a table for the documentation here")
    args = parser.parse_args()
    args.peers = (args.peers or ("upstream" if args.quick else DEFAULT_PEERS)).split(",")
    args.time_budget = args.time_budget or (50 if args.quick else 540)
    unknown = [key for key in args.peers if key not in PEERS]
    if unknown:
        parser.error(f"--peers: no {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    try:
        failures = benchmark(args, rows)
    except KeyboardInterrupt:
        failures = ["interrupted"]
    finally:
        if args.json:
            Path(args.json).write_text(as_json(rows))
        if args.markdown:
            Path(args.markdown).write_text(as_markdown(rows))
    if failures:
        raise SystemExit("error: " + "; ".join(failures))


if __name__ == "__main__":
    main()
