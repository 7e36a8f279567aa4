"""A real Argoverse 2 log: poses, calibration and map become a collection, Frames, targets, lanes again and scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from shapely.geometry import Point, Polygon
from shapely.ops import unary_union

from drivestack.core.answers import LaneGraph
from drivestack.core.cameras import RING_ORDER
from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.core.labels import LaneLabels
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.readers.argoverse2.lanes import map_path, read_areas, read_log
from drivestack.data_tools.readers.openlane.files import collect, write_collection, write_frame
from drivestack.data_tools.readers.openlane.reader import read_openlane
from drivestack.geometry import invert_pose, transform_points
from drivestack.lane_topology.curves import fit_lines, sample_curves
from drivestack.lane_topology.evaluation.evaluate import evaluate
from drivestack.lane_topology.evaluation.rules import check_submission
from drivestack.lane_topology.evaluation.submission import Team, read_predictions, write_submission
from drivestack.lane_topology.front_image import boxes_on_disk

LIFT_M = 4.0
METRICS = ("ols", "det_l", "det_t", "top_ll", "top_lt", "lane_fscore")


@pytest.fixture(scope="module")
def log(shared_real: Path) -> Path:
    pytest.importorskip("pyarrow", reason="reading Feather files needs pyarrow (extra argoverse)")
    return shared_real / "argoverse2_log"


@pytest.fixture(scope="module")
def keyframes(log) -> list[Frame]:
    return read_log(log)


def with_elements(frame: Frame) -> Frame:
    """The frame with an invented light above the end of every lane that the front camera sees there; the log has none.

    Attributes take turns, so that all thirteen occur.
    """
    front, labels = frame.cameras[0], frame.lanes
    ends = np.array([line[-1] for line in labels.centrelines]) + [0, 0, LIFT_M]
    uv, depth = front.camera.project(transform_points(invert_pose(frame.bev_from_camera(front)), ends))
    inside = (depth > 3) & (uv > 20).all(1) & (uv < [front.camera.width_px - 20, front.camera.height_px - 20]).all(1)
    # every place once: lanes that end together share their light
    places, element_of = np.unique(np.round(ends[inside], 1), axis=0, return_inverse=True)
    boxes, governed = np.zeros((len(places), 4), np.float32), np.zeros((len(ends), len(places)), np.int8)
    for lane, element in zip(np.flatnonzero(inside), element_of.ravel()):
        half = 300 / depth[lane]
        boxes[element] = [*(uv[lane] - [half, 2 * half]), *(uv[lane] + [half, 2 * half])]
        governed[lane, element] = 1
    attributes = (np.arange(len(places)) + frame.timestamp_us // 500_000) % 13
    lanes = replace(labels, elements_xyxy_px=boxes, attributes=attributes, lane_element=governed)
    return replace(frame, lanes=lanes)


def graph(token: str, labels: LaneLabels, lines: np.ndarray, boxes: np.ndarray) -> LaneGraph:
    """What a model that makes no mistake but those of ``lines`` and ``boxes`` would answer."""
    n, k = labels.lane_element.shape
    return LaneGraph(
        token, lines, np.linspace(0.9, 0.8, n, dtype=np.float32), boxes, labels.attributes,
        np.linspace(0.9, 0.8, k, dtype=np.float32), labels.lane_lane * np.float32(0.9),
        labels.lane_element * np.float32(0.9),
    )  # fmt: skip


@pytest.fixture(scope="module")
def read_back(keyframes, tmp_path_factory) -> tuple[list[Frame], Path]:
    """Frames of the log that went through info files and a collection, every second second; and the root of it all."""
    root = tmp_path_factory.mktemp("openlane")
    frames = [with_elements(frame) for frame in keyframes[::4]]
    keys = [write_frame(root, "val", frame) for frame in frames]
    write_collection(root / "log.pkl", collect(root, keys, point_interval=20))
    return read_openlane(root, "log.pkl"), root


def test_poses_calibration_and_lanes_fit_together(log, keyframes):
    frames = keyframes
    assert len(frames) == 32 and [view.name for view in frames[0].cameras] == list(RING_ORDER)
    assert np.diff([frame.timestamp_us for frame in frames]) == pytest.approx(500_000, abs=10_000)
    assert frames[3].prev_token == frames[2].token and frames[0].cameras[0].camera.height_px == 2048
    areas = unary_union([Polygon(area[:, :2]).buffer(0) for area in read_areas(map_path(log))])
    road, joints = [], []
    for frame in frames:
        assert areas.contains(Point(*frame.global_from_ego[:2, 3]))  # the car is on the road
        forward = frame.bev_from_camera(frame.cameras[0])[:3, 2]
        assert forward @ [1, 0, 0] > 0.99  # the front camera looks ahead
        labels = frame.lanes
        points = np.concatenate([line[::40] for line in labels.centrelines])
        assert (np.abs(points[:, :2]) < [50.01, 25.01]).all()
        road += [areas.contains(Point(*p)) for p in transform_points(frame.global_from_ego, points)[:, :2]]
        i, j = np.nonzero(labels.lane_lane)
        joints += [np.linalg.norm(labels.centrelines[a][-1] - labels.centrelines[b][0]) for a, b in zip(i, j)]
        # the car drives along a lane: the nearest one points ahead and lies at the height of the ground below it
        own = min(labels.centrelines, key=lambda line: np.linalg.norm(line[:, :2], axis=1).min())
        nearest = np.linalg.norm(own[:, :2], axis=1).argmin()
        assert np.linalg.norm(own[nearest, :2]) < 3 and abs(own[nearest, 2]) < 1
    assert np.mean(road) > 0.97
    assert len(joints) > 100 and max(joints) < 0.5


def test_perfect_predictions_score_1_and_bezier_curves_stay_near(read_back, tmp_path):
    frames, _ = read_back
    labels = [frame.lanes for frame in frames]
    assert len(frames) == 8 and min(len(own.centrelines) for own in labels) > 10
    assert {len(line) for own in labels for line in own.centrelines} == {11}
    assert sum(own.lane_lane.sum() for own in labels) > 50 and sum(own.lane_element.sum() for own in labels) > 20
    exact, decoded, apart = {}, {}, []
    for frame, own in zip(frames, labels):
        lines = np.stack(own.centrelines)
        curves = sample_curves(fit_lines([torch.from_numpy(line) for line in lines])).numpy()
        apart.append(np.linalg.norm(curves - lines, axis=-1).max())
        exact[frame.token] = graph(frame.token, own, lines, own.elements_xyxy_px)
        decoded[frame.token] = graph(frame.token, own, curves, own.elements_xyxy_px)
    scores = evaluate(frames, exact.__getitem__)
    assert {name: scores[name] for name in METRICS} == dict.fromkeys(METRICS, 1.0)
    print(f"largest distance of a point from its Bezier curve: {max(apart):.3f} m")
    assert max(apart) < 0.5
    scores = evaluate(frames, decoded.__getitem__)
    assert [scores[name] for name in ("ols", "det_l", "top_ll", "top_lt")] == [1.0] * 4

    # and through a submission file in half precision
    results = {tuple(token.split("/")): found for token, found in decoded.items()}
    write_submission(tmp_path / "s.pkl", results, Team("m", ("a",), "e", "i", "AT"), half=True)
    assert check_submission(tmp_path / "s.pkl", results) == []
    found = {found.token: found for found in read_predictions(tmp_path / "s.pkl").values()}
    assert evaluate(frames, found.__getitem__)["ols"] == 1.0


def test_targets_of_the_data_set_come_back_as_labels(read_back):
    """Through images of the real sizes: resized, the portrait front one stretched, and boxes back on disk."""
    frames, root = read_back
    frame = max(frames, key=lambda own: len(own.lanes.attributes))
    views = []
    for view in frame.cameras:
        path = root / f"{view.name}.png"
        cv2.imwrite(str(path), np.zeros((view.camera.height_px, view.camera.width_px, 3), np.uint8))
        views.append(replace(view, image_path=str(path)))
    image = dict(crop=(0, 0, 1, 1), test_height_px=160, aspect=1.32, resample="area")
    dataset = ClipDataset(frames=[replace(frame, cameras=tuple(views))], classes=[], lanes=True, image=image)
    batch = collate_clips([dataset[0]])
    assert batch.images.shape == (1, 1, 7, 3, 160, 224)
    targets = batch.lanes[0]
    lines = sample_curves(fit_lines(targets.centrelines)).numpy()
    boxes = boxes_on_disk(targets.elements_xyxy_px, batch, 0, targets.front_camera).numpy()
    np.testing.assert_allclose(boxes, frame.lanes.elements_xyxy_px, atol=0.02)
    again = LaneLabels(
        targets.centrelines, frame.lanes.is_connector, boxes, targets.attributes.numpy(),
        targets.lane_lane.numpy().astype(np.int8), targets.lane_element.numpy().astype(np.int8),
    )  # fmt: skip
    scores = evaluate([frame], lambda token: graph(token, again, lines, boxes))
    assert {name: scores[name] for name in METRICS[:-1]} == dict.fromkeys(METRICS[:-1], 1.0)


def test_images_are_taken_at_their_own_time(log, keyframes, tmp_path):
    copy = tmp_path / "log"
    for path in (map_path(log), *log.glob("*.feather"), *log.glob("calibration/*.feather")):
        target = copy / path.relative_to(log)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    first, second = keyframes[4:6]
    late_us = first.timestamp_us + 24_000
    folder = copy / "sensors" / "cameras" / "ring_side_left"
    folder.mkdir(parents=True)
    (folder / f"{late_us}000.jpg").touch()
    (frame,) = read_log(copy)  # the others have no image, nor has another camera
    assert frame.timestamp_us == first.timestamp_us and frame.conditions == {"location": "PIT"}
    (side,) = frame.cameras
    assert side.timestamp_us == late_us and Path(side.image_path).is_file()
    still = next(view for view in first.cameras if view.name == "ring_side_left")
    moved = (frame.bev_from_camera(side) - first.bev_from_camera(still))[:3, 3]
    expected = second.global_from_ego[:3, 3] - first.global_from_ego[:3, 3]
    part = (late_us - first.timestamp_us) / (second.timestamp_us - first.timestamp_us)
    assert np.linalg.norm(moved) == pytest.approx(part * np.linalg.norm(expected), abs=0.03)
    assert np.linalg.norm(moved) > 0.2

    (copy / "city_SE3_egovehicle.feather").unlink()
    with pytest.raises(DataError, match=r"city_SE3_egovehicle\.feather: cannot be read"):
        read_log(copy)
    (copy / "city_SE3_egovehicle.feather").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"city_SE3_egovehicle\.feather: cannot be read .*; fetch this log again"):
        read_log(copy)
    with pytest.raises(DataError, match="give the folder of an Argoverse 2 log"):
        read_log(tmp_path)
