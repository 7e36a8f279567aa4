"""All that the CUDA kernels need a GPU for, in under 8 minutes: build, tests, sanitizer, times, training.

    make gpu-check
    python benchmarks/gpu_check.py                            all steps, results in runs/gpu_check.json
    python benchmarks/gpu_check.py --steps operators --json rows.json
    python benchmarks/gpu_check.py --steps sanitizer          compute-sanitizer: memcheck and racecheck on small cases

Steps: build (for the GPUs that are visible), tests (tests/ops/test_cuda.py), sanitizer (where compute-sanitizer is on
the PATH), operators (times against the byte floor at the measured copy bandwidth, and against the original PyTorch
formulations), training (the tiny BEV model on generated data, with the kernels and with the reference implementations).

Exit status: 0 all is well, 1 something failed, 2 no GPU. A step that cannot run here says why and fails nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 470  # in all
# At most, per step; what a step leaves over is the others'.
LIMITS = {"build": 200, "tests": 200, "sanitizer": 120, "operators": 120, "training": 90}

# "operator shape" of benchmarks/cases.py, and the dtypes to time it with.
TIMED = [
    (r"^dcnv3 B stage 1 at 224x224.*with softmax$", ("float16", "float32")),
    (r"^dcnv3 B stage 3 at 224x224.*with softmax$", ("float16",)),
    (r"^dcnv3 T stage 1 at 224x224.*with softmax$", ("float16",)),
    (r"^dcnv3 T stage 1 at 224x224[^,]*$", ("float16",)),
    (r"^dcnv3 XL stage 1 at 224x224.*with softmax$", ("float16",)),
    (r"^dcnv3 T stage 1 at 640x1600.*with softmax$", ("float16",)),
    (r"^dcnv4 T stage 1 at 224x224", ("float16",)),
    (r"^ms_deform_attn Deformable DETR encoder", ("float16", "float32")),
    (r"^ms_deform_attn cameras, BEVFormer base", ("float16",)),
    (r"^ms_deform_attn_fused temporal, BEVFormer base: 2 x", ("float16", "float32")),
    (r"^spatial_cross_attention BEVFormer v2[^,]*, 6 cameras, L4 P8$", ("float16",)),
    (r"^spatial_cross_attention BEVFormer base[^,]*, 6 cameras, L4 P8$", ("float16", "float32")),
]

Result = tuple[list[str], Any]
"""What failed, and the step's part of the report."""


class StepSkippedError(Exception):
    """The step cannot run here; the message says why."""


def say(text: str) -> None:
    print(text, flush=True)


def command(arguments: Sequence[str | Path], seconds: float, **variables: str) -> tuple[int, str]:
    """Exit status and output of a program; status 124 if it was stopped after `seconds`."""
    environment = os.environ | variables
    environment["PYTHONPATH"] = os.pathsep.join(p for p in (str(package_folder()), os.environ.get("PYTHONPATH")) if p)
    try:
        done = subprocess.run(
            [str(a) for a in arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(1.0, seconds),
        )
    except subprocess.TimeoutExpired as stopped:
        output = stopped.stdout or b""
        return 124, (output.decode(errors="replace") if isinstance(output, bytes) else output)
    return done.returncode, done.stdout


def package_folder() -> Path:
    """A folder to import drivestack from; the checkout may have another name, and may not be installed."""
    folder = ROOT / "build/site"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "drivestack"
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    return folder


def tail(output: str, lines: int = 15) -> str:
    return "\n".join(output.strip().splitlines()[-lines:])


# --- steps ------------------------------------------------------------------------------------------------------------


def build(seconds: float) -> Result:
    start = time.monotonic()
    arguments = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    status, output = command(arguments, seconds, DRIVESTACK_CUDA="1")
    took = time.monotonic() - start
    lines = [line for line in output.splitlines() if line.startswith("drivestack:")]
    say("\n".join(lines))
    if status:
        say(tail(output))
        return [f"the build failed (status {status})"], None
    return [], {"seconds": round(took, 1), "lines": lines}


def tests(seconds: float) -> Result:
    if importlib.util.find_spec("pytest") is None:
        raise StepSkippedError("pytest is not installed")
    arguments = [sys.executable, "-m", "pytest", "-q", "-x", "--durations=5", "tests/ops/test_cuda.py"]
    status, output = command(arguments, seconds)
    say(tail(output, 12 if status == 0 else 60))
    summary = re.findall(r"\d+ (?:passed|failed|skipped|error)[^\n]*", output)
    report = {"summary": summary[-1] if summary else "", "status": status}
    if status == 0 and " passed" not in report["summary"]:
        return ["no test ran"], report
    return ([f"the tests failed (status {status})"] if status else []), report


def sanitizer(seconds: float) -> Result:
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise StepSkippedError("compute-sanitizer is not on the PATH (it comes with the CUDA toolkit)")
    failed, report, end = [], {}, time.monotonic() + seconds
    for left, tool in ((2, "memcheck"), (1, "racecheck")):
        arguments = [program, "--tool", tool, "--error-exitcode", "3", "--print-limit", "3"]
        arguments += [sys.executable, __file__, "--small-cases"]
        # without PyTorch's cache every tensor is an allocation of its own, whose bounds the tool checks
        status, output = command(arguments, (end - time.monotonic()) / left, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        summary = re.findall(r"========= (ERROR SUMMARY|RACECHECK SUMMARY): ([^\n]*)", output)
        report[tool] = summary[-1][1] if summary else f"status {status}"
        say(f"{tool}: {report[tool]}")
        if "Device not supported" in output:
            say(f"{tool} does not run on this machine: {tail(output, 3)}")
        elif status:
            say(tail(output, 40))
            failed.append(f"{tool}: {report[tool]}")
    return failed, report


def run_small_cases() -> None:
    """Every case of the operator tests once, forward and both modes of backward."""
    import torch

    from drivestack.ops.dispatch.backend import extension

    if extension("cuda").reason:
        raise SystemExit(extension("cuda").reason)
    path = ROOT / "tests/ops/cuda_cases.py"
    spec = importlib.util.spec_from_file_location("cuda_cases", path)
    cases = importlib.util.module_from_spec(spec)
    sys.modules["cuda_cases"] = cases
    spec.loader.exec_module(cases)
    for name in cases.CASES:
        for value, taps in ((torch.float32, torch.float32), (torch.float16, torch.float16)):
            case = cases.make(name)
            inputs = case.cast(value, taps, "cuda")
            for deterministic in (False, True):
                cases.results(torch.ops.drivestack, case, inputs, deterministic)
    torch.cuda.synchronize()


def graph_ms(function: Callable[[], Any], rounds: int = 20) -> float:
    """Milliseconds of one call as the GPU alone takes them: ten calls in a graph, replayed; the median."""
    import torch

    calls = 10
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    times = []
    for _ in range(rounds):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / calls)
    return statistics.median(times)


TITLE = f"{'operator':24}{'shape':62}{'dtype':9}{'pass':9}{'ours us':>9}{'floor us':>9}{'share':>7}"
TITLE += f"{'peer us':>11}{'ratio':>8}"


def time_operators(seconds: float) -> Result:
    import cases
    import operators
    import peers
    import torch

    from drivestack.ops.dispatch.backend import extension

    if extension("cuda").reason:
        return [f"no CUDA kernels: {extension('cuda').reason}"], None
    copy = operators.copy_bandwidth("cuda")
    say(f"copy of 256 MB: {copy / 1e9:.0f} GB/s read and written")
    say(
        "floor: every input and result once at that bandwidth; share: floor / ours (above 100 % where the L2 holds all)"
    )
    say(TITLE)
    failed, rows, end = [], [], time.monotonic() + seconds
    chosen = [
        (case, dtype)
        for pattern, dtypes in TIMED
        for case in cases.all_cases("cuda")
        if re.search(pattern, f"{case.op} {case.shape}")
        for dtype in dtypes
    ]
    for number, (case, dtype) in enumerate(chosen):
        if time.monotonic() > end:
            failed.append(f"{len(chosen) - number} operator cases were not timed: no time left")
            break
        comparison = operators.Comparison(case, case.inputs(cases.Law(), getattr(torch, dtype), "cuda"), "cuda")
        problem = comparison.enter("ours", partial(cases.ours, case.kind))
        if problem:
            failed.append(f"{case.op} {case.shape} {dtype}: {problem}")
            continue
        problem = comparison.enter("upstream formulation", peers.UPSTREAM[case.kind])
        if problem:
            say(f"peer: {case.op} {case.shape} {dtype}: {problem}")
        share = max(0.2, (end - time.monotonic()) / (len(chosen) - number) / 3)
        for backward in (False, True):
            comparison.measure(backward, 10, share)
        ours, *others = comparison.contenders
        alone = graph_ms(partial(ours.function, *comparison.tensors))
        for label in ("forward", "backward"):
            ours_ms = alone if label == "forward" else statistics.median(ours.times[label])
            floor_ms = comparison.bytes(label) / copy * 1e3
            peer_ms = statistics.median(others[0].times[label]) if others else float("nan")
            row = {
                "op": case.op,
                "shape": case.shape,
                "dtype": dtype,
                "device": "cuda",
                "pass": label,
                "ours_ms": ours_ms,
                "peer": "upstream formulation",
                "peer_ms": peer_ms,
                "ratio": peer_ms / ours_ms,
                "floor_ms": floor_ms,
                "share_of_floor": floor_ms / ours_ms,
            }
            rows.append(row)
            say(
                f"{case.op:24}{case.shape:62}{dtype:9}{label:9}{1e3 * ours_ms:9.1f}{1e3 * floor_ms:9.1f}"
                f"{100 * row['share_of_floor']:6.0f}%{1e3 * peer_ms:11.1f}{row['ratio']:7.1f}x"
            )
        del comparison, ours, others
        torch.cuda.empty_cache()
    return failed, {"copy_gigabytes_per_s": copy / 1e9, "rows": rows}


def train(seconds: float) -> Result:
    """The tiny BEV model for some iterations from one seed: the same losses with kernels and with the references."""
    for module in ("mmengine", "trimesh", "nuscenes"):
        if importlib.util.find_spec(module) is None:
            raise StepSkippedError(f"{module} is not installed (pip install --editable '.[dev]')")
    folder = ROOT / "runs/gpu_check"
    shutil.rmtree(folder, ignore_errors=True)
    data, end = folder / "data", time.monotonic() + seconds
    drivestack = [sys.executable, "-m", "drivestack"]
    scenes = ["--scenes", "4", "--keyframes", "3", "--image-width", "320", "--labels", "--seed", "7"]
    status, output = command([*drivestack, "synthesize", data, "--split", "train", *scenes], seconds)
    if status:
        return [f"no data were generated: {tail(output, 5)}"], None
    report = {}
    for backend, iterations in (("cuda", 40), ("reference", 10), ("cuda", 10)):
        work = folder / f"{backend}-{iterations}"
        options = [f"train_dataloader.dataset.source.root=['{data}']", f"train_cfg.max_iters={iterations}"]
        options += ["optim_wrapper.precision=fp32"] if iterations == 10 else []
        settings = [part for option in options for part in ("--set", option)]
        arguments = [*drivestack, "train", "bevformerv2_tiny_synthetic", "--work-dir", work, "--seed", "1", *settings]
        status, output = command(arguments, end - time.monotonic(), DRIVESTACK_OPS_BACKEND=backend)
        if status:
            return [f"training with backend {backend} failed (status {status}): {tail(output)}"], report
        rows = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
        last = {key: rows[-1][key] for key in ("iter", "loss", "gradient_norm", "seconds_per_iter")}
        report[work.name] = last
        say(f"{backend}, {iterations} iterations: loss {last['loss']:.3f}, {last['seconds_per_iter']:.3f} s each")
    ours, reference = report["cuda-10"]["loss"], report["reference-10"]["loss"]
    if not abs(ours - reference) <= 0.02 * abs(reference):
        return [f"losses differ: {ours:.4f} with the kernels, {reference:.4f} without"], report
    return [], report


STEPS: dict[str, Callable[[float], Result]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "operators": time_operators,
    "training": train,
}

# --- all of it --------------------------------------------------------------------------------------------------------


def missing_gpu() -> str | None:
    try:
        import torch
    except ImportError as error:
        return f"torch does not import ({error})"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no GPU (is there a driver? try nvidia-smi)"
    return None


def machine() -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "gpu_gigabytes": round(properties.total_memory / 1e9),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default=",".join(STEPS), metavar="LIST", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--json", default="runs/gpu_check.json", metavar="FILE", help="default: %(default)s")
    parser.add_argument("--small-cases", action="store_true", help="only run the small cases (for compute-sanitizer)")
    args = parser.parse_args()
    steps = args.steps.split(",")
    unknown = [name for name in steps if name not in STEPS]
    if unknown:
        parser.error(f"no such step: {', '.join(unknown)}")
    missing = missing_gpu()
    if missing:
        print(f"error: gpu-check needs a GPU: {missing}", file=sys.stderr)
        return 2
    sys.path.insert(0, str(package_folder()))
    if args.small_cases:
        run_small_cases()
        return 0
    report: dict[str, Any] = {"machine": machine()}
    failed: list[str] = []
    say(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    end = time.monotonic() + SECONDS
    for name in steps:
        say(f"\n== {name}")
        start = time.monotonic()
        try:
            problems, report[name] = STEPS[name](min(LIMITS[name], end - start))
        except StepSkippedError as reason:
            say(f"not run: {reason}")
            report[name] = {"not_run": str(reason)}
            continue
        failed += [f"{name}: {problem}" for problem in problems]
        say(f"{name}: {'failed' if problems else 'fine'}, {time.monotonic() - start:.0f} s")
        if name == "build" and problems:
            break
    report["failed"] = failed
    path = Path(args.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say(f"\nwritten: {path}, {SECONDS - (end - time.monotonic()):.0f} s in all")
    for problem in failed:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
