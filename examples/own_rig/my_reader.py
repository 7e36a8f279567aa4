"""Recordings of my car: recording.json beside the images (examples/make_street.py writes one)."""

import json
from pathlib import Path

import drivestack


@drivestack.register_reader("my_car")
def read_my_car(root, split="val"):
    folder = Path(root) / split
    recording = json.loads((folder / "recording.json").read_text())
    rig = drivestack.Rig({name: drivestack.Camera(**camera) for name, camera in recording["cameras"].items()})
    frames = []
    for i, row in enumerate(recording["frames"]):
        objects = row["objects"]
        labels = drivestack.Annotations.of_boxes(
            *([o[key] for o in objects] for key in ("class", "centre", "size_lwh", "yaw_rad")),
            tracks=[o["track"] for o in objects],
        )
        images = {name: folder / path for name, path in row["images"].items()}
        here = dict(token=f"{split}-{i}", scene=row["drive"], timestamp_us=row["timestamp_us"])
        frames.append(rig.frame(images, **here, global_from_ego=row["global_from_ego"], annotations=labels))
    return frames
