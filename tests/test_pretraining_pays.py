"""The experiment on pretraining: its arithmetic, and its picture."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

SCRATCH = {0: [(0, 0.0), (100, 0.1), (200, 0.2)], 1: [(0, 0.0), (100, 0.2), (200, 0.4)]}
BETTER = {0: [(0, 0.0), (100, 0.2), (200, 0.3)], 1: [(0, 0.0), (100, 0.3), (200, 0.5)]}
WORSE = {0: [(0, 0.0), (100, 0.1), (200, 0.1)], 1: [(0, 0.0), (100, 0.1), (200, 0.1)]}


@pytest.fixture
def pays(repository_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository_root / "benchmarks")
    return importlib.import_module("pretraining_pays")


def test_the_share_of_iterations_that_an_arm_needs(pays: ModuleType) -> None:
    found = pays.summary({"scratch": SCRATCH, "better": BETTER, "worse": WORSE})
    assert found["scratch"]["share"] == 1.0 and found["scratch"]["final"] == 0.3
    assert found["better"]["share_by_seed"] == {0: 0.5, 1: 0.75}
    assert found["better"]["share"] == pytest.approx(133.33 / 200, abs=1e-3)  # mean 0.25 at 100, 0.4 at 200
    assert found["worse"]["share"] is None and found["worse"]["share_by_seed"] == {0: None, 1: None}
    assert pays.reached(SCRATCH[0], 0.15) == 150 and pays.reached(SCRATCH[0], 0.21) is None


def test_results_are_written_also_where_one_arm_is_behind(pays: ModuleType, tmp_path: Path) -> None:
    pays.write(tmp_path, {"scratch": SCRATCH, "better": {0: BETTER[0]}}, "mAP", "a title")
    rows = (tmp_path / "curves.csv").read_text().splitlines()
    assert rows[0] == "arm,seed,iteration,mAP" and "better,0,100,0.2" in rows and len(rows) == 10
    assert json.loads((tmp_path / "summary.json").read_text())["better"]["seeds"] == [0]
    lines = ElementTree.fromstring((tmp_path / "curves.svg").read_text()).iter("{http://www.w3.org/2000/svg}polyline")
    assert len(list(lines)) == 2 + 1 + 1 + 1  # seeds and a mean of each


def test_a_repeated_validation_counts_once(pays: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    records = [{"iter": 50, "loss": 1.0}] + [{"iter": 100, "validation": {"mAP": v}} for v in (0.1, 0.2, None)]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert pays.curve_of(log, "mAP") == [(0, 0.0), (100, 0.0)]
