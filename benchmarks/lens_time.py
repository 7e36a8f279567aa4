"""Time of a frame of the shipped model with distorted cameras against the same with pinholes, interleaved.

    drivestack synthesize data/street --split val --scenes 1 --keyframes 3 --seed 3
    python benchmarks/lens_time.py data/street

Each round answers one frame per rig, in turn: pinholes; Brown-Conrady on all six cameras; a fisheye in front and
Brown-Conrady elsewhere. Images are the same, so only the projection differs. Printed: median seconds and CPU seconds of
a frame, and the median over rounds of the ratio to the pinholes of the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import drivestack
from drivestack.core.frames import Frame
from drivestack.geometry import CameraModel, brown_conrady, kannala_brandt

WAYMO = (0.035, -0.32, 0.001, -0.0007, 0.0)


def rig_of(frame: Frame, lens: Callable[[str, CameraModel], CameraModel]) -> drivestack.Rig:
    """The frame's cameras with other lenses."""
    return drivestack.Rig({v.name: drivestack.Camera(lens(v.name, v.camera), v.ego_from_camera) for v in frame.cameras})


def brown(_: str, camera: CameraModel) -> CameraModel:
    return brown_conrady(camera.intrinsics, camera.width_px, camera.height_px, WAYMO)


def fisheye_ahead(name: str, camera: CameraModel) -> CameraModel:
    if name != "CAM_FRONT":
        return brown(name, camera)
    return kannala_brandt(camera.intrinsics, camera.width_px, camera.height_px, (-0.012, 0.003, -0.0021, 0.0004))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder that synthesize wrote")
    parser.add_argument("--model", default="perception_tiny_synthetic")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()

    model = drivestack.load(options.model)
    frame = drivestack.read(options.root, version="v1.0-trainval", split="val")[0]
    images = {view.name: view.image_path for view in frame.cameras}
    rigs = {
        "pinholes": rig_of(frame, lambda _, camera: camera),
        "Brown-Conrady": rig_of(frame, brown),
        "fisheye and Brown-Conrady": rig_of(frame, fisheye_ahead),
    }
    wall: dict[str, list[float]] = {name: [] for name in rigs}
    cpu: dict[str, list[float]] = {name: [] for name in rigs}
    for round_index in range(options.rounds + 2):
        for name, rig in rigs.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            model(images, rig, frame.global_from_ego, reset=True)
            if round_index >= 2:  # the first ones warm up
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
    for name in rigs:
        ratios = [a / b for a, b in zip(wall[name], wall["pinholes"])]
        cpu_ratios = [a / b for a, b in zip(cpu[name], cpu["pinholes"])]
        print(
            f"{name:<28} {statistics.median(wall[name]):.3f} s  {statistics.median(cpu[name]):.3f} CPU s   "
            f"ratio {statistics.median(ratios):.3f} wall, {statistics.median(cpu_ratios):.3f} CPU"
        )


if __name__ == "__main__":
    main()
