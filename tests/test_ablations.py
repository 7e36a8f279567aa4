"""Experiments with seeds: trained once, resumed, compared with a control, and no claim within the noise."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest

from drivestack.core.errors import CheckpointError, ConfigError
from support import toy_training as toy

TABLE = """
from experiments import Experiment
EXPERIMENTS = [
    Experiment("today", 10),
    Experiment("idea", 10, {"x": 1}, start="today"),
    Experiment("as shipped", 0),
]
"""


@pytest.fixture
def ablations(repository_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository_root / "benchmarks")
    return importlib.import_module("ablations")


@pytest.fixture
def command(ablations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a table whose trainings are toys and whose scores tell them apart."""
    table = tmp_path / "table.py"
    table.write_text(TABLE)
    monkeypatch.setattr(ablations.Runs, "config", lambda self, e: toy.toy_config(e.iterations or 1))

    def train(config, work_dir, load_from=None, **settings):
        return toy.train(config, work_dir, **settings)

    monkeypatch.setattr(importlib.import_module("training_runs").drivestack, "train", train)
    monkeypatch.setattr(
        ablations.Runs, "score", lambda self, e, weights, root, keep: {"NDS": score(e.name, keep, root)}
    )
    sets = ["--sets"]
    for name, root in {"a": tmp_path / "near", "b": tmp_path / "far"}.items():
        root.mkdir()
        sets.append(f"{name}={root}")
    return [
        str(table),
        "--out",
        str(tmp_path / "out"),
        "--data",
        "train=x",
        *sets,
        "--seeds",
        "0",
        "1",
        "--threads",
        "1",
    ]


def score(name: str, keep: Path, root: str) -> float:
    seed = int(keep.parent.name[-1])
    return {"today": 0.5, "idea": 0.6, "as shipped": 0.505}[name] + 0.01 * seed - 0.1 * (Path(root).name == "far")


def test_every_experiment_is_trained_and_scored_once(
    ablations: ModuleType, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert ablations.main(command)
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {(r["experiment"], r["seed"], r["set"]) for r in rows} == {
        *((name, seed, own) for name in ("today", "idea") for seed in (0, 1) for own in "ab"),
        *(("as shipped", 0, own) for own in "ab"),
    }
    assert all(row["cpu_s"] > 0 and row["wall_s"] > 0 for row in rows if row["iterations"])
    table = (tmp_path / "out" / "tables.md").read_text()
    assert "On `a`:" in table and "On `b`:" in table and "| today | 2 | 10 |" in table
    assert "0.5050 ± 0.0071" in table and "0.6050 ± 0.0071 (**+0.1000** better)" in table
    assert "| as shipped | 1 | 0 | - | 0.5050 (+0.0000) |" in table
    capsys.readouterr()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != "tables.md"}
    assert ablations.main(command) and "seed" not in capsys.readouterr().out.replace("| seeds |", "")
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_time_over_and_the_same_command_goes_on(
    ablations: ModuleType, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert not ablations.main([*command, "--max-minutes", "0"]) and not (out / "today_0").exists()
    whole = toy.train(toy.toy_config(10), tmp_path / "whole", seed=0)
    runs = ablations.Runs(out, ablations.read_table(command[0]), {"train": ["x"]})
    today = runs.table["today"]
    assert runs.weights(today, 0, 0.0) is None  # one step, then the time is over
    last = runs.weights(today, 0, None)
    sessions = [json.loads(line) for line in (out / "today_0" / "cost.jsonl").read_text().splitlines()]
    assert sum(session["iterations"] for session in sessions) == 10 and len(sessions) == 2
    weights = [toy.torch.load(path, weights_only=True)["state_dict"] for path in (whole, last)]
    assert all(toy.torch.equal(a, b) for a, b in zip(*(own.values() for own in weights)))


def test_changed_experiments_are_not_mixed(ablations: ModuleType, command: list[str]) -> None:
    assert ablations.main([*command, "--only", "today", "--seeds", "0"])
    table = Path(command[0])
    table.write_text(TABLE.replace('"today", 10', '"today", 11'))
    with pytest.raises(ConfigError, match="today had other settings; rename"):
        ablations.main(command)
    table.write_text(TABLE.replace("10),", '10, control="tomorrow"),'))
    with pytest.raises(ConfigError, match="control 'tomorrow' is none of today, idea"):
        ablations.main(command)
    with pytest.raises(ConfigError, match=r"no table of experiments; there are .*noise"):
        ablations.read_table("nois")


def test_an_experiment_may_start_from_another(ablations: ModuleType, command: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="starts from 'today', seed 1, which has to run first"):
        ablations.main([*command, "--only", "idea", "--seeds", "1"])
    runs = ablations.Runs(tmp_path, ablations.read_table(command[0]), {})
    (tmp_path / "today_1").mkdir()
    (tmp_path / "today_1" / "iter_10.pth").touch()
    assert runs.start(runs.table["idea"], 1) == tmp_path / "today_1" / "iter_10.pth"
    with pytest.raises(ConfigError, match=r"no root of the data 'train': give --data train=ROOT"):
        runs.roots(runs.table["today"])


def test_trained_weights_asked_in_another_way_have_all_their_seeds(ablations: ModuleType, tmp_path: Path) -> None:
    other = ablations.Experiment("idea, forgotten", 0, start="idea")
    shipped = ablations.Experiment("as shipped", 0)
    runs = ablations.Runs(tmp_path, [ablations.Experiment("idea", 10), other, shipped], {})
    assert runs.seeds(other, (0, 1, 2)) == (0, 1, 2) and runs.seeds(shipped, (0, 1, 2)) == (0,)


def test_the_shipped_tables_make_configs(ablations: ModuleType, repository_root: Path) -> None:
    for path in (repository_root / "benchmarks" / "experiments").glob("[!_]*.py"):
        table = ablations.read_table(path.stem)
        names = {name: ["root"] for experiment in table for name in experiment.data}
        runs = ablations.Runs(Path(), table, names)
        for experiment in table:
            config = runs.config(experiment)
            if experiment.iterations:
                assert config.train_cfg.max_iters == experiment.iterations
                assert config.train_dataloader.dataset.source.root == ["root"] * len(experiment.data)
                assert config.param_scheduler[-1]["end"] == experiment.iterations


def test_nothing_below_two_standard_deviations_is_claimed(ablations: ModuleType) -> None:
    runs = importlib.import_module("training_runs")
    control, noisy = runs.Spread.of([0.50, 0.51, 0.52]), runs.Spread.of([0.50, 0.55, 0.60])
    assert control.deviation == pytest.approx(0.01)
    assert runs.claim(runs.Spread.of([0.53]), control)[1] == "better"
    assert runs.claim(runs.Spread.of([0.529]), control)[1] == ""
    assert runs.claim(runs.Spread.of([0.48]), control)[1] == "worse"
    assert runs.claim(runs.Spread.of([0.48]), control, lower_is_better=True)[1] == "better"
    assert runs.claim(noisy, control)[1] == ""  # its own spread counts
    assert runs.claim(runs.Spread.of([0.6]), runs.Spread.of([0.5]))[1] == "?"
    assert math.isnan(runs.claim(runs.Spread.of([math.nan]), control)[0])


def test_a_line_that_a_kill_cut_short_is_left_out(ablations: ModuleType, tmp_path: Path) -> None:
    runs = importlib.import_module("training_runs")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"iter": 1}\n{"it')
    assert list(runs.records(lines)) == [{"iter": 1}]
    cut = tmp_path / runs.COST
    cut.write_text('{"iterations": 50, "cpu_s": 10.0, "wall_s": 20.0}\n')
    assert runs.cost(tmp_path, 100) == {"cpu_s": 20.0, "wall_s": 40.0}  # the other half was killed
    assert math.isnan(runs.cost(tmp_path / "none", 100)["cpu_s"])


def test_what_would_fail_later_fails_before_the_first_training(
    ablations: ModuleType, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Path(command[0])
    monkeypatch.setattr(ablations.Runs, "weights", None)  # nothing is trained
    table.write_text(TABLE.replace("0),", '0, start="nowhere.pth"),'))
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such checkpoint"):
        ablations.main(command)
    table.write_text(TABLE.replace('start="today"', 'data=["more"]'))
    with pytest.raises(ConfigError, match="idea: no root of the data 'more'"):
        ablations.main(command)
    table.write_text(TABLE)
    with pytest.raises(ConfigError, match=r"--sets: no folder .*nowhere"):
        ablations.main([*command, "--sets", f"c={tmp_path / 'nowhere'}"])
    with pytest.raises(ConfigError, match="c=y: c is x already; give it another name"):
        ablations.main([*command, "--sets", "c=x", "c=y"])


def test_weights_as_they_are_have_one_result_whatever_the_seeds(
    ablations: ModuleType, command: list[str], capsys: pytest.CaptureFixture
) -> None:
    only = ["--only", "as shipped"]
    assert ablations.main([*command, *only]) and ablations.main([*command, *only, "--seeds", "3", "4"])
    assert capsys.readouterr().out.count("as shipped, seed 0, a") == 1
    assert ablations.main([*command, *only, "--metrics", "NDX"])
    assert "no result has NDX; they have NDS" in capsys.readouterr().err
