"""Scores equal those of the official package on random scenes.

Needs `pip install --no-deps openlanev2==2.1.0 ortools==9.15.6755 similaritymeasures iso3166 chardet absl-py
immutabledict` (docs/lane_topology.md); skipped where they are not installed.
"""

from __future__ import annotations

import copy
import importlib
import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivestack.core.answers import LaneGraph
from drivestack.core.labels import LaneLabels
from drivestack.lane_topology.evaluation.fscore import fscore
from drivestack.lane_topology.evaluation.ols import evaluate
from drivestack.lane_topology.evaluation.submission import Team, frame_entry

OFFICIAL = {"det_l": "DET_l", "det_t": "DET_t", "top_ll": "TOP_ll", "top_lt": "TOP_lt", "ols": "score"}


@pytest.fixture(scope="module")
def official():
    pytest.importorskip("openlanev2")
    flow = pytest.importorskip("ortools.graph.python.min_cost_flow")

    class SimpleMinCostFlow:
        """The interface that OR-tools had before version 9.4, which the package imports."""

        def __init__(self):
            self.solver = flow.SimpleMinCostFlow()
            self.OPTIMAL = self.solver.OPTIMAL

        def AddArcWithCapacityAndUnitCost(self, *arc):
            return self.solver.add_arc_with_capacity_and_unit_cost(*map(int, arc))

        def SetNodeSupply(self, node, supply):
            self.solver.set_node_supply(int(node), int(supply))

        def __getattr__(self, name):  # Solve, NumArcs, Tail, Head, Flow, UnitCost
            new = "".join("_" + letter.lower() if letter.isupper() else letter for letter in name).lstrip("_")
            return getattr(self.solver, new)

    shim = ModuleType("ortools.graph.pywrapgraph")
    shim.SimpleMinCostFlow = SimpleMinCostFlow
    sys.modules[shim.__name__] = shim
    importlib.import_module("ortools.graph").pywrapgraph = shim
    return importlib.import_module("openlanev2.centerline.evaluation.evaluate").evaluate


def scene(rng: np.random.Generator, scores: np.ndarray) -> tuple[LaneLabels, LaneGraph]:
    """Labels of 0 .. 6 lanes and 0 .. 4 elements, and predictions: most of them disturbed a little, some foreign."""
    n, k, points = rng.integers(0, 7), rng.integers(0, 5), rng.integers(2, 15)
    t = np.linspace(0, 1, points)[:, None]
    start, end = rng.uniform([-45, -20, -1], [45, 20, 1], (2, n, 3))
    lanes = (start[:, None] + t * (end - start)[:, None] + rng.normal(0, 0.3, (n, points, 3))).astype(np.float32)
    corner = rng.uniform(0, 900, (k, 2))
    boxes = np.hstack([corner, corner + rng.uniform(10, 80, (k, 2))]).astype(np.float32)
    attributes = rng.integers(0, 13, k)
    edges = (rng.random((n, n)) < 0.3).astype(np.int8)
    relations = (rng.random((n, k)) < 0.4).astype(np.int8)
    truth = LaneLabels(list(lanes), np.zeros(n, bool), boxes, attributes, edges, relations)

    kept, kept_boxes = rng.permutation(n)[: rng.integers(0, n + 1)], rng.permutation(k)[: rng.integers(0, k + 1)]
    extra, extra_boxes = rng.integers(0, 4), rng.integers(0, 3)
    near = lanes[kept] + rng.normal(0, 1, (len(kept), 1, 3)) * rng.choice([0.1, 0.7, 1.5])
    m, j = len(kept) + extra, len(kept_boxes) + extra_boxes
    found_boxes = np.vstack([boxes[kept_boxes] + rng.normal(0, 4, (len(kept_boxes), 4)), np.zeros((extra_boxes, 4))])
    found_boxes[len(kept_boxes) :] = [[0, 0, 40, 40]] + rng.uniform(0, 30, (extra_boxes, 4))
    found_boxes[:, 2:] = np.maximum(found_boxes[:, 2:], found_boxes[:, :2] + 1)
    kinds = np.concatenate([attributes[kept_boxes], rng.integers(0, 13, extra_boxes)])
    confident = rng.permutation(m * m + m * j).astype(np.float32) / (m * m + m * j + 1)
    found = LaneGraph(
        "",
        np.concatenate([near, rng.uniform(-40, 40, (extra, points, 3))]).astype(np.float32),
        scores[:m],
        found_boxes.astype(np.float32),
        kinds,
        scores[m : m + j],
        confident[: m * m].reshape(m, m),
        confident[m * m :].reshape(m, j),
    )
    return truth, found


def collection_entry(truth: LaneLabels) -> dict:
    n = len(truth.centrelines)
    return {
        "lane_centerline": [{"id": i, "points": line} for i, line in enumerate(truth.centrelines)],
        "traffic_element": [
            {"id": n + i, "points": box.reshape(2, 2), "attribute": int(attribute), "category": 1}
            for i, (box, attribute) in enumerate(zip(truth.elements_xyxy_px, truth.attributes))
        ],
        "topology_lclc": truth.lane_lane,
        "topology_lcte": truth.lane_element,
    }


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 3))
def test_random_scenes_score_the_same(official, seed, frames):
    rng = np.random.default_rng(seed)
    scores = (rng.permutation(frames * 16) / (frames * 16)).astype(np.float32).reshape(frames, 16)  # no ties
    pairs = [scene(rng, of_frame) for of_frame in scores]
    keys = [("val", "0", str(i)) for i in range(frames)]
    truths = {key: {"annotation": collection_entry(truth)} for key, (truth, _) in zip(keys, pairs)}
    results = {key: {"predictions": frame_entry(found)} for key, (_, found) in zip(keys, pairs)}
    team = Team("m", ("a",), "e", "i", "AT").entries()
    expected = official(copy.deepcopy(truths), {**team, "results": results}, verbose=False)

    found = evaluate(*zip(*pairs))
    for name, theirs in OFFICIAL.items():
        assert found[name] == pytest.approx(float(expected["OpenLane-V2 Score"][theirs]), abs=1e-6), name
    lanes = expected["F-Score for 3D Lane"]["score"]
    assert fscore(*zip(*pairs))["lane_fscore"] == pytest.approx(float(lanes), abs=1e-6)
