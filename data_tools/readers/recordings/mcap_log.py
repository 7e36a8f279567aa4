"""A car's ROS 2 recording in MCAP files, without ROS: images, calibration, frames (tf) and odometry to Frames.

    recording.mcap, or a folder: of one split recording with its metadata.yaml, or of several recordings

One image of the reference camera makes a keyframe; of every other camera the image nearest to it in time belongs to
it, with the car's pose at that image's own time. Times are the messages' header stamps. Labels are not part of a
recording: they may lie beside it in a JSON or CSV file (box_files.py).

Images stay in the recording and are read from there one by one (mcap_file.py), so copying them out is not needed.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....core.cameras import front_camera
from ....core.decode import DECODER_ERRORS
from ....core.errors import ConfigError, DataError
from ....core.files import file_name
from ....core.frames import CameraView, Frame
from ....geometry import CameraModel, invert_pose, pose
from ..box_files import label_frames
from ..camera_images import AHEAD
from ..cameras import camera_order
from ..registry import Conventions, register_reader
from .mcap_file import IMAGE, Picture, Recording
from .ros_cameras import camera_of, is_rectified_topic, raw_from_rectified
from .ros_poses import FrameTree, Track

logger = logging.getLogger("drivestack")

_VIDEO = ("h264", "h265", "hevc", "av1", "vp9", "compresseddepth", "rvl")
_PLAIN_PARTS = re.compile(
    r"compressed|image(_raw|_rect|_color|_mono|_rect_color|_rect_mono|_compressed)*|raw|camera_info"
)
_GAP = 1.5  # times the usual time between two images of the reference camera


@register_reader(
    "mcap",
    "a car's own ROS 2 recording in MCAP files: CompressedImage, CameraInfo, tf and odometry, without ROS",
    Conventions(
        boxes="none in a recording; beside it: middle, (l, w, h), yaw, global or EGO (option boxes_in)",
        quaternions="x, y, z, w in messages, read by name",
        time="header stamps, nanoseconds, cut to microseconds",
        cameras="any number and names; plumb_bob, rational_polynomial, thin_prism, equidistant (fisheye), rectified",
        frames="EGO is the base frame, lowered to the ground by ground_height_m; global is the odometry's frame",
    ),
)
def read_mcap(
    root: str | Path,
    topics: Mapping | Sequence | None = None,
    info_topics: Mapping | None = None,
    base_frame: str = "base_link",
    fixed_frame: str = "",
    odometry: str = "",
    reference: str = "",
    rate_hz: float = 0.0,
    max_offset_s: float = 0.0,
    max_pose_gap_s: float = 0.1,
    ground_height_m: float = 0.0,
    body_cameras: Sequence | str = (),
    rectified: Sequence | str | None = None,
    boxes: str = "",
    boxes_in: str = "global",
) -> list[Frame]:
    """Frames of all keyframes; what was left out is counted in one line.

    topics: image topics, or camera names -> image topics; default: all that have a CameraInfo beside them.
    info_topics: camera -> topic of its CameraInfo, where it is not ``camera_info`` beside the images.
    base_frame: the car's frame, x ahead, y left, z up; ground_height_m: of its origin above the ground. fixed_frame: of
    the car's poses; default: the odometry's, else odom or map of tf. odometry: topic, where there are several; "none"
    takes tf. reference: the camera whose images are keyframes; default: the one that looks ahead. rate_hz: keyframes
    per second, 0: every image. max_offset_s: between an image and its keyframe, 0: half the time between keyframes'
    images. max_pose_gap_s: from an image to the nearest sample of the odometry. body_cameras: cameras whose frame is
    the body's (x ahead) instead of the optical one (z ahead), or "all". rectified: cameras whose images are
    undistorted, or "all"; default: those whose topic says so (image_rect). boxes: file of labels, see box_files.py.

    Raises DataError naming file, topic, frame or camera for what cannot be used, ConfigError for options that do not
    fit the recording, or without the package mcap.
    """
    if not (rate_hz >= 0 and max_offset_s >= 0 and max_pose_gap_s > 0):
        raise ConfigError(f"rate_hz {rate_hz}, max_offset_s {max_offset_s}, max_pose_gap_s {max_pose_gap_s}: too small")
    frames: list[Frame] = []
    for scene, files in _drives(Path(root)).items():
        recording = Recording()
        for file in files:
            recording.add(file)
        drive = _Drive(scene, files[0] if len(files) == 1 else files[0].parent, recording, max_pose_gap_s)
        drive.find_motion(base_frame, fixed_frame, odometry, ground_height_m)
        drive.find_cameras(topics, info_topics or {}, body_cameras, rectified)
        frames += drive.frames(reference, rate_hz, max_offset_s)
    return label_frames(frames, boxes, boxes_in) if boxes else frames


def _drives(root: Path) -> dict[str, list[Path]]:
    """Scene -> its files."""
    if not root.is_dir():
        return {file_name(root.stem, f"{root}: the name"): [root]}
    files = sorted(
        root.glob("*.mcap"), key=lambda path: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", path.stem)]
    )
    if not files:
        others = sorted(path.name for ending in ("*.db3", "*.bag", "*.mcap.zstd") for path in root.glob(ending))
        found = f", but {others[0]}: convert it (`ros2 bag convert`, ROS 1: rosbags-convert)" if others else ""
        raise DataError(f"{root}: no .mcap file in it{found}; name a recording or its folder")
    if (root / "metadata.yaml").is_file():
        return {file_name(root.resolve().name, f"{root}: the name"): files}
    return {file_name(path.stem, f"{path}: the name"): [path] for path in files}


@dataclass(frozen=True)
class _Camera:
    """One camera of a drive."""

    name: str
    topic: str
    frame_id: str
    pictures: list[Picture]
    stamps_ns: NDArray[np.int64]
    since_ns: NDArray[np.int64]
    """From when each calibration holds."""
    models: list[CameraModel]
    frame_from_optical: NDArray[np.float64]
    """[4, 4]: from the axes x right, y down, z ahead of the images, perhaps rectified, to the frame that they name."""

    def model_at(self, stamp_ns: int) -> CameraModel:
        return self.models[max(0, int(np.searchsorted(self.since_ns, stamp_ns, side="right")) - 1)]


class _Drive:
    """One recording on its way to Frames."""

    def __init__(self, scene: str, path: Path, recording: Recording, max_pose_gap_s: float) -> None:
        self.scene, self.path, self.recording, self.max_gap_s = scene, path, recording, max_pose_gap_s
        self.tree = FrameTree(recording.transforms, str(path))
        self.track: Track | None = None

    # ------------------------------------------------------------------------------------------------- the car's pose

    def find_motion(self, base_frame: str, fixed_frame: str, odometry: str, ground_height_m: float) -> None:
        """Where the car's poses come from: a topic of odometry, or tf."""
        self.base, self.base_from_ego = base_frame, pose(np.eye(3), [0.0, 0.0, -float(ground_height_m)])
        found = self.recording.odometry
        if odometry not in ("", "none") and odometry not in found:
            raise ConfigError(f"{self.path}: no odometry {odometry}; there is {', '.join(found) or 'none'}")
        if not odometry and len(found) > 1 and not fixed_frame:
            raise ConfigError(f"{self.path}: several topics of odometry, {', '.join(found)}: choose one (odometry), or "
                              "none for tf")  # fmt: skip
        topic = odometry or next(iter(found), "none")
        if not odometry and fixed_frame:  # the one that is in it, else tf
            topic = next((t for t, rows in found.items() if rows[0].parent == fixed_frame), "none")
        if topic != "none":
            rows = found[topic]
            if len({(row.parent, row.child) for row in rows}) > 1:
                raise DataError(f"{self.path}: {topic} changes its frames on the way; record it again")
            if fixed_frame and rows[0].parent != fixed_frame:
                raise ConfigError(f"{self.path}: {topic} is in {rows[0].parent}, not in fixed_frame {fixed_frame}")
            self.fixed, self.moving = rows[0].parent, rows[0].child or base_frame
            self.track = Track(rows, f"{self.path}, {topic}")
            return
        known = self.tree.frames
        self.fixed = fixed_frame or next((name for name in ("odom", "map", "world") if name in known), "")
        if not self.fixed:
            raise DataError(
                f"{self.path}: no odometry, and no odom or map among the frames of tf ({', '.join(known) or 'none'}): "
                "name fixed_frame, or record the car's poses"
            )

    def global_from_ego(self, stamp_ns: int) -> NDArray[np.float64] | None:
        """[4, 4] at a time, None where it is not known."""
        if self.track is None:
            fixed_from_base = self.tree.pose(self.fixed, self.base, stamp_ns, self.max_gap_s)
            return None if fixed_from_base is None else fixed_from_base @ self.base_from_ego
        moving_from_base = self.tree.pose(self.moving, self.base, stamp_ns, self.max_gap_s)
        fixed_from_moving = self.track.at(stamp_ns, self.max_gap_s)
        if moving_from_base is None or fixed_from_moving is None:
            return None
        return fixed_from_moving @ moving_from_base @ self.base_from_ego

    # ------------------------------------------------------------------------------------------------------- cameras

    def find_cameras(
        self,
        topics: Mapping | Sequence | None,
        info_topics: Mapping,
        body_cameras: Sequence | str,
        rectified: Sequence | str | None,
    ) -> None:
        names = self._named_topics(topics)
        bodies, flats = _chosen(body_cameras, names), _chosen(rectified or (), names)
        for option, chosen in (("info_topics", info_topics), ("body_cameras", bodies), ("rectified", flats)):
            if strange := [name for name in chosen if name not in names]:
                raise ConfigError(f"{option}: no camera {strange[0]!r}; there are {', '.join(names)}")
        self.cameras: dict[str, _Camera] = {}
        for name in camera_order(names):
            topic = names[name]
            info_topic = info_topics.get(name) or _info_topic(topic)
            infos = sorted(self.recording.infos.get(info_topic, []), key=lambda row: row[0])
            if not infos:
                known = ", ".join(self.recording.infos) or "none"
                raise DataError(f"{self.path}: camera {name}: no CameraInfo on {info_topic}; there is {known}: name it "
                                "(info_topics)")  # fmt: skip
            flat = is_rectified_topic(topic) if rectified is None else name in flats
            where = f"{self.path}, {info_topic}"
            pictures = sorted(self.recording.pictures[topic], key=lambda picture: picture.stamp_ns)
            turn = pose(AHEAD, np.zeros(3)) if name in bodies else np.eye(4)
            if flat:
                turn = turn @ raw_from_rectified(infos[0][1])
            self.cameras[name] = camera = _Camera(
                name,
                topic,
                pictures[0].frame_id.lstrip("/") or infos[0][1].header.frame_id.lstrip("/"),
                pictures,
                np.array([picture.stamp_ns for picture in pictures], np.int64),
                np.array([stamp for stamp, _ in infos], np.int64),
                [camera_of(info, flat, where) for _, info in infos],
                turn,
            )
            if len(infos) > 1:
                logger.info("%s: camera %s: %d calibrations, each used from its time on", self.path, name, len(infos))
            self._check(camera)

    def _named_topics(self, topics: Mapping | Sequence | None) -> dict[str, str]:
        """Camera -> image topic."""
        there = self.recording.pictures
        if not there:
            seen = ", ".join(f"{topic} ({kind})" for topic, kind in list(self.recording.others.items())[:10]) or "none"
            raise DataError(f"{self.path}: no topic of {IMAGE}; other topics: {seen}")
        if isinstance(topics, str):
            topics = [topics]
        if isinstance(topics, Mapping):
            chosen = {str(name): str(topic) for name, topic in topics.items()}
        else:
            listed = topics or [t for t in there if _info_topic(t) in self.recording.infos] or list(there)
            chosen = _names_of([str(topic) for topic in listed])
        if strange := [topic for topic in chosen.values() if topic not in there]:
            raise ConfigError(f"{self.path}: no images on {strange[0]}; there are {', '.join(there)}")
        left = [topic for topic in there if topic not in chosen.values()]
        if left and topics is None:
            logger.warning("%s: images without a camera_info beside them are left out: %s", self.path, ", ".join(left))
        return chosen

    def _check(self, camera: _Camera) -> None:
        """What the first image shows: format, size, axes of its frame."""
        first = camera.pictures[0]
        where = f"{self.path}, {camera.topic}"
        if any(word in first.format.lower() for word in _VIDEO):
            raise DataError(f"{where}: format {first.format!r} is no single image; record JPEG or PNG, or convert it")
        if camera.stamps_ns[0] <= 0:
            raise DataError(f"{where}: a header stamp is {camera.stamps_ns[0]} ns; let the driver set header.stamp")
        model = camera.models[0]
        try:
            with Image.open(io.BytesIO(first.image.read())) as picture:
                size = picture.size
        except DECODER_ERRORS as error:
            raise DataError(f"{first.image.source}: not a readable image ({error}); record JPEG or PNG") from None
        if size != (model.width_px, model.height_px):
            raise DataError(
                f"{where}: images are {size[0]} x {size[1]} pixels, their CameraInfo says {model.width_px} x "
                f"{model.height_px}: a resizer stands between; name the CameraInfo of the resized images (info_topics)"
            )
        mounted = self.ego_from_camera(camera, int(camera.stamps_ns[0]))
        if mounted is not None and mounted[2, 2] > 0.7:
            raise DataError(
                f"{where}: camera {camera.name} would look at the sky: its frame {camera.frame_id} has x ahead, as a "
                f"body has; name the camera in body_cameras, or use its optical frame"
            )

    def ego_from_camera(self, camera: _Camera, stamp_ns: int) -> NDArray[np.float64] | None:
        """[4, 4], None where a moving mount is not known at that time."""
        base_from_frame = self.tree.pose(self.base, camera.frame_id, stamp_ns, self.max_gap_s)
        if base_from_frame is None:
            return None
        return invert_pose(self.base_from_ego) @ base_from_frame @ camera.frame_from_optical

    # -------------------------------------------------------------------------------------------------------- frames

    def frames(self, reference: str, rate_hz: float, max_offset_s: float) -> list[Frame]:
        if reference and reference not in self.cameras:
            raise ConfigError(f"reference: no camera {reference!r}; there are {', '.join(self.cameras)}")
        first = {n: self.ego_from_camera(c, int(c.stamps_ns[0])) for n, c in self.cameras.items()}
        axes = {name: mounted[:3, 2] for name, mounted in first.items() if mounted is not None}
        leader = self.cameras[reference or front_camera(axes) or next(iter(self.cameras))]
        stamps = leader.stamps_ns
        period_s = float(np.median(np.diff(stamps))) / 1e9 if len(stamps) > 1 else 0.1
        chosen = _at_rate(stamps, rate_hz, period_s)
        offset_ns = round((max_offset_s or period_s / 2) * 1e9)
        drive = f"{self.scene}-{int(stamps[0]) // 1000}"  # recordings of one name in several folders are several drives
        out: list[Frame] = []
        lost: dict[str, int] = {}
        without_pose = 0
        for stamp in chosen.tolist():
            here = self.global_from_ego(stamp)
            if here is None:
                without_pose += 1
                continue
            views = []
            for camera in self.cameras.values():
                view = self._view(camera, stamp, offset_ns)
                if view is None:
                    lost[camera.name] = lost.get(camera.name, 0) + 1
                else:
                    views.append(view)
            if not views:
                without_pose += 1
                continue
            token = f"{self.scene}-{stamp // 1000}"
            out.append(Frame(token, drive, self.scene, stamp // 1000, tuple(views), here))
        self._report(len(chosen), without_pose, lost, np.diff(stamps) / 1e9, period_s, leader.name)
        if not out:
            raise DataError(
                f"{self.path}: at none of {len(chosen)} images of {leader.name} is the car's pose known (in "
                f"{self.fixed}, at most max_pose_gap_s {self.max_gap_s:g} s away); both must share one clock"
            )
        return out

    def _view(self, camera: _Camera, stamp_ns: int, offset_ns: int) -> CameraView | None:
        """The camera's image nearest to a time; None where that is too far, or the car's pose is not known then."""
        i = int(np.searchsorted(camera.stamps_ns, stamp_ns))
        near = min(
            (j for j in (i - 1, i) if 0 <= j < len(camera.stamps_ns)),
            key=lambda j: abs(int(camera.stamps_ns[j]) - stamp_ns),
        )
        picture = camera.pictures[near]
        if abs(picture.stamp_ns - stamp_ns) > offset_ns:
            return None
        mounted, car = self.ego_from_camera(camera, picture.stamp_ns), self.global_from_ego(picture.stamp_ns)
        if mounted is None or car is None:
            return None
        model = camera.model_at(picture.stamp_ns)
        return CameraView(camera.name, model, mounted, car, picture.stamp_ns // 1000, encoded=picture.image)

    def _report(
        self,
        count: int,
        without_pose: int,
        lost: Mapping[str, int],
        gaps_s: NDArray[np.float64],
        period_s: float,
        leader: str,
    ) -> None:
        """One line about what is missing, nothing where all is there."""
        parts = []
        if without_pose:
            parts.append(f"{without_pose} of {count} keyframes are left out, for the car's pose is not known then")
        long = gaps_s[gaps_s > _GAP * period_s]
        if len(long):
            parts.append(f"{len(long)} gaps in the images of {leader}, the longest {long.max():.3g} s")
        parts += [f"{name} lacks an image in {n} keyframes" for name, n in lost.items()]
        if parts:
            logger.warning("%s: %s", self.path, "; ".join(parts))


def _at_rate(stamps_ns: NDArray[np.int64], rate_hz: float, period_s: float) -> NDArray[np.int64]:
    """The images at about so many per second."""
    if not rate_hz:
        return stamps_ns
    step_ns = 1e9 / rate_hz
    kept: list[int] = []
    due = -np.inf
    for stamp in stamps_ns.tolist():
        if stamp >= due - 0.5e9 * period_s:
            due = stamp + step_ns if not kept or stamp - due > step_ns else due + step_ns
            kept.append(stamp)
    return np.array(kept, np.int64)


def _chosen(option: Sequence | str, names: Mapping[str, str]) -> set[str]:
    """The cameras that an option names: one, several, or "all"."""
    if isinstance(option, str):
        return set(names) if option == "all" else {option}
    return {str(name) for name in option}


def _info_topic(topic: str) -> str:
    """The CameraInfo that belongs to images: ``camera_info`` beside ``image_raw``."""
    parts = topic.split("/")
    while len(parts) > 1 and _PLAIN_PARTS.fullmatch(parts[-1]):
        parts.pop()
    return "/".join([*parts, "camera_info"])


def _names_of(topics: Sequence[str]) -> dict[str, str]:
    """A name for the camera of each image topic: what is its own in the topic's name."""
    paths = []
    for topic in topics:
        parts = [part for part in topic.split("/") if part]
        while len(parts) > 1 and _PLAIN_PARTS.fullmatch(parts[-1]):
            parts.pop()
        paths.append(parts)
    while len(paths) > 1 and all(len(parts) > 1 for parts in paths) and len({parts[0] for parts in paths}) == 1:
        paths = [parts[1:] for parts in paths]
    if len(paths) == 1:
        paths = [paths[0][-1:]]
    names = ["_".join(parts) for parts in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"topics: two of {', '.join(topics)} would both be camera {twice[0]}: give names (topics)")
    return dict(zip(names, topics))
