"""The shipped weights on streets they have not seen: they answer, and they do so by geometry."""

from dataclasses import replace
from pathlib import Path

import pytest

from drivestack.demo import DEMO_WEIGHTS, DemoRecipe, run_demo

RECIPE = replace(DemoRecipe(), seed=90_002, num_scenes=2, keyframes_per_scene=4)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory):
    out: Path = tmp_path_factory.mktemp("demo")  # the streets are made once, then found there

    def run(perturbation: str | None = None, weights: Path | None = DEMO_WEIGHTS) -> dict:
        return run_demo(out, RECIPE, weights=weights, perturbation=perturbation, num_pictures=0)

    return {"right": run(), "shuffled": run("shuffle"), "turned": run("yaw:30"), "random": run(weights=None)}


def test_shipped_weights_detect_and_random_ones_do_not(scores: dict[str, dict]):
    assert scores["right"]["ap"]["car"] > 0.3
    assert scores["right"]["map"] > 0.2
    assert scores["random"]["map"] < 0.01


@pytest.mark.parametrize("wrong", ["shuffled", "turned"])
def test_wrong_calibration_hurts(scores: dict[str, dict], wrong: str):
    assert scores[wrong]["map"] < scores["right"]["map"] / 2


HEADS = ("miou", "det_l")


def test_voxels_and_lanes_are_found_too_and_by_geometry(scores: dict[str, dict]):
    if "miou" not in scores["right"]:
        pytest.skip("the shipped model answers boxes alone")
    for head in HEADS:
        assert scores["right"][head] > 0.2, head
        assert scores["random"][head] < 0.05, head
        assert scores["shuffled"][head] < scores["right"][head] / 2, head
