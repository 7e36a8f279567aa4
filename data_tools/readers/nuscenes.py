"""nuScenes tables (and data written in their schema) to Frames.

Poses and velocities follow nuScenes' own definitions (a test compares them with nuscenes-devkit); frames and units:
geometry/README.md. No image is opened here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.cameras import CAMERA_ORDER
from ...core.errors import DataError
from ...core.frames import Annotations, CameraView, Frame
from ...geometry import PinholeCamera, quaternion_to_matrix
from ..labels.files import lanes_file, occupancy_file, read_lanes
from .checks import check_frames
from .nuscenes_tables import (
    CalibratedSensor,
    EgoPose,
    Keyframe,
    SampleAnnotation,
    SampleData,
    Scene,
    SceneTables,
    read_tables,
)
from .registry import Conventions, register_reader

LIDAR = "LIDAR_TOP"

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
"""Category -> class of the detection task; other categories (animals, strollers, police cars, ...) have none.
https://www.nuscenes.org/object-detection."""

MAX_VELOCITY_GAP_S = 1.5
"""nuScenes states no velocity across a longer gap (twice that for a centred difference)."""


@register_reader(
    "nuscenes",
    "nuScenes v1.0 tables, and sets in their schema",
    Conventions(
        boxes="gravity centre, w l h, quaternion, in the global frame",
        quaternions="w x y z",
        time="microseconds",
        cameras="in the order of published models, others alphabetically after them; pinholes; sizes from sample_data",
        frames="EGO: x ahead, y left, z up; BEV maps lie in the LIDAR_TOP frame, as released weights were trained",
    ),
)
def read_nuscenes(dataroot: str | Path, version: str, split: str) -> list[Frame]:
    """All keyframes of a split, sorted by scene name and time.

    dataroot: folder with ``samples/`` and the version's folder of tables, e.g. ``v1.0-trainval``; split: an official
    one (train, val, test, mini_train, mini_val, train_detect, train_track) or one of the version's own ``splits.json``
    (split -> scene names); scenes of it that the tables lack are left out. Frames of a set without labels have
    ``annotations`` None. Voxel and lane labels that lie beside the tables (labels/files.py) are found by themselves.

    Raises DataError naming the path and the fix for a wrong root, a missing version or table, broken JSON, a split
    without scenes, or unusable calibration.
    """
    tables = read_tables(dataroot, version, split)
    try:
        frames = _Joiner(tables, Path(dataroot)).frames()
    except KeyError as error:
        raise DataError(
            f"{Path(dataroot) / version}: the tables do not fit together (missing key or token {error}); "
            "they come from different releases or are incomplete: extract the metadata archive again"
        ) from error
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


class _Joiner:
    """Makes Frames of the rows of some scenes."""

    def __init__(self, tables: SceneTables, root: Path) -> None:
        self.tables, self.root = tables, root
        self.cameras: dict[tuple[str, int, int], PinholeCamera] = {}

    def frames(self) -> list[Frame]:
        out = []
        for scene in self.tables.scenes:
            found = []
            token = scene.first_sample_token
            while token:
                keyframe = self.tables.keyframes[token]
                found.append(keyframe)
                token = keyframe.sample.next
            found.sort(key=lambda keyframe: keyframe.sample.timestamp)
            out += [self.frame(scene, keyframe) for keyframe in found]
        return out

    def frame(self, scene: Scene, keyframe: Keyframe) -> Frame:
        sample, records = keyframe.sample, keyframe.data
        if LIDAR not in records:
            raise DataError(
                f"sample {sample.token} (scene {scene.name}): no {LIDAR} keyframe in sample_data.json, "
                "which gives the time and pose of the frame; restore its record"
            )
        calibrated = {name: self.tables.calibrated_sensors[r.calibrated_sensor_token] for name, r in records.items()}
        is_camera = {name: self.tables.sensors[c.sensor_token].modality == "camera" for name, c in calibrated.items()}
        names = [c for c in CAMERA_ORDER if c in records]
        names += sorted(c for c in records if is_camera[c] and c not in CAMERA_ORDER)
        channels = [LIDAR, *names]
        global_from_ego = _poses([self.tables.ego_poses[records[c].ego_pose_token] for c in channels])
        ego_from_sensor = _poses([calibrated[c] for c in channels])
        views = tuple(
            CameraView(
                name=name,
                image_path=str(self.root / records[name].filename),
                camera=self.camera(sample.token, name, calibrated[name], records[name]),
                ego_from_camera=ego_from_sensor[i],
                global_from_ego=global_from_ego[i],
                timestamp_us=int(records[name].timestamp),
                sample_data_token=records[name].token,
            )
            for i, name in enumerate(names, start=1)
        )
        occupancy = occupancy_file(self.root, scene.name, sample.token)
        lanes = lanes_file(self.root, scene.name, sample.token)
        return Frame(
            token=sample.token,
            scene_token=scene.token,
            scene_name=scene.name,
            timestamp_us=int(sample.timestamp),
            cameras=views,
            ego_from_bev=ego_from_sensor[0],
            global_from_ego=global_from_ego[0],
            lidar_path=str(self.root / records[LIDAR].filename),
            annotations=self.annotations(keyframe.annotations) if self.tables.has_labels else None,
            occupancy_path=str(occupancy) if occupancy.is_file() else "",
            lanes=read_lanes(lanes) if lanes.is_file() else None,
            prev_token=sample.prev,
            next_token=sample.next,
        )

    def camera(self, sample_token: str, name: str, sensor: CalibratedSensor, record: SampleData) -> PinholeCamera:
        key = (sensor.token, record.width, record.height)
        if key not in self.cameras:
            try:
                self.cameras[key] = PinholeCamera(np.array(sensor.camera_intrinsic, float), key[1], key[2])
            except ValueError as error:
                raise DataError(
                    f"sample {sample_token}, camera {name} ({self.root / record.filename}): "
                    f"unusable calibration, {error}; correct calibrated_sensor {sensor.token}"
                ) from None
        return self.cameras[key]

    def annotations(self, records: Sequence[SampleAnnotation]) -> Annotations:
        n = len(records)
        categories = [self.tables.category_of_instance[r.instance_token] for r in records]
        attributes = [r.attribute_tokens for r in records]  # none or one for each object
        size_wlh = np.array([r.size for r in records], dtype=np.float64).reshape(n, 3)
        return Annotations(
            names=[DETECTION_CLASS.get(category, "") for category in categories],
            centre_global_m=np.array([r.translation for r in records], dtype=np.float64).reshape(n, 3),
            rotation_global=_poses(records)[:, :3, :3] if n else np.zeros((0, 3, 3)),
            size_lwh_m=size_wlh[:, [1, 0, 2]],
            velocity_global_mps=np.array([self.velocity(r) for r in records], dtype=np.float64).reshape(n, 2),
            attributes=[self.tables.attributes[tokens[0]] if tokens else "" for tokens in attributes],
            num_lidar_points=np.array([r.num_lidar_pts for r in records], dtype=np.int64),
            num_radar_points=np.array([r.num_radar_pts for r in records], dtype=np.int64),
            tokens=[r.token for r in records],
            instance_tokens=[r.instance_token for r in records],
            categories=categories,
        )

    def velocity(self, record: SampleAnnotation) -> tuple[float, float]:
        """Centred (or one-sided) difference of the object's positions, NaN across a gap, as nuScenes states it."""
        first = self.tables.annotations[record.prev] if record.prev else record
        last = self.tables.annotations[record.next] if record.next else record
        if first is last:
            return np.nan, np.nan
        times = [self.tables.keyframes[r.sample_token].sample.timestamp for r in (first, last)]
        elapsed_s = 1e-6 * times[1] - 1e-6 * times[0]
        if elapsed_s > MAX_VELOCITY_GAP_S * (2 if record.prev and record.next else 1):
            return np.nan, np.nan
        a, b = first.translation, last.translation
        return (b[0] - a[0]) / elapsed_s, (b[1] - a[1]) / elapsed_s
