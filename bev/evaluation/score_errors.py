"""Whether the score of a box says how near its centre is: what learning the quality of boxes is to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from ...core.frames import Frame
from .box_rows import label_rows, matched, prediction_rows
from .nuscenes_boxes import ScoredBoxes
from .nuscenes_submission import CLASS_RANGE_M


def score_error_correlation(
    frames: Sequence[Frame], boxes: Mapping[str, ScoredBoxes], class_names: Sequence[str] = tuple(CLASS_RANGE_M)
) -> float | None:
    """Spearman's rank correlation between the score of found objects' boxes and how near their centres are.

    Of boxes above a score of 0.15 that find a label within 2 m: 1 where the better score is always of the nearer box.
    None for fewer than three of them, or where all scores or all distances are equal.
    """
    rows, labels = prediction_rows(frames, boxes, class_names), label_rows(frames, class_names)
    truth = matched(rows, labels)
    rows, truth = rows.take(truth >= 0), truth[truth >= 0]
    error_m = np.linalg.norm(rows.centre_global_m - labels.centre_global_m[truth], axis=1)
    if len(rows) < 3 or np.ptp(rows.score) == 0 or np.ptp(error_m) == 0:
        return None
    return float(spearmanr(rows.score, -error_m).statistic)
