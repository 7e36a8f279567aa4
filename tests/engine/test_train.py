"""Training: interrupted is the same as undisturbed, two ranks are the same as one, bad numbers stop it."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from drivestack.core.errors import CheckpointError, ConfigError, DataError, OutputError, TrainingError
from drivestack.core.once import forget_warnings
from drivestack.engine.checkpoints import latest_checkpoint, read_checkpoint
from drivestack.engine.config import load_config, override
from drivestack.engine.optim import PrecisionOptimWrapper
from drivestack.engine.train import train


def assert_same(a: Any, b: Any, place: str = "") -> None:
    """Bitwise equality of nested containers of tensors."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_same(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{place}.{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    else:
        assert a == b, place


@pytest.fixture(scope="module")
def undisturbed(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(toy.toy_config(20), tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resumed_equals_undisturbed_bitwise(toy: Any, tmp_path: Path, precision: str) -> None:
    whole = train(toy.toy_config(20, precision=precision), tmp_path / "whole")
    train(toy.toy_config(9, precision=precision), tmp_path / "parts")
    parts = train(toy.toy_config(20, precision=precision), tmp_path / "parts", resume="auto")
    assert_same(read_checkpoint(whole), read_checkpoint(parts))


def test_averaged_weights_are_published_and_raw_ones_resumed(undisturbed: Path) -> None:
    checkpoint = read_checkpoint(undisturbed)
    raw = checkpoint["ema_state_dict"]["module.net.0.weight"]
    assert not torch.equal(raw, checkpoint["state_dict"]["net.0.weight"])
    trained = torch.load(undisturbed.parent / "rank0.pt", weights_only=True)
    assert torch.equal(raw, trained["net.0.weight"])


def test_killed_at_random_moments_ends_with_the_same_weights(
    toy_program: Path, undisturbed: Path, tmp_path: Path
) -> None:
    rng = random.Random(5)
    command = [sys.executable, str(toy_program), str(tmp_path), "20", "--resume", "--interval", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(2):
        before = latest_checkpoint(tmp_path)
        process = subprocess.Popen([*command, "--sleep", "0.2"], env=environment)
        while latest_checkpoint(tmp_path) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        read_checkpoint(latest_checkpoint(tmp_path))  # whole, whatever moment it was
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert_same(read_checkpoint(undisturbed), read_checkpoint(tmp_path / "iter_20.pth"))


def test_two_gloo_ranks_equal_one_process_with_the_whole_batch(toy: Any, toy_program: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(toy_program), str(tmp_path / "two"), "12", "--batch-size", "2", "--dropout", "0"]
    command.append("--validate")  # rank 1 waits meanwhile, and no weight moves
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(ranks[0], ranks[1])
    assert read_checkpoint(tmp_path / "two" / "best.pth")["meta"]["best"]["iter"] == 12
    train(toy.toy_config(12, batch_size=4, dropout=0.0), tmp_path / "one")
    one = torch.load(tmp_path / "one" / "rank0.pt", weights_only=True)
    for name, value in one.items():
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-4, atol=1e-6)


def test_the_written_config_has_the_seed_that_ran(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(5)
    checkpoint = train(config, tmp_path / "given", seed=4)
    written = load_config(tmp_path / "given" / "config.py")
    assert written.seed == 4 and config.seed == 3  # the caller's config stays as it was
    again = train(written, tmp_path / "again")
    assert_same(*(read_checkpoint(path)["state_dict"] for path in (checkpoint, again)))


def test_non_finite_loss_names_term_iteration_and_samples(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"iteration 7: loss term loss_edge = nan, on samples sample\d+") as caught:
        train(toy.toy_config(20, nan_at=7), tmp_path)
    assert "loss_square" not in str(caught.value)
    assert latest_checkpoint(tmp_path).name == "iter_5.pth"
    good = train(toy.toy_config(5), tmp_path / "good")
    assert_same(read_checkpoint(good), read_checkpoint(tmp_path / "iter_5.pth"))
    assert {path.name for path in tmp_path.glob("*.*")} == {"iter_5.pth", "config.py", "log.jsonl"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_non_finite_gradient_stops_before_the_step(precision: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    wrapper = PrecisionOptimWrapper(torch.optim.AdamW([weight], lr=1.0), precision, clip_grad={"max_norm": 1.0})
    with pytest.raises(FloatingPointError, match="gradient norm is inf"):
        wrapper.update_params(weight.sqrt().sum())
    assert weight.item() == 0


def test_fp16_skips_an_overflowing_step_and_lowers_the_scale() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    wrapper = PrecisionOptimWrapper(torch.optim.AdamW([weight], lr=1.0), "fp16")
    scale = wrapper.scaler.get_scale()
    wrapper.update_params(weight.sqrt().sum())
    assert weight.item() == 0
    assert wrapper.scaler.get_scale() == scale / 2


def test_old_checkpoints_go_and_the_log_has_every_interval(undisturbed: Path) -> None:
    assert sorted(path.name for path in undisturbed.parent.glob("*.pth")) == ["iter_15.pth", "iter_20.pth"]
    records = [json.loads(line) for line in (undisturbed.parent / "log.jsonl").read_text().splitlines()]
    assert [record["iter"] for record in records] == [5, 10, 15, 20]
    last = records[-1]
    assert last["loss"] == pytest.approx(last["loss_square"] + last["loss_edge"])
    assert all(math.isfinite(value) for value in last.values())
    assert not list(undisturbed.parent.glob(".*"))


def test_time_budget_saves_and_resuming_goes_on(toy: Any, undisturbed: Path, tmp_path: Path) -> None:
    first = train(toy.toy_config(20), tmp_path, max_minutes=0.0)
    assert first.name == "iter_1.pth"
    assert_same(read_checkpoint(undisturbed), read_checkpoint(train(toy.toy_config(20), tmp_path, resume=True)))


def test_load_from_starts_at_iteration_zero_with_the_weights(toy: Any, undisturbed: Path, tmp_path: Path) -> None:
    config = toy.toy_config(1)
    config.optim_wrapper.optimizer.update(lr=0.0, weight_decay=0.0)
    path = train(config, tmp_path, load_from=undisturbed)
    for name, value in read_checkpoint(undisturbed)["state_dict"].items():
        assert torch.equal(value, read_checkpoint(path)["state_dict"][name])


def test_load_from_may_lack_the_new_parts_and_does_not_hinder_resuming(
    toy: Any, undisturbed: Path, tmp_path: Path
) -> None:
    config = toy.toy_config(1)
    state = {k: v for k, v in read_checkpoint(undisturbed)["state_dict"].items() if not k.startswith("net.0.")}
    torch.save({"state_dict": state}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"missing.*net\.0\.weight"):
        train(config, tmp_path / "a", load_from=tmp_path / "part.pth")
    config.new_parts = ("net.0.",)
    train(config, tmp_path / "a", load_from=tmp_path / "part.pth", resume=True)  # nothing to resume yet
    config = toy.toy_config(2)
    assert train(config, tmp_path / "a", load_from=tmp_path / "part.pth", resume=True).name == "iter_2.pth"


def test_another_models_checkpoint_is_refused(toy: Any, undisturbed: Path, tmp_path: Path) -> None:
    for how in ({"resume": undisturbed}, {"load_from": undisturbed}):
        with pytest.raises(CheckpointError, match=r"net\.0\.weight"):
            train(toy.toy_config(20, hidden=8), tmp_path, **how)
    with pytest.raises(CheckpointError, match="seed 3, this run has seed 4"):
        train(toy.toy_config(20), tmp_path, resume=undisturbed, seed=4)
    assert not list(tmp_path.glob("*.pth"))


def test_a_new_run_does_not_overwrite_an_old_one(toy: Any, undisturbed: Path) -> None:
    with pytest.raises(ConfigError, match=r"reached iter_20.*--resume"):
        train(toy.toy_config(20), undisturbed.parent)


def test_missing_checkpoint_is_named(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
        train(toy.toy_config(2), tmp_path, resume=tmp_path / "nowhere.pth")


def test_a_sampler_that_cannot_resume_is_refused(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(2)
    config.train_dataloader.sampler = dict(type="DefaultSampler", shuffle=True)
    with pytest.raises(ConfigError, match="DefaultSampler cannot resume"):
        train(config, tmp_path)


@pytest.mark.parametrize("part", ["model", "train_dataloader", "optim_wrapper", "param_scheduler"])
def test_a_type_that_nobody_registered_is_named(toy: Any, tmp_path: Path, part: str) -> None:
    config = toy.toy_config(5)
    node = config[part][0] if isinstance(config[part], list) else config[part]
    node = node.dataset if part == "train_dataloader" else node
    node.type = "NoSuchThing"
    with pytest.raises(ConfigError, match=f"{part}.* of the config.*type='NoSuchThing'"):
        train(config, tmp_path)


def test_settings_that_nothing_reads_are_named(toy: Any, tmp_path: Path) -> None:
    for key, value, words in (
        ("train_cfg.max_iter", 3, "train_cfg of the config.*'max_iter'"),
        ("train_cfg.max_iters", "many", "train_cfg.max_iters.*'many'"),
        ("checkpoint.intervall", 3, "checkpoint of the config.*'intervall'"),
    ):
        config = toy.toy_config(5)
        override(config, key, value)
        with pytest.raises(ConfigError, match=words):
            train(config, tmp_path)
    config = toy.toy_config(5)
    config.pop("train_cfg")
    with pytest.raises(ConfigError, match="the config has no train_cfg"):
        train(config, tmp_path)


def test_nonsense_is_refused_before_data_are_read(toy: Any, tmp_path: Path) -> None:
    for options, words in (
        ({"seed": -3}, "seed.*-3"),
        ({"max_minutes": -1}, "max_minutes.*-1"),
        ({"max_minutes": math.nan}, "max_minutes.*nan"),
        ({"load_from": "a.pth", "fine_tune": "b.pth"}, r"a\.pth.*b\.pth.*one of them"),
    ):
        config = toy.toy_config(5)
        config.train_dataloader.dataset.type = "Unread"
        with pytest.raises(ConfigError, match=words):
            train(config, tmp_path / "run", **options)
    config = toy.toy_config(0)
    config.train_dataloader.dataset.type = "Unread"
    with pytest.raises(ConfigError, match=r"max_iters.*0"):
        train(config, tmp_path / "run")
    config = toy.toy_config(5)
    config.train_dataloader.dataset.type = "Unread"
    for option in ("load_from", "fine_tune"):
        with pytest.raises(CheckpointError, match=r"absent\.pth"):
            train(config, tmp_path / "run", **{option: tmp_path / "absent.pth"})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/run: cannot be written"):
        train(config, tmp_path / "file" / "run")
    assert not (tmp_path / "run").exists()


def test_it_is_said_where_a_run_starts(
    toy: Any, undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said(**options: Any) -> str:
        caplog.clear()
        with caplog.at_level("INFO", logger="drivestack"):
            train(toy.toy_config(2), tmp_path / "run", **options)
        return caplog.records[0].getMessage()

    assert said(resume=True) == f"{tmp_path}/run: no checkpoint to resume, starting anew"
    assert said(resume=True, load_from=undisturbed) == (
        f"resuming {tmp_path}/run/iter_2.pth; --load-from {undisturbed} is not used, it is for new runs"
    )
    shutil.rmtree(tmp_path / "run")
    assert said(resume=True, fine_tune=undisturbed).endswith(f"starting from --fine-tune {undisturbed}")


def test_fine_tuning_starts_from_what_fits_and_reports_it(
    toy: Any, undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {**read_checkpoint(undisturbed)["state_dict"], "head.weight": torch.ones(2)}
    state["net.3.bias"] = torch.ones(3)
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    config = toy.toy_config(1)
    config.optim_wrapper.optimizer.update(lr=0.0, weight_decay=0.0)
    with caplog.at_level("INFO", logger="drivestack"):
        path = train(config, tmp_path / "run", fine_tune=tmp_path / "other.pth")
    checkpoint = read_checkpoint(path)
    for kind, prefix in (("state_dict", ""), ("ema_state_dict", "module.")):
        assert torch.equal(checkpoint[kind][f"{prefix}net.0.weight"], state["net.0.weight"])
    report = json.loads((tmp_path / "run" / "fine_tune.json").read_text())
    assert report["new"] == {"net.3.bias": "is [3], the model's [2]"} and report["left_out"] == {"head": 1}
    assert "3 tensors" in caplog.text and "started anew (1): net.3.bias" in caplog.text


def test_a_missing_data_root_names_the_command_that_writes_it(tmp_path: Path) -> None:
    config = load_config("bevformerv2_tiny_synthetic", {"train_dataloader.dataset.source.root": str(tmp_path / "no")})
    with pytest.raises(DataError, match=r"no: no such folder; write it with `for n in .*drivestack synthesize"):
        train(config, tmp_path / "run")
    config.data_command = None
    with pytest.raises(DataError, match=r"no: no such folder; name your own data with --set train_dataloader"):
        train(config, tmp_path / "run")


def test_gradients_are_logged_when_due_and_change_nothing(toy: Any, tmp_path: Path) -> None:
    class Shared(toy.ToyModel):  # type: ignore[misc,name-defined]
        measures_gradients = False
        gradients = None

        def forward(self, batch: Any, mode: str = "loss") -> dict[str, torch.Tensor]:
            losses = super().forward(batch, mode)
            if self.measures_gradients:
                self.gradients = {"norm_a": 1.5, "cosine_a_b": float("nan")}
            return losses

    def run(name: str, **more: Any) -> Path:
        config = toy.toy_config(10)
        config.model.type = Shared
        config.update(more)
        return train(config, tmp_path / name)

    plain, logged = run("plain"), run("logged", gradient_log_interval=4)
    a, b = (torch.load(path, weights_only=True)["state_dict"] for path in (plain, logged))
    assert all(torch.equal(a[name], b[name]) for name in a)
    records = [json.loads(line) for line in (logged.parent / "log.jsonl").read_text().splitlines()]
    found = [record for record in records if "gradients" in record]
    assert found == [{"iter": i, "gradients": {"norm_a": 1.5, "cosine_a_b": None}} for i in (4, 8)]
    with pytest.raises(ConfigError, match="gradient_log_interval: ToyModel has no tasks that share a map"):
        config = toy.toy_config(10)
        config.gradient_log_interval = 2
        train(config, tmp_path / "none")


def test_precision_auto_is_bf16_only_where_the_device_has_it(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from drivestack.engine import precision

    for has, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "_has_bfloat16", lambda kind, has=has: has)
        path = train(toy.toy_config(2, precision="auto"), tmp_path / expected)
        assert f"'precision': '{expected}'" in (path.parent / "config.py").read_text()
        same = train(toy.toy_config(2, precision=expected), tmp_path / f"named {expected}")
        assert_same(read_checkpoint(path), read_checkpoint(same))
    # a run goes on in the numbers in which it began
    whole = train(toy.toy_config(4, precision="bf16"), tmp_path / "whole")
    for resume in (True, tmp_path / "bf16" / "iter_2.pth"):
        shutil.copytree(tmp_path / "bf16", tmp_path / f"on {resume is True}")
        parts = train(toy.toy_config(4, precision="auto"), tmp_path / f"on {resume is True}", resume=resume)
        assert_same(read_checkpoint(whole), read_checkpoint(parts))
    forget_warnings()
    assert precision.chosen_precision("bf16", "cpu") == "bf16" and "slower than fp32" in caplog.text
    with pytest.raises(ConfigError, match="unknown precision 'half': choose from fp32, bf16, fp16, auto"):
        train(toy.toy_config(2, precision="half"), tmp_path / "none")


def test_gradients_clipped_by_value_are_measured_and_checked(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(6)
    config.optim_wrapper.clip_grad = dict(type="value", clip_value=1e-3)
    path = train(config, tmp_path)
    records = [json.loads(line) for line in (path.parent / "log.jsonl").read_text().splitlines()]
    norms = [record["gradient_norm"] for record in records if "gradient_norm" in record]
    assert norms and max(norms) > 0.1  # before they were clipped
    weight = torch.nn.Parameter(torch.zeros(1))
    clip = {"type": "value", "clip_value": 1e-3}
    wrapper = PrecisionOptimWrapper(torch.optim.AdamW([weight], lr=1.0), "fp32", clip_grad=clip)
    with pytest.raises(FloatingPointError, match="gradient norm is inf"):
        wrapper.update_params(weight.sqrt().sum())
    assert weight.item() == 0


def test_processes_that_would_start_differently_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines without a shared work folder: one resumes, the other would begin with fresh weights."""
    from drivestack.engine import train as module

    def gather(every: list[str], mine: str) -> None:
        every[:] = [mine, others]

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    start = module.Start("resume", Path("runs/a/iter_10.pth"))
    others = "resume iter_10.pth in bf16"
    module._demand_one_start(start, "bf16")
    with pytest.raises(ConfigError, match=r"process 0 starts with '.* in fp32', process 1 with '.* in bf16'"):
        module._demand_one_start(start, "fp32")
    others = "new in bf16"
    with pytest.raises(ConfigError, match=r"process 0 starts with 'resume iter_10.pth in bf16', process 1 with 'new"):
        module._demand_one_start(start, "bf16")


def test_what_a_start_needs_is_looked_for_before_data_are_read(
    toy: Any, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drivestack.engine import train as module

    monkeypatch.setattr(module, "completed", None)  # reads the training data
    with pytest.raises(CheckpointError, match="nowhere"):
        train(toy.toy_config(2), tmp_path, load_from=tmp_path / "nowhere.pth")
    with pytest.raises(ConfigError, match=r"reached iter_20.*--resume"):
        train(toy.toy_config(20), undisturbed.parent)


def test_tasks_without_a_label_are_said_before_training(caplog: pytest.LogCaptureFixture) -> None:
    from drivestack.engine.train import check_labels

    class Data(list):
        labelled_tasks = ("boxes",)

    model = SimpleNamespace(tasks=("boxes", "lanes"))
    check_labels(model, Data([1, 2]))
    assert "none of the 2 training frames has labels to learn lanes from" in caplog.text
    model.tasks = ("occupancy", "lanes")
    with pytest.raises(ConfigError, match="labels to learn occupancy, lanes from: let the dataset load them"):
        check_labels(model, Data([1, 2]))
    check_labels(model, [1, 2])  # data of other people state nothing
