"""Verbs for boxes, voxels and lanes: three submissions of one model, checked, scored, drawn, alone and together."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from drivestack.bev.protocol import TASKS, PerceptionModel
from drivestack.cli.main import main
from drivestack.cli.options import METRIC_VERSIONS
from drivestack.cli.options import TASKS as NAMES
from drivestack.core.answers import OccupancyGrid, SceneAnswer
from drivestack.core.errors import ConfigError, SubmissionError
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.readers.openlane.files import identifier_of, write_frame
from drivestack.lane_topology.evaluation.ols import Version
from drivestack.lane_topology.evaluation.submission import (
    NOBODY,
    read_content,
    read_predictions,
    write_submission,
)
from drivestack.lane_topology.published.road_bevformer import RoadBevFormer
from drivestack.occupancy.evaluation.submission import VoxelFiles
from drivestack.occupancy.published.bevformer_occ import BEVFormerOcc
from drivestack.tasks.registry import ENDINGS, find, places
from drivestack.tasks.registry import TASKS as REGISTERED

TINY = "perception_tiny_synthetic"


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line of error that the arguments give."""
    capsys.readouterr()
    assert main(arguments) == code
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return line


@pytest.fixture(scope="session")
def answers(root: Path, config_of_three: Path, weights: Path) -> Path:
    """The folder of the oracle's submissions."""
    out = root.parent / "answers"
    arguments = ["--version", "v1.0-trainval", "--split", "val", "--out", str(out)]
    assert main(["predict", str(config_of_three), str(weights), "--dataroot", str(root), *arguments]) == 0
    return out


@pytest.fixture(scope="session")
def unlabelled(root: Path) -> Path:
    """The set without any label, as a test split is."""
    folder = root.parent / "unlabelled"
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns("gts", "lanes"))
    for table in ("sample_annotation", "instance"):
        (folder / "v1.0-trainval" / f"{table}.json").write_text("[]")
    return folder


def test_tasks_and_versions_are_the_same_everywhere() -> None:
    assert (*TASKS, "tracks") == NAMES == tuple(REGISTERED)
    assert get_args(Version) == METRIC_VERSIONS


def test_models_say_what_they_answer() -> None:
    assert BEVFormerOcc.tasks == ("occupancy",) and RoadBevFormer.tasks == ("lanes",)
    model = PerceptionModel()
    assert model.asked(None) == TASKS and model.asked(["lanes", "boxes"]) == ("boxes", "lanes")
    assert model.tasks == TASKS  # asking changes nothing
    model.tasks = ("boxes", "lanes")
    with pytest.raises(ConfigError, match="answers boxes, lanes, not occupancy"):
        model.asked(["occupancy"])


def test_voxels_go_to_disk_as_they_come(tmp_path: Path) -> None:
    voxels = np.full((200, 200, 16), 17, np.uint8)
    left = REGISTERED["occupancy"]().keep(tmp_path / "o.zip")(SceneAnswer("t", occupancy=OccupancyGrid("t", voxels)))
    assert left == SceneAnswer("t")
    np.testing.assert_array_equal(VoxelFiles(tmp_path / "o").read("t"), voxels)


def test_predict_writes_three_submissions_that_are_valid(answers: Path, root: Path, source, capsys) -> None:
    tokens = [frame.token for frame in read_nuscenes(root, "v1.0-trainval", "val")]
    assert sorted(path.name for path in answers.iterdir()) == [
        "lanes.pkl", "occupancy", "occupancy.zip", "submission.json"
    ]  # fmt: skip
    with zipfile.ZipFile(answers / "occupancy.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"occupancy/{token}.npz" for token in tokens)
    for path in (answers, answers / "occupancy", answers / "lanes.pkl"):
        capsys.readouterr()
        assert main(["check-submission", str(path), *source(root)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == (3 if path == answers else 1)
        assert all(line.endswith("is valid; all 4 samples are there") for line in lines)


def test_evaluate_scores_the_oracle_with_one(config_of_three: Path, weights: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--tasks", "lanes", "occupancy", "--metric-version", "v2.1", "--out", str(tmp_path)]
    assert main(["evaluate", str(config_of_three), str(weights), *arguments]) == 0
    text = capsys.readouterr().out
    assert text.index("occupancy (Occ3D)") < text.index("OLS 1.0000")
    assert "camera mask 1.0000" in text and "metric v2.1, 4 frames" in text and "NDS" not in text
    voxels = json.loads((tmp_path / "occupancy_scores.json").read_text())
    assert voxels["miou"] == {"camera": 1.0, "lidar": 1.0, "none": 1.0}
    assert voxels["rayiou"]["RayIoU"] == 1.0 and voxels["fscore"]["camera"] == pytest.approx(1)
    lanes = json.loads((tmp_path / "lane_scores.json").read_text())
    assert [lanes[key] for key in ("ols", "det_l", "det_t", "top_ll", "top_lt")] == [1.0] * 5
    assert not (tmp_path / "submission.json").exists()


def test_score_of_one_file_of_a_folder_and_of_chosen_tasks(answers: Path, root: Path, source, tmp_path, capsys) -> None:
    assert main(["score", str(answers), *source(root), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.index("NDS") < text.index("RayIoU") < text.index("OLS 1.0000")
    written = ["lane_scores.json", "metrics_summary.json", "occupancy_scores.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    for task in ("boxes", "occupancy", "lanes"):
        scores = json.loads((tmp_path / REGISTERED[task].scores_file).read_text())
        assert set(REGISTERED[task]().summary(scores)) == set(REGISTERED[task].summary_names)
    assert main(["score", str(answers / "lanes.pkl"), *source(root), "--metric-version", "v1.0"]) == 0
    assert "metric v1.0" in capsys.readouterr().out
    assert main(["score", str(answers), *source(root), "--tasks", "boxes"]) == 0
    text = capsys.readouterr().out
    assert "NDS" in text and "OLS" not in text


def test_lane_files_name_the_team_and_keep_the_budget(
    root: Path, config_of_three: Path, weights: Path, source, tmp_path: Path, capsys
) -> None:
    team = {"method": "m", "authors": ["Ada", "Eve"], "email": "a@b.cc", "institution": "i", "country": "AT"}
    (tmp_path / "team.json").write_text(json.dumps(team))
    predict = ["predict", str(config_of_three), str(weights), *source(root), "--tasks", "lanes"]
    full, half = tmp_path / "full.pkl", tmp_path / "half.pkl"
    assert main([*predict, "--out", str(full)]) == 0
    assert "names no team" in capsys.readouterr().out
    assert main([*predict, "--out", str(half), "--half", "--team", str(tmp_path / "team.json")]) == 0
    content = read_content(half)
    assert (content["authors"], content["country / region"]) == (["Ada", "Eve"], "AT")
    assert half.stat().st_size < 0.8 * full.stat().st_size
    megabytes = str(half.stat().st_size / 1e6 + 1e-4)
    assert main(["check-submission", str(half), *source(root), "--max-mb", megabytes]) == 0
    assert "1 broken rule" in failure(["check-submission", str(full), "--max-mb", megabytes], capsys, code=1)
    (tmp_path / "team.json").write_text(json.dumps({**team, "authors": "Ada"}))
    assert "authors must be a list" in failure([*predict, "--team", str(tmp_path / "team.json")], capsys)


def test_voxel_files_without_tables_are_counted(answers: Path, capsys) -> None:
    assert main(["check-submission", str(answers / "occupancy.zip")]) == 0
    assert "not compared with a split" in capsys.readouterr().out
    assert main(["check-submission", str(answers / "occupancy.zip"), "--split", "test"]) == 1
    assert "4 samples, but the split has 6008" in capsys.readouterr().out
    assert "--dataroot" in failure(["check-submission", str(answers), "--split", "test"], capsys)


def test_visualize_takes_files_and_folders(answers: Path, root: Path, source, tmp_path: Path) -> None:
    files = ["--submission", str(answers / "lanes.pkl"), "--submission", str(answers / "occupancy")]
    for name, chosen in (("all", ["--submission", str(answers)]), ("two", files), ("labels", [])):
        assert main(["visualize", *source(root), *chosen, "--max", "1", "--out", str(tmp_path / name)]) == 0
        assert len(list((tmp_path / name).glob("*.png"))) == 1


@pytest.mark.parametrize("task", TASKS)
def test_a_split_without_labels_is_predicted_and_scoring_says_what_is_missing(
    task: str, unlabelled: Path, source, tmp_path: Path, capsys
) -> None:
    """The shipped architecture with random weights, one task at a time."""
    out = tmp_path / "answers"
    given = [TINY, "random", *source(unlabelled), "--tasks", task, "--out", str(out)]
    assert main(["predict", *given]) == 0
    assert main(["check-submission", str(out), *source(unlabelled)]) == 0
    missing = {"boxes": "has no annotations", "occupancy": "has voxel labels", "lanes": "no lane labels"}[task]
    line = failure(["evaluate", *given[:-1], str(tmp_path / "evaluation")], capsys)
    assert missing in line and not (tmp_path / "evaluation").exists()
    assert missing in failure(["score", str(out), *source(unlabelled)], capsys)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A demo of a few seconds; all runs share its scenes."""
    sizes = ["--scenes", "1", "--keyframes", "2", "--pictures", "1", "--workers", "1", "--drive", "3"]
    return ["demo", "--out", str(tmp_path_factory.mktemp("demo")), *sizes]


def test_demo_of_three_tasks(demo: list[str], config_of_three: Path, weights: Path, capsys) -> None:
    assert main([*demo, "--config", str(config_of_three), "--weights", str(weights)]) == 0
    out = Path(demo[2])
    metrics = json.loads((out / "metrics.json").read_text())
    for key in ("miou", "rayiou", "fscore", "ols", "det_l", "det_t", "top_ll", "top_lt"):
        assert metrics[key] == pytest.approx(1.0), key
    assert metrics["lane_metric_version"] == "v2.1" and metrics["nds"] > 0.2
    assert metrics["occupancy"]["per_class"]["camera"]["driveable_surface"] == 1.0
    assert set(metrics["files"]["submissions"]) == {*TASKS, "tracks"}
    assert all((out / name).is_file() for name in metrics["files"]["submissions"].values())
    text = capsys.readouterr().out
    assert text.index("NDS") < text.index("RayIoU") < text.index("OLS") < text.index("tracks.json (valid)")


def test_demo_of_boxes_alone(demo: list[str], config: Path, weights: Path, capsys) -> None:
    assert main([*demo, "--config", str(config), "--weights", str(weights)]) == 0
    out = Path(demo[2])
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"nds", "map", "ap", "tp_errors", "seeds", "times"} <= metrics.keys()
    assert metrics["nds"] > 0.2 and "miou" not in metrics and "ols" not in metrics
    assert metrics["files"]["submission"] == "submission.json"
    assert (out / "submission.json").is_file() and (out / "clip.gif").is_file()
    assert len(list((out / "pictures").glob("*.png"))) == 1
    played = json.loads((out / "drive" / "submission.json").read_text())["results"]
    with Image.open(out / "clip.gif") as clip:
        assert clip.n_frames == len(played) == 3 and metrics["data"]["keyframes_per_scene"] == 2
    assert main([*demo[:-1], "0", "--config", str(config), "--weights", str(weights)]) == 0
    with Image.open(out / "clip.gif") as clip:
        assert clip.n_frames == 2
    text = capsys.readouterr().out
    for fragment in ("NDS", "metrics.json", "clip.gif", "time", "disk"):
        assert fragment in text


def test_openlane_sets_are_predicted_checked_and_scored(
    root: Path, config_of_three: Path, weights: Path, tmp_path: Path, capsys
) -> None:
    for frame in read_nuscenes(root, "v1.0-trainval", "val"):
        write_frame(tmp_path / "set", "val", frame)
    data = ["--openlane", str(tmp_path / "set"), "--split", "val"]
    file = str(tmp_path / "lanes.pkl")
    assert main(["predict", str(config_of_three), str(weights), *data, "--tasks", "lanes", "--out", file]) == 0
    assert main(["check-submission", file, *data]) == 0
    assert "all 4 samples are there" in capsys.readouterr().out
    assert main(["score", file, *data]) == 0
    assert "OLS 1.0000" in capsys.readouterr().out
    assert main(["visualize", *data, "--submission", file, "--max", "1", "--out", str(tmp_path / "p")]) == 0
    assert len(list((tmp_path / "p").glob("*.png"))) == 1


# ---------------------------------------------------------------------------------------------------------- errors


def test_a_sample_that_is_missing_is_named(answers: Path, root: Path, source, tmp_path: Path, capsys) -> None:
    frame = read_nuscenes(root, "v1.0-trainval", "val")[0]
    broken = tmp_path / "broken"
    shutil.copytree(answers, broken)
    (broken / "occupancy" / f"{frame.token}.npz").unlink()
    line = failure(["score", str(broken / "occupancy"), *source(root)], capsys)
    assert f"sample {frame.token}: no file" in line
    voxels = VoxelFiles(answers / "occupancy").read(frame.token).copy()
    voxels[0, 0, 0] = 255
    np.savez_compressed(broken / "occupancy" / f"{frame.token}.npz", voxels)
    assert f"sample {frame.token}: class 255" in failure(["score", str(broken / "occupancy"), *source(root)], capsys)
    found = read_predictions(answers / "lanes.pkl")
    del found[identifier_of(frame, "val")]
    write_submission(broken / "lanes.pkl", found, NOBODY)
    name = f"val/{frame.scene_name}/{frame.timestamp_us}"
    assert f"frame {name}: missing" in failure(["score", str(broken / "lanes.pkl"), *source(root)], capsys)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["predict", "THREE", "WEIGHTS", "--out", "s.json"], "names one file of boxes"),
        (["predict", "BOXES", "WEIGHTS", "--tasks", "lanes"], "answers boxes, not lanes"),
        (["predict", "THREE", "WEIGHTS", "--team", "nowhere.json"], "nowhere.json"),
        (["score", "s.dat", "--dataroot", "ROOT"], "s.dat: no such file"),
        (["score", "ANSWERS/lanes.pkl", "--dataroot", "ROOT"], "--version"),
        (["score", "ANSWERS/lanes.pkl"], "--openlane"),
        (["score", "ANSWERS/lanes.pkl", "--openlane", "ROOT"], "--split"),
        (["check-submission", "nowhere.pkl"], "nowhere.pkl"),
        (["check-submission", "nowhere.zip"], "nowhere.zip"),
        (
            ["check-submission", "ROOT"],
            "holds no submission.json or waymo_submission.tar.gz or detections.feather, occupancy.zip, ",
        ),
        (["check-submission", "ANSWERS/occupancy", "--tasks", "lanes"], "holds no lanes.pkl"),
    ],
)
def test_user_errors_take_one_line(
    arguments, fragment, root, config, config_of_three, weights, answers, capsys, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"BOXES": str(config), "THREE": str(config_of_three), "WEIGHTS": str(weights), "ROOT": str(root)}
    given = [names.get(a, a).replace("ANSWERS", str(answers)) for a in arguments]
    assert fragment in failure(given, capsys)
    assert list(tmp_path.iterdir()) == []


def test_places_and_find(tmp_path: Path) -> None:
    assert places(tmp_path / "v1.0", TASKS)["lanes"] == tmp_path / "v1.0" / "lanes.pkl"
    assert places("a.zip", ["occupancy"]) == {"occupancy": Path("a.zip")}
    with pytest.raises(ConfigError, match="names one file of lanes"):
        places("a.pkl", ["boxes"])
    for ending, task in ENDINGS.items():
        assert find(f"x{ending}") == {task: Path(f"x{ending}")}
    assert find("x.bin", ["lanes"]) == {"lanes": Path("x.bin")}
    with pytest.raises(
        ConfigError, match=r"x\.txt ends like a file of none of the tasks \(\.json, \.tar\.gz and \.feather boxes, "
    ):
        places("x.txt", ["boxes"])
    (tmp_path / "t.dat").write_bytes(b"\x1f\x8b")
    with pytest.raises(
        SubmissionError, match=r"t\.dat: unknown kind of submission \(a gzip archive\); choose with --ta"
    ):
        find(tmp_path / "t.dat")
    for ending, owner in ((".tfrecord", "Waymo"), (".parquet", "Waymo 2.0")):
        (tmp_path / f"t{ending}").touch()
        with pytest.raises(SubmissionError, match=rf"t\{ending}: is a file of {owner}.*; submissions here are"):
            find(tmp_path / f"t{ending}")
    (tmp_path / "t.npz").touch()
    assert find(tmp_path) == {"occupancy": tmp_path}
    with pytest.raises(SubmissionError, match=r"holds no submission\.json"):
        find(tmp_path, ["boxes"])
