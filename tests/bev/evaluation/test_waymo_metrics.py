"""Waymo scores: agreement with the official TensorFlow op, and what each error may move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.bev.evaluation.waymo_metrics import (
    OBJECT_TYPES,
    SENSOR_M,
    WaymoGroundTruths,
    WaymoPredictions,
    average_precision,
    evaluate_waymo,
    iou_3d,
    longitudinal_affinity,
    waymo_mean,
)
from drivestack.core.errors import DataError
from drivestack.geometry import bev_iou

VEHICLE = "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"
BOTH = pytest.mark.parametrize("tolerant", [True, False])


@pytest.fixture
def truths() -> WaymoGroundTruths:
    """Twelve objects of each type in each of two frames, apart from each other, near and far."""
    rng = np.random.default_rng(0)
    boxes, types, frames = [], [], []
    for frame in ("a", "b"):
        for kind in OBJECT_TYPES:
            for k in range(12):
                centre = [8 + 6 * k, 6 * kind - 15 + rng.uniform(-1, 1), 0.9]
                boxes.append([*centre, 4.5, 1.9, 1.6, rng.uniform(-3, 3)])
                types.append(kind)
                frames.append(frame)
    return WaymoGroundTruths(np.array(boxes), np.array(types), np.full(len(types), 1), np.array(frames))


def perfect(truths: WaymoGroundTruths) -> WaymoPredictions:
    return WaymoPredictions(truths.boxes.copy(), truths.types, np.full(len(truths.types), 0.9), truths.frames)


@pytest.mark.parametrize(("prefix", "tolerant"), [("let", True), ("std", False)])
def test_agrees_with_the_official_op(reference_dir: Path, prefix: str, tolerant: bool) -> None:
    with np.load(reference_dir / "bev" / "waymo_let_official.npz") as file:
        official = {key: file[key] for key in file.files}
    scores = evaluate_waymo(
        WaymoPredictions(*(official[f"pd_{key}"] for key in ("box", "type", "score", "frame"))),
        WaymoGroundTruths(*(official[f"gt_{key}"] for key in ("box", "type", "difficulty", "frame"))),
        longitudinal_tolerance=tolerant,
    )
    assert list(scores) == list(official[f"{prefix}_names"])
    for i, score in enumerate(scores.values()):
        counts = np.stack([score.true_positives, score.false_positives, score.false_negatives], -1)
        np.testing.assert_array_equal(counts, official[f"{prefix}_pr"][i, :, 2:])
        for key in ("ap", "aph", "apl"):
            np.testing.assert_allclose(getattr(score, key), official[f"{prefix}_{key}"][i], rtol=0, atol=5e-7)
        for key, precision in (
            ("pr", score.precision),
            ("prh", score.precision_heading),
            ("prl", score.precision_longitudinal),
        ):
            curve = np.stack([precision, score.recall], -1)
            np.testing.assert_allclose(curve, official[f"{prefix}_{key}"][i, :, :2], rtol=0, atol=5e-7)


@BOTH
def test_perfect_predictions_score_one(truths: WaymoGroundTruths, tolerant: bool) -> None:
    scores = evaluate_waymo(perfect(truths), truths, tolerant)
    assert len(scores) == 32
    for score in scores.values():
        assert (score.ap, score.aph, score.apl) == pytest.approx((1, 1, 1), abs=1e-9)
    assert waymo_mean(scores) == pytest.approx({"map": 1, "maph": 1, "mapl": 1})


@BOTH
def test_nothing_found_or_nothing_there_scores_zero(truths: WaymoGroundTruths, tolerant: bool) -> None:
    no_predictions = WaymoPredictions([], [], [], [])
    no_truths = WaymoGroundTruths([], [], [], [])
    for predictions, ground_truths in (
        (no_predictions, truths),
        (perfect(truths), no_truths),
        (no_predictions, no_truths),
    ):
        scores = evaluate_waymo(predictions, ground_truths, tolerant)
        assert {(s.ap, s.aph, s.apl) for s in scores.values()} == {(0, 0, 0)}


def test_frame_ids_that_do_not_meet_are_named(truths: WaymoGroundTruths, caplog) -> None:
    elsewhere = replace(perfect(truths), frames=np.full(len(truths.frames), "1553629304"))
    message = "none of its 1 predicted frames is one of the 2 of the split: it has '1553629304', the split 'a'"
    with pytest.raises(DataError, match=f"frames of predictions: {message}"):
        evaluate_waymo(elsewhere, truths)
    mixed = np.where(np.arange(len(truths.frames)) % 3, np.asarray(truths.frames).astype("U10"), "a")
    mixed[:3] = ["x1", "x2", "x3"]
    assert not caplog.records
    evaluate_waymo(replace(perfect(truths), frames=mixed), truths)
    (record,) = caplog.records
    assert "3 of 5 predicted frames have no ground truth, such as x1; if they are not empty" in record.message
    numbers = {name: index for index, name in enumerate(sorted(set(truths.frames)))}
    whole = np.array([numbers[name] for name in truths.frames])
    evaluate_waymo(replace(perfect(truths), frames=whole.astype(float)), replace(truths, frames=whole))  # as in tables
    with pytest.raises(DataError, match="frames of predictions"):
        evaluate_waymo(replace(perfect(truths), frames=[numbers[name] for name in truths.frames]), truths)


@BOTH
@pytest.mark.parametrize("error_rad", [0.1, -0.1, np.pi, 2 * np.pi - 0.1])
def test_rotated_heading_hurts_aph_only(truths: WaymoGroundTruths, tolerant: bool, error_rad: float) -> None:
    turned = perfect(truths)
    turned.boxes[:, 6] += error_rad
    score = evaluate_waymo(turned, truths, tolerant)[VEHICLE]
    error_rad = min(abs(error_rad), 2 * np.pi - abs(error_rad))
    assert (score.ap, score.apl) == pytest.approx((1, 1))
    assert score.aph == pytest.approx(1 - error_rad / np.pi)


def test_longitudinal_error_hurts_standard_ap_more(truths: WaymoGroundTruths) -> None:
    away = perfect(truths)
    ray = away.boxes[:, :3] - SENSOR_M
    away.boxes[:, :3] += 0.06 * ray  # 60 % of the tolerance from 5 m on
    tolerant, standard = (evaluate_waymo(away, truths, let)[VEHICLE] for let in (True, False))
    assert tolerant.ap == pytest.approx(1)
    assert tolerant.apl == pytest.approx(0.4, abs=1e-6)
    assert standard.ap < 0.2
    assert standard.apl == standard.ap
    away.boxes[:, :3] += 0.05 * ray  # 11 % is beyond the tolerance
    assert evaluate_waymo(away, truths)[VEHICLE].ap == 0


def test_lateral_error_is_not_forgiven(truths: WaymoGroundTruths) -> None:
    aside = perfect(truths)
    aside.boxes[:, 1] += 3
    assert evaluate_waymo(aside, truths)[VEHICLE].ap == 0


def test_missed_hard_truths_count_at_level_2_only(truths: WaymoGroundTruths) -> None:
    hard = np.arange(len(truths.types)) % 2 == 1
    found = perfect(truths)
    easy_only = WaymoPredictions(found.boxes[~hard], found.types[~hard], found.scores[~hard], found.frames[~hard])
    scores = evaluate_waymo(easy_only, replace(truths, difficulties=1 + hard))
    assert scores["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1"].ap == pytest.approx(1)
    assert scores[VEHICLE].ap == pytest.approx(0.5)
    assert scores[VEHICLE].false_negatives[0] == 12


def test_unmatched_predictions_in_no_label_zones_are_spared(truths: WaymoGroundTruths) -> None:
    found = perfect(truths)
    extra = found.boxes + [0, 0, 50, 0, 0, 0, 0]
    doubled = WaymoPredictions(*(np.concatenate([x, y]) for x, y in (
        (found.boxes, extra), (found.types,) * 2, (found.scores,) * 2, (found.frames,) * 2)))  # fmt: skip
    assert evaluate_waymo(doubled, truths)[VEHICLE].ap == pytest.approx(0.5)
    zone = np.arange(len(doubled.types)) >= len(found.types) // 2  # some matched ones lie there too
    assert evaluate_waymo(replace(doubled, in_no_label_zone=zone), truths)[VEHICLE].ap == pytest.approx(1)


def test_the_assignment_is_the_best_of_the_frame_not_greedy() -> None:
    # the middle box overlaps both truths, slightly better the second, which alone the right box can have
    size = [4.0, 2.0, 1.5, 0.0]
    truths = WaymoGroundTruths([[20, 0, 1, *size], [22.2, 0, 1, *size]], [2, 2], [1, 1], [7, 7])
    predictions = WaymoPredictions([[21.15, 0, 1, *size], [23.5, 0, 1, *size]], [2, 2], [0.9, 0.1], [7, 7])
    score = evaluate_waymo(predictions, truths, longitudinal_tolerance=False)["OBJECT_TYPE_TYPE_PEDESTRIAN_LEVEL_2"]
    assert score.true_positives[:11].tolist() == [2] * 11  # the truth of the right box goes to it while it counts
    assert score.true_positives[11:91].tolist() == [1] * 80
    assert score.true_positives[91:].tolist() == [0] * 10


def test_average_precision_by_hand() -> None:
    # 1 over [0, 0.5]; above, 0.5 on nine steps of 0.05 and a line from 0.5 to 1 on the tenth
    assert average_precision([0.5, 1.0, 1.0], [1.0, 0.5, 0.0]) == pytest.approx(0.5 + 9 * 0.05 * 0.5 + 0.05 * 0.75)
    assert average_precision([1.0], [0.0]) == 0


def test_iou_of_volumes() -> None:
    rng = np.random.default_rng(1)
    a, b = (np.concatenate([rng.uniform(-1, 1, (50, 3)), rng.uniform(1, 3, (50, 3)), rng.uniform(-4, 4, (50, 1))], 1)
            for _ in range(2))  # fmt: skip
    b[:, [2, 5]] = a[:, [2, 5]]
    np.testing.assert_allclose(iou_3d(a, b), np.diag(bev_iou(a, b)), atol=1e-12)
    np.testing.assert_allclose(iou_3d(a, a + [0, 0, 0.5, 0, 0, 0, 0]), (a[:, 5] - 0.5) / (a[:, 5] + 0.5))
    assert not iou_3d(a, a + [0, 0, 3.1, 0, 0, 0, 0]).any()
    thin = a * [1, 1, 1, 1, 0, 1, 1]
    assert not iou_3d(thin, thin).any()


def test_affinity_of_a_known_case() -> None:
    truth = SENSOR_M + [[30.0, 0, 0], [2.0, 0, 0]]
    predicted = SENSOR_M + [[32.0, 1.0, 0], [2.0, 0.0, 0.0]]
    affinity, aligned = longitudinal_affinity(predicted, truth)
    np.testing.assert_allclose(affinity, [1 - 2 / 3, 1])  # 2 m of the 3 m tolerated; 1 m aside costs nothing
    np.testing.assert_allclose(np.sum((truth - aligned) * (predicted - SENSOR_M), -1), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("side", "change", "message"),
    [
        ("predictions", {"boxes": np.zeros((96, 6))}, "boxes of predictions"),
        ("predictions", {"boxes": np.full((96, 7), np.nan)}, "boxes of predictions"),
        ("truths", {"boxes": -np.ones((96, 7))}, "boxes of ground truths"),
        ("predictions", {"types": np.full(96, 5)}, "types of predictions"),
        ("predictions", {"scores": np.full(96, 1.5)}, "scores of predictions"),
        ("predictions", {"scores": np.ones(95)}, "scores of predictions"),
        ("truths", {"difficulties": np.zeros(96)}, "difficulties of ground truths"),
        ("truths", {"frames": ["a"]}, "frames of ground truths"),
    ],
)
def test_bad_input_is_named(truths: WaymoGroundTruths, side: str, change: dict, message: str) -> None:
    both = {"predictions": perfect(truths), "truths": truths}
    both[side] = replace(both[side], **change)
    with pytest.raises(DataError, match=message):
        evaluate_waymo(both["predictions"], both["truths"])
