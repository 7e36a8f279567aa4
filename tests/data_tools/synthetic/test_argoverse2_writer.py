"""The synthetic world written as Argoverse 2 gives the same frames again, down to the scores of a submission."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.bev.evaluation.argoverse2_rules import check_submission, sweeps_of
from drivestack.bev.evaluation.argoverse2_submission import read_detections, score_submission, write_submission
from drivestack.core.answers import Detections
from drivestack.core.argoverse2 import EVALUATED_CLASSES
from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.images import load_image
from drivestack.data_tools.readers.argoverse2.sensor import read_argoverse2_sensor
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.synthetic import synthesize
from drivestack.data_tools.synthetic.files.argoverse2_writer import CATEGORY_OF_CLASS, write_argoverse2
from drivestack.geometry import brown_conrady, invert_pose, pose, rotation_z, transform_points

pytest.importorskip("pyarrow", reason="Feather files need pyarrow (extra argoverse)")

CLASS_OF_CATEGORY = {category: name for name, category in CATEGORY_OF_CLASS.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    """Two scenes of three keyframes, the car moving on between a keyframe and its images."""
    root = synthesize(
        tmp_path_factory.mktemp("world") / "set", "val", 2, 3, seed=3, image_width_px=96, rig="argoverse2", labels=(),
        workers=1, progress=False,
    )  # fmt: skip
    frames = []
    for frame in read_nuscenes(root, "v1.0-trainval", "val"):
        views = []
        for i, view in enumerate(frame.cameras):
            later_us = 3_000 * (i - 3)
            moved = pose(rotation_z(1e-3 * i), [5e-6 * later_us, 0, 0])
            then = view.global_from_ego @ moved if i != 3 else frame.global_from_ego
            views.append(replace(view, global_from_ego=then, timestamp_us=frame.timestamp_us + later_us))
        frames.append(replace(frame, cameras=tuple(views)))
    return frames


@pytest.fixture(scope="module")
def root(world: list[Frame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("argoverse2")
    assert write_argoverse2(world, root) == root / "val"
    return root


@pytest.fixture(scope="module")
def again(root: Path) -> list[Frame]:
    return read_argoverse2_sensor(root, classes=CLASS_OF_CATEGORY)


def matched(world: list[Frame], again: list[Frame]) -> list[tuple[Frame, Frame]]:
    by_place = {(frame.scene_token, frame.timestamp_us): frame for frame in again}
    assert len(by_place) == len(world) == len(again) == 6
    return [(frame, by_place[frame.scene_token, frame.timestamp_us]) for frame in world]


def test_poses_and_pixels_come_back(world: list[Frame], again: list[Frame]) -> None:
    points = np.random.default_rng(0).uniform(-40, 40, (200, 3)) * [1, 1, 0.05]
    for frame, other in matched(world, again):
        np.testing.assert_allclose(other.global_from_ego, frame.global_from_ego, rtol=0, atol=1e-9)
        views = {view.name: view for view in other.cameras}
        assert len(views) == len(frame.cameras) == 7
        for view in frame.cameras:
            mine = views[view.name]
            assert mine.timestamp_us == view.timestamp_us and mine.image_size_px == view.image_size_px
            np.testing.assert_allclose(mine.global_from_camera, view.global_from_camera, rtol=0, atol=1e-9)
            world_points = transform_points(frame.global_from_ego, points)
            pixels = [
                v.camera.project(transform_points(invert_pose(v.global_from_camera), world_points))[0]
                for v in (view, mine)
            ]
            assert np.isfinite(pixels[0]).any()
            np.testing.assert_allclose(pixels[1], pixels[0], rtol=0, atol=0.01)
            np.testing.assert_array_equal(load_image(mine, "a"), load_image(view, "a"))


def test_boxes_velocities_and_classes_come_back(world: list[Frame], again: list[Frame]) -> None:
    total = compared = 0
    for frame, other in matched(world, again):
        wanted, found = frame.annotations, other.annotations
        row = {token: i for i, token in enumerate(found.instance_tokens)}
        order = [row[token] for token in wanted.instance_tokens]
        assert len(order) == len(found) and [found.names[i] for i in order] == wanted.names
        for name in ("centre_global_m", "rotation_global", "size_lwh_m"):
            np.testing.assert_allclose(getattr(found, name)[order], getattr(wanted, name), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found.num_lidar_points[order], wanted.num_lidar_points)
        known = np.isfinite(wanted.velocity_global_mps).all(1)
        np.testing.assert_allclose(
            found.velocity_global_mps[order][known], wanted.velocity_global_mps[known], rtol=0, atol=1e-6
        )
        total, compared = total + len(order), compared + int(known.sum())
    assert total > 50 and compared > 40


def test_images_may_be_of_the_very_time_of_their_sweep(world: list[Frame], tmp_path: Path) -> None:
    still = [
        replace(view, timestamp_us=world[0].timestamp_us, global_from_ego=world[0].global_from_ego)
        for view in world[0].cameras
    ]
    write_argoverse2([replace(world[0], cameras=tuple(still))], tmp_path, images=False)  # one pose in the whole log
    (frame,) = read_argoverse2_sensor(tmp_path)
    assert {view.timestamp_us for view in frame.cameras} == {frame.timestamp_us} == {world[0].timestamp_us}
    np.testing.assert_allclose(frame.global_from_ego, world[0].global_from_ego, rtol=0, atol=1e-9)


def test_links_lead_through_each_log(again: list[Frame]) -> None:
    assert [bool(frame.prev_token) for frame in again] == [False, True, True] * 2
    assert all(frame.token.startswith(f"{frame.scene_token}-") for frame in again)


def test_a_submission_of_the_truth_scores_1(world: list[Frame], root: Path, tmp_path: Path) -> None:
    frames = read_argoverse2_sensor(root)
    label = {name: i for i, name in enumerate(EVALUATED_CLASSES)}
    answers = {}
    for frame in frames:
        notes = frame.annotations
        boxes = np.nan_to_num(frame.bev_boxes()).astype(np.float32)
        labels = np.array([label[name] for name in notes.names])
        answers[frame.token] = Detections(frame.token, boxes, np.linspace(0.9, 0.1, len(boxes)), labels)
    path = tmp_path / "detections.feather"
    assert write_submission(path, answers, frames) == sum(len(answer.boxes) for answer in answers.values())
    assert check_submission(path, sweeps_of(frames)) == []
    scores = score_submission(path, frames)
    present = {name: own for name, own in scores["classes"].items() if own["num_truths"]}
    assert len(present) >= 5
    for name, own in present.items():  # boxes without a LiDAR point are no truths, and predictions of them are wrong
        assert own["ATE"] < 1e-5 and own["ASE"] < 1e-5 and own["AOE"] < 1e-5, name
    seen = {frame.token: replace_rows(answers[frame.token], frame.annotations.num_lidar_points > 0) for frame in frames}
    write_submission(path, seen, frames)
    assert score_submission(path, frames)["classes_with_truth"]["CDS"] == pytest.approx(1.0, abs=1e-5)
    back = read_detections(path, frames)
    for frame in frames:
        order = np.argsort(-seen[frame.token].scores, kind="stable")
        wanted = seen[frame.token].boxes[order]
        near = np.linalg.norm(wanted[:, :3], axis=1) < 150
        np.testing.assert_allclose(back[frame.token].boxes[:, :6], wanted[near, :6], atol=1e-4)


def replace_rows(answer: Detections, rows: np.ndarray) -> Detections:
    return Detections(answer.token, answer.boxes[rows], answer.scores[rows], answer.labels[rows])


def test_what_the_set_cannot_hold_is_refused(world: list[Frame], tmp_path: Path, caplog) -> None:
    frame = world[0]
    first, *others = frame.cameras

    def refused(says: str, *views, frames=None, **options) -> None:
        changed = frames or [replace(frame, cameras=(*views, *others))]
        with pytest.raises(DataError, match=says):
            write_argoverse2(changed, tmp_path / "out", images=False, **options)
        assert not list((tmp_path / "out").glob("val/[!.]*"))  # nothing that a reader would find

    camera = brown_conrady(first.camera.intrinsics, first.camera.width_px, first.camera.height_px, [-0.2, 0.1, 0, 0])
    refused("ring_front_center: has a lens, but images of Argoverse 2 are undistorted", replace(first, camera=camera))
    skewed = replace(first.camera, intrinsics=first.camera.intrinsics + [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    refused("its image axes are skewed", replace(first, camera=skewed))
    refused("CAM_FRONT: is no ring camera", replace(first, name="CAM_FRONT"))
    moved = pose(np.eye(3), [9.0, 0, 0])
    same_time = replace(first, timestamp_us=frame.timestamp_us, global_from_ego=frame.global_from_ego @ moved)
    refused("the car has two poses at", same_time)
    second = replace(world[1], cameras=(replace(world[1].cameras[0], camera=first.camera.resized(50, 90)),))
    refused("its calibration is not that of the log's first frame", frames=[frame, second])
    refused("has no labels, others of its log have", frames=[frame, replace(world[1], annotations=None)])
    missing = replace(first, image_path=str(tmp_path / "none.jpg"))
    with pytest.raises(DataError, match=r"ring_front_center .*image is missing; fetch it, or write without images"):
        write_argoverse2([replace(frame, cameras=(missing,))], tmp_path / "out")

    named = replace(first, name="CAM_FRONT")
    names = {"CAM_FRONT": "ring_front_center"}
    with caplog.at_level(logging.WARNING, "drivestack"):
        write_argoverse2(
            [replace(frame, cameras=(named,))], tmp_path / "out", "train", {"car": "REGULAR_VEHICLE"}, names, False
        )
    num_cars = frame.annotations.names.count("car")
    assert f"{len(frame.annotations) - num_cars} objects have no category of Argoverse 2" in caplog.text
    with pytest.raises(DataError, match="is there already"):
        write_argoverse2([frame], tmp_path / "out", "train", images=False)


def test_other_images_become_jpegs_and_a_test_split_has_no_labels(world: list[Frame], tmp_path: Path) -> None:
    frame = world[0]
    file = tmp_path / "front.png"
    pixels = load_image(frame.cameras[0], "a")[:, :, ::-1]
    Image.fromarray(pixels).save(file)
    views = (
        replace(frame.cameras[0], image_path=str(file)),
        replace(frame.cameras[1], image=np.full((73, 96, 3), 77, np.uint8), image_path=""),
        *frame.cameras[2:],
    )
    write_argoverse2([replace(frame, cameras=views, annotations=None)], tmp_path / "set", "test")
    (found,) = read_argoverse2_sensor(tmp_path / "set", "test")
    assert found.annotations is None
    front, left = found.cameras[:2]
    assert np.abs(load_image(front, "a")[:, :, ::-1].astype(int) - pixels).mean() < 3
    assert (load_image(left, "a") == 77).all()


def test_the_code_of_the_page_runs(
    repository_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (repository_root / "docs" / "argoverse2.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "argoverse2.md", "exec"), {"__name__": "page"})
    printed = re.findall(r"print\(.*\)  # (.*)", code)
    assert capsys.readouterr().out.splitlines() == printed == ["[]", "1.00 m"]
