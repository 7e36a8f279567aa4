"""The weights in the repository load strictly and answer what they answered when they were released."""

from __future__ import annotations

import json

import numpy as np
import pytest

from drivestack.bev.protocol import TASKS
from support import shipped_answers as shipped

RECORDED = json.loads(shipped.RECORD.read_text(encoding="utf-8"))
TOLERANCE = {
    "voxels_per_class": dict(rtol=1e-3, atol=5),  # a voxel between two classes may fall either way
    "mean_box": dict(rtol=0, atol=1e-2),  # metres
    "mean_middle": dict(rtol=0, atol=1e-2),
    "mean_cell": dict(rtol=0, atol=1e-2),  # cells
}


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    return shipped.answers()


def test_every_file_of_weights_is_in_the_record(repository_root):
    files = {path.stem for path in (repository_root / "weights").glob("*.safetensors")}
    assert files == RECORDED.keys()


@pytest.mark.parametrize(("name", "task"), [(name, task) for name in RECORDED for task in TASKS])
def test_answers_are_the_recorded_ones(found, name, task):
    assert (task in found[name]) == (task in RECORDED[name])
    for key, expected in RECORDED[name].get(task, {}).items():
        limits = TOLERANCE.get(key, dict(rtol=1e-3, atol=1e-4))
        np.testing.assert_allclose(found[name][task][key], expected, **limits, err_msg=key)


def test_the_record_says_something(found):
    """Scores of an untrained model are all alike; these find things."""
    for own in found.values():
        assert own["boxes"]["best_scores"][0] > 2 * own["boxes"]["score_sum"][0] / own["boxes"]["count"][0]
