"""Cameras with lenses in a BEV model: points, mirrored clips, past frames and single-image boxes go through them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.bev.map.encoder import pillar_points, project_to_images
from drivestack.bev.map.history import recall, remember
from drivestack.bev.perspective.geometry import egocentric_from_allocentric, labelled_boxes
from drivestack.bev.published.ego_motion import images_from_own_bev
from drivestack.core.batch import Batch
from drivestack.core.errors import ConfigError
from drivestack.core.frames import CameraView, Frame
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.mirror import mirror_clip
from drivestack.geometry import (
    BevGrid,
    CameraModel,
    brown_conrady,
    f_theta,
    invert_pose,
    kannala_brandt,
    mei,
    pose,
    rotation_z,
    transform_points,
)

GRID = BevGrid(-30, -30, 30, 30, num_x=20, num_y=20)
K = np.array([[90.0, 0, 80], [0, 88, 48], [0, 0, 1]])
AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead
CAMERAS = {
    "FRONT": kannala_brandt(K, 160, 96, (-0.02, 0.004, -0.002, 0.0003)),
    "LEFT": brown_conrady(K, 160, 96, (-0.3, 0.08, 0.003, -0.002, 0.01)),
    "RIGHT": CameraModel(K, 160, 96),
    "BACK": mei(K * [[2], [2], [1]] + [[0, 0, -80], [0, 0, -48], [0, 0, 0]], 160, 96, 1.0, (0.1, 0.2, 0.004, -0.003)),
    "UP": f_theta(160, 96, (80, 48), [0, 60.0, 1.0, -2.0], linear=(1.01, 0.002, -0.003)),
}
YAWS = dict(zip(CAMERAS, (0.0, np.pi / 2, -np.pi / 2, np.pi, 0.3)))


def frame(step: int = 0) -> Frame:
    rng = np.random.default_rng(step)
    car = pose(rotation_z(0.1 * step), [5.0 * step, 1, 0])
    views = tuple(
        CameraView(
            name,
            camera,
            pose(rotation_z(YAWS[name]) @ AHEAD, [1.0, 0.2, 1.5]),
            car,
            step * 500_000,
            image=rng.integers(0, 255, (96, 160, 3), dtype=np.uint8),
        )
        for name, camera in CAMERAS.items()
    )
    previous, following = (f"f{step - 1}" if step else "", f"f{step + 1}")
    return Frame(f"f{step}", "s", "s", step * 500_000, views, car, prev_token=previous, next_token=following)


def dataset(**settings: object) -> ClipDataset:
    frames = [frame(0), replace(frame(1), next_token="")]
    image = {"crop": (0.1, 0.2, 0.95, 1), "train_heights_px": (48,), "test_height_px": 48}
    return ClipDataset(**{"classes": ["car"], "frames": frames, "image": image} | settings)  # type: ignore[arg-type]


def expected(step: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of BEV points of frame 1 in each camera of a frame, after the crop and resize above."""
    now, past = frame(1), frame(step)
    pixels, inside = [], []
    for view in past.cameras:
        camera = view.camera.cropped(16, 19, 136, 77).resized(136 * 48 // 77, 48)
        camera_from_bev = invert_pose(view.global_from_camera) @ now.global_from_bev
        uv, depth = camera.project(transform_points(camera_from_bev, points))
        pixels.append(uv)
        with np.errstate(invalid="ignore"):
            inside.append(((uv > 0) & (uv < [camera.width_px, camera.height_px])).all(-1) & np.isfinite(depth))
    return np.stack(pixels), np.stack(inside)


def project(batch: Batch, t: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = batch.images.shape[-2:]
    arguments = batch.image_from_bev[:, t], (height, width), batch.image_size_px[:, t]
    lenses = None if batch.lenses is None else batch.lenses[:, t]
    uv, seen = project_to_images(pillar_points(GRID, (-2, 3), 4), *arguments, lenses)
    return (uv[0] * torch.tensor([width, height])).double().numpy(), seen[0].numpy()


@pytest.mark.parametrize("t", [0, 1])
def test_pillar_points_go_through_each_camera_s_own_lens(t: int) -> None:
    batch = collate_clips([dataset(frame_offsets=(-1, 0))[1]])
    assert batch.lenses is not None and (batch.lenses[..., 0] > 0).sum() == 8
    uv, seen = project(batch, t)
    points = pillar_points(GRID, (-2, 3), 4).double().numpy()
    pixels, inside = expected(t, points.reshape(-1, 3))
    pixels, inside = pixels.reshape(uv.shape), inside.reshape(seen.shape)
    assert (seen != inside).mean() < 1e-3 and seen.any((1, 2)).all()  # float32 at the very edge of an image
    both = seen & inside
    assert np.abs(uv[both] - pixels[both]).max() < 2e-3


def test_a_mirrored_clip_sees_the_mirrored_points_at_mirrored_pixels() -> None:
    clip = dataset()[1]
    before, after = collate_clips([clip]), collate_clips([mirror_clip(clip)])
    assert after.lenses is not None and after.bev_from_camera.det().gt(0).all()
    points = pillar_points(GRID, (-2, 3), 4)
    size = before.images.shape[-2:]
    out = []
    for batch, shown in ((before, points), (after, points * torch.tensor([1.0, -1, 1]))):
        where = batch.image_from_bev[:, 0], tuple(size), batch.image_size_px[:, 0]
        assert batch.lenses is not None
        out.append(project_to_images(shown, *where, batch.lenses[:, 0]))  # type: ignore[arg-type]
    (uv, seen), (uv_mirrored, seen_mirrored) = out
    width = before.image_size_px[0, 0, :, 1].view(-1, 1, 1) / size[1]
    assert (seen != seen_mirrored).float().mean() < 1e-3
    both = (seen & seen_mirrored)[0]
    assert (uv_mirrored[0, ..., 0] - (width - uv[0, ..., 0]))[both].abs().max() < 1e-4
    assert (uv_mirrored[0, ..., 1] - uv[0, ..., 1])[both].abs().max() < 1e-4
    # the perspective head's view of the mirrored camera agrees with it
    rows = after.lenses[0, 0]
    for n in range(rows.shape[0]):
        assert torch.allclose(rows[n, 2:8].view(2, 3), after.intrinsics[0, n, :2], atol=1e-4)


def test_remembered_frames_are_seen_as_loaded_ones() -> None:
    loaded = collate_clips([dataset(frame_offsets=(-1, 0))[1]])
    past, now = (collate_clips([dataset()[i]]) for i in range(2))
    levels = [torch.zeros(1, len(CAMERAS), 4, 2, 2)]
    _, recalled = recall(levels, now, remember(levels, past), (-1, 0))
    assert recalled.lenses is not None and loaded.lenses is not None
    assert torch.equal(recalled.lenses, loaded.lenses)
    assert torch.allclose(recalled.image_from_bev, loaded.image_from_bev, atol=1e-4)


def test_a_lens_that_is_missing_now_is_remembered_of_the_past() -> None:
    """The camera with the lens has no image now; the past frame is still seen through it."""
    frames = [frame(0), replace(frame(1), cameras=frame(1).cameras[2:3], next_token="")]  # RIGHT, a pinhole
    past, now = (collate_clips([dataset(frames=frames)[i]]) for i in range(2))
    loaded = collate_clips([dataset(frames=frames, frame_offsets=(-1, 0))[1]])
    assert now.lenses is None and loaded.lenses is not None
    _, recalled = recall(
        [torch.zeros(1, len(CAMERAS), 4, 2, 2)], now, remember([torch.zeros(1, 5, 4, 2, 2)], past), (-1, 0)
    )
    assert recalled.lenses is not None
    assert torch.equal(recalled.lenses[:, 0], loaded.lenses[:, 0])
    uv, seen = project(recalled, 0)
    uv_loaded, seen_loaded = project(loaded, 0)
    assert seen[0].any() and np.array_equal(seen, seen_loaded) and np.abs((uv - uv_loaded)[seen]).max() < 1e-3


def test_clips_of_pinholes_and_of_lenses_share_a_batch() -> None:
    def only(name: str) -> Frame:
        views = [view for view in frame(0).cameras if view.name == name]
        return replace(frame(0), token=name, cameras=(replace(views[0], name="ONE"),), next_token="")

    settings = {"frames": [only("RIGHT"), only("FRONT")]}
    batch = collate_clips([dataset(**settings)[i] for i in range(2)])
    assert batch.lenses is not None and batch.lenses[:, 0, 0, 0].gt(0).tolist() == [False, True]
    labels = torch.tensor([[1.0, 0, 0, 0, 0.4, -0.3, 6.0, 1, 1, 1]] * 2)
    boxes = labelled_boxes(labels, batch.intrinsics[:, 0], batch.lenses[:, 0, 0])
    assert torch.allclose(boxes.centre, labels[:, 4:7], atol=1e-3)


def test_boxes_of_single_images_lie_where_the_lens_shows_them() -> None:
    batch = collate_clips([dataset()[1]])
    assert batch.lenses is not None
    for n, view in enumerate(frame(1).cameras):
        camera = view.camera.cropped(16, 19, 136, 77).resized(136 * 48 // 77, 48)
        centre = torch.tensor([[0.4, -0.3, 6.0], [-2.0, 0.5, 4.0]], dtype=torch.float64)
        labels = torch.cat([torch.tensor([[1.0, 0, 0, 0]] * 2), centre, torch.ones(2, 3)], 1)
        rows, k = batch.lenses[0, :1, n].expand(2, -1), batch.intrinsics[0, n].expand(2, 3, 3)
        boxes = labelled_boxes(labels, k, rows)
        assert np.abs(boxes.proj_ctr.numpy() - camera.project(centre.numpy())[0]).max() < 2e-3
        assert torch.allclose(boxes.centre.double(), centre, atol=1e-3)
        looking = egocentric_from_allocentric(boxes.proj_ctr, boxes.inv_intrinsics, rows)[..., 2].double()
        assert torch.allclose(looking, torch.nn.functional.normalize(centre, dim=1), atol=1e-4)
        assert torch.equal(boxes[torch.tensor([1])].lenses, rows[1:])


def test_published_models_refuse_what_they_cannot_project() -> None:
    batch = collate_clips([dataset()[1]])
    with pytest.raises(ConfigError, match="has a lens, and published models project by a matrix"):
        images_from_own_bev(batch)


def test_an_export_with_lenses_is_refused_not_frozen() -> None:
    batch = collate_clips([dataset()[1]])
    assert batch.lenses is not None
    size: tuple[int, int] = tuple(batch.images.shape[-2:])  # type: ignore[assignment]

    class Project(torch.nn.Module):
        def forward(self, matrices: torch.Tensor, lenses: torch.Tensor) -> torch.Tensor:
            return project_to_images(torch.ones(2, 1, 3), matrices, size, batch.image_size_px[:, 0], lenses)[0]

    with pytest.raises(Exception, match="projects pinholes alone"):
        torch.export.export(Project(), (batch.image_from_bev[:, 0], batch.lenses[:, 0]))
