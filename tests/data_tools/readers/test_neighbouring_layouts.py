"""Valid files of neighbouring layouts and conventions are read right, or named for what they are."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.data_tools.readers.cameras import camera_order
from drivestack.data_tools.readers.file_paths import path_below
from drivestack.data_tools.readers.lenses import corner_shift_px
from drivestack.data_tools.readers.nuscenes.info_pickle import read_info_pickle
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.readers.nuscenes.tables import split_tokens
from drivestack.geometry import CameraModel, Lens, boxes_to_legacy, matrix_to_quaternion

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def frames(tiny_root) -> list[Frame]:
    return read_nuscenes(tiny_root, VERSION, "mini_train")


def turned(matrix: np.ndarray) -> list[float]:
    return matrix_to_quaternion(matrix[:3, :3]).tolist()


def info(frame: Frame, layout: str = "wlh") -> dict:
    """An entry of the older layout, with boxes as mmdet3d < 1.0 (wlh) or 1.0 (lwh) wrote them."""
    boxes, notes = frame.bev_boxes(), frame.annotations
    written = boxes[:, :7].copy()
    if layout == "wlh":
        written = boxes_to_legacy(written)
        written[:, 2] = boxes[:, 2]
    cams = {
        view.name: {
            "data_path": "./data/nuscenes/" + "/".join(Path(view.image_path).parts[-3:]),
            "sensor2ego_rotation": turned(view.ego_from_camera),
            "sensor2ego_translation": view.ego_from_camera[:3, 3].tolist(),
            "ego2global_rotation": turned(view.global_from_ego),
            "ego2global_translation": view.global_from_ego[:3, 3].tolist(),
            "sensor2lidar_rotation": frame.bev_from_camera(view)[:3, :3],
            "sensor2lidar_translation": frame.bev_from_camera(view)[:3, 3],
            "timestamp": view.timestamp_us,
            "cam_intrinsic": view.camera.intrinsics,
        }
        for view in reversed(frame.cameras)
    }
    return {
        "token": frame.token,
        "scene_token": frame.scene_token,
        "timestamp": frame.timestamp_us,
        "lidar_path": f"samples/LIDAR_TOP/{frame.scene_name}__LIDAR_TOP__{frame.token}.bin",
        "lidar2ego_rotation": turned(frame.ego_from_bev),
        "lidar2ego_translation": frame.ego_from_bev[:3, 3].tolist(),
        "ego2global_rotation": turned(frame.global_from_ego),
        "ego2global_translation": frame.global_from_ego[:3, 3].tolist(),
        "cams": cams,
        "gt_boxes": written,
        "gt_names": np.array([name or "animal" for name in notes.names]),
        "gt_velocity": boxes[:, 7:],
        "num_lidar_pts": notes.num_lidar_points,
        "num_radar_pts": notes.num_radar_points,
    }


def write(path: Path, entries: list[dict]) -> Path:
    path.write_bytes(pickle.dumps({"infos": entries}))
    return path


def assert_same_boxes(found: list[Frame], expected: list[Frame]) -> None:
    assert [frame.token for frame in found] == [frame.token for frame in expected]
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one.bev_boxes(), other.bev_boxes(), atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("layout", ["wlh", "lwh"])
def test_box_layouts_are_told_apart(tmp_path, tiny_root, frames, layout, caplog):
    path = write(tmp_path / "infos.pkl", [info(frame, layout) for frame in frames])
    assert_same_boxes(read_info_pickle(path, tiny_root), frames)
    assert ("mmdet3d 1.0" in caplog.text) == (layout == "lwh")


def test_an_open_box_layout_is_asked_for_and_may_be_named(tmp_path, tiny_root, frames):
    entries = [info(frame, "lwh") for frame in frames]
    for entry in entries:
        people = entry["gt_names"] == "pedestrian"
        for key in ("gt_boxes", "gt_names", "gt_velocity", "num_lidar_pts", "num_radar_pts"):
            entry[key] = entry[key][people]
    path = write(tmp_path / "infos.pkl", entries)
    with pytest.raises(DataError, match=r"layout of gt_boxes is open .* option box_layout .*box_layout=lwh"):
        read_info_pickle(path, tiny_root)
    (own,) = {tuple(box) for frame in read_info_pickle(path, tiny_root, box_layout="lwh") for box in size(frame)}
    (other,) = {tuple(box) for frame in read_info_pickle(path, tiny_root, box_layout="wlh") for box in size(frame)}
    assert own == (other[1], other[0], other[2])
    with pytest.raises(DataError, match="box_layout 'xyz': choose from wlh, lwh"):
        read_info_pickle(path, tiny_root, box_layout="xyz")


def size(frame: Frame) -> np.ndarray:
    return frame.annotations.size_lwh_m.round(6)


def test_sizes_and_headings_that_contradict_one_another(tmp_path, tiny_root, frames):
    entries = [info(frame, "lwh") for frame in frames]
    for entry, frame in zip(entries, frames):
        entry["gt_boxes"][:, [3, 4]] = entry["gt_boxes"][:, [4, 3]]
        entry["gt_velocity"] = 3 * np.stack([np.cos(frame.bev_boxes()[:, 6]), np.sin(frame.bev_boxes()[:, 6])], 1)
    with pytest.raises(DataError, match="by sizes it is wlh, by headings it is lwh"):
        read_info_pickle(write(tmp_path / "infos.pkl", entries), tiny_root)


def test_plain_and_camera_only_infos(tmp_path, tiny_root, frames):
    """Without scenes, LiDAR, velocities, counts of points: what is missing is unknown, not an error."""
    entries = [info(frame) for frame in frames[:4]]
    for entry in entries:
        for key in ("scene_token", "lidar2ego_rotation", "lidar2ego_translation", "lidar_path", "gt_velocity"):
            del entry[key]
        del entry["num_lidar_pts"], entry["num_radar_pts"]
        for cam in entry["cams"].values():
            cam["data_path"] = cam["data_path"].replace("scene-0061", "drive__scene-0061")
            del cam["timestamp"]
    for image in (tiny_root / "samples").glob("*/scene-0061*.jpg"):
        copy = tmp_path / "samples" / image.parent.name / f"drive__{image.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(image.read_bytes())
    found = read_info_pickle(write(tmp_path / "infos.pkl", entries), tmp_path)
    assert [frame.prev_token for frame in found] == ["", *(frame.token for frame in frames[:3])]
    for one, other in zip(found, frames):
        assert one.lidar_path == "" and (one.annotations.num_lidar_points == 3).all()
        np.testing.assert_allclose(one.bev_boxes()[:, :7], other.bev_boxes()[:, :7], atol=1e-6)
        assert np.isnan(one.annotations.velocity_global_mps).all()
        np.testing.assert_allclose(one.ego_from_bev, other.ego_from_bev, atol=1e-6)  # by way of the cameras
    for entry in entries:
        for cam in entry["cams"].values():
            del cam["sensor2lidar_rotation"]
    with pytest.raises(DataError, match="gt_boxes lie in the frame of the LiDAR, but lidar2ego_rotation is missing"):
        read_info_pickle(write(tmp_path / "infos.pkl", entries), tmp_path)
    for entry in entries:
        del entry["gt_boxes"]
    found = read_info_pickle(write(tmp_path / "infos.pkl", entries), tmp_path)
    assert found[0].annotations is None and np.array_equal(found[0].ego_from_bev, np.eye(4))


def test_cameras_come_in_one_order_and_images_state_their_size(tmp_path, tiny_root, frames):
    found = read_info_pickle(write(tmp_path / "infos.pkl", [info(frame) for frame in frames]), tiny_root)
    assert [[view.name for view in frame.cameras] for frame in found] == [["CAM_FRONT", "CAM_BACK"]] * len(frames)
    assert [view.image_size_px for view in found[0].cameras] == [(64, 36), (96, 60)]
    assert camera_order(["ring_side_left", "ring_front_center", "CAM_BACK", "CAM_FRONT"]) == [
        *("CAM_FRONT", "CAM_BACK", "ring_front_center", "ring_side_left")
    ]


def test_images_that_are_missing_leave_the_size_open(tmp_path, frames):
    path = write(tmp_path / "infos.pkl", [info(frame) for frame in frames])
    with pytest.raises(DataError, match=r"camera CAM_FRONT: .*\.jpg: size of the image is unknown .* image_size_px"):
        read_info_pickle(path, tmp_path)
    assert read_info_pickle(path, tmp_path, (64, 36))[0].cameras[0].image_size_px == (64, 36)


@pytest.mark.parametrize(("unit", "words"), [(1e-6, "read as seconds"), (1e-3, "like milliseconds"), (1e3, "nanosec")])
def test_times_since_1970_show_their_unit(tmp_path, tiny_root, frames, unit, words, caplog):
    entries = [info(frame) for frame in frames]
    for entry, frame in zip(entries, frames):
        for record in (entry, *entry["cams"].values()):
            record["timestamp"] = (1_600_000_000_000_000 + frame.timestamp_us) * unit
    path = write(tmp_path / "infos.pkl", entries)
    if unit == 1e-6:
        found = read_info_pickle(path, tiny_root)
        assert words in caplog.text and found[0].timestamp_us == 1_600_000_000_000_000 + frames[0].timestamp_us
    else:
        with pytest.raises(DataError, match=words):
            read_info_pickle(path, tiny_root)


@pytest.mark.parametrize("prefix", [".\\data\\nuscenes\\", "D:\\data\\nuscenes\\", "D:/data/nuscenes/"])
def test_paths_of_windows(tmp_path, tiny_root, frames, prefix):
    entries = [info(frame) for frame in frames]
    for entry in entries:
        entry["occ_gt_path"] = "gts\\scene\\labels.npz"
        for cam in entry["cams"].values():
            cam["data_path"] = prefix + cam["data_path"].removeprefix("./data/nuscenes/").replace("/", "\\")
    found = read_info_pickle(write(tmp_path / "infos.pkl", entries), tiny_root)
    assert [v.image_path for v in found[0].cameras] == [v.image_path for v in frames[0].cameras]
    assert found[0].occupancy_path == str(tiny_root / "gts/scene/labels.npz")


def test_paths_below_a_root(tmp_path):
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "a.jpg").write_bytes(b"")
    for text in ("imgs/a.jpg", "imgs\\a.jpg", ".\\imgs\\a.jpg", "C:\\x y\\imgs\\a.jpg", "c:/x/imgs/a.jpg"):
        assert path_below(tmp_path, text) == tmp_path / "imgs" / "a.jpg", text
    assert path_below(tmp_path, "/abs/a.jpg") == Path("/abs/a.jpg")
    for text in (3, "a\0b", "x" * 300 + ".jpg"):
        with pytest.raises(DataError, match="cannot be the path of a file"):
            path_below(tmp_path, text)


def test_other_pickles_are_named(tmp_path):
    path = tmp_path / "x.pkl"
    for content, words in (
        ({("val", "0", "1"): {}}, "a collection of OpenLane-V2"),
        ({"results": {}, "meta": {}}, "results of a model"),
        ([{"image": 1, "point_cloud": 2}], "a list of entries with image, point_cloud"),
        ({"infos": 3}, "infos is no list of samples"),
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=words):
            read_info_pickle(path, tmp_path)


# ------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("damage", ["empty", "second first", "circle", "count", "no count"])
def test_broken_chains_of_samples_are_named_and_all_are_read(own_root, edit_table, damage, caplog):
    def samples(rows):
        for row in rows:
            if damage == "empty":
                row["prev"] = row["next"] = ""
            elif damage == "circle" and row["token"] == "scene-0061-3":
                row["next"] = "scene-0061-0"

    def scenes(rows):
        for row in rows:
            if damage == "second first":
                row["first_sample_token"] = row["first_sample_token"][:-1] + "1"
            elif damage == "count":
                row["nbr_samples"] += 2
            elif damage == "no count":
                row["nbr_samples"] = None

    edit_table("sample", samples)
    edit_table("scene", scenes)
    found = read_nuscenes(own_root, VERSION, "mini_train")
    assert {frame.token for frame in found} == set(split_tokens(own_root, VERSION, "mini_train"))
    assert [frame.prev_token for frame in found[:4]] == ["", *(frame.token for frame in found[:3])]
    said = "the chain of samples disagrees with scene_token (scene scene-0061"
    assert caplog.text.count(said) == (damage != "no count")


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_circle_of_annotations_is_named(own_root, edit_table, length):
    def circle(rows):
        of_object = [row for row in rows if row["instance_token"] == "scene-0061-o0"][-length:]
        of_object[-1]["next"] = of_object[0]["token"]
        if length == 1:
            of_object[0]["prev"] = of_object[0]["token"]
        elif length == 2:  # each the neighbour of the other, on both sides
            of_object[0]["prev"] = of_object[1]["token"]

    edit_table("sample_annotation", circle)
    with pytest.raises(DataError, match=r"sample_annotation scene-0061-o0-\d: its prev and next .* a circle"):
        read_nuscenes(own_root, VERSION, "mini_train")


def test_tokens_of_tables_never_become_paths(own_root, edit_table):
    def evil(rows):
        rows[0]["token"] = "../../../EVIL"

    edit_table("sample", evil)
    with pytest.raises(DataError, match=r"sample\.json: sample token '../../../EVIL' cannot name a file"):
        read_nuscenes(own_root, VERSION, "mini_train")


def test_another_lidar_or_none(own_root, edit_table, frames, caplog):
    edit_table("sensor", lambda rows: rows[0].update(channel="LIDAR_CONCAT"))
    found = read_nuscenes(own_root, VERSION, "mini_train")
    for one, other in zip(found, frames, strict=True):
        np.testing.assert_array_equal(one.global_from_bev, other.global_from_bev)
    edit_table(
        "sample_data", lambda rows: rows.__setitem__(slice(None), [r for r in rows if "LIDAR" not in r["filename"]])
    )
    found = read_nuscenes(own_root, VERSION, "mini_train")
    assert len(found) == 8 and found[0].lidar_path == "" and np.array_equal(found[0].ego_from_bev, np.eye(4))
    assert "no LiDAR keyframes; pose and time of a sample are those of CAM_FRONT" in caplog.text


def test_unknown_fields_and_lenses_that_cannot_be_used_are_reported_once(own_root, edit_table, caplog):
    def distort(rows):
        for row in rows:
            row["camera_distortion"] = [-0.3, 0.08, 0, 0, 0, 0.1] if "FRONT" in row["token"] else [0.0] * 5
            row["rolling_shutter_s"] = 0.02

    edit_table("calibrated_sensor", distort)
    frames = read_nuscenes(own_root, VERSION, "mini_train")
    assert all(view.camera.lens is None for frame in frames for view in frame.cameras)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "camera CAM_FRONT: lens distortion is left out (camera_distortion: Brown-Conrady" in messages[0]
    assert "4, 5, 8 or 12 coefficients" in messages[0] and "undistort the images" in messages[0]
    assert "calibration fields that are not used: rolling_shutter_s" in messages[1]


def test_pixels_that_a_lens_moves():
    camera = CameraModel(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), 100, 100)
    radius2 = 0.5
    moved = lambda factor: np.hypot(50, 50) * factor
    shift = lambda kind, *coefficients: corner_shift_px(replace(camera, lens=Lens(kind, coefficients)))
    assert shift("brown_conrady", -0.3) == pytest.approx(moved(0.3 * radius2))
    assert shift("brown_conrady", 0, 0.2, 0, 0, 0.1) == pytest.approx(moved(0.2 * radius2**2 + 0.1 * radius2**3))
    thin_prism = np.zeros(12)
    thin_prism[8], thin_prism[11] = 0.06, 0.08  # in u with the radius squared, in v with its square
    expected = 100 * np.hypot(0.06 * radius2, 0.08 * radius2**2)
    assert shift("brown_conrady", *thin_prism) == pytest.approx(expected)
    angle = np.arctan(np.sqrt(radius2))
    assert shift("kannala_brandt") == pytest.approx(moved(1 - angle / np.sqrt(radius2)))
    assert corner_shift_px(camera) == 0
    assert shift("brown_conrady", -0.9) == np.inf, "nothing is seen there"


def test_categories_without_a_class_are_named(own_root, edit_table, caplog):
    edit_table("category", lambda rows: [row.update(name=f"own.{i}") for i, row in enumerate(rows)])
    found = read_nuscenes(own_root, VERSION, "mini_train")
    assert set(found[0].annotations.names) == {""}
    assert "its categories are own.0, own.1, own.2" in caplog.text


@pytest.mark.parametrize("layout", ["openlane", "challenge"])
def test_sizes_and_paths_of_other_readers(tmp_path, tiny_root, frames, layout, caplog):
    """OpenLane-V2's CAM_ cameras and the challenge's were taken as 1600 x 900 whatever their images are."""
    from drivestack.data_tools.readers.nuscenes.occ3d_challenge import read_challenge
    from drivestack.data_tools.readers.openlane.reader import read_openlane

    frame = frames[0]
    where = {view.name: f"{view.name}\\{Path(view.image_path).name}" for view in frame.cameras}
    for view in frame.cameras:
        (tmp_path / "imgs" / view.name).mkdir(parents=True)
        Image.open(view.image_path).save(tmp_path / "imgs" / where[view.name].replace("\\", "/"))
    part = lambda p: {"rotation": p[:3, :3].tolist(), "translation": p[:3, 3].tolist()}
    if layout == "openlane":
        sensor = {
            view.name: {
                "image_path": "E:\\set\\imgs\\" + where[view.name],
                "extrinsic": part(view.ego_from_camera),
                "intrinsic": {"K": view.camera.intrinsics.tolist(), "distortion": [-0.2, 0, 0]},
            }
            for view in reversed(frame.cameras)
        }
        folder = tmp_path / "test/00001/info"
        folder.mkdir(parents=True)
        content = {"timestamp": 1_600_000_000_000_000, "pose": part(frame.global_from_ego), "sensor": sensor}
        (folder / "1600000000000000.json").write_text(json.dumps(content))
        (found,) = read_openlane(tmp_path, "test")
        assert not caplog.records  # the images are published undistorted
        assert all(view.camera.lens is None for view in found.cameras)
    else:
        record = lambda p: {"rotation": turned(p), "translation": p[:3, 3].tolist()}
        cameras = {
            view.name: {
                "img_path": where[view.name],
                "intrinsic": view.camera.intrinsics.tolist(),
                "extrinsic": record(view.ego_from_camera),
                "ego_pose": record(view.global_from_ego),
            }
            for view in reversed(frame.cameras)
        }
        entry = {"timestamp": "1600000000000000", "camera_sensor": cameras, "ego_pose": record(frame.global_from_ego)}
        entry["gt_path"] = "gts\\s\\t\\labels.npz"
        (tmp_path / "annotations.json").write_text(json.dumps({"scene_infos": {"s": {"t": entry}}}))
        (found,) = read_challenge(tmp_path, "test")
        assert found.occupancy_path == str(tmp_path / "gts/s/t/labels.npz")
    assert [view.name for view in found.cameras] == ["CAM_FRONT", "CAM_BACK"]
    for view, expected in zip(found.cameras, frame.cameras):
        assert view.image_size_px == expected.image_size_px and Path(view.image_path).is_file()
