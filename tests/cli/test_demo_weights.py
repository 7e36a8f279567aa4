"""The shipped weights on streets they have not seen: they answer, and they do so by geometry."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from drivestack.cli.demo import run_demo
from drivestack.data_tools.synthetic.recipes import RECIPES

RECIPE = replace(RECIPES["demo"], seed=90_002, num_scenes=2, keyframes_per_scene=4)

Run = Callable[[str], dict]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Scores by "right", "shuffled", "turned" (calibration) or "random" (weights)."""
    out: Path = tmp_path_factory.mktemp("demo")  # the streets are made once, then found there
    how = {"right": {}, "shuffled": {"perturbation": "shuffle"}, "turned": {"perturbation": "yaw:30"}}
    how["random"] = {"weights": None}
    return cache(lambda name: run_demo(out, RECIPE, num_pictures=0, **how[name]))


def test_shipped_weights_detect_and_random_ones_do_not(run: Run):
    assert run("right")["ap"]["car"] > 0.3
    assert run("right")["map"] > 0.2
    assert run("random")["map"] < 0.01


@pytest.mark.parametrize("wrong", ["shuffled", "turned"])
def test_wrong_calibration_hurts(run: Run, wrong: str):
    assert run(wrong)["map"] < run("right")["map"] / 2
    assert run(wrong)["miou"] < run("right")["miou"] / 2
    assert run(wrong)["det_l"] < run("right")["det_l"] / 2


def test_shipped_weights_know_voxels_and_lanes_and_random_ones_do_not(run: Run):
    for key, at_least in (("miou", 0.25), ("rayiou", 0.25), ("det_l", 0.2), ("top_ll", 0.1), ("ols", 0.33)):
        assert run("right")[key] > at_least, key
    for key in ("miou", "rayiou", "det_l", "top_ll", "top_lt"):
        assert run("random")[key] < 0.05, key
