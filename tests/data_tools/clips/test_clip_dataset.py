"""Clips: what is in them, that they are repeatable, and how they are batched."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from drivestack.bev.published.ego_motion import images_from_ego
from drivestack.core.errors import ConfigError, DataError
from drivestack.core.frames import Frame
from drivestack.core.labels import OccupancyLabels
from drivestack.core.registries import DATASETS
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.mirror import mirror_clip
from drivestack.data_tools.clips.sampler import ResumableSampler
from drivestack.data_tools.clips.transforms import BdaSettings, ImageSettings, PhotometricSettings
from drivestack.data_tools.labels.files import write_occupancy
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.geometry import transform_points, wrap_angle, yaw_of

IMAGE = {"crop": (0, 0.25, 1, 1), "train_heights_px": (24, 30, 36), "test_height_px": 27}


@pytest.fixture(scope="module")
def frames(tiny_root):
    return read_nuscenes(tiny_root, "v1.0-mini", "mini_train")


@pytest.fixture
def build(frames, classes):
    return lambda **kwargs: ClipDataset(**({"classes": classes, "frames": frames, "image": IMAGE} | kwargs))


@pytest.fixture
def augmented(build):
    return lambda **kwargs: build(
        training=True,
        image=IMAGE | {"flip": True, "resample": "area"},
        photometric=PhotometricSettings(),
        bda=BdaSettings(),
        mono=True,
        **kwargs,
    )


def equal(a, b) -> bool:
    """Equality to the last bit of what two clips hold."""
    if isinstance(a, (np.ndarray, torch.Tensor)):
        return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, Frame):
        return a.token == b.token
    if not is_dataclass(a):
        return a == b
    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


def test_a_clip_is_a_pure_function_of_seed_draw_and_index(augmented):
    one, two, other = augmented(), augmented(), augmented(seed=1)
    [one[3, d] for d in range(3)]  # whatever was drawn before
    assert all(equal(one[i, d], two[i, d]) for i in range(3) for d in range(3))
    assert not equal(one[2, 5], one[2, 6])
    assert not equal(one[2, 5], other[2, 5])
    assert equal(one[2], one[2, 0])
    with pytest.raises(IndexError):
        one[8]


def test_one_image_draw_for_all_cameras_and_frames_of_a_clip(augmented):
    dataset = augmented(frame_offsets=(-1, 0, 1))
    heights, flips = set(), set()
    for draw in range(12):
        clip = dataset[1, draw]
        sizes = {image.shape[1] for views in clip.images for image in views}
        assert len(sizes) == 1
        heights |= sizes
        flips.add(clip.image_flipped)
    assert heights == {24, 30, 36} and flips == {False, True}


def test_evaluation_draws_nothing(build, frames):
    dataset = build(photometric={}, bda={}, image=IMAGE | {"flip": True})
    assert equal(dataset[2, 0], dataset[2, 9])
    clip = dataset[2]
    assert clip.images[0][0].shape == (3, 27, 64) and not clip.image_flipped
    assert clip.images[0][1].shape == (3, 27, 57)  # 96 x 45 pixels of the other camera
    np.testing.assert_array_equal(clip.bda, np.eye(3))
    np.testing.assert_allclose(clip.gt_boxes, frames[2].bev_boxes()[:2], atol=1e-5)  # the animal is no class
    assert clip.gt_labels.tolist() == [3, 3]


@pytest.mark.parametrize("offsets", [(0, -1), (-3, -1, 0), (0, 2), (-7, -6, -5, -4, -3, -2, -1, 0)])
def test_history_is_the_scenes_own_and_missing_frames_are_marked(build, frames, offsets):
    dataset = build(frame_offsets=offsets)
    offsets = sorted(offsets)
    for index, frame in enumerate(frames):
        batch = collate_clips([dataset[index]])
        assert batch.frame_offsets == tuple(offsets)
        place = index % 4  # in its scene of four
        assert batch.frame_valid[0].tolist() == [0 <= place + o < 4 for o in offsets]
        missing = ~batch.frame_valid[0]
        assert not batch.images[0, missing].any() and not batch.image_from_bev[0, missing].any()
        assert batch.images[0, batch.current].any() and batch.tokens == [frame.token]


def test_points_of_the_current_frame_land_in_past_images(build, frames):
    dataset = build(frame_offsets=(-1, 0, 1))
    clip = dataset[1]
    current = frames[1]
    points = np.random.default_rng(0).uniform(-20, 20, (50, 3))
    for t, neighbour in enumerate(frames[:3]):
        in_neighbour = transform_points(np.linalg.inv(neighbour.global_from_bev) @ current.global_from_bev, points)
        for n, view in enumerate(neighbour.cameras):
            homogeneous = transform_points(clip.image_from_bev[t, n].astype(np.float64), points)
            depth = transform_points(np.linalg.inv(neighbour.bev_from_camera(view)), in_neighbour)[:, 2]
            np.testing.assert_allclose(homogeneous[:, 2], depth, atol=1e-4)
            front = depth > 1
            uv, _ = view.camera.project(transform_points(np.linalg.inv(neighbour.bev_from_camera(view)), in_neighbour))
            top, scale = 0.25 * view.camera.height_px, 27 / (0.75 * view.camera.height_px)
            width_scale = clip.images[t][n].shape[2] / view.camera.width_px
            expected = (uv - [0, top]) * [width_scale, scale]
            np.testing.assert_allclose((homogeneous[:, :2] / homogeneous[:, 2:])[front], expected[front], atol=1e-2)


def test_ego_poses_give_every_frame_its_own_matrices(build, frames):
    """Also in the mirror world, whose poses are mirrored; and what the car's own bus says fits the poses."""
    frames = [replace(frame, can_signals=np.arange(1.0, 10.0)) for frame in frames]
    clip = build(frames=frames, frame_offsets=(-1, 0))[1]
    mirrored = mirror_clip(clip)
    for sample, signs in ((clip, 1), (mirrored, [1, -1, 1, -1, 1, -1, 1, -1, 1])):
        np.testing.assert_allclose(sample.can_bus[:, 7:16], [np.arange(1.0, 10.0) * signs] * 2)
        np.testing.assert_allclose(sample.can_bus[:, :3], sample.global_from_ego[:, :3, 3])
        heading = yaw_of(np.linalg.inv(sample.global_from_ego[0]) @ sample.global_from_ego[1])
        for turn in (np.diff(sample.can_bus[:, -2]), np.radians(np.diff(sample.can_bus[:, -1]))):
            np.testing.assert_allclose(wrap_angle(turn), heading)
    points = np.random.default_rng(0).uniform([5, -9, -1], [20, 9, 3], (50, 3))  # of each frame's own EGO frame
    matrices = images_from_ego(collate_clips([clip, mirrored])).double().numpy()
    for t, frame in enumerate(frames[:2]):
        view, width_px = frame.cameras[0], clip.images[t][0].shape[2]
        lidar = transform_points(np.linalg.inv(frame.ego_from_bev), points)
        uv, _ = view.camera.project(transform_points(np.linalg.inv(frame.bev_from_camera(view)), lidar))
        expected_u = uv[:, 0] * width_px / view.camera.width_px
        for b, u in ((0, expected_u), (1, width_px - expected_u)):
            seen = transform_points(matrices[b, t, 0], points * [1, -1 if b else 1, 1])
            np.testing.assert_allclose(seen[:, 0] / seen[:, 2], u, atol=1e-2)


def test_matrices_of_a_mirrored_clip_are_those_of_the_plain_one_and_its_features_mirror_back(build):
    settings = ImageSettings(crop=(0, 0, 1, 1), train_heights_px=(33,), flip=True)
    dataset = build(training=True, image=settings)
    clips = [dataset[1, draw] for draw in range(12)]
    plain = next(c for c in clips if not c.image_flipped)
    mirrored = next(c for c in clips if c.image_flipped)
    np.testing.assert_array_equal(plain.image_from_bev, mirrored.image_from_bev)
    np.testing.assert_array_equal(plain.intrinsics, mirrored.intrinsics)
    batch = collate_clips([plain, mirrored])
    assert batch.images.shape[-2:] == (64, 64) and batch.image_flipped.tolist() == [False, True]
    # Widths 58 and 52 of 64: the padding ends up on the right once the model mirrors the features back.
    torch.testing.assert_close(batch.images[0], batch.images[1].flip(-1))
    assert batch.image_size_px[0, 0].tolist() == [[33, 58], [33, 52]]


def test_a_batch_is_padded_to_its_largest_image_and_a_multiple_of_32(build):
    dataset = build(camera_names=("CAM_BACK", "CAM_FRONT"), mono=True, frame_offsets=(-1, 0))
    clips = [dataset[i] for i in (1, 4)]
    batch = collate_clips(clips)
    assert batch.images.shape == (2, 2, 2, 3, 32, 64) and batch.images.dtype == torch.float32
    assert batch.image_size_px[0].tolist() == [[[27, 57], [27, 64]]] * 2
    assert batch.image_size_px[1, 0].tolist() == [[0, 0], [0, 0]]
    torch.testing.assert_close(batch.images[0, 1, 0, :, :27, :57], torch.from_numpy(clips[0].images[1][0]))
    assert not batch.images[..., 27:, :].any()
    assert batch.intrinsics.shape == (2, 2, 3, 3) and batch.bev_from_camera.shape == (2, 2, 4, 4)
    assert [len(views) for views in batch.mono] == [2, 2]
    assert batch.mono[0][0] is None and batch.mono[0][1].labels.tolist() == [3, 3, 6]  # everything is ahead
    moved = batch.to("cpu")
    assert moved.mono[0][1].labels.tolist() == [3, 3, 6]
    with pytest.raises(ValueError, match="scene-0061-1 and scene-0061-0"):
        collate_clips([clips[0], build()[0]])


def test_the_image_cache_changes_nothing_at_its_own_size_and_little_at_others(build):
    settings = ImageSettings(crop=(0, 0.25, 1, 1), train_heights_px=(36, 24), test_height_px=24, resample="area")
    for training in (False, True):
        cached = build(image=settings, cache_images=True, training=training)
        plain = build(image=settings, training=training)
        for draw in range(6):
            a, b = cached[1, draw], plain[1, draw]
            for image, expected in zip(a.images[0], b.images[0]):
                exact = image.shape[1] == (36 if training else 24)
                np.testing.assert_allclose(image, expected, atol=0 if exact else 40)
            np.testing.assert_array_equal(a.image_from_bev, b.image_from_bev)
    with pytest.raises(ConfigError, match="cache_images needs"):
        build(cache_images=True)


def test_clips_without_ground_truth_are_replaced_the_same_way_each_time(frames, classes):
    empty = [replace(f, annotations=replace(f.annotations, names=[""] * len(f.annotations))) if i != 3 else f
             for i, f in enumerate(frames)]  # fmt: skip
    dataset = ClipDataset(classes=classes, frames=empty, image=IMAGE, training=True)
    assert {dataset[i, 0].frame.token for i in range(8)} == {frames[3].token}
    two = [empty[0], frames[1], frames[5]]
    dataset = ClipDataset(classes=classes, frames=two, image=IMAGE, training=True)
    chosen = [dataset[0, d].frame.token for d in range(12)]
    assert set(chosen) == {frames[1].token, frames[5].token}
    assert chosen == [dataset[0, d].frame.token for d in range(12)]
    nothing = ClipDataset(classes=classes, frames=empty[:3], image=IMAGE, training=True)
    with pytest.raises(DataError, match="none of the 3 frames"):
        nothing[0]
    assert ClipDataset(classes=classes, frames=empty[:3], image=IMAGE)[0].gt_boxes.shape == (0, 9)


def test_unlabelled_frames_can_be_predicted_on(frames, classes):
    blind = [replace(f, annotations=None) for f in frames]
    batch = collate_clips([ClipDataset(classes=classes, frames=blind, image=IMAGE, mono=True)[0]])
    assert batch.gt_boxes == [None] and batch.mono == [None]


def test_a_loader_resumes_with_the_same_batches_whatever_its_workers(augmented):
    dataset = augmented(frame_offsets=(-1, 0))

    def batches(workers: int, position: int, count: int):
        sampler = ResumableSampler(dataset, seed=4)
        sampler.load_state_dict({"position": position})
        loader = DataLoader(dataset, 2, sampler=sampler, num_workers=workers, collate_fn=collate_clips)
        return [batch for batch, _ in zip(loader, range(count))]

    whole = batches(0, 0, 6)
    for resumed in (batches(0, 6, 3), batches(2, 6, 3)):
        for a, b in zip(whole[3:], resumed):
            assert a.tokens == b.tokens
            torch.testing.assert_close(a.images, b.images, rtol=0, atol=0)
            torch.testing.assert_close(a.gt_boxes[0], b.gt_boxes[0], rtol=0, atol=0)
            torch.testing.assert_close(a.bda, b.bda, rtol=0, atol=0)


def test_a_config_builds_it_from_roots(tiny_root, classes):
    dataset = DATASETS.build(
        dict(
            type=ClipDataset,
            classes=classes,
            source=dict(reader="nuscenes", root=str(tiny_root), version="v1.0-mini", split="mini_val"),
            image=dict(type=ImageSettings, test_height_px=32, crop=[0, 0, 1, 1]),
        )
    )
    assert [f.token for f in dataset.frames] == ["scene-0103-0", "scene-0103-1"]
    assert dataset.scene_tokens == ["t-scene-0103"] * 2
    assert dataset[0].images[0][0].shape == (3, 32, 56)


def test_what_cannot_be_a_dataset_is_refused(build, frames, classes, tiny_root):
    with pytest.raises(ConfigError, match="frame_offsets must contain 0"):
        build(frame_offsets=(-2, -1))
    with pytest.raises(ConfigError, match="needs --version"):
        ClipDataset(classes=classes)
    with pytest.raises(ConfigError, match="no frames"):
        ClipDataset(classes=classes, frames=[])
    with pytest.raises(ConfigError, match="colour"):
        build(photometric={"colour": 3})
    with pytest.raises(ConfigError, match=r"no frame has a camera 'CAM_LEFT'; there are CAM_FRONT, CAM_BACK:"):
        build(camera_names=("CAM_LEFT",))
    with pytest.raises(DataError, match="sample scene-0061-0 occurs twice"):
        ClipDataset(classes=classes, source=dict(root=[tiny_root] * 2, version="v1.0-mini", split="mini_train"))
    crooked = replace(frames[2].cameras[1], ego_from_camera=np.diag([1.0, 1, 2, 1]))
    spoilt = replace(frames[2], cameras=(frames[2].cameras[0], crooked))
    with pytest.raises(DataError, match=r"sample scene-0061-2, camera CAM_BACK .*ego_from_camera is not a rotation"):
        build(frames=[*frames[:2], spoilt])


def test_a_broken_image_is_named_when_its_clip_is_asked_for(own_root, classes):
    frames = read_nuscenes(own_root, "v1.0-mini", "mini_val")
    path = own_root / "samples" / "CAM_BACK" / "scene-0103-0.jpg"
    path.write_bytes(path.read_bytes()[:200])
    dataset = ClipDataset(classes=classes, frames=frames, image=IMAGE, frame_offsets=(-1, 0))
    with pytest.raises(DataError, match="sample scene-0103-0, camera CAM_BACK"):
        dataset[1]  # as history


@pytest.mark.parametrize(
    "pc_range", ["nan", (1, 2, 3), (-50, -50, -5, 50, -60, 3), (-50, -50, -5, 50, float("inf"), 3)]
)
def test_a_range_that_is_none_is_refused(build, pc_range) -> None:
    with pytest.raises(ConfigError, match=r"pc_range .*six finite numbers"):
        build(pc_range=pc_range)


def test_classes_are_counted_where_they_were_observed(build, frames, tmp_path):
    """Three labelled frames of which two are looked at, the first and the last."""
    labelled = []
    for i, frame in enumerate((frames * 3)[:3]):
        semantics, observed = np.full((200, 200, 16), 17, np.uint8), np.zeros((200, 200, 16), bool)
        semantics[i, :5, 0], observed[:, :, 0] = i, True
        observed[i, 0, 0] = False
        path = tmp_path / f"{i}.npz"
        write_occupancy(path, OccupancyLabels(semantics, observed, observed))
        labelled.append(replace(frame, token=f"t{i}", occupancy_path=str(path)))
    counts = build(frames=labelled, occupancy=True).class_counts(most=2)
    assert counts == [4, 0, 4] + [0] * 14 + [2 * (200 * 200 - 5)]
    waymo = tmp_path / "000_04.npz"
    classes = np.full((200, 200, 16), 23, np.uint8)
    classes[0, 0, :3] = 14
    seen = np.ones((200, 200, 16), bool)
    np.savez(waymo, voxel_label=classes, origin_voxel_state=seen, final_voxel_state=seen, infov=seen)
    other = replace(frames[0], token="waymo", occupancy_path=str(waymo))
    assert build(frames=[other], occupancy=True).class_counts() == [0] * 14 + [3, 200 * 200 * 16 - 3]
    with pytest.raises(ConfigError, match=r"of 18 and of 16 classes \(samples t0, waymo\): train on one kind"):
        build(frames=[*labelled, other], occupancy=True).class_counts()
    with pytest.raises(ConfigError, match="no voxels to count"):
        build(frames=labelled).class_counts()
