"""Waymo's messages written and read by ourselves: bytes of the official classes, and back."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import numpy as np
import pytest

from drivestack.bev.evaluation.waymo_wire import (
    WaymoObjects,
    decode_objects,
    decode_submission,
    encode_objects,
    encode_submission,
    varint,
)

META = {
    "task": 6,
    "unique_method_name": "m",
    "authors": ["a", "bé"],
    "sensor_type": 3,
    "object_types": [1, 2, 4],
    "account_name": "x@y.z",
    "number_past_frames_exclude_current": 3,
    "number_future_frames_exclude_current": 0,
    "latency_second": 0.5,
}
# SerializeToString() of the official Submission (waymo-open-dataset-tf-2-12-0 1.6.7): one object with
# box (1.5, -2, 0.25, 4, 2, 1.5, -0.5), TYPE_CYCLIST, score 0.75, context "c", timestamp 1550083467346370
OFFICIAL = bytes.fromhex(
    "0806"  # task
    "1201" "6d"  # unique_method_name
    "5a58" "0a56"  # inference_results, objects
    "0a43" "0a3f"  # object, box
    "09000000000000f83f" "1100000000000000c0" "19000000000000d03f" "210000000000000040" "290000000000001040"
    "31000000000000f83f" "39000000000000e0bf"
    "1804"  # type
    "150000403f"  # score
    "2201" "63"  # context_name
    "28c283c6f3aeb9e002"  # frame_timestamp_micros
    "6003"  # sensor_type
)  # fmt: skip


def some(count: int = 50, frames: int = 7, seed: int = 0) -> WaymoObjects:
    rng = np.random.default_rng(seed)
    keys = [(f"{10 ** (i % 3)}_segment", 10**15 + i) for i in range(frames)]
    return WaymoObjects(
        rng.normal(size=(count, 7)),
        rng.integers(1, 5, count),
        rng.random(count).astype(np.float32),
        rng.integers(0, frames, count),
        keys,
        rng.random(count) < 0.2,
        rng.integers(0, 3, count),
        np.zeros(count, np.int64),
    )


def rows(found: WaymoObjects) -> set[tuple[Any, ...]]:
    flags = zip(found.types.tolist(), found.in_no_label_zone.tolist(), found.difficulties.tolist())
    return {
        (found.keys[f], *box, score, *own)
        for f, box, score, own in zip(found.frame, found.boxes.tolist(), found.scores.tolist(), flags)
    }


def test_bytes_of_the_official_class() -> None:
    box = np.array([[1.5, -2, 0.25, 4, 2, 1.5, -0.5]])
    found = WaymoObjects(box, np.array([4]), np.array([0.75], np.float32), np.zeros(1, int), [("c", 1550083467346370)])
    meta, read = decode_submission(OFFICIAL)
    assert meta == {"task": 6, "unique_method_name": "m", "sensor_type": 3}
    assert read is not None and rows(read) == rows(found)
    ours = encode_submission(meta, encode_objects(found))
    assert sorted(ours) == sorted(OFFICIAL)  # fields may come in any order
    assert decode_submission(ours)[0] == meta


def test_round_trip_of_every_field() -> None:
    found = some()
    meta, read = decode_submission(encode_submission(META, encode_objects(found)))
    assert meta == META
    assert read is not None and rows(read) == rows(found) and len(read) == len(found)
    assert set(read.keys) == {found.keys[i] for i in found.frame}
    none = decode_objects(b"")
    assert len(none) == 0 and none.keys == [] and len(WaymoObjects.joined([])) == 0
    twice = WaymoObjects.joined([read, read])
    assert len(twice) == 2 * len(found) and twice.keys == read.keys


def test_boxes_of_a_frame_keep_their_order() -> None:
    found = some()
    plain = WaymoObjects(found.boxes, found.types, found.scores, found.frame, found.keys)
    read = decode_objects(b"".join(encode_objects(plain)))
    for i, key in enumerate(plain.keys):
        expected = plain.boxes[plain.frame == i]
        got = read.boxes[read.frame == (read.keys.index(key) if key in read.keys else -1)]
        np.testing.assert_array_equal(got, expected)


def test_what_an_object_lacks_is_unknown() -> None:
    read = decode_objects(b"\x0a\x02\x18\x01" + b"\x0a\x00")  # overlap_with_nlz alone; nothing at all
    assert np.isnan(read.boxes).all() and np.isnan(read.scores).all() and read.keys == [("", 0)]
    assert read.in_no_label_zone.tolist() == [True, False] and read.types.tolist() == [0, 0]


def test_many_objects_are_read_in_little_memory() -> None:
    found = some(200_000, 70)
    plain = WaymoObjects(found.boxes, found.types, found.scores, np.sort(found.frame), found.keys)
    content = b"".join(encode_objects(plain))
    tracemalloc.start()
    read = decode_objects(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * len(content)  # was 6.5 times
    np.testing.assert_array_equal(read.boxes, plain.boxes)
    assert [read.keys[i] for i in read.frame[::999]] == [plain.keys[i] for i in plain.frame[::999]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x5a\x04\x0a\x00\x0a\x00" * 501 + b"\x5a" + varint(4000) + b"\x0a\x00" * 2000, "shorter than a box"),
        (b"\x5a\x02\x0a\x00" * 1001, "more than 1000 fields of boxes"),
        (b"\x5a" + varint(70_004) + b"\x0a" + varint(70_000) + b"\x7a" + varint(69_996) + bytes(69_996), "70000 bytes"),
        (b"\x1a\x00" * 1001, "authors has more than 1000 entries"),
        (b"\x72" + varint(2000) + b"\x01" * 2000, "object_types has more than 1000 entries"),
    ],
)
def test_what_would_only_take_memory_is_an_error(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_submission(content)


def test_other_orders_of_fields_and_unknown_ones() -> None:
    """As other writers have them: every object is read for itself where layouts differ."""
    rng = np.random.default_rng(1)
    content = b""
    expected = []
    for i in range(200):
        score = np.float32(rng.random())
        parts = [
            b"\x15" + score.tobytes(), b"\x22\x02" + b"c%d" % (i % 10), b"\x28" + varint(10 + i),
            b"\x0a\x02\x18\x03", b"\x7a\x01x",
        ]  # fmt: skip
        own = b"".join(parts[j] for j in rng.permutation(5))
        content += b"\x0a" + varint(len(own)) + own
        expected.append((f"c{i % 10}", 10 + i, float(score)))
    read = decode_objects(content + b"\x12\x00")  # no_label_zone_objects: not for us
    assert [(*read.keys[f], s) for f, s in zip(read.frame, read.scores.tolist())] == expected
    assert set(read.types.tolist()) == {3}


@pytest.mark.parametrize(
    "content",
    [b"\x0a", b"\x0a\x05\x0a", b"\x0b\x00", b"\x00\x00", b"\xff" * 11, b"\x0a\x03\x22\x01\xff", b"\x5a\x02\x0a\x05",
     b"PK\x03\x04", b"\x0a\x05\x22\x0a" + b"ab"],
)  # fmt: skip
def test_what_is_no_message_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError):
        decode_objects(content)
        decode_submission(content)


def test_any_bytes_end_in_boxes_or_an_error() -> None:
    whole = encode_submission(META, encode_objects(some(20)))
    rng = np.random.default_rng(2)
    for _ in range(300):
        broken = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            broken[at] = rng.integers(256)
        with contextlib.suppress(ValueError):
            decode_submission(bytes(broken[: rng.integers(1, len(whole))]))


def test_the_official_classes_read_ours_and_we_theirs() -> None:
    submission_pb2 = pytest.importorskip("waymo_open_dataset.protos.submission_pb2")
    found = some(300)
    official = submission_pb2.Submission()
    official.ParseFromString(encode_submission(META, encode_objects(found)))
    assert official.account_name == "x@y.z" and list(official.authors) == META["authors"]
    assert list(official.object_types) == [1, 2, 4] and official.sensor_type == 3 and official.task == 6
    theirs = {
        ((o.context_name, o.frame_timestamp_micros), b.center_x, b.center_y, b.center_z, b.length, b.width, b.height,
         b.heading, o.score, o.object.type, o.overlap_with_nlz, o.object.detection_difficulty_level)
        for o in official.inference_results.objects
        for b in [o.object.box]
    }  # fmt: skip
    assert theirs == rows(found)
    meta, read = decode_submission(official.SerializeToString())
    assert meta == META and read is not None and rows(read) == rows(found)
