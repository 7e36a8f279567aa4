"""Predictions on disk, the checker, and the scores of a whole set."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.answers import OccupancyGrid
from drivestack.core.errors import DataError, SubmissionError
from drivestack.core.frames import Frame
from drivestack.core.labels import OccupancyLabels
from drivestack.core.once import forget_warnings
from drivestack.data_tools.labels.files import read_occupancy, write_occupancy
from drivestack.geometry import pose
from drivestack.occupancy.classes import OPENOCC
from drivestack.occupancy.evaluation import submission
from drivestack.occupancy.evaluation.evaluate import check_labels, evaluate, ray_origins, table
from drivestack.occupancy.evaluation.rules import check_submission
from drivestack.occupancy.evaluation.submission import VoxelFiles, clear_stale, pack, write_grid

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


def test_neighbouring_layouts_are_scored_but_not_submitted(tmp_path: Path):
    voxels = grid("").semantics
    np.savez_compressed(tmp_path / "a.npz", pred=voxels, flow=np.zeros((*SHAPE, 2), np.float16))
    np.save(tmp_path / "b.npy", voxels)
    np.savez_compressed(tmp_path / "c.npz", voxels.astype(np.int64))
    files = VoxelFiles(tmp_path)
    for token in "abc":
        np.testing.assert_array_equal(files.read(token), voxels)
    assert check_submission(tmp_path, ["a", "b", "c"], strict=False) == []
    problems = check_submission(tmp_path, ["a", "b", "c"])
    assert [problem.partition(";")[0] for problem in problems] == [
        "sample a: the array is called pred",
        "sample b: is an .npy file",
        "sample c: dtype int64",
    ]


def test_names_that_lead_elsewhere_are_named_and_never_opened(tmp_path: Path):
    content = write_grid(tmp_path / "in", grid("good")).read_bytes()
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        for name in ("x/good.npz", "/etc/x.npz", "../up.npz", "x/.hidden.npz", "x/good.npy"):
            archive.writestr(name, content)
    assert VoxelFiles(tmp_path / "out.zip").tokens == ["good"]
    problems = check_submission(tmp_path / "out.zip")
    assert problems[:2] == [
        f"{name}: leads out of the folder that it is unpacked to; name it <sample token>.npz"
        for name in ("/etc/x.npz", "../up.npz")
    ]
    assert "cannot name a file" in problems[2] and problems[3] == "sample good: 2 files; keep one"


def test_bombs_are_named_by_their_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submission, "MAX_SAMPLE_BYTES", 1_000_000)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (30_000, 10_000)})
    with zipfile.ZipFile(tmp_path / "vast.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue())
    np.savez_compressed(tmp_path / "wide.npz", np.zeros((2000, 2000, 1), np.uint8))
    with zipfile.ZipFile(tmp_path / "out.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("packed.npz", b"\0" * 3_000_000)
        for name in ("vast.npz", "wide.npz"):
            archive.write(tmp_path / name, name)
    problems = "\n".join(check_submission(tmp_path / "out.zip"))
    assert "packed.npz: unpacks to 3 MB, more than 1; write it again" in problems
    assert "sample wide: shape [2000, 2000, 1]; it must be" in problems
    assert "array arr_0 is uint8 [30000, 10000], 300 MB; write it again" in problems


def test_samples_of_another_split_are_one_statement(tmp_path: Path):
    write_grid(tmp_path, grid("theirs"))
    problems = check_submission(tmp_path, ["ours", "own"])
    assert problems[0].startswith(
        "none of its 1 samples is one of the 2 of the split: it has 'theirs', the split 'ours';"
    )


def test_voxels_of_an_earlier_split_go_and_other_peoples_stay(tmp_path: Path):
    folder, path = tmp_path / "occupancy", tmp_path / "occupancy.zip"
    for token in ("old", "both"):
        write_grid(folder, grid(token))
    np.savez_compressed(folder / "theirs.npz", grid("theirs").semantics)
    (folder / "notes.txt").write_text("mine")
    write_grid(folder, grid("val/00001/3159"))
    tokens = ["both", "val/00001/3159"]
    assert clear_stale(folder, tokens) == ["notes.txt", "theirs.npz"]
    assert sorted(p.name for p in folder.iterdir()) == ["both.npz", "notes.txt", "theirs.npz", "val_00001_3159.npz"]
    pack(folder, path, tokens)
    assert check_submission(path, tokens) == []
    np.testing.assert_array_equal(VoxelFiles(path).read("val/00001/3159"), grid("").semantics)
    assert clear_stale(folder, []) == ["notes.txt", "theirs.npz"]


@pytest.mark.parametrize("token", ["../../../EVIL", "/etc/x", "a/../../b", "", ".hidden", "a\nb"])
def test_tokens_that_lead_elsewhere_are_refused(token: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"sample token .* cannot name a file"):
        write_grid(tmp_path / "occupancy", grid(token))
    assert not list(tmp_path.rglob("*.npz"))


def test_one_samples_file_is_no_submission(tmp_path: Path):
    with pytest.raises(SubmissionError, match=r"t\.npz: is the file of one sample; give the folder"):
        VoxelFiles(write_grid(tmp_path, grid("t")))


def test_labels_without_masks_are_scored_without_mask_alone(frames, tmp_path):
    scene = np.full(SHAPE, OPENOCC.index("free"), np.uint8)
    scene[:, :, 2] = OPENOCC.index("driveable_surface")
    paths = [tmp_path / f"openocc_{i}.npz" for i in range(2)]
    for path in paths:
        np.savez_compressed(path, semantics=scene, flow=np.zeros((*SHAPE, 2), np.float16))
    openocc = [replace(frame, occupancy_path=str(path)) for frame, path in zip(frames, paths)]
    theirs = evaluate(openocc, lambda token: scene)
    ours = evaluate(openocc, lambda token: read_occupancy(paths[0]).semantics)
    assert theirs == ours and theirs["miou"] == {"none": 1.0} and list(theirs["fscore"]) == ["none"]
    text = "\n".join(table(theirs))
    assert "the labels have no masks: these are not the scores of Occ3D's benchmark" in text and "camera" not in text
    with pytest.raises(DataError, match=r"sample s1: .*openocc_1\.npz has no masks, the split's first file has masks"):
        check_labels([frames[0], openocc[1]], read=True)
    with pytest.raises(DataError, match=r"sample s1: .* has no masks"):
        evaluate([frames[0], openocc[1]], lambda token: scene)


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


def test_without_a_lidar_rays_start_above_the_road(frames, caplog):
    forget_warnings()
    bare = [replace(frame, ego_from_bev=np.eye(4)) for frame in frames]
    np.testing.assert_allclose(ray_origins(bare[1], bare), [[-5, 0, 1.84], [0, 0, 1.84]])
    assert "frames without a LiDAR" in caplog.text


def test_labels_of_occ3d_waymo_are_scored_by_their_own_classes(frames, tmp_path):
    path = tmp_path / "000_04.npz"
    classes = np.full(SHAPE, 23, np.uint8)  # free
    classes[:, :, 2], classes[120:130, 90:110, 3:6] = 13, 1  # a road and a vehicle
    seen = np.ones(SHAPE, bool)
    np.savez(path, voxel_label=classes, origin_voxel_state=seen, final_voxel_state=seen, infov=seen)
    frame = replace(frames[0], occupancy_path=str(path))
    truth = read_occupancy(path).semantics
    scores = evaluate([frame], lambda token: truth)
    assert scores["miou"]["none"] == scores["rayiou"]["RayIoU"] == 1.0
    assert scores["per_class"]["none"]["vehicle"] == 1.0 and scores["per_class"]["none"]["building"] is None
    lower = np.where(truth == 1, 15, truth)  # without the vehicle
    assert evaluate([frame], lambda token: lower)["rayiou"]["RayIoU"] < 0.9
    with pytest.raises(DataError, match="classes of two data sets: score them one by one"):
        check_labels([frames[1], frame])
    with pytest.raises(DataError, match=r"000_04\.npz: has Occ3D-Waymo's 16 classes, where 18 are expected"):
        read_occupancy(path, 18)


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
