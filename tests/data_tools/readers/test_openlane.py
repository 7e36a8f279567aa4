"""OpenLane-V2 becomes Frames: from info files, lists and collections; what is wrong with them is said."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from drivestack.core.errors import DataError
from drivestack.core.frames import CameraView, Frame
from drivestack.core.labels import LaneLabels
from drivestack.core.street_maps import STREET_KINDS
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.readers.openlane.files import (
    collect,
    identifier_of,
    read_collection,
    write_collection,
    write_frame,
)
from drivestack.data_tools.readers.openlane.reader import read_openlane
from drivestack.engine.config import build_dataset, build_model, load_config
from drivestack.engine.predict import predict
from drivestack.geometry import CameraModel, pose, rotation_z, transform_points
from drivestack.lane_topology.front_image import boxes_on_disk

EGO_FROM_FORWARD_CAMERA = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
RINGS = {
    "A": ("ring_front_center", *(f"ring_{i}" for i in range(1, 7))),
    "B": ("CAM_FRONT", *(f"CAM_{i}" for i in range(1, 6))),
}
IMAGE = {"crop": (0, 0, 1, 1), "train_heights_px": (32,), "test_height_px": 32, "aspect": 2.0, "resample": "area"}


def views(rig: str, timestamp_us: int, global_from_ego: np.ndarray, folder: Path) -> tuple[CameraView, ...]:
    """A ring of cameras; of rig A the first is portrait, the others landscape."""
    out = []
    for i, name in enumerate(RINGS[rig]):
        width, height = (62, 82) if name == "ring_front_center" else (82, 62)
        turn = rotation_z(-2 * np.pi * i / len(RINGS[rig])) @ EGO_FROM_FORWARD_CAMERA
        ego_from_camera = pose(turn, [1.5, 0.1 * i, 1.4])
        camera = CameraModel(np.array([[60.0, 0, width / 2], [0, 60, height / 2], [0, 0, 1]]), width, height)
        path = folder / f"{name}_{timestamp_us}.png"
        cv2.imwrite(str(path), np.full((height, width, 3), 40 * i, np.uint8))
        out.append(CameraView(name, camera, ego_from_camera, global_from_ego, timestamp_us, str(path)))
    return tuple(out)


def labels() -> LaneLabels:
    """Two lanes ahead, the second after the first; a light 20 m ahead, 3 m to the left and 4 m up, and a sign."""
    line = np.linspace([2, 0, 0], [22, 1, 0], 201, dtype=np.float32)
    return LaneLabels(
        [line, line + np.float32([20, 1, 0])],
        np.array([False, True]),
        np.array([[18, 28, 24, 42], [40.5, 20.25, 50, 30]], np.float32),
        np.array([1, 5]),
        np.array([[0, 1], [0, 0]], np.int8),
        np.array([[1, 0], [0, 1]], np.int8),
    )


def frames(rig: str, folder: Path, count: int = 3) -> list[Frame]:
    out = []
    for i in range(count):
        timestamp_us = 1_000_000 + 500_000 * i
        global_from_ego = pose(rotation_z(0.1 * i), [3.0 * i, 1, 0])
        cameras = views(rig, timestamp_us, global_from_ego, folder)
        frame = Frame("", "", "00007", timestamp_us, cameras, global_from_ego, lanes=labels())
        out.append(frame)
    return out


@pytest.fixture(scope="module", params=["A", "B"])
def source(request, tmp_path_factory) -> tuple[Path, list[Frame]]:
    """A root of three labelled frames in val and one without labels in test, with a collection; and the frames."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "images").mkdir()
    written = frames(request.param, root / "images")
    keys = [write_frame(root, "val", frame) for frame in written]
    write_collection(root / "val.pkl", collect(root, keys))
    write_frame(root, "test", replace(written[0], lanes=None))
    return root, written


def assert_equal_frames(found: list[Frame], expected: list[Frame]) -> None:
    assert [f.token for f in found] == [f.token for f in expected]
    for a, b in zip(found, expected):
        assert [v.name for v in a.cameras] == [v.name for v in b.cameras]
        np.testing.assert_array_equal(a.global_from_ego, b.global_from_ego)
        np.testing.assert_array_equal(a.lanes.centrelines, b.lanes.centrelines)


def test_frames_come_back(source):
    root, written = source
    found = read_openlane(root, "val", point_interval=1)
    assert [f.token for f in found] == [f"val/00007/{f.timestamp_us}" for f in written]
    assert [identifier_of(f, "") for f in found] == [("val", "00007", str(f.timestamp_us)) for f in written]
    assert [(f.prev_token, f.next_token) for f in found] == [
        ("", found[1].token), (found[0].token, found[2].token), (found[1].token, "")
    ]  # fmt: skip
    for a, b in zip(found, written):
        assert (a.timestamp_us, a.scene_name, a.scene_token) == (b.timestamp_us, "00007", "val/00007")
        np.testing.assert_allclose(a.global_from_bev, b.global_from_ego)
        np.testing.assert_array_equal(a.lanes.lane_element, b.lanes.lane_element)
        np.testing.assert_array_equal(a.lanes.elements_xyxy_px, b.lanes.elements_xyxy_px)
        for ours, theirs in zip(a.cameras, b.cameras, strict=True):
            assert (ours.name, ours.image_path) == (theirs.name, theirs.image_path)
            size = lambda view: (view.camera.width_px, view.camera.height_px)
            assert size(ours) == size(theirs)
            np.testing.assert_allclose(a.image_from_bev(ours), b.image_from_bev(theirs), atol=1e-9)
            np.testing.assert_allclose(ours.global_from_camera, theirs.global_from_camera, atol=1e-9)
    assert [len(line) for line in found[0].lanes.centrelines] == [201, 201]
    assert [len(line) for line in read_openlane(root, "val")[0].lanes.centrelines] == [11, 11]  # as officially
    assert [len(line) for line in read_openlane(root, "val", 50)[0].lanes.centrelines] == [5, 5]


def test_lists_and_collections_name_the_same_frames(source, tmp_path):
    root, _ = source
    found = read_openlane(root, "val")
    names = [f"{f.timestamp_us}.json" for f in found]
    (tmp_path / "data_dict.json").write_text(json.dumps({"val": {"00007": names}}))
    assert_equal_frames(read_openlane(root, tmp_path / "data_dict.json"), found)
    keys = [identifier_of(f, "") for f in found]
    write_collection(root / "c.pkl", collect(root, reversed(keys), point_interval=20))
    assert_equal_frames(read_openlane(root, "c.pkl"), found)
    assert_equal_frames(read_openlane(root, root / "c.pkl"), found)


def test_an_official_info_file(reference_dir, tmp_path):
    with gzip.open(reference_dir / "lane_topology" / "openlanev2_units.json.gz", "rt") as file:
        info = json.load(file)["collect"]["input_info"]
    info["timestamp"] = 315_970_265_949_927_218  # Argoverse 2: nanoseconds
    folder = tmp_path / "train/00001/info"
    folder.mkdir(parents=True)
    (folder / "315970265949927218.json").write_text(json.dumps(info))
    (folder / "315970265949927218-ls.json").write_text("{}")
    (frame,) = read_openlane(tmp_path, "train")
    assert frame.timestamp_us == 315_970_265_949_927 and frame.token == "train/00001/315970265949927218"
    assert [(v.camera.width_px, v.camera.height_px) for v in frame.cameras] == [(1550, 2048), (2048, 1550)]
    assert frame.cameras[0].image_path == str(tmp_path / info["sensor"]["ring_front_center"]["image_path"])
    np.testing.assert_allclose(frame.bev_from_camera(frame.cameras[1])[:3, 3], [1.5, 0.1, 1.4])


def test_the_street_map_of_a_collection_lies_around_the_car(source, tmp_path):
    root, _ = source
    key = identifier_of(read_openlane(root, "val")[2], "")
    sdmap = [
        {"points": [[-90.0, 1.0], [90.0, 1.0]], "category": "road"},
        {"points": [[10.0, -5.0], [10.0, 5.0]], "category": "cross_walk"},
    ]
    (root / "val" / "00007" / "sdmap.json").write_text(json.dumps(sdmap))
    collected = collect(root, [key], with_sd_map=True)
    write_collection(root / "sd.pkl", collected)
    (frame,) = read_openlane(root, "sd.pkl")
    assert [STREET_KINDS[kind] for kind in frame.street_map.kinds] == ["road", "cross_walk"]
    np.testing.assert_allclose(frame.street_map.lines[0][:, 1], 1.0, atol=1e-4)  # again in the global frame
    np.testing.assert_allclose(frame.street_map.lines[1], [[10, -5], [10, 5]], atol=1e-4)
    assert read_openlane(root, "val")[2].street_map is None
    collected[key]["sensor"]["sd_map"]["river"] = [np.zeros((2, 2), np.float32)]
    write_collection(root / "sd.pkl", collected)
    with pytest.raises(DataError, match="sd_map has the category 'river', not of road, "):
        read_openlane(root, "sd.pkl")


@pytest.mark.parametrize("aspect", [2.0, None])
@pytest.mark.parametrize("crop", [(0.0, 0.0, 1.0, 1.0), (0.0, 0.1, 1.0, 0.9)])
def test_elements_follow_the_front_image_and_come_back(source, aspect, crop):
    """A portrait front image beside landscape ones: stretched to their shape, or padded."""
    root, written = source
    front = written[0].cameras[0]
    image = IMAGE | {"aspect": aspect, "crops": {front.name: crop}, "test_height_px": 48}
    dataset = ClipDataset(source=dict(reader="openlane", root=root, split="val"), classes=[], lanes=True, image=image)
    batch = collate_clips([dataset[0]])
    sizes = {tuple(size) for size in batch.image_size_px[0, 0].tolist()}
    if aspect:
        assert sizes == {(48, 96)} and batch.images.shape[-2:] == (64, 96)
    else:
        assert {height for height, _ in sizes} == {48}
    targets = batch.lanes[0]
    assert len(targets.attributes) == 2
    width, height = front.camera.width_px, front.camera.height_px
    top, rows = round(crop[1] * height), round(crop[3] * height) - round(crop[1] * height)
    seen_height, seen_width = batch.image_size_px[0, 0, 0].tolist()
    scale = np.array([seen_width / width, seen_height / rows] * 2)
    expected = (labels().elements_xyxy_px - [0, top, 0, top]) * scale
    np.testing.assert_allclose(targets.elements_xyxy_px, expected, atol=1e-4)
    back = boxes_on_disk(targets.elements_xyxy_px, batch, 0, targets.front_camera)
    np.testing.assert_allclose(back, labels().elements_xyxy_px, atol=1e-3)
    # a point of the road lands where its own camera sees it, in the stretched image
    point = np.array([20.0, 2.0, 3.0])
    (uv,), _ = front.camera.project(transform_points(np.linalg.inv(written[0].bev_from_camera(front)), point[None]))
    u, v, depth, _ = batch.image_from_bev[0, 0, 0].double().numpy() @ [*point, 1]
    np.testing.assert_allclose([u / depth, v / depth], (uv - [0, top]) * scale[:2], atol=1e-3)


def small(rig: str, root: Path):
    """The shipped config of the subset at toy size, reading root's collection."""
    config = load_config(f"openlanev2_subset_{rig.lower()}")
    config.model.img_backbone = dict(
        type="InternImage", channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), out_indices=(1, 2, 3)
    )
    config.model.img_neck.out_channels = 32
    size = dict(bev_size=(10, 20))
    config.model.bev_map.update(**size, embed_dims=32, num_heads=4, ffn_dims=32, num_layers=1)
    config.model.lane_head.update(
        **size, channels=32, num_queries=6, num_proposals=6, num_layers=2, num_heads=4, ffn_dims=32,
        hidden=16, element_channels=16, element_stem=8, max_elements=4,
    )  # fmt: skip
    for dataset in (config.train_dataloader.dataset, config.test_dataset):
        dataset.source.update(root=str(root), split="val.pkl")
        dataset.image.update(train_heights_px=(32,), test_height_px=32)
    return config


def test_the_shipped_configs_take_a_training_step_and_predict_a_split_without_labels(source):
    root, written = source
    rig = "A" if len(written[0].cameras) == 7 else "B"
    torch.manual_seed(0)
    config = small(rig, root)
    model = build_model(config).train()
    dataset = build_dataset(config.train_dataloader.dataset)
    batch = collate_clips([dataset[0], dataset[1]])
    losses = model.loss(batch)
    assert all(torch.isfinite(value) for value in losses.values()), losses
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]

    unlabelled = read_openlane(root, "test")
    assert [frame.lanes for frame in unlabelled] == [None]
    settings = {key: value for key, value in config.test_dataset.items() if key != "source"}
    answers = predict(model, build_dataset(dict(**settings, frames=unlabelled)), progress=False).answers
    with pytest.raises(DataError, match=r"none of the 1 frames .* has lanes labels; use a split with annotations"):
        build_dataset(dict(**settings, frames=unlabelled, training=True))[0]
    graph = answers["test/00007/1000000"].lanes
    assert graph.centrelines.shape == (12, 11, 3) and graph.lane_lane.shape == (12, 12)
    assert graph.elements_xyxy_px.shape == (4, 4) and np.isfinite(graph.elements_xyxy_px).all()
    assert graph.lane_element.shape == (12, 4)


# ------------------------------------------------------------------------------------------------------- what is wrong


def spoil(entry: dict, *path, value) -> None:
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value


LANE = ("annotation", "lane_centerline", 1)
ELEMENT = ("annotation", "traffic_element", 0)
BROKEN = {
    "one point": ((*LANE, "points"), [[1.0, 2, 3]], r"lane 1 has points \[1, 3\]; a centreline needs two or more"),
    "not finite": ((*LANE, "points"), [[1.0, 2, 3], [1, 2, float("nan")]], "lane 1 has points that are not finite"),
    "two columns": ((*LANE, "points"), [[1.0, 2], [3, 4]], r"lane 1 has points \[2, 2\]"),
    "lclc size": (("annotation", "topology_lclc"), [[0, 1, 0]] * 3, r"topology_lclc\) is \[3, 3\]; 2 lanes and 2 traf"),
    "lcte size": (("annotation", "topology_lcte"), [[0], [1]], r"topology_lcte\) is \[2, 1\]; 2 lanes and 2 traffic"),
    "lclc value": (("annotation", "topology_lclc"), [[0, 7], [0, 0]], r"topology_lclc\) holds 7 at \[0, 1\]"),
    "attribute": ((*ELEMENT, "attribute"), 13, "traffic element 0 has attribute 13; it must be one of 0..12"),
    "reversed": ((*ELEMENT, "points"), [[30, 5], [20, 9]], r"element 0 has the box \[30, 5, 20, 9\], reversed"),
    "outside": ((*ELEMENT, "points"), [[300, 5], [320, 9]], "outside the front image of .* pixels; boxes are"),
    "no points": (LANE, {"id": "1"}, r"not an OpenLane-V2 info file \(KeyError: 'points'\)"),
    "no pose": (("pose", "rotation"), [[1, 0, 0], [0, 1, 0], [0, 0, 2]], "not a rigid transform"),
    "no focal length": (("sensor", "CAMERA", "intrinsic", "K"), [[0] * 3] * 3, "camera ring_front_center: not a"),
}  # fmt: skip


@pytest.fixture(scope="module")
def rig_a(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("errors")
    (root / "images").mkdir()
    for frame in frames("A", root / "images", 2):
        write_frame(root, "val", frame)
    return root


@pytest.mark.parametrize("name", BROKEN)
def test_broken_frames_are_named_with_the_field_and_the_fix(rig_a, tmp_path, name):
    path, value, message = BROKEN[name]
    content = json.loads((rig_a / "val/00007/info/1000000.json").read_text())
    spoil(content, *("ring_front_center" if key == "CAMERA" else key for key in path), value=value)
    info = tmp_path / "val/00007/info"
    info.mkdir(parents=True)
    (info / "1000000.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"1000000\.json.*" + message) as caught:
        read_openlane(tmp_path, "val", point_interval=1)
    assert ";" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_frames_and_cameras_are_named(rig_a, tmp_path, capsys):
    keys = [("val", "00007", "1000000"), ("val", "00007", "1500000")]
    (tmp_path / "list.json").write_text(json.dumps({"val": {"00007": ["1000000.json", "7.json"]}}))
    with pytest.raises(DataError, match=r"info/7\.json: cannot be read .*; is this frame downloaded"):
        read_openlane(rig_a, tmp_path / "list.json")
    with pytest.raises(DataError, match=r"train: neither a split's folder .* nor a collection"):
        read_openlane(rig_a, "train")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"test: names no frames"):
        read_openlane(tmp_path, "test")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(DataError, match=r"bad\.json: no list of frames"):
        read_openlane(rig_a, tmp_path / "bad.json")

    collection = collect(rig_a, keys, point_interval=20)
    del collection[keys[1]]["sensor"]["ring_front_center"]
    write_collection(tmp_path / "c.pkl", collection)
    bare = read_openlane(rig_a, tmp_path / "c.pkl")[1]  # its elements are left out where the clips are made
    assert "ring_front_center" not in [view.name for view in bare.cameras]
    del collection[keys[1]]["sensor"]
    write_collection(tmp_path / "c.pkl", collection)
    with pytest.raises(DataError, match=r"c\.pkl, frame val/00007/1500000: unusable entry: KeyError: 'sensor'"):
        read_openlane(rig_a, tmp_path / "c.pkl")
    assert set(read_collection(tmp_path / "c.pkl")) == set(keys)
