"""Predictions on disk, the checker, and the scores of a whole set."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.answers import OccupancyGrid
from drivestack.core.errors import DataError, SubmissionError
from drivestack.core.frames import Frame
from drivestack.core.labels import OccupancyLabels
from drivestack.data_tools.labels.files import write_occupancy
from drivestack.geometry import pose
from drivestack.occupancy.evaluation.evaluate import evaluate, ray_origins, table
from drivestack.occupancy.evaluation.rules import check_submission
from drivestack.occupancy.evaluation.submission import VoxelFiles, pack, write_grid

SHAPE = (200, 200, 16)


def grid(token: str, value: int = 17) -> OccupancyGrid:
    voxels = np.full(SHAPE, value, np.uint8)
    voxels[:, :, 2] = 11
    voxels[100:120, 90:110, 3:6] = 4
    return OccupancyGrid(token, voxels)


def test_a_folder_and_its_zip_are_valid_and_the_same(tmp_path: Path):
    folder = tmp_path / "occupancy"
    for token in ("a", "b"):
        write_grid(folder, grid(token))
    pack(folder, tmp_path / "out.zip", ["a", "b"])
    assert zipfile.ZipFile(tmp_path / "out.zip").namelist() == ["occupancy/a.npz", "occupancy/b.npz"]
    for path in (folder, tmp_path / "out.zip"):
        assert check_submission(path, ["a", "b"]) == []
        np.testing.assert_array_equal(VoxelFiles(path).read("b"), grid("b").semantics)
    with pytest.raises(SubmissionError, match="no file for sample c"):
        pack(folder, tmp_path / "out2.zip", ["a", "c"])
    assert not (tmp_path / "out2.zip").exists()


def test_every_broken_rule_is_named(tmp_path: Path):
    folder = tmp_path / "p"
    write_grid(folder, grid("good"))
    np.savez_compressed(folder / "wide.npz", np.zeros((200, 200, 8), np.uint8))
    np.savez_compressed(folder / "signed.npz", np.zeros(SHAPE, np.int64))
    np.savez_compressed(folder / "high.npz", np.full(SHAPE, 18, np.uint8))
    np.savez_compressed(folder / "named.npz", semantics=np.zeros(SHAPE, np.uint8))
    (folder / "torn.npz").write_bytes((folder / "good.npz").read_bytes()[:100])
    (folder / "notes.txt").write_text("hello")
    problems = check_submission(folder, ["good", "wide", "signed", "high", "named", "missing"])
    expected = [
        "notes.txt: only .npz files belong",
        "sample missing: no file",
        "sample torn: not of this split",
        "sample wide: shape [200, 200, 8]",
        "sample signed: dtype int64",
        "sample high: class 18",
        "sample named: ",
        "sample torn: ",
    ]
    assert len(problems) == len(expected)
    for begin in expected:
        assert any(problem.startswith(begin) for problem in problems), begin


def test_a_path_that_is_nothing_is_refused(tmp_path: Path):
    with pytest.raises(SubmissionError, match="no such folder or zip"):
        check_submission(tmp_path / "absent")
    (tmp_path / "file.zip").write_text("text")
    with pytest.raises(SubmissionError, match="neither a folder nor a zip file"):
        check_submission(tmp_path / "file.zip")
    (tmp_path / "empty").mkdir()
    assert check_submission(tmp_path / "empty") == ["no .npz file at all; write one per sample"]


@pytest.fixture
def frames(tmp_path: Path) -> list[Frame]:
    out = []
    for i in range(2):
        path = tmp_path / f"{i}.npz"
        mask = np.ones(SHAPE, bool)
        mask[:, :, 8:] = False
        write_occupancy(path, OccupancyLabels(grid("").semantics, mask, mask))
        ego = pose(np.eye(3), [5.0 * i, 0, 0])
        lidar = pose(np.eye(3), [1.0, 0, 1.8])
        out.append(Frame(f"s{i}", "scene", "scene", i, (), ego, lidar, occupancy_path=str(path)))
    return out


def test_a_perfect_set_scores_one_and_the_table_says_which_mask(frames):
    scores = evaluate(frames, lambda token: grid(token).semantics)
    assert scores["samples"] == 2 and scores["miou"] == {"camera": 1.0, "lidar": 1.0, "none": 1.0}
    assert scores["rayiou"]["RayIoU"] == 1.0 and scores["fscore"]["none"] == pytest.approx(1.0)
    assert scores["per_class"]["camera"]["car"] == 1.0 and scores["per_class"]["camera"]["bus"] is None
    text = "\n".join(table(scores))
    assert "camera mask 1.0000" in text and "RayIoU@1" in text


def test_wrong_voxels_outside_the_mask_cost_only_without_mask(frames):
    def wrong_above(token: str) -> np.ndarray:
        voxels = grid(token).semantics
        voxels[:, :, 12:] = 15
        return voxels

    scores = evaluate(frames, wrong_above)
    assert scores["miou"]["camera"] == 1.0 and scores["miou"]["none"] < 0.8


def test_rays_start_where_the_lidar_stood(frames):
    np.testing.assert_allclose(ray_origins(frames[1], frames), [[-4, 0, 1.8], [1, 0, 1.8]])


def test_sets_that_cannot_be_scored_are_named(frames):
    partly = [frames[0], replace(frames[1], occupancy_path="")]
    with pytest.raises(
        DataError, match=rf"sample {frames[1].token}: no voxel labels \(1 of 2 frames have none\); fetch"
    ):
        evaluate(partly, lambda token: grid(token).semantics)
    with pytest.raises(DataError, match="none of the 2 frames has voxel labels"):
        evaluate([replace(f, occupancy_path="") for f in frames], lambda token: grid(token).semantics)
    with pytest.raises(DataError, match="sample s0: predicted class 18"):
        evaluate(frames, lambda token: np.full(SHAPE, 18, np.uint8))
