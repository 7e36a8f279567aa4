"""Tracks through verbs and API: predicted, linked, checked, scored and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drivestack.cli.main import main
from drivestack.core.errors import DataError
from drivestack.tasks.registry import find, places


@pytest.fixture(scope="module")
def tracks(root: Path, config_of_three: Path, weights: Path) -> Path:
    path = root.parent / "tracks.json"
    data = ["--dataroot", str(root), "--version", "v1.0-trainval", "--split", "val"]
    assert main(["predict", str(config_of_three), str(weights), *data, "--tasks", "tracks", "--out", str(path)]) == 0
    return path


def test_tracks_from_prediction_to_pictures(tracks: Path, root: Path, source, tmp_path: Path, capsys) -> None:
    assert main(["check-submission", str(tracks), *source(root)]) == 0
    assert "is valid; all 4 samples are there" in capsys.readouterr().out
    assert main(["score", str(tracks), *source(root), "--out", str(tmp_path)]) == 0
    assert "AMOTA 1.000" in capsys.readouterr().out
    assert json.loads((tmp_path / "tracks_summary.json").read_text())["ids"] == 0
    assert main(["visualize", *source(root), "--submission", str(tracks), "--max", "2", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_the_boxes_of_a_submission_are_linked(submission: Path, root: Path, source, tmp_path: Path, capsys) -> None:
    out = tmp_path / "linked.json"
    assert main(["track", str(submission), *source(root), "--out", str(out)]) == 0
    assert find(out) == {"tracks": out} and find(submission) == {"boxes": submission}
    assert main(["score", str(out), *source(root)]) == 0
    assert "AMOTA 1.000" in capsys.readouterr().out
    assert main(["track", str(submission), *source(root), "--out", str(out), "--min-score", "0.9"]) == 0
    assert "0 boxes of 0 tracks" in capsys.readouterr().out


def test_places_of_tracks() -> None:
    assert places("mine.json", ["tracks"]) == {"tracks": Path("mine.json")}
    assert places("answers", ["boxes", "tracks"])["tracks"] == Path("answers/tracks.json")


def test_a_file_of_the_other_kind_is_named(tracks: Path, submission: Path, capsys) -> None:
    assert main(["check-submission", str(submission), "--tasks", "tracks"]) == 1
    assert "holds nuScenes detections" in capsys.readouterr().out
    assert main(["check-submission", str(tracks), "--tasks", "boxes"]) == 1
    assert "holds nuScenes tracking results" in capsys.readouterr().out


def test_tracks_through_the_api(root: Path, config: Path, weights: Path) -> None:
    import drivestack

    data = drivestack.DataSource("nuscenes", root, {"version": "v1.0-trainval", "split": "val"})
    model = drivestack.load(config, weights)
    scores = drivestack.evaluate(model, data, tasks=["tracks"])
    assert scores["tracks"]["amota"] == pytest.approx(1.0)
    unnamed = drivestack.read(root, version="v1.0-trainval", split="val")
    for frame in unnamed:
        frame.annotations.instance_tokens[:] = [""] * len(frame.annotations)
    with pytest.raises(DataError, match="no label states its instance"):
        drivestack.evaluate(model, unnamed, tasks=["tracks"])
