"""Waymo's files of boxes, Objects and Submission, written and read without protobuf's library.

Both are protocol buffers: fields, each a tag (number * 8 + wire type) and a value, which is a base-128 number, 8 or 4
bytes in little endian, or a length and that many bytes. A message within a message is a value with a length. That is
all that is needed, in whole arrays: objects of one frame differ in their numbers alone, so a file of millions of them
is a few templates. Field numbers: waymo-open-dataset 1.6.7, protos/{submission,metrics}.proto and label.proto; the
tests hold what is written here against the official classes.

Shapes: n boxes, k of them of one layout, s bytes of a layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.wire import FIXED32, FIXED64, LENGTH, VARINT, fields
from ...core.wire import read_varint as _read_varint

MAX_MESSAGE_BYTES = (1 << 31) - 1
"""That protobuf reads."""
MAX_TINY_OBJECTS = 1000
"""Of a message, that are shorter than a box: a file of empty objects takes a hundred times its size in memory."""
_BOX_BYTES = 7 * 9  # of the numbers of a box with their tags
MAX_OBJECT_BYTES = 1 << 16
"""A box takes some 125."""
_CHUNK, _CHUNK_BYTES = 1 << 16, 1 << 23  # objects that are decoded at once
_MAX_PARTS = 1000  # of a message beside its objects: fields of boxes, authors
_MAX_LAYOUTS = 64  # of one length that are looked for; a file with more of them is read object by object

_BOX_FIELDS = (1, 2, 3, 5, 4, 6, 7)  # x, y, z, length, width, height, heading
_LEAVES: Mapping[tuple[int, ...], tuple[str, int]] = {
    **{(1, 1, number): (f"box{i}", FIXED64) for i, number in enumerate(_BOX_FIELDS)},
    (1, 3): ("type", VARINT),
    (1, 5): ("difficulty", VARINT),
    (2,): ("score", FIXED32),
    (3,): ("zone", VARINT),
    (4,): ("context", LENGTH),
    (5,): ("timestamp", VARINT),
    (6,): ("camera", VARINT),
}
"""Field numbers from Object down to what is read, its name and wire type."""
_MESSAGES = {(1,), (1, 1)}  # Object.object, Label.box

SUBMISSION_FIELDS: Mapping[int, tuple[str, int]] = {
    1: ("task", VARINT),
    2: ("unique_method_name", LENGTH),
    3: ("authors", LENGTH),
    4: ("affiliation", LENGTH),
    5: ("description", LENGTH),
    6: ("method_link", LENGTH),
    9: ("number_past_frames_exclude_current", VARINT),
    10: ("number_future_frames_exclude_current", VARINT),
    12: ("sensor_type", VARINT),
    13: ("account_name", LENGTH),
    14: ("object_types", VARINT),
    15: ("latency_second", FIXED64),
    16: ("docker_image_source", LENGTH),
}
_REPEATED = {"authors", "object_types"}
_RESULTS = 11


@dataclass(frozen=True)
class WaymoObjects:
    """Boxes of any number of frames, flat, in the vehicle frame at each frame's timestamp. What a file lacks is NaN or
    0, and False.
    """

    boxes: NDArray[np.float64]
    """[n, 7]: centre, length, width, height, heading counter-clockwise from ahead."""
    types: NDArray[np.int64]
    """[n], see waymo_metrics.OBJECT_TYPES."""
    scores: NDArray[np.float32]
    """[n]"""
    frame: NDArray[np.int64]
    """[n], index into ``keys``."""
    keys: list[tuple[str, int]]
    """Frames: context name (the segment), timestamp in microseconds."""
    in_no_label_zone: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """[n]"""
    difficulties: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[n] of ground truths: 1, 2, or 0 where the label states none."""
    cameras: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[n] number of a camera, of boxes in images; 0 elsewhere."""

    def __post_init__(self) -> None:
        for name, kind in (("in_no_label_zone", bool), ("difficulties", np.int64), ("cameras", np.int64)):
            if len(getattr(self, name)) != len(self.boxes):
                object.__setattr__(self, name, np.zeros(len(self.boxes), kind))

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def tokens(self) -> list[str]:
        """Of the frames, as readers of Waymo name them."""
        return [token_of(*key) for key in self.keys]

    def where(self, rows: NDArray[Any]) -> WaymoObjects:
        """Some of the boxes; all frames stay."""
        names = ("boxes", "types", "scores", "frame", "in_no_label_zone", "difficulties", "cameras")
        return WaymoObjects(**{name: getattr(self, name)[rows] for name in names}, keys=self.keys)

    @classmethod
    def joined(cls, parts: Sequence[WaymoObjects]) -> WaymoObjects:
        """All boxes of several; frames of the same key are one."""
        index: dict[tuple[str, int], int] = {}
        frames = [
            np.array([index.setdefault(key, len(index)) for key in part.keys], np.int64)[part.frame] for part in parts
        ]
        nothing = np.zeros(0, np.int64)
        empty = cls(np.zeros((0, 7)), nothing, np.zeros(0, np.float32), nothing, [])
        names = ("boxes", "types", "scores", "in_no_label_zone", "difficulties", "cameras")
        columns = {name: np.concatenate([getattr(part, name) for part in (empty, *parts)]) for name in names}
        return cls(**columns, frame=np.concatenate([np.zeros(0, np.int64), *frames]), keys=list(index))


def token_of(context: str, timestamp_us: int) -> str:
    """The token of a frame of Waymo's."""
    return f"{context}_{timestamp_us}"


# ------------------------------------------------------------------------------------------------------- writing


def varint(value: int) -> bytes:
    """Base-128 number, least significant first; negative ones as protobuf's 64 bits."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | bytes | float) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | LENGTH) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | FIXED64) + np.float64(value).tobytes()
    return varint(number << 3 | VARINT) + varint(value)


def encode_objects(found: WaymoObjects) -> list[bytes]:
    """The fields ``objects`` of a message Objects, one piece for each frame that has boxes, in their order.

    Joined they are the message. Scores, difficulties, cameras and zones are written where they are not NaN, 0 or False.
    """
    order = np.argsort(found.frame, kind="stable")
    start = np.searchsorted(found.frame[order], np.arange(len(found.keys) + 1))
    return [
        _encode_frame(found.where(order[first:last]), key)
        for key, first, last in zip(found.keys, start[:-1], start[1:])
        if last > first
    ]


def _encode_frame(found: WaymoObjects, key: tuple[str, int]) -> bytes:
    """Objects of one frame, in the order of their rows where all have the same fields; else by layout."""
    layout = np.stack([np.isnan(found.scores), found.difficulties, found.cameras, found.in_no_label_zone], 1)
    kinds, kind = np.unique(layout, axis=0, return_inverse=True)
    return b"".join(_encode_alike(found.where(kind.ravel() == i), key) for i in range(len(kinds)))


def _encode_alike(found: WaymoObjects, key: tuple[str, int]) -> bytes:
    """Objects of one frame with the same fields: one template, their numbers put into it."""
    box = b"".join(varint(number << 3 | FIXED64) + bytes(8) for number in _BOX_FIELDS)
    label = _field(1, box) + _field(3, 1)
    if found.difficulties[0]:
        label += _field(5, int(found.difficulties[0]))
    content = _field(1, label)
    score_at = -1
    if not np.isnan(found.scores[0]):
        score_at = len(content) + 1
        content += varint(2 << 3 | FIXED32) + bytes(4)
    if found.in_no_label_zone[0]:
        content += _field(3, 1)
    content += _field(4, key[0].encode()) + _field(5, key[1])
    if found.cameras[0]:
        content += _field(6, int(found.cameras[0]))
    head = varint(1 << 3 | LENGTH) + varint(len(content))
    rows = np.tile(np.frombuffer(head + content, np.uint8), (len(found), 1))  # [k, s]
    box_at = len(head) + len(_field(1, label)) - len(label) + 2  # after the tags and lengths of label and box
    for column, values in enumerate(found.boxes.T.astype("<f8")):
        at = box_at + 9 * column + 1
        rows[:, at : at + 8] = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)
    rows[:, box_at + len(box) + 1] = found.types
    if score_at >= 0:
        at = len(head) + score_at
        rows[:, at : at + 4] = np.ascontiguousarray(found.scores.astype("<f4")).view(np.uint8).reshape(-1, 4)
    return rows.tobytes()


def encode_submission(meta: Mapping[str, Any], objects: Sequence[bytes]) -> bytes:
    """A message Submission. meta: by name of SUBMISSION_FIELDS, None is left out; objects: see encode_objects."""
    out = []
    for number, (name, wire) in SUBMISSION_FIELDS.items():
        value = meta.get(name)
        for item in value if name in _REPEATED and value is not None else [value]:
            if item is not None:
                out.append(_field(number, item.encode() if wire == LENGTH else item))
    content = b"".join(objects)
    return b"".join([*out, varint(_RESULTS << 3 | LENGTH), varint(len(content)), content])


# ------------------------------------------------------------------------------------------------------- reading


def decode_submission(content: bytes) -> tuple[dict[str, Any], WaymoObjects | None]:
    """(meta by name of SUBMISSION_FIELDS, boxes) of a message; boxes None where it has no field for them, and fields
    of other numbers under "unknown". Raises ValueError for what is no such message.
    """
    meta: dict[str, Any] = {}
    parts: list[WaymoObjects] = []
    for number, wire, start, stop in fields(content, 0, len(content)):
        if number == _RESULTS and wire == LENGTH:
            if len(parts) == _MAX_PARTS:
                raise ValueError(f"more than {_MAX_PARTS} fields of boxes")
            parts.append(decode_objects(content, start, stop))
            continue
        name, expected = SUBMISSION_FIELDS.get(number, ("", -1))
        if wire != expected and not (name == "object_types" and wire == LENGTH):
            strange = meta.setdefault("unknown", [])
            if number not in strange and len(strange) < _MAX_PARTS:
                strange.append(number)
            continue
        value: Any
        if expected == VARINT and wire == LENGTH:  # packed
            value, at = [], start
            while at < stop and len(value) <= _MAX_PARTS:
                number_read, at = _read_varint(content, at, stop)
                value.append(number_read)
        elif wire == VARINT:
            value = _read_varint(content, start, stop)[0]
        elif wire == FIXED64:
            value = float(np.frombuffer(content[start:stop], "<f8")[0])
        else:
            value = content[start:stop].decode("utf-8")
        if name in _REPEATED:
            meta.setdefault(name, []).extend(value if isinstance(value, list) else [value])
            if len(meta[name]) > _MAX_PARTS:
                raise ValueError(f"{name} has more than {_MAX_PARTS} entries")
        else:
            meta[name] = value
    return meta, WaymoObjects.joined(parts) if parts else None


def decode_objects(content: bytes, start: int = 0, end: int | None = None) -> WaymoObjects:
    """The boxes of a message Objects. Raises ValueError for what is no such message, and where more than
    MAX_TINY_OBJECTS of its objects are too short for a box, or one is longer than MAX_OBJECT_BYTES.
    """
    end = len(content) if end is None else end
    parts = [_decode_chunk(content, *spans) for spans in _object_spans(content, start, end)]
    return parts[0] if len(parts) == 1 else WaymoObjects.joined(parts)


def _decode_chunk(content: bytes, begin: NDArray[np.int64], size: NDArray[np.int64]) -> WaymoObjects:
    """The objects [k] at these bytes, of these lengths."""
    count = len(begin)
    table: dict[str, NDArray[Any]] = {f"box{i}": np.full(count, np.nan) for i in range(7)}
    table["score"] = np.full(count, np.nan, np.float32)
    for name in ("type", "difficulty", "zone", "context", "timestamp", "camera"):
        table[name] = np.zeros(count, np.int64)
    contexts: dict[str, int] = {"": 0}
    data = np.frombuffer(content, np.uint8)
    for length in np.unique(size):
        rows = np.flatnonzero(size == length)
        _decode_length(content, data, int(length), begin[rows], rows, table, contexts)
    names = list(contexts)
    pairs, frame = np.unique(np.stack([table["context"], table["timestamp"]], 1), axis=0, return_inverse=True)
    return WaymoObjects(
        np.stack([table[f"box{i}"] for i in range(7)], 1),
        table["type"],
        table["score"],
        frame.reshape(-1),
        [(names[context], int(time)) for context, time in pairs],
        table["zone"] != 0,
        table["difficulty"],
        table["camera"],
    )


def _object_spans(content: bytes, start: int, end: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """First byte and length of each field ``objects`` of a message Objects, of _CHUNK after _CHUNK."""
    begin: list[int] = []
    size: list[int] = []
    at, tiny, held = start, 0, 0
    while at < end:
        if at + 1 < end and content[at] == 1 << 3 | LENGTH and content[at + 1] < 0x80:  # nearly always
            length, at = content[at + 1], at + 2
        elif at + 2 < end and content[at] == 1 << 3 | LENGTH and content[at + 2] < 0x80:
            length, at = content[at + 1] & 0x7F | content[at + 2] << 7, at + 3
        else:
            number, wire, first, stop = next(fields(content, at, end))
            if (number, wire) != (1, LENGTH):
                at = stop
                continue
            length, at = stop - first, first
        if at + length > end:
            raise ValueError(f"the object at byte {at} ends too late")
        if length > MAX_OBJECT_BYTES:
            raise ValueError(f"the object at byte {at} has {length} bytes, more than {MAX_OBJECT_BYTES}")
        if length < _BOX_BYTES:
            tiny += 1
            if tiny > MAX_TINY_OBJECTS:
                raise ValueError(f"more than {MAX_TINY_OBJECTS} objects are shorter than a box")
        begin.append(at)
        size.append(length)
        at += length
        held += length
        if len(begin) == _CHUNK or held >= _CHUNK_BYTES:
            yield np.array(begin, np.int64), np.array(size, np.int64)
            begin, size, held = [], [], 0
    if begin:
        yield np.array(begin, np.int64), np.array(size, np.int64)


def _leaves(content: bytes, start: int, end: int, path: tuple[int, ...] = ()) -> Iterator[tuple[Any, int, int, int]]:
    """(path, wire, first, end) of the values that an object holds, also those that are not read."""
    for number, wire, first, stop in fields(content, start, end):
        own = (*path, number)
        if own in _MESSAGES and wire == LENGTH:
            yield from _leaves(content, first, stop, own)
        else:
            yield own, wire, first, stop


def _decode_length(
    content: bytes,
    data: NDArray[np.uint8],
    length: int,
    starts: NDArray[np.int64],
    rows: NDArray[np.int64],
    table: dict[str, NDArray[Any]],
    contexts: dict[str, int],
) -> None:
    """Read the objects of one length into ``table``: those that have the first one's layout at once, and so on."""
    layouts = 0
    while len(starts):
        first = int(starts[0])
        leaves = list(_leaves(content, first, first + length))
        alone = layouts >= _MAX_LAYOUTS
        layouts += 1
        here = starts[:1] if alone else starts
        raw = data[here[:, None] + np.arange(length)] if length else np.zeros((len(here), 0), np.uint8)  # [k, s]
        mask = np.full(length, 0xFF, np.uint8)  # bits that make the layout; the others are values
        for _, wire, at, stop in leaves:
            mask[at - first : stop - first] = 0x80 if wire == VARINT else 0
        alike = ((raw & mask) == (raw[0] & mask)).all(1)
        inside = [(path, wire, at - first, stop - first) for path, wire, at, stop in leaves]
        _read_values(raw[alike], inside, rows[: len(here)][alike], table, contexts)
        left = np.ones(len(starts), bool)
        left[: len(here)] = ~alike
        starts, rows = starts[left], rows[left]


def _read_values(
    raw: NDArray[np.uint8],
    leaves: Sequence[tuple[Any, int, int, int]],
    rows: NDArray[np.int64],
    table: dict[str, NDArray[Any]],
    contexts: dict[str, int],
) -> None:
    for path, wire, at, stop in leaves:
        name, expected = _LEAVES.get(path, ("", -1))
        if wire != expected:
            continue  # not ours, or an unknown field for protobuf, too
        bytes_ = np.ascontiguousarray(raw[:, at:stop])
        if wire == FIXED64:
            table[name][rows] = bytes_.view("<f8")[:, 0]
        elif wire == FIXED32:
            table[name][rows] = bytes_.view("<f4")[:, 0]
        elif wire == VARINT:
            value = np.zeros(len(raw), np.uint64)
            for i in range(min(stop - at, 10)):
                value |= (bytes_[:, i] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * i)
            table[name][rows] = value.view(np.int64)
        else:
            same = np.zeros(len(raw), bool)  # as the one before: objects of a frame lie together
            same[1:] = (bytes_[1:] == bytes_[:-1]).all(1)
            texts = [bytes_[i].tobytes().decode("utf-8") for i in np.flatnonzero(~same)]
            known = [contexts.setdefault(text, len(contexts)) for text in texts]
            table[name][rows] = np.array(known, np.int64)[np.cumsum(~same) - 1]
