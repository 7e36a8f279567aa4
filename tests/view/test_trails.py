"""Trails behind tracks: places of the same id in the keyframes before, fixed in the world while the car moves."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from drivestack.core.answers import NO_TRACK, Detections
from drivestack.core.frames import Frame
from drivestack.geometry import invert_pose, pose, rotation_z, transform_points
from drivestack.view.colours import GROUND_TRUTH, TRACK_COLOURS, colour_distance
from drivestack.view.trails import TRAIL_S, read_trails, track_colour, trails_above, trails_of

PARKED = np.array([12.0, 5.0, 0.5])
"""In the global frame."""


def drive(count: int = 10) -> list[Frame]:
    """A car that drives and turns, a keyframe every half second."""
    poses = [pose(rotation_z(0.2 * i), [2.0 * i, 0.1 * i * i, 0.0]) for i in range(count)]
    return [Frame(f"t{i}", "scene", "scene", i * 500_000, (), own) for i, own in enumerate(poses)]


def seen(frame: Frame, ids: list[int], scores: list[float]) -> Detections:
    boxes = np.zeros((len(ids), 9))
    boxes[:, :3] = transform_points(invert_pose(frame.global_from_bev), PARKED[None])
    return Detections(frame.token, boxes, np.array(scores), np.zeros(len(ids), np.int64), np.array(ids))


def test_a_parked_object_leaves_a_point_however_the_car_turns() -> None:
    frames = drive()
    past = [(frame, seen(frame, [7, 8], [0.1, 0.9])) for frame in frames[:-1]]
    (trail,) = trails_of(frames[-1], seen(frames[-1], [7, 8, NO_TRACK], [0.9, 0.2, 0.9]), past, 0.3)
    assert trail.track_id == 7 and len(trail.centre_global_m) == 1 + TRAIL_S / 0.5
    np.testing.assert_allclose(trail.centre_global_m, np.tile(PARKED, (7, 1)), atol=1e-9)
    canvas = Image.new("RGB", (100, 100))
    trails_above(ImageDraw.Draw(canvas), lambda points: np.asarray(points)[..., :2] + 50, [trail], frames[-1], 2.0)
    place = transform_points(invert_pose(frames[-1].global_from_ego), PARKED[None])[0, :2] + 50
    assert canvas.getpixel((round(place[0]), round(place[1]))) == track_colour(7)


def test_other_scenes_and_boxes_without_tracks_leave_no_trail() -> None:
    frames = drive()
    other = [Frame(f.token, "b", "b", f.timestamp_us, (), f.global_from_ego) for f in frames]
    now = seen(frames[-1], [0], [0.9])
    (trail,) = trails_of(frames[-1], now, [(frame, seen(frame, [0], [0.9])) for frame in other], 0.3)
    assert len(trail.centre_global_m) == 1
    bare = Detections("t", now.boxes, now.scores, now.labels)
    assert trails_of(frames[-1], bare, [(frames[-2], now)], 0.3) == []
    assert read_trails(frames[-1], frames, lambda frame: None, 0.3) == []


def test_colours_of_tracks_differ_from_one_another_and_from_labels() -> None:
    colours = np.array(TRACK_COLOURS)
    apart = colour_distance(colours[:, None], colours[None]) + 1000 * np.eye(len(colours))
    assert apart.min() > 12 and colour_distance(colours, np.array(GROUND_TRUTH)).min() > 24
    assert track_colour(3) == track_colour(3 + len(TRACK_COLOURS)) == pytest.approx(TRACK_COLOURS[3])
