"""Processes that share memory learn the same as one, and leave checkpoints that any number of them goes on from."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drivestack.core.checkpoint import load_checkpoint
from drivestack.core.errors import ConfigError
from drivestack.engine.checkpoints import export_weights, read_checkpoint
from drivestack.engine.recompute import recompute_in_backward
from drivestack.engine.sharding import share_out_model
from support import sharded_runs
from support.sharded_runs import train_once

KINDS = (None, "zero1", "fsdp2")


def launch(folder: Path, runs: list[dict[str, Any]], processes: int = 2) -> subprocess.Popen[str]:
    """Start a program that trains ``runs`` one after another in so many processes."""
    path = folder / f"runs{processes}_{len(list(folder.glob('runs*.json')))}.json"
    path.write_text(json.dumps(runs, default=str))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return subprocess.Popen(
        [*command, sharded_runs.__file__, str(path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, text = process.communicate(timeout=300)
    assert process.returncode == 0, text


def kill(process: subprocess.Popen[str]) -> None:
    """The launcher and the processes that it has started."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    for pid in (process.pid, *map(int, children.stdout.split())):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def sharding(kind: str | None, **changes: Any) -> dict[str, Any]:
    return {"sharding": kind, **{key.replace("__", "."): value for key, value in changes.items()}}


VARIANTS: dict[str, dict[str, Any]] = {
    "accumulated": dict(changes=dict(optim_wrapper__accumulative_counts=3)),
    "clipped": dict(changes=dict(optim_wrapper__clip_grad=dict(max_norm=0.05))),
    "bf16": dict(max_iters=4, changes=dict(optim_wrapper__precision="bf16")),
    "fp16": dict(max_iters=8, changes=dict(optim_wrapper__precision="fp16")),  # the first steps overflow
    "groups": dict(changes=dict(optim_wrapper__paramwise_cfg=dict(custom_keys={"net.0": dict(lr_mult=0.1)}))),
    "encoder": dict(max_iters=4, model="ToyEncoder", changes=dict(optim_wrapper__precision="bf16")),
    "unused": dict(max_iters=4, model="SometimesUnused", changes=dict(find_unused_parameters=True)),
    "no average": dict(max_iters=4, changes=dict(ema=None)),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of many trainings in two processes, and of those in one that they are compared with."""
    folder = tmp_path_factory.mktemp("sharding")
    train_once(folder / "one", 12, batch_size=4)
    train_once(folder / "half", 6, batch_size=4)
    killed = dict(work_dir=folder / "killed", changes=sharding("fsdp2", model__sleep_s=0.2))
    process = launch(folder, [killed])
    while not (folder / "killed" / "iter_5.pth").exists() and process.poll() is None:
        time.sleep(0.02)
    kill(process)
    assert not (folder / "killed" / "iter_12.pth").exists()

    todo = [{**killed, "resume": True, "changes": sharding("fsdp2")}]
    for kind in KINDS:
        todo.append(dict(work_dir=folder / str(kind), changes=sharding(kind)))
        for name, options in VARIANTS.items():
            changes = sharding(kind, **options["changes"])
            todo.append({**options, "work_dir": folder / f"{name} {kind}", "changes": changes})
    for max_iters in (6, 12):
        stopped = dict(max_iters=max_iters, resume=max_iters > 6, changes=sharding("zero1"))
        todo.append(dict(work_dir=folder / "stopped", **stopped))
    steps = [(8, "zero1"), (9, "fsdp2"), (10, None), (11, "fsdp2"), (12, "zero1")]
    for max_iters, kind in steps:
        start = True if max_iters > 8 else folder / "half" / "iter_6.pth"
        todo.append(dict(work_dir=folder / "chain", max_iters=max_iters, resume=start, changes=sharding(kind)))
    encoder = dict(VARIANTS["encoder"], changes=sharding("fsdp2", **VARIANTS["encoder"]["changes"]))
    for name, more in (
        ("by itself", {"model.recompute": True}),
        ("by name", {"activation_checkpointing": ["backbone"]}),
        ("by both", {"model.recompute": True, "activation_checkpointing": ["backbone.levels.2", "net"]}),
    ):
        todo.append({**encoder, "work_dir": folder / f"recomputed {name}", "changes": encoder["changes"] | more})
    validation = dict(interval=4, metric="score", mode="min")
    todo.append(dict(work_dir=folder / "validated", changes=sharding("fsdp2", validation=validation)))
    frozen = sharding("fsdp2", optim_wrapper__optimizer__lr=0.0, optim_wrapper__optimizer__weight_decay=0.0)
    for option in ("load_from", "fine_tune"):
        weights = {option: folder / "half" / "iter_6.pth"}
        todo.append(dict(work_dir=folder / option, max_iters=1, changes=frozen, **weights))
    muon = dict(
        optim_wrapper__constructor="MuonConstructor", optim_wrapper__optimizer__type="MuonAdamW", model__hidden=32
    )
    for kind in (None, "zero1"):
        todo.append(dict(work_dir=folder / f"muon {kind}", max_iters=4, changes=sharding(kind, **muon)))
    error = "sharding='fsdp2': MuonAdamW looks at rows and columns"
    todo.append(dict(work_dir=folder / "refused muon", changes=sharding("fsdp2", **muon), error=error))
    refused = dict(optimizer="Adafactor", error="sharding='fsdp2': Adafactor")
    todo.append(dict(work_dir=folder / "refused", changes=sharding("fsdp2"), **refused))
    finish(launch(folder, todo))
    return folder


def last(work_dir: Path) -> dict[str, Any]:
    return read_checkpoint(work_dir / (work_dir / "last_checkpoint").read_text().strip())


def leaves(node: Any, place: str = "") -> dict[str, Any]:
    if isinstance(node, (dict, list, tuple)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {k: v for key, value in items for k, v in leaves(value, f"{place}.{key}").items()}
    return {place: node}


def assert_same(one: Path, two: Path, **tolerances: float) -> None:
    """All of the last checkpoints, to the bit unless tolerances are given; the gradient norm of each iteration."""
    a, b = (leaves({k: v for k, v in last(folder).items() if k != "meta"}) for folder in (one, two))
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, Tensor):
            assert type(b[name]) is Tensor and value.shape == b[name].shape
            torch.testing.assert_close(value, b[name], **(tolerances or dict(rtol=0, atol=0)))
        else:
            assert value == b[name], name
    a, b = gradient_norms(one), gradient_norms(two)
    assert a.keys() >= b.keys() or b.keys() >= a.keys()
    for iteration in a.keys() & b.keys():
        assert a[iteration] == pytest.approx(b[iteration], rel=1e-3 if tolerances else 0, nan_ok=True)


def gradient_norms(folder: Path) -> dict[int, float]:
    """By iteration; NaN where no step was made, or one that overflowed."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    norms = {record["iter"]: record["gradient_norm"] for record in records if "gradient_norm" in record}
    return {iteration: math.nan if norm is None else norm for iteration, norm in norms.items()}


NEAR = dict(rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(runs: Path, kind: str | None) -> None:
    assert_same(runs / "one", runs / str(kind), **NEAR)


def test_muon_is_the_same_with_its_state_shared_out(runs: Path) -> None:
    assert_same(runs / "muon None", runs / "muon zero1")


@pytest.mark.parametrize("name", VARIANTS)
def test_all_kinds_learn_the_same(runs: Path, name: str) -> None:
    plain = runs / f"{name} None"
    assert_same(plain, runs / f"{name} zero1")
    assert_same(plain, runs / f"{name} fsdp2", **NEAR)


def test_accumulated_and_clipped_are_those_of_one_process(runs: Path, tmp_path: Path) -> None:
    for name in ("accumulated", "clipped"):
        changes = sharding(None, **VARIANTS[name]["changes"])
        train_once(tmp_path / name, batch_size=4, changes=changes)
        assert_same(tmp_path / name, runs / f"{name} fsdp2", **NEAR)


def test_fp16_skips_a_step_on_all_processes_where_one_has_an_overflow(runs: Path) -> None:
    norms = list(gradient_norms(runs / "fp16 fsdp2").values())
    assert math.isnan(norms[0]) and math.isfinite(norms[-1])


def test_killed_or_stopped_and_resumed_to_the_same_bits(runs: Path) -> None:
    assert_same(runs / "fsdp2", runs / "killed")
    assert_same(runs / "zero1", runs / "stopped")


def test_a_run_goes_on_with_any_kind_and_number(runs: Path, tmp_path: Path) -> None:
    assert_same(runs / "one", runs / "chain", **NEAR)  # 1 -> zero1 -> fsdp2 -> DDP -> fsdp2 -> zero1
    for kind in ("zero1", "fsdp2"):
        train_once(tmp_path / kind, batch_size=4, resume=runs / kind / "iter_10.pth")
        assert_same(runs / "one", tmp_path / kind, **NEAR)


@pytest.mark.parametrize("how", ["by itself", "by name", "by both"])
def test_recomputed_activations_change_nothing(runs: Path, how: str) -> None:
    assert_same(runs / "encoder fsdp2", runs / f"recomputed {how}")


def test_validation_scores_the_averaged_weights_and_changes_nothing(runs: Path) -> None:
    assert_same(runs / "fsdp2", runs / "validated")
    best = read_checkpoint(runs / "validated" / "best.pth")
    model = sharded_runs.ToyModel()
    load_checkpoint(model, runs / "validated" / "best.pth")
    with torch.no_grad():
        expected = sharded_runs.score(model.eval(), 0)["score"]
    assert best["meta"]["best"]["score"] == pytest.approx(expected, rel=1e-6)
    assert not torch.equal(best["state_dict"]["net.0.weight"], best["ema_state_dict"]["module.net.0.weight"])


def test_a_checkpoint_of_shared_weights_is_a_file_like_any_other(runs: Path, tmp_path: Path) -> None:
    for name in ("load_from", "fine_tune"):
        found, start = last(runs / name), last(runs / "half")
        for key, value in start["state_dict"].items():
            assert torch.equal(value, found["state_dict"][key])
            assert torch.equal(value, found["ema_state_dict"][f"module.{key}"])
    checkpoint = runs / "fsdp2" / "iter_12.pth"
    assert checkpoint.stat().st_size < 1.1 * (runs / "one" / "iter_12.pth").stat().st_size
    assert load_checkpoint(sharded_runs.ToyModel(), export_weights(checkpoint, tmp_path / "w.safetensors")).clean


def test_three_processes_resume_to_the_same_bits(tmp_path: Path) -> None:
    """The order of three summands counts, and DistributedDataParallel would change it after the first iteration."""
    todo = [dict(work_dir=tmp_path / "whole")]
    todo += [dict(work_dir=tmp_path / "parts", max_iters=end, resume=end > 6) for end in (6, 12)]
    finish(launch(tmp_path, todo, processes=3))
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_one_process_trains_without_and_says_so(runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="drivestack"):
        train_once(tmp_path, batch_size=4, changes=sharding("fsdp2"))
    assert "sharding='fsdp2': no effect with one process; start several with torchrun" in caplog.text
    assert_same(runs / "one", tmp_path)


def test_what_cannot_be_shared_out_is_named(tmp_path: Path) -> None:
    train_once(tmp_path, changes=sharding("zero3"), error="sharding: must be 'zero1' or 'fsdp2', or None, got 'zero3'")
    model = nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match=r"'fsdp2': scale is a single number.*shape \[1\].*'zero1'"):
        share_out_model(model, torch.device("cpu"))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images))


def test_recomputing_keeps_gradients_random_numbers_and_statistics() -> None:
    results = []
    for names in ((), ("first",)):
        torch.manual_seed(3)
        model = Blocks()
        recompute_in_backward(model, names)
        for _ in range(2):
            model(torch.rand(2, 3, 6, 6)).square().sum().backward()
        results.append([*(p.grad for p in model.parameters()), *model.buffers(), torch.rand(1)])
    for plain, recomputed in zip(*results):
        assert torch.equal(plain, recomputed)
