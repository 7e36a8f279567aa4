"""A folder of images played as a live stream: one answer per keyframe, with the model's memory kept between them.

python examples/make_street.py street --keyframes 8
python examples/live_stream.py street
"""

import argparse
import json
import time
from pathlib import Path

from images_to_answer import read_rig

import drivestack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("street", type=Path, help="rig.json, poses.json and one folder of images per keyframe")
    parser.add_argument("--model", default="perception_tiny_drive")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    options = parser.parse_args()

    model = drivestack.load(options.model, precision=options.precision)
    rig = read_rig(options.street / "rig.json")
    for i, row in enumerate(json.loads((options.street / "poses.json").read_text())):
        images = {name: options.street / f"{i:03d}" / f"{name}.jpg" for name in rig}
        start = time.monotonic()
        answer = model(images, rig, row["global_from_ego"], row["timestamp_us"])
        took_s = time.monotonic() - start
        cars = [name for name in answer.boxes.above(0.3).names if name == "car"]
        print(f"{row['timestamp_us'] / 1e6:.1f} s: {len(cars)} cars, {len(answer.lanes)} lanes, {took_s * 1e3:.0f} ms")
    print(f"{model.session.count} keyframes of drive {model.session.scene}")


if __name__ == "__main__":
    main()
