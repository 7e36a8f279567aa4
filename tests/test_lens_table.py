"""The table of lenses: arms differ in the lens alone, scores are the last ones, every arm has a line."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from drivestack.data_tools.synthetic import synthesize


@pytest.fixture
def lens_table(repository_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository_root / "benchmarks")
    return importlib.import_module("lens_table")


@pytest.fixture
def args(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(out=tmp_path, iterations=4, every=2)


def test_arms_differ_in_the_lens_alone(lens_table: ModuleType, args: argparse.Namespace) -> None:
    texts = {}
    for arm in lens_table.ARMS:
        config = lens_table.config_of(args, arm)
        for data in (config.train_dataloader.dataset, config.test_dataset):
            assert (data.source.lens, data.image.lens) == lens_table.ARMS[arm]
            data.source.lens = data.image.lens = ""
        texts[arm] = config.pretty_text
    assert len(set(lens_table.ARMS.values())) == len(texts) == 5 and len(set(texts.values())) == 1


def test_frames_of_all_arms_have_one_size_and_are_timed(lens_table: ModuleType, args: argparse.Namespace) -> None:
    sizes = {"keyframes_per_scene": 1, "image_width_px": 128, "labels": (), "workers": 1, "progress": False}
    synthesize(args.out / "val", split="val", num_scenes=1, seed=7, rig="fisheye", **sizes)
    shapes = set()
    for arm in lens_table.ARMS:
        data = lens_table.build_dataset(lens_table.config_of(args, arm).test_dataset)
        clip = data[0]
        shapes |= {image.shape for image in clip.images[0]}
        assert (clip.lenses is None) == (arm in ("lens ignored", "undistorted", "pinholes"))
    assert shapes == {(3, 96, 284)}
    times = lens_table.frame_times(args, ["right lens", "cylinders"], 1)
    assert times.keys() == {"right lens", "cylinders"} and all(len(t) == 2 and min(t) > 0 for t in times.values())


def test_the_last_scores_count_and_every_arm_has_a_line(lens_table: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    found = {1: {"mAP": 0.1, "NDS": 0.2}, 2: {"mAP": 0.3, "NDS": None}}
    records = [{"iter": 1, "loss": 1.0}, *({"iter": i, "validation": scores} for i, scores in found.items())]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert lens_table.last_scores(log) == {"mAP": 0.3, "NDS": 0.0}
    scores = {
        "right lens": {0: {"mAP": 0.3, "NDS": 0.4}, 1: {"mAP": 0.5, "NDS": 0.4}},
        "cylinders": {0: {"mAP": 0.2, "NDS": 0.1}},
    }
    times = {"right lens": (1.0, 2.0), "cylinders": (3.0, 4.0)}
    lines = lens_table.table(scores, times, {arm: {"mAP": 0.1, "NDS": 0.2} for arm in scores}).splitlines()
    assert lines[0] == "| arm | mAP as shipped | NDS as shipped | mAP | NDS | seeds | images, CPU ms | model, CPU ms |"
    trained = "0.4000 (0.3000 to 0.5000) | 0.4000 (0.4000 to 0.4000)"
    assert lines[2] == f"| right lens | 0.1000 | 0.2000 | {trained} | 2 | 1.0 | 2.0 |"
    assert lines[3] == "| cylinders | 0.1000 | 0.2000 | 0.2000 | 0.1000 | 1 | 3.0 | 4.0 |"
