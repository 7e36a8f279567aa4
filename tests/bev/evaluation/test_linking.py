"""Single-frame boxes linked over time."""

from __future__ import annotations

import numpy as np
import pytest

from drivestack.bev.evaluation.linking import Linker, LinkSettings, link_boxes
from drivestack.bev.evaluation.nuscenes_boxes import ScoredBoxes
from drivestack.core.answers import NO_TRACK
from drivestack.core.errors import ConfigError
from drivestack.core.frames import Frame

STEP_US = 500_000


def boxes(*rows: tuple[float, float, float, float], name: str = "car", score: float = 0.5) -> ScoredBoxes:
    """Rows of x, y, vx, vy in the global frame."""
    values = np.array(rows, np.float64).reshape(-1, 4)
    n = len(values)
    return ScoredBoxes(
        names=[name] * n,
        scores=np.full(n, score),
        centre_global_m=np.concatenate([values[:, :2], np.zeros((n, 1))], 1),
        size_lwh_m=np.ones((n, 3)),
        yaw_rad=np.zeros(n),
        velocity_global_mps=values[:, 2:],
        attributes=[""] * n,
    )


def joined(*parts: ScoredBoxes) -> ScoredBoxes:
    texts = {k: [t for part in parts for t in getattr(part, k)] for k in ("names", "attributes")}
    numbers = {k: [getattr(part, k) for part in parts] for k in ScoredBoxes.__dataclass_fields__ if k not in texts}
    return ScoredBoxes(**texts, **{k: np.concatenate(own) for k, own in numbers.items()})


def run(drive: list[ScoredBoxes], **settings: float) -> list[list[int]]:
    linker = Linker(LinkSettings(**settings))
    return [linker(own, i * STEP_US).tolist() for i, own in enumerate(drive)]


def test_fast_cars_keep_their_ids_through_their_velocity() -> None:
    """10 m a keyframe, farther than the reach; the two pass one another."""
    drive = [boxes((10 * i, 0, 20, 0), (50 - 10 * i, 3, -20, 0)) for i in range(6)]
    assert run(drive) == [[0, 1]] * 6
    assert run([boxes((10 * i, 0, 0, 0)) for i in range(3)]) == [[0], [1], [2]]


def test_classes_and_reach_keep_tracks_apart() -> None:
    walker = boxes((0, 0, 0, 0), name="pedestrian")
    assert run([boxes((0, 0, 0, 0)), walker, boxes((0, 0, 0, 0))]) == [[0], [1], [0]]
    assert run([boxes((0, 0, 0, 0)), boxes((2.49, 0, 0, 0)), boxes((5.0, 0, 0, 0))]) == [[0], [0], [1]]


def test_the_better_box_chooses_first_and_the_nearest() -> None:
    strong, weak = boxes((1.0, 0, 0, 0), score=0.9), boxes((0.1, 0, 0, 0), score=0.3)
    assert run([boxes((0, 0, 0, 0)), joined(weak, strong)]) == [[0], [1, 0]]


def test_an_unseen_track_moves_on_and_ends_in_time() -> None:
    empty = boxes()
    seen = [boxes((5 * i, 0, 10, 0)) for i in range(9)]
    assert run([seen[0], empty, empty, seen[3]]) == [[0], [], [], [0]]
    assert run([seen[0], empty, empty, empty, empty, seen[5]])[-1] == [1]
    assert run([seen[0], empty, empty, empty, empty, seen[5]], max_unseen_s=2.1)[-1] == [0]


def test_low_scores_and_unknown_velocities() -> None:
    low = boxes((0, 0, 0, 0), score=0.19)
    assert run([joined(low, boxes((9, 9, np.nan, np.nan))), boxes((9, 9, np.nan, np.nan))]) == [[NO_TRACK, 0], [0]]


def test_a_gap_in_time_ends_all_tracks() -> None:
    linker = Linker()
    assert linker(boxes((0, 0, 0, 0)), 0).tolist() == [0]
    assert linker(boxes((0, 0, 0, 0)), 3_000_000).tolist() == [1]
    with pytest.raises(ValueError, match="linked in time"):
        linker(boxes(), 3_000_000)
    with pytest.raises(ConfigError, match="reach_m is 0"):
        LinkSettings(reach_m=0)


def test_scenes_are_linked_by_themselves_in_time_order() -> None:
    frames = [Frame(f"{s}{i}", s, s, i * STEP_US, (), np.eye(4)) for i in (1, 0, 2) for s in ("b", "a")]
    found = link_boxes(frames, {frame.token: boxes((0, 0, 0, 0), (9, 0, 0, 0)) for frame in frames})
    assert all(ids.tolist() == [0, 1] for ids in found.values()) and len(found) == 6


def test_nearest_pairs_first_whatever_the_scores() -> None:
    strong, weak = boxes((1.0, 0, 0, 0), score=0.9), boxes((0.1, 0, 0, 0), score=0.3)
    assert run([boxes((0, 0, 0, 0)), joined(weak, strong)], nearest_first=True) == [[0], [0, 1]]
    before = boxes((0.0, 0, 0, 0), (2.0, 0, 0, 0))
    now = joined(boxes((1.1, 0, 0, 0), score=0.9), boxes((1.9, 0, 0, 0)))
    assert run([before, now], nearest_first=True) == [[0, 1], [0, 1]]  # the second is nearer to track 1
