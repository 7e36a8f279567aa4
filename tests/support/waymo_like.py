"""Frames named and labelled as Waymo's, of a toy rig or of the synthetic world, and detections for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from drivestack.core.answers import Detections
from drivestack.core.frames import Annotations, Frame
from drivestack.core.rig import Rig
from drivestack.geometry import pose, rotation_z

CLASSES = ["vehicle", "pedestrian", "cyclist"]
_OF_NUSCENES = {"pedestrian": "pedestrian", "bicycle": "cyclist", "motorcycle": "cyclist"}
_VEHICLES = ("car", "truck", "bus", "trailer", "construction_vehicle")
OF_NUSCENES = _OF_NUSCENES | dict.fromkeys(_VEHICLES, "vehicle")


def as_waymo(frame: Frame) -> Frame:
    """A frame of another set with Waymo's tokens, classes and what its labels state beside their boxes."""
    token = lambda time: f"{frame.scene_name}_{time}"
    notes = frame.annotations
    if notes is not None:
        names = [OF_NUSCENES.get(name, "") for name in notes.names]
        notes = replace(
            notes,
            names=names,
            difficulty=np.where(np.arange(len(names)) % 3 == 2, 2, 1),
            num_top_lidar_points=np.maximum(notes.num_lidar_points, 0),
            most_visible_cameras=["FRONT"] * len(names),
        )
    return replace(
        frame, token=token(frame.timestamp_us), scene_token=frame.scene_name, annotations=notes,
        prev_token="", next_token="",
    )  # fmt: skip


def frames_of(num_segments: int = 2, num_frames: int = 3, objects: int = 12, seed: int = 0) -> list[Frame]:
    """Frames of a car that turns, each with labelled objects around it that do not overlap."""
    rng = np.random.default_rng(seed)
    camera = ([[40.0, 0, 32], [0, 40, 16], [0, 0, 1]], pose(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), [1, 0, 2]))
    rig, image = Rig({"FRONT": (*camera, (64, 32))}), np.zeros((32, 64, 3), np.uint8)
    frames = []
    for segment in range(num_segments):
        for i in range(num_frames):
            here = pose(rotation_z(0.3 * segment + 0.05 * i), [100.0 + i, 5.0, 1.0])
            row = np.arange(objects)
            centre = np.stack([8.0 + 6 * row, rng.uniform(-12, 12, objects), np.full(objects, 0.9)], 1)
            names = [CLASSES[k % 3] for k in row]
            size = np.array([[4.5, 1.9, 1.6], [0.9, 0.8, 1.7], [1.8, 0.8, 1.7]])[row % 3]
            labels = Annotations.of_boxes(
                names, centre, size, rng.uniform(-3, 3, objects), velocity_mps=np.zeros((objects, 2)),
                global_from_frame=here,
            )  # fmt: skip
            labels = replace(
                labels,
                difficulty=np.where(row % 4 == 3, 2, 1),
                num_lidar_points=np.full(objects, 20),
                num_top_lidar_points=np.full(objects, 20),
                most_visible_cameras=["FRONT"] * objects,
            )
            time, context = 1_550_083_467_000_000 + 100_000 * i, f"{10**18 + segment}_000_000_020_000"
            frames.append(
                rig.frame([image], token=f"{context}_{time}", scene=context, timestamp_us=time,
                          global_from_ego=here, annotations=labels)
            )  # fmt: skip
    return frames


def found_in(frames: list[Frame], noise_m: float = 0.0, seed: int = 0, score: float | None = None) -> list[Detections]:
    """Every label of the classes as a detection, its centre off by normal noise; scores from 0.5 to 0.9."""
    rng = np.random.default_rng(seed)
    made = []
    for frame in frames:
        assert frame.annotations is not None
        keep = [i for i, name in enumerate(frame.annotations.names) if name in CLASSES]
        boxes = np.nan_to_num(frame.bev_boxes()[keep])
        boxes[:, :2] += rng.normal(0, noise_m, (len(keep), 2)) if noise_m else 0.0
        scores = rng.uniform(0.5, 0.9, len(keep)) if score is None else np.full(len(keep), score)
        labels = np.array([CLASSES.index(frame.annotations.names[i]) for i in keep], np.int64)
        made.append(Detections(frame.token, boxes.astype(np.float32), scores.astype(np.float32), labels))
    return made
