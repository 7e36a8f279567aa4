"""nuScenes tables (and data written in their schema) to Frames, through nuscenes-devkit.

Poses, velocities and the category mapping follow the devkit (nuscenes.nuscenes.NuScenes.box_velocity,
nuscenes.eval.detection.utils); frames and units: geometry/README.md. No image is opened here.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...core.frames import Annotations, CameraView, Frame
from ...geometry import PinholeCamera, quaternion_to_matrix
from ..labels.files import lanes_file, occupancy_file, read_lanes
from .checks import check_frames
from .occ3d_challenge import CAMERA_ORDER
from .registry import Conventions, register_reader

logger = logging.getLogger("drivestack")

LIDAR = "LIDAR_TOP"

TABLES = [
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
]

MAX_VELOCITY_GAP_S = 1.5
"""The devkit's max_time_diff: no velocity across a longer gap (twice that for a centred difference)."""


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
    one (train, val, test, mini_train, mini_val) or one of the version's own ``splits.json`` (split -> scene names, as
    nuscenes-devkit reads it); scenes of it that the tables lack are left out. Frames of a set without labels have
    ``annotations`` None. Voxel and lane labels that lie beside the tables (label_files.py) are found by themselves.

    Raises DataError naming the path and the fix for a wrong root, a missing version or table, broken JSON, a split
    without scenes, or unusable calibration.
    """
    nusc = load_devkit(dataroot, version)
    wanted = _scenes_of_split(split, Path(dataroot) / version / "splits.json")
    scenes = sorted((s for s in nusc.scene if s["name"] in wanted), key=lambda s: s["name"])
    if not scenes:
        present = ", ".join(sorted(s["name"] for s in nusc.scene)[:5])
        raise DataError(
            f"{Path(dataroot) / version / 'scene.json'}: none of its {len(nusc.scene)} scenes ({present}, ...) "
            f"belongs to split {split!r}; give the split that this version holds"
        )
    try:
        frames = _Tables(nusc, Path(dataroot)).frames(scenes)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{Path(dataroot) / version}: the tables do not fit together (missing key or token {error}); "
            "they come from different releases or are incomplete: extract the metadata archive again"
        ) from error
    check_frames(frames)
    return frames


def _scenes_of_split(split: str, own_splits: Path) -> set[str]:
    """Scene names of an official split, or of one that the data set defines itself."""
    from nuscenes.utils.splits import create_splits_scenes

    official = create_splits_scenes()
    if split in official:
        return set(official[split])
    own = {}
    if own_splits.is_file():
        try:
            own = json.loads(own_splits.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{own_splits}: not valid JSON ({error}); write split -> [scene names]") from None
    if not isinstance(own, dict) or not isinstance(own.get(split, []), list):
        raise DataError(f"{own_splits}: must map split names to lists of scene names; correct it")
    if split not in own:
        raise DataError(f"unknown split {split!r}; use one of {', '.join([*sorted(official), *own])}")
    return set(own[split])


def load_devkit(dataroot: str | Path, version: str) -> Any:
    """The devkit's ``NuScenes`` object, or DataError saying what is wrong with the folder and what to do."""
    root = Path(dataroot)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the nuScenes data root, which holds samples/ and {version}/")
    folder = root / version
    if not folder.is_dir():
        found = sorted(p.parent.name for p in root.glob("*/sample.json"))
        hint = f"this root has {', '.join(found)}" if found else "this is not a nuScenes root: it has no tables"
        raise DataError(f"{folder}: no such version folder; {hint}")
    for table in TABLES:
        if not (folder / f"{table}.json").is_file():
            raise DataError(f"{folder / table}.json: table is missing; extract the metadata archive of {version} again")
    from nuscenes.nuscenes import NuScenes

    try:
        return NuScenes(version, str(root), verbose=False)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise _broken_table(folder) from None
    except (AssertionError, KeyError, TypeError, FileNotFoundError) as error:
        raise DataError(
            f"{folder}: nuscenes-devkit cannot load these tables ({error!r}); extract them again"
        ) from error


def _broken_table(folder: Path) -> DataError:
    for table in TABLES:
        path = folder / f"{table}.json"
        try:
            with path.open(encoding="utf-8") as stream:
                json.load(stream)
        except ValueError as error:
            return DataError(f"{path}: not valid JSON ({error}); extract or generate this table again")
    return DataError(f"{folder}: a table is not valid JSON; extract the metadata archive again")


def _poses(records: list[dict]) -> NDArray[np.float64]:
    """Poses [k, 4, 4] of records with ``rotation`` (wxyz) and ``translation``; NaN where the rotation is unusable."""
    out = np.tile(np.eye(4), (len(records), 1, 1))
    quaternions = np.array([r["rotation"] for r in records], dtype=np.float64)
    length = np.linalg.norm(quaternions, axis=1)
    usable = np.isfinite(length) & (length > 1e-6)
    out[usable, :3, :3] = quaternion_to_matrix(quaternions[usable])
    out[~usable, :3, :3] = np.nan  # named by check_frames, which knows the sample and the camera
    out[:, :3, 3] = [r["translation"] for r in records]
    return out


class _Tables:
    """Joins the tables of one devkit object into Frames."""

    def __init__(self, nusc: Any, root: Path) -> None:
        from nuscenes.eval.detection.utils import category_to_detection_name

        self.nusc, self.root = nusc, root
        self.detection_name = {c["name"]: category_to_detection_name(c["name"]) or "" for c in nusc.category}
        self.has_labels = bool(nusc.sample_annotation)
        self.cameras: dict[tuple[str, int, int], PinholeCamera] = {}

    def frames(self, scenes: list[dict]) -> list[Frame]:
        out = []
        for scene in scenes:
            samples = []
            token = scene["first_sample_token"]
            while token:
                sample = self.nusc.get("sample", token)
                samples.append(sample)
                token = sample["next"]
            samples.sort(key=lambda s: s["timestamp"])
            out += [self.frame(scene, sample) for sample in samples]
        return out

    def frame(self, scene: dict, sample: dict) -> Frame:
        get = self.nusc.get
        if LIDAR not in sample["data"]:
            raise DataError(
                f"sample {sample['token']} (scene {scene['name']}): no {LIDAR} keyframe in sample_data.json, "
                "which gives the time and pose of the frame; restore its record"
            )
        records = {channel: get("sample_data", token) for channel, token in sample["data"].items()}
        names = [c for c in CAMERA_ORDER if c in records]
        names += sorted(c for c, r in records.items() if r["sensor_modality"] == "camera" and c not in CAMERA_ORDER)
        channels = [LIDAR, *names]
        global_from_ego = _poses([get("ego_pose", records[c]["ego_pose_token"]) for c in channels])
        sensors = [get("calibrated_sensor", records[c]["calibrated_sensor_token"]) for c in channels]
        ego_from_sensor = _poses(sensors)
        views = tuple(
            CameraView(
                name=name,
                image_path=str(self.root / records[name]["filename"]),
                camera=self.camera(sample, sensors[i], records[name]),
                ego_from_camera=ego_from_sensor[i],
                global_from_ego=global_from_ego[i],
                timestamp_us=int(records[name]["timestamp"]),
                sample_data_token=records[name]["token"],
            )
            for i, name in enumerate(names, start=1)
        )
        occupancy = occupancy_file(self.root, scene["name"], sample["token"])
        lanes = lanes_file(self.root, scene["name"], sample["token"])
        return Frame(
            token=sample["token"],
            scene_token=scene["token"],
            scene_name=scene["name"],
            timestamp_us=int(sample["timestamp"]),
            cameras=views,
            ego_from_bev=ego_from_sensor[0],
            global_from_ego=global_from_ego[0],
            lidar_path=str(self.root / records[LIDAR]["filename"]),
            annotations=self.annotations(sample) if self.has_labels else None,
            occupancy_path=str(occupancy) if occupancy.is_file() else "",
            lanes=read_lanes(lanes) if lanes.is_file() else None,
            prev_token=sample["prev"],
            next_token=sample["next"],
        )

    def camera(self, sample: dict, sensor: dict, record: dict) -> PinholeCamera:
        key = (sensor["token"], record["width"], record["height"])
        if key not in self.cameras:
            try:
                self.cameras[key] = PinholeCamera(np.array(sensor["camera_intrinsic"], float), key[1], key[2])
            except ValueError as error:
                raise DataError(
                    f"sample {sample['token']}, camera {record['channel']} ({self.root / record['filename']}): "
                    f"unusable calibration, {error}; correct calibrated_sensor {sensor['token']}"
                ) from None
        return self.cameras[key]

    def annotations(self, sample: dict) -> Annotations:
        get = self.nusc.get
        records = [get("sample_annotation", token) for token in sample["anns"]]
        n = len(records)
        attributes = [r["attribute_tokens"] for r in records]  # none or one for each object
        size_wlh = np.array([r["size"] for r in records], dtype=np.float64).reshape(n, 3)
        return Annotations(
            names=[self.detection_name[r["category_name"]] for r in records],
            centre_global_m=np.array([r["translation"] for r in records], dtype=np.float64).reshape(n, 3),
            rotation_global=_poses(records)[:, :3, :3] if n else np.zeros((0, 3, 3)),
            size_lwh_m=size_wlh[:, [1, 0, 2]],
            velocity_global_mps=np.array([self.velocity(r) for r in records], dtype=np.float64).reshape(n, 2),
            attributes=[get("attribute", tokens[0])["name"] if tokens else "" for tokens in attributes],
            num_lidar_points=np.array([r["num_lidar_pts"] for r in records], dtype=np.int64),
            num_radar_points=np.array([r["num_radar_pts"] for r in records], dtype=np.int64),
            tokens=[r["token"] for r in records],
            instance_tokens=[r["instance_token"] for r in records],
        )

    def velocity(self, record: dict) -> tuple[float, float]:
        """Centred (or one-sided) difference of the object's positions, NaN across a gap, as the devkit has it."""
        get = self.nusc.get
        first = get("sample_annotation", record["prev"]) if record["prev"] else record
        last = get("sample_annotation", record["next"]) if record["next"] else record
        if first is last:
            return np.nan, np.nan
        times = [get("sample", r["sample_token"])["timestamp"] for r in (first, last)]
        elapsed_s = 1e-6 * times[1] - 1e-6 * times[0]
        if elapsed_s > MAX_VELOCITY_GAP_S * (2 if record["prev"] and record["next"] else 1):
            return np.nan, np.nan
        a, b = first["translation"], last["translation"]
        return (b[0] - a[0]) / elapsed_s, (b[1] - a[1]) / elapsed_s
