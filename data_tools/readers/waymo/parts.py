"""What both versions of the Waymo Open Dataset say about a segment, as they say it; and Frames of it.

Waymo's axes: vehicle and camera x ahead, y left, z up, so a camera looks along its x. Its pixel coordinates are 0 at
the left (upper) edge of the first pixel; here they are at its middle, so principal points move by half a pixel.
Facts: https://github.com/waymo-research/waymo-open-dataset, dataset.proto and label.proto.

Shapes: n labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.errors import LIBRARY_ERRORS, DataError
from ....core.frames import SEEN_POINTS, Annotations, CameraView, EncodedImage, Frame, RollingShutter
from ....core.once import warn_once
from ....core.waymo import CLASS_TYPES, MAX_POINTS_HARD
from ....geometry import CameraModel, brown_conrady, pose, rotation_z, transform_points
from ..camera_images import AHEAD
from ..choices import classes_of

CAMERAS = {
    1: "FRONT", 2: "FRONT_LEFT", 3: "FRONT_RIGHT", 4: "SIDE_LEFT", 5: "SIDE_RIGHT",
    6: "REAR_LEFT", 7: "REAR", 8: "REAR_RIGHT",
}  # fmt: skip
"""Of the enumeration CameraName; perception data has 1 to 5."""
TYPES = {0: "unknown", **{number: name for name, number in CLASS_TYPES.items()}}
"""Of the enumeration Label.Type."""
DIRECTIONS = {1: "top_to_bottom", 2: "left_to_right", 3: "bottom_to_top", 4: "right_to_left", 5: "global"}
WAYMO_FROM_OPTICAL = pose(AHEAD, [0.0, 0.0, 0.0])
"""[4, 4]: a camera's own x right, y down, z ahead in Waymo's x ahead, y left, z up."""
EDGE_FROM_MIDDLE_PX = 0.5
"""From pixel coordinates that count from the middle of the first pixel to those from its edge."""
_JPEG = b"\xff\xd8"


@dataclass(frozen=True)
class Calibration:
    """Of one camera, in the project's own axes and pixels."""

    camera: CameraModel
    ego_from_camera: NDArray[np.float64]
    direction: str
    """Of the readout, a value of DIRECTIONS or ''."""


@dataclass(frozen=True)
class Shot:
    """One image: times in seconds since 1970."""

    camera: int
    global_from_ego: NDArray[np.float64]
    time_s: float
    encoded: EncodedImage
    exposure_s: float
    trigger_s: float
    readout_done_s: float
    velocity: tuple[float, ...]
    """v_x v_y v_z (m/s) w_x w_y w_z (rad/s), global."""


@dataclass(frozen=True)
class Label:
    """One object, boxes in the vehicle's frame; None and NaN for what the file does not state."""

    id: str
    kind: int
    box: NDArray[np.float64]
    """[7] x y z l w h heading, at the time of the LiDAR."""
    synced_box: NDArray[np.float64] | None
    camera: str
    """That sees it best, '' for none."""
    velocity_global_mps: tuple[float, float]
    points: int | None
    top_points: int | None
    level: int
    """1, 2, or 0 where it is not graded."""


@dataclass(frozen=True)
class Moment:
    """One frame of a segment."""

    timestamp_us: int
    global_from_ego: NDArray[np.float64]
    shots: tuple[Shot, ...]
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Segment:
    """A drive of 20 s. where: its file, for messages."""

    name: str
    where: str
    calibrations: Mapping[int, Calibration]
    moments: tuple[Moment, ...]
    labelled: bool
    """Whether its files hold labels at all: for v1 that is known of a split as a whole, see LabelRules."""
    synced: bool
    """Whether its files state camera-synced boxes, as those since v1.4 do."""
    conditions: Mapping[str, str] = field(default_factory=dict)


@dataclass
class LabelRules:
    """Which labels become objects, under which names; counts what it does, for ``report``.

    What a label leaves out means one thing where others of the split state it (no camera sees the object, no point, a
    frame without objects) and another where none does (an older set, a split without labels). A segment, in which
    there may be nothing to see, does not tell; so frames are made with all labels, and ``finish`` takes out those that
    do not count when the split's segments have been read, or have stated everything.
    """

    classes: Mapping[str, str]
    camera_only: bool
    labelled: bool = False
    synced: bool = False
    top_points: bool = False
    """What any segment so far has: labels, camera-synced boxes, points of the top LiDAR."""
    seen: int = 0
    at_lidar_time: int = 0
    without_points: int = 0
    without_camera: int = 0
    without_images: int = 0

    @property
    def all_stated(self) -> bool:
        """Whether no segment that follows can change what labels mean."""
        return self.labelled and self.synced and self.top_points

    def finish(self, frame: Frame) -> Frame:
        """A frame of ``frames_of`` with the labels that count; without annotations where the split has none."""
        raw = frame.annotations
        if raw is None or not self.labelled:
            return replace(frame, annotations=None)
        assert raw.num_top_lidar_points is not None and raw.difficulty is not None
        assert raw.most_visible_cameras is not None
        # in a set that states them, a label without has 0, protobuf's default, which the official tools leave out
        top = np.maximum(raw.num_top_lidar_points, 0) if self.top_points else raw.num_top_lidar_points
        counted = np.where(top < 0, SEEN_POINTS, top)
        lidar = np.where(raw.num_lidar_points < 0, counted, raw.num_lidar_points)
        points = top if self.top_points else lidar
        with_camera = np.array([bool(name) for name in raw.most_visible_cameras], bool)
        kept, visible = np.ones(len(raw), bool), with_camera | (not self.synced)
        if self.camera_only:
            kept = (points > 0) & visible
            self.without_points += int((points <= 0).sum())
            self.without_camera += int(((points > 0) & ~visible).sum())
        self.seen += len(raw)
        self.at_lidar_time += int((kept & ~with_camera).sum())
        level = np.where(raw.difficulty > 0, raw.difficulty, np.where(points <= MAX_POINTS_HARD, 2, 1))
        known = replace(
            raw,
            num_lidar_points=lidar,
            num_top_lidar_points=top,
            difficulty=level,
            most_visible_cameras=raw.most_visible_cameras if self.synced else None,
        )
        return replace(frame, annotations=_rows(known, np.flatnonzero(kept)))

    def report(self, root: object) -> None:
        """One warning for each kind of label or frame that was left out or changed."""
        if self.at_lidar_time:
            why = "no camera sees them" if self.synced else "the set states none, as those older than v1.4"
            warn_once(
                f"{root}: {self.at_lidar_time} of {self.seen} objects have no camera-synced box ({why}): their boxes "
                "are those of the LiDAR's time"
            )
        if self.without_points or self.without_camera:
            what = "points of the top LiDAR" if self.top_points else "LiDAR points (the set states none of the top one)"
            warn_once(
                f"{root}: {self.without_points} objects without {what} and {self.without_camera} more without a camera "
                f"that sees them, of {self.seen}, are left out, as the camera challenge does (reader option "
                "camera_only)"
            )
        if self.without_images:
            warn_once(f"{root}: {self.without_images} frames without any image are left out")


def calibration(
    values: Iterable[float], extrinsic: Iterable[float], size_px: tuple[int, int], direction: int, where: str
) -> Calibration:
    """values: f_u f_v c_u c_v k1 k2 p1 p2 k3; extrinsic: 16 numbers, vehicle from Waymo's camera axes.

    Raises DataError naming ``where`` for numbers that are no calibration.
    """
    try:
        f_u, f_v, c_u, c_v, *lens = map(float, values)
        middle = np.array([c_u, c_v]) - EDGE_FROM_MIDDLE_PX
        intrinsics = np.array([[f_u, 0, middle[0]], [0, f_v, middle[1]], [0, 0, 1.0]])
        camera = brown_conrady(intrinsics, int(size_px[0]), int(size_px[1]), lens)
        return Calibration(camera, matrix(extrinsic) @ WAYMO_FROM_OPTICAL, DIRECTIONS.get(direction, ""))
    except LIBRARY_ERRORS as error:
        raise DataError(
            f"{where}: no calibration ({type(error).__name__}: {error}); it needs 9 intrinsics, a pose, an image size"
        ) from None


def matrix(values: Iterable[float]) -> NDArray[np.float64]:
    """[4, 4] of 16 numbers, row by row. Raises ValueError for another number of them."""
    return np.array(list(values), np.float64).reshape(4, 4)


def camera_number(value: object) -> int:
    """Of a number, or of a name as old files have it. Raises ValueError for none that Waymo knows."""
    number = next((n for n, name in CAMERAS.items() if name == value), value)
    if number not in CAMERAS:
        raise ValueError(f"camera {value!r}, which is none of {', '.join(CAMERAS.values())}")
    return int(number)


def seen_by(value: object) -> str:
    """Name of the camera that sees an object best, '' for none, of a number or a name."""
    return "" if value in (None, 0, "", "UNKNOWN") else CAMERAS[camera_number(value)]


def check_jpeg(data: bytes, where: str) -> None:
    """Raises OSError for an image that does not begin as JPEG: its place was read from another file, or is damaged."""
    if not data.startswith(_JPEG):
        raise OSError(f"{where} holds no JPEG: the file is damaged, or has changed since its frames were read")


def frames_of(segment: Segment, rules: LabelRules) -> list[Frame]:
    """Frames in their order in time, not linked yet, with all labels: ``rules.finish`` comes next."""
    out = []
    rules.labelled |= segment.labelled
    rules.synced |= segment.synced
    rules.top_points |= any(label.top_points is not None for moment in segment.moments for label in moment.labels)
    for moment in sorted(segment.moments, key=lambda moment: moment.timestamp_us):
        token = f"{segment.name}_{moment.timestamp_us}"
        if not moment.shots:
            rules.without_images += 1
            continue
        shots = sorted(moment.shots, key=lambda shot: shot.camera)
        if len({shot.camera for shot in shots}) < len(shots):
            raise DataError(f"{segment.where}: frame {token} has two images of one camera; fetch the file again")
        out.append(
            Frame(
                token=token,
                scene_token=segment.name,
                scene_name=segment.name,
                timestamp_us=moment.timestamp_us,
                cameras=tuple(_view(shot, segment, token) for shot in shots),
                global_from_ego=moment.global_from_ego,
                annotations=_annotations(moment, rules.classes),
                conditions=segment.conditions,
            )
        )
    return out


def _view(shot: Shot, segment: Segment, token: str) -> CameraView:
    name = CAMERAS[shot.camera]
    if shot.camera not in segment.calibrations:
        raise DataError(f"{segment.where}: frame {token}: camera {name} has no calibration; fetch the file again")
    mounted = segment.calibrations[shot.camera]
    try:
        velocity = [float(value) for value in shot.velocity]
        shutter = RollingShutter(
            direction=mounted.direction,
            exposure_s=float(shot.exposure_s),
            trigger_time_us=round(shot.trigger_s * 1e6),
            readout_done_time_us=round(shot.readout_done_s * 1e6),
            velocity_global_mps=(velocity[0], velocity[1], velocity[2]),
            angular_velocity_global_radps=(velocity[3], velocity[4], velocity[5]),
        )
        time_us = round(shot.time_s * 1e6)
    except LIBRARY_ERRORS as error:
        raise DataError(f"{segment.where}: frame {token}: camera {name} has a time that is none ({error})") from None
    return CameraView(
        name=name,
        camera=mounted.camera,
        ego_from_camera=mounted.ego_from_camera,
        global_from_ego=shot.global_from_ego,
        timestamp_us=time_us,
        encoded=shot.encoded,
        sample_data_token=f"{token}_{name}",
        rolling_shutter=shutter,
    )


def _annotations(moment: Moment, classes: Mapping[str, str]) -> Annotations:
    """All labels; -1, 0 (difficulty) and '' (camera) for what they do not state."""
    labels = moment.labels
    boxes = np.array([label.box if label.synced_box is None else label.synced_box for label in labels]).reshape(-1, 7)
    rotation = moment.global_from_ego[:3, :3] @ rotation_z(boxes[:, 6])
    kinds = [TYPES.get(label.kind, TYPES[0]) for label in labels]
    return Annotations(
        names=classes_of(kinds, classes),
        centre_global_m=transform_points(moment.global_from_ego, boxes[:, :3]),
        rotation_global=rotation.reshape(-1, 3, 3),
        size_lwh_m=boxes[:, 3:6],
        velocity_global_mps=np.array([label.velocity_global_mps for label in labels], np.float64).reshape(-1, 2),
        attributes=[""] * len(labels),
        num_lidar_points=np.array([-1 if label.points is None else label.points for label in labels], np.int64),
        num_radar_points=np.zeros(len(labels), np.int64),
        tokens=[label.id for label in labels],  # the same text in all frames of a track, for there are many
        instance_tokens=[label.id for label in labels],
        categories=kinds,
        difficulty=np.array([label.level for label in labels], np.int64),
        num_top_lidar_points=np.array([-1 if n is None else n for n in (x.top_points for x in labels)], np.int64),
        most_visible_cameras=["" if label.synced_box is None else label.camera for label in labels],
    )


def _rows(notes: Annotations, rows: NDArray[np.intp]) -> Annotations:
    """Some of the objects."""
    own: dict[str, Any] = {}
    for name, values in vars(notes).items():
        own[name] = [values[i] for i in rows] if isinstance(values, list) else None if values is None else values[rows]
    return Annotations(**own)
