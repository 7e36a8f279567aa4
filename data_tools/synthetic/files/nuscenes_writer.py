"""Rows of the nuScenes v1.0 tables for synthetic scenes, and the files they point to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ....core.files import atomic_path, write_json
from ....geometry.poses import matrix_to_quaternion
from ...labels.depth import depth_cells, depth_file, write_depth
from ...labels.files import lanes_file, occupancy_file, write_lanes, write_occupancy
from ...labels.street_maps import street_map_file, write_street_map
from ...readers.lenses import lens_fields
from ...readers.nuscenes.splits import official_splits
from ..labels.lanes import label_lanes, street_graph
from ..labels.voxels import label_voxels
from ..sensing.observe import Observation, observe
from ..sensing.sensors import LIDAR_CHANNEL, RigCamera, ego_from_lidar
from ..world.population import WorldObject
from ..world.world import KEYFRAME_INTERVAL_S, World
from .image_writer import IMAGE_LABELS, write_image_labels
from .names import CATEGORY_OF_CLASS, token
from .nuimages import motion_row

VERSION = "v1.0-trainval"
MAP_FILE = "maps/synthetic_stub.png"
_MAP_SIDE_PX = 10000  # 1 km at the devkit's 0.1 m per pixel
_FIRST_TIMESTAMP_US = 1_532_000_000_000_000
_SCENE_SPACING_US = 600_000_000
_ANNOTATION_RANGE_M = 60.0
_JPEG_QUALITY = 90

_CATEGORIES = [
    "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.wheelchair",
    "human.pedestrian.stroller", "human.pedestrian.personal_mobility", "human.pedestrian.police_officer",
    "human.pedestrian.construction_worker", "animal", "vehicle.car", "vehicle.motorcycle", "vehicle.bicycle",
    "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.truck", "vehicle.construction",
    "vehicle.emergency.ambulance", "vehicle.emergency.police", "vehicle.trailer", "movable_object.barrier",
    "movable_object.trafficcone", "movable_object.pushable_pullable", "movable_object.debris",
    "static_object.bicycle_rack",
]  # fmt: skip
_ATTRIBUTES = [
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
]  # fmt: skip
_VISIBILITIES = [("1", "v0-40"), ("2", "v40-60"), ("3", "v60-80"), ("4", "v80-100")]
SCENE_TABLES = ("scene", "log", "sample", "sample_data", "ego_pose", "instance", "sample_annotation")


def scene_name(split: str, index: int) -> str:
    """Official name of the scene number `index` of a split, so that the official splits hold the synthetic scenes.

    Raises ValueError where the official split has no so many scenes.
    """
    names = official_splits()[split]
    if index >= len(names):
        raise ValueError(
            f"the official split {split!r} has {len(names)} scene names; scene number {index + 1} was requested"
        )
    return names[index]


def fixed_tables(rig: tuple[RigCamera, ...]) -> dict[str, list[dict]]:
    """The tables that do not depend on the scenes."""
    sensors = [{"token": token("sensor", c.name), "channel": c.name, "modality": "camera"} for c in rig]
    sensors.append({"token": token("sensor", LIDAR_CHANNEL), "channel": LIDAR_CHANNEL, "modality": "lidar"})
    mounts = [_mount(c.name, c.ego_from_camera, c.camera.intrinsics.tolist()) | lens_fields(c.camera) for c in rig]
    mounts.append(_mount(LIDAR_CHANNEL, ego_from_lidar(), []))
    return {
        "category": [
            {"token": token("category", n), "name": n, "description": "synthetic", "index": i + 1}
            for i, n in enumerate(_CATEGORIES)
        ],
        "attribute": [{"token": token("attribute", n), "name": n, "description": "synthetic"} for n in _ATTRIBUTES],
        "visibility": [
            {"token": t, "level": level, "description": f"visibility of {level[1:]} %"} for t, level in _VISIBILITIES
        ],
        "sensor": sensors,
        "calibrated_sensor": mounts,
    }


def _mount(channel: str, ego_from_sensor: np.ndarray, intrinsics: list) -> dict:
    return {
        "token": token("calibrated_sensor", channel),
        "sensor_token": token("sensor", channel),
        "translation": ego_from_sensor[:3, 3].tolist(),
        "rotation": matrix_to_quaternion(ego_from_sensor[:3, :3]).tolist(),
        "camera_intrinsic": intrinsics,
    }


def write_map_stub(root: Path) -> None:
    """An empty semantic-prior mask: the devkit wants one to exist."""
    with atomic_path(root / MAP_FILE) as path:
        Image.new("1", (_MAP_SIDE_PX, _MAP_SIDE_PX)).save(path, optimize=True)


def map_table(log_tokens: list[str]) -> list[dict]:
    """One stub map for all logs."""
    return [{"token": token("map"), "category": "semantic_prior", "filename": MAP_FILE, "log_tokens": log_tokens}]


def write_scene(
    world: World,
    root: Path,
    rig: tuple[RigCamera, ...],
    labels: Collection[str] = (),
    on_keyframe: Callable[[], None] | None = None,
) -> dict[str, list[dict]]:
    """Render a scene, write its pictures and scans below `root`, and return its rows by table name.

    Files are whole, but not yet synced: see core.files.sync_files. Beside the tables the rows are those of the images
    ("image_labels", "motion"), where such labels are written.

    labels: what to write besides boxes: "occupancy", "lanes", "depth" and "street_map" (see data_tools/labels), or of
        IMAGE_LABELS.
    `on_keyframe()` is called after each keyframe, for progress.
    """
    name = scene_name(world.split, world.index)
    key = world.key
    number = world.index + (10_000 if world.split == "val" else 0)
    first_us = _FIRST_TIMESTAMP_US + number * _SCENE_SPACING_US
    log_name = "-".join(["synthetic", str(world.seed), name, *map(str, world.key[3:])])
    rows: dict[str, list[dict]] = {table: [] for table in SCENE_TABLES}
    image_labels = set(labels) & set(IMAGE_LABELS)
    observations, samples = [], [token("sample", *key, k) for k in range(world.num_keyframes)]
    for k, time_s in enumerate(world.keyframe_times_s):
        timestamp_us = first_us + round(k * KEYFRAME_INTERVAL_S * 1e6)
        seen = observe(world, time_s, rig, [*_numbers(world), k])
        pose_token = token("ego_pose", *key, k)
        rows["ego_pose"].append(_ego_pose(pose_token, timestamp_us, world.global_from_ego(time_s)))
        rows["sample"].append(
            {
                "token": samples[k],
                "timestamp": timestamp_us,
                "prev": samples[k - 1] if k else "",
                "next": samples[k + 1] if k + 1 < len(samples) else "",
                "scene_token": token("scene", *key),
            }
        )
        sensors = _write_sensors(
            root, log_name, key, k, world.num_keyframes, timestamp_us, samples[k], pose_token, seen, rig
        )
        rows["sample_data"] += sensors
        ego = world.global_from_ego(time_s)
        if "occupancy" in labels:
            occupancy = label_voxels(seen, ego, rig, _lidar_places(world, k))
            write_occupancy(occupancy_file(root, name, samples[k]), occupancy)
        if "lanes" in labels:
            write_lanes(lanes_file(root, name, samples[k]), label_lanes(world.layout, seen.caster, ego, rig[0]))
        if "depth" in labels:
            pictures = {picture.name: depth_cells(picture.depth_m) for picture in seen.pictures}
            write_depth(depth_file(root, name, samples[k]), pictures)
        if image_labels:
            tokens = {o.instance: token("annotation", *key, o.instance, k) for o in world.objects if _near(world, o)[k]}
            images = write_image_labels(world, time_s, root, rig, image_labels, seen, sensors, tokens)
            rows["image_labels"] = rows.get("image_labels", []) + images
        if "nuimages" in image_labels:
            rows["motion"] = rows.get("motion", []) + [{"token": pose_token} | motion_row(world, time_s)]
        observations.append((seen.lidar_counts, seen.pixel_counts, seen.visible_share))
        if on_keyframe:
            on_keyframe()
    rows["instance"], rows["sample_annotation"] = _annotations(world, key, samples, observations)
    rows["log"].append(
        {
            "token": token("log", *key),
            "logfile": log_name,
            "vehicle": "synthetic",
            "date_captured": "2026-01-01",
            "location": log_name,  # every scene is a world of its own
        }
    )
    rows["scene"].append(
        {
            "token": token("scene", *key),
            "log_token": token("log", *key),
            "nbr_samples": len(samples),
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "name": name,
            "description": f"{world.layout.kind} street, {len(world.layout.junctions)} junctions, seed {world.seed}",
        }
    )
    if "street_map" in labels:
        write_street_map(street_map_file(root, name), street_graph(world.layout))
    world.save_json(root / "synthetic" / name / "world.json")
    return rows


def _lidar_places(world: World, k: int) -> np.ndarray:
    """[2 or 3, 3] where the LiDAR stands at keyframe k and at both ends of the scene."""
    times = world.keyframe_times_s[sorted({0, k, world.num_keyframes - 1})]
    return np.array([(world.global_from_ego(t) @ ego_from_lidar())[:3, 3] for t in times])


def _numbers(world: World) -> list[int]:
    return [world.seed, int(world.split == "val"), world.index]


def _ego_pose(pose_token: str, timestamp_us: int, global_from_ego: np.ndarray) -> dict:
    return {
        "token": pose_token,
        "timestamp": timestamp_us,
        "rotation": matrix_to_quaternion(global_from_ego[:3, :3]).tolist(),
        "translation": global_from_ego[:3, 3].tolist(),
    }


def _write_sensors(
    root: Path,
    log_name: str,
    key: tuple[object, ...],
    k: int,
    num_keyframes: int,
    timestamp_us: int,
    sample: str,
    pose_token: str,
    seen: Observation,
    rig: tuple[RigCamera, ...],
) -> list[dict]:
    rows = []
    channels = [(p.name, "jpg", p.image.shape[:2]) for p in seen.pictures] + [(LIDAR_CHANNEL, "pcd.bin", (0, 0))]
    for (channel, ending, (height_px, width_px)), picture in zip(channels, [*seen.pictures, None]):
        filename = f"samples/{channel}/{log_name}__{channel}__{timestamp_us}.{ending}"
        with atomic_path(root / filename, sync=False) as path:
            if picture is None:
                path.write_bytes(seen.lidar.points.tobytes())
            else:
                Image.fromarray(picture.image).save(path, quality=_JPEG_QUALITY)
        rows.append(
            {
                "token": token("sample_data", *key, channel, k),
                "sample_token": sample,
                "ego_pose_token": pose_token,
                "calibrated_sensor_token": token("calibrated_sensor", channel),
                "timestamp": timestamp_us,
                "fileformat": "pcd" if picture is None else "jpg",
                "is_key_frame": True,
                "height": height_px,
                "width": width_px,
                "filename": filename,
                "prev": token("sample_data", *key, channel, k - 1) if k else "",
                "next": token("sample_data", *key, channel, k + 1) if k + 1 < num_keyframes else "",
            }
        )
    return rows


def _near(world: World, thing: WorldObject) -> np.ndarray:
    """[T] bool: the keyframes at which an object is annotated if a sensor meets it."""
    centre, _, present = thing.motion.poses(world.keyframe_times_s)
    axles = world.ego.poses(world.keyframe_times_s)[0]  # [T, 2]
    return present & (np.linalg.norm(centre - axles, axis=1) < _ANNOTATION_RANGE_M)


def _annotations(
    world: World, key: tuple[object, ...], samples: list[str], observations: Sequence[tuple[np.ndarray, ...]]
) -> tuple[list[dict], list[dict]]:
    """An object is annotated from the first to the last keyframe at which some sensor met it, while it is near."""
    lidar, pixels, share = (np.stack(values) for values in zip(*observations))  # [T, instances + 1]
    instances, annotations = [], []
    for thing in world.objects:
        i = thing.instance
        centre, yaw, _ = thing.motion.poses(world.keyframe_times_s)
        near = _near(world, thing)
        met = np.flatnonzero(near & ((lidar[:, i] > 0) | (pixels[:, i] > 0)))
        if not len(met):
            continue
        frames = [k for k in range(met[0], met[-1] + 1) if near[k]]
        tokens = [token("annotation", *key, i, k) for k in frames]
        instance_token = token("instance", *key, i)
        instances.append(
            {
                "token": instance_token,
                "category_token": token("category", CATEGORY_OF_CLASS[thing.name]),
                "nbr_annotations": len(tokens),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )
        length, width, height = thing.size_lwh
        for n, k in enumerate(frames):
            attribute = thing.attribute_at(float(world.keyframe_times_s[k]))
            annotations.append(
                {
                    "token": tokens[n],
                    "sample_token": samples[k],
                    "instance_token": instance_token,
                    "visibility_token": str(1 + int(np.searchsorted([0.4, 0.6, 0.8], share[k, i], side="right"))),
                    "attribute_tokens": [token("attribute", attribute)] if attribute else [],
                    "translation": [float(centre[k, 0]), float(centre[k, 1]), height / 2],
                    "size": [width, length, height],
                    "rotation": [float(np.cos(yaw[k] / 2)), 0.0, 0.0, float(np.sin(yaw[k] / 2))],
                    "prev": tokens[n - 1] if n else "",
                    "next": tokens[n + 1] if n + 1 < len(tokens) else "",
                    "num_lidar_pts": int(lidar[k, i]),
                    "num_radar_pts": 0,
                }
            )
    return instances, annotations


def write_tables(root: Path, tables: Mapping[str, Sequence[dict]], version: str = VERSION) -> None:
    """Write each table as a JSON file of the version folder."""
    for name, rows in tables.items():
        write_json(root / version / f"{name}.json", rows)
