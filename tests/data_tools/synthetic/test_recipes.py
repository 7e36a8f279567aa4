"""Sets by name: what the command writes, and that sets to be scored are never trained on."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

from drivestack.cli.main import main
from drivestack.data_tools.synthetic.files import generate
from drivestack.data_tools.synthetic.recipes import RECIPES
from drivestack.data_tools.synthetic.world.families import STREETS


def test_no_two_sets_share_a_seed_and_scored_ones_are_not_trained_on():
    for (_, a), (_, b) in combinations(RECIPES.items(), 2):
        assert a.seed != b.seed
    for name, recipe in RECIPES.items():
        assert recipe.split == ("train" if name.startswith("train") else "val"), name
        assert (recipe.seed < 1000) == (recipe.split == "train")


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """What synthesize builds, without building it."""
    found: list[dict] = []
    monkeypatch.setattr(generate, "_build", lambda root, recipe, workers, progress: found.append(recipe.manifest()))
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_writes_a_recipe(asked, tmp_path, name):
    assert main(["synthesize", str(tmp_path / "set"), "--recipe", name]) == 0
    recipe = RECIPES[name]
    assert asked[0]["scenes"] == {recipe.split: recipe.num_scenes} and asked[0]["seed"] == recipe.seed
    assert asked[0].get("streets", "plain") == recipe.streets
    assert asked[0]["labels"] == tuple(sorted(recipe.labels))
    json.dumps(asked[0])


def test_labels_may_be_chosen_and_what_a_recipe_says_may_not(asked, tmp_path, capsys):
    folder = str(tmp_path / "set")
    assert main(["synthesize", folder, "--recipe", "judge", "--labels", "lanes", "depth"]) == 0
    assert asked[0]["labels"] == ("depth", "lanes")
    assert main(["synthesize", folder, "--recipe", "judge", "--image-width", "320", "--seed", "3"]) != 0
    assert "--recipe judge says --seed, --image-width; leave out one or the other" in capsys.readouterr().err
    assert len(asked) == 1


def test_the_command_without_a_recipe_has_its_old_defaults_and_offers_all_streets(asked, tmp_path):
    for streets in STREETS:
        assert main(["synthesize", str(tmp_path / "set"), "--streets", streets, "--split", "val"]) == 0
    assert main(["synthesize", str(tmp_path / "set")]) == 0
    assert asked[-1]["scenes"] == {"train": 20} and asked[-1]["keyframes_per_scene"] == 20
    assert asked[-1]["seed"] == 0 and asked[-1]["image_width_px"] == 640 and "streets" not in asked[-1]
    assert asked[-1]["labels"] == ("lanes", "occupancy")
