"""Does a data set fit: border checks, what looks wrong, numbers, and pictures to look at, in a minute.

Nothing here knows a data set: what a reader returns is held against the physical world, and drawn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import LIBRARY_ERRORS, DataError
from ..core.files import file_name, write_json
from ..core.frames import Frame
from ..data_tools.readers.checks import problems_noted
from ..data_tools.readers.registry import DataSource, find_reader
from ..data_tools.survey import survey
from ..view.boxes import save_picture
from ..view.data_check import pictured, render_camera_check, render_data_check
from ..view.drawing import View

REPORT = "report.json"


@dataclass
class DataCheck:
    """What ``check_data`` found."""

    source: str
    problems: list[str] = field(default_factory=list)
    """What does not fit or looks wrong, a line each."""
    notes: list[str] = field(default_factory=list)
    """What the reader said on the way: left out, counted, taken as."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """By topic, see data_tools/survey."""
    pictures: list[str] = field(default_factory=list)
    """Names of the files."""
    seconds: float = 0.0

    @property
    def fits(self) -> bool:
        return not self.problems


def check_data(source: DataSource, out: Path, pictures: int = 3, camera_width_px: int = 560) -> DataCheck:
    """Reads a set, and writes report.json and pictures to ``out``.

    pictures: of keyframes, evenly over the set; 0 writes none. Each camera of the first of them is drawn alone as well.
    Raises DataError and ConfigError where the set cannot be read at all; what reads but does not fit is in
    ``problems``.
    """
    began = time.monotonic()
    check = DataCheck(str(source))
    with _said(check.notes), problems_noted() as refused:
        frames = source.read()
    check.problems += refused
    try:
        check.numbers, wrong = survey(frames)
        check.problems += wrong
        if pictures:
            _draw(check, pictured(frames, pictures), out, View(camera_width_px=camera_width_px))
    except LIBRARY_ERRORS:
        if not refused:  # else frames that the checks would not let pass are no use for more
            raise
    check.seconds = round(time.monotonic() - began, 2)
    conventions = find_reader(source.reader).conventions
    content = {
        "source": check.source,
        "fits": check.fits,
        "problems": check.problems,
        "notes": check.notes,
        "conventions": None if conventions is None else vars(conventions),
        **check.numbers,
        "pictures": check.pictures,
        "seconds": check.seconds,
    }
    write_json(out / REPORT, _plain(content), indent=2)
    return check


def _draw(check: DataCheck, frames: Sequence[Frame], out: Path, view: View) -> None:
    for number, frame in enumerate(frames):
        pixels, problems = render_data_check(frame, view)
        _save(check, pixels, out, f"keyframe_{number:03d}.jpg")
        check.problems += [problem for problem in problems if problem not in check.problems]
    for camera in frames[0].cameras if frames else ():
        try:
            name = file_name(camera.name, "camera name")
        except DataError:
            continue  # refused above; a name from a file is no place to write to
        pixels, _ = render_camera_check(frames[0], camera)
        _save(check, pixels, out, f"camera_{name}.jpg")


def _save(check: DataCheck, pixels: Any, out: Path, name: str) -> None:
    save_picture(Image.fromarray(pixels), out / name)
    check.pictures.append(name)


@contextmanager
def _said(notes: list[str]) -> Iterator[None]:
    """Within, warnings of this package are kept in the list, too."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() not in notes:
                notes.append(record.getMessage())

    log, keep = logging.getLogger("drivestack"), Keep(logging.WARNING)
    log.addHandler(keep)
    try:
        yield
    finally:
        log.removeHandler(keep)


def _plain(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not have, and without NumPy's types."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


# --------------------------------------------------------------------------------------------------------- as text


def lines_of(check: DataCheck) -> list[str]:
    """The report as text: whether it fits first, then times, cameras and boxes."""
    if check.fits:
        lines = ["fits: nothing looks wrong; look at the ground grid and the boxes in the pictures"]
    else:
        lines = [f"looks wrong ({len(check.problems)}):", *(f"  - {problem}" for problem in check.problems)]
    numbers = check.numbers
    if not numbers:
        return lines
    return [*lines, "", *_times(numbers["times"]), "", *_cameras(numbers["cameras"]), "", *_boxes(numbers["boxes"])]


def _times(times: dict[str, Any]) -> list[str]:
    rate = f", {times['rate_hz']:g} Hz" if times["rate_hz"] else ""
    lines = [f"{times['keyframes']} keyframes in {times['drives']} drives{rate}"]
    if times["gaps"]:
        lines.append(
            f"{times['gaps']} gaps, the longest {times['longest_gap_s']:g} s after {times['longest_gap_after']}"
        )
    if times["speed_mps"]:
        speed = times["speed_mps"]
        lines.append(f"the car: median {speed['median']:.1f} m/s, at most {speed['max']:.1f} m/s")
    late = max((row["max"] for row in times["camera_offset_ms"].values()), default=0.0)
    lines.append(f"cameras fire at most {late:g} ms from their keyframe")
    missing = times["keyframes_without_camera"]
    lines += [f"camera {name} is missing in {count} keyframes" for name, count in missing.items()]
    return lines


def _cameras(cameras: dict[str, Any]) -> list[str]:
    wide = max([6, *map(len, cameras["each"])])
    head = f"{'camera':<{wide}}  {'size px':>11} {'yaw':>7} {'pitch':>6} {'roll':>6} {'height':>6} {'focal px':>8} "
    lines = [f"{head}{'view':>11}  lens"]
    for name, row in cameras["each"].items():
        size, view = "{} x {}".format(*row["size_px"]), "{:.0f} x {:.0f}".format(*row["field_of_view_deg"])
        angles = f"{row['yaw_deg']:7.1f} {row['pitch_deg']:6.1f} {row['roll_deg']:6.1f} {row['position_m'][2]:6.2f}"
        more = f", {row['calibrations']} calibrations" if row["calibrations"] > 1 else ""
        lines.append(f"{name:<{wide}}  {size:>11} {angles} {row['focal_px'][0]:8.1f} {view:>11}  {row['lens']}{more}")
    lines.append("angles in degrees (yaw to the left, pitch up, roll right side down), height in metres")
    lines.append(f"{cameras['covered_deg']:g} of 360 degrees around the car are seen at 15 m")
    if cameras["overlaps_deg"]:
        pairs = ", ".join(f"{pair} {degrees:g}" for pair, degrees in cameras["overlaps_deg"].items())
        lines.append(f"overlaps in degrees (left / right): {pairs}")
    return lines


def _boxes(boxes: dict[str, Any]) -> list[str]:
    if not boxes["boxes"]:
        return [f"{boxes['labelled_keyframes']} keyframes have labels, no boxes"]
    lines = [f"{boxes['boxes']} boxes in {boxes['labelled_keyframes']} labelled keyframes, {boxes['tracks']} tracks"]
    shown = {name or "(no class)": row for name, row in boxes["classes"].items()}
    wide = max([5, *map(len, shown)])
    span = lambda row, side: "{median:6.2f} ({min:.2f}..{max:.2f})".format(**row[f"{side}_m"])
    lines.append(f"{'class':<{wide}}  {'boxes':>7}  {'length m':<20} {'width m':<20} {'height m':<20} distance m")
    for name, row in sorted(shown.items(), key=lambda item: -item[1]["boxes"]):
        sides = " ".join(f"{span(row, side):<20}" for side in ("length", "width", "height"))
        far = "{median:.0f}, at most {max:.0f}".format(**row["distance_m"])
        lines.append(f"{name:<{wide}}  {row['boxes']:>7}  {sides} {far}")
    seen, bottom, lidar = boxes["in_cameras"], boxes["height_of_bottoms_m"], boxes["lidar"]
    lines.append(
        f"{seen['in_one']:.0%} of {seen['boxes']} boxes ({seen['keyframes']} keyframes) show up in a camera, "
        f"{seen['in_several']:.0%} in several"
    )
    if bottom is not None:
        lines.append(f"bottoms of boxes within 25 m: median {bottom:.2f} m over the ground")
    if lidar is not None and lidar["with_points"] is not None:
        lines.append(
            f"LiDAR: {lidar['with_points']:.0%} of {lidar['near_boxes']} boxes within 25 m hold points "
            f"({lidar['sweeps']} sweeps)"
        )
    return lines
