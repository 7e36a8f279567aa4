"""Boxes in a JSON or CSV file beside images or a recording, for cars whose labels have no format yet.

JSON, where a moment without objects is one that was labelled and is empty:

    {"frames": [{"timestamp_us": 1700000000000000,
                 "objects": [{"class": "car", "centre": [x, y, z], "size_lwh": [l, w, h], "yaw_rad": 0.1,
                              "velocity": [vx, vy], "track": "7"}]}]}

CSV, a row for each box, with a header: ``timestamp_us,class,x,y,z,length,width,height,yaw_rad`` and, where they are
known, ``vx,vy,track``. Middle of the box, metres, yaw counter-clockwise from x; in the global frame or in the EGO frame
at ``timestamp_us``; velocity and track may be missing.
"""

from __future__ import annotations

import csv
import json
import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import LIBRARY_ERRORS, ConfigError, DataError
from ...core.files import atomic_path
from ...core.frames import Annotations, Frame
from ...geometry import interpolate_poses
from .checks import INT64

logger = logging.getLogger("drivestack")

MAX_OFFSET_US = 50_000
"""Between a keyframe and the labels that belong to it."""
_COLUMNS = ("timestamp_us", "class", "x", "y", "z", "length", "width", "height", "yaw_rad")


@dataclass(frozen=True)
class Moment:
    """The boxes of one time."""

    timestamp_us: int
    objects: list[dict[str, Any]]


def label_frames(frames: Sequence[Frame], path: str | Path, boxes_in: str = "global") -> list[Frame]:
    """The frames with the boxes of a file. Each of its times labels the nearest keyframe, at most MAX_OFFSET_US away.

    boxes_in: "global", or "ego" for boxes around the car, which are placed by its pose at their time: between the
    keyframes of the scene before and after it, or, where there are not both, that of the keyframe (off by 1 m at 20 m/s
    and 50 ms). How far objects move between their time and the keyframe's is left in. Of several times that are nearest
    to one keyframe the nearest counts. Frames without labels in the file have none (None); how many, and how many times
    of the file belong to no frame, is said in one line. Raises ConfigError for another boxes_in, DataError naming file
    and row for what cannot be read, and if nothing in the file belongs to a frame.
    """
    if boxes_in not in ("global", "ego"):
        raise ConfigError(f"boxes_in {boxes_in!r}: choose global or ego, the frame that the boxes are in")
    if not frames:
        return []
    moments = read_boxes(path)
    order = sorted(range(len(frames)), key=lambda i: frames[i].timestamp_us)
    times = [frames[i].timestamp_us for i in order]
    chosen: dict[int, tuple[int, int]] = {}  # keyframe -> (offset in us, moment)
    for number, moment in enumerate(moments):
        k = bisect_left(times, moment.timestamp_us)
        offset, near = min((abs(times[j] - moment.timestamp_us), order[j]) for j in (k - 1, k) if 0 <= j < len(times))
        if offset <= MAX_OFFSET_US and (near not in chosen or offset < chosen[near][0]):
            chosen[near] = offset, number
    if not chosen:
        span = f"{moments[0].timestamp_us} to {moments[-1].timestamp_us}" if moments else "none"
        raise DataError(
            f"{path}: none of its times ({span}) is within {MAX_OFFSET_US / 1000:g} ms of a keyframe "
            f"({times[0]} to {times[-1]}); give timestamp_us of the images"
        )
    out = list(frames)
    scenes: dict[str, list[Frame]] = {}
    for i in order:
        scenes.setdefault(frames[i].scene_token, []).append(frames[i])
    for i, (_, number) in chosen.items():
        moment = moments[number]
        drive = scenes[frames[i].scene_token]
        pose = _car_at(moment.timestamp_us, frames[i], drive) if boxes_in == "ego" else None
        notes = _annotations(moment, pose, f"{path}: {moment.timestamp_us} us")
        out[i] = replace(frames[i], annotations=notes)
    bare = sum(frame.annotations is None for frame in out)
    if bare or len(chosen) < len(moments):
        logger.warning(
            "%s: labels %d of %d keyframes; %d of its %d times belong to none",
            *(path, len(out) - bare, len(out), len(moments) - len(chosen), len(moments)),
        )
    return out


def _car_at(time_us: int, near: Frame, drive: Sequence[Frame]) -> NDArray[np.float64]:
    """global_from_ego [4, 4] at a time between keyframes of a drive, in order; else that of the keyframe near it."""
    k = bisect_left(drive, time_us, key=lambda frame: frame.timestamp_us)
    if not 0 < k < len(drive) or time_us == near.timestamp_us:
        return near.global_from_ego
    before, after = drive[k - 1], drive[k]
    share = (time_us - before.timestamp_us) / (after.timestamp_us - before.timestamp_us)
    return interpolate_poses(before.global_from_ego, after.global_from_ego, share)


def read_boxes(path: str | Path) -> list[Moment]:
    """All moments of a file, in time. Raises DataError naming file and row."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                rows = _rows(csv.DictReader(file), path)
        else:
            rows = [(row["timestamp_us"], row["objects"]) for row in json.loads(path.read_text("utf-8"))["frames"]]
        moments: dict[int, list[dict[str, Any]]] = {}
        for time, objects in rows:
            time_us = int(time)
            if not -INT64 <= time_us < INT64:
                raise ValueError(f"timestamp_us {str(time)[:30]} is no time in microseconds")
            moments.setdefault(time_us, []).extend(objects)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; name the JSON or CSV file of the boxes") from None
    except (OSError, csv.Error, *LIBRARY_ERRORS) as error:
        raise DataError(
            f"{path}: not a file of boxes ({type(error).__name__}: {error}); the layouts are in box_files.py"
        ) from None
    return [Moment(time, moments[time]) for time in sorted(moments)]


def _rows(table: csv.DictReader, path: Path) -> list[tuple[int, list[dict[str, Any]]]]:
    if missing := [name for name in _COLUMNS if name not in (table.fieldnames or ())]:
        raise DataError(f"{path}: no column {missing[0]}; it needs {', '.join(_COLUMNS)}")
    rows = []
    for row in table:
        try:
            number = {name: float(row[name]) for name in _COLUMNS if name not in ("timestamp_us", "class")}
            box: dict[str, Any] = {
                "class": row["class"],
                "centre": [number[name] for name in ("x", "y", "z")],
                "size_lwh": [number[name] for name in ("length", "width", "height")],
                "yaw_rad": number["yaw_rad"],
                "track": row.get("track") or "",
            }
            if row.get("vx") and row.get("vy"):
                box["velocity"] = [float(row["vx"]), float(row["vy"])]
            rows.append((int(row["timestamp_us"]), [box]))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, line {table.line_num}: {error}; give numbers") from None
    return rows


def _annotations(moment: Moment, pose: Any, where: str) -> Annotations:
    objects = moment.objects
    try:
        return Annotations.of_boxes(
            [str(box["class"]) for box in objects],
            [box["centre"] for box in objects],
            [box["size_lwh"] for box in objects],
            [box["yaw_rad"] for box in objects],
            velocity_mps=[box.get("velocity") or [np.nan, np.nan] for box in objects],
            tracks=[str(box.get("track", "")) for box in objects],
            global_from_frame=pose,
        )
    except (DataError, *LIBRARY_ERRORS) as error:
        raise DataError(f"{where}: {type(error).__name__}: {error}; correct its boxes") from None


def write_boxes(frames: Sequence[Frame], path: str | Path) -> None:
    """The labels of frames as a JSON or CSV file (by the ending), in the global frame, from their headings."""
    rows: list[dict[str, Any]] = []
    for frame in frames:
        notes = frame.annotations
        if notes is None:
            continue
        boxes = notes.boxes_in(np.eye(4))  # [n, 9]
        objects: list[dict[str, Any]] = [
            {
                "class": notes.names[i],
                "centre": box[:3].tolist(),
                "size_lwh": box[3:6].tolist(),
                "yaw_rad": float(box[6]),
                "track": notes.instance_tokens[i],
                **({"velocity": box[7:9].tolist()} if np.isfinite(box[7:9]).all() else {}),
            }
            for i, box in enumerate(boxes)
        ]
        rows.append({"timestamp_us": frame.timestamp_us, "objects": objects})
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        if Path(path).suffix.lower() != ".csv":
            json.dump({"frames": rows}, file, allow_nan=False)
            return
        table = csv.writer(file)
        table.writerow([*_COLUMNS, "vx", "vy", "track"])
        for row in rows:
            for box in row["objects"]:
                numbers = [repr(v) for v in (*box["centre"], *box["size_lwh"], box["yaw_rad"])]
                velocity = [repr(v) for v in box["velocity"]] if "velocity" in box else ["", ""]
                table.writerow([row["timestamp_us"], box["class"], *numbers, *velocity, box["track"]])
