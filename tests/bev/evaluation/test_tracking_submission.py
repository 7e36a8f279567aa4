"""Tracking submissions: written with a model's ids or linked, read again, and every broken rule named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from drivestack.bev.evaluation.tracking_metrics import evaluate_tracks
from drivestack.bev.evaluation.tracking_rules import TRACKING_CLASSES, check_tracks
from drivestack.bev.evaluation.tracking_submission import TrackingSubmission, read_tracks, tracked_detections
from drivestack.core.errors import ConfigError, SubmissionError
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.tasks.registry import chosen_of_model
from support import tiny_nuscenes as tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write_tiny_nuscenes(folder)
    return folder


def with_ids(root: Path, ids: Callable[[int], Any] = np.arange) -> tuple[list, list]:
    frames, found = tiny.perfect_detections(root)
    return frames, [replace(own, track_ids=ids(len(own.scores))) for own in found]


@pytest.fixture
def written(root: Path, tmp_path: Path) -> Path:
    frames, found = with_ids(root)
    TrackingSubmission.from_detections(found, frames, tiny.CLASSES).write(tmp_path / "tracks.json")
    return tmp_path / "tracks.json"


def test_a_models_ids_make_a_valid_file_that_is_read_again(root: Path, written: Path) -> None:
    frames, found = with_ids(root)
    assert check_tracks(written, [frame.token for frame in frames]) == []
    tracks = read_tracks(written)
    assert {name for own in tracks.values() for name in own.boxes.names} == set(TRACKING_CLASSES)
    scores = evaluate_tracks(read_nuscenes(root, tiny.VERSION, "val"), tracks)
    assert (scores["amota"], scores["ids"]) == (pytest.approx(1.0), 0)
    again = tracked_detections(written, frames, tiny.CLASSES)
    for own, frame in zip(found, frames):
        kept = np.isin(own.labels, [tiny.CLASSES.index(name) for name in TRACKING_CLASSES])
        read = again[frame.token]
        order, place = np.argsort(read.labels), np.argsort(own.labels[kept])
        np.testing.assert_allclose(read.boxes[order], own.boxes[kept][place], atol=1e-4)
    ids = [dict(zip(again[f.token].labels.tolist(), again[f.token].track_ids.tolist())) for f in frames]
    assert ids[0] == ids[1]


def test_without_ids_boxes_are_linked(root: Path) -> None:
    frames, found = tiny.perfect_detections(root)
    made = TrackingSubmission.from_detections(found, frames, tiny.CLASSES)
    assert made.num_boxes == 2 * len(TRACKING_CLASSES) and made.num_tracks == len(TRACKING_CLASSES)
    some = [replace(found[0], track_ids=np.arange(len(found[0].scores))), found[1]]
    with pytest.raises(SubmissionError, match="has no track ids, but others have"):
        TrackingSubmission.from_detections(some, frames, tiny.CLASSES)


def test_boxes_without_a_track_are_left_out_and_a_track_has_one_class(root: Path) -> None:
    frames, found = with_ids(root, lambda n: np.full(n, -1))
    assert TrackingSubmission.from_detections(found, frames, tiny.CLASSES).num_boxes == 0
    entry = {"sample_token": "t", "translation": [0, 0, 0], "size": [1, 1, 1], "rotation": [1, 0, 0, 0]}
    entry |= {"velocity": [0, 0], "detection_score": 0.5}
    results = {f"s{i}": [entry | {"detection_name": name}] for i, name in enumerate(("car", "truck", "truck"))}
    made = TrackingSubmission.of_detections(results, {token: ["a"] for token in results})
    assert {boxes[0]["tracking_name"] for boxes in made.results.values()} == {"truck"}


def first_box(change: dict[str, Any]) -> Callable[[dict], None]:
    def apply(content: dict) -> None:
        box = next(iter(content["results"].values()))[0]
        for key, value in change.items():
            if value is None:
                del box[key]
            else:
                box[key] = value

    return apply


def second_sample(content: dict) -> None:
    first, second = list(content["results"].values())[:2]
    name = next(name for name in TRACKING_CLASSES if name != first[0]["tracking_name"])
    second[:] = [second[0] | {"tracking_id": first[0]["tracking_id"], "tracking_name": name}]


def twice(content: dict) -> None:
    boxes = next(iter(content["results"].values()))
    boxes.append(dict(boxes[0]))


def too_many(content: dict) -> None:
    boxes = next(iter(content["results"].values()))
    boxes[:] = [boxes[0] | {"tracking_id": str(i)} for i in range(501)]


def missing(content: dict) -> None:
    del content["results"][next(iter(content["results"]))]


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (first_box({"tracking_id": None}), "tracking_id: is missing"),
        (first_box({"tracking_id": ""}), "tracking_id: is ''; give the track's name, a text that is not empty"),
        (first_box({"tracking_id": 7}), "tracking_id: is 7"),
        (first_box({"tracking_name": "barrier"}), "tracking_name: is 'barrier'; use one of bicycle, bus, car"),
        (first_box({"tracking_score": None}), "tracking_score: is missing"),
        (first_box({"tracking_score": 1.5}), "tracking_score: is 1.5, above 1"),
        (first_box({"tracking_score": -0.1}), "tracking_score: is -0.1, negative"),
        (first_box({"tracking_score": "high"}), "tracking_score: is 'high'"),
        (first_box({"size": [1, 0, 1]}), "size: is not positive"),
        (first_box({"rotation": [1, 1, 0, 0]}), "rotation: is a quaternion of length"),
        (first_box({"velocity": [1]}), "velocity: is [1]; give a list of 2 numbers"),
        (first_box({"sample_token": "other"}), "not the token it is listed under"),
        (second_sample, "a track keeps its class"),
        (twice, "a track has one box in a sample"),
        (too_many, "has 501 boxes, at most 500 are allowed"),
        (missing, "is missing from the results"),
        (lambda content: content["meta"].pop("use_map"), "meta.use_map: is missing"),
        (lambda content: content.pop("results"), "results: is missing"),
    ],
)
def test_broken_rules_are_named(
    change: Callable[[dict], Any], fragment: str, root: Path, written: Path, tmp_path: Path
) -> None:
    content = json.loads(written.read_text())
    change(content)
    written.write_text(json.dumps(content))
    tokens = [frame.token for frame in tiny.perfect_detections(root)[0]]
    problems = check_tracks(written, tokens)
    assert any(fragment in str(problem) for problem in problems), [str(p) for p in problems]
    with pytest.raises(SubmissionError):
        read_tracks(written, tokens)


def test_a_file_of_detections_is_named_as_such(written: Path) -> None:
    text = written.read_text().replace("tracking_name", "detection_name")
    written.write_text(text)
    assert "holds nuScenes detections (detection_name), not tracks" in str(check_tracks(written)[0])


def test_classes_that_nuscenes_does_not_know_are_left_out_of_tracks(root: Path, tmp_path: Path) -> None:
    frames, found = tiny.perfect_detections(root)
    names = ["forklift" if name == "barrier" else name for name in tiny.CLASSES]
    made = TrackingSubmission.from_detections(found, frames, names)
    made.write(tmp_path / "tracks.json")
    assert check_tracks(tmp_path / "tracks.json", [frame.token for frame in frames]) == [] and made.num_boxes


def test_boxes_that_make_no_tracks_are_said_before_the_work() -> None:
    model = SimpleNamespace(tasks=("boxes",), gives_tracks=True, asked=lambda tasks: tuple(tasks))
    assert chosen_of_model(model, None, ["car", "forklift"]) == ("boxes", "tracks")
    for names, benchmark, why in (
        (["forklift"], "nuscenes", "the model's classes are forklift: leave tracks out"),
        (["car"], "waymo", "the config's benchmark is waymo: leave tracks out"),
    ):
        assert chosen_of_model(model, None, names, benchmark) == ("boxes",)
        with pytest.raises(ConfigError, match=why):
            chosen_of_model(model, ["boxes", "tracks"], names, benchmark)
