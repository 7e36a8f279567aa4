"""False boxes on lines of sight, and scores that say how near a box is, in cases counted by hand."""

import math

import numpy as np
import pytest

from drivestack.bev.evaluation.lines_of_sight import false_on_lines_of_sight, find, score_error_correlation
from drivestack.core.answers import Detections


def detections(rows):
    """Rows (x, y, score, label)."""
    boxes = np.zeros((len(rows), 9), np.float32)
    boxes[:, :2] = np.reshape([row[:2] for row in rows], (-1, 2))
    return Detections("a", boxes, np.array([row[2] for row in rows]), np.array([row[3] for row in rows], np.int64))


def truth(rows):
    boxes = np.zeros((len(rows), 9), np.float32)
    boxes[:, :2] = [row[:2] for row in rows]
    return boxes, np.array([row[2] for row in rows], np.int64)


def test_what_lies_before_and_behind_a_label_of_its_class_is_counted():
    boxes, labels = truth([(0, 20, 3), (20, 0, 5)])
    found = find(
        [
            detections(
                [
                    (0, 20.5, 0.9, 3),  # true
                    (0, 24, 0.8, 3),  # behind
                    (0, 17, 0.7, 3),  # before
                    (0, 21.0, 0.6, 3),  # too near the label to be on another place
                    (0, 27, 0.6, 3),  # too far
                    (math.sin(math.radians(3)) * 24, math.cos(math.radians(3)) * 24, 0.5, 3),  # 3 degrees beside
                    (0, 23, 0.5, 5),  # of another class
                    (0, 23, 0.05, 3),  # below the score
                ]
            ),
            detections([(0, 24, 0.9, 3)]),  # another sample
        ],
        [boxes, boxes[:0]],
        [labels, labels[:0]],
    )
    assert false_on_lines_of_sight(found) == (2, 7)
    assert np.isfinite(found.error_m).sum() == 1 and found.error_m.min() == pytest.approx(0.5)


def test_the_sensor_is_where_one_looks_from():
    boxes, labels = truth([(10, 10, 0)])
    found = find([detections([(10, 14, 0.9, 0)])], [boxes], [labels])
    assert false_on_lines_of_sight(found) == (0, 1)
    assert false_on_lines_of_sight(found, sensor_xy_m=(10, 0)) == (1, 1)


def test_a_better_score_is_a_nearer_box_or_not():
    boxes, labels = truth([(0, 10 * i, 0) for i in range(5)])
    rows = lambda sign: [(0.3 * i, 10 * i, 0.5 + sign * 0.05 * i, 0) for i in range(5)]
    assert score_error_correlation(find([detections(rows(-1))], [boxes], [labels])) == pytest.approx(1)
    assert score_error_correlation(find([detections(rows(1))], [boxes], [labels])) == pytest.approx(-1)
    assert math.isnan(score_error_correlation(find([detections([])], [boxes], [labels])))
