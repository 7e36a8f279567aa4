"""Streets from above, with lanes and the drive: the figure of docs/synthetic.md.

    python benchmarks/streets_figure.py docs/streets.jpg --seed 7

A row for each kind of streets. Blue: lanes, orange: connectors, yellow on red: the keyframes of the car, pink: moving
vehicles, green: people who walk.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from drivestack.data_tools.synthetic import World, build_world
from drivestack.data_tools.synthetic.sensing.renderer import RayCaster

_SIDE_PX, _HALF_M, _EYE_M = 380, 80.0, 60.0


def view_from_above(world: World) -> Image.Image:
    """[_SIDE_PX, _SIDE_PX] around the middle of the drive, north up."""
    times = world.keyframe_times_s
    drive, _ = world.ego.poses(times)
    middle = drive[len(drive) // 2]
    mesh = world.mesh_at(float(times[len(times) // 2]))
    grid = (np.arange(_SIDE_PX) + 0.5) / _SIDE_PX * 2 * _HALF_M - _HALF_M
    x, y = np.meshgrid(grid, -grid)
    eye = np.stack([middle[0] + x.ravel(), middle[1] + y.ravel(), np.full(x.size, _EYE_M)], -1).astype(np.float32)
    hits = RayCaster(mesh).first_hits(eye, np.tile(np.array([0, 0, -1], np.float32), (len(eye), 1)))
    colour = np.where((hits.face >= 0)[:, None], mesh.colour[hits.face], 0.0)
    image = Image.fromarray((255 * colour.reshape(_SIDE_PX, _SIDE_PX, 3)).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)

    def pixels(points: np.ndarray) -> list[tuple[float, float]]:
        at = (points[:, :2] - middle) * [1, -1] / (2 * _HALF_M) * _SIDE_PX + _SIDE_PX / 2
        return [(float(u), float(v)) for u, v in at]

    for lane in world.layout.lanes.values():
        draw.line(pixels(lane.centreline), fill=(255, 150, 0) if lane.is_connector else (0, 220, 255))
    for thing in world.objects:
        centre, _, present = thing.motion.poses(times)
        if thing.motion.speed_mps and present.sum() > 1:
            draw.line(pixels(centre[present]), fill=(0, 255, 0) if thing.name == "pedestrian" else (255, 0, 255))
    draw.line(pixels(drive), fill=(255, 0, 0), width=3)
    for u, v in pixels(drive):
        draw.ellipse((u - 2, v - 2, u + 2, v + 2), fill=(255, 255, 0))
    return image


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JPEG or PNG")
    parser.add_argument("--streets", nargs="*", default=["plain", "turning", "towns"])
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    figure = Image.new("RGB", (options.scenes * (_SIDE_PX + 4), len(options.streets) * (_SIDE_PX + 4)), "white")
    for row, streets in enumerate(options.streets):
        for index in range(options.scenes):
            picture = view_from_above(build_world(options.seed, "val", index, 20, streets))
            figure.paste(picture, (index * (_SIDE_PX + 4), row * (_SIDE_PX + 4)))
    figure.save(options.out, quality=85)


if __name__ == "__main__":
    main()
