"""The synthetic world through the eyes of the unmodified nuscenes-devkit, and its own promises."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from drivestack.data_tools.synthetic import build_world, synthesize
from drivestack.data_tools.synthetic.files.nuscenes_writer import token
from drivestack.data_tools.synthetic.sensing.observe import Observation, observe
from drivestack.data_tools.synthetic.sensing.sensors import camera_rig
from drivestack.data_tools.synthetic.world.assets import MEAN_SIZE_LWH, build_object
from drivestack.data_tools.synthetic.world.overlap import rectangles_overlap
from drivestack.data_tools.synthetic.world.world import World

SEED, KEYFRAMES, WIDTH_PX = 5, 3, 160


def _write(folder: Path, **changes) -> Path:
    arguments = {"num_scenes": {"train": 1, "val": 1}, "keyframes_per_scene": KEYFRAMES, "seed": SEED}
    arguments |= {"image_width_px": WIDTH_PX, "labels": ["lanes"], "workers": 1, "progress": False} | changes
    return synthesize(folder, **arguments)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return _write(tmp_path_factory.mktemp("synthetic") / "set")


@pytest.fixture(scope="module")
def nusc(root):
    devkit = pytest.importorskip("nuscenes.nuscenes", reason="nuscenes-devkit is not installed")
    return devkit.NuScenes("v1.0-trainval", str(root), verbose=False)


@dataclass
class Truth:
    world: World
    seen: list[Observation]

    def instance(self, annotation: dict) -> int:
        """Instance number of an annotation row of the val scene."""
        tokens = [token("instance", SEED, "val", 0, i) for i in range(len(self.world.objects) + 1)]
        return tokens.index(annotation["instance_token"])


@pytest.fixture(scope="module")
def truth() -> Truth:
    world = build_world(SEED, "val", 0, KEYFRAMES)
    rig = camera_rig(WIDTH_PX)
    return Truth(world, [observe(world, t, rig, [0]) for t in world.keyframe_times_s])


def _val_samples(nusc) -> list[dict]:
    return [s for s in nusc.sample if nusc.get("scene", s["scene_token"])["name"] == "scene-0003"]


def test_devkit_finds_official_scenes_and_all_ten_classes(nusc):
    from nuscenes.utils.splits import create_splits_scenes

    splits = create_splits_scenes()
    assert {s["name"] for s in nusc.scene} == {splits["train"][0], splits["val"][0]}
    assert len(nusc.sample) == 2 * KEYFRAMES and len(nusc.category) == 23
    assert {len(s["data"]) for s in nusc.sample} == {7}
    found = {a["category_name"] for a in nusc.sample_annotation}
    assert len(found) == 10, found


def test_links_lead_from_first_to_last(nusc):
    for scene in nusc.scene:
        sample, count = nusc.get("sample", scene["first_sample_token"]), 1
        while sample["next"]:
            assert nusc.get("sample", sample["next"])["prev"] == sample["token"]
            sample, count = nusc.get("sample", sample["next"]), count + 1
        assert sample["token"] == scene["last_sample_token"] and count == scene["nbr_samples"]
    for instance in nusc.instance:
        row, count = nusc.get("sample_annotation", instance["first_annotation_token"]), 1
        while row["next"]:
            assert nusc.get("sample_annotation", row["next"])["prev"] == row["token"]
            row, count = nusc.get("sample_annotation", row["next"]), count + 1
        assert row["token"] == instance["last_annotation_token"] and count == instance["nbr_annotations"]


def test_devkit_renders_a_camera_and_a_scan(nusc, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    data = nusc.sample[0]["data"]
    for channel in ("CAM_FRONT", "LIDAR_TOP"):
        nusc.render_sample_data(data[channel], out_path=str(tmp_path / channel), underlay_map=False, verbose=False)
        assert any(tmp_path.glob(f"{channel}*"))


def test_projected_boxes_enclose_the_pixels_of_their_instance(nusc, truth):
    """Boxes projected by the devkit against the instance numbers of the rendered pixels."""
    from nuscenes.utils.geometry_utils import view_points

    compared = 0
    for sample, seen in zip(_val_samples(nusc), truth.seen):
        for picture in seen.pictures:
            _, boxes, intrinsics = nusc.get_sample_data(sample["data"][picture.name])
            for box in boxes:
                corners = box.corners()
                i = truth.instance(nusc.get("sample_annotation", box.token))
                rows, columns = np.nonzero(picture.instance == i)
                if not len(rows) or (corners[2] < 0.1).any():
                    continue
                uv = view_points(corners, intrinsics, normalize=True)[:2]
                assert uv[0].min() - 1 <= columns.min() and columns.max() <= uv[0].max() + 1
                assert uv[1].min() - 1 <= rows.min() and rows.max() <= uv[1].max() + 1
                compared += 1
    assert compared > 40


def test_lidar_points_in_a_box_are_those_of_its_instance(nusc, truth):
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    counted = 0
    for sample, seen in zip(_val_samples(nusc), truth.seen):
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        np.testing.assert_array_equal(points.T, seen.lidar.points[:, :3])
        for box in boxes:
            row = nusc.get("sample_annotation", box.token)
            own = seen.lidar.instance == truth.instance(row)
            assert row["num_lidar_pts"] == own.sum()
            box.wlh = box.wlh - 0.02
            kerb = (seen.lidar.semantic == 13) & (points[2] < -1.84 + 0.125)  # 12 cm high, may lie between the wheels
            assert (own | kerb)[points_in_box(box, points)].all(), row["category_name"]
            box.wlh = box.wlh + 0.04
            assert points_in_box(box, points)[own].all(), row["category_name"]
            counted += own.sum()
    assert counted > 500


def test_visibility_follows_what_is_seen(nusc, truth):
    for k, sample in enumerate(_val_samples(nusc)):
        for annotation in sample["anns"]:
            row = nusc.get("sample_annotation", annotation)
            i = truth.instance(row)
            if truth.seen[k].pixel_counts[i] == 0:
                assert row["visibility_token"] == "1"
    assert {r["visibility_token"] for r in nusc.sample_annotation} >= {"1", "4"}


def test_devkit_velocity_is_the_motion(nusc, truth):
    moving = 0
    for row in nusc.sample_annotation:
        velocity = nusc.box_velocity(row["token"])
        attributes = [nusc.get("attribute", t)["name"] for t in row["attribute_tokens"]]
        if np.isnan(velocity).any():
            continue
        speed = np.linalg.norm(velocity[:2])
        if not attributes or attributes[0].split(".")[1] in ("parked", "stopped", "standing", "without_rider"):
            assert speed < 1e-3
        elif attributes[0].endswith("moving"):
            moving += 1
            assert 0.8 < speed < 8.1
            w, z = row["rotation"][0], row["rotation"][3]
            heading = 2 * np.arctan2(z, w)
            ahead = velocity[0] * np.cos(heading) + velocity[1] * np.sin(heading)
            assert ahead > 0.9 * speed  # things drive forward
    assert moving > 3


def test_official_evaluation_accepts_the_truth(root, nusc, tmp_path):
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.eval.detection.utils import category_to_detection_name

    results = {}
    for sample in _val_samples(nusc):
        results[sample["token"]] = [_as_prediction(nusc, row, category_to_detection_name) for row in sample["anns"]]
    meta = {f"use_{name}": name == "camera" for name in ("camera", "lidar", "radar", "map", "external")}
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"meta": meta, "results": results}))
    evaluation = DetectionEval(
        nusc, config_factory("detection_cvpr_2019"), str(path), "val", str(tmp_path), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    assert metrics.mean_dist_aps["car"] > 0.99
    assert metrics.tp_errors["trans_err"] < 1e-6


def _as_prediction(nusc, annotation_token: str, to_class) -> dict:
    row = nusc.get("sample_annotation", annotation_token)
    attributes = [nusc.get("attribute", t)["name"] for t in row["attribute_tokens"]]
    return {
        "sample_token": row["sample_token"],
        "translation": row["translation"],
        "size": row["size"],
        "rotation": row["rotation"],
        "velocity": np.nan_to_num(nusc.box_velocity(annotation_token)[:2]).tolist(),
        "detection_name": to_class(row["category_name"]),
        "detection_score": 0.9 if row["num_lidar_pts"] else 0.1,
        "attribute_name": attributes[0] if attributes else "",
    }


@pytest.mark.parametrize("index", [0, 1, 2])
def test_nothing_overlaps_and_the_ego_car_drives_free(index):
    world = build_world(17, "train", index, 6)
    for time_s in world.keyframe_times_s:
        axle, ego_yaw = (v[0] for v in world.ego.poses(time_s))
        middle = axle + 1.45 * np.array([np.cos(ego_yaw), np.sin(ego_yaw)])
        rows = [(*middle, ego_yaw, 2.3, 0.95)]
        for thing in world.objects:
            centre, yaw, present = thing.motion.poses(time_s)
            if present[0]:
                rows.append((*centre[0], yaw[0], thing.size_lwh[0] / 2, thing.size_lwh[1] / 2))
        r = np.array(rows)
        a, b = np.triu_indices(len(r), 1)
        touching = rectangles_overlap(r[a, :2], r[a, 2], r[a, 3:], r[b, :2], r[b, 2], r[b, 3:])
        assert not touching.any()


def test_same_seed_same_bytes_whatever_the_workers(root, tmp_path):
    again = _write(tmp_path / "again", workers=2)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for file in files:
        assert (root / file).read_bytes() == (again / file).read_bytes(), file


def test_scenes_differ_by_seed_split_and_index():
    worlds = [build_world(*key, 2) for key in ((1, "train", 0), (2, "train", 0), (1, "val", 0), (1, "train", 1))]
    assert len({w.scenery.mesh.vertices.tobytes() for w in worlds}) == len(worlds)


def test_finished_set_is_left_alone_and_another_recipe_refused(root):
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert _write(root) == root
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    with pytest.raises(ValueError, match=r"another synthetic dataset \(seed: has 5, requested 6\)"):
        _write(root, seed=6)


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no synthetic dataset"):
        _write(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_scenes": 1, "split": "test"}, "split must be"),
        ({"num_scenes": {"val": 151}}, "150 scene names"),
        ({"num_scenes": 0}, "at least 1"),
        ({"image_width_px": 8}, "at least 32"),
        ({"seed": -1}, "must not be negative"),
        ({"rig": "one_eye"}, "rig must be one of nuscenes, argoverse2"),
        ({"labels": ["flow"]}, "labels must be of .*lanes, occupancy, .*, got flow"),
    ],
)
def test_bad_arguments_name_the_fault_and_write_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        _write(tmp_path / "set", **changes)
    assert not list(tmp_path.iterdir())


def test_interrupted_set_goes_on(root, tmp_path, monkeypatch):
    from drivestack.data_tools.synthetic.files import generate

    target = tmp_path / "set"
    real = generate.write_scene

    def fail_on_val(world, *rest):
        if world.split == "val":
            raise KeyboardInterrupt
        return real(world, *rest)

    monkeypatch.setattr(generate, "write_scene", fail_on_val)
    with pytest.raises(KeyboardInterrupt):
        _write(target)
    assert not target.exists()
    written = []
    monkeypatch.setattr(
        generate, "write_scene", lambda world, *rest: (written.append(world.split), real(world, *rest))[1]
    )
    _write(target)
    assert written == ["val"]
    tables = Path("v1.0-trainval") / "sample_annotation.json"
    assert (target / tables).read_bytes() == (root / tables).read_bytes()


def test_world_json_knows_lanes_and_traffic_elements(root):
    world = json.loads((root / "synthetic" / "scene-0003" / "world.json").read_text())
    lanes = {lane["id"]: lane for lane in world["lanes"]}
    assert lanes and world["traffic_elements"]
    for lane in lanes.values():
        end = np.array(lane["centreline"][-1])
        for successor in lane["successors"]:
            assert lane["id"] in lanes[successor]["predecessors"]
            assert np.linalg.norm(end - lanes[successor]["centreline"][0]) < 0.01
    for element in world["traffic_elements"]:
        assert set(element["lane_ids"]) <= set(lanes)
    lights = [e for e in world["traffic_elements"] if e["kind"] == "light"]
    assert all(e["lane_ids"] and e["state"] in ("red", "yellow", "green") for e in lights)


@pytest.mark.parametrize("name", MEAN_SIZE_LWH)
def test_meshes_fill_their_box_and_front_differs_from_rear(name):
    mesh = build_object(name, MEAN_SIZE_LWH[name], np.random.default_rng(0))
    length, width, height = MEAN_SIZE_LWH[name]
    np.testing.assert_allclose(mesh.vertices.min(0), [-length / 2, -width / 2, 0], atol=1e-5)
    np.testing.assert_allclose(mesh.vertices.max(0), [length / 2, width / 2, height], atol=1e-5)
    if name not in ("traffic_cone", "barrier"):
        corners = mesh.vertices[mesh.faces].mean(1)  # [F, 3]
        front, rear = mesh.colour[corners[:, 0] > 0.25 * length], mesh.colour[corners[:, 0] < -0.25 * length]
        assert len(front) != len(rear) or not np.allclose(front.mean(0), rear.mean(0), atol=0.02)


def test_semantics_of_pixels_match_the_classes(truth):
    for picture in truth.seen[0].pictures:
        named = picture.instance > 0
        assert (picture.semantic[named] <= 10).all() and (picture.semantic[named] >= 1).all()
        assert np.isinf(picture.depth_m[picture.semantic == 255]).all()
    assert (truth.seen[0].lidar.semantic == 11).mean() > 0.1
