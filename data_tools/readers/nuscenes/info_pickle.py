"""Published info pickles to Frames: mmdet3d's 1.1 layout ('data_list') and the older one ('infos', info_entries.py).

Boxes in the files: mmdet3d 1.1 (x, y, z gravity centre, l, w, h, yaw); the older layout in one of two conventions,
recognised by the data (box_layouts.py). Both in the frame of LIDAR_TOP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.errors import DataError, library_errors
from ....core.frames import Frame
from ....core.pickles import load_pickle
from ..cameras import ImageSizes
from ..checks import check_frames
from ..lenses import LensNotes, LensUse
from ..links import link_frames
from ..registry import Conventions, register_reader
from ..world import unit_of
from .box_layouts import BOX_LAYOUTS, BoxLayout, layout_of
from .info_entries import EntryReader, ImagePaths, frame_of_infos, frame_of_mmdet3d, old_boxes

logger = logging.getLogger("drivestack")

NEEDED = ("token", "ego2global", "timestamp", "images")
"""Of every sample in mmdet3d 1.1's layout; those of KITTI and Waymo lack some."""


@register_reader(
    "nuscenes_infos",
    "published info pickles: mmdet3d's 1.1 layout, the older one of BEVFormer, BEVDet, StreamPETR and others",
    Conventions(
        boxes="gravity centre and l w h, counter-clockwise yaw (mmdet3d 1.0, 1.1) or w l h, clockwise yaw (mmdet3d < "
        "1.0, BEVFormer): recognised by sizes and headings, or option box_layout",
        quaternions="w x y z",
        time="since 1970 in seconds or microseconds; otherwise seconds in mmdet3d 1.1, microseconds before",
        cameras="in the order of published models, others alphabetically after them; pinholes, or with the lens that "
        "an entry states; sizes from the file, or from one image of each camera",
        frames="EGO: nuScenes' (x ahead, y left, z up); BEV maps lie in the LIDAR_TOP frame, or in the EGO frame where "
        "the file has no LiDAR",
    ),
)
def read_nuscenes_infos(
    root: str | Path,
    info_pickle: str | Path,
    image_size_px: tuple[int, int] | None = None,
    box_layout: BoxLayout | None = None,
    lens: LensUse = "used",
) -> list[Frame]:
    """``read_info_pickle`` with the folder of the images first, as readers have it."""
    return read_info_pickle(info_pickle, root, image_size_px, box_layout, lens)


def read_info_pickle(
    path: str | Path,
    dataroot: str | Path,
    image_size_px: tuple[int, int] | None = None,
    box_layout: BoxLayout | None = None,
    lens: LensUse = "used",
) -> list[Frame]:
    """Frames of an info pickle of either layout, sorted by scene and time.

    dataroot: folder of the images (with ``samples/`` in it, or the images themselves); image_size_px: (width, height)
    of all images where the file does not state it, default: from the header of one image of each camera. box_layout:
    of ``gt_boxes`` in the older layout, "wlh" or "lwh" (box_layouts.py), default: recognised by the data. Files may
    lack scenes (then drives are cut at pauses), LiDAR, velocities, counts of points (every box counts as seen) and
    attributes (they stay ''). lens: "ignored" takes cameras as pinholes whatever the entries state.

    Raises DataError naming the file and the sample.
    """
    if box_layout not in (None, *BOX_LAYOUTS):
        raise DataError(f"box_layout {box_layout!r}: choose from {', '.join(BOX_LAYOUTS)}")
    content = load_pickle(path)
    layouts: dict[str, Callable[[dict, EntryReader], Frame]] = {
        "data_list": frame_of_mmdet3d,
        "infos": frame_of_infos,
    }
    key = next((k for k in layouts if isinstance(content, dict) and k in content), None)
    if key is None:
        raise DataError(f"{path}: neither mmdet3d 1.1 infos ('data_list') nor older ones ('infos'): {_looks(content)}")
    entries = content[key]
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: {key} is no list of samples; make the infos again with its converter")
    if not entries:
        raise DataError(f"{path}: holds no samples; make the infos again with its converter")
    with library_errors(DataError, f"{path}: metainfo", "make the infos again with its converter"):
        if key == "data_list" and (lacking := [field for field in NEEDED if all(field not in e for e in entries)]):
            dataset = str(content.get("metainfo", {}).get("dataset", "another data set"))[:40]
            raise DataError(
                f"{path}: infos of {dataset}, without {', '.join(lacking)}: only those are read that have the fields "
                "of nuScenes' infos; write Frames from them in a reader of your own (docs/own_data.md)"
            )
        names = {int(label): str(name) for name, label in content.get("metainfo", {}).get("categories", {}).items()}
    reader = EntryReader(
        images=ImagePaths(Path(dataroot)),
        sizes=ImageSizes(image_size_px),
        lenses=LensNotes(str(path), lens),
        names=names,
        us_per_unit=_us_per_unit(entries, key, path),
        box_layout=(box_layout or _layout(entries, path)) if key == "infos" else "lwh",
    )
    frames = []
    for number, info in enumerate(entries):
        where = f"{path}: sample {str(info.get('token', f'number {number}'))[:100]}: unusable entry of {key}"
        with (
            library_errors(DataError, where, "make the infos again with the converter of its layout"),
            np.errstate(over="ignore", invalid="ignore"),  # the checks name what is not finite
        ):
            frames.append(layouts[key](info, reader))
    reader.lenses.report()
    if not names and any(frame.annotations for frame in frames) and key == "data_list":
        logger.warning("%s: metainfo.categories is missing: its objects have no class", path)
    frames = link_frames(frames)
    check_frames(frames)
    return frames


def _looks(content: Any) -> str:
    """What another pickle is, as far as its keys show it."""
    if isinstance(content, dict) and {"results", "meta"} & content.keys():
        return "it holds results of a model; give the info file that they were made with"
    if isinstance(content, dict) and all(isinstance(key, tuple) and len(key) == 3 for key in content) and content:
        return "it is a collection of OpenLane-V2; read it with --reader openlane"
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return f"it is a list of entries with {', '.join(map(str, list(content[0])[:6]))}; give nuScenes infos"
    found = (
        ", ".join(str(key)[:40] for key in list(content)[:6]) if isinstance(content, dict) else type(content).__name__
    )
    return f"it holds {found or 'nothing'}; give another file"


def _us_per_unit(entries: Sequence[dict], key: str, path: str | Path) -> float:
    """Microseconds per unit of the file's times: by their size since 1970, else as its layout has them."""
    usual = "seconds" if key == "data_list" else "microseconds"
    times = [time for entry in entries if isinstance(time := entry.get("timestamp"), (int, float, np.number))]
    unit = unit_of(float(np.median(np.array(times, np.float64)))) if times else ""
    if unit in ("milliseconds", "nanoseconds"):
        raise DataError(
            f"{path}: timestamps look like {unit} since 1970; this layout has {usual}: convert them in its converter"
        )
    if unit and unit != usual:
        logger.warning("%s: timestamps are read as %s since 1970, though its layout has %s", path, unit, usual)
    return 1e6 if (unit or usual) == "seconds" else 1.0


def _layout(entries: Sequence[dict], path: str | Path, key: str = "infos") -> BoxLayout:
    boxes: list[NDArray[np.float64]] = []
    velocities: list[NDArray[np.float64]] = []
    names: list[str] = []
    for number, info in enumerate(entries):
        where = f"{path}: sample {str(info.get('token', f'number {number}'))[:100]}: unusable entry of {key}"
        with library_errors(DataError, where, "make the infos again with the converter of its layout"):
            if (read := old_boxes(info)) is not None:
                boxes.append(read[0])
                velocities.append(read[1])
                names += read[2]
    if not names:
        return "wlh"
    layout = layout_of(np.concatenate(boxes), names, np.concatenate(velocities), str(path))
    if layout == "lwh":
        logger.warning("%s: gt_boxes are read as l w h and yaw (mmdet3d 1.0), as sizes and headings show", path)
    return layout
