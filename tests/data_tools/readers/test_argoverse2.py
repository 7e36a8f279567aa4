"""Maps of Argoverse 2 become lane labels that survive encoding, decoding and evaluation; pictures show them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from drivestack.core.answers import LaneGraph
from drivestack.core.errors import DataError
from drivestack.core.labels import LaneLabels
from drivestack.core.once import forget_warnings
from drivestack.data_tools.readers.argoverse2.files import image_times_ns
from drivestack.data_tools.readers.argoverse2.lanes import map_labels, read_log, read_map
from drivestack.geometry import pose
from drivestack.lane_topology.curves import fit_lines, sample_curves
from drivestack.lane_topology.evaluation.fscore import fscore
from drivestack.lane_topology.evaluation.ols import evaluate
from drivestack.view.lanes import draw_lanes
from support.argoverse2_log import touch_images, write_log


def perfect(labels: LaneLabels, lines: np.ndarray) -> LaneGraph:
    n = len(lines)
    edges, none = labels.lane_lane.astype(np.float32), np.zeros(0, np.float32)
    boxes, attributes = labels.elements_xyxy_px, labels.attributes
    return LaneGraph("", lines, np.ones(n), boxes, attributes, none, edges, np.zeros((n, 0), np.float32))


def write_map(path: Path) -> Path:
    """Three lanes along y = 2 m, 30 m each; the middle one crosses an intersection; a bike lane beside them."""

    def points(x0: float, x1: float, y: float) -> list[dict]:
        return [{"x": x, "y": y, "z": 1.0} for x in np.linspace(x0, x1, 4)]

    lanes = {}
    for i, (kind, y) in enumerate([("VEHICLE", 2.0)] * 3 + [("BIKE", 6.0)]):
        x = 30 * (i % 3)
        lanes[str(i)] = {
            "id": i,
            "lane_type": kind,
            "is_intersection": i == 1,
            "left_lane_boundary": points(x, x + 30, y + 1.5),
            "right_lane_boundary": points(x, x + 30, y - 1.5),
            "successors": [i + 1],
        }
    path.write_text(json.dumps({"lane_segments": lanes}))
    return path


def test_lanes_are_cut_to_the_range_and_connected(tmp_path):
    lanes = read_map(write_map(tmp_path / "map.json"))
    labels = map_labels(lanes, pose(np.eye(3), [-10.0, 0, 0]), num_points=11)
    assert [len(line) for line in labels.centrelines] == [11, 11]  # the third lies beyond 50 m
    np.testing.assert_allclose(labels.centrelines[0][[0, -1]], [[10, 2, 1], [40, 2, 1]], atol=1e-4)
    np.testing.assert_allclose(labels.centrelines[1][[0, -1]], [[40, 2, 1], [50, 2, 1]], atol=1e-4)
    np.testing.assert_array_equal(labels.lane_lane, [[0, 1], [0, 0]])
    np.testing.assert_array_equal(labels.is_connector, [False, True])
    turned = map_labels(lanes, pose([[-1, 0, 0], [0, -1, 0], [0, 0, 1]], [90.0, 0, 0]), num_points=11)
    assert turned.centrelines[0][0, 0] > turned.centrelines[0][-1, 0]  # the traffic comes towards the car


def test_pictures_show_lanes_where_they_are(tmp_path):
    labels = map_labels(read_map(write_map(tmp_path / "map.json")), pose(np.eye(3), [0.0, 0, 0]), num_points=11)
    image = draw_lanes(labels.centrelines, labels.lane_lane, labels.is_connector, px_per_m=10)
    assert image.shape == (500, 1000, 3)
    lane, connector = image[230, 550], image[230, 830]  # y = 2 m, x = 5 and 33 m
    assert lane[2] > lane[0] + 80 and connector[0] > connector[2] + 80
    assert draw_lanes([], np.zeros((0, 0))).min() < 100  # the car


def test_a_map_of_another_kind_is_refused(tmp_path):
    (tmp_path / "m.json").write_text("[]")
    with pytest.raises(DataError, match=r"m\.json: no Argoverse 2 map"):
        read_map(tmp_path / "m.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_map(tmp_path / "none.json")


@pytest.mark.parametrize("number", [10**400, float("nan"), "east", None])
def test_a_map_with_a_point_that_is_none_is_refused(tmp_path, number):
    path = write_map(tmp_path / "map.json")
    content = json.loads(path.read_text())
    content["lane_segments"]["0"]["left_lane_boundary"][1]["x"] = number
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"map\.json: no Argoverse 2 map"):
        read_map(path)


def test_times_that_are_no_whole_numbers_are_refused(tmp_path):
    feather = pytest.importorskip("pyarrow.feather")
    import pyarrow

    (tmp_path / "map").mkdir()
    write_map(tmp_path / "map/log_map_archive_x.json")
    numbers = {key: [0.0, 0.0] for key in ("qx", "qy", "qz", "tx_m", "ty_m", "tz_m")} | {"qw": [1.0, 1.0]}
    table = pyarrow.table({"timestamp_ns": ["315967000000000000", "315967000100000000"], **numbers})
    feather.write_feather(table, str(tmp_path / "city_SE3_egovehicle.feather"))
    with pytest.raises(
        DataError, match=r"city_SE3_egovehicle\.feather: column timestamp_ns holds string, .*whole number"
    ):
        read_log(tmp_path)


def test_a_keyframe_shows_images_of_its_time_alone(tmp_path, caplog):
    pytest.importorskip("pyarrow", reason="Feather files need pyarrow (extra argoverse)")
    forget_warnings()
    log = tmp_path / "log"
    write_log(log, sweeps=12)
    (log / "map").mkdir()
    write_map(log / "map/log_map_archive_log____PIT_city_47896.json")
    frames = read_log(log)  # without images each camera is where the car was
    times = np.array([int(frame.token.rpartition("-")[2]) for frame in frames])
    assert len(frames) == 3 and all(len(frame.cameras) == 7 for frame in frames)
    assert all(frame.conditions == {"location": "PIT"} for frame in frames)
    touch_images(log, "ring_front_center", times[:1] + 24_000_000)
    touch_images(log, "ring_side_left", np.array([times[0] + 3_000_000, times[1] + 20_000_000, times[2] - 26_000_000]))
    frames = read_log(log)
    assert [[view.name for view in frame.cameras] for frame in frames] == [
        ["ring_front_center", "ring_side_left"], ["ring_side_left"]
    ]  # fmt: skip
    assert frames[1].cameras[0].timestamp_us == (times[1] + 20_000_000) // 1000
    assert frames[1].prev_token == frames[0].token and frames[1].next_token == ""
    assert "18 of 21 images are missing within 25 ms of their keyframe" in caplog.text
    assert "1 keyframes have no image of any camera and are left out" in caplog.text
    for path in log.glob("sensors/cameras/*/*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="holds no image within 25 ms of a keyframe"):
        read_log(log)


def test_names_of_images_that_are_no_times_are_refused(tmp_path):
    folder = tmp_path / "sensors/cameras/ring_front_center"
    folder.mkdir(parents=True)
    (folder / "front.jpg").touch()
    with pytest.raises(DataError, match=r"ring_front_center: ValueError: .*front.*; name images by their time"):
        image_times_ns(tmp_path, "ring_front_center")


def test_a_real_log_passes_through_encoding_and_evaluation(repository_root: Path):
    found = sorted(repository_root.parent.glob("shared/real/argoverse2_log/map/log_map_archive_*.json"))
    if not found:
        pytest.skip("no Argoverse 2 log beside the repository")
    lanes = read_map(found[0])
    truths, exact, decoded = [], [], []
    for lane_id in sorted(lanes)[::40]:  # the car stands in the middle of a lane, along it
        line = lanes[lane_id].centreline
        ahead = np.arctan2(*(line[101] - line[99])[1::-1])
        c, s = np.cos(ahead), np.sin(ahead)
        labels = map_labels(lanes, pose([[c, -s, 0], [s, c, 0], [0, 0, 1]], line[100]), num_points=11)
        assert len(labels.centrelines) > 5 and labels.lane_lane.any()
        ends = np.array([line[-1] for line in labels.centrelines])
        starts = np.array([line[0] for line in labels.centrelines])
        i, j = np.nonzero(labels.lane_lane)
        assert np.linalg.norm(ends[i] - starts[j], axis=1).max() < 0.5  # lanes meet where the map joins them
        truths.append(labels)
        exact.append(perfect(labels, np.stack(labels.centrelines)))
        curves = sample_curves(fit_lines([torch.from_numpy(line) for line in labels.centrelines]))
        decoded.append(perfect(labels, curves.numpy()))
    scores = evaluate(truths, exact)
    assert scores["det_l"] == scores["det_t"] == scores["top_ll"] == 1.0 and fscore(truths, exact)["lane_fscore"] == 1.0
    scores = evaluate(truths, decoded)
    assert scores["det_l"] == scores["top_ll"] == 1.0
