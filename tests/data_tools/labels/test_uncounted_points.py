"""Boxes whose LiDAR points nobody counted are labels of every kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drivestack.core.frames import SEEN_POINTS, Annotations, CameraView, Frame
from drivestack.data_tools.clips.transforms import ImagePlacement
from drivestack.data_tools.labels.ground_truth import ground_truth
from drivestack.data_tools.labels.mono_targets import MIN_POINTS, mono_targets
from drivestack.data_tools.readers.logs.py123d_labels import known_counts
from drivestack.data_tools.readers.recordings.mcap_file import McapImage
from drivestack.data_tools.readers.waymo.parts import Calibration, Label, LabelRules, Moment, Segment, Shot, frames_of
from drivestack.geometry import CameraModel, pose

CAMERA = CameraModel(np.array([[100.0, 0, 200], [0, 100, 150], [0, 0, 1]]), 400, 300)
MOUNTED = pose(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), [0.0, 0, 1.5])
VIEW = CameraView("FRONT", CAMERA, MOUNTED, np.eye(4), 0)
CENTRE, SIZE = [12.0, 1.0, 0.8], [4.0, 2.0, 1.6]


def waymo_labels(points: int | None, top: int | None) -> Annotations:
    """Of one car, as a file of Waymo's states its points."""
    label = Label("a", 1, np.array([*CENTRE, *SIZE, 0.0]), None, "FRONT", (0.0, 0.0), points, top, 0)
    shot = Shot(1, np.eye(4), 0.0, McapImage("", "", -1, 0), 0.0, 0.0, 0.0, (0.0,) * 6)
    moment = Moment(0, np.eye(4), (shot,), (label,))
    segment = Segment("s", "s", {1: Calibration(CAMERA, MOUNTED, "")}, (moment,), True, False)
    rules = LabelRules({"vehicle": "car"}, camera_only=False)
    (frame,) = (rules.finish(frame) for frame in frames_of(segment, rules))
    assert frame.annotations is not None
    return frame.annotations


@pytest.mark.parametrize(
    "labels",
    [Annotations.of_boxes(["car"], [CENTRE], [SIZE], [0.1]), waymo_labels(None, None)],
    ids=["own", "waymo"],
)
def test_boxes_without_counts_are_labels_in_bev_and_in_images(labels: Annotations) -> None:
    assert labels.num_lidar_points.tolist() == [SEEN_POINTS] and SEEN_POINTS >= MIN_POINTS
    frame = Frame("t", "s", "s", 0, (VIEW,), np.eye(4), annotations=labels)
    assert len(ground_truth(frame, ["car"], [-50, -50, -5, 50, 50, 3])[1]) == 1
    targets = mono_targets(labels, VIEW, ["car"], ImagePlacement.of(CAMERA, (0.0, 0.0, 1.0, 1.0), 300))
    assert targets is not None and targets.labels.tolist() == [0]
    few = replace(labels, num_lidar_points=np.array([MIN_POINTS - 1]))
    assert mono_targets(few, VIEW, ["car"], ImagePlacement.of(CAMERA, (0.0, 0.0, 1.0, 1.0), 300)) is None


def test_what_is_counted_stays() -> None:
    assert known_counts(np.array([np.nan, 0, 1, 7]), "train").tolist() == [SEEN_POINTS, 0, 1, 7]
    stated = [(0, None), (2, None), (9, 4), (None, 4), (None, 0)]
    assert [waymo_labels(*points).num_lidar_points.tolist() for points in stated] == [[0], [2], [9], [4], [0]]
