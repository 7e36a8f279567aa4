"""A nuScenes-schema data set of ten keyframes, small enough to write in a test run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.geometry import matrix_to_quaternion, rotation_z

CLASSES = (
    "barrier bicycle bus car construction_vehicle motorcycle pedestrian traffic_cone trailer truck".split()  # noqa: SIM905
)
SCENES = {"scene-0061": 4, "scene-0553": 4, "scene-0103": 2}  # mini_train twice, mini_val
SIZES = {"CAM_FRONT": (64, 36), "CAM_BACK": (96, 60)}
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead


def _write_tables(root: Path, version: str) -> None:
    rng = np.random.default_rng(0)
    tables: dict[str, list[dict]] = {name: [] for name in ("ego_pose", "scene", "sample", "sample_data")}
    tables |= {"instance": [], "sample_annotation": []}
    categories = ["vehicle.car", "human.pedestrian.adult", "animal"]
    tables["category"] = [{"token": f"cat{i}", "name": n, "description": ""} for i, n in enumerate(categories)]
    attributes = ["vehicle.moving", "pedestrian.standing"]
    tables["attribute"] = [{"token": f"attr{i}", "name": n, "description": ""} for i, n in enumerate(attributes)]
    tables["visibility"] = [{"token": "4", "level": "v80-100", "description": ""}]
    tables["log"] = [{"token": "log", "logfile": "log", "vehicle": "v", "date_captured": "", "location": "here"}]
    tables["map"] = [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "maps/map.png"}]
    tables["sensor"] = [{"token": "s-LIDAR_TOP", "channel": "LIDAR_TOP", "modality": "lidar"}]
    tables["sensor"] += [{"token": f"s-{c}", "channel": c, "modality": "camera"} for c in SIZES]
    mounts = {"LIDAR_TOP": ([0.9, 0, 1.8], rotation_z(-np.pi / 2))}
    mounts |= {c: ([1.0 - i, 0.1, 1.5], rotation_z(i * np.pi) @ FORWARD) for i, c in enumerate(SIZES)}
    intrinsics = {c: [[0.8 * w, 0, w / 2], [0, 0.8 * w, h / 2], [0, 0, 1]] for c, (w, h) in SIZES.items()}
    tables["calibrated_sensor"] = [
        {
            "token": f"c-{channel}",
            "sensor_token": f"s-{channel}",
            "translation": list(translation),
            "rotation": matrix_to_quaternion(rotation).tolist(),
            "camera_intrinsic": intrinsics.get(channel, []),
        }
        for channel, (translation, rotation) in mounts.items()
    ]
    (root / "maps").mkdir(parents=True)
    Image.new("L", (8, 8)).save(root / "maps" / "map.png")
    for number, (scene, length) in enumerate(SCENES.items()):
        samples = [f"{scene}-{i}" for i in range(length)]
        tables["scene"].append(
            {
                "token": f"t-{scene}",
                "name": scene,
                "log_token": "log",
                "nbr_samples": length,
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "description": "",
            }
        )
        tokens = ["", *samples, ""]
        for i, token in enumerate(samples):
            time_us = 1_000_000 + 500_000 * i + 100_000 * number  # the scenes interleave in time
            tables["sample"].append(
                {
                    "token": token,
                    "timestamp": time_us,
                    "scene_token": f"t-{scene}",
                    "prev": tokens[i],
                    "next": tokens[i + 2],
                }
            )
            for k, channel in enumerate(mounts):
                late_us = 20_000 * k
                elapsed_s = 0.5 * i + late_us * 1e-6
                yaw = 0.3 * number + 0.2 * elapsed_s
                filename = f"samples/{channel}/{token}.{'bin' if channel == 'LIDAR_TOP' else 'jpg'}"
                data_token = f"{token}-{channel}"
                tables["ego_pose"].append(
                    {
                        "token": data_token,
                        "timestamp": time_us + late_us,
                        "rotation": matrix_to_quaternion(rotation_z(yaw)).tolist(),
                        "translation": [100.0 * number + 6 * elapsed_s, 5.0, 0.1],
                    }
                )
                width, height = SIZES.get(channel, (0, 0))
                tables["sample_data"].append(
                    {
                        "token": data_token,
                        "sample_token": token,
                        "ego_pose_token": data_token,
                        "calibrated_sensor_token": f"c-{channel}",
                        "filename": filename,
                        "fileformat": "jpg",
                        "is_key_frame": True,
                        "height": height,
                        "width": width,
                        "timestamp": time_us + late_us,
                        "prev": f"{tokens[i]}-{channel}" if tokens[i] else "",
                        "next": f"{tokens[i + 2]}-{channel}" if tokens[i + 2] else "",
                    }
                )
                path = root / filename
                path.parent.mkdir(parents=True, exist_ok=True)
                if width:
                    pixels = rng.integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
                    Image.fromarray(pixels).resize((width, height)).save(path, quality=95)
                else:
                    path.write_bytes(b"")
        for k in range(4):  # two cars, a pedestrian that appears once, an animal
            seen = [1] if k == 2 else range(length)
            links = ["", *(f"{scene}-o{k}-{i}" for i in seen), ""]
            tables["instance"].append(
                {
                    "token": f"{scene}-o{k}",
                    "category_token": f"cat{max(k - 1, 0)}",
                    "nbr_annotations": len(links) - 2,
                    "first_annotation_token": links[1],
                    "last_annotation_token": links[-2],
                }
            )
            for at, i in enumerate(seen):
                tables["sample_annotation"].append(
                    {
                        "token": links[at + 1],
                        "sample_token": samples[i],
                        "instance_token": f"{scene}-o{k}",
                        "visibility_token": "4",
                        "attribute_tokens": [["attr0"], [], ["attr1"], []][k],
                        "translation": [100.0 * number + 15 + 4.0 * k + 1.5 * i * (k == 0), 5.0 - 1.5 * k, 1.0],
                        "size": [1.9, 4.5, 1.6] if k < 2 else [0.6, 0.7, 1.7],
                        "rotation": matrix_to_quaternion(rotation_z(0.4 * k)).tolist(),
                        "prev": links[at],
                        "next": links[at + 2],
                        "num_lidar_pts": 20 - 10 * k if k < 3 else 5,
                        "num_radar_pts": 3 * (k == 2),
                    }
                )
    (root / version).mkdir()
    for name, rows in tables.items():
        (root / version / f"{name}.json").write_text(json.dumps(rows))


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root of version v1.0-mini; read it, do not write to it."""
    root = tmp_path_factory.mktemp("tiny") / "nuscenes"
    _write_tables(root, "v1.0-mini")
    return root


@pytest.fixture
def own_root(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of ``tiny_root`` to break."""
    return Path(shutil.copytree(tiny_root, tmp_path / "nuscenes"))


@pytest.fixture
def edit_table(own_root: Path) -> Callable[[str, Callable[[list[dict]], None]], None]:
    """edit_table("sample_data", change): applies ``change`` to the rows of a table of ``own_root``."""

    def edit(table: str, change: Callable[[list[dict]], None]) -> None:
        path = own_root / "v1.0-mini" / f"{table}.json"
        rows = json.loads(path.read_text())
        change(rows)
        path.write_text(json.dumps(rows))

    return edit


@pytest.fixture(scope="session")
def classes() -> tuple[str, ...]:
    return tuple(CLASSES)
