"""Scores of predictions on frames: perfect ones, none, and what cannot be scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drivestack.core.answers import LaneGraph
from drivestack.core.errors import DataError
from drivestack.lane_topology.evaluation.evaluate import evaluate, table
from support.labelled_lanes import frame, labels, perfect


def nothing(token: str) -> LaneGraph:
    empty = np.zeros(0, np.float32)
    return LaneGraph(
        token, np.zeros((0, 11, 3), np.float32), empty, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), empty,
        np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32),
    )  # fmt: skip


def test_perfect_predictions_score_one_and_nothing_scores_next_to_nothing() -> None:
    frames = [frame("a"), frame("b", 1.0)]
    graphs = {own.token: perfect(own) for own in frames}
    counted = []
    scores = evaluate(frames, graphs.__getitem__, on_sample=lambda: counted.append(1))
    assert [scores[k] for k in ("ols", "det_l", "det_t", "top_ll", "top_lt", "lane_fscore")] == [1.0] * 6
    assert (scores["frames"], scores["metric_version"], len(counted)) == (2, "v2.1", 2)
    none = evaluate(frames, nothing)
    assert (none["det_l"], none["top_ll"], none["lane_fscore"]) == (0.0, 0.0, 0.0)


def test_attributes_that_do_not_occur_count_in_the_official_score_alone() -> None:
    """Labels have 1 and 6 of 13 attributes; half of them found."""
    own = frame("a")
    half = replace(
        perfect(own),
        elements_xyxy_px=own.lanes.elements_xyxy_px[:1],
        attributes=own.lanes.attributes[:1],
        element_scores=np.array([0.9], np.float32),
        lane_element=own.lanes.lane_element[:, :1].astype(np.float32),
    )
    scores = evaluate([own], lambda _: half)
    assert scores["det_t"] == pytest.approx(12 / 13) and scores["det_t_occurring"] == pytest.approx(1 / 2)
    assert scores["ols"] - scores["ols_occurring"] == pytest.approx((12 / 13 - 1 / 2) / 4)
    invented = replace(half, attributes=np.array([3]))  # no label has it: 0 officially
    scores = evaluate([own], lambda _: invented)
    assert scores["det_t"] == pytest.approx(10 / 13) and scores["det_t_occurring"] == 0
    bare = replace(own.lanes, elements_xyxy_px=np.zeros((0, 4)), attributes=np.zeros(0, int))
    scores = evaluate([replace(own, lanes=replace(bare, lane_element=np.zeros((3, 0), np.int8)))], nothing)
    assert scores["det_t"] == 1.0 and scores["ols_occurring"] is scores["det_t_occurring"] is None
    assert "no label has a traffic element" in table(scores)[1]


def test_raw_labels_are_thinned_as_officially() -> None:
    """Eleven points of a lane of 90 m are 9 m apart: raw labels would lie up to 4.5 m from all of them."""
    raw = [np.stack([np.linspace(-45, 45, 201), np.full(201, y), np.zeros(201)], -1) for y in (0.0, 4.0, 8.0)]
    own = replace(frame("a"), lanes=replace(labels(0), centrelines=[line.astype(np.float32) for line in raw]))
    graph = replace(perfect(frame("a")), centrelines=np.stack([line[::20] for line in raw]))
    assert evaluate([own], lambda _: graph)["det_l"] == 1.0


def test_the_table_names_the_version_and_every_part() -> None:
    own = frame("a")
    lines = table(evaluate([own], lambda _: perfect(own)))
    assert lines[0].startswith("OLS 1.0000    DET_l 1.0000   DET_t 1.0000   TOP_ll 1.0000   TOP_lt 1.0000")
    assert "metric v2.1, 1 frames" in lines[0] and "OLS 1.0000    DET_t 1.0000" in lines[1] and "F-score" in lines[2]
    assert [line.split()[0] for line in lines[-13:]][:4] == ["unknown", "red", "green", "yellow"]
    assert "metric v1.0" in table(evaluate([own], nothing, version="v1.0"))[0]


def test_frames_that_cannot_be_scored_are_named() -> None:
    bare = replace(frame("b"), lanes=None)
    with pytest.raises(DataError, match=r"sample b: no lane labels \(1 of 2 frames have none\)"):
        evaluate([frame("a"), bare], nothing)
    with pytest.raises(DataError, match="no frame at all"):
        evaluate([], nothing)
    short = replace(frame("c"), lanes=replace(labels(0), centrelines=[np.zeros((1, 3), np.float32)] * 3))
    with pytest.raises(DataError, match="sample c: lane 0 has points"):
        evaluate([short], nothing)
