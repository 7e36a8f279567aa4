"""Images of one moment and the calibration of their cameras to boxes, voxels, lanes and a picture.

python examples/make_street.py street
python examples/images_to_answer.py street/rig.json street/000 --out answer.jpg
"""

import argparse
import json
from pathlib import Path

import drivestack


def read_rig(path: Path) -> drivestack.Rig:
    """Cameras by name, from JSON: intrinsics [3][3], ego_from_camera [4][4], size_px [2] each."""
    return drivestack.Rig({name: drivestack.Camera(**camera) for name, camera in json.loads(path.read_text()).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rig", type=Path)
    parser.add_argument("images", type=Path, help="folder with one image per camera, named like it")
    parser.add_argument("--model", default="perception_tiny_synthetic")
    parser.add_argument("--out", default="answer.jpg")
    options = parser.parse_args()

    model = drivestack.load(options.model)
    rig = read_rig(options.rig)
    answer = model({name: options.images / f"{name}.jpg" for name in rig}, rig)

    boxes = answer.boxes.above(0.3)
    for name, centre, score in zip(boxes.names, boxes.centre_m, boxes.scores):
        print(f"{name:<20} {centre[0]:6.1f} m ahead {centre[1]:6.1f} m left  {score:.2f}")
    points, _ = answer.voxels.occupied()
    print(f"{len(boxes)} boxes, {len(points)} occupied voxels, {(answer.lanes.scores > 0.3).sum()} lanes")
    answer.picture().save(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
