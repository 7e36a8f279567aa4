"""Lane segments and areas are scored as the official package scores them."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.lane_topology.evaluation.segments import LaneSegments, evaluate_segments

OFFICIAL = {"det_l": "DET_l", "det_a": "DET_a", "det_t": "DET_t", "top_ll": "TOP_ll", "top_lt": "TOP_lt"}


@pytest.fixture(scope="module")
def stored(reference_dir: Path) -> dict:
    with gzip.open(reference_dir / "lane_topology" / "openlanev2_segments.json.gz", "rt") as file:
        return json.load(file)


def segments(entry: dict) -> LaneSegments:
    def lines(items: list[dict], key: str) -> list[np.ndarray]:
        return [np.array(item[key], np.float32) for item in items]

    def column(items: list[dict], key: str, dtype=np.float32) -> np.ndarray:
        return np.array([item.get(key, 0) for item in items], dtype)

    def matrix(name: str) -> np.ndarray:
        return np.array(entry[name]["data"], np.float32).reshape(entry[name]["shape"])

    lanes, areas, elements = entry["lane_segment"], entry["area"], entry["traffic_element"]
    return LaneSegments(
        lines(lanes, "centerline"),
        lines(lanes, "left_laneline"),
        lines(lanes, "right_laneline"),
        lines(areas, "points"),
        column(areas, "category", np.int64),
        column(elements, "points").reshape(-1, 4),
        column(elements, "attribute", np.int64),
        matrix("topology_lsls"),
        matrix("topology_lste"),
        lane_scores=column(lanes, "confidence"),
        area_scores=column(areas, "confidence"),
        element_scores=column(elements, "confidence"),
    )


@pytest.mark.parametrize("case", ["perfect", "noisy_small", "no_preds"])
def test_official_cases(stored, case):
    frames = stored["cases"][case]["frames"]
    scores = evaluate_segments([segments(f["gt"]) for f in frames], [segments(f["pred"]) for f in frames])
    expected = stored["expected"][case]
    for name, official in OFFICIAL.items():
        assert scores[name] == pytest.approx(expected[official], abs=1e-6), name
    assert scores["olus"] == pytest.approx(expected["score"], abs=1e-6)


def test_a_boundary_on_the_wrong_side_costs_lanes_only(stored):
    frame = segments(stored["cases"]["perfect"]["frames"][0]["gt"])
    found = replace(
        frame,
        lane_scores=np.ones(len(frame.centrelines)),
        area_scores=np.ones(len(frame.areas)),
        element_scores=np.ones(len(frame.attributes)),
    )
    assert evaluate_segments([frame], [found])["olus"] == 1.0
    swapped = evaluate_segments([frame], [replace(found, left=found.right, right=found.left)])
    assert swapped["det_l"] < 1.0 and swapped["det_a"] == swapped["det_t"] == 1.0
    with pytest.raises(ValueError, match="0 predictions for 1 labelled frames"):
        evaluate_segments([frame], [])
