"""Boxes in a JSON or CSV file beside images or a recording, for cars whose labels have no format yet.

JSON, where a moment without objects is one that was labelled and is empty:

    {"frames": [{"timestamp_us": 1700000000000000,
                 "objects": [{"class": "car", "centre": [x, y, z], "size_lwh": [l, w, h], "yaw_rad": 0.1,
                              "velocity": [vx, vy], "track": "7"}]}]}

CSV, a row for each box, with a header: ``timestamp_us,class,x,y,z,length,width,height,yaw_rad`` and, where they are
known, ``vx,vy,track``. Middle of the box, metres, yaw counter-clockwise from x; in the global frame or in the EGO frame
of the keyframe; velocity and track may be missing.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import LIBRARY_ERRORS, ConfigError, DataError
from ...core.files import atomic_path
from ...core.frames import Annotations, Frame

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
    """The frames with the boxes of a file: those of the nearest time, at most MAX_OFFSET_US away.

    boxes_in: "global", or "ego" for boxes around the car. Frames without labels in the file have none (None); how many,
    and how many of the file belong to no frame, is said in one line. Raises ConfigError for another boxes_in, DataError
    naming file and row for what cannot be read, and if nothing in the file belongs to a frame.
    """
    if boxes_in not in ("global", "ego"):
        raise ConfigError(f"boxes_in {boxes_in!r}: choose global or ego, the frame that the boxes are in")
    moments = read_boxes(path)
    times = np.array([moment.timestamp_us for moment in moments], np.int64)
    out, used = [], set()
    for frame in frames:
        near = int(np.argmin(np.abs(times - frame.timestamp_us))) if len(times) else -1
        if near < 0 or abs(int(times[near]) - frame.timestamp_us) > MAX_OFFSET_US:
            out.append(frame)
            continue
        used.add(near)
        pose = frame.global_from_ego if boxes_in == "ego" else None
        out.append(replace(frame, annotations=_annotations(moments[near], pose, f"{path}: {times[near]} us")))
    if not used:
        span = f"{times.min()} to {times.max()}" if len(times) else "none"
        raise DataError(
            f"{path}: none of its times ({span}) is within {MAX_OFFSET_US / 1000:g} ms of a keyframe "
            f"({frames[0].timestamp_us} to {frames[-1].timestamp_us}); give timestamp_us of the images"
        )
    bare = sum(frame.annotations is None for frame in out)
    if bare or len(used) < len(moments):
        logger.warning(
            "%s: labels %d of %d keyframes; %d of its %d times belong to none",
            *(path, len(out) - bare, len(out), len(moments) - len(used), len(moments)),
        )
    return out


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
            moments.setdefault(int(time), []).extend(objects)
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
