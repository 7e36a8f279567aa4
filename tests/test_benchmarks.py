"""The operator benchmark at toy sizes: peers compute what we compute, a wrong one is caught, the rows are complete."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

KEYS = {"op", "shape", "dtype", "device", "pass", "ours_ms", "peer", "peer_ms", "ratio"}
KINDS = ("dcnv3", "dcnv3_softmax", "dcnv4", "ms_deform_attn", "ms_deform_attn_fused", "temporal")
KINDS += ("spatial_cross_attention", "spatial_cross_attention_whole")


@pytest.fixture
def operators(repository_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository_root / "benchmarks")
    return importlib.import_module("operators")


@pytest.fixture
def cases(operators: ModuleType) -> ModuleType:
    return importlib.import_module("cases")


def toy(cases: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str):
    """A case of a few thousand samples: odd sides, two images, two levels, queries that no camera sees."""
    monkeypatch.setitem(cases.CROSS_ATTENTION, "toy", (7, (480, 800), 0.5, 240, [(5, 8), (3, 4)]))
    if kind == "dcnv4":
        return cases.Case(kind, "toy", partial(cases.dcnv4_inputs, size=(2, 5, 7, 24, 3)), 3)
    if kind.startswith("dcnv3"):
        build = partial(cases.dcnv3_inputs, size=(2, 5, 7, 24, 3), softmax=kind.endswith("softmax"))
        return cases.Case(kind, "toy", build, 3)
    if kind == "temporal":
        return cases.attention_case("toy", partial(cases.grid_reference, 3, 5), [(3, 5)] * 2, 4, "mean")
    if kind.startswith("ms_deform_attn"):
        fused = "joint" if kind.endswith("fused") else ""
        return cases.attention_case("toy", partial(cases.grid_reference, 3, 5, 2), [(4, 6), (2, 3)], 4, fused)
    return cases.cross_attention_case("toy", kind.endswith("whole"))


def comparison(operators: ModuleType, case, dtype: torch.dtype, uniform: bool = False):
    law = importlib.import_module("cases").Law(uniform)
    return operators.Comparison(case, case.inputs(law, dtype, "cpu"), "cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_peers_agree_with_the_reference(
    operators: ModuleType, cases: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype
) -> None:
    case = toy(cases, monkeypatch, kind)
    rivals = comparison(operators, case, dtype, uniform=dtype == torch.float32)
    assert rivals.enter("ours", partial(cases.ours, case.kind)) is None
    for key in ("upstream", "torchvision"):
        name, load = operators.PEERS[key]
        function = load(case.kind, "cpu")
        if function is not None:
            assert rivals.enter(name, function) is None, name
    assert len(rivals.contenders) == (3 if kind == "dcnv3" else 2)


def test_a_wrong_peer_is_not_timed(operators: ModuleType, cases: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case = toy(cases, monkeypatch, "ms_deform_attn")
    rivals = comparison(operators, case, torch.float32)
    right = operators.PEERS["upstream"][1](case.kind, "cpu")

    def wrong_gradient(value, locations, weights, **fixed):
        return right(value, locations.detach() + 0 * locations, weights, **fixed)

    assert "wrong" in rivals.enter("scaled", lambda *tensors, **fixed: 1.01 * right(*tensors, **fixed))
    assert "wrong" in rivals.enter("no gradient", wrong_gradient)
    assert "RuntimeError" in rivals.enter("broken", lambda value, *_, **fixed: value @ value)
    assert not rivals.contenders


def test_turns_rotate_and_slow_contenders_skip_rounds(
    operators: ModuleType, cases: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rivals = comparison(operators, toy(cases, monkeypatch, "dcnv4"), torch.float32)
    names = ["ours", "quick", "slow"]
    rivals.contenders = [operators.Contender(name, lambda: None, estimate_ms={True: 5.0}) for name in names]
    rivals.contenders[2].estimate_ms[True] = 1000.0
    turns = []
    rivals.turn = lambda contender, backward: turns.append(contender.name)
    rivals.measure(True, rounds=12, seconds=3.0)
    assert [turns.count(name) for name in names] == [12, 12, 3]
    assert {turns[0], turns[3]} == {"ours", "quick"}


def test_json_rows_and_table(
    operators: ModuleType,
    cases: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    file = tmp_path / "rows.json"
    chosen = [toy(cases, monkeypatch, kind) for kind in ("dcnv3", "spatial_cross_attention_whole")]
    monkeypatch.setattr(operators, "all_cases", lambda device: chosen)
    monkeypatch.setattr(operators, "copy_bandwidth", lambda device: 1e10)
    monkeypatch.setitem(operators.PEERS, "absent", ("absent", lambda kind, device: importlib.import_module("no_such")))
    options = [
        "--rounds",
        "2",
        "--time-budget",
        "1",
        "--peers",
        "upstream,absent",
        "--json",
        str(file),
        "--markdown",
        str(tmp_path / "rows.md"),
    ]
    monkeypatch.setattr(sys, "argv", ["operators.py", *options, "--threads", str(torch.get_num_threads())])
    operators.main()
    rows = json.loads(file.read_text())
    assert [(row["op"], row["pass"]) for row in rows] == [
        (op, passes)
        for op in ("dcnv3", "spatial_cross_attention")
        for passes in ("forward", "backward", "forward+backward")
    ]
    for row in rows:
        assert row.keys() >= KEYS
        assert (row["dtype"], row["device"], row["peer"]) == ("float32", "cpu", "upstream formulation")
        assert row["ours_ms"] > 0 and row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"])
    assert "| dcnv3 | toy | " in (tmp_path / "rows.md").read_text()
    text = capsys.readouterr().out
    assert "not installed: absent" in text and text.count("upstream formulation") == len(rows)


def test_sharing_compares_with_models_of_one_task_each(repository_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(repository_root / "benchmarks")
    sharing = importlib.import_module("sharing")
    config = sharing.load_config("perception_tiny_synthetic")
    with torch.device("meta"):
        parts = {task: sharing.model_of(config, (task,)) for task in sharing.TASKS}
        whole = sharing.model_of(config, sharing.TASKS)
    assert set().union(*(part.state_dict() for part in parts.values())) == set(whole.state_dict())
    others = ("occupancy_head", "bev_proposals", "pts_bbox_head.cls_branches", "pts_bbox_head.transformer.decoder")
    assert not any(key.startswith(others) for key in parts["lanes"].state_dict())
    counts = [sharing.parameters_of(part) for part in parts.values()]
    assert max(counts) < sharing.parameters_of(whole) < sum(counts)
    line = sharing.row("x", {sharing.SHARED: 3.0, "boxes": 1.0, "occupancy": 2.0, "lanes": 3.0})
    assert line.split()[-2:] == ["6", "0.50"]


def test_memory_of_a_sharded_training_is_measured(repository_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(repository_root / "benchmarks")
    memory = importlib.import_module("sharding_memory")
    sizes = dict(variant="T", size_px=32, batch_size=1, iterations=2, processes=1)
    found = memory.measured(argparse.Namespace(**sizes), "fsdp2, recomputed")
    assert found["held_mib"] == pytest.approx(12 * found["parameters"] / 2**20, rel=1e-3)
    assert found["peak_mib"] > found["held_mib"]


def test_the_worker_of_the_model_benchmark_runs_a_frame_and_a_step(
    repository_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(repository_root / "benchmarks")
    worker = importlib.import_module("bev_worker")
    for name, value in (("CAMERAS", 2), ("HEIGHT", 32), ("WIDTH", 64)):
        monkeypatch.setattr(worker, name, value)
    turns = worker.turns()
    for name in ("frame float32", "prepared bfloat16", "train float32"):
        turns[name]()


@pytest.fixture(scope="module")
def fault_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def fault_figures(repository_root: Path, work: Path, *options: str) -> tuple[dict, str]:
    """In a new interpreter: forks of one with threads may hang."""
    out = work / "figures.json"
    command = [sys.executable, "benchmarks/faults.py", "--quick", "--work", str(work / "work"), "--out", str(out)]
    done = subprocess.run([*command, *options], cwd=repository_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="forks and /proc")
def test_damaged_inputs_are_reproducible_and_a_run_goes_on(repository_root: Path, fault_work: Path) -> None:
    options = ("--parts", "inputs", "--kinds", "tables", "boxes", "lanes", "safetensors", "set")
    found, text = fault_figures(repository_root, fault_work, *options)
    for kind, counts in found["inputs"].items():
        assert counts["inputs"] == 5, kind
        assert counts["refused"] + counts["invalid"] + counts["success"] == 5, text
    notes = fault_work / "work" / "inputs-tables.jsonl"
    before = notes.read_text().splitlines()
    notes.write_text("\n".join(before[:2]) + "\n")  # as if it had been stopped
    again, _ = fault_figures(repository_root, fault_work, "--parts", "inputs", "--kinds", "tables")
    keys = ("index", "outcome", "verb")
    assert [[json.loads(line)[key] for key in keys] for line in notes.read_text().splitlines()] == [
        [json.loads(line)[key] for key in keys] for line in before
    ]
    assert again["inputs"]["tables"]["inputs"] == 5


@pytest.mark.parametrize(
    ("code", "error", "outcome"),
    [
        (0, "predict 1/2 samples  eta 0:01\n", "success"),
        (2, "warning: a camera is missing\nerror: x.json: broken; fetch it again\n", "refused"),
        (2, "error: x.json: broken\nmore of it\n", "many lines"),
        (2, "error: x.json: MemoryError; fetch it again\n", "memory"),
        (2, "error: unexpected KeyError: 'a'; please report it\n", "unexpected"),
        (1, "error: x.json is invalid\n", "invalid"),
        (70, "Traceback (most recent call last):\nKeyError: 'a'\n", "traceback"),
        (-signal.SIGSEGV, "", "crash"),
        (-signal.SIGXCPU, "", "hang"),
    ],
)
def test_an_ending_is_judged(
    repository_root: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: str, outcome: str
) -> None:
    monkeypatch.syspath_prepend(repository_root / "benchmarks")
    child = importlib.import_module("fault_checks.child")
    job = child.Input(["check-submission", "x.json"], "")
    assert child.judge(job, code, error, 0.0) == outcome
    assert child.judge(job, 0, "", child.MEMORY_LIMIT_MB + 1.0) == "memory"


def test_faults_of_an_input_are_seen(repository_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that misbehaves in every way, in a new interpreter."""
    program = tmp_path / "misbehave.py"
    program.write_text(MISBEHAVE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(repository_root / "benchmarks"), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [
        "traceback", "crash", "memory", "payload", "escaped", "exit code", "refused", "success", "hang"
    ]  # fmt: skip


MISBEHAVE = """
import os
from pathlib import Path
from fault_checks import child
from drivestack.core.errors import DataError

child.CPU_LIMIT_S, child.MEMORY_LIMIT_MB = 1, 200

def fail(how):
    if how == "traceback": {}["a"]
    if how == "crash": os.kill(os.getpid(), 11)
    if how == "memory": bytearray(b"x") * (300 << 20)
    if how == "payload": Path("../../../../canary").touch()
    if how == "escaped": Path("../../../../EVIL").touch()
    if how == "exit code": raise SystemExit(3)
    if how == "refused": raise DataError("no such file")
    while how == "hang": pass

WAYS = ["traceback", "crash", "memory", "payload", "escaped", "exit code", "refused", "success", "hang"]
make = lambda index, folder, canary: child.Input(["fail", WAYS[index]], "", usual_s=0)
for _, _, outcome in child.run_all(range(len(WAYS)), make, Path("scratch").absolute(), {"fail": fail}):
    print(outcome.kind)
"""
