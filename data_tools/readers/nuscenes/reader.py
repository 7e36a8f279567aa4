"""nuScenes tables (and data written in their schema) to Frames.

Poses and velocities follow nuScenes' own definitions (a test compares them with nuscenes-devkit); frames and units:
geometry/README.md. No image is opened here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....core.cameras import front_by_name
from ....core.errors import DataError
from ....core.frames import Annotations, CameraView, Frame
from ....core.once import warn_once
from ....geometry import CameraModel, quaternion_to_matrix
from ...labels.depth import depth_file
from ...labels.files import lanes_file, occupancy_file, read_lanes
from ...labels.street_maps import read_street_map, street_map_file
from ..cameras import camera_order
from ..checks import INT64, check_frames
from ..file_paths import path_below
from ..lenses import LensNotes, LensUse
from ..registry import Conventions, register_reader
from .tables import (
    CalibratedSensor,
    EgoPose,
    Keyframe,
    SampleAnnotation,
    SampleData,
    Scene,
    SceneTables,
    joining,
    read_tables,
)

LIDARS = ("LIDAR_TOP", "LIDAR_CONCAT")
"""Channels whose keyframes give time, pose and BEV frame: nuScenes', and that of T4 sets."""
_CALIBRATION_FIELDS = ("token", "sensor_token", "translation", "rotation", "camera_intrinsic")

DETECTION_CLASS: Mapping[str, str] = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""Category -> class of the detection task. https://www.nuscenes.org/object-detection."""
WITHOUT_CLASS = frozenset((
    "animal", "human.pedestrian.personal_mobility", "human.pedestrian.stroller", "human.pedestrian.wheelchair",
    "movable_object.debris", "movable_object.pushable_pullable", "static_object.bicycle_rack",
    "vehicle.emergency.ambulance", "vehicle.emergency.police",
))  # fmt: skip
"""nuScenes' other categories."""

MAX_VELOCITY_GAP_S = 1.5
"""nuScenes states no velocity across a longer gap (twice that for a centred difference)."""


@register_reader(
    "nuscenes",
    "nuScenes v1.0 tables, and sets in their schema",
    Conventions(
        boxes="gravity centre, w l h, quaternion, in the global frame",
        quaternions="w x y z",
        time="microseconds",
        cameras="in the order of published models, others alphabetically after them; pinholes, or with the lens that "
        "camera_distortion states (OpenCV's order, images distorted, as in T4 sets; another model in camera_model); "
        "sizes from sample_data",
        frames="EGO: x ahead, y left, z up; BEV maps lie in the LIDAR_TOP frame, as released weights were trained; "
        "in a set without it in that of its other LiDAR, and without any in the EGO frame",
    ),
)
def read_nuscenes(dataroot: str | Path, version: str, split: str, lens: LensUse = "used") -> list[Frame]:
    """All keyframes of a split, sorted by scene name and time.

    dataroot: folder with ``samples/`` and the version's folder of tables, e.g. ``v1.0-trainval``; split: an official
    one (train, val, test, mini_train, mini_val, train_detect, train_track) or one of the version's own ``splits.json``
    (split -> scene names); scenes of it that the tables lack are left out. Frames of a set without labels have
    ``annotations`` None. Labels of voxels, lanes and depth that lie beside the tables (data_tools/labels) are found by
    themselves.

    Samples are those of a scene's scene_token in the order of time; a chain (next, prev, first_sample_token) that says
    something else is warned of, and so are lenses that cannot be used, and categories without a class. lens: "ignored"
    takes cameras as pinholes whatever their calibration states.

    Raises DataError naming the path and the fix for a wrong root, a missing version or table, broken JSON, a split
    without scenes, unusable calibration, or what ``check_frames`` refuses.
    """
    tables = read_tables(dataroot, version, split)
    with joining(Path(dataroot) / version):
        frames = FrameJoiner(tables, Path(dataroot), Path(dataroot) / version, lens).frames()
    check_frames(frames)
    return frames


def _poses(records: Sequence[CalibratedSensor | EgoPose | SampleAnnotation]) -> NDArray[np.float64]:
    """Poses [k, 4, 4] of rows with a rotation (wxyz) and a translation; NaN where the rotation is unusable."""
    out = np.tile(np.eye(4), (len(records), 1, 1))
    quaternions = np.array([r.rotation for r in records], dtype=np.float64)
    length = np.linalg.norm(quaternions, axis=1)
    usable = np.isfinite(length) & (length > 1e-6)
    out[usable, :3, :3] = quaternion_to_matrix(quaternions[usable])
    out[~usable, :3, :3] = np.nan  # check_frames reports it with the sample and the camera
    out[:, :3, 3] = [r.translation for r in records]
    return out


class FrameJoiner:
    """Makes Frames of the rows of some scenes.

    ``samples_of``, ``has_image``, ``model``, ``ego_from_lidar``, ``class_names`` and ``velocity`` are nuScenes' own;
    sets in its schema may differ.
    """

    def __init__(self, tables: SceneTables, root: Path, place: Path, lens: LensUse = "used") -> None:
        self.tables, self.root, self.place = tables, root, place
        self.cameras: dict[tuple[str, int, int], CameraModel] = {}
        self.lenses = LensNotes(str(place / "calibrated_sensor.json"), lens)
        self.reference = self._reference_channel()

    def _reference_channel(self) -> str:
        """The channel that gives time and pose of a keyframe: LIDAR_TOP, another LiDAR, or else the front camera."""
        modality = {sensor.channel: sensor.modality for sensor in self.tables.sensors.values()}
        used = dict.fromkeys(channel for keyframe in self.tables.keyframes.values() for channel in keyframe.data)
        lidars = [channel for channel in used if modality[channel] == "lidar"]
        if found := [channel for channel in LIDARS if channel in used] or sorted(lidars):
            return found[0]
        cameras = camera_order(channel for channel in used if modality[channel] == "camera")
        if not cameras:
            raise DataError(
                f"{self.place / 'sample_data.json'}: no keyframe (is_key_frame) of a camera or LiDAR of this split; "
                "extract the metadata archive again"
            )
        front = front_by_name(cameras) or cameras[0]
        warn_once(
            f"{self.place}: no LiDAR keyframes; pose and time of a sample are those of {front}, BEV maps lie in "
            "the EGO frame"
        )
        return front

    def frames(self) -> list[Frame]:
        out: list[Frame] = []
        members: dict[str, list[Keyframe]] = {scene.token: [] for scene in self.tables.scenes}
        for keyframe in self.tables.keyframes.values():
            members[keyframe.sample.scene_token].append(keyframe)
        for scene in self.tables.scenes:
            found = self.samples_of(members[scene.token])
            streets = street_map_file(self.root, scene.name)
            street_map = read_street_map(streets) if streets.is_file() else None
            tokens = ["", *(keyframe.sample.token for keyframe in found), ""]
            for i, keyframe in enumerate(found):
                frame = self.frame(scene, keyframe, tokens[i], tokens[i + 2])
                out.append(frame if street_map is None else replace(frame, street_map=street_map))
        self.lenses.report()
        self._report_categories(out)
        return out

    def samples_of(self, keyframes: list[Keyframe]) -> list[Keyframe]:
        """Those of a scene that become frames."""
        return keyframes

    def has_image(self, record: SampleData) -> bool:
        """Whether the image of a camera's row is one to look at; its time and pose hold in any case."""
        return True

    def _report_categories(self, frames: list[Frame]) -> None:
        """Labels none of which has a class are read, and named: nothing else would say so before the scores."""
        notes = [frame.annotations for frame in frames if frame.annotations is not None]
        if any(map(len, notes)) and not any(name for note in notes for name in note.names):
            found = sorted({category for note in notes for category in note.categories})
            warn_once(
                f"{self.place}: no label has a class of nuScenes' detection task; its categories are "
                f"{', '.join(found[:12])}{', ...' if len(found) > 12 else ''}: name them as nuScenes does ("
                "vehicle.car, human.pedestrian.adult, ...) to train and score its ten classes"
            )

    def frame(self, scene: Scene, keyframe: Keyframe, before: str, after: str) -> Frame:
        sample, records = keyframe.sample, keyframe.data
        if self.reference not in records:
            raise DataError(
                f"sample {sample.token} (scene {scene.name}): no {self.reference} keyframe in sample_data.json, "
                "which gives the time and pose of the frame; restore its record"
            )
        calibrated = {name: self.tables.calibrated_sensors[r.calibrated_sensor_token] for name, r in records.items()}
        is_camera = {name: self.tables.sensors[c.sensor_token].modality == "camera" for name, c in calibrated.items()}
        names = camera_order(name for name in records if is_camera[name] and self.has_image(records[name]))
        channels = [self.reference, *names]
        global_from_ego = _poses([self.tables.ego_poses[records[c].ego_pose_token] for c in channels])
        ego_from_sensor = _poses([calibrated[c] for c in channels])
        has_lidar = not is_camera[self.reference]
        views = tuple(
            CameraView(
                name=name,
                image_path=str(path_below(self.root, records[name].filename)),
                camera=self.camera(sample.token, name, calibrated[name], records[name]),
                ego_from_camera=ego_from_sensor[i],
                global_from_ego=global_from_ego[i],
                timestamp_us=_whole(records[name].timestamp, f"sample {sample.token}, {name}"),
                sample_data_token=records[name].token,
            )
            for i, name in enumerate(names, start=1)
        )
        occupancy = occupancy_file(self.root, scene.name, sample.token)
        lanes = lanes_file(self.root, scene.name, sample.token)
        depth = depth_file(self.root, scene.name, sample.token)
        return Frame(
            token=sample.token,
            scene_token=scene.token,
            scene_name=scene.name,
            timestamp_us=int(sample.timestamp),
            cameras=views,
            ego_from_bev=self.ego_from_lidar(ego_from_sensor[0]) if has_lidar else np.eye(4),
            global_from_ego=global_from_ego[0],
            lidar_path=str(path_below(self.root, records[self.reference].filename)) if has_lidar else "",
            annotations=self.annotations(keyframe.annotations) if self.tables.has_labels else None,
            occupancy_path=str(occupancy) if occupancy.is_file() else "",
            lanes=read_lanes(lanes) if lanes.is_file() else None,
            depth_path=str(depth) if depth.is_file() else "",
            prev_token=before,
            next_token=after,
            conditions=self.conditions(scene),
        )

    def conditions(self, scene: Scene) -> dict[str, str]:
        location = self.tables.locations.get(str(scene.log_token), "")
        return {"location": location} if location else {}

    def camera(self, sample_token: str, name: str, sensor: CalibratedSensor, record: SampleData) -> CameraModel:
        key = (sensor.token, record.width, record.height)
        if key not in self.cameras:
            try:
                camera = self.model(sensor, record)
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"sample {sample_token}, camera {name} ({self.root / record.filename}): "
                    f"unusable calibration, {error}; correct calibrated_sensor {sensor.token}"
                ) from None
            if camera.lens is None:
                camera = self.lenses.add(name, camera, sensor.fields, _CALIBRATION_FIELDS)
            self.cameras[key] = camera
        return self.cameras[key]

    def model(self, sensor: CalibratedSensor, record: SampleData) -> CameraModel:
        return CameraModel(np.array(sensor.camera_intrinsic, float), record.width, record.height)

    def ego_from_lidar(self, mounted: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pose [4, 4] of the frame of the reference LiDAR's points, which is mounted there."""
        return mounted

    def class_names(self, categories: Sequence[str]) -> list[str]:
        return [DETECTION_CLASS.get(category, "") for category in categories]

    def annotations(self, records: Sequence[SampleAnnotation]) -> Annotations:
        n = len(records)
        categories = [self.tables.category_of_instance[r.instance_token] for r in records]
        attributes = [r.attribute_tokens for r in records]  # none or one for each object
        size_wlh = np.array([r.size for r in records], dtype=np.float64).reshape(n, 3)
        return Annotations(
            names=self.class_names(categories),
            centre_global_m=np.array([r.translation for r in records], dtype=np.float64).reshape(n, 3),
            rotation_global=_poses(records)[:, :3, :3] if n else np.zeros((0, 3, 3)),
            size_lwh_m=size_wlh[:, [1, 0, 2]],
            velocity_global_mps=np.array([self.velocity(r) for r in records], dtype=np.float64).reshape(n, 2),
            attributes=[self.tables.attributes[tokens[0]] if tokens else "" for tokens in attributes],
            num_lidar_points=_counts([r.num_lidar_pts for r in records], records),
            num_radar_points=_counts([r.num_radar_pts for r in records], records),
            tokens=[r.token for r in records],
            instance_tokens=[r.instance_token for r in records],
            categories=categories,
            visibility=_levels([r.visibility_token for r in records]),
        )

    def velocity(self, record: SampleAnnotation) -> tuple[float, float]:
        """Centred (or one-sided) difference of the object's positions, NaN across a gap, as nuScenes states it."""
        if not record.prev and not record.next:
            return np.nan, np.nan
        first = self.tables.annotations[record.prev] if record.prev else record
        last = self.tables.annotations[record.next] if record.next else record
        times = [self.tables.keyframes[r.sample_token].sample.timestamp for r in (first, last)]
        elapsed_s = 1e-6 * times[1] - 1e-6 * times[0]
        if elapsed_s <= 0 or first.instance_token != last.instance_token:
            raise DataError(
                f"sample_annotation {record.token}: its prev and next are not an earlier and a later label of instance "
                f"{record.instance_token}: a circle, or another object; correct them, or leave them empty"
            )
        if elapsed_s > MAX_VELOCITY_GAP_S * (2 if record.prev and record.next else 1):
            return np.nan, np.nan
        a, b = first.translation, last.translation
        return (b[0] - a[0]) / elapsed_s, (b[1] - a[1]) / elapsed_s


def _whole(time: float, where: str) -> int:
    if not np.isfinite(time):
        raise DataError(f"{where}: its timestamp is no number; give microseconds")
    return int(time)


def _levels(tokens: Sequence[object]) -> NDArray[np.int64] | None:
    """Visibility of nuScenes' own tokens; other sets in its schema name levels of their own, which are not read."""
    levels = [int(t) if isinstance(t, str) and t in ("1", "2", "3", "4") else 0 for t in tokens]
    return np.array(levels, np.int64) if any(levels) or not levels else None


def _counts(values: list[int], records: Sequence[SampleAnnotation]) -> NDArray[np.int64]:
    for value, record in zip(values, records):
        if not -INT64 <= value < INT64:
            raise DataError(f"sample_annotation {record.token}: a count of points is {value:.3g}; correct it")
    return np.array(values, dtype=np.int64)
