"""Speeds against a tracker that is not trained: the control that a model with memory has to beat.

Boxes of single keyframes are linked over time: pairs of one class in consecutive keyframes whose centres are nearer
than a reach after the later one was moved back by its own velocity, nearest pair first, each box once. A linked box
has four estimates of its velocity: the model's (``network``); its displacement since the keyframe before (``one
step``); the slope of a straight line through its last four keyframes, or as many as are linked (``line``); and the line
where the model says more than 0.5 m/s, else the model's (``network if slow, else line``). Errors are those of linked
boxes that match a label with a known velocity; classes that do not move (cones, barriers) are left out.

Shapes: n boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.frames import Frame
from .box_rows import MIN_SCORE, BoxRows, label_rows, matched, prediction_rows
from .linking import LinkSettings, link_boxes
from .nuscenes_boxes import ScoredBoxes
from .nuscenes_rules import CLASS_ATTRIBUTES

LINKS = LinkSettings(reach_m=2.5, min_score=MIN_SCORE, max_unseen_s=0.25, nearest_first=True)  # consecutive keyframes
KEYFRAMES = 4
SLOW_MPS = 0.5
ESTIMATES = ("network", "one step", "line", "network if slow, else line")
MOVING_CLASSES = tuple(name for name, attributes in CLASS_ATTRIBUTES.items() if attributes)


def previous_rows(
    rows: BoxRows, frames: Sequence[Frame], boxes: Mapping[str, ScoredBoxes], settings: LinkSettings = LINKS
) -> NDArray[np.int64]:
    """[n] the row of the same object in the keyframe before, -1 where there is none."""
    tracks = link_boxes(frames, boxes, settings)
    found = np.full(len(rows), -1)
    last: dict[tuple[str, int], int] = {}
    times_us = np.array([frame.timestamp_us for frame in frames], np.int64)
    for row in np.argsort(times_us[rows.frame], kind="stable"):
        frame = frames[rows.frame[row]]
        key = frame.scene_token, int(tracks[frame.token][rows.source[row]])
        found[row] = last.get(key, -1)
        last[key] = row
    return found


def velocity_errors(
    frames: Sequence[Frame],
    boxes: Mapping[str, ScoredBoxes],
    class_names: Sequence[str] = MOVING_CLASSES,
    settings: LinkSettings = LINKS,
) -> dict[str, Any]:
    """Mean errors in m/s of the four estimates, by name: over all boxes, the standing and the moving ones (by label,
    up to and above 0.5 m/s), and the mean over classes; with ``boxes``, how many, and ``moving_share``.

    A mean of nothing is None.
    """
    rows = prediction_rows(frames, boxes, class_names, settings.min_score)
    labels = label_rows(frames, class_names)
    before, truth = previous_rows(rows, frames, boxes, settings), matched(rows, labels)
    used = np.flatnonzero((before >= 0) & (truth >= 0))
    used = used[np.isfinite(labels.velocity_global_mps[truth[used]]).all(1)]
    true = labels.velocity_global_mps[truth[used]]
    estimates = np.stack([_estimates(rows, frames, before, row) for row in used]) if len(used) else np.zeros((0, 4, 2))
    errors = np.linalg.norm(estimates - true[:, None], axis=-1)  # [n, 4]
    moving = np.linalg.norm(true, axis=1) > SLOW_MPS
    classes = rows.label[used]
    found: dict[str, Any] = {"boxes": len(used), "moving_share": _mean(moving)}
    for i, name in enumerate(ESTIMATES):
        own = errors[:, i]
        found[name] = {
            "all": _mean(own),
            "standing": _mean(own[~moving]),
            "moving": _mean(own[moving]),
            "class_mean": _mean(np.array([own[classes == c].mean() for c in np.unique(classes)])),
        }
    return found


def _estimates(rows: BoxRows, frames: Sequence[Frame], before: NDArray[np.int64], row: np.int64) -> NDArray[np.float64]:
    """[4, 2] of one linked box."""
    chain = [int(row)]
    while len(chain) < KEYFRAMES and before[chain[-1]] >= 0:
        chain.append(int(before[chain[-1]]))
    now_us = frames[rows.frame[row]].timestamp_us
    times_s = np.array([(frames[rows.frame[own]].timestamp_us - now_us) * 1e-6 for own in chain])
    places = rows.centre_global_m[chain]
    centred = times_s - times_s.mean()
    line = centred @ places / (centred @ centred)  # least squares
    network = rows.velocity_global_mps[row]
    step = (places[0] - places[1]) / (times_s[0] - times_s[1])
    return np.stack([network, step, line, line if np.linalg.norm(network) > SLOW_MPS else network])


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def table(errors: Mapping[str, Any]) -> list[str]:
    """As lines of text."""
    share = "-" if errors["moving_share"] is None else f"{100 * errors['moving_share']:.0f} %"
    lines = [f"{errors['boxes']} linked boxes, {share} move", ""]
    columns = ("all", "standing", "moving", "class_mean")
    titles = ("all", "standing", "moving", "mean of classes")
    lines.append(f"{'velocity error, m/s':<28}" + "".join(f"{title:>17}" for title in titles))
    for name in ESTIMATES:
        values = (errors[name][column] for column in columns)
        lines.append(f"{name:<28}" + "".join(f"{'-' if v is None else format(v, '.3f'):>17}" for v in values))
    return lines
