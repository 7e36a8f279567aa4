"""Segments of the Waymo Open Dataset v1 (TFRecords of ``Frame``): what cameras need, and where the images lie.

A record of 5 to 15 MB is nearly all LiDAR and JPEG. Its fields are walked by their lengths, and only the small ones
that are needed go to the official message classes; of an image we keep where it lies in the file.
"""

from __future__ import annotations

import mmap
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ....core.errors import LIBRARY_ERRORS, DataError
from ....core.waymo_messages import parse, waymo_messages
from ....core.wire import fields
from .parts import (
    Calibration,
    Label,
    Moment,
    Segment,
    Shot,
    calibration,
    camera_number,
    check_jpeg,
    matrix,
    seen_by,
)
from .tfrecords import mapped_file, record_places

_FIX = "fetch it again, or give perception data (segment-*.tfrecord) of the Waymo Open Dataset v1"


@dataclass(frozen=True)
class RecordImage:
    """An image's bytes within a file."""

    path: str
    offset: int
    length: int

    @property
    def source(self) -> str:
        return f"{self.path}, bytes {self.offset} to {self.offset + self.length}"

    def read(self) -> bytes:
        """Raises OSError where the file ends before, or holds something else there."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.length)
        if len(data) < self.length:
            raise OSError(f"{self.path} ends before byte {self.offset + self.length}: it is truncated")
        check_jpeg(data, self.source)
        return data


def read_segments(path: Path, stride: int = 1, checksums: bool = False) -> list[Segment]:
    """The segments of a file, one as a rule, with every ``stride``-th of its records.

    Raises DataError naming file and record for what cannot be used, ConfigError without the message classes.
    """
    messages = waymo_messages("dataset_pb2")
    with mapped_file(path) as content:
        reader = _Reader(path, content, messages)
        for number, (begin, end) in enumerate(record_places(content, path, checksums)):
            if number % stride == 0:
                reader.add(number, begin, end)
    return reader.segments()


class _Reader:
    """Of one file."""

    def __init__(self, path: Path, content: mmap.mmap, messages: ModuleType) -> None:
        self.path, self.content, self.messages = path, content, messages
        self.source = str(path)  # one text for all images
        of = messages.Frame.DESCRIPTOR.fields_by_name
        self.images, self.context = of["images"].number, of["context"].number
        self.small = {of[name].number for name in ("timestamp_micros", "pose", "laser_labels")}
        of = messages.CameraImage.DESCRIPTOR.fields_by_name
        self.pixels, self.masks = of["image"].number, of["camera_segmentation_label"].number
        self.drives: dict[str, tuple[Any, list[Moment]]] = {}

    def add(self, number: int, begin: int, end: int) -> None:
        where = f"{self.path}: record {number + 1}"
        try:
            context, frame, images = self._messages(begin, end)
            if not context.name or not frame.HasField("timestamp_micros") or not frame.HasField("pose"):
                raise ValueError("no context name, time or pose")
            moment = Moment(
                timestamp_us=int(frame.timestamp_micros),
                global_from_ego=matrix(frame.pose.transform),
                shots=tuple(self._shot(image, *pixels) for image, pixels in images),
                labels=tuple(map(_label, frame.laser_labels)),
            )
        except LIBRARY_ERRORS as error:
            text = " ".join(str(error).split())[:200]
            raise DataError(f"{where}: is no frame of Waymo's perception data ({text}); {_FIX}") from None
        self.drives.setdefault(context.name, (context, []))[1].append(moment)

    def _messages(self, begin: int, end: int) -> tuple[Any, Any, list[tuple[Any, tuple[int, int]]]]:
        """Context, the small fields of the frame, and of each image its small fields and where its bytes are."""
        small, context, images, tag = bytearray(), b"", [], begin
        for number, _, first, stop in fields(self.content, begin, end):
            if number == self.images:
                images.append(self._image(first, stop))
            elif number == self.context:
                context += self.content[first:stop]  # parts of one message may be written one by one
            elif number in self.small:
                small += self.content[tag:stop]
            tag = stop
        return parse(self.messages.Context, context), parse(self.messages.Frame, bytes(small)), images

    def _image(self, begin: int, end: int) -> tuple[Any, tuple[int, int]]:
        small, pixels, tag = bytearray(), None, begin
        for number, _, first, stop in fields(self.content, begin, end):
            if number == self.pixels:
                pixels = first, stop
            elif number != self.masks:
                small += self.content[tag:stop]
            tag = stop
        if pixels is None:
            raise ValueError(f"an image without content at byte {begin}")
        return parse(self.messages.CameraImage, bytes(small)), pixels

    def _shot(self, image: Any, begin: int, end: int) -> Shot:
        camera = camera_number(image.name)
        if not image.HasField("pose") or not image.HasField("pose_timestamp"):
            raise ValueError(f"image of camera {camera} without pose and pose_timestamp")
        encoded = RecordImage(self.source, begin, end - begin)
        try:
            check_jpeg(self.content[begin : min(end, begin + 2)], encoded.source)
        except OSError as error:
            raise ValueError(str(error)) from None
        v = image.velocity
        return Shot(
            camera=camera,
            global_from_ego=matrix(image.pose.transform),
            time_s=image.pose_timestamp,
            encoded=encoded,
            exposure_s=image.shutter,
            trigger_s=image.camera_trigger_time,
            readout_done_s=image.camera_readout_done_time,
            velocity=(v.v_x, v.v_y, v.v_z, v.w_x, v.w_y, v.w_z) if image.HasField("velocity") else (np.nan,) * 6,
        )

    def segments(self) -> list[Segment]:
        out = []
        for name, (context, moments) in self.drives.items():
            stats = {key: getattr(context.stats, key) for key in ("time_of_day", "location", "weather")}
            out.append(
                Segment(
                    name=name,
                    where=str(self.path),
                    calibrations=self._calibrations(context),
                    moments=tuple(moments),
                    labelled=any(moment.labels for moment in moments),
                    synced=any(label.synced_box is not None for moment in moments for label in moment.labels),
                    conditions={key: value for key, value in stats.items() if value},
                )
            )
        return out

    def _calibrations(self, context: Any) -> dict[int, Calibration]:
        return {
            int(c.name): calibration(
                c.intrinsic,
                c.extrinsic.transform,
                (c.width, c.height),
                c.rolling_shutter_direction,
                f"{self.path}: camera {c.name} of {context.name}",
            )
            for c in context.camera_calibrations
        }


def _label(label: Any) -> Label:
    meta = label.metadata
    known = meta.HasField("speed_x") and meta.HasField("speed_y")
    return Label(
        id=sys.intern(label.id),
        kind=label.type,
        box=_box(label.box),
        synced_box=_box(label.camera_synced_box) if label.HasField("camera_synced_box") else None,
        camera=seen_by(label.most_visible_camera_name),
        velocity_global_mps=(meta.speed_x, meta.speed_y) if known else (np.nan, np.nan),
        points=label.num_lidar_points_in_box if label.HasField("num_lidar_points_in_box") else None,
        top_points=label.num_top_lidar_points_in_box if label.HasField("num_top_lidar_points_in_box") else None,
        level=label.detection_difficulty_level,
    )


def _box(box: Any) -> np.ndarray:
    return np.array(
        [box.center_x, box.center_y, box.center_z, box.length, box.width, box.height, box.heading], np.float64
    )
