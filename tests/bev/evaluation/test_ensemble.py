"""Fusion of several detectors' boxes: by hand, and what it gains on noisy ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drivestack.bev.evaluation.ensemble import METHODS, Fusion, fuse, let_iou, matrix_nms, overlaps, weighted_box_fusion
from drivestack.bev.evaluation.nuscenes_boxes import read_submission
from drivestack.bev.evaluation.nuscenes_submission import NuScenesSubmission
from drivestack.bev.evaluation.waymo_metrics import SENSOR_M
from drivestack.bev.evaluation.waymo_rules import check_submission, meta_of
from drivestack.bev.evaluation.waymo_rules import read_submission as read_waymo
from drivestack.bev.evaluation.waymo_scores import evaluate
from drivestack.bev.evaluation.waymo_submission import Entry, objects_of, write_submission
from drivestack.cli.ensemble import METHODS as NAMES
from drivestack.cli.main import main
from drivestack.core.answers import Detections
from drivestack.core.errors import ConfigError, SubmissionError
from drivestack.tasks.ensemble import ensemble
from support.waymo_like import CLASSES, found_in, frames_of

CAR = [4.0, 2.0, 1.5]


def box(x: float, y: float = 0.0, yaw: float = 0.0, v: tuple[float, float] = (0.0, 0.0)) -> list[float]:
    return [x, y, 1.0, *CAR, yaw, *v]


def wbf(rows: list[list[float]], scores: list[float], models: list[int], weights=(1, 1), let=False, labels=None):
    kinds = np.zeros(len(rows), np.int64) if labels is None else np.array(labels)
    return weighted_box_fusion(np.array(rows), np.array(scores), kinds, np.array(models), weights, [0.5] * 2, let)


def test_two_that_agree_are_averaged_by_their_weight() -> None:
    boxes, scores, labels, source = wbf([box(20, v=(1, 0)), box(20.4, v=(3, np.nan))], [0.8, 0.4], [0, 1])
    assert len(boxes) == 1 and labels.tolist() == [0] and source.tolist() == [0]
    assert boxes[0, 0] == pytest.approx((0.8 * 20 + 0.4 * 20.4) / 1.2)
    assert boxes[0, 7:] == pytest.approx([(0.8 * 1 + 0.4 * 3) / 1.2, 0.0])
    assert scores == pytest.approx([0.6])
    _, scores, *_ = wbf([box(20), box(20.4)], [0.8, 0.4], [0, 1], weights=(3, 1))
    assert scores == pytest.approx([(3 * 0.8 + 0.4) / 4])


def test_two_that_disagree_stay_apart_with_half_the_score() -> None:
    boxes, scores, _, source = wbf([box(20), box(26)], [0.4, 0.8], [0, 1])
    assert boxes[:, 0].tolist() == [26, 20] and scores == pytest.approx([0.4, 0.2]) and source.tolist() == [1, 0]
    _, scores, labels, _ = wbf([box(20), box(20)], [0.8, 0.6], [0, 1], labels=[0, 1])  # of other classes
    assert scores == pytest.approx([0.4, 0.3]) and labels.tolist() == [0, 1]


def test_duplicates_of_one_model_count_once() -> None:
    boxes, scores, *_ = wbf([box(20), box(20.2), box(20.1)], [0.8, 0.7, 0.6], [0, 0, 1])
    assert len(boxes) == 1 and scores == pytest.approx([0.7])
    assert boxes[0, 0] == pytest.approx((0.8 * 20 + 0.6 * 20.1) / 1.4)


@pytest.mark.parametrize(
    ("yaws", "expected"),
    [((3.1, -3.1), np.pi), ((0.1, 0.3), 0.2), ((0.0, np.pi - 0.2), -0.1), ((1.5, -1.5), np.pi / 2)],
)
def test_headings_are_axes_with_the_heavier_direction(yaws: tuple[float, float], expected: float) -> None:
    boxes, *_ = wbf([box(20, yaw=yaws[0]), box(20, yaw=yaws[1])], [0.8, 0.799999], [0, 1])
    assert abs(np.exp(1j * boxes[0, 6]) - np.exp(1j * expected)) < 1e-3


def test_depth_errors_are_forgiven_by_let_iou_alone() -> None:
    rows = [box(40), box(43)]  # 3 m of the tolerated 3.9 m; they do not overlap by half
    assert len(wbf(rows, [0.8, 0.7], [0, 1])[0]) == 2
    boxes, scores, *_ = wbf(rows, [0.8, 0.7], [0, 1], let=True)
    assert scores == pytest.approx([0.75]) and boxes[0, 0] == pytest.approx((0.8 * 40 + 0.7 * 43) / 1.5)
    assert len(wbf([box(40), box(45)], [0.8, 0.7], [0, 1], let=True)[0]) == 2
    assert len(wbf([box(40), box(40, 3)], [0.8, 0.7], [0, 1], let=True)[0]) == 2  # aside is not forgiven


def test_let_iou_of_known_cases() -> None:
    reference = np.array([box(*(SENSOR_M + [30.0, 0, 0])[:2])])
    reference[:, 2] = SENSOR_M[2]
    along = reference + np.array([2.0, 0, 0, 0, 0, 0, 0, 0, 0])
    assert let_iou(along, reference) == pytest.approx([1.0])
    assert let_iou(along + [2.0, 0, 0, 0, 0, 0, 0, 0, 0], reference) == pytest.approx([0.0])
    aside = reference + np.array([0, 1.0, 0, 0, 0, 0, 0, 0, 0])
    assert let_iou(aside, reference) == pytest.approx([1 / 3], abs=0.02)
    elsewhere = np.array([5.0, -3.0, 0.2])  # the same seen from another place, in that place's frame
    moved = [values + np.r_[elsewhere - SENSOR_M, np.zeros(6)] for values in (aside, reference)]
    assert let_iou(*moved, sensor_m=elsewhere) == pytest.approx(let_iou(aside, reference))


@pytest.mark.parametrize("let", [True, False])
def test_overlaps_leave_out_no_pair(let: bool) -> None:
    """Pairs that are left out by their distance would not have overlapped."""
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(-40, 40, (60, 2)), np.ones((60, 1)), rng.uniform(0.5, 9, (60, 3)),
                            rng.uniform(-3, 3, (60, 1))], 1)  # fmt: skip
    order = rng.permutation(60)
    found = overlaps(boxes, np.zeros(60, np.int64), order, let)
    i, j = np.triu_indices(60, 1)
    plain = Fusion(let=let)
    from drivestack.bev.evaluation.waymo_metrics import iou_3d

    expected = (let_iou if plain.let else iou_3d)(boxes[order[j]], boxes[order[i]])
    np.testing.assert_allclose(found[order[i], order[j]], expected, atol=1e-12)
    assert (expected > 0).sum() > 10


def test_matrix_nms_by_hand() -> None:
    boxes = np.array([box(20), box(21), box(40), box(21)])
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6]), np.zeros(4, np.int64)
    first = 3 / 5  # IoU of the first two; the last is the second again
    decayed = matrix_nms(boxes, scores, labels, sigma=0.5, let=False)
    last = min(np.exp(-(first**2) / 0.5), np.exp(-(1 - first**2) / 0.5))
    assert decayed == pytest.approx([0.9, 0.8 * np.exp(-(first**2) / 0.5), 0.7, 0.6 * last])
    linear = matrix_nms(boxes, scores, labels, sigma=0.0, let=False)
    assert linear == pytest.approx([0.9, 0.8 * (1 - first), 0.7, 0.0])
    assert matrix_nms(boxes, scores, np.arange(4), let=False) == pytest.approx(scores)
    assert len(matrix_nms(boxes[:0], scores[:0], labels[:0])) == 0


def test_methods_limits_and_what_is_refused() -> None:
    boxes, scores = np.array([box(20), box(20.1), box(60)]), np.array([0.9, 0.5, 0.05])
    labels, models = np.zeros((2, 3), np.int64)
    for method, expected in (("wbf", [0.9, 0.05]), ("matrix-nms", [0.9, 0.5 * np.exp(-(1**2) / 0.5), 0.05])):
        own = fuse(boxes, scores, labels, models, [2.0], ["vehicle"], Fusion(method))[1]
        assert own == pytest.approx(expected, rel=0.15)
    few = fuse(boxes, scores, labels, models, [1.0], ["vehicle"], Fusion("wbf", min_score=0.1, max_boxes=1))
    assert few[1] == pytest.approx([0.9]) and few[3].tolist() == [0]
    assert METHODS == NAMES
    assert Fusion().threshold("vehicle") == 0.5 and Fusion().threshold("car") == 0.3
    assert Fusion(thresholds={"car": 0.7}).threshold("car") == 0.7
    for wrong, message in (({"method": "nms"}, "unknown method"), ({"thresholds": {"car": 0}}, "threshold car=0"),
                           ({"sigma": -1.0}, "sigma"), ({"sigma": np.nan}, "sigma"),
                           ({"sigma": 0.4}, "is of matrix NMS"), ({"min_score": np.nan}, "min_score nan"),
                           ({"min_score": 1.1}, "min_score"), ({"max_boxes": -1}, "max_boxes -1"),
                           ({"max_boxes": 0}, "max_boxes 0"),
                           ({"method": "matrix-nms", "thresholds": {"car": 0.4}}, "are of wbf")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            Fusion(**wrong)


# ------------------------------------------------------------------------------------------------------ whole files


def noisy(frames, seed: int) -> list[Detections]:
    """Each label off in depth and aside, some missed, some invented with lower scores: another detector per seed."""
    rng = np.random.default_rng(seed)
    made = []
    for found in found_in(frames, seed=seed):
        boxes = found.boxes.astype(np.float64)
        ray = boxes[:, :2] / np.linalg.norm(boxes[:, :2], axis=1, keepdims=True)
        boxes[:, :2] += ray * rng.normal(0, 0.04, (len(boxes), 1)) * np.linalg.norm(boxes[:, :2], axis=1)[:, None]
        boxes[:, :2] += rng.normal(0, 0.12, (len(boxes), 2))
        boxes[:, 6] += rng.normal(0, 0.2, len(boxes))
        kept = rng.random(len(boxes)) > 0.2
        invented = boxes[kept] + rng.normal(0, 8, (kept.sum(), 9)) * ([1, 1] + [0] * 7)
        scores = np.concatenate([rng.uniform(0.3, 0.9, kept.sum()), rng.uniform(0.1, 0.7, kept.sum())])
        labels = np.concatenate([found.labels[kept]] * 2)
        every = np.concatenate([boxes[kept], invented])
        made.append(Detections(found.token, every.astype(np.float32), scores.astype(np.float32), labels))
    return made


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, list[Path]]:
    folder = tmp_path_factory.mktemp("three")
    frames = frames_of(2, 6)
    paths = []
    for seed in range(3):
        paths.append(folder / f"{seed}.tar.gz")
        entry = Entry("me@example.com", f"m{seed}", ("A",), "lab", past_frames=seed)
        write_submission(paths[-1], objects_of(noisy(frames, seed), frames, CLASSES), entry, CLASSES)
    return frames, paths


@pytest.mark.parametrize("method", ["wbf", "wbf+matrix-nms"])
def test_the_fusion_of_three_noisy_detectors_beats_each(three, tmp_path: Path, method: str) -> None:
    frames, paths = three
    out = tmp_path / "fused.tar.gz"
    held = ensemble(paths, out, (), Fusion(method), frames, {"method": "all"}, progress=False)
    assert "in 12 frames" in held and check_submission(out, frames) == []
    assert meta_of(out)["unique_method_name"] == "all" and meta_of(out)["account_name"] == "me@example.com"
    assert meta_of(out)["number_past_frames_exclude_current"] == 2  # of the last file
    alone = [evaluate(frames, read_waymo(path, frames))["let"] for path in paths]
    fused = evaluate(frames, read_waymo(out, frames))["let"]
    for key in ("mapl", "map", "maph"):
        assert fused[key] > max(own[key] for own in alone) + 0.05, key


def test_the_verb_on_waymo_files(three, tmp_path: Path, capsys) -> None:
    _, paths = three
    names = [str(path) for path in paths]
    out = str(tmp_path / "f.tar.gz")
    assert main(["ensemble", *names, "--weights", "1", "1", "0.5", "--out", out]) == 0
    assert f"wrote {out}: " in capsys.readouterr().out
    other = tmp_path / "other.tar.gz"
    fewer = frames_of(1, 6)
    write_submission(other, objects_of(noisy(fewer, 0), fewer, CLASSES), Entry(), CLASSES)
    (tmp_path / "a.json").write_text("{}")
    for arguments, message in (
        ([names[0]], "one file is no ensemble"),
        ([*names, "--weights", "1", "2"], "3 files need as many weights"),
        ([names[0], str(tmp_path / "a.json")], "two benchmarks cannot be fused"),
        ([names[0], str(other)], "is in one of other.tar.gz, 0.tar.gz alone"),
        ([*names[:2], "--threshold", "vehicle=2"], "threshold vehicle=2"),
        ([*names[:2], "--threshold", "vehicle=x"], "write an IoU"),
        ([*names[:2], "--sigma", "-1"], "sigma"),
        ([*names[:2], "--sigma", "0.4"], "is of matrix NMS"),
        ([*names[:2], "--threshold", "nonsense=0.4"], "threshold nonsense=0.4: no such class among cyclist"),
        ([*names[:2], "--method", "matrix-nms", "--threshold", "vehicle=0.4"], "thresholds are of wbf"),
    ):
        capsys.readouterr()
        assert main(["ensemble", *arguments, "--out", out]) == 2
        assert message in capsys.readouterr().err


def test_nuscenes_files(tmp_path: Path) -> None:
    frames = frames_of(1, 2)
    names = ["car", "pedestrian", "bicycle"]
    paths = []
    for seed in range(2):
        paths.append(tmp_path / f"{seed}.json")
        NuScenesSubmission.from_detections(noisy(frames, seed), frames, names).write(paths[-1])
    assert "boxes of" in ensemble(paths, tmp_path / "f.json", how=Fusion(max_boxes=9), frames=frames, progress=False)
    fused = read_submission(tmp_path / "f.json", [frame.token for frame in frames])
    assert {len(own) for own in fused.values()} == {9}
    first = read_submission(paths[0])
    token = frames[0].token
    near = np.linalg.norm(first[token].centre_global_m[:, None] - fused[token].centre_global_m, axis=-1).min(1)
    assert np.median(near) < 3.0  # in the same global frame
    same = ensemble([paths[0], paths[0]], tmp_path / "s.json", how=Fusion(let=False), progress=False)
    assert "boxes of" in same
    again = read_submission(tmp_path / "s.json")[token]
    rows = [np.linalg.norm(first[token].centre_global_m - c, axis=1).argmin() for c in again.centre_global_m]
    np.testing.assert_allclose(first[token].centre_global_m[rows], again.centre_global_m, atol=1e-6)
    np.testing.assert_allclose(first[token].scores[rows], again.scores, atol=1e-6)
    assert [first[token].attributes[i] for i in rows] == again.attributes
    content = json.loads(paths[1].read_text())
    assert not any(
        json.loads((tmp_path / "f.json").read_text())["meta"][name] for name in ("use_lidar", "use_external")
    )
    content["meta"]["use_external"] = True
    paths[1].write_text(json.dumps(content))
    ensemble(paths, tmp_path / "e.json", how=Fusion(let=False), progress=False)
    assert json.loads((tmp_path / "e.json").read_text())["meta"] == content["meta"]
    with pytest.raises(ConfigError, match="LET-IoU needs the cars' poses"):
        ensemble(paths, tmp_path / "f.json")
    few = read_submission(paths[0])
    few.pop(token)
    NuScenesSubmission.from_detections(noisy(frames[1:], 0), frames[1:], names).write(tmp_path / "few.json")
    with pytest.raises(SubmissionError, match=r"is in one of few\.json, 0\.json alone"):
        ensemble([paths[0], tmp_path / "few.json"], tmp_path / "f.json", how=Fusion(let=False))


def test_boxes_beyond_the_limit_are_counted_and_options_without_effect_refused(three, tmp_path: Path, capsys) -> None:
    frames, paths = three
    names, out = [str(path) for path in paths], str(tmp_path / "f.tar.gz")
    assert main(["ensemble", *names, "--max-boxes", "3", "--out", out]) == 0
    said = capsys.readouterr()
    assert "36 boxes of" in said.out and "beyond the best 3 of their frame are left out, in 12 frames" in said.out
    assert "the ensemble has the method name of" in said.err and "'m0'" in said.err
    rng = np.random.default_rng(0)
    many = [Detections(f.token, np.concatenate([rng.uniform(-70, 70, (450, 2)), np.ones((450, 7))], 1),
                       np.full(450, 0.5), np.zeros(450, np.int64)) for f in frames[:1]]  # fmt: skip
    for seed in range(2):
        for found in many:
            found.boxes[:, :2] += 5.0  # others than in the first file
        write_submission(tmp_path / f"{seed}.tar.gz", objects_of(many, frames[:1], CLASSES), Entry(), CLASSES)
        NuScenesSubmission.from_detections(many, frames[:1], ["car"], {"car": 99.0}).write(tmp_path / f"{seed}.json")
    plain = Fusion("matrix-nms", let=False)
    ensemble([tmp_path / "0.tar.gz", tmp_path / "1.tar.gz"], Path(out), (), plain, progress=False)
    assert len(read_waymo(out)) == 900  # Waymo has no limit
    jsons, fused = [tmp_path / "0.json", tmp_path / "1.json"], tmp_path / "f.json"
    held = ensemble(jsons, fused, (), plain, progress=False)
    assert held.startswith("500 boxes of") and "beyond the best 500 of their frame are left out, in 1 frames" in held
    for how, entry, message in (
        (plain, {"method": "x"}, "--waymo-entry"),
        (Fusion(let=False, max_boxes=501), None, "nuScenes takes at most 500"),
        (Fusion(let=False, thresholds={"nonsense": 0.4}), None, "no such class among barrier"),
    ):
        with pytest.raises(ConfigError, match=message):
            ensemble(jsons, fused, (), how, entry=entry, progress=False)


def test_files_without_a_box_give_one_without(tmp_path: Path) -> None:
    frames = frames_of(1, 2)
    found = objects_of(found_in(frames), frames, CLASSES)
    for name in ("a", "b"):
        write_submission(tmp_path / f"{name}.tar.gz", found.where(found.frame > 9), Entry(), CLASSES)
    paths = [tmp_path / "a.tar.gz", tmp_path / "b.tar.gz"]
    assert ensemble(paths, tmp_path / "f.tar.gz", progress=False).startswith("0 boxes of 0")
    assert len(read_waymo(tmp_path / "f.tar.gz")) == 0
