"""Waymo submissions: what is written, every rule by a file that breaks it, and what is read back."""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivestack.bev.evaluation import waymo_rules
from drivestack.bev.evaluation.waymo_rules import check_frames, check_submission, oddities, read_submission
from drivestack.bev.evaluation.waymo_submission import (
    MIN_SIZE_M,
    NOBODY,
    Entry,
    as_submitted,
    detections_in,
    entry_of,
    frame_key,
    objects_of,
    read_entry,
    write_submission,
)
from drivestack.bev.evaluation.waymo_wire import WaymoObjects, decode_submission, encode_objects, encode_submission
from drivestack.core.answers import Detections
from drivestack.core.errors import DataError, SubmissionError
from drivestack.geometry import pose, rotation_z
from support.waymo_like import CLASSES, found_in, frames_of

ME = Entry("me@example.com", "method", ("A", "B"), "lab")


@pytest.fixture(scope="module")
def frames() -> list:
    return frames_of()


@pytest.fixture
def file(frames, tmp_path: Path) -> Path:
    path = tmp_path / "s.tar.gz"
    write_submission(path, objects_of(found_in(frames), frames, CLASSES), ME, CLASSES)
    return path


def archive(path: Path, members: dict[str, bytes], **fields: Any) -> Path:
    with gzip.open(path, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            out.addfile(info, io.BytesIO(content))
    return path


def test_written_valid_and_read_back(frames, file: Path) -> None:
    assert check_submission(file, frames) == [] and check_submission(file) == []
    assert oddities(file, frames) == []
    with tarfile.open(file) as opened:
        assert opened.getnames() == ["part0", "part1", "part2", "part3"]
    found = detections_in(read_submission(file, frames), frames, CLASSES)
    for made, frame in zip(found_in(frames), frames):
        order = np.argsort(-made.scores, kind="stable")
        np.testing.assert_array_equal(found[frame.token].scores, made.scores[order])
        np.testing.assert_array_equal(found[frame.token].labels, made.labels[order])
        np.testing.assert_allclose(found[frame.token].boxes[:, :7], made.boxes[order][:, :7], atol=1e-6)


def test_boxes_are_written_in_the_vehicle_frame(frames) -> None:
    turned = pose(rotation_z(-np.pi / 2), [0.9, 0, 1.8])
    moved = [replace(frame, ego_from_bev=turned) for frame in frames]
    a, b = objects_of(found_in(frames), frames, CLASSES), objects_of(found_in(moved), moved, CLASSES)
    np.testing.assert_allclose(a.boxes[:, :6], b.boxes[:, :6], atol=1e-5)
    assert np.abs(np.exp(1j * a.boxes[:, 6]) - np.exp(1j * b.boxes[:, 6])).max() < 1e-5
    back = detections_in(b, moved, CLASSES)[moved[0].token].boxes
    np.testing.assert_allclose(sorted(back[:, 0]), sorted(found_in(moved)[0].boxes[:, 0]), atol=1e-5)


def test_the_same_boxes_give_the_same_bytes(frames, file: Path, tmp_path: Path) -> None:
    write_submission(tmp_path / "again.tar.gz", objects_of(found_in(frames), frames, CLASSES), ME, CLASSES)
    assert (tmp_path / "again.tar.gz").read_bytes() == file.read_bytes()
    assert write_submission(tmp_path / "one.tar.gz", objects_of(found_in(frames), frames, CLASSES), ME, CLASSES, 1) == 1
    assert read_submission(tmp_path / "one.tar.gz").keys == read_submission(file).keys


def test_low_scores_flat_boxes_and_headings(frames, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "drivestack")
    every = objects_of(found_in(frames), frames, CLASSES)
    scores, boxes = every.scores.copy(), every.boxes.copy()
    scores[:5] = [0.0, 0.01, 0.0299, 0.03, 1.0]
    boxes[5, 3] = 0.0
    boxes[6:10, 6] = [np.pi, -np.pi, 7.0, np.nextafter(-np.pi, -4)]
    kept = as_submitted(replace(every, scores=scores, boxes=boxes))
    assert len(kept) == len(every) - 3 and kept.scores.min() == np.float32(0.03)
    assert kept.boxes[2, 3] == MIN_SIZE_M and ((kept.boxes[:, 6] >= -np.pi) & (kept.boxes[:, 6] < np.pi)).all()
    assert f"3 of {len(every)} boxes score below 0.03 and are left out" in caplog.text
    assert "1 boxes have no volume" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[:-1], "no prediction; run the model on every frame"),
        (lambda f: [*f, f[0]], "predicted twice"),
        (lambda f: [*f, Detections("x_1", *(np.zeros(s) for s in ((0, 9), 0, 0)))], "sample x_1: predicted, but not"),
        (
            lambda f: [replace(f[0], boxes=np.full_like(f[0].boxes, np.nan)), *f[1:]],
            "is not finite or of negative size",
        ),
        (lambda f: [replace(f[0], scores=np.full_like(f[0].scores, np.inf)), *f[1:]], "is not finite"),
        (lambda f: [replace(f[0], boxes=-np.abs(f[0].boxes)), *f[1:]], "negative size"),
        (lambda f: [replace(f[0], labels=f[0].labels + 3), *f[1:]], "none of the 3 classes"),
    ],
)
def test_what_cannot_be_written_is_named(frames, change: Callable, message: str) -> None:
    with pytest.raises(SubmissionError, match=message):
        objects_of(change(found_in(frames)), frames, CLASSES)


def test_other_classes_and_frames_of_other_sets_are_refused(frames) -> None:
    with pytest.raises(SubmissionError, match="class 'car' is not one of Waymo's"):
        objects_of([], [], ["car"])
    with pytest.raises(SubmissionError, match="is no frame of Waymo's, whose token is CONTEXT_TIMESTAMP, here"):
        frame_key(replace(frames[0], timestamp_us=frames[0].timestamp_us + 1))


# each rule: what is changed in the shard's meta or boxes, and what is said of it
def _boxes(column: int, value: float) -> Callable[[WaymoObjects], WaymoObjects]:
    def change(found: WaymoObjects) -> WaymoObjects:
        boxes = found.boxes.copy()
        boxes[1, column] = value
        return replace(found, boxes=boxes)

    return change


def _column(name: str, value: Any) -> Callable[[WaymoObjects], WaymoObjects]:
    def change(found: WaymoObjects) -> WaymoObjects:
        values = getattr(found, name).copy()
        values[1] = value
        return replace(found, **{name: values})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_boxes(0, np.nan), "box.center_x: is missing or not finite"),
        (_boxes(2, np.inf), "box.center_z: is missing or not finite"),
        (_boxes(1, 1e300), "box.center_y: is beyond any map"),
        (_boxes(3, 0.0), "box.length: is not above 0"),
        (_boxes(5, -1.0), "box.height: is not above 0"),
        (_boxes(6, np.pi), r"box.heading: is not in \[-pi, pi\) \(3.14159\) of 1 of 72 boxes of shard one"),
        (_boxes(6, -4.0), "box.heading"),
        (_column("scores", 1.5), r"score: is missing or not in \[0, 1\]"),
        (_column("scores", np.nan), "score: is missing"),
        (_column("types", 0), "type: is no type"),
        (_column("types", 7), "type: is no type"),
        (_column("types", 3), "type: is not among the object_types of the shard"),
        (_column("cameras", 1), "camera_name: is given"),
        (lambda f: replace(f, keys=[("", 0), *f.keys[1:]]), r"context_name, frame_timestamp_micros: are missing"),
        (
            lambda f: replace(f, keys=[(f.keys[0][0], 5), *f.keys[1:]]),
            "timestamp 5 is none of segment 1000000000000000000",
        ),
        (lambda f: replace(f, keys=[("elsewhere", 5), *f.keys[1:]]), "sample elsewhere_5: is not of the split"),
        (lambda f: replace(f, keys=[("e", i) for i, _ in enumerate(f.keys)]), "none of its 6 frames is one of the 6"),
        (lambda f: f.where(f.frame < 3), "segment 1000000000000000001_000_000_020_000 has not one box"),
        (lambda f: replace(f, boxes=f.boxes + [2e5, 0, 0, 0, 0, 0, 0]), "give boxes in the vehicle frame"),
    ],
)
def test_every_rule_of_boxes(frames, tmp_path: Path, change: Callable, message: str) -> None:
    found = change(objects_of(found_in(frames), frames, CLASSES))
    (tmp_path / "one").write_bytes(encode_submission(ME.message(CLASSES), encode_objects(found)))
    problems = [str(problem) for problem in check_submission(tmp_path / "one", frames)]
    assert any(__import__("re").search(message, text) for text in problems), problems
    if "object_types" not in message:  # who submits is no matter of scores
        with pytest.raises(SubmissionError):
            read_submission(tmp_path / "one", frames)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", 2, "task: is 2; state CAMERA_ONLY_DETECTION_3D"),
        ("task", None, "task: is 0"),
        ("account_name", "", "account_name: is empty"),
        ("account_name", "me", "account_name: is 'me', no e-mail address"),
        ("unique_method_name", None, "unique_method_name: is empty"),
        ("unique_method_name", "x" * 26, "has 26 characters, at most 25"),
        ("authors", None, "authors: names nobody"),
        ("authors", ["A", " "], "authors: holds an empty name"),
        ("affiliation", None, "affiliation: is empty"),
        ("sensor_type", 1, "sensor_type: is 1; state CAMERA_ALL"),
        ("number_past_frames_exclude_current", None, "number_past_frames_exclude_current: is missing"),
        ("number_future_frames_exclude_current", -1, "is no number of frames"),
        ("object_types", [], "object_types: is empty"),
        ("object_types", [1, 2, 4, 9], "object_types: is"),
        ("object_types", [1, 2, 4, 4], "object_types: is"),
    ],
)
def test_every_rule_of_who_and_how(frames, tmp_path: Path, field: str, value: Any, message: str) -> None:
    meta = ME.message(CLASSES) | {field: value}
    parts = encode_objects(objects_of(found_in(frames), frames, CLASSES))
    (tmp_path / "one").write_bytes(encode_submission(meta, parts))
    problems = [str(problem) for problem in check_submission(tmp_path / "one", frames)]
    assert any(message in text for text in problems), problems
    assert len(read_submission(tmp_path / "one", frames)) == 72  # scored all the same
    whole = encode_submission(ME.message(CLASSES), parts[:3]), encode_submission(meta, parts[3:])
    mixed = archive(tmp_path / "mixed.tar.gz", dict(zip(("a", "b"), whole)))
    assert any(f"{field} of shard b is" in str(problem) for problem in check_submission(mixed, frames))


def test_damaged_and_foreign_files(frames, file: Path, tmp_path: Path) -> None:
    def first(path: Path) -> str:
        return str(check_submission(path, frames)[0])

    one = encode_submission(ME.message(CLASSES), encode_objects(objects_of(found_in(frames), frames, CLASSES)))
    content = file.read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    assert "the archive is damaged" in first(tmp_path / "cut.tar.gz")
    (tmp_path / "text.tar.gz").write_bytes(gzip.compress(b"hello"))
    assert "the archive is damaged" in first(tmp_path / "text.tar.gz")
    (tmp_path / "plain.tar").write_bytes(gzip.decompress(content))
    assert "is a tar archive that is not compressed; gzip it" in first(tmp_path / "plain.tar")
    (tmp_path / "x.bin").write_bytes(b"\xff" * 40)
    assert "shard x.bin is no message Submission" in first(tmp_path / "x.bin")
    (tmp_path / "none.bin").write_bytes(encode_submission(ME.message(CLASSES), [])[:-2])
    assert "has no inference_results" in first(tmp_path / "none.bin")
    (tmp_path / "empty.bin").write_bytes(b"")
    assert "shard empty.bin is empty" in first(tmp_path / "empty.bin")
    (tmp_path / "json.bin").write_text("{}")
    assert "is a JSON file; give the .tar.gz of shards" in first(tmp_path / "json.bin")
    with pytest.raises(DataError, match="check the path"):
        check_submission(tmp_path / "nowhere.tar.gz")
    for name, members, fields, message in (
        ("up", {"../part0": one}, {}, "leads out of the folder"),
        ("hidden", {"part0": one, "._part0": b"mac"}, {}, "is a hidden file"),
        ("link", {"part0": b""}, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link or device"),
        ("nothing", {}, {}, "holds no shard"),
        ("unknown", {"part0": one + b"\xa0\x06\x01"}, {}, "field 100 is none of a Submission"),
    ):
        assert any(message in str(p) for p in check_submission(archive(tmp_path / f"{name}.tar.gz", members, **fields)))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "part0").write_bytes(one)
    assert check_submission(folder, frames) == []
    assert check_submission(archive(tmp_path / "inner.tar.gz", {"s/part0": one}), frames) == []


def test_what_unpacks_to_too_much_is_refused(frames, tmp_path: Path, monkeypatch) -> None:
    found = objects_of(found_in(frames), frames, CLASSES)
    one = encode_submission(ME.message(CLASSES), encode_objects(found))
    path = archive(tmp_path / "s.tar.gz", {"part0": one, "part1": one})
    (tmp_path / "s").mkdir()
    for name in ("part0", "part1"):
        (tmp_path / "s" / name).write_bytes(one)
    hidden = archive(tmp_path / "h.tar.gz", {".a": b"", "part0": one, ".b": bytes(2 * len(one))})
    monkeypatch.setattr(waymo_rules, "MAX_UNPACKED_BYTES", 2 * len(one) - 1)
    for own in (path, tmp_path / "s", hidden):
        assert any("unpacks to more than" in str(problem) for problem in check_submission(own)), own
    monkeypatch.undo()
    monkeypatch.setattr(waymo_rules, "MAX_OBJECTS", 2 * len(found) - 1)
    assert any("holds more than" in str(problem) for problem in check_submission(path))


def test_empty_objects_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    content = encode_submission(ME.message(CLASSES), [b"\x0a\x00" * 1_000_000])
    path = archive(tmp_path / "s.tar.gz", {"part0": content})
    tracemalloc.start()
    problems = check_submission(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "more than 1000 objects are shorter than a box" in str(problems[0]) and peak < 6 * len(content)


def test_meta_is_of_the_first_shard_alone(frames, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "s.tar.gz"
    write_submission(path, objects_of(found_in(frames), frames, CLASSES), ME, CLASSES)
    read = []
    monkeypatch.setattr(waymo_rules, "decode_submission", lambda content: read.append(1) or decode_submission(content))
    assert waymo_rules.meta_of(path)["unique_method_name"] == "method" and len(read) == 1
    found, meta = waymo_rules.read_with_meta(path, frames)
    assert len(found) == 72 and Entry.of_message(meta) == ME and len(read) == 5


def test_frames_without_boxes_are_counted_and_answered_ones_are_known(frames, tmp_path: Path) -> None:
    found = objects_of(found_in(frames), frames, CLASSES)
    few = found.where(found.frame != 1)
    write_submission(tmp_path / "few.tar.gz", few, NOBODY, CLASSES)
    assert check_submission(tmp_path / "few.tar.gz", frames) == []
    lines = oddities(tmp_path / "few.tar.gz", frames)
    assert "account, method, authors, affiliation are placeholders; --waymo-entry" in lines[0]
    assert f"1 of 6 frames have no box, such as {frames[1].token}" in lines[1]
    first = found.where(found.frame < 3)
    assert len(check_frames(first, frames)) == 1
    assert check_frames(first, frames, [frame.token for frame in frames]) == []
    assert check_frames(found.where(found.frame > 9), frames, [frame.token for frame in frames]) == []
    many = WaymoObjects.joined([found] * 40)
    write_submission(tmp_path / "many.tar.gz", replace(many, scores=many.scores * 0 + 0.01), ME, CLASSES)
    text = "\n".join(oddities(tmp_path / "many.tar.gz", frames))
    assert "6 frames have more than 400 boxes" in text and "2880 of 2880 boxes score below 0.03" in text


def test_each_placeholder_is_noticed(frames, tmp_path: Path) -> None:
    found = objects_of(found_in(frames), frames, CLASSES)
    for number, entry in enumerate((replace(NOBODY, account=ME.account), replace(ME, method="unnamed"))):
        write_submission(tmp_path / f"{number}.tar.gz", found, entry, CLASSES)
        assert check_submission(tmp_path / f"{number}.tar.gz", frames) == []
    assert oddities(tmp_path / "0.tar.gz")[0].startswith("method, authors, affiliation are placeholders; ")
    assert oddities(tmp_path / "1.tar.gz")[0].startswith("method is a placeholder; ")


def test_the_entry_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "entry.json"
    file.write_text('{"account": "a@b.c", "authors": ["X"], "past_frames": 3}')
    assert read_entry(file) == {"account": "a@b.c", "authors": ("X",), "past_frames": 3}
    for content, message in (
        ('{"acount": "x"}', "not 'acount'"), ('{"authors": "X"}', "authors must be a list of texts"),
        ('{"past_frames": -1}', "past_frames must be a number from 0"), ('{"method": 3}', "method must be a text"),
        ("[]", "must be an object of account, method"), ("{", "cannot be read as JSON"),
    ):  # fmt: skip
        file.write_text(content)
        with pytest.raises(SubmissionError, match=message):
            read_entry(file)
    assert entry_of({}, "x") == {}


def test_a_type_that_the_classes_lack_is_named(frames) -> None:
    with pytest.raises(SubmissionError, match="holds type 2, which is not among the classes vehicle, cyclist"):
        detections_in(objects_of(found_in(frames), frames, CLASSES), frames, ["vehicle", "cyclist"])
