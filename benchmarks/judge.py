"""What the official scores do not say: submissions measured for memory, depth, thickness, and lanes by distance.

    drivestack evaluate perception_tiny_synthetic perception_tiny_synthetic --dataroot D --version v1.0-trainval \\
        --split val --out runs/answers
    python benchmarks/judge.py runs/answers --dataroot D

PATH is a folder of submissions as `drivestack predict`, `evaluate` and `demo` write it. Printed: the scores of every
task (--details-only leaves them out), and

    boxes    velocity error of boxes linked over keyframes, of the model and of a tracker that is not trained; objects
             that are occluded now and were seen in the last 2 s; false boxes at the wrong depth of a true object
    voxels   mIoU where no camera sees now and LiDAR or earlier cameras saw; thickness of surfaces along rays
    lanes    recall and precision of lane points by distance; gaps of connected ends; DET_p of end points

The definitions stand in the docstrings of bev/evaluation/linked_velocity.py and box_details.py,
occupancy/evaluation/voxel_details.py and lane_topology/evaluation/lane_details.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drivestack.bev.evaluation import linked_velocity
from drivestack.bev.evaluation.box_details import false_boxes_on_rays, occluded_objects
from drivestack.bev.evaluation.nuscenes_boxes import read_submission
from drivestack.core.errors import DrivestackError
from drivestack.core.files import write_json
from drivestack.data_tools.readers.registry import DataSource
from drivestack.lane_topology.evaluation import lane_details
from drivestack.occupancy.evaluation import voxel_details
from drivestack.occupancy.evaluation.submission import VoxelFiles
from drivestack.tasks.base import GroundTruth
from drivestack.tasks.registry import TASKS, Lanes, find


def details(paths: Mapping[str, Path], truth: GroundTruth, tasks: Sequence[str] = tuple(TASKS)) -> dict[str, Any]:
    """All measures of submissions, by task, of the tasks named."""
    frames, found = truth.frames, {}
    if "boxes" in paths and "boxes" in tasks:
        boxes = read_submission(paths["boxes"], truth.tokens)
        found["velocity"] = linked_velocity.velocity_errors(frames, boxes)
        found["occluded"] = occluded_objects(frames, boxes)
        found["rays"] = false_boxes_on_rays(frames, boxes)
    if "occupancy" in paths and "occupancy" in tasks:
        voxels = VoxelFiles(paths["occupancy"]).read
        found["hidden"] = voxel_details.hidden_voxels(frames, voxels)
        found["thickness"] = voxel_details.surface_thickness(frames, voxels)
    if "lanes" in paths and "lanes" in tasks:
        read = Lanes().reader(paths["lanes"], frames, (), truth.split)
        graphs = {frame.token: read(frame) for frame in frames}
        found["lanes"] = lane_details.lane_details(frames, graphs.__getitem__)
    return found


def table(found: Mapping[str, Any]) -> list[str]:
    """As lines of text."""
    lines = []
    if "velocity" in found:
        rays, occluded = found["rays"], found["occluded"]
        lines += [*linked_velocity.table(found["velocity"]), ""]
        if occluded is not None:
            text = {name: "-" if value is None else f"{value:.3f}" for name, value in occluded.items()}
            lines.append(
                f"occluded now, seen in the last 2 s: {occluded['labels']} labels, recall {text['recall']}, AP "
                f"{text['ap']}; recall of all {occluded['others']} others {text['recall_others']}"
            )
        lines.append(
            f"false boxes {rays['false']}, at the wrong depth of a true object {rays['on_rays']} "
            f"({rays['per_frame']:.2f} a keyframe)"
        )
    if "thickness" in found:
        lines += ["", *voxel_details.table(found["hidden"], found["thickness"])]
    if "lanes" in found:
        lines += ["", *lane_details.table(found["lanes"])]
    return lines


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="PATH", help="a folder of submissions")
    parser.add_argument("--dataroot", type=Path, required=True)
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--split", default="val")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=(), help="default: all that are there")
    parser.add_argument("--details-only", action="store_true", help="without the official scores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here, too")
    args = parser.parse_args(arguments)
    paths = find(args.path, args.tasks)
    truth = GroundTruth(DataSource("nuscenes", args.dataroot, {"version": args.version, "split": args.split}))
    found: dict[str, Any] = {}
    if not args.details_only:
        found["scores"] = {}
        for name, path in paths.items():
            task = TASKS[name]()
            found["scores"][name] = scores = task.score(path, truth)
            print("\n".join([task.title, "", *task.table(scores), ""]), flush=True)
    found |= details(paths, truth)
    print("\n".join(table(found)))
    if args.json:
        write_json(args.json, found, indent=1)
    return found


if __name__ == "__main__":
    try:
        main()
    except DrivestackError as error:
        raise SystemExit(f"error: {error}") from None
