"""Voxel metrics agree with the published evaluations on their own cases, and with brute force on a real label."""

import json
from pathlib import Path

import numpy as np
import pytest

from drivestack.geometry import OCC3D_GRID
from drivestack.occupancy.classes import OCC3D_NUSCENES, OPENOCC_MOVING
from drivestack.occupancy.evaluation.miou import MASKS, ConfusionMatrix, fscore, openoccupancy_scores
from drivestack.occupancy.evaluation.rayiou import RayIoU, cast_rays, choose_origins, occ_score, ray_fan

LIDAR_OF_NUSCENES_M = np.array([[0.985793, 0.0, 1.84019]], np.float32)


@pytest.fixture(scope="module")
def folder(reference_dir: Path) -> Path:
    return reference_dir / "occupancy"


@pytest.fixture(scope="module")
def grids(folder):
    with np.load(folder / "occ_grids.npz") as stored:
        return {key: stored[key] for key in stored.files}


def load(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def samples(grids, case: str) -> list[tuple[np.ndarray, ...]]:
    """(truth, predicted, LiDAR mask, camera mask) of a case's samples."""
    found = []
    while f"{case}/{len(found)}/gt" in grids:
        found.append(tuple(grids[f"{case}/{len(found)}/{k}"] for k in ("gt", "pred", "mask_lidar", "mask_camera")))
    return [(g, p, ml.astype(bool), mc.astype(bool)) for g, p, ml, mc in found]


def real_sample(shared_real: Path, shift: tuple[int, int, int]) -> list[tuple[np.ndarray, ...]]:
    with np.load(shared_real / "occ3d_nuscenes" / "labels.npz") as stored:
        truth, lidar, camera = stored["semantics"], stored["mask_lidar"] > 0, stored["mask_camera"] > 0
    return [(truth, np.roll(truth, shift, (0, 1, 2)), lidar, camera)]


def check(case: list[tuple[np.ndarray, ...]], expected: dict) -> None:
    for mask in MASKS:
        matrix = ConfusionMatrix(18)
        for truth, predicted, lidar, camera in case:
            matrix.add(truth, predicted, {"camera": camera, "lidar": lidar, "none": None}[mask])
        entry = expected[f"miou_{mask}"]
        np.testing.assert_array_equal(matrix.counts, entry["hist"])
        np.testing.assert_allclose(matrix.iou(), np.array(entry["per_class_iou"], float), rtol=1e-12)
        np.testing.assert_allclose(matrix.mean_iou(), np.array(entry["miou_0_16"], float), rtol=1e-12)
    for name, masked, threshold_m in (("camera", True, 0.4), ("none", False, 0.4), ("camera_thr0.6", True, 0.6)):
        entry = expected[f"fscore_{name}"]
        if "exception" in entry:  # upstream fails where nothing is occupied; here the score is 0
            assert all(fscore(g, p, c if masked else None, threshold_m)[0] == 0 for g, p, _, c in case)
            continue
        found = np.mean([fscore(g, p, c if masked else None, threshold_m) for g, p, _, c in case], 0)
        wanted = [entry[key] for key in ("fscore", "accuracy", "completeness") if key in entry]
        np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["small", "perfect", "pred_all_free", "gt_all_free", "mask_empty", "shift_x1_tie"])
def test_the_challenge_cases(folder, grids, case):
    check(samples(grids, case), load(folder, "occ_metrics.json")[case])


@pytest.mark.parametrize(("case", "shift"), [("real_sample_roll_x1", (1, 0, 0)), ("real_sample_roll_z1", (0, 0, 1))])
def test_a_real_label_moved_by_a_voxel(folder, shared_real, case, shift):
    check(real_sample(shared_real, shift), load(folder, "occ_metrics.json")[case])


def test_a_real_label_against_brute_force(shared_real):
    """Counted voxel by voxel as sets; nearest points by comparing a voxel with itself and its six neighbours."""
    truth, predicted, _, camera = real_sample(shared_real, (0, 2, 0))[0]
    matrix = ConfusionMatrix(18)
    matrix.add(truth, predicted, camera)
    expected = []
    for c in range(17):
        a, b = (truth == c) & camera, (predicted == c) & camera
        if (a | b).any():
            expected.append((a & b).sum() / (a | b).sum())
    assert matrix.mean_iou() == pytest.approx(np.mean(expected), rel=1e-14)

    def share_near(points: np.ndarray, others: np.ndarray) -> float:
        near = points & others
        for axis, count in enumerate(points.shape):
            centre = np.arange(count) * 0.4 + 0.4 / 2 + OCC3D_GRID.origin_m[axis]
            for step in (-1, 1):
                moved = np.zeros_like(others)
                at = np.arange(max(0, -step), min(count, count - step))
                at = at[np.abs(centre[at + step] - centre[at]) < 0.4]  # the tie rule
                index = [slice(None)] * 3
                index[axis] = at
                source = [slice(None)] * 3
                source[axis] = at + step
                moved[tuple(index)] = others[tuple(source)]
                near |= points & moved
        return near.sum() / points.sum()

    a, b = (truth != 17) & camera, (predicted != 17) & camera
    accuracy, completeness = share_near(b, a), share_near(a, b)
    assert fscore(truth, predicted, camera)[1:] == (accuracy, completeness)


def test_labels_of_255_do_not_count_and_nothing_is_written_into_the_arguments(grids):
    truth, predicted, _, camera = samples(grids, "gt_with_255")[0]
    before = truth.copy(), predicted.copy()
    assert (truth == 255).any()
    matrix = ConfusionMatrix(18)
    matrix.add(truth, predicted, camera)
    fscore(truth, predicted, camera)
    assert matrix.counts.sum() == (camera & (truth != 255)).sum()
    np.testing.assert_array_equal(truth, before[0])
    np.testing.assert_array_equal(predicted, before[1])


def test_predictions_that_are_no_class_are_refused():
    matrix = ConfusionMatrix(18)
    with pytest.raises(ValueError, match=r"predicted class 18: classes are 0\.\.17"):
        matrix.add(np.zeros((2, 2, 2), int), np.full((2, 2, 2), 18))
    with pytest.raises(ValueError, match="predicted voxels"):
        matrix.add(np.zeros((2, 2, 2), int), np.zeros((2, 2, 1), int))


@pytest.mark.parametrize("case", ["small", "perfect", "pred_all_free", "gt_all_free"])
def test_openoccupancy(folder, grids, case):
    expected = load(folder, "occ_openoccupancy.json")[case]
    matrix = ConfusionMatrix(17)
    for truth, predicted, _, _ in samples(grids, case):
        remapped = [np.select([v == 17, (v == 0) | (v == 255)], [0, unknown], v.astype(int)) for v, unknown in
                    ((truth, 255), (predicted, 1))]  # fmt: skip
        matrix.add(*remapped)
    geometric, iou, mean = openoccupancy_scores(matrix.counts)
    np.testing.assert_array_equal(matrix.counts, expected["SSC_hist"])
    np.testing.assert_allclose(iou, np.array(expected["SSC_ious"], float), rtol=1e-12)
    official = expected["formatted"]["SSC_mean"]  # None: one class is absent
    assert official is None or round(mean, 3) == official
    np.testing.assert_allclose(geometric, expected["SC_IoU_nonempty"], rtol=1e-12)


def test_the_fan_of_rays(folder):
    expected = load(folder, "occ_rayiou.json")
    assert ray_fan().shape == (expected["num_rays"], 3)
    np.testing.assert_allclose(ray_fan()[[0, -1]], [expected["ray_first"], expected["ray_last"]], atol=1e-7)
    np.testing.assert_allclose(np.rad2deg(np.arcsin(ray_fan()[::360, 2])), expected["pitch_degrees"], atol=1e-4)


def ray_scores(cases) -> tuple[RayIoU, list[int]]:
    scores = RayIoU()
    return scores, [scores.add(*case) for case in cases]


def check_rays(scores: RayIoU, counts: list[int], expected: dict) -> None:
    for name, value in scores.scores().items():
        assert value == pytest.approx(expected[name], abs=1e-12)
    for name, row in zip(OCC3D_NUSCENES, scores.iou()):
        if name != "free":
            np.testing.assert_allclose(row, np.array(expected["per_class"][name], float), atol=1e-12)
    assert counts == expected["valid_rays"]


def test_rayiou_cases(folder, grids):
    expected = load(folder, "occ_rayiou.json")
    ray = [tuple(grids[f"ray/{i}/{k}"] for k in ("gt", "pred", "origins")) for i in range(2)]
    check_rays(*ray_scores(ray), expected["both"])
    check_rays(*ray_scores(ray[:1]), expected["sample0"])
    check_rays(*ray_scores([(g, g, o) for g, _, o in ray]), expected["perfect"])
    check_rays(*ray_scores([(ray[0][0], np.full_like(ray[0][0], 17), ray[0][2])]), expected["all_free_pred"])
    seen = cast_rays([ray[0][0]], ray[0][2], 17)[0][0] != 17
    for key, voxels in (("gt", ray[0][0]), ("pred", ray[0][1])):
        ((classes, distance_m, _),) = cast_rays([voxels], ray[0][2], 17)
        rows = np.array(expected["sample0_depths_every97"][key])
        np.testing.assert_array_equal(classes[seen][::97], rows[:, 0])
        np.testing.assert_allclose(distance_m[seen][::97], rows[:, 1], atol=1e-3)


def test_rayiou_of_a_real_label(folder, shared_real):
    truth, predicted, _, _ = real_sample(shared_real, (1, 0, 0))[0]
    expected = load(folder, "occ_rayiou.json")["real_sample_roll_x1"]
    check_rays(*ray_scores([(truth, predicted, LIDAR_OF_NUSCENES_M)]), expected)


def test_occ_score_with_flow(folder, grids):
    """Classes and flows made as the reference file says."""
    expected = load(folder, "occ_rayiou.json")["openocc_challenge2024"]
    random = np.random.RandomState(3)
    scores = RayIoU(num_classes=17)
    for i in range(2):
        truth, predicted = (
            np.where(v == 17, 16, np.minimum(v, 15)) for v in (grids[f"ray/{i}/gt"], grids[f"ray/{i}/pred"])
        )
        flow = random.normal(0, 2, (*truth.shape, 2))
        flow[truth >= 8] = 0
        scores.add(truth, predicted, grids[f"ray/{i}/origins"], (flow, flow + 0.25))
    found = occ_score(scores, range(len(OPENOCC_MOVING)))
    assert found["RayIoU"] == pytest.approx(expected["RayIoU"], abs=1e-12)
    iou = scores.iou()
    np.testing.assert_allclose(np.nanmean(iou, 0), expected["per_threshold"], atol=1e-12)
    np.testing.assert_allclose(scores.flow_errors()[:8], expected["AVE"][:8], atol=1e-6)
    assert found["mAVE"] == pytest.approx(expected["mAVE"], abs=1e-6)
    assert found["OccScore"] == pytest.approx(expected["OccScore"], abs=1e-9)


def test_thick_predictions_gain_nothing():
    truth = np.full((200, 200, 16), 17)
    truth[150, 60:140, 2:10] = 15
    thick = truth.copy()
    thick[150:, 60:140, 2:10] = 15
    origin = np.array([[0.0, 0, 1.8]])
    scores, _ = ray_scores([(truth, thick, origin)])
    assert scores.scores()["RayIoU"] == 1.0
    matrix = ConfusionMatrix(18)
    matrix.add(truth, thick)
    assert matrix.mean_iou() < 0.05


def test_origins_are_near_and_at_most_eight():
    places = np.stack([np.linspace(-100, 100, 41), np.zeros(41), np.full(41, 1.8)], 1)
    chosen = choose_origins(places)
    assert len(chosen) == 8 and np.abs(chosen[:, 0]).max() < 39
    assert len(choose_origins(places[:2])) == 0
