"""Scores that say how near a box is, or not."""

import numpy as np
import pytest

from drivestack.bev.evaluation.nuscenes_boxes import ScoredBoxes
from drivestack.bev.evaluation.score_errors import score_error_correlation
from drivestack.core.frames import Annotations, Frame


def frame(token: str) -> Frame:
    centres = np.array([[0.0, 10 * i, 0] for i in range(5)])
    notes = Annotations.of_boxes(["car"] * 5, centres, np.ones((5, 3)), np.zeros(5))
    return Frame(token, "s", "scene", 0, (), np.eye(4), annotations=notes)


def boxes(errors_m: list[float], scores: list[float], name: str = "car") -> ScoredBoxes:
    n = len(errors_m)
    centres = np.array([[error, 10.0 * i, 0] for i, error in enumerate(errors_m)]).reshape(-1, 3)
    return ScoredBoxes([name] * n, np.array(scores), centres, np.ones((n, 3)), np.zeros(n), np.zeros((n, 2)), [""] * n)


def test_one_where_the_better_score_is_the_nearer_box():
    near_first = {"a": boxes([0.1, 0.4, 0.8, 1.0], [0.9, 0.8, 0.7, 0.3]), "b": boxes([0.2, 0.5], [0.85, 0.75])}
    frames = [frame("a"), frame("b")]
    assert score_error_correlation(frames, near_first) == pytest.approx(1)
    far_first = {token: boxes([1.5 - x for x in own.centre_global_m[:, 0]], list(own.scores)) for token, own in
                 near_first.items()}  # fmt: skip
    assert score_error_correlation(frames, far_first) == pytest.approx(-1)


def test_false_weak_and_foreign_boxes_do_not_count():
    frames = [frame("a")]
    some = {"a": boxes([0.1, 0.5, 1.0, 9.0, 0.0], [0.5, 0.4, 0.3, 0.9, 0.1])}  # the fourth is false, the fifth weak
    assert score_error_correlation(frames, some) == pytest.approx(1)
    assert score_error_correlation(frames, {"a": boxes([0.1, 0.5, 1.0], [0.5, 0.4, 0.3], "bus")}) is None
    assert score_error_correlation(frames, {"a": boxes([0.1, 0.5], [0.5, 0.4])}) is None
    assert score_error_correlation(frames, {"a": boxes([0.1, 0.5, 0.3], [0.5, 0.5, 0.5])}) is None
