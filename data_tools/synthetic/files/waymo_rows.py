"""Frames of any data set as the Waymo Open Dataset states them: names, axes, pixels, labels.

Waymo's files hold less than frames may: eight camera names, four classes, five Brown-Conrady coefficients, boxes that
turn about the vehicle's z axis alone. What does not fit is refused, or counted and reported.

Shapes: n boxes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....core.errors import ConfigError, DataError
from ....core.frames import Annotations, CameraView, Frame
from ....core.once import warn_once
from ....geometry import invert_pose, rotation_z, transform_points
from ...clips.images import load_image
from ...readers.waymo.parts import CAMERAS, DIRECTIONS, EDGE_FROM_MIDDLE_PX, TYPES, WAYMO_FROM_OPTICAL, Label

CLASSES: Mapping[str, str] = {
    **{name: name for name in ("vehicle", "pedestrian", "sign", "cyclist")},
    **dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle", "motorcycle"), "vehicle"),
    "bicycle": "cyclist",
    "traffic_sign": "sign",
}
"""Own class -> Waymo's. Waymo labels no bicycle without a rider, and no cones and barriers."""
CAMERA_NUMBER = {name: number for number, name in CAMERAS.items()}
TYPE_NUMBER = {name: number for number, name in TYPES.items()}
_DIRECTION_NUMBER = {name: number for number, name in DIRECTIONS.items()}
_CONTEXT_NAME = re.compile(r"\d{16,20}_\d+_\d{3}_\d+_\d{3}")
_LENS_NUMBERS = 5
_JPEG_QUALITY = 95
_GRID = np.stack(np.meshgrid(*[[-0.5, 0.0, 0.5]] * 3, indexing="ij"), -1).reshape(-1, 3)  # [27, 3] of a unit box


def camera_number(name: str, names: Mapping[str, str] | None = None) -> int:
    """Waymo's number of a camera: by ``names`` (own -> Waymo's), else of CAM_BACK_LEFT, ring_front_center and the like.

    Raises ConfigError for a camera that has none.
    """
    short = re.sub(r"^(CAM|CAMERA|RING)_|_(CENTER|CENTRE|CAMERA)$", "", name.upper())
    wanted = names[name] if names and name in names else re.sub(r"^BACK", "REAR", short)
    if wanted not in CAMERA_NUMBER:
        raise ConfigError(
            f"camera {name!r}: Waymo's files have no name for it; give cameras={{{name!r}: ...}} with one of "
            f"{', '.join(CAMERA_NUMBER)}"
        )
    return CAMERA_NUMBER[wanted]


def segments(frames: Iterable[Frame]) -> Iterator[tuple[str, list[Frame]]]:
    """Context name and frames in their order in time, of each scene.

    Raises DataError, before the first, where some frames have annotations and others none: Waymo's files know splits
    with labels, in which a frame without has no objects, and splits without.
    """
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scenes.setdefault(frame.scene_token or frame.scene_name or frame.token, []).append(frame)
    bare = [frame.token for members in scenes.values() for frame in members if frame.annotations is None]
    if 0 < len(bare) < sum(map(len, scenes.values())):
        raise DataError(
            f"sample {bare[0]}: has no annotations ({len(bare)} frames have none), others have, and Waymo's files "
            "cannot tell that from having no objects; write them to two folders"
        )
    names: dict[str, str] = {}
    for scene, members in scenes.items():
        ordered = sorted(members, key=lambda frame: frame.timestamp_us)
        times = [frame.timestamp_us for frame in ordered]
        if len(set(times)) < len(times):
            raise DataError(f"scene {scene}: two frames have one time, by which Waymo's files know them; correct it")
        name = context_name(members[0].scene_name or scene, times[-1] - times[0])
        if names.setdefault(name, scene) != scene:
            raise DataError(f"scenes {names[name]} and {scene}: both have the name {members[0].scene_name}; rename one")
        yield name, ordered


def context_name(scene: str, duration_us: int) -> str:
    """A name in Waymo's form, of the scene's; one that has that form stays."""
    if _CONTEXT_NAME.fullmatch(scene):
        return scene
    digest = int(hashlib.sha1(scene.encode(), usedforsecurity=False).hexdigest(), 16)
    return f"{10**18 + digest % (9 * 10**18)}_0_000_{duration_us // 10**6}_{duration_us // 1000 % 1000:03d}"


@dataclass(frozen=True)
class CameraNumbers:
    """A calibration as Waymo's files hold it."""

    number: int
    intrinsic: tuple[float, ...]
    """f_u f_v c_u c_v k1 k2 p1 p2 k3, pixels counted from the edge of the first."""
    extrinsic: tuple[float, ...]
    """16, vehicle from a camera with x ahead, y left, z up."""
    size_px: tuple[int, int]
    direction: int


def camera_numbers(view: CameraView, number: int) -> CameraNumbers:
    """Raises DataError for a lens, or a matrix, that Waymo's files cannot hold."""
    k, lens = view.camera.intrinsics, view.camera.lens
    where = f"camera {view.name} ({view.source})"
    if abs(k[0, 1]) > 1e-9 or abs(k[1, 0]) > 1e-9:
        raise DataError(f"{where}: its pixels are skewed, which Waymo's files cannot say; resample the images")
    coefficients: Sequence[float] = (0.0,) * _LENS_NUMBERS
    if lens is not None:
        if lens.kind != "brown_conrady" or any(lens.coefficients[_LENS_NUMBERS:]):
            raise DataError(
                f"{where}: lens {lens.kind} {list(lens.coefficients)}: Waymo's files hold Brown-Conrady k1 k2 p1 p2 k3 "
                "alone; undistort the images"
            )
        coefficients = lens.coefficients[:_LENS_NUMBERS]
    centre = k[:2, 2] + EDGE_FROM_MIDDLE_PX
    extrinsic = view.ego_from_camera @ invert_pose(WAYMO_FROM_OPTICAL)
    direction = "global" if view.rolling_shutter is None else view.rolling_shutter.direction
    return CameraNumbers(
        number=number,
        intrinsic=(float(k[0, 0]), float(k[1, 1]), float(centre[0]), float(centre[1]), *map(float, coefficients)),
        extrinsic=tuple(extrinsic.ravel().tolist()),
        size_px=view.image_size_px,
        direction=_DIRECTION_NUMBER.get(direction, 0),
    )


def rig_numbers(frames: Sequence[Frame], names: Mapping[str, str] | None) -> dict[str, CameraNumbers]:
    """Calibrations of a segment by the cameras' own names. Raises DataError where one changes within it."""
    rig: dict[str, CameraNumbers] = {}
    for frame in frames:
        for view in frame.cameras:
            found = camera_numbers(view, camera_number(view.name, names))
            if rig.setdefault(view.name, found) != found:
                raise DataError(
                    f"sample {frame.token}, camera {view.name}: its calibration changes within the scene, but Waymo's "
                    "files state one for each segment; write two scenes"
                )
    if len({camera.number for camera in rig.values()}) < len(rig):
        raise ConfigError(f"cameras {', '.join(rig)}: two have one name of Waymo's; name them apart (cameras=...)")
    return rig


def jpeg(view: CameraView, token: str) -> bytes:
    """The image as JPEG: its own bytes where it is one, else encoded. Raises DataError as ``load_image`` does."""
    if view.image is None and (view.encoded is not None or view.image_path):
        try:
            data = Path(view.image_path).read_bytes() if view.encoded is None else view.encoded.read()
        except OSError:
            data = b""  # load_image names what is wrong
        if data.startswith(b"\xff\xd8"):
            return data
    file = io.BytesIO()
    Image.fromarray(load_image(view, token)[:, :, ::-1]).save(file, "jpeg", quality=_JPEG_QUALITY)
    return file.getvalue()


@dataclass
class LabelWriter:
    """Annotations to Waymo's labels; ``report`` tells what was left out."""

    classes: Mapping[str, str]
    cameras: Mapping[str, str] | None
    left_out: Counter[str] = field(default_factory=Counter)

    def labels(self, frame: Frame) -> list[Label]:
        """Boxes in the vehicle's frame of the frame's pose.

        camera_synced_box: the box moved, by its velocity, to the time of the camera that sees most of it; as it is
        where the annotations say that they are synced already (``most_visible_cameras``).
        """
        notes = frame.annotations
        if notes is None:
            return []
        boxes = notes.boxes_in(invert_pose(frame.global_from_ego))[:, :7]
        seen_by, synced = self._synced(frame, notes, boxes)
        out = []
        for i, name in enumerate(notes.names):
            kind = self.classes.get(name) or self.classes.get(notes.categories[i] if notes.categories else "")
            if kind is None:
                self.left_out[name or "objects without class"] += 1
                continue
            top = -1 if notes.num_top_lidar_points is None else int(notes.num_top_lidar_points[i])
            points = int(notes.num_lidar_points[i])
            velocity = notes.velocity_global_mps[i]
            out.append(
                Label(
                    id=notes.instance_tokens[i] or notes.tokens[i] or f"{frame.token}-{i}",
                    kind=TYPE_NUMBER[kind],
                    box=boxes[i],
                    synced_box=synced[i] if seen_by[i] else None,
                    camera=CAMERAS[camera_number(seen_by[i], self.cameras)] if seen_by[i] else "",
                    velocity_global_mps=(float(velocity[0]), float(velocity[1])),
                    points=points,
                    top_points=None if top < 0 else top,
                    level=0 if notes.difficulty is None else int(notes.difficulty[i]),
                )
            )
        if len({label.id for label in out}) < len(out):
            raise DataError(f"sample {frame.token}: two objects of one track; give each instance token once in a frame")
        return out

    def _synced(
        self, frame: Frame, notes: Annotations, boxes: NDArray[np.float64]
    ) -> tuple[list[str], NDArray[np.float64]]:
        """The camera that sees each box best, '' for none, and the boxes [n, 7] at its time."""
        if notes.most_visible_cameras is not None:
            return notes.most_visible_cameras, boxes
        global_from_ego, synced = frame.global_from_ego, boxes.copy()
        velocity = np.nan_to_num(notes.velocity_global_mps)  # [n, 2]
        centre, counts = [], []
        for view in frame.cameras:
            moved = notes.centre_global_m.copy()
            moved[:, :2] += velocity * (view.timestamp_us - frame.timestamp_us) * 1e-6
            centre.append(transform_points(invert_pose(global_from_ego), moved))
            at_time = np.concatenate([centre[-1], boxes[:, 3:7]], 1)
            counts.append(points_in_image(at_time, view, global_from_ego))
        best = np.argmax(counts, 0) if len(boxes) else np.zeros(0, int)
        for i, camera in enumerate(best):
            synced[i, :3] = centre[camera][i]
        names = [frame.cameras[camera].name if counts[camera][i] else "" for i, camera in enumerate(best)]
        return names, synced

    def report(self) -> None:
        """One warning for all classes that have no type in Waymo's files."""
        if self.left_out:
            listed = ", ".join(f"{count} {name}" for name, count in self.left_out.most_common(8))
            warn_once(f"Waymo has no type for these objects, which are left out: {listed}")


def points_in_image(
    boxes: NDArray[np.float64], view: CameraView, global_from_ego: NDArray[np.float64]
) -> NDArray[np.int64]:
    """[n] how many of 27 points within each box [n, 7], in the frame of global_from_ego, lie in a view's image."""
    if not len(boxes):
        return np.zeros(0, np.int64)
    points = np.einsum("nij,nkj->nki", rotation_z(boxes[:, 6]), _GRID * boxes[:, None, 3:6]) + boxes[:, None, :3]
    camera_from_ego = invert_pose(view.global_from_camera) @ global_from_ego
    uv, _ = view.camera.project(transform_points(camera_from_ego, points.reshape(-1, 3)))
    width, height = view.image_size_px
    with np.errstate(invalid="ignore"):
        inside = (uv >= 0).all(1) & (uv[:, 0] < width) & (uv[:, 1] < height)
    return inside.reshape(len(boxes), -1).sum(1)
