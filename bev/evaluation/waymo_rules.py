"""The rules of a submission to Waymo's camera-only 3D detection, and a checker that names each broken one.

No field is required by the format itself: an empty message is a valid one, and the server alone would say what is
missing. Sources: waymo-open-dataset 1.6.7, protos/submission.proto and metrics.proto with their comments; the rules of
the challenge (waymo.com/open/challenges).

A file names boxes, not frames: a frame without a box looks the same as one that was forgotten. What can be known is
checked: no frame may be foreign, and no segment may be without any box; single empty frames are counted.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.archives import is_plain_name
from ...core.errors import DataError, SubmissionError
from ...core.file_kinds import kind_of_file
from ...core.frames import Frame
from ...core.ids import ids_apart
from ...core.physics import MAX_DISTANCE_M, MAX_SIZE_M
from .nuscenes_rules import MAX_NUMBER, Problem
from .waymo_metrics import OBJECT_TYPES
from .waymo_submission import (
    CAMERA_ALL,
    CAMERA_ONLY_DETECTION_3D,
    MAX_METHOD_LETTERS,
    MIN_SCORE,
    MIN_SIZE_M,
    NOBODY,
    frame_key,
)
from .waymo_wire import MAX_MESSAGE_BYTES, WaymoObjects, decode_submission, token_of

BOXES_PER_FRAME = 400
"""Suggested at most."""
ENDINGS = (".tar.gz", ".tgz", ".gz", ".tar", ".bin", ".pb")
_MAX_SHARDS = 10_000
MAX_UNPACKED_BYTES, MAX_OBJECTS = 1 << 32, 20_000_000
"""Of a whole submission. BOXES_PER_FRAME on each of the 40,000 frames of val are 16 million of some 125 bytes."""
_AGAIN = "write the file again with `drivestack predict`"
_TEXTS = {
    "account_name": "give the e-mail address of the account on Waymo's site (account of --waymo-entry)",
    "unique_method_name": f"name the method, in at most {MAX_METHOD_LETTERS} characters (method of --waymo-entry)",
    "affiliation": "name the affiliation (of --waymo-entry)",
}
_BROKEN = (tarfile.TarError, zlib.error, EOFError, OSError)

Shard = tuple[str, dict[str, Any], WaymoObjects]


def is_waymo_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one of Waymo's submissions, by its name; folders are folders of shards."""
    path = Path(path)
    return path.name.lower().endswith(ENDINGS) or path.is_dir()


def check_submission(path: str | os.PathLike[str], frames: Sequence[Frame] | None = None) -> list[Problem]:
    """Every rule that the file (.tar.gz of shards, a folder of shards, or one shard) breaks; an empty list: valid.

    frames: of the split; without them missing and foreign ones are not reported. Raises DataError where the file cannot
    be opened.
    """
    shards, problems = _shards(Path(path))
    problems += _check_meta(shards)
    for name, meta, objects in shards:
        problems += _check_objects(name, objects, meta.get("object_types", []))
    if shards:
        problems += [] if frames is None else check_frames(WaymoObjects.joined([own for _, _, own in shards]), frames)
    return problems


def meta_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the first shard says beside the boxes, by field; {} where there is none that can be read."""
    return next((meta for _, meta, _ in _each_shard(Path(path), [])), {})


def read_submission(
    path: str | os.PathLike[str], frames: Sequence[Frame] | None = None, answered: Collection[str] = ()
) -> WaymoObjects:
    """All boxes of a submission, see read_with_meta."""
    return read_with_meta(path, frames, answered)[0]


def read_with_meta(
    path: str | os.PathLike[str], frames: Sequence[Frame] | None = None, answered: Collection[str] = ()
) -> tuple[WaymoObjects, dict[str, Any]]:
    """All boxes of a submission, and what its first shard says beside them, by field. Who submits does not matter here;
    everything else as check_submission has it.

    answered: tokens of frames that are known to be predicted, also where they have no box. Raises SubmissionError
    naming the first broken rule.
    """
    shards, problems = _shards(Path(path))
    for name, _, objects in shards:
        problems += _check_objects(name, objects, list(OBJECT_TYPES))
    found = WaymoObjects.joined([own for _, _, own in shards])
    if not problems and frames is not None:
        problems = check_frames(found, frames, answered)
    if problems:
        more = f" (and {len(problems) - 1} more; see `drivestack check-submission`)" if len(problems) > 1 else ""
        raise SubmissionError(f"{path}: {problems[0]}{more}")
    return found, shards[0][1] if shards else {}


# ------------------------------------------------------------------------------------------------------ the files


def _shards(path: Path) -> tuple[list[Shard], list[Problem]]:
    """The shards that can be read, and what is wrong with the others and the archive."""
    problems: list[Problem] = []
    shards = list(_each_shard(path, problems))
    if not shards and not problems:
        problems.append(Problem("holds no shard", "put the serialised messages Submission into it"))
    return shards, problems


def _each_shard(path: Path, problems: list[Problem]) -> Iterator[Shard]:
    """The shards that can be read, one after the other; what is wrong with the others goes into ``problems``."""
    contents = _contents(path, problems)
    held = 0
    while True:
        try:
            name, content = next(contents)
        except StopIteration:
            break
        except _BROKEN as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            problems.append(Problem(f"the archive is damaged ({text})", _AGAIN))
            break
        try:
            meta, objects = decode_submission(content)
        except ValueError as error:  # UnicodeDecodeError among them
            kind = "; it is empty" if not content else ""
            problems.append(Problem(f"shard {name} is no message Submission ({str(error)[:150]}){kind}", _AGAIN))
            continue
        if objects is None:
            wrong = "is empty" if not content else "has no inference_results"
            problems.append(Problem(f"shard {name} {wrong}", "write the boxes into it, or leave it out"))
            continue
        del content  # before the next one is read
        held += len(objects)
        if held > MAX_OBJECTS:
            problems.append(Problem(f"holds more than {MAX_OBJECTS} boxes", "keep the best of each frame"))
            break
        yield name, meta, objects


def _contents(path: Path, problems: list[Problem]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each shard; what is none goes into ``problems``. Raises what damaged archives do."""
    if path.is_dir():
        total = 0
        for file in sorted(path.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                total += file.stat().st_size
                if total > MAX_UNPACKED_BYTES:
                    problems.append(_too_large())
                    return
                yield file.name, _read(file, problems)
            elif not file.name.startswith("."):
                problems.append(Problem(f"{file.name} is no file", "keep the shards alone in the folder"))
        return
    kind = kind_of_file(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read submission {path}: {error.strerror}; check the path") from error
    if size > MAX_MESSAGE_BYTES and kind != "a gzip archive":
        problems.append(Problem(f"has {size / 1e9:.1f} GB, more than a message holds", "split it into shards"))
    elif kind == "a gzip archive":
        with tarfile.open(path, "r:gz") as archive:
            yield from _members(archive, problems)
    elif tarfile.is_tarfile(path):
        problems.append(Problem("is a tar archive that is not compressed", "gzip it: the server takes .tar.gz"))
        with tarfile.open(path, "r:") as archive:
            yield from _members(archive, problems)
    elif kind:
        problems.append(Problem(f"is {kind}", "give the .tar.gz of shards, a folder of them, or one shard"))
    else:
        yield path.name, _read(path, problems)


def _members(archive: tarfile.TarFile, problems: list[Problem]) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    total = 0
    for number, member in enumerate(archive):
        name = member.name[:100]
        total += member.size  # also of what is skipped: it is unpacked, too
        if total > MAX_UNPACKED_BYTES:
            problems.append(_too_large())
            return
        if number >= _MAX_SHARDS:
            problems.append(Problem(f"holds more than {_MAX_SHARDS} files", "write fewer, larger shards"))
            return
        if not is_plain_name(member.name):
            problems.append(Problem(f"member {name!r} leads out of the folder", "name the shards part0, part1, ..."))
        elif member.name in seen:
            problems.append(Problem(f"member {name!r} is there twice", "name each shard once"))
        elif member.isdir():
            continue
        elif not member.isfile():
            problems.append(Problem(f"member {name!r} is a link or device", "put the file itself into the archive"))
        elif Path(member.name).name.startswith("."):
            problems.append(Problem(f"member {name!r} is a hidden file, no shard", "leave it out of the archive"))
        elif member.size > MAX_MESSAGE_BYTES:
            problems.append(Problem(f"member {name!r} unpacks to {member.size / 1e9:.1f} GB", "write more shards"))
        else:
            seen.add(member.name)
            file = archive.extractfile(member)
            content = b"" if file is None else file.read(member.size)
            if len(content) < member.size:
                raise EOFError(f"{name} ends too early")
            yield name, content


def _too_large() -> Problem:
    return Problem(f"unpacks to more than {MAX_UNPACKED_BYTES / 1e9:.1f} GB", "keep the best boxes of each frame")


def _read(path: Path, problems: list[Problem]) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read submission {path}: {error.strerror}; check the path") from error


# --------------------------------------------------------------------------------------------------- who and how


def _check_meta(shards: Sequence[Shard]) -> list[Problem]:
    if not shards:
        return []
    first_name, first, _ = shards[0]
    problems = [
        Problem(
            f"{field} of shard {name} is {_short(own.get(field))}, of {first_name} {_short(first.get(field))}",
            "state the same in all shards",
        )
        for name, own, _ in shards[1:]
        for field in sorted(own.keys() | first.keys())
        if own.get(field) != first.get(field)
    ]  # fmt: skip
    if strange := sorted({number for _, own, _ in shards for number in own.get("unknown", [])}):
        problems.append(Problem(f"field {strange[0]} is none of a Submission", "write the official message"))
    task, sensors = first.get("task", 0), first.get("sensor_type", 0)
    if task != CAMERA_ONLY_DETECTION_3D:
        fix = f"state CAMERA_ONLY_DETECTION_3D ({CAMERA_ONLY_DETECTION_3D})"
        problems.append(Problem(f"is {task}", fix, field="task"))
    if sensors != CAMERA_ALL:
        problems.append(Problem(f"is {sensors}", f"state CAMERA_ALL ({CAMERA_ALL})", field="sensor_type"))
    for field, fix in _TEXTS.items():
        if not first.get(field, "").strip():
            problems.append(Problem("is empty", fix, field=field))
    method, account = first.get("unique_method_name", ""), first.get("account_name", "")
    if len(method) > MAX_METHOD_LETTERS:
        message = f"has {len(method)} characters, at most {MAX_METHOD_LETTERS} are allowed"
        problems.append(Problem(message, "shorten it", field="unique_method_name"))
    if account.strip() and not _is_address(account):
        problems.append(
            Problem(f"is {_short(account)}, no e-mail address", _TEXTS["account_name"], field="account_name")
        )
    authors = first.get("authors", [])
    if not authors or not all(name.strip() for name in authors):
        problems.append(Problem("names nobody" if not authors else "holds an empty name", "name them", field="authors"))
    for field in ("number_past_frames_exclude_current", "number_future_frames_exclude_current"):
        count = first.get(field)
        if count is None or count > 1 << 20:  # negative ones come as 2^64 - x
            message = "is missing" if count is None else f"is no number of frames ({count})"
            problems.append(Problem(message, "state how many frames the method looks at, 0 for none", field=field))
    types = first.get("object_types", [])
    if not types or not set(types) <= set(OBJECT_TYPES) or len(set(types)) < len(types):
        message = f"is {types}" if types else "is empty"
        problems.append(Problem(message, f"name the types that are found, each once, of {dict(OBJECT_TYPES)}",
                                field="object_types"))  # fmt: skip
    return problems


def _is_address(text: str) -> bool:
    name, at, place = text.rpartition("@")
    return bool(name and at and "." in place.strip(".") and not any(letter.isspace() for letter in text))


# ------------------------------------------------------------------------------------------------------ the boxes


def _check_objects(shard: str, found: WaymoObjects, allowed: Iterable[int]) -> list[Problem]:
    """Broken rules of boxes, each kind once with its count and first place."""
    boxes = found.boxes
    finite = np.isfinite(boxes)
    names = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
    score = found.scores
    unknown = [token_of(*key) for key in found.keys if not key[0] or key[1] <= 0]
    bad_frame = np.array([not key[0] or key[1] <= 0 for key in found.keys], bool)[found.frame]
    with np.errstate(invalid="ignore"):
        tests: list[tuple[str, np.ndarray, Any, str, str]] = [
            (f"box.{name}", ~finite[:, i], boxes[:, i], "is missing or not finite", "drop the box or fix the model")
            for i, name in enumerate(names)
        ]
        tests += [
            (f"box.{name}", finite[:, i] & (boxes[:, i] < MIN_SIZE_M), boxes[:, i], "is not above 0",
             f"give metres, at least {MIN_SIZE_M:g}")
            for i, name in list(enumerate(names))[3:6]
        ]  # fmt: skip
        tests += [
            (f"box.{name}", finite[:, i] & (np.abs(boxes[:, i]) > MAX_NUMBER), boxes[:, i], "is beyond any map",
             "give metres and radians, or fix the model")
            for i, name in enumerate(names)
        ]  # fmt: skip
        tests += [
            ("box.heading", finite[:, 6] & ((boxes[:, 6] < -np.pi) | (boxes[:, 6] >= np.pi)), boxes[:, 6],
             "is not in [-pi, pi)", "give radians, wrapped"),
            ("score", ~((score >= 0) & (score <= 1)), score, "is missing or not in [0, 1]", "give confidences"),
            ("type", ~np.isin(found.types, list(OBJECT_TYPES)), found.types, "is no type",
             f"use one of {dict(OBJECT_TYPES)}"),
            ("type", np.isin(found.types, list(OBJECT_TYPES)) & ~np.isin(found.types, list(allowed)), found.types,
             "is not among the object_types of the shard", "name every type that is found there"),
            ("camera_name", found.cameras != 0, found.cameras, "is given", "leave it out: it is for boxes in images"),
            ("context_name, frame_timestamp_micros", bad_frame, found.frame, f"are missing ({len(unknown)} frames)",
             "state both with every box"),
        ]  # fmt: skip
    problems = []
    for field, broken, values, message, fix in tests:
        if broken.any():
            row = int(np.flatnonzero(broken)[0])
            value = f" ({values[row]:.6g})" if field != "context_name, frame_timestamp_micros" else ""
            text = f"{message}{value} of {broken.sum()} of {len(found)} boxes of shard {shard}"
            problems.append(Problem(text, fix, token_of(*found.keys[found.frame[row]]), row, field))
    if len(found) >= 20 and (np.abs(boxes[:, :3]).max(1) > MAX_DISTANCE_M).all():
        text = f"all {len(found)} boxes of shard {shard} lie farther than {MAX_DISTANCE_M:g} m from the car"
        problems.append(Problem(text, "give boxes in the vehicle frame, not in the global one"))
    return problems


def check_frames(found: WaymoObjects, frames: Sequence[Frame], answered: Collection[str] = ()) -> list[Problem]:
    """Foreign frames, segments without a box. answered: tokens of frames that are known to be predicted.

    Raises SubmissionError where ``frames`` are not Waymo's.
    """
    expected = dict(zip((frame_key(frame) for frame in frames), (frame.token for frame in frames)))
    used = [found.keys[i] for i in np.unique(found.frame)]
    apart = ids_apart([token_of(*key) for key in used], list(expected.values()), "frames")
    if apart:
        message, _, fix = apart.rpartition("; ")
        return [Problem(message, fix)]
    segments = {context for context, _ in expected}
    strange = [key for key in used if key not in expected]
    problems = [
        Problem(
            f"timestamp {key[1]} is none of segment {key[0]}'s" if key[0] in segments else "is not of the split",
            "use frame_timestamp_micros of the data" if key[0] in segments else "remove it, or name the right split",
            token_of(*key),
        )
        for key in strange
    ]
    known = set(answered)
    done = {context for context, _ in used} | {key[0] for key, token in expected.items() if token in known}
    problems += [
        Problem(f"segment {segment} has not one box", "predict on every frame of the split") for segment in
        sorted(segments - done)
    ]  # fmt: skip
    return problems


def oddities(shards_of: str | os.PathLike[str], frames: Sequence[Frame] = ()) -> list[str]:
    """What the server takes and nobody means, with counts: empty frames, very many boxes, low scores, huge boxes."""
    shards, _ = _shards(Path(shards_of))
    found = WaymoObjects.joined([own for _, _, own in shards])
    lines = []
    if shards and (unnamed := placeholders(shards[0][1])):
        verb = "is a placeholder" if len(unnamed) == 1 else "are placeholders"
        lines.append(f"{', '.join(unnamed)} {verb}; --waymo-entry of `drivestack predict` states them")
    used = set(np.unique(found.frame).tolist())
    tokens = {found.tokens[i] for i in used}
    if empty := [frame.token for frame in frames if frame.token not in tokens]:
        lines.append(f"{len(empty)} of {len(frames)} frames have no box, such as {empty[0]}")
    counts = Counter(found.frame.tolist())
    if many := [index for index, count in counts.items() if count > BOXES_PER_FRAME]:
        text = f"{len(many)} frames have more than {BOXES_PER_FRAME} boxes, the suggested most"
        lines.append(f"{text} ({found.tokens[many[0]]}: {counts[many[0]]})")
    if low := int((found.scores < np.float32(MIN_SCORE)).sum()):
        lines.append(f"{low} of {len(found)} boxes score below {MIN_SCORE:g}, which official submissions leave out")
    if huge := int((found.boxes[:, 3:6] > MAX_SIZE_M).any(1).sum()):
        lines.append(f"{huge} of {len(found)} boxes are larger than {MAX_SIZE_M:g} m")
    if far := int((np.abs(found.boxes[:, :3]).max(1, initial=0) > MAX_DISTANCE_M).sum()):
        lines.append(f"{far} of {len(found)} boxes are farther than {MAX_DISTANCE_M:g} m from the car")
    return lines


def placeholders(meta: Mapping[str, Any]) -> list[str]:
    """The fields of an Entry that say who submits and hold what stands there where nobody said it."""
    names = {"account_name": "account", "unique_method_name": "method", "authors": "authors"}
    unnamed = NOBODY.message(())
    return [
        name for field, name in (names | {"affiliation": "affiliation"}).items() if meta.get(field) == unnamed[field]
    ]


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
