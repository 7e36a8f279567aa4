"""Something to try the other examples on: a drive through the synthetic world, as plain images and JSON.

python examples/make_street.py street                    # street/rig.json, street/000/CAM_FRONT.jpg, ...
python examples/make_street.py data/own_rig --own-rig    # the recording of five cameras that own_rig/ reads
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import drivestack
from drivestack.data_tools.synthetic import synthesize

OWN_NAMES = {"car": "pkw", "truck": "lkw", "bus": "lkw", "pedestrian": "person", "bicycle": "two_wheeler"}
OWN_NAMES |= {"motorcycle": "two_wheeler", "barrier": "obstacle", "traffic_cone": "obstacle"}
OWN_CAMERAS = {  # our name, and the width and height that it records
    "CAM_FRONT": ("front", (640, 360)),
    "CAM_FRONT_LEFT": ("left", (480, 270)),
    "CAM_FRONT_RIGHT": ("right", (480, 270)),
    "CAM_BACK_LEFT": ("rear_left", (320, 180)),
    "CAM_BACK_RIGHT": ("rear_right", (320, 180)),
}


def camera_json(camera: dict | None = None, *, intrinsics, ego_from_camera, size_px) -> dict:
    pose, matrix = np.asarray(ego_from_camera).tolist(), np.asarray(intrinsics).tolist()
    return {"intrinsics": matrix, "ego_from_camera": pose, "size_px": list(size_px)}


def write_street(frames: list[drivestack.Frame], out: Path) -> None:
    cameras = {
        view.name: camera_json(
            intrinsics=view.camera.intrinsics,
            ego_from_camera=view.ego_from_camera,
            size_px=(view.camera.width_px, view.camera.height_px),
        )
        for view in frames[0].cameras
    }
    poses = []
    for i, frame in enumerate(frames):
        folder = out / f"{i:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        for view in frame.cameras:
            Image.open(view.image_path).save(folder / f"{view.name}.jpg", quality=92)
        poses.append({"timestamp_us": frame.timestamp_us, "global_from_ego": frame.global_from_ego.tolist()})
    (out / "rig.json").write_text(json.dumps(cameras, indent=1))
    (out / "poses.json").write_text(json.dumps(poses))


def write_own_rig(frames: list[drivestack.Frame], out: Path) -> None:
    (out / "images").mkdir(parents=True, exist_ok=True)
    cameras, rows = {}, []
    for i, frame in enumerate(frames):
        images = {}
        for view in frame.cameras:
            if view.name not in OWN_CAMERAS:
                continue
            name, size = OWN_CAMERAS[view.name]
            camera = view.camera.resized(*size)
            cameras[name] = camera_json(
                intrinsics=camera.intrinsics, ego_from_camera=view.ego_from_camera, size_px=size
            )
            images[name] = f"images/{i:03d}_{name}.jpg"
            Image.open(view.image_path).resize(size, Image.Resampling.LANCZOS).save(out / images[name], quality=92)
        notes = frame.annotations
        seen = [k for k, n in enumerate(notes.names) if n in OWN_NAMES and notes.num_lidar_points[k] > 0]
        objects = [
            {
                "class": OWN_NAMES[notes.names[k]],
                "centre": notes.centre_global_m[k].tolist(),
                "size_lwh": notes.size_lwh_m[k].tolist(),
                "yaw_rad": float(np.arctan2(notes.rotation_global[k, 1, 0], notes.rotation_global[k, 0, 0])),
                "track": notes.instance_tokens[k],
            }
            for k in seen
        ]
        rows.append(
            {
                "drive": frame.scene_name,
                "timestamp_us": frame.timestamp_us,
                "global_from_ego": frame.global_from_ego.tolist(),
                "images": images,
                "objects": objects,
            }
        )
    (out / "recording.json").write_text(json.dumps({"cameras": cameras, "frames": rows}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--own-rig", action="store_true", help="the recording for own_rig/, with labels")
    parser.add_argument("--scenes", type=int, default=1)
    parser.add_argument("--keyframes", type=int, default=4, help="per scene")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "set"
        synthesize(root, "val", options.scenes, options.keyframes, seed=options.seed, labels=(), workers=1)
        frames = drivestack.read(root, version="v1.0-trainval", split="val")
        (write_own_rig if options.own_rig else write_street)(frames, options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
