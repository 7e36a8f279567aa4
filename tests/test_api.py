"""The Python API: images in memory and by path to answers, sessions, batches of rigs, conversions, scores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import drivestack
from drivestack.core.errors import CheckpointError, ConfigError, DataError
from drivestack.geometry import pose, transform_boxes
from support.toy_pictures import toy_frame

TINY = "perception_tiny_synthetic"
SIX = {"CAM_FRONT": 0, "CAM_FRONT_RIGHT": -55, "CAM_FRONT_LEFT": 55}
SIX |= {"CAM_BACK": 180, "CAM_BACK_LEFT": 110, "CAM_BACK_RIGHT": -110}


@pytest.fixture(scope="module")
def frame(tmp_path_factory) -> drivestack.Frame:
    """Six noisy cameras around a car."""
    folder = tmp_path_factory.mktemp("api")
    frame = toy_frame(folder, [(name, degrees, (320, 180)) for name, degrees in SIX.items()])
    rng = np.random.default_rng(0)
    for view in frame.cameras:
        Image.fromarray(rng.integers(0, 255, (180, 320, 3), dtype=np.uint8)).save(view.image_path)
    return frame


@pytest.fixture(scope="module")
def rig(frame) -> drivestack.Rig:
    return drivestack.Rig(
        {v.name: drivestack.Camera(v.camera.intrinsics, v.ego_from_camera, v.image_size_px) for v in frame.cameras}
    )


@pytest.fixture(scope="module")
def images(frame) -> dict[str, np.ndarray]:
    return {view.name: np.array(Image.open(view.image_path)) for view in frame.cameras}


@pytest.fixture(scope="module")
def model() -> drivestack.Perception:
    return drivestack.load(TINY, device="cpu")


def same(a: drivestack.Answer, b: drivestack.Answer, atol: float = 0.0) -> None:
    np.testing.assert_allclose(a.boxes.scores, b.boxes.scores, rtol=0, atol=atol)
    np.testing.assert_allclose(a.boxes.centre_m, b.boxes.centre_m, rtol=0, atol=atol)


def test_the_package_shows_its_names_without_loading_them() -> None:
    program = "import drivestack as d, sys; print(sorted(set(d.__all__) - set(dir(d))), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == ["[]", "False"]
    assert all(getattr(drivestack, name) is not None for name in drivestack.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        drivestack.nothing  # noqa: B018
    assert drivestack.list_models() == ["bevformerv2_tiny_synthetic", "perception_tiny_drive", TINY]


def test_arrays_tensors_pictures_and_paths_are_the_same_images(model, rig, images, frame) -> None:
    answers = [
        model(given, rig, reset=True)
        for given in (
            images,
            {name: torch.from_numpy(pixels).permute(2, 0, 1) for name, pixels in images.items()},
            {name: torch.from_numpy(pixels).float() / 255 for name, pixels in images.items()},
            {name: Image.fromarray(pixels) for name, pixels in images.items()},
            {view.name: view.image_path for view in frame.cameras},
            [Path(view.image_path) for view in frame.cameras],
        )
    ]
    for answer in answers[1:]:
        same(answer, answers[0])


def test_an_answer_lies_in_the_ego_frame_with_names(model, rig, images) -> None:
    answer = model(images, rig, reset=True)
    boxes, raw = answer.boxes, answer.raw.boxes
    expected = transform_boxes(answer.frame.ego_from_bev, raw.boxes.astype(np.float64))
    np.testing.assert_allclose(boxes.centre_m, expected[:, :3], atol=1e-5)
    assert boxes.names == [model.class_names[label] for label in boxes.labels] and len(boxes) == len(raw.scores)
    few = boxes.above(float(np.sort(boxes.scores)[-3]))
    assert len(few) == len(few.names) == 3 and few.scores.min() >= np.sort(boxes.scores)[-3]
    assert answer.voxels.semantics.shape == answer.voxels.grid.shape and answer.voxels.class_names[4] == "car"
    points, names = answer.voxels.occupied()
    assert len(points) == len(names) == (answer.voxels.semantics != answer.voxels.free).sum()
    assert 0 < len(answer.lanes) <= 50 and answer.lanes.lane_lane.shape == (len(answer.lanes), len(answer.lanes))
    assert len(answer.lanes.element_names) == len(answer.lanes.element_scores)
    entries = answer.to_nuscenes()
    assert {e["detection_name"] for e in entries} <= set(model.class_names) and len(entries) <= len(boxes)
    assert set(answer.to_openlane()) == {"lane_centerline", "traffic_element", "topology_lclc", "topology_lcte"}
    only = model(images, rig, reset=True, tasks=["lanes"])
    assert (
        only.boxes is None and only.voxels is None and len(only.lanes) == len(answer.lanes) and only.to_nuscenes() == []
    )


def test_a_picture_of_images_in_memory(model, rig, images) -> None:
    answer = model(images, rig, reset=True)
    picture = answer.picture(camera_width_px=160)
    assert picture.mode == "RGB" and picture.width > 400
    black = {name: np.zeros_like(pixels) for name, pixels in images.items()}
    assert np.asarray(answer.picture(black, camera_width_px=160)).mean() < np.asarray(picture).mean()
    with pytest.raises(DataError, match="no image of camera CAM_FRONT"):
        answer.picture({})


def test_cameras_are_known_by_name(model, rig, images) -> None:
    """The order in which a rig names its cameras is nobody's concern where the model knows their names."""
    turned = drivestack.Rig({name: rig[name] for name in reversed(list(rig))})
    same(model(images, turned, reset=True), model(images, rig, reset=True))


def test_a_camera_without_an_image_is_masked(model, rig, images) -> None:
    """The same as a rig without it, and the drive goes on when the camera is back."""
    five = drivestack.Rig({name: rig[name] for name in rig if name != "CAM_FRONT_LEFT"})
    expected = model({name: images[name] for name in five}, five, reset=True)
    same(model(images | {"CAM_FRONT_LEFT": None}, rig, reset=True), expected, atol=1e-4)
    whole = model(images, rig)
    assert len(whole.lanes.element_names) > 0
    blind = model(images | {"CAM_FRONT": None}, rig)
    assert len(blind.lanes.element_names) == 0 and len(blind.lanes) > 0
    with pytest.raises(DataError, match="no image of any camera"):
        model(dict.fromkeys(rig), rig)


def test_batches_of_rigs(model, rig, images) -> None:
    three = drivestack.Rig({name: rig[name] for name in list(rig)[:3]})
    few = {name: images[name] for name in three}
    alone = [model(images, rig, reset=True), model(few, three, reset=True)]
    both = model.batch([images, few, images], [rig, three, rig])
    for answer, expected in zip(both, (*alone, alone[0])):
        same(answer, expected, atol=1e-4)
    with pytest.raises(ConfigError, match="2 sets of images, but 1 rigs"):
        model.batch([images, images], [rig])


@pytest.fixture(scope="module", params=["two keyframes", "streaming memory"])
def remembering(request: pytest.FixtureRequest) -> drivestack.Perception:
    """The tiny detector over time, random weights."""
    from drivestack.engine.config import build_model, load_config

    if request.param == "two keyframes":
        config = load_config("bevformerv2_tiny_synthetic", ["model.bev_map.frames=(-1, 0)"])
    else:
        config = load_config("perception_tiny_memory", {"model.tasks": ["boxes"]})
    torch.manual_seed(0)
    model = build_model(config)
    if model.memory is not None:
        with torch.no_grad():
            for parameter in model.memory.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return drivestack.Perception(model, config)


def test_a_session_is_read_copied_and_passed(remembering, rig, images) -> None:
    poses = [np.eye(4), np.eye(4)]
    poses[1][0, 3] = 2.0
    assert remembering.remembers
    first = remembering(images, rig, poses[0], 0)
    fork = remembering.session.copy()
    second = remembering(images, rig, poses[1], 500_000)
    assert second.frame.prev_token == first.frame.token and remembering.session.count == 2 and fork.count == 1
    same(remembering(images, rig, poses[1], 500_000, session=fork), second)
    fresh = remembering(images, rig, poses[1], 500_000, reset=True)
    assert np.abs(fresh.boxes.scores - second.boxes.scores).max() > 1e-6 and fresh.frame.prev_token == ""
    other = drivestack.Session()
    cars = remembering.batch([images] * 2, rig, [poses[0]] * 2, [0, 0], sessions=[fork, other], resets=[True, False])
    same(cars[0], cars[1], atol=1e-4)
    with pytest.raises(ConfigError, match="give global_from_ego"):
        remembering(images, rig)
    with pytest.raises(ConfigError, match="timestamp_us 5 is not after 500000"):
        remembering(images, rig, poses[1], 5)


def test_a_car_that_answered_alone_does_not_fall_back(remembering, rig, images) -> None:
    """Sessions that were answered together hold each other's past; the newest of each counts."""
    poses = [pose(np.eye(3), [2.0 * step, 0, 0]) for step in range(3)]
    expected = [remembering(images, rig, own, 500_000 * i, reset=i == 0) for i, own in enumerate(poses)]
    a, b = drivestack.Session(), drivestack.Session()
    remembering.batch([images] * 2, rig, [poses[0]] * 2, [0, 0], sessions=[a, b])
    remembering(images, rig, poses[1], 500_000, session=b)
    for order in ([b, a], [a, b]):
        copies = {id(session): session.copy() for session in order}
        first = [poses[2 if session is b else 1] for session in order]
        times = [1_000_000 if session is b else 500_000 for session in order]
        found = remembering.batch([images] * 2, rig, first, times, sessions=[copies[id(own)] for own in order])
        for session, answer in zip(order, found):
            same(answer, expected[2 if session is b else 1], atol=1e-4)


def test_scores_and_frames_are_those_of_the_verbs(model, frame) -> None:
    labelled = toy_frame(Path(frame.cameras[0].image_path).parent, [(n, d, (320, 180)) for n, d in SIX.items()])
    from dataclasses import replace

    notes = drivestack.Annotations.of_boxes(["car"], [[12.0, 3, 1]], [[4, 2, 1.5]], [0.3])
    scores = model.evaluate([replace(labelled, annotations=notes)], progress=False)
    assert set(scores) == {"boxes"} and 0 <= scores["boxes"]["nds"] <= 1  # neither voxels nor lanes are labelled
    with pytest.raises(DataError, match="have labels for none of boxes, occupancy, lanes"):
        model.evaluate([frame])


def test_what_cannot_be_answered_is_said(model, rig, images, tmp_path) -> None:
    with pytest.raises(ConfigError, match="no such config"):
        drivestack.load("no_such_model")
    with pytest.raises(ConfigError, match="no weights are shipped for it"):
        drivestack.load("bevformerv2_r50_t1_24ep")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        drivestack.load(TINY, weights=tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="unknown precision 'int4'"):
        drivestack.load(TINY, precision="int4")
    with pytest.raises(ConfigError, match="unknown device 'abacus'"):
        drivestack.load(TINY, device="abacus")
    with pytest.raises(ConfigError, match=r"holds 0 \.py files"):
        drivestack.load(tmp_path)
    with pytest.raises(DataError, match="no image of camera CAM_BACK_RIGHT"):
        model({name: images[name] for name in list(rig)[:5]}, rig)
    with pytest.raises(DataError, match="'ROOF', which the rig lacks"):
        model(images | {"ROOF": images["CAM_FRONT"]}, rig)
    with pytest.raises(DataError, match="5 images for the 6 cameras"):
        model(list(images.values())[:5], rig)
    with pytest.raises(DataError, match=r"CAM_FRONT: an image of float64 \[180, 320, 3\]"):
        model(images | {"CAM_FRONT": images["CAM_FRONT"] / 255}, rig)
    with pytest.raises(DataError, match="image is 160x90 pixels but its calibration is for 320x180"):
        model(images | {"CAM_FRONT": images["CAM_FRONT"][::2, ::2]}, rig)
    with pytest.raises(DataError, match="camera left: ego_from_camera must be"):
        drivestack.Rig({"left": (np.eye(3), np.eye(3), (10, 10))})
    drive = drivestack.Session()
    with pytest.raises(ConfigError, match="two sessions are of one drive"):
        model.batch([images, images], rig, np.stack([np.eye(4)] * 2), sessions=[drive, drive.copy()])
    many = drivestack.Rig({f"c{i}": rig["CAM_FRONT"] for i in range(7)})
    with pytest.raises(ConfigError, match="7 cameras, but the model has embeddings for 6"):
        model([images["CAM_FRONT"]] * 7, many)


def test_readers_by_name_file_and_function(tmp_path, frame) -> None:
    def mine(root, split="val", *, speed=1):
        return [frame] if split == "val" else []

    assert drivestack.read("anywhere", reader=mine) == [frame]
    with pytest.raises(ConfigError, match="option split is 3; give it as str"):
        drivestack.read("anywhere", split=3, version="v1.0-mini")
    with pytest.raises(ConfigError, match=r"source \[\[\]\]: write dict"):
        drivestack.DataSource.of([[]])
    with pytest.raises(ConfigError, match="reader 3: give its name, one of"):
        drivestack.read("anywhere", reader=3)
    with pytest.raises(ConfigError, match="reader mine has no option 'colour': it has split, speed"):
        drivestack.read("anywhere", reader=mine, colour=3)
    with pytest.raises(DataError, match="found no frames"):
        drivestack.read("anywhere", reader=mine, split="train")
    with pytest.raises(ConfigError, match=r"no reader 'kitti': choose from .*nuscenes.*openlane"):
        drivestack.read("anywhere", reader="kitti")
    with pytest.raises(ConfigError, match="needs --version"):
        drivestack.read("anywhere")
    (tmp_path / "none.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"none\.py: registers none"):
        drivestack.read("anywhere", reader=str(tmp_path / "none.py"))
    lines = ["from __future__ import annotations", "from dataclasses import dataclass", "import drivestack"]
    lines += ["@dataclass", "class Place:", "    x_m: float", "@drivestack.register_reader('of_places')"]
    (tmp_path / "typed.py").write_text("\n".join([*lines, "def read(root): return []"]))
    with pytest.raises(DataError, match="reader of_places found no frames"):  # and the file was read
        drivestack.read("anywhere", reader=str(tmp_path / "typed.py"))
    (tmp_path / "bad.py").write_text("import nowhere_at_all\n")
    with pytest.raises(ConfigError, match=r"bad\.py: cannot be imported: ModuleNotFoundError"):
        drivestack.read("anywhere", reader=str(tmp_path / "bad.py"))
    from drivestack.data_tools.readers.registry import find_reader, reader_names

    for name in (
        "nuscenes",
        "nuscenes_infos",
        "openlane",
        "occ3d_challenge",
        "argoverse2",
        "argoverse2_sensor",
        "camera_images",
    ):
        assert name in reader_names() and find_reader(name).conventions.frames.startswith("EGO")


def test_a_call_without_a_time_is_a_keyframe_after_the_last(remembering, rig, images) -> None:
    poses = [pose(np.eye(3), [2.0 * step, 0, 0]) for step in range(2)]
    start_us = 1_700_000_000_000_000
    for second_us in (None, start_us + 500_000):
        remembering(images, rig, poses[0], start_us, reset=True)
        found = remembering(images, rig, poses[1], second_us)
        assert found.frame.timestamp_us == remembering.session.timestamp_us == start_us + 500_000


def test_a_batch_that_fails_leaves_every_drive_where_it_was(remembering, rig, images) -> None:
    a, b = drivestack.Session(), drivestack.Session()
    three = drivestack.Rig({name: rig[name] for name in list(rig)[:3]})
    few = {name: images[name] for name in three}
    here = [np.eye(4)] * 2
    remembering.batch([images, few], [rig, three], here, [0, 0], sessions=[a, b])
    before = [dict(vars(own)) for own in (a, b)]
    broken = {**few, next(iter(few)): "nowhere.png"}
    for resets in (None, [True, False]):
        with pytest.raises(DataError, match="nowhere"):
            remembering.batch([images, broken], [rig, three], here, [500_000] * 2, sessions=[a, b], resets=resets)
        assert [dict(vars(own)) for own in (a, b)] == before
    remembering.batch([images, few], [rig, three], here, [500_000] * 2, sessions=[a, b])
    with pytest.raises(ConfigError, match="2 sets of images, but 1 resets: give one for each"):
        remembering.batch([images] * 2, rig, here, sessions=[a, b], resets=[True])


def test_a_fork_never_gets_the_past_of_its_sibling(remembering, rig, images) -> None:
    other = {name: image[::-1].copy() for name, image in images.items()}
    poses = [pose(np.eye(3), [2.0 * step, 0, 0]) for step in range(3)]
    a, c = drivestack.Session(), drivestack.Session()
    remembering(images, rig, poses[0], 0, session=a)
    b = a.copy()
    remembering.batch([images] * 2, rig, [poses[1]] * 2, [500_000] * 2, sessions=[a, c])
    remembering(other, rig, poses[1], 500_000, session=b)
    own, siblings = (remembering(images, rig, poses[2], 1_000_000, session=s.copy()).boxes.scores for s in (b, a))
    found, _ = remembering.batch([images] * 2, rig, [poses[2]] * 2, [1_000_000] * 2, sessions=[b, c])
    np.testing.assert_allclose(found.boxes.scores, own, rtol=0, atol=5e-5)
    assert np.abs(own - siblings).max() > 2e-4
    assert set(b.memory) & set(c.memory) == set()


def test_a_model_without_a_memory_answers(images, rig) -> None:
    """MonoDetector looks at each image alone and gives no memory back."""
    mono = drivestack.load("mono3d_tiny_synthetic", weights="random", device="cpu")
    for _ in range(2):
        assert len(mono(images, rig).boxes.scores) >= 0
    assert mono.session.count == 2 and mono.session.memory == {}
