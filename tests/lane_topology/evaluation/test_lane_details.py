"""Lanes by distance, gaps of connected lanes, end points as objects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drivestack.core.answers import LaneGraph
from drivestack.core.labels import LaneLabels
from drivestack.lane_topology.evaluation.lane_details import (
    by_distance,
    connection_gaps,
    end_point_precision,
    lane_details,
    point_precision,
    table,
)
from support.labelled_lanes import frame, labels, perfect


def line(*points: tuple[float, float]) -> np.ndarray:
    return np.array([(x, y, 0.0) for x, y in points], np.float32)


def truth(*lines: np.ndarray, edges: tuple[tuple[int, int], ...] = ()) -> LaneLabels:
    n = len(lines)
    graph = np.zeros((n, n), np.int8)
    for i, j in edges:
        graph[i, j] = 1
    return replace(
        labels(0), centrelines=list(lines), is_connector=np.zeros(n, bool), lane_lane=graph,
        lane_element=np.zeros((n, 2), np.int8),
    )  # fmt: skip


def graph(*lines: np.ndarray, scores: tuple[float, ...] | None = None) -> LaneGraph:
    n = len(lines)
    return replace(
        perfect(frame("a")),
        centrelines=list(lines),
        lane_scores=np.array(scores or [0.9] * n, np.float32),
        lane_lane=np.zeros((n, n), np.float32),
        lane_element=np.zeros((n, 2), np.float32),
    )


def test_points_count_in_the_band_they_lie_in() -> None:
    """The lane of 50 m is right up to 20 m, 2 m beside from there on; a weak lane that is right does not count."""
    true = truth(line((0, 0), (50, 0)))
    found = graph(line((0, 0), (19.9, 0)), line((20.1, 2), (50, 2)), line((0, 0), (50, 0)), scores=(0.9, 0.9, 0.2))
    bands = by_distance([true], [found])
    assert list(bands) == ["0-20", "20-35", "35-50"]
    assert bands["0-20"]["recall"] == bands["0-20"]["precision"] == 1.0 and bands["0-20"]["distance_m"] < 0.1
    assert bands["35-50"] == {"recall": 0.0, "precision": 0.0, "distance_m": pytest.approx(2.0, abs=1e-3)}
    nothing = by_distance([true], [graph()])
    assert nothing["20-35"] == {"recall": 0.0, "precision": None, "distance_m": 5.0}
    assert by_distance([], [])["0-20"] == {"recall": None, "precision": None, "distance_m": None}


def test_spacing_of_the_given_points_does_not_matter() -> None:
    x = np.linspace(0, 50, 201)
    dense = line(*zip(x, 0.05 * x))
    sparse = line((0, 0), (50, 2.5))
    own, other = (by_distance([truth(lane)], [graph(sparse)]) for lane in (dense, sparse))
    assert own == {band: pytest.approx(values, abs=1e-5) for band, values in other.items()}


def test_gaps_of_connections_that_are_found() -> None:
    lanes = line((-20, 0), (-10, 0), (0, 0)), line((0, 0), (10, 0), (20, 0)), line((0, 8), (10, 8), (20, 8))
    true = truth(*lanes, edges=((0, 1), (0, 2)))
    apart = lanes[1] + np.float32([0.6, 0.8, 0.0])  # 1 m from where the first one ends
    found = connection_gaps([true], [graph(lanes[0], apart)])
    assert found == {"mean_m": pytest.approx(1.0), "median_m": pytest.approx(1.0), "connections": 1}
    backwards = lanes[1][::-1]  # found by no lane: OLS compares directions
    assert connection_gaps([true], [graph(lanes[0], backwards)])["mean_m"] is None


def test_end_points_are_starts_and_ends_by_themselves() -> None:
    first, second = line((-20, 0), (0, 0)), line((0, 0), (20, 0))
    true = truth(first, second, edges=((0, 1),))
    assert end_point_precision([true], [graph(first, second)])["DET_p"] == 1.0
    moved = end_point_precision([true], [graph(first + np.float32([1.5, 0, 0]), second)])
    assert moved["DET_p@1"] < 1.0 and moved["DET_p@2"] == moved["DET_p@3"] == 1.0
    assert moved["DET_p"] == pytest.approx((moved["DET_p@1"] + 2) / 3)
    swapped = end_point_precision([true], [graph(first[::-1], second[::-1])])
    # ends lie at -20 and 0 instead of 0 and 20: one of two is right
    assert 0.3 < swapped["DET_p"] < 0.7


def test_points_that_lanes_share_are_one() -> None:
    """Three lanes start at one point: one true point, one predicted, the best score's."""
    fan = [line((0, 0), (20, y)) for y in (-5, 0, 5)]
    assert end_point_precision([truth(*fan)], [graph(*fan, scores=(0.5, 0.9, 0.7))])["DET_p"] == 1.0
    points = np.zeros((3, 3)) + [[0, 0, 0], [0.4, 0, 0], [10, 0, 0]]
    scores = np.array([0.2, 0.9, 0.5])
    assert point_precision([points[::2]], [points], [scores], 0.3) == pytest.approx(6 / 11 * 0.5)
    assert point_precision([points[::2]], [points], [scores], 0.5) == 1.0


def test_all_of_it_on_frames() -> None:
    frames = [frame("a"), frame("b", 1.0), replace(frame("c"), lanes=None)]
    graphs = {own.token: perfect(own) for own in frames[:2]}
    found = lane_details(frames, graphs.__getitem__)
    assert found["gaps"] == {"mean_m": 0.0, "median_m": 0.0, "connections": 2}
    assert found["end_points"]["DET_p"] == 1.0 and found["bands"]["0-20"]["recall"] == 1.0
    lines = table(found)
    assert lines[1].split()[0] == "0-20" and "DET_p 1.000" in lines[-1] and "2 connections" in lines[-2]
