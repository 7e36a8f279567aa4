"""From records to scored boxes and a valid submission to Waymo by three verbs: predict, score, check-submission.

The records are the synthetic set's own, renamed, and what it writes in Waymo's formats where they can be written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from drivestack.bev.evaluation.waymo_rules import read_submission
from drivestack.bev.protocol import PerceptionModel
from drivestack.cli.main import main
from drivestack.core.answers import SceneAnswer
from drivestack.core.registries import MODELS
from drivestack.data_tools.readers.registry import DataSource
from support.waymo_like import CLASSES, found_in

READER = """
import drivestack
from support.waymo_like import as_waymo


@drivestack.register_reader("waymo_like")
def read(root, split="val"):
    from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes

    return [as_waymo(frame) for frame in read_nuscenes(root, "v1.0-trainval", split)]
"""


@MODELS.register_module()
class WaymoOracleForTests(PerceptionModel):
    """Finds every labelled vehicle, pedestrian and cyclist, its centre off by a little; and what scores below 0.03."""

    def __init__(self) -> None:
        super().__init__()
        import torch

        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.tasks, self.frame_offsets = ("boxes",), (0,)

    def predict(self, batch, memory=None, tasks=None):
        answers = []
        for frame in batch.frames:
            (found,) = found_in([frame], noise_m=0.1, seed=frame.timestamp_us % 1000)
            found.scores[-1:] = 0.02
            answers.append(SceneAnswer(frame.token, boxes=found))
        return answers, memory


@pytest.fixture(scope="module", params=["nuscenes", "waymo_v1", "waymo_v2"])
def waymo_source(request: pytest.FixtureRequest, root: Path) -> list[str]:
    """Options that name frames of Waymo's with labels: renamed ones of the synthetic set, and its Waymo files."""
    if request.param != "nuscenes":
        writer = pytest.importorskip("drivestack.data_tools.synthetic.files.other_formats")
        pytest.importorskip("waymo_open_dataset.dataset_pb2" if request.param == "waymo_v1" else "pyarrow")
        copied = root.parent / request.param
        shutil.copytree(root, copied)
        writer.write_other_formats(copied, ["val"], [request.param])
        return ["--reader", "waymo", "--dataroot", str(copied / request.param), "--split", "val"]
    reader = root.parent / "waymo_like.py"
    reader.write_text(READER)
    return ["--reader", str(reader), "--dataroot", str(root), "--split", "val"]


@pytest.fixture(scope="module")
def waymo_config(root: Path) -> Path:
    path = root.parent / "waymo_oracle.py"
    path.write_text(
        f"""
from drivestack.data_tools.clips.clip_dataset import ClipDataset

benchmark = "waymo"
waymo_entry = dict(method="oracle", authors=["A"])
model = dict(type="WaymoOracleForTests")
test_dataset = dict(type=ClipDataset, classes={CLASSES!r}, image=dict(test_height_px=32))
"""
    )
    return path


def test_predict_score_check(waymo_source, waymo_config: Path, weights: Path, tmp_path: Path, capsys) -> None:
    entry = tmp_path / "entry.json"
    entry.write_text(json.dumps({"account": "me@example.com", "affiliation": "lab", "past_frames": 2}))
    out = tmp_path / "s.tar.gz"
    named = ["--waymo-entry", str(entry), "--out", str(out)]
    assert main(["predict", str(waymo_config), str(weights), *waymo_source, *named]) == 0
    said = capsys.readouterr()
    assert "score below 0.03 and are left out, as in official submissions" in said.err
    assert f"wrote {out}: 4 samples, " in said.out

    assert main(["check-submission", str(out), *waymo_source]) == 0
    said = capsys.readouterr()
    assert "is valid; no frame is foreign, and each of the " in said.out and "samples are there" not in said.out
    assert "placeholder" not in said.err

    assert main(["score", str(out), *waymo_source, "--out", str(tmp_path / "scores")]) == 0
    text = capsys.readouterr().out
    assert "3D boxes (Waymo, camera only)" in text and "LET-3D-mAPL 0." in text
    scores = json.loads((tmp_path / "scores" / "waymo_scores.json").read_text())
    assert 0.5 < scores["let"]["breakdowns"]["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"]["apl"] < 1
    frames = _frames(waymo_source)
    found = read_submission(out, frames)
    assert set(found.keys) <= {(frame.scene_name, frame.timestamp_us) for frame in frames}
    assert {context for context, _ in found.keys} == {frame.scene_name for frame in frames}
    assert (found.scores >= np.float32(0.03)).all()


def _frames(options: list[str]) -> list:
    return DataSource(options[1], options[3], {"split": options[5]}).read()


def test_evaluate_gives_the_scores_of_the_file(waymo_source, waymo_config, weights, tmp_path, capsys) -> None:
    assert main(["evaluate", str(waymo_config), str(weights), *waymo_source, "--out", str(tmp_path)]) == 0
    first = capsys.readouterr().out
    assert main(["score", str(tmp_path), *waymo_source]) == 0
    second = capsys.readouterr().out
    assert [line for line in first.splitlines() if line.startswith("LET")] == [
        line for line in second.splitlines() if line.startswith("LET")
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"waymo_submission.tar.gz", "waymo_scores.json"}
    assert main(["check-submission", str(tmp_path)]) == 0
    assert "account, affiliation are placeholders" in capsys.readouterr().err
    pictures = ["--out", str(tmp_path / "p"), "--max", "1"]
    assert main(["visualize", *waymo_source, "--submission", str(tmp_path / "waymo_submission.tar.gz"), *pictures]) == 0
    assert len(list((tmp_path / "p").glob("*.png"))) == 1


def test_other_frames_and_options_are_refused(
    waymo_source, waymo_config, weights, source, root, tmp_path, capsys
) -> None:
    out = tmp_path / "s.tar.gz"
    assert main(["predict", str(waymo_config), str(weights), *waymo_source, "--out", str(out)]) == 0
    for arguments, message in (
        (["score", str(out), *source(root)], "is no frame of Waymo's"),
        (["score", str(out), *waymo_source, "--official"], "scored by the metric of waymo: leave out --official"),
        (["score", str(out), *waymo_source, "--class-range", "vehicle=5"], "leave out --official and --class-range"),
        (["predict", str(waymo_config), str(weights), *source(root), "--out", str(out)], "is no frame of Waymo's"),
        (["predict", str(waymo_config), str(weights), *waymo_source, "--out", str(tmp_path / "a.json")],
         "does not end like waymo_submission.tar.gz"),
        (["evaluate", str(waymo_config), str(weights), *waymo_source, "--class-range", "vehicle=5"],
         "ranges and a metric of its own"),
    ):  # fmt: skip
        capsys.readouterr()
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_the_help_names_the_challenges_split(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["check-submission", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Waymo's challenge: test_camera_only" in text and "--split test_camera_only # the challenge's set" in text
    assert "--reader waymo --dataroot data/waymo --split test " not in text
