"""The small undamaged files that are damaged: a data set of two keyframes, in every format that a reader takes.

Made once in a folder and kept there. Sizes are small so that an input takes milliseconds.
"""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drivestack.cli.main import main
from drivestack.core.cameras import RING_ORDER
from drivestack.core.frames import Frame
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.readers.openlane.files import collect, write_collection, write_frame
from drivestack.data_tools.synthetic import synthesize
from drivestack.geometry import boxes_to_legacy, invert_pose, matrix_to_quaternion, quaternion_to_matrix, rotation_z

VERSION, SPLIT = "v1.0-trainval", "val"
MODEL = "perception_tiny_synthetic"
CLASSES = (
    "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone",
    "barrier",
)  # fmt: skip
BOXES_PER_SAMPLE = 15

TOY_CONFIG = '''"""Boxes, voxels and lanes, as small as the layers allow."""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR

with read_base():
    from drivestack.configs.perception.perception_tiny_synthetic import *

model.img_backbone.update(channels=8, depths=(1, 1, 1, 1), groups=(1, 1, 2, 2), out_indices=(1, 2, 3))
model.img_neck.update(out_channels=16)
model.bev_map.update(bev_size=(12, 12), embed_dims=16, num_layers=1, num_heads=2, ffn_dims=16)
model.boxes.head.update(num_query=8, num_groups=1, num_layers=1, num_heads=2, ffn_dims=16)
model.boxes.bev_proposals.update(num_proposals=8)
model.occupancy_head.update(channels=16, coarse_cells=20, columns_per_sample=50)
model.lane_head.update(channels=16, bev_size=(6, 12), num_queries=4, num_proposals=4, num_layers=1, num_heads=2)
model.lane_head.update(ffn_dims=16, hidden=16, element_stem=8)
for settings in (train_dataloader.dataset, test_dataset):
    settings.image.update(train_heights_px=(32,), test_height_px=32)
    settings.source.update(root="ROOT", version="v1.0-trainval", split="val")
train_dataloader.update(num_workers=0, batch_size=1)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.05, by_epoch=False, begin=0, end=2),
    dict(type=CosineAnnealingLR, eta_min=6e-6, by_epoch=False, begin=2, end=12),
]
optim_wrapper.precision = "fp32"
train_cfg.update(max_iters=12)
checkpoint = dict(interval=2, keep=2)
ema = dict(momentum=0.1)
log_interval = 4
seed = 1
'''


@dataclass
class Base:
    """Where everything lies, and the contents that are damaged, read once."""

    folder: Path

    @property
    def root(self) -> Path:
        """Of the nuScenes set."""
        return self.folder / "set"

    @property
    def tables(self) -> Path:
        return self.root / VERSION

    @property
    def answers(self) -> Path:
        """submission.json, occupancy.zip, occupancy/, lanes.pkl."""
        return self.folder / "answers"

    @property
    def config(self) -> Path:
        return self.folder / "toy.py"

    @property
    def weights(self) -> Path:
        return self.folder / "toy.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Of a training run, with its optimiser."""
        return self.folder / "training" / "iter_2.pth"

    @property
    def openlane(self) -> Path:
        return self.folder / "openlane"

    @property
    def challenge(self) -> Path:
        return self.folder / "challenge"

    @property
    def log(self) -> Path:
        """Of Argoverse 2."""
        return self.folder / "log"

    @cached_property
    def frames(self) -> list[Frame]:
        return read_nuscenes(self.root, VERSION, SPLIT)

    @cached_property
    def table_bytes(self) -> dict[str, bytes]:
        """By name of the table."""
        return {path.stem: path.read_bytes() for path in sorted(self.tables.glob("*.json"))}

    @cached_property
    def infos(self) -> dict[str, Any]:
        """Info files by layout: mmdet3d's 1.1, 1.0 and BEVFormer's."""
        return {layout: info_content(self.frames, layout) for layout in ("1.1", "1.0", "legacy")}

    @cached_property
    def collection(self) -> Any:
        return pickle.loads((self.openlane / "frames.pkl").read_bytes())  # written by this program

    @cached_property
    def lanes(self) -> Any:
        return pickle.loads((self.answers / "lanes.pkl").read_bytes())

    @cached_property
    def state(self) -> dict[str, Any]:
        """The training checkpoint."""
        return torch.load(self.checkpoint, map_location="cpu", weights_only=False)  # written by this program

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The training checkpoint with arrays for tensors, which mutations.py knows."""
        return as_arrays(self.state)


def as_arrays(node: Any) -> Any:
    """A tree with arrays for its tensors."""
    if isinstance(node, torch.Tensor):
        return node.detach().float().numpy() if node.dtype == torch.bfloat16 else node.detach().numpy()
    if isinstance(node, dict):
        return {key: as_arrays(child) for key, child in node.items()}
    return type(node)(map(as_arrays, node)) if type(node) in (list, tuple) else node


def make_base(folder: Path) -> Base:
    """What is missing of the base is made; the whole takes about half a minute."""
    base = Base(folder)
    if (folder / "done").exists():
        return base
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    synthesize(base.root, SPLIT, 1, 2, seed=5, image_width_px=384, workers=1, progress=False)
    base.config.write_text(TOY_CONFIG.replace("ROOT", str(base.root)))
    source = ["--dataroot", str(base.root), "--version", VERSION, "--split", SPLIT]
    run("predict", MODEL, MODEL, *source, "--out", str(base.answers))
    _keep_some_boxes(base.answers / "submission.json")
    run("train", str(base.config), "--work-dir", str(base.checkpoint.parent), "--set", "train_cfg.max_iters=2")
    run("export-weights", str(base.checkpoint), str(base.weights))
    torch.save({"state_dict": base.state["state_dict"]}, folder / "toy.pth")
    _write_openlane(base)
    base.challenge.mkdir()
    (base.challenge / "annotations.json").write_text(json.dumps(challenge_content(base.frames)))
    (base.challenge / "samples").symlink_to(base.root / "samples")
    (base.challenge / "gts").symlink_to(base.root / "gts")
    write_log(base.log)
    (folder / "done").touch()
    return base


def run(*arguments: str) -> None:
    """A verb that must succeed."""
    if main(arguments) != 0:
        raise SystemExit(f"the base cannot be made: drivestack {' '.join(arguments)} failed")


def _keep_some_boxes(path: Path) -> None:
    content = json.loads(path.read_text())
    content["results"] = {token: boxes[:BOXES_PER_SAMPLE] for token, boxes in content["results"].items()}
    path.write_text(json.dumps(content))


def _write_openlane(base: Base) -> None:
    names = [write_frame(base.openlane, SPLIT, frame) for frame in base.frames]
    listed: dict[str, dict[str, list[str]]] = {SPLIT: {}}
    for _, segment, timestamp in names:
        listed[SPLIT].setdefault(segment, []).append(f"{timestamp}.json")
    (base.openlane / "data_dict_val.json").write_text(json.dumps(listed))
    write_collection(base.openlane / "frames.pkl", collect(base.openlane, names))


def _wxyz(matrix: np.ndarray) -> list[float]:
    return matrix_to_quaternion(matrix[:3, :3]).tolist()


def info_content(frames: list[Frame], layout: str) -> dict[str, Any]:
    """An info file of the frames: "1.1" (mmdet3d 1.1), "1.0" (the older keys, boxes l w h) or "legacy" (w l h)."""
    if layout == "1.1":
        listed = [_info_1_1(number, frame) for number, frame in enumerate(frames)]
        return {"metainfo": {"categories": {c: i for i, c in enumerate(CLASSES)}}, "data_list": listed}
    return {"infos": [_info_old(i, f, layout) for i, f in enumerate(frames)], "metadata": {"version": VERSION}}


def _info_1_1(number: int, frame: Frame) -> dict[str, Any]:
    labels, boxes = frame.annotations, frame.bev_boxes()
    assert labels is not None
    images = {
        view.name: {
            "img_path": Path(view.image_path).name,
            "cam2img": view.camera.intrinsics.tolist(),
            "height": view.camera.height_px,
            "width": view.camera.width_px,
            "lidar2cam": invert_pose(frame.bev_from_camera(view)).tolist(),
            "timestamp": view.timestamp_us / 1e6,
        }
        for view in frame.cameras
    }
    objects = [
        {
            "bbox_3d": boxes[i, :7].tolist(),
            "bbox_label_3d": CLASSES.index(name) if name in CLASSES else -1,
            "velocity": boxes[i, 7:].tolist(),
            "num_lidar_pts": int(labels.num_lidar_points[i]),
            "num_radar_pts": int(labels.num_radar_points[i]),
        }
        for i, name in enumerate(labels.names)
    ]
    return {
        "sample_idx": number,
        "token": frame.token,
        "timestamp": frame.timestamp_us / 1e6,
        "ego2global": frame.global_from_ego.tolist(),
        "images": images,
        "lidar_points": {"lidar_path": Path(frame.lidar_path).name, "lidar2ego": frame.ego_from_bev.tolist()},
        "instances": objects,
    }


def _info_old(number: int, frame: Frame, layout: str) -> dict[str, Any]:
    labels, boxes = frame.annotations, frame.bev_boxes()
    assert labels is not None
    ego, lidar = frame.global_from_ego, frame.ego_from_bev
    cameras = {}
    for view in frame.cameras:
        mounting, seen = invert_pose(ego) @ view.global_from_camera, frame.bev_from_camera(view)
        cameras[view.name] = {
            "data_path": f"./data/nuscenes/samples/{view.name}/{Path(view.image_path).name}",
            "type": view.name,
            "sample_data_token": view.sample_data_token,
            "sensor2ego_rotation": _wxyz(mounting),
            "sensor2ego_translation": mounting[:3, 3].tolist(),
            "ego2global_rotation": _wxyz(ego),
            "ego2global_translation": ego[:3, 3].tolist(),
            "timestamp": view.timestamp_us,
            "sensor2lidar_rotation": seen[:3, :3],
            "sensor2lidar_translation": seen[:3, 3],
            "cam_intrinsic": view.camera.intrinsics,
        }
    written = boxes[:, :7].copy()
    if layout == "legacy":
        written = boxes_to_legacy(written)
        written[:, 2] = boxes[:, 2]  # these files have gravity centres all the same
    return {
        "token": frame.token,
        "prev": frame.prev_token,
        "next": frame.next_token,
        "scene_token": frame.scene_token,
        "frame_idx": number,
        "timestamp": frame.timestamp_us,
        "lidar_path": f"./data/nuscenes/samples/LIDAR_TOP/{Path(frame.lidar_path).name}",
        "sweeps": [],
        "cams": cameras,
        "lidar2ego_rotation": _wxyz(lidar),
        "lidar2ego_translation": lidar[:3, 3].tolist(),
        "ego2global_rotation": _wxyz(ego),
        "ego2global_translation": ego[:3, 3].tolist(),
        "gt_boxes": written,
        "gt_names": np.array([name or "ignore" for name in labels.names]),
        "gt_velocity": boxes[:, 7:9],
        "num_lidar_pts": np.asarray(labels.num_lidar_points),
        "num_radar_pts": np.asarray(labels.num_radar_points),
        "valid_flag": np.asarray(labels.num_lidar_points) > 0,
    }


def challenge_content(frames: list[Frame]) -> dict[str, Any]:
    """annotations.json of the occupancy challenge."""

    def placed(matrix: np.ndarray) -> dict[str, Any]:
        return {"translation": matrix[:3, 3].tolist(), "rotation": _wxyz(matrix)}

    scenes: dict[str, dict[str, Any]] = {}
    for frame in frames:
        cameras = {
            view.name: {
                "img_path": f"{view.name}/{Path(view.image_path).name}",
                "intrinsic": view.camera.intrinsics.tolist(),
                "extrinsic": placed(invert_pose(frame.global_from_ego) @ view.global_from_camera),
                "ego_pose": placed(frame.global_from_ego) | {"timestamp": view.timestamp_us},
            }
            for view in frame.cameras
        }
        scenes.setdefault(frame.scene_name, {})[frame.token] = {
            "timestamp": str(frame.timestamp_us),
            "camera_sensor": cameras,
            "ego_pose": placed(frame.global_from_ego),
            "gt_path": f"gts/{frame.scene_name}/{frame.token}/labels.npz",
            "prev": frame.prev_token,
            "next": frame.next_token,
        }
    return {"train_split": [], "val_split": sorted(scenes), "scene_infos": scenes}


def write_log(log: Path) -> None:
    """An Argoverse 2 log of a second, without images: a straight drive, three lanes in a row."""
    import pyarrow as arrow

    times = np.arange(0, 1_100_000_000, 100_000_000, dtype=np.int64) + 315_967_000_000_000_000
    count = len(times)
    still = {"qw": np.ones(count), "qx": np.zeros(count), "qy": np.zeros(count), "qz": np.zeros(count)}
    moved = {"tx_m": np.linspace(0, 10, count), "ty_m": np.zeros(count), "tz_m": np.zeros(count)}
    n = len(RING_ORDER)
    wide = np.array([name != "ring_front_center" for name in RING_ORDER])
    yaws = np.linspace(0, 2 * np.pi, n, endpoint=False)
    ahead = matrix_to_quaternion(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))
    mounted = np.array([_turned(yaw, ahead) for yaw in yaws])
    tables = {
        "city_SE3_egovehicle.feather": {"timestamp_ns": times, **still, **moved},
        "calibration/egovehicle_SE3_sensor.feather": {
            "sensor_name": list(RING_ORDER),
            **{key: mounted[:, i] for i, key in enumerate(("qw", "qx", "qy", "qz"))},
            "tx_m": np.full(n, 1.5),
            "ty_m": np.zeros(n),
            "tz_m": np.full(n, 1.4),
        },
        "calibration/intrinsics.feather": {
            "sensor_name": list(RING_ORDER),
            "fx_px": np.full(n, 1700.0),
            "fy_px": np.full(n, 1700.0),
            "cx_px": np.where(wide, 1024.0, 775.0),
            "cy_px": np.where(wide, 775.0, 1024.0),
            **{key: np.zeros(n) for key in ("k1", "k2", "k3")},
            "height_px": np.where(wide, 1550, 2048),
            "width_px": np.where(wide, 2048, 1550),
        },
    }
    for name, columns in tables.items():
        path = log / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = arrow.table(columns)
        with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    def points(x: float, y: float) -> list[dict[str, float]]:
        return [{"x": x + step, "y": y, "z": 0.0} for step in (0.0, 10.0, 20.0)]

    lanes = {
        str(i): {
            "id": i,
            "lane_type": "VEHICLE",
            "is_intersection": i == 1,
            "left_lane_boundary": points(20.0 * i - 20, 1.7),
            "right_lane_boundary": points(20.0 * i - 20, -1.7),
            "successors": [i + 1],
        }
        for i in range(3)
    }
    areas = {"0": {"id": 0, "area_boundary": points(0.0, 5.0)}}
    (log / "map").mkdir()
    (log / "map" / "log_map_archive_toy.json").write_text(json.dumps({"lane_segments": lanes, "drivable_areas": areas}))


def _turned(yaw_rad: float, camera: np.ndarray) -> np.ndarray:
    """wxyz of a camera turned about the vertical axis."""
    return matrix_to_quaternion(rotation_z(np.float64(yaw_rad)) @ quaternion_to_matrix(camera))
