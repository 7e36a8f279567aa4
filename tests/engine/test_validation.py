"""Scores during training: on the weights that are saved, without a trace in the training, the best one kept."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from drivestack.core.errors import ConfigError
from drivestack.engine.checkpoints import latest_checkpoint, read_checkpoint
from drivestack.engine.train import train
from drivestack.engine.validation import undisturbed

SCORES = {4: 0.2, 8: 0.5, 12: 0.4, 16: 0.5, 20: 0.1}  # the second 0.5 is no improvement


def scored(toy: Any, max_iters: int = 20, **validation: Any) -> Any:
    config = toy.toy_config(max_iters)
    config.validation = {"interval": 4, "metric": "NDS", **validation}
    return config


def disturb(model: nn.Module, iteration: int) -> dict[str, float]:
    """Scores of the table, after drawing numbers and moving modes about."""
    assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
    random.random(), np.random.rand(), torch.rand(3)
    model.net[0].train()
    return {"NDS": SCORES.get(iteration, 0.0), "mAP": iteration / 100}


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def validations(folder: Path) -> dict[int, dict[str, float]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {record["iter"]: record["validation"] for record in records if "validation" in record}


def test_training_is_the_same_with_and_without(toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = train(toy.toy_config(20), tmp_path / "plain")
    with caplog.at_level("INFO", logger="drivestack"):
        path = train(scored(toy), tmp_path / "scored", evaluate=disturb)
    a, b = read_checkpoint(plain), read_checkpoint(path)
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(value, b[part][name]) for name, value in a[part].items())
    assert str(a["optimizer"]) == str(b["optimizer"]) and a["meta"] == b["meta"]
    assert {i: scores["NDS"] for i, scores in validations(tmp_path / "scored").items()} == SCORES
    lines = [record.getMessage() for record in caplog.records if "validation" in record.getMessage()]
    assert lines[1:3] == [
        "validation at iter 8  NDS 0.5000 (the best so far)",
        "validation at iter 12  NDS 0.4000 (best 0.5000 at iter 8)",
    ]


def test_modes_are_restored_module_by_module(toy: Any, tmp_path: Path) -> None:
    seen: list[nn.Module] = []
    config = scored(toy, 4)
    train(config, tmp_path, evaluate=lambda model, iteration: (seen.append(model), disturb(model, iteration))[1])
    assert all(module.training for module in seen[0].modules())


def test_the_averaged_weights_are_scored_and_kept(toy: Any, tmp_path: Path) -> None:
    seen: dict[int, torch.Tensor] = {}

    def evaluate(model: nn.Module, iteration: int) -> dict[str, float]:
        seen[iteration] = model.state_dict()["net.0.weight"].clone()
        return disturb(model, iteration)

    train(scored(toy), tmp_path, evaluate=evaluate)
    assert torch.equal(seen[20], weights_of(tmp_path / "iter_20.pth")["net.0.weight"])
    best = read_checkpoint(tmp_path / "best.pth")
    assert best["meta"]["best"] == {"metric": "NDS", "score": 0.5, "iter": 8} and best["meta"]["iter"] == 8
    assert torch.equal(seen[8], best["state_dict"]["net.0.weight"])
    assert latest_checkpoint(tmp_path) == tmp_path / "iter_20.pth"


@pytest.mark.parametrize("stop", [6, 11])
def test_the_best_survives_an_interruption(toy: Any, tmp_path: Path, stop: int) -> None:
    train(scored(toy), tmp_path / "whole", evaluate=disturb)
    train(scored(toy, stop), tmp_path / "parts", evaluate=disturb)
    train(scored(toy), tmp_path / "parts", evaluate=disturb, resume=True)
    whole, parts = (read_checkpoint(tmp_path / name / "best.pth") for name in ("whole", "parts"))
    assert whole["meta"] == parts["meta"]
    assert all(torch.equal(value, parts["state_dict"][name]) for name, value in whole["state_dict"].items())


def test_training_goes_on_from_the_best(toy: Any, tmp_path: Path) -> None:
    whole = train(scored(toy), tmp_path / "a", evaluate=disturb)
    again = train(scored(toy), tmp_path / "b", evaluate=disturb, resume=tmp_path / "a" / "best.pth")
    assert all(torch.equal(value, weights_of(again)[name]) for name, value in weights_of(whole).items())


def test_lower_may_be_better_and_nan_never_is(toy: Any, tmp_path: Path) -> None:
    errors = {4: 3.0, 8: math.nan, 12: 2.0, 16: 2.5, 20: math.inf}
    config = scored(toy, metric="error", mode="min")
    train(config, tmp_path, evaluate=lambda model, iteration: {"error": errors[iteration]})
    assert read_checkpoint(tmp_path / "best.pth")["meta"]["best"] == {"metric": "error", "score": 2.0, "iter": 12}
    assert validations(tmp_path)[8] == {"error": None}


@pytest.mark.parametrize(
    ("validation", "evaluate", "words"),
    [
        ({}, None, "no evaluate function.*validation=None"),
        ({"metric": "mIoU"}, disturb, r"validation.metric 'mIoU': the scores are NDS, mAP"),
        ({"interval": 0}, disturb, "validation.interval.*0"),
        ({"mode": "best"}, disturb, "validation.mode.*'best'"),
        ({"metrik": "x"}, disturb, "validation of the config.*'metrik'"),
    ],
)
def test_what_cannot_be_validated_is_named(
    toy: Any, tmp_path: Path, validation: dict[str, Any], evaluate: Callable | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(scored(toy, 4, **validation), tmp_path, evaluate=evaluate)


def test_a_metric_that_does_not_exist_is_said_before_the_first_step(toy: Any, tmp_path: Path) -> None:
    class Named:
        names = ("OLS", "DET_L")

        def __call__(self, model: Any, iteration: int) -> dict[str, float]:
            raise AssertionError("nothing is scored")

    with pytest.raises(ConfigError, match=r"validation.metric 'ols': the scores are DET_L, OLS"):
        train(scored(toy, 8, metric="ols"), tmp_path, evaluate=Named())
    assert not list(tmp_path.glob("iter_*"))


def test_curves_for_tensorboard_where_asked_for(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves: dict[str, list[int]] = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "run")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            curves.setdefault(name, []).append(step)

        def flush(self) -> None: ...

        def close(self) -> None:
            curves["closed"] = []

    config = scored(toy, 8)
    config.tensorboard = True
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"tensorboard=True.*pip install tensorboard"):
        train(config, tmp_path / "run", evaluate=disturb)
    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    train(config, tmp_path / "run", evaluate=disturb)
    assert curves["train/loss"] == [5, 8] and curves["validation/NDS"] == [4, 8] and "closed" in curves


def test_generators_go_on_as_if_nothing_had_been_drawn() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    model = nn.Linear(1, 1)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    with pytest.raises(RuntimeError), undisturbed(model):
        draw()
        raise RuntimeError
    assert draw() == expected
