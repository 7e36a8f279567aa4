"""Labels of depth: equal to a loop over points and pixels, and in place in cropped, mirrored and bent images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drivestack.core.batch import Batch
from drivestack.core.errors import ConfigError, DataError
from drivestack.core.frames import CameraView, Frame
from drivestack.core.labels import DepthTargets
from drivestack.core.once import forget_warnings
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.mirror import mirror_clip
from drivestack.data_tools.labels.depth import depth_cells, read_depth, write_depth
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.synthetic import synthesize
from drivestack.geometry import CameraModel, invert_pose, kannala_brandt, pose, rotation_z

FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead
IMAGE = {"crop": (0, 0.25, 1, 1), "train_heights_px": (48,), "test_height_px": 48, "resample": "area"}
PINHOLE = CameraModel(np.array([[100.0, 0, 80], [0, 100, 48], [0, 0, 1]]), 160, 96)
FISHEYE = kannala_brandt([[60.0, 0, 64], [0, 60, 40], [0, 0, 1]], 128, 80, [0.02, 0.0, 0.0, 0.0])
UNKNOWN = [np.inf, 0.0]


def frame(tmp_path: Path, *cameras: CameraModel, points: int = 3000) -> Frame:
    """A car that moved between its LiDAR's time and its cameras', with a random sweep."""
    rng = np.random.default_rng(0)
    file = tmp_path / "sweep.bin"
    sweep = np.zeros((points, 5), np.float32)
    sweep[:, :3] = rng.uniform([-20, -20, -3], [20, 20, 3], (points, 3))
    file.write_bytes(sweep.tobytes())
    views = []
    for n, camera in enumerate(cameras):
        mounted = pose(rotation_z(n * np.pi * 0.8) @ FORWARD, [1.0 - n, 0.1, 1.5])
        pixels = rng.integers(0, 255, (camera.height_px, camera.width_px, 3), dtype=np.uint8)
        later = pose(rotation_z(0.02 * n), [0.3 * n, 0, 0])
        views.append(CameraView(f"C{n}", camera, mounted, later, n, image=pixels))
    bev = pose(rotation_z(-np.pi / 2), [0.9, 0, 1.8])
    return Frame("f", "s", "scene", 0, tuple(views), np.eye(4), bev, lidar_path=str(file))


def dataset(*frames: Frame, **settings) -> ClipDataset:
    return ClipDataset(**{"classes": ["car"], "frames": frames, "image": IMAGE, "depth": True} | settings)


def batch_of(*clips) -> tuple[Batch, DepthTargets]:
    batch = collate_clips(clips)
    assert batch.depth[0] is not None
    return batch, batch.depth[0]


def by_loop(batch: Batch, points_bev: np.ndarray, project) -> np.ndarray:
    """[2, N, h, w]: every point, one after the other."""
    height, width = batch.images.shape[-2:]
    out = np.zeros((2, batch.images.shape[2], height // 8, width // 8))
    out[0] = np.inf
    for n in range(out.shape[1]):
        h, w = batch.image_size_px[0, batch.current, n].tolist()
        for point in points_bev:
            u, v, depth = project(n, point)
            if not depth > 0.1 or not np.isfinite(u):
                continue
            column, row = int(np.floor(u + 0.5)), int(np.floor(v + 0.5))
            if 0 <= column < w and 0 <= row < h:
                near, far = out[:, n, row // 8, column // 8]
                out[:, n, row // 8, column // 8] = min(near, depth), max(far, depth)
    return out


def stacked(targets: DepthTargets) -> np.ndarray:
    return torch.stack([targets.nearest_m, targets.farthest_m]).numpy()


def test_a_sweep_gives_what_a_loop_over_its_points_gives(tmp_path):
    car = frame(tmp_path, PINHOLE, replace(PINHOLE, width_px=120))
    batch, targets = batch_of(dataset(car)[0])
    points = np.fromfile(car.lidar_path, np.float32).reshape(-1, 5)[:, :3]

    def project(n, point):
        u, v, depth, _ = batch.image_from_bev[0, 0, n].double().numpy() @ [*point, 1.0]
        return u / depth, v / depth, depth

    expected = by_loop(batch, points, project)
    assert 20 < np.isfinite(expected[0]).sum() < expected[0].size  # some cells, not all
    np.testing.assert_allclose(stacked(targets), expected, rtol=1e-4)
    assert targets.nearest_m.shape == (2, batch.images.shape[-2] // 8, batch.images.shape[-1] // 8)


def test_a_lens_is_projected_through_and_a_virtual_camera_replaces_it(tmp_path):
    car = frame(tmp_path, FISHEYE)
    for settings in ({}, {"lens": "pinhole", "fov_deg": 90.0}, {"lens": "cylinder"}):
        data = dataset(car, image=IMAGE | settings)
        batch, targets = batch_of(data[0])
        (view,) = data._views(car)
        camera = data.image.placement(view.name, view.camera, 48).camera(view.camera)
        camera_from_bev = invert_pose(car.bev_from_camera(view))

        def project(n, point, camera=camera, camera_from_bev=camera_from_bev):
            uv, depth = camera.project((camera_from_bev @ [*point, 1.0])[:3])
            return *uv, depth

        points = np.fromfile(car.lidar_path, np.float32).reshape(-1, 5)[:, :3]
        np.testing.assert_allclose(stacked(targets), by_loop(batch, points, project), rtol=1e-4)


def test_mirrors_move_labels_with_the_pixels(tmp_path):
    car = frame(tmp_path, PINHOLE, replace(PINHOLE, width_px=120))
    clip = dataset(car)[0]
    plain, mirrored = (batch_of(c)[1] for c in (clip, mirror_clip(clip)))
    widths = [image.shape[2] for image in clip.images[0]]
    assert widths == [106, 80]
    # 80 is a whole number of cells: they change places; the other image's points do
    np.testing.assert_array_equal(stacked(mirrored)[:, 1, :, :10], stacked(plain)[:, 1, :, 9::-1])
    again = batch_of(mirror_clip(mirror_clip(clip)))[1]
    np.testing.assert_array_equal(stacked(again), stacked(plain))
    turned = [[106 - 1 - own[0], *own[1:]] for own in clip.depth[0]]
    np.testing.assert_array_equal(mirror_clip(clip).depth[0], np.array(turned, np.float32))
    # upstream's flip mirrors images only, and the model mirrors the features back
    flipped = dataset(car, image=IMAGE | {"flip": True})
    draw = replace(flipped.image.test_draw, flip=True)
    own = flipped._clip(car, draw, *_no_bda(flipped, car, draw), None)
    assert own.image_flipped
    np.testing.assert_array_equal(stacked(batch_of(own)[1]), stacked(plain))


def _no_bda(data, car, draw):
    from drivestack.data_tools.clips.transforms import BdaDraw

    return BdaDraw(), data._targets(car, draw, BdaDraw())


def test_a_missing_camera_and_a_frame_without_labels_have_none(tmp_path):
    car = frame(tmp_path, PINHOLE, PINHOLE)
    lacking = replace(car, token="g", cameras=car.cameras[:1])
    bare = replace(car, token="h", lidar_path="")
    data = dataset(car, lacking, bare)
    batch = collate_clips([data[i] for i in range(3)])
    assert batch.depth[2] is None
    assert (stacked(batch.depth[1])[:, 1] == np.array(UNKNOWN)[:, None, None]).all()
    np.testing.assert_array_equal(stacked(batch.depth[1])[:, 0], stacked(batch.depth[0])[:, 0])
    assert batch.without_labels().depth == [None] * 3
    assert isinstance(batch.to("cpu").depth[0], DepthTargets)


def picture_depth(camera: CameraModel, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1, 50, (camera.height_px, camera.width_px)).astype(np.float32)
    depth[:20] = np.inf
    return depth


def test_a_renderers_file_gives_the_nearest_and_farthest_pixel_of_each_square(tmp_path):
    depth = picture_depth(CameraModel(PINHOLE.intrinsics, 85, 67), 0)
    cells = depth_cells(depth)
    assert cells.shape == (2, 9, 11) and cells.dtype == np.float16
    for row in range(9):
        for column in range(11):
            square = depth[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            expected = np.array([square.min(), square.max()], np.float16)
            np.testing.assert_array_equal(cells[:, row, column], expected)
    # at the size of the image cells are squares; the sky is there, and says that it is sky
    car = frame(tmp_path, PINHOLE)
    file = tmp_path / "d.npz"
    cells = depth_cells(picture_depth(PINHOLE, 0))
    write_depth(file, {"C0": cells})
    car = replace(car, depth_path=str(file))
    whole = {"crop": (0, 0, 1, 1), "train_heights_px": (96,), "test_height_px": 96}
    np.testing.assert_array_equal(stacked(batch_of(dataset(car, image=whole)[0])[1])[:, 0], cells.astype(np.float32))
    # cropped, at half the size: a cell holds the squares whose middles lie in it
    half = {"crop": (0, 0.25, 1, 1), "train_heights_px": (36,), "test_height_px": 36}
    found = stacked(batch_of(dataset(car, image=half)[0])[1])[:, 0]
    expected = np.stack([np.full(found.shape[1:], np.inf), np.zeros(found.shape[1:])])
    for row in range(3, 12):
        for column in range(20):
            u, v = (8 * column + 3.5) / 2, (8 * row + 3.5 - 24) / 2
            at = int(v + 0.5) // 8, int(u + 0.5) // 8
            expected[0][at] = min(expected[0][at], cells[0, row, column])
            expected[1][at] = max(expected[1][at], cells[1, row, column])
    np.testing.assert_array_equal(found, expected)
    # the sweep, where it is asked for
    swept = batch_of(dataset(car, depth="lidar")[0])[1]
    np.testing.assert_array_equal(stacked(swept), stacked(batch_of(dataset(replace(car, depth_path=""))[0])[1]))


def test_a_virtual_camera_keeps_the_depths_of_a_renderers_file(tmp_path):
    """A plane before the camera has one depth everywhere, whatever the lens."""
    file = tmp_path / "d.npz"
    write_depth(file, {"C0": np.full((2, 10, 16), 7.0, np.float16)})
    car = replace(frame(tmp_path, FISHEYE), depth_path=str(file))
    for settings in ({}, {"lens": "pinhole", "fov_deg": 80.0}):
        found = stacked(batch_of(dataset(car, image=IMAGE | settings)[0])[1])
        known = found[1] > 0
        assert known.sum() > 20 and (found[:, known] == 7).all()


def test_what_cannot_be_labels_is_refused(tmp_path):
    car = frame(tmp_path, PINHOLE)
    with pytest.raises(ConfigError, match="choose True"):
        dataset(car, depth="radar")
    with pytest.raises(ConfigError, match=r"sample f.*synthesize --labels"):
        dataset(replace(car, lidar_path=""))
    file = tmp_path / "d.npz"
    for cells, says in (
        ({"C1": np.zeros((2, 12, 20), np.float16)}, "no array 'C0'"),
        ({"C0": np.zeros((2, 12, 21), np.float16)}, r"needs float16 \[2, 12, 20\]"),
        ({"C0": np.zeros((2, 12, 20), np.float32)}, "float32"),
    ):
        write_depth(file, cells)
        with pytest.raises(DataError, match=rf"sample f: .*d\.npz.*{says}"):
            dataset(replace(car, depth_path=str(file)))[0]
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"d\.npz"):
        dataset(replace(car, depth_path=str(file)))[0]


def test_a_sweep_that_is_not_there_is_named_once(tmp_path, caplog):
    forget_warnings()
    car = replace(frame(tmp_path, PINHOLE), lidar_path=str(tmp_path / "gone.bin"))
    assert collate_clips([dataset(car)[0]]).depth == [None]
    assert "gone.bin" in caplog.text


def test_the_synthetic_set_stores_what_its_lidar_agrees_with(tmp_path):
    root = synthesize(
        tmp_path / "set", num_scenes=1, keyframes_per_scene=1, image_width_px=320, labels=("depth",), workers=1,
        progress=False,
    )  # fmt: skip
    frames = read_nuscenes(root, "v1.0-trainval", "train")
    sizes = {view.name: view.image_size_px for view in frames[0].cameras}
    cells = read_depth(frames[0].depth_path, sizes)
    assert set(cells) == set(sizes) and Path(frames[0].depth_path).stat().st_size < 30_000
    front = cells["CAM_FRONT"].astype(float)
    assert (front[0] <= front[1]).all() and np.isinf(front[0, 0]).mean() > 0.3 and np.isfinite(front[0, -1]).all()
    image = {"crop": (0, 0.4, 1, 1), "train_heights_px": (128,), "test_height_px": 128}
    rendered, swept = (
        batch_of(ClipDataset(classes=["car"], frames=frames, image=image, depth=source)[0])[1]
        for source in (True, "lidar")
    )
    both = [t.nearest_m.isfinite() & (t.farthest_m <= 1.2 * t.nearest_m) for t in (rendered, swept)]
    both = both[0] & both[1]
    assert both.sum() > 300
    ratio = (swept.nearest_m / rendered.nearest_m)[both]
    assert 0.97 < ratio.median() < 1.1 and ((ratio > 0.8) & (ratio < 1.3)).float().mean() > 0.9
