"""Times whole models: InternImage against the released formulation, the tiny BEV model against an older checkout.

    python benchmarks/models.py                                     InternImage T, S, B, XL at 224 x 224
    python benchmarks/models.py --variants T --size 640 1600 --threads 1
    python benchmarks/models.py --before ../older                   the tiny BEV model, frame and training step
    python benchmarks/models.py --json rows.json

Contenders take turns of three calls in one run (the two versions of the package in two processes, one at a time);
medians of the turns and ratios: trust the ratios, not the milliseconds. The peer of InternImage computes in float32
whatever our dtype (bfloat16 means autocast, entered for every forward). "as is" is the model as it was built,
"prepared" what `prepare_inference` makes of it. Outputs are compared before anything is timed.
The row "predict" of the tiny BEV model is what `drivestack predict` runs: prepared, and freed memory kept.
`--before` names a checkout of drivestack with its operators built (`python setup.py build_ext --inplace` in it).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from upstream_internimage import upstream_internimage

from drivestack.backbone import internimage, prepare_inference
from drivestack.ops import backend_report

WARM_UP = 2  # turns
CALLS = 3  # of a contender per turn: a model in use follows itself, not its peer
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.1}  # largest difference over largest output
HEADER = f"{'model':26}{'shape':22}{'dtype':10}{'pass':10}{'ours ms':>9}  {'peer':34}"
HEADER += f"{'peer ms':>9}{'ratio':>8}{'of min':>8}"


@dataclass
class Row:
    op: str
    shape: str
    dtype: str
    device: str
    pass_: str
    """`pass` in the JSON file."""
    ours_ms: float
    peer: str
    peer_ms: float
    ratio: float
    ratio_of_minima: float
    error: float | None
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.op:26}{self.shape:22}{self.dtype:10}{self.pass_:10}{self.ours_ms:9.1f}  {self.peer:34}"
            f"{self.peer_ms:9.1f}{self.ratio:7.2f}x{self.ratio_of_minima:7.2f}x"
        )


def spread_offsets(model: nn.Module) -> None:
    """Offsets of about a pixel and uneven masks, as trained layers have them; a fresh layer has neither."""
    for name, parameter in model.named_parameters():
        if name.endswith(("offset.weight", "mask.weight")):
            nn.init.normal_(parameter, std=0.7 / parameter.shape[1] ** 0.5)


def in_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each contender in each round, warmed up, in rotated order."""
    names, times = list(runs), {name: [] for name in runs}
    for turn in range(WARM_UP + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took = runs[name]()
            if turn >= WARM_UP:
                times[name].append(took)
    return times


def timed(run: Callable[[], object]) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            run()
        return 1e3 * (time.perf_counter() - start) / CALLS

    return once


@torch.no_grad()
def internimage_rows(variant: str, size: tuple[int, int], rounds: int, threads: int) -> list[Row]:
    torch.manual_seed(0)
    model = internimage(variant, "classification", layer_scale=None if variant == "T" else 1.0).eval()
    spread_offsets(model)
    prepared = prepare_inference(model)
    images = torch.randn(1, 3, *size)
    expected = upstream_internimage(model, images)

    def forward(network: nn.Module, half: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return network(images)

    contenders = {
        (name, label): lambda network=network, half=half: forward(network, half)
        for name, network in (("as is", model), ("prepared", prepared))
        for label, half in (("float32", False), ("bfloat16", True))
    }
    errors = {}
    for key, run in contenders.items():
        errors[key] = float((run().float() - expected).abs().max() / expected.abs().max())
        if not errors[key] <= TOLERANCE[key[1]]:
            raise SystemExit(f"error: InternImage-{variant} {' '.join(key)} is off by {errors[key]:.1e}; not timed")
    runs = {key: timed(run) for key, run in contenders.items()}
    times = in_turns({"peer": timed(lambda: upstream_internimage(model, images)), **runs}, rounds)
    rows = []
    for (name, label), error in errors.items():
        op = f"InternImage-{variant} {name}"
        shape = f"1x3x{size[0]}x{size[1]}"
        peer = "upstream formulation float32"
        rows.append(row(op, shape, label, "forward", times[name, label], peer, times["peer"], error, threads))
    return rows


def row(
    op: str,
    shape: str,
    dtype: str,
    pass_: str,
    ours: Sequence[float],
    peer: str,
    theirs: Sequence[float],
    error: float | None,
    threads: int,
) -> Row:
    medians = statistics.median(ours), statistics.median(theirs)
    of_minima = min(theirs) / min(ours)
    return Row(
        op, shape, dtype, "cpu", pass_, medians[0], peer, medians[1], medians[1] / medians[0], of_minima, error, threads
    )


class Worker:
    """`bev_worker.py` with the drivestack of one checkout."""

    def __init__(self, checkout: Path, threads: int, folder: Path, *arguments: str) -> None:
        folder.mkdir()
        (folder / "drivestack").symlink_to(checkout.resolve(), target_is_directory=True)
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, str(Path(__file__).with_name("bev_worker.py")), str(threads), *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )

    def run(self, name: str) -> float | None:
        self.process.stdin.write(f"{CALLS} {name}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise SystemExit(f"error: the worker ended while it ran {name!r}, see above")
        return None if answer == "none" else float(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


def bev_rows(before: Path, rounds: int, threads: int) -> list[Row]:
    here, rows = Path(__file__).resolve().parents[1], []
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as workers:
        start = lambda name, checkout, *arguments: workers.enter_context(
            closing(Worker(checkout, threads, Path(scratch, name), *arguments))
        )
        now, then = start("now", here), start("then", before)
        program = start("program", here, "as the program")
        for label in ("float32", "bfloat16"):
            for op, worker, request, old_request, pass_ in (
                ("tiny BEV model as is", now, "frame", "frame", "forward"),
                ("tiny BEV model, predict", program, "prepared", "frame", "forward"),
                ("tiny BEV model as is", now, "train", "train", "step"),
            ):
                runs = {
                    "now": lambda worker=worker, what=f"{request} {label}": worker.run(what),
                    "then": lambda what=f"{old_request} {label}": then.run(what),
                }
                times = in_turns(runs, rounds)
                peer = f"before ({before.name})"
                rows.append(row(op, "1x6x3x128x384", label, pass_, times["now"], peer, times["then"], None, threads))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", default=["T", "S", "B", "XL"], choices=["T", "S", "B", "L", "XL"])
    parser.add_argument("--size", nargs=2, type=int, default=(224, 224), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--before", type=Path, help="built checkout to compare the tiny BEV model with")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = backend_report()
    if report["reason"]:
        raise SystemExit(f"error: {report['reason']}; {report['fix']}")
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"torch {torch.__version__}, {args.threads} threads, kernels {report['instruction_set']}, load {load}")
    print(HEADER)
    rows: list[Row] = []
    for variant in args.variants if args.before is None else ():
        rows += internimage_rows(variant, tuple(args.size), args.rounds, args.threads)
        print(*rows[-4:], sep="\n", flush=True)
    if args.before is not None:
        rows += bev_rows(args.before, args.rounds, args.threads)
        print(*rows, sep="\n")
    if args.json is not None:
        listed = [{key.rstrip("_"): value for key, value in vars(r).items()} for r in rows]
        args.json.write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()
