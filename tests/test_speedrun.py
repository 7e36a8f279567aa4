"""The speedrun at toy size: stages follow one another, a killed run goes on, and the result says what was reached."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from drivestack.cli.main import main
from drivestack.core.errors import ConfigError
from drivestack.core.weights.files import read_metadata
from drivestack.data_tools import synthetic
from drivestack.data_tools.synthetic.recipes import RECIPES
from drivestack.engine.config import load_config

SMALL = {
    "train_dataloader.dataset.image.train_heights_px": (32,),
    "test_dataset.image.test_height_px": 32,
    "model.occupancy_head.columns_per_sample": 50,
}


@pytest.fixture
def speedrun(repository_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository_root / "benchmarks")
    return importlib.import_module("speedrun")


def test_a_small_recipe_from_nothing_to_a_result(
    speedrun: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = importlib.import_module("speedrun_recipes").Stage
    heads = {**SMALL, "model.frozen": ["img_backbone.", "img_neck.", "bev_map."], "cache_features": "{out}/features"}
    stages = (
        stage("joint", "perception_tiny_synthetic", 2, SMALL, processes=1),
        stage("heads", "perception_tiny_synthetic", 1, heads, processes=1),
    )
    recipe = speedrun.Recipe(stages, sets=("toy",))
    calls: list[str] = []

    def launch(arguments: Sequence[str], processes: int) -> Any:
        calls.append(arguments[arguments.index("--work-dir") + 1].rpartition("/")[2])
        if calls == ["joint", "heads"]:
            raise KeyboardInterrupt  # the user, when the second stage has begun
        status = 2 if calls[-1] == "no" else main([str(argument) for argument in arguments])
        return SimpleNamespace(poll=lambda: status)

    demo = replace(RECIPES["demo"], seed=8, num_scenes=1, keyframes_per_scene=2, image_width_px=96)
    toy = replace(RECIPES["train100"], seed=7, num_scenes=1, keyframes_per_scene=2, image_width_px=96)
    monkeypatch.setitem(speedrun.SETS, "toy", toy)
    monkeypatch.setattr(speedrun, "commit", lambda: "0123abc")
    go = lambda chosen=recipe, name="small", seed=5: speedrun.run(
        chosen, name, tmp_path / "out", tmp_path / "data", seed, demo, launch, say=lambda text: None
    )
    with pytest.raises(KeyboardInterrupt):
        go()
    result = go()
    assert calls == ["joint", "heads", "heads"] and result == json.loads((tmp_path / "out" / "result.json").read_text())
    joint, last = result["stages"]
    assert (joint["attempts"], last["attempts"]) == (1, 2) and joint["wall_s"] > 0 and joint["cpu_s"] > 0
    assert not result["record"] and set(result["reached"]) == set(result["scores"]) == {"nds", "miou", "ols"}
    assert result["minutes"]["sum"] >= result["minutes"]["training"] > 0 and result["commits"] == ["0123abc"]
    assert result["seed"] == 5 and "seed = 5" in (tmp_path / "out" / "heads" / "config.py").read_text()
    weights = read_metadata(tmp_path / "out" / "perception_tiny_synthetic.safetensors")
    assert json.loads(weights["pc_range"]) == [-42.0, -42.0, -5.0, 42.0, 42.0, 3.0]
    assert (
        weights["recipe"] == "small" and len(json.loads(weights["lineage"])) == 2
    )  # the second started from the first
    assert len(list((tmp_path / "out" / "features").iterdir())) == 1
    go()
    assert json.loads((tmp_path / "out" / "state.json").read_text())["parts"]["evaluation"]["attempts"] == 1
    assert len(calls) == 3  # nothing is trained again
    changed = replace(recipe, stages=(stages[0], replace(stages[1], changes={**heads, "model.grid_mask": True})))
    with pytest.raises(ConfigError, match="stage heads has begun with other settings of the recipe or its config"):
        go(changed)
    with pytest.raises(ConfigError, match="of recipe small; choose another --out for other"):
        go(name="other")
    with pytest.raises(ConfigError, match="of seed 5; choose another --out for 6"):
        go(seed=6)
    state = tmp_path / "out" / "state.json"
    written = state.read_text()
    state.write_text(json.dumps({k: v for k, v in json.loads(written).items() if k != "seed"}))
    with pytest.raises(ConfigError, match="of seed 0; choose another --out for 5"):  # as before seeds were written
        go()
    state.write_text(written)
    before = len(calls)
    longer = lambda changes: replace(
        recipe, stages=(*stages, stage("no", "perception_tiny_synthetic", 1, changes, processes=1))
    )
    with pytest.raises(ConfigError, match=r"train_dataloader\.batch_size: must be a whole number from 1"):
        go(longer({"train_dataloader.batch_size": 0}))
    assert len(calls) == before  # before any training
    broken = longer({})
    with pytest.raises(ConfigError, match="stage no ended with status 2: see above; the same command goes on"):
        go(broken)


def test_another_set_in_a_sets_folder_is_refused_before_anything_is_rendered(
    speedrun: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = replace(RECIPES["train100"], seed=7, num_scenes=1, keyframes_per_scene=1, image_width_px=96)
    for name in ("missing", "there"):
        monkeypatch.setitem(speedrun.SETS, name, toy)
    synthetic.synthesize(tmp_path / "data" / "there", **replace(toy, labels=("lanes",)).arguments())
    recipe = speedrun.Recipe((speedrun.Stage("a", "perception_tiny_synthetic", 1),), sets=("missing", "there"))
    with pytest.raises(
        ConfigError, match=r"there holds another synthetic dataset \(labels: has \['lanes'\], requested"
    ):
        speedrun.run(recipe, "r", tmp_path / "out", tmp_path / "data", say=lambda text: None)
    assert not (tmp_path / "data" / "missing").exists()


def test_a_result_is_a_record_when_all_thresholds_are_reached(speedrun: ModuleType, tmp_path: Path) -> None:
    part = {"wall_s": 600.0, "cpu_s": 1000.0, "attempts": 1, "done": True}
    recipe = speedrun.Recipe((speedrun.Stage("a", "x", 10),))
    notes = speedrun.Notes(tmp_path / "state.json", "r", 0)
    notes.parts.update({"a": part, "data 1": part, "evaluation": part})
    good = {"nds": 0.5, "miou": 0.4, "ols": 0.53, "mAP": 0.1}
    result = speedrun.summary("r", recipe, 0, notes, good)
    assert result["record"] and result["minutes"] == {"training": 10, "data": 10, "evaluation": 10, "sum": 30}
    assert not speedrun.summary("r", recipe, 0, notes, {**good, "ols": 0.5299})["record"]
    assert not speedrun.summary("r", recipe, 0, notes, {**good, "ols": None})["record"]  # no label of a lane


def test_all_recipes_name_configs_and_entries_that_exist(speedrun: ModuleType) -> None:
    for recipe in speedrun.RECIPES.values():
        assert all(RECIPES[name].split == "train" for name in recipe.sets)
        names = [stage.name for stage in recipe.stages]
        assert len(set(names)) == len(names)
        for stage in recipe.stages:
            config = load_config(stage.config, dict(stage.changes))
            for key, value in stage.changes.items():
                node: Any = config
                for part in key.split("."):
                    node = node[int(part)] if part.isdigit() else node[part]
                assert node == value or key == "param_scheduler"
