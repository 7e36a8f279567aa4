"""A set of two keyframes in the nuScenes v1.0 schema, with one object of each detection class and no image files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from drivestack.core.answers import Detections
from drivestack.core.frames import Frame
from drivestack.geometry import matrix_to_quaternion, pose, rotation_z, transform_points

VERSION = "v1.0-trainval"
CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "construction_vehicle": "vehicle.construction",
    "pedestrian": "human.pedestrian.adult",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "traffic_cone": "movable_object.trafficcone",
    "barrier": "movable_object.barrier",
}
CLASSES = list(CATEGORIES)
ATTRIBUTES = {
    "car": "vehicle.moving",
    "truck": "vehicle.parked",
    "bus": "vehicle.stopped",
    "trailer": "vehicle.parked",
    "construction_vehicle": "vehicle.parked",
    "pedestrian": "pedestrian.standing",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.with_rider",
}
SPEED_MPS = {"car": 6.0, "bicycle": 3.0}  # along the heading; the others stand
STEP_S = 0.5


def write_tiny_nuscenes(root: Path, scene_name: str = "scene-0003", labels: bool = True) -> None:
    """scene-0003 belongs to the official val split, scene-0001 to train."""
    rng = np.random.default_rng(0)
    yaws = rng.uniform(-3, 3, len(CLASSES))
    places = np.stack([np.linspace(-25, 25, 10), rng.uniform(3, 12, 10)], 1) + [600, 1600]
    tables: dict[str, list[dict]] = {
        "category": [{"token": n, "name": n, "description": ""} for n in CATEGORIES.values()],
        "attribute": [{"token": n, "name": n, "description": ""} for n in set(ATTRIBUTES.values())],
        "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
        "sensor": [
            {"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"},
            {"token": "camera", "channel": "CAM_FRONT", "modality": "camera"},
        ],
        "log": [{"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": "singapore-onenorth"}],
        "map": [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "map.png"}],
    }
    tables["calibrated_sensor"] = [
        {
            "token": "calibration",
            "sensor_token": "lidar",
            "translation": [0.94, 0.0, 1.84],
            "rotation": matrix_to_quaternion(rotation_z(-np.pi / 2)).tolist(),
            "camera_intrinsic": [],
        },
        {
            "token": "camera calibration",
            "sensor_token": "camera",
            "translation": [1.7, 0.0, 1.5],
            "rotation": [0.5, -0.5, 0.5, -0.5],  # x right, y down, z ahead
            "camera_intrinsic": [[50.0, 0.0, 32.0], [0.0, 50.0, 18.0], [0.0, 0.0, 1.0]],
        },
    ]
    tables["scene"] = [
        {
            "token": "scene",
            "name": scene_name,
            "description": "",
            "log_token": "log",
            "nbr_samples": 2,
            "first_sample_token": "sample0",
            "last_sample_token": "sample1",
        }
    ]
    links = ({"prev": "", "next": "1"}, {"prev": "0", "next": ""})

    def linked(prefix: str, t: int) -> dict[str, str]:
        return {key: prefix + end if end else "" for key, end in links[t].items()}

    times_us = [1_500_000_000_000_000 + round(t * STEP_S * 1e6) for t in range(2)]
    samples = [
        {"token": f"sample{t}", "timestamp": times_us[t], "scene_token": "scene", **linked("sample", t)}
        for t in range(2)
    ]
    tables["sample"] = samples
    tables["ego_pose"] = [
        {
            "token": f"ego{t}",
            "timestamp": times_us[t],
            "translation": [600.0 + 2 * t, 1600.0, 0.0],
            "rotation": matrix_to_quaternion(rotation_z(0.4 + 0.1 * t)).tolist(),
        }
        for t in range(2)
    ]
    tables["sample_data"] = [
        {
            "token": f"sweep{t}",
            "sample_token": f"sample{t}",
            "ego_pose_token": f"ego{t}",
            "calibrated_sensor_token": "calibration",
            "timestamp": times_us[t],
            "fileformat": "pcd",
            "is_key_frame": True,
            "height": 0,
            "width": 0,
            "filename": f"samples/LIDAR_TOP/{t}.pcd.bin",
            **linked("sweep", t),
        }
        for t in range(2)
    ]
    tables["sample_data"] += [
        sweep
        | {
            "token": f"image{t}",
            "calibrated_sensor_token": "camera calibration",
            "fileformat": "jpg",
            "height": 36,
            "width": 64,
            "filename": f"samples/CAM_FRONT/{t}.jpg",
            **linked("image", t),
        }
        for t, sweep in enumerate(tables["sample_data"])
    ]
    tables["instance"] = [
        {
            "token": name,
            "category_token": category,
            "nbr_annotations": 2,
            "first_annotation_token": f"{name}0",
            "last_annotation_token": f"{name}1",
        }
        for name, category in CATEGORIES.items()
    ]
    tables["sample_annotation"] = [
        {
            "token": f"{name}{t}",
            "sample_token": f"sample{t}",
            "instance_token": name,
            "visibility_token": "4",
            "attribute_tokens": [ATTRIBUTES[name]] if name in ATTRIBUTES else [],
            "translation": [
                places[i, 0] + np.cos(yaws[i]) * SPEED_MPS.get(name, 0.0) * STEP_S * t,
                places[i, 1] + np.sin(yaws[i]) * SPEED_MPS.get(name, 0.0) * STEP_S * t,
                0.8,
            ],
            "size": [1.9, 4.5, 1.6],
            "rotation": matrix_to_quaternion(rotation_z(yaws[i])).tolist(),
            "num_lidar_pts": 7,
            "num_radar_pts": 0,
            **linked(name, t),
        }
        for t in range(2)
        for i, name in enumerate(CLASSES)
    ]
    if not labels:
        tables["sample_annotation"], tables["instance"] = [], []
    folder = root / VERSION
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    Image.new("L", (4, 4)).save(root / "map.png")


def perfect_detections(root: Path) -> tuple[list[Frame], list[Detections]]:
    """Frames without cameras, and detections in their BEV frames that repeat the labels."""
    folder = root / VERSION
    ego, calibration, labels = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("ego_pose", "calibrated_sensor", "sample_annotation")
    )
    ego_from_bev = pose(calibration[0]["rotation"], calibration[0]["translation"])
    frames, detections = [], []
    for t in range(2):
        frame = Frame(
            token=f"sample{t}",
            scene_token="scene",
            scene_name="scene-0003",
            timestamp_us=ego[t]["timestamp"],
            cameras=(),
            ego_from_bev=ego_from_bev,
            global_from_ego=pose(ego[t]["rotation"], ego[t]["translation"]),
        )
        lidar_from_global = np.linalg.inv(frame.global_from_bev)
        rows = []
        for label in (entry for entry in labels if entry["sample_token"] == frame.token):
            rotation = lidar_from_global[:3, :3] @ pose(label["rotation"], [0, 0, 0])[:3, :3]
            heading = rotation[:2, 0]
            width, length, height = label["size"]
            speed = SPEED_MPS.get(label["instance_token"], 0.0)
            centre = transform_points(lidar_from_global, np.array(label["translation"]))
            yaw = np.arctan2(heading[1], heading[0])
            rows.append([*centre, length, width, height, yaw, *(speed * heading)])
        count = len(rows)
        frames.append(frame)
        detections.append(
            Detections(frame.token, np.array(rows, np.float32), np.linspace(0.9, 0.5, count), np.arange(count))
        )
    return frames, detections
