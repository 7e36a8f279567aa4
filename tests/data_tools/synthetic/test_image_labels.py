"""Labels for image models: masks, boxes, classes and 3D boxes agree with one another and with the tables."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.core.rle import decode_rle
from drivestack.data_tools.clips.transforms import ImagePlacement
from drivestack.data_tools.labels.mono_targets import corners_in_camera, devkit_visible, image_boxes, mono_targets
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.synthetic import build_world, synthesize
from drivestack.data_tools.synthetic.files import generate
from drivestack.data_tools.synthetic.files.image_writer import IMAGE_LABELS, MIN_CROP_SIDE_PX, MIN_CROP_VISIBLE
from drivestack.data_tools.synthetic.labels.segments import DETECTION_CLASSES, SEGMENT_CLASSES
from drivestack.data_tools.synthetic.labels.visible import visible_objects
from drivestack.data_tools.synthetic.sensing.observe import take_picture
from drivestack.data_tools.synthetic.sensing.renderer import RayCaster
from drivestack.data_tools.synthetic.sensing.sensors import camera_rig
from drivestack.geometry import invert_pose, quaternion_to_matrix, transform_points

SEED, KEYFRAMES, WIDTH_PX, SPLITS = 7, 2, 256, ("train", "val")


def _write(folder: Path, **changes) -> Path:
    arguments = {"num_scenes": {"train": 2, "val": 1}, "keyframes_per_scene": KEYFRAMES, "seed": SEED}
    arguments |= {"image_width_px": WIDTH_PX, "labels": IMAGE_LABELS, "workers": 1, "progress": False} | changes
    return synthesize(folder, **arguments)


def _files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return _write(tmp_path_factory.mktemp("images") / "set")


class Coco:
    """One split's file, by image."""

    def __init__(self, root: Path, split: str, name: str = "instances") -> None:
        self.root, self.split = root, split
        self.content = json.loads((root / "annotations" / f"{name}_{split}.json").read_text())
        self.names = {c["id"]: c["name"] for c in self.content["categories"]}
        self.of_image: dict[int, list[dict]] = defaultdict(list)
        for annotation in self.content["annotations"]:
            self.of_image[annotation["image_id"]].append(annotation)

    def __iter__(self) -> Iterator[tuple[dict, list[dict]]]:
        return ((image, self.of_image[image["id"]]) for image in self.content["images"])

    def segments(self, image: dict) -> np.ndarray:
        name = f"{Path(image['file_name']).stem}.png"
        return np.array(Image.open(self.root / "masks" / self.split / name))


def _row_by_token(root: Path, table: str) -> dict[str, dict]:
    return {row["token"]: row for row in json.loads((root / "v1.0-trainval" / f"{table}.json").read_text())}


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_areas_and_classes_are_those_of_the_masks(root, split):
    classes = json.loads((root / "masks" / "classes.json").read_text())
    assert classes["classes"] == list(SEGMENT_CLASSES) and classes["ignore_index"] == 255
    crowds = 0
    for image, labels in (coco := Coco(root, split)):
        segments = coco.segments(image)
        assert segments.dtype == np.uint8 and segments.shape == (image["height"], image["width"])
        assert segments.max() < len(SEGMENT_CLASSES)
        claimed = np.zeros(segments.shape, bool)
        for annotation in labels:
            mask = decode_rle(annotation["segmentation"], "file")
            rows, columns = np.nonzero(mask)
            left, top, width, height = annotation["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == mask.sum()
            assert not (claimed & mask).any()  # crowds and instances share no pixel
            claimed |= mask
            assert (segments[mask] == SEGMENT_CLASSES.index(coco.names[annotation["category_id"]])).all()
            crowds += annotation["iscrowd"]
        things = np.isin(segments, [SEGMENT_CLASSES.index(name) for name in DETECTION_CLASSES])
        np.testing.assert_array_equal(claimed, things)  # every pixel of an object is in an instance or a crowd
    assert crowds


@pytest.mark.parametrize("split", SPLITS)
def test_the_official_package_reads_the_same(root, split):
    coco_tools = pytest.importorskip("pycocotools.coco")
    mask_tools = pytest.importorskip("pycocotools.mask")
    theirs = coco_tools.COCO(root / "annotations" / f"instances_{split}.json")
    for annotation in theirs.dataset["annotations"]:
        mask = theirs.annToMask(annotation)
        np.testing.assert_array_equal(mask, decode_rle(annotation["segmentation"], "file"))
        np.testing.assert_array_equal(mask_tools.toBbox(annotation["segmentation"]), annotation["bbox"])


def test_the_3d_box_of_every_instance_lies_around_its_mask(root):
    instances, annotated = _row_by_token(root, "instance"), _row_by_token(root, "sample_annotation")
    categories = _row_by_token(root, "category")
    compared = 0
    for split in SPLITS:
        frames = {
            Path(view.image_path).name: (frame, view)
            for frame in read_nuscenes(root, "v1.0-trainval", split)
            for view in frame.cameras
        }
        for image, labels in (coco := Coco(root, split)):
            frame, view = frames[image["file_name"]]
            np.testing.assert_array_equal(view.camera.intrinsics, image["camera_intrinsic"])
            tokens = [a["sample_annotation_token"] for a in labels if not a["iscrowd"]]
            assert len(set(tokens)) == len(tokens)
            for annotation in labels:
                if annotation["iscrowd"]:
                    assert set(annotation["sample_annotation_tokens"]) <= set(annotated) - set(tokens)
                    continue
                row = annotated[annotation["sample_annotation_token"]]
                category = categories[instances[row["instance_token"]]["category_token"]]["name"]
                i = frame.annotations.tokens.index(row["token"])
                name = coco.names[annotation["category_id"]]
                assert frame.annotations.names[i] == name, category
                camera_from_global = invert_pose(view.global_from_camera)
                corners = corners_in_camera(
                    transform_points(camera_from_global, frame.annotations.centre_global_m[i])[None],
                    (camera_from_global[:3, :3] @ frame.annotations.rotation_global[i])[None],
                    frame.annotations.size_lwh_m[i][None],
                )
                if corners[..., 2].min() < 0.1:
                    continue
                left, top, right, bottom = image_boxes(corners, view.camera)[0][0]
                x, y, width, height = annotation["bbox"]
                assert left - 1 <= x and x + width - 1 <= right + 1
                assert top - 1 <= y and y + height - 1 <= bottom + 1
                if annotation["visible_share"] == 1 and annotation["inside_share"] == 1 and name in ("car", "bus"):
                    assert width * height > 0.55 * (right - left) * (bottom - top)  # and not far around it
                compared += 1
    assert compared > 60


def test_visible_shares_are_those_of_the_whole_picture():
    world = build_world(SEED, "train", 0, KEYFRAMES)
    camera, pose = camera_rig(WIDTH_PX)[0], world.global_from_ego(0.0)
    rng = np.random.default_rng(0)
    picture = take_picture(RayCaster(world.mesh_at(0.0)), camera, pose, world.light, rng)
    found = visible_objects(world, 0.0, picture, camera, pose)
    assert {v.thing.instance for v in found} == set(np.unique(picture.instance)) - {0}
    hidden = 0
    for v in found:
        centre, yaw, _ = v.thing.motion.poses(np.array([0.0]))
        alone = RayCaster(v.thing.mesh.moved(*centre[0], 0.0, yaw[0]))
        mask = take_picture(alone, camera, pose, world.light, rng).instance == v.thing.instance
        rows, columns = np.nonzero(mask)
        assert v.whole_xyxy_px == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert v.visible_share == (picture.instance == v.thing.instance).sum() / mask.sum()
        hidden += v.visible_share < 1
    assert hidden


def test_3d_boxes_of_images_are_the_targets_that_the_tables_give(root):
    frames = [frame for split in SPLITS for frame in read_nuscenes(root, "v1.0-trainval", split)]
    views = {Path(v.image_path).name: (frame.annotations, v) for frame in frames for v in frame.cameras}
    compared = 0
    for image, labels in (pair for split in SPLITS for pair in Coco(root, split, "mono")):
        table, view = views[image["file_name"]]
        whole_image = ImagePlacement(0, 0, *view.image_size_px, *view.image_size_px)
        targets = mono_targets(table, view, DETECTION_CLASSES, whole_image)
        for annotation in labels:
            rotation = quaternion_to_matrix(annotation["rotation_camera"])
            box = (
                np.array(annotation["centre_camera_m"])[None],
                rotation[None],
                np.array(annotation["size_lwh_m"])[None],
            )
            seen = devkit_visible(corners_in_camera(*box), view.camera)[0]
            if annotation["num_lidar_pts"] < 3 or annotation["inside_share"] < 0.2 or not seen:
                continue
            distance = np.linalg.norm(targets.boxes3d_camera[:, 4:7].numpy() - annotation["centre_camera_m"], axis=1)
            i = int(distance.argmin())
            assert distance[i] < 1e-4
            x, y, width, height = annotation["bbox"]
            np.testing.assert_allclose(targets.boxes_xyxy_px[i], [x, y, x + width, y + height], atol=2e-3)
            assert targets.labels[i] == annotation["category_id"] - 1
            expected = quaternion_to_matrix(targets.boxes3d_camera[i, :4].double().numpy())
            np.testing.assert_allclose(rotation, expected, atol=1e-5)
            np.testing.assert_allclose(
                annotation["size_lwh_m"], targets.boxes3d_camera[i, [8, 7, 9]].numpy(), atol=1e-5
            )
            speed_mps = float(targets.speed[i])  # unknown to the tables where they have an object only once
            assert np.isnan(speed_mps) or abs(speed_mps - annotation["speed_mps"]) < 0.2
            compared += 1
    assert compared > 60


def test_crops_are_whole_objects_sorted_by_class(root):
    for split in SPLITS:
        coco = Coco(root, split)
        by_place = {}
        for image, labels in coco:
            for a in labels:
                by_place.setdefault((Path(image["file_name"]).stem, coco.names[a["category_id"]]), []).append(a)
        crops = sorted((root / "crops" / split).glob("*/*.jpg"))
        assert len(crops) > 10
        for crop in crops:
            stem, _, number = crop.stem.rpartition("__")
            assert number.isdigit()
            width, height = Image.open(crop).size
            assert min(width, height) >= MIN_CROP_SIDE_PX
            fitting = [
                a
                for a in by_place[stem, crop.parent.name]
                if not a["iscrowd"]
                and a["visible_share"] >= MIN_CROP_VISIBLE
                and 0 <= width - a["bbox"][2] <= 0.2 * a["bbox"][2] + 1
                and 0 <= height - a["bbox"][3] <= 0.2 * a["bbox"][3] + 1
            ]
            assert fitting, crop
    assert json.loads((root / "crops" / "classes.json").read_text())["classes"] == sorted(DETECTION_CLASSES)


def test_images_are_those_of_the_tables(root):
    for split in SPLITS:
        names = {image["file_name"] for image, _ in Coco(root, split)}
        assert names == {path.name for path in (root / "images" / split).iterdir()}
        for name in names:
            camera = name.split("__")[1]
            assert (root / "images" / split / name).read_bytes() == (root / "samples" / camera / name).read_bytes()


def test_nuimages_tables_hold_every_object_and_the_road(root):
    for split in SPLITS:
        tables = {p.stem: json.loads(p.read_text()) for p in (root / f"v1.0-{split}").iterdir()}
        tokens = {name: {row["token"] for row in rows} for name, rows in tables.items()}
        coco = Coco(root, split)
        assert len(tables["sample"]) == len(coco.content["images"])
        for table, rows in tables.items():
            for row in rows:
                for key, value in row.items():
                    target = key.removeprefix("key_camera_").removeprefix("key_lidar_").removesuffix("_token")
                    if key.endswith("_token"):
                        assert value in tokens["sample_data" if target == "token" else target], (table, key)
        masks: dict[str, list[dict]] = defaultdict(list)
        for row in tables["object_ann"] + tables["surface_ann"]:
            row["mask"]["counts"] = base64.b64decode(row["mask"]["counts"])
            masks[row["sample_data_token"]].append(row)
        categories = {row["token"]: row["name"] for row in tables["category"]}
        for image, _ in coco:
            segments = coco.segments(image)
            total = np.zeros(segments.shape, int)
            for row in masks[image["sample_data_token"]]:
                mask = decode_rle(row["mask"], "file")
                total += mask
                if categories[row["category_token"]] == "flat.driveable_surface":
                    np.testing.assert_array_equal(mask, segments == SEGMENT_CLASSES.index("road"))
                    continue
                left, top, right, bottom = row["bbox"]
                assert not mask[:top].any() and not mask[bottom:].any()
                assert not mask[:, :left].any() and not mask[:, right:].any()
            road_or_thing = np.isin(segments, [SEGMENT_CLASSES.index(n) for n in ("road", *DETECTION_CLASSES)])
            np.testing.assert_array_equal(total, road_or_thing)


def test_the_nuimages_devkit_reads_the_tables(root):
    pytest.importorskip("pycocotools")
    devkit = pytest.importorskip("nuimages")
    nuim = devkit.NuImages("v1.0-val", str(root), lazy=False, verbose=False)
    coco = Coco(root, "val")
    for image, labels in coco:
        semantic, instance = nuim.get_segmentation(image["sample_data_token"])
        road = coco.segments(image) == SEGMENT_CLASSES.index("road")
        np.testing.assert_array_equal(semantic == 24, road)  # the devkit's number of the driveable surface
        assert instance.max() >= len([a for a in labels if not a["iscrowd"]])


def test_an_interrupted_run_goes_on_to_the_same_files_with_two_workers(root, tmp_path, monkeypatch):
    real, calls = generate.write_scene, []

    def stop_within_the_second_scene(world, *rest):
        calls.append(world.index)
        if len(calls) == 2:
            keyframes = iter([None])
            rest = (*rest[:-1], lambda: next(keyframes))  # ends after the second keyframe's files
        return real(world, *rest)

    monkeypatch.setattr(generate, "write_scene", stop_within_the_second_scene)
    with pytest.raises(StopIteration):
        _write(tmp_path / "set")
    assert len(calls) == 2 and (tmp_path / "set.partial" / "images").is_dir()
    monkeypatch.setattr(generate, "write_scene", real)
    assert _files(_write(tmp_path / "set", workers=2)) == _files(root)


def test_without_them_the_set_is_as_before(root, tmp_path):
    plain, full = _files(_write(tmp_path / "plain", labels=())), _files(root)
    more = {Path(name).parts[0] for name in set(full) - set(plain)}
    assert more == {"images", "annotations", "masks", "crops", "v1.0-train", "v1.0-val"}
    assert [name for name in plain if plain[name] != full[name]] == ["synthetic_manifest.json"]


@pytest.mark.parametrize("label", IMAGE_LABELS)
def test_each_kind_can_be_written_alone(root, tmp_path, label):
    alone, full = _files(_write(tmp_path / "set", num_scenes={"val": 1}, labels=[label])), _files(root)
    added = [name for name in alone if not name.startswith(("v1.0-trainval", "synthetic", "samples", "maps"))]
    assert added and all(full[name] == alone[name] for name in added)


def test_another_rig_on_a_disk_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    changes = {"num_scenes": {"val": 1}, "keyframes_per_scene": 1, "image_width_px": 96, "rig": "argoverse2"}
    root = _write(tmp_path / "set", labels=["coco", "segmentation"], **changes)
    coco = Coco(root, "val")
    assert len(coco.content["images"]) == 7
    for image, _ in coco:
        picture = root / "images" / "val" / image["file_name"]
        assert picture.read_bytes() == (root / "samples" / image["camera"] / image["file_name"]).read_bytes()
        assert Image.open(picture).size == (image["width"], image["height"]) == coco.segments(image).shape[::-1]
