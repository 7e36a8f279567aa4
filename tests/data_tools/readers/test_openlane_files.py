"""Info files become collections as the official package makes them, and Frames go there and back."""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.core.frames import CameraView, Frame
from drivestack.core.labels import LaneLabels
from drivestack.data_tools.readers.openlane.files import (
    collect,
    identifiers,
    image_from_ego,
    lane_labels,
    read_collection,
    segment_labels,
    write_collection,
    write_frame,
)
from drivestack.geometry import CameraModel, pose

KEY = ("train", "00001", "315970")


@pytest.fixture(scope="module")
def stored(reference_dir: Path) -> dict:
    with gzip.open(reference_dir / "lane_topology" / "openlanev2_units.json.gz", "rt") as file:
        return json.load(file)["collect"]


@pytest.fixture(scope="module")
def root(stored, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("openlane")
    info = root / "train/00001/info"
    info.mkdir(parents=True)
    (info / "315970.json").write_text(json.dumps(stored["input_info"]))
    (info / "315970-ls.json").write_text(json.dumps(stored["input_info_ls"]))
    (root / "train/00001/sdmap.json").write_text(json.dumps(stored["input_sdmap"]))
    return root


def assert_same(found, expected, place="") -> None:
    if isinstance(expected, dict) and set(expected) == {"dtype", "shape", "data"}:
        assert str(found.dtype) == expected["dtype"] and list(found.shape) == expected["shape"], place
        np.testing.assert_allclose(found.ravel(), expected["data"], rtol=1e-6, atol=1e-6, err_msg=place)
    elif isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key, value in expected.items():
            assert_same(found[key], value, f"{place}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for i, (a, b) in enumerate(zip(found, expected)):
            assert_same(a, b, f"{place}/{i}")
    else:
        assert found == expected, place


def test_lane_segments_are_read_as_lanes_with_their_topology(caplog):
    line = lambda y: np.stack([np.linspace(0, 40, 10), np.full(10, y), np.zeros(10)], 1).astype(np.float32)
    sides = {"left_laneline": line(2), "right_laneline": line(-2), "left_laneline_type": 1, "right_laneline_type": 2}
    segments = [
        {"id": i, "centerline": line(y), "is_intersection_or_connector": i > 0, **sides} for i, y in enumerate((0, 4))
    ]
    annotation = {
        "lane_segment": segments,
        "area": [],
        "traffic_element": [{"id": 9, "points": np.array([[1.0, 2], [3, 4]]), "attribute": 2, "category": 1}],
        "topology_lsls": np.array([[0, 1], [0, 0]]),
        "topology_lste": np.array([[1], [0]]),
    }
    labels = lane_labels({"annotation": annotation}, "x")
    np.testing.assert_array_equal(labels.centrelines, [line(0), line(4)])
    np.testing.assert_array_equal(labels.lane_lane, [[0, 1], [0, 0]])
    np.testing.assert_array_equal(labels.lane_element, [[1], [0]])
    assert labels.is_connector.tolist() == [False, True] and labels.attributes.tolist() == [2]
    assert len(segment_labels({"annotation": annotation}, "x").left) == 2
    with pytest.raises(DataError, match="x: holds centrelines, not lane segments; read it with lane_labels"):
        segment_labels({"annotation": {"lane_centerline": []}}, "x")
    with pytest.raises(DataError, match=r"x: broken annotation \(KeyError: 'lane_centerline'\)"):
        lane_labels({"annotation": {}}, "x")
    for wrong in (256, 0.5, -1):  # none of which may become 0 or 1 on its way into 8 bits
        broken = annotation | {"topology_lsls": np.array([[0, wrong], [0, 0]])}
        with pytest.raises(DataError, match=r"lane_lane \(topology_lclc\) holds .* at \[0, 1\]"):
            lane_labels({"annotation": broken}, "x")


@pytest.mark.parametrize("annotation", [5, [], {"lane_segment": 3}])
def test_broken_annotations_are_named(annotation):
    for read in (lane_labels, segment_labels):
        with pytest.raises(DataError, match="place: broken annotation"):
            read({"annotation": annotation}, "place")


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("centerline_interval1", {}),
        ("centerline_interval20", {"point_interval": 20}),
        ("centerline_sd", {"point_interval": 20, "with_sd_map": True}),
        ("laneseg", {"segments": True}),
    ],
)
def test_collections_are_as_official(stored, root, case, options):
    found = collect(root, identifiers({"train": {"00001": ["315970.json"]}}), **options)
    assert_same({"|".join(key): frame for key, frame in found.items()}, stored["outputs"][case])


def test_collections_and_their_labels_come_back(root, tmp_path):
    path = tmp_path / "c.pkl"
    write_collection(path, collect(root, [KEY], point_interval=20))
    labels = lane_labels(read_collection(path)[KEY], "c")
    assert [len(line) for line in labels.centrelines] == [3, 3]
    np.testing.assert_array_equal(labels.lane_lane, [[0, 1], [0, 0]])
    np.testing.assert_array_equal(labels.lane_element, [[1], [0]])
    np.testing.assert_array_equal(labels.elements_xyxy_px, [[10, 20, 30, 60]])
    segments = segment_labels(collect(root, [KEY], segments=True)[KEY], "c")
    assert (segments.left_types[0], segments.right_types[0], segments.area_categories[0]) == (1, 2, 1)
    assert segments.centrelines[0].shape == (10, 3) and segments.areas[0].shape == (20, 3)


def frame(num_cameras: int, lanes: LaneLabels | None) -> Frame:
    ego_from_bev, global_from_ego = pose(np.eye(3), [1.0, 0, 1.8]), pose(np.eye(3), [5.0, 6, 7])
    views = tuple(
        CameraView(
            f"camera_{i}",
            CameraModel(np.array([[900.0, 0, 400], [0, 900, 300], [0, 0, 1]]), 800, 600),
            ego_from_bev @ pose([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], [0.1 * i, 0, -0.3]),
            global_from_ego,
            7,
            f"camera_{i}.jpg",
        )
        for i in range(num_cameras)
    )
    return Frame("token", "scene", "s1", 7, views, global_from_ego, ego_from_bev, lanes=lanes)


@pytest.mark.parametrize("num_cameras", [6, 7])
def test_frames_become_info_files_and_labels_come_back(tmp_path, num_cameras):
    line = np.linspace([0, 0, 0], [20, 1, 0], 11, dtype=np.float32)
    labels = LaneLabels(
        [line, line + 20],
        np.array([False, True]),
        np.array([[1, 2, 3, 4]], np.float32),
        np.array([6]),
        np.array([[0, 1], [0, 0]], np.int8),
        np.array([[1], [0]], np.int8),
    )
    source = frame(num_cameras, labels)
    key = write_frame(tmp_path, "val", source, front_camera="camera_2")
    found = collect(tmp_path, [key])[key]
    assert next(iter(found["sensor"])) == "camera_2" and len(found["sensor"]) == num_cameras
    read = lane_labels(found, "f")
    for name in ("is_connector", "elements_xyxy_px", "attributes", "lane_lane", "lane_element"):
        np.testing.assert_array_equal(getattr(read, name), getattr(labels, name))
    np.testing.assert_array_equal(read.centrelines, labels.centrelines)
    point = np.array([12.0, 1, 0.5, 1])  # of the ego frame
    lidar_point = np.linalg.inv(source.ego_from_bev) @ point
    for view in source.cameras:
        np.testing.assert_allclose(image_from_ego(found, view.name) @ point, source.image_from_bev(view) @ lidar_point)
    with pytest.raises(ValueError, match="no camera 'roof'"):
        write_frame(tmp_path, "val", source, front_camera="roof")


def test_without_labels_or_lanes(tmp_path):
    key = write_frame(tmp_path, "test", frame(6, None))
    found = collect(tmp_path, [key])[key]
    assert lane_labels(found, "f") is None and segment_labels(found, "f") is None
    empty = LaneLabels(
        [],
        np.zeros(0, bool),
        np.zeros((0, 4), np.float32),
        np.zeros(0, int),
        np.zeros((0, 0), int),
        np.zeros((0, 0), int),
    )
    key = write_frame(tmp_path, "val", frame(6, empty))
    assert lane_labels(collect(tmp_path, [key])[key], "f").lane_element.shape == (0, 0)


def test_broken_files_are_named(root, tmp_path):
    with pytest.raises(DataError, match=r"9\.json: cannot be read"):
        collect(root, [("train", "00001", "9")])
    (root / "train/00001/info/1.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        collect(root, [("train", "00001", "1")])
    (root / "train/00001/info/2.json").write_text("{}")
    with pytest.raises(DataError, match=r"2\.json: not an OpenLane-V2 info file"):
        collect(root, [("train", "00001", "2")])
    found = collect(root, [KEY])[KEY]
    found["annotation"]["topology_lcte"] = np.zeros((2, 2), np.int8)
    with pytest.raises(
        DataError,
        match=r"here: lane_element \(topology_lcte\) is \[2, 2\]; 2 lanes and 1 traffic elements need \[2, 1\]",
    ):
        lane_labels(found, "here")
    found["annotation"]["lane_centerline"][0]["points"] = np.zeros((1, 3))
    with pytest.raises(DataError, match="lane 0 has points"):
        lane_labels(found, "here")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(print))
    with pytest.raises(DataError, match="refused to unpickle"):
        read_collection(tmp_path / "evil.pkl")
    write_collection(tmp_path / "c.pkl", {"a": 1})
    with pytest.raises(DataError, match="no collection"):
        read_collection(tmp_path / "c.pkl")
