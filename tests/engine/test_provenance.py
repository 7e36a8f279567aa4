"""What a run records of itself and of what it starts from, through checkpoints, exports and resumed runs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drivestack.core.checkpoint import save_safetensors
from drivestack.core.weights.lineage import KEY, Stage, lineage_of, to_json
from drivestack.data_tools.readers.registry import register_reader
from drivestack.engine.checkpoints import export_weights
from drivestack.engine.provenance import earlier_stages, warn_if_near, warn_if_seen
from drivestack.engine.train import train
from support.mono_frames import make_frames

SCENES = ("scene0", "scene1", "scene2", "scene3")


def test_a_run_records_its_data_seed_and_command_and_what_came_before(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(5)
    first = train(config, tmp_path / "a", command="drivestack train toy")
    (stage,) = lineage_of(first)
    assert (stage.scenes, stage.samples, stage.seed, stage.iterations) == (SCENES, 40, 3, 5)
    assert stage.command == "drivestack train toy" and stage.data == {"type": "ToyDataset"}

    weights = export_weights(first, tmp_path / "a.safetensors")
    assert lineage_of(weights) == (stage,)
    second = train(toy.toy_config(5), tmp_path / "b", load_from=weights, command="second")
    assert [s.command for s in lineage_of(second)] == ["drivestack train toy", "second"]
    resumed = train(toy.toy_config(8), tmp_path / "b", resume=True, command="second --resume")
    before, own = lineage_of(resumed)
    assert before == stage and (own.command, own.iterations) == ("second", 8)


def test_what_a_model_names_as_pretrained_counts_as_well(tmp_path: Path) -> None:
    save_safetensors({"x": torch.ones(1)}, tmp_path / "e.safetensors", {KEY: to_json([Stage("imagenet")])})
    model = {"img_backbone": {"type": "x", "pretrained": str(tmp_path / "e.safetensors")}}
    assert earlier_stages({"model": model}, None) == (Stage("imagenet"),)
    model["img_backbone"]["pretrained"] = "nowhere.pth"  # whoever loads it says so
    assert earlier_stages({"model": model}, None) == ()


def test_weights_that_saw_the_validation_scenes_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @register_reader("toy_scenes_for_tests")
    def read(root: str, split: str = "val") -> list:
        return make_frames(tmp_path, 2)

    source = {"reader": "toy_scenes_for_tests", "root": "here", "split": "val"}
    stages = (Stage("mono3d", scenes=("s", "t")), Stage("other", scenes=("u",)))
    with caplog.at_level(logging.WARNING, "drivestack"):
        warn_if_seen({"test_dataset": {"source": source}}, stages)
    (record,) = caplog.records
    assert "mono3d trained on 1 of the 1 scenes of split val" in record.getMessage()
    caplog.clear()
    warn_if_seen({"test_dataset": {"source": source | {"reader": "nuscenes"}}}, stages)  # no such folder
    warn_if_seen({"test_dataset": {"source": source}}, stages[1:])
    warn_if_seen({}, stages)
    assert not caplog.records


def test_validation_at_places_of_the_training_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Training:
        frames = [replace(frame, conditions={"location": "town"}) for frame in make_frames(tmp_path, 2)]

    @register_reader("toy_places_for_tests")
    def read(root: str, city: str, split: str = "val") -> list:
        where = {"location": city} if city else {}
        return [
            replace(f, token=f"v{f.token}", prev_token="", next_token="", conditions=where) for f in Training.frames
        ]

    def warned(city: str, **config: Any) -> list[str]:
        caplog.clear()
        source = {"reader": "toy_places_for_tests", "root": "here", "city": city}
        with caplog.at_level(logging.WARNING, "drivestack"):
            warn_if_near({"test_dataset": {"source": source}, "validation": {"interval": 1}} | config, Training())
        return [record.getMessage() for record in caplog.records if "lie within" in record.getMessage()]

    assert [
        "2 of 2 keyframes of the validation data lie within 100 m of training data (town)" in m for m in warned("town")
    ] == [True]
    assert not warned("village") and not warned("")  # another frame, and one that is not known
    assert not warned("town", validation=None)
