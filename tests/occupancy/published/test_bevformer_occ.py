"""The occupancy challenge's models as a whole: their keys, clips and histories, and what they refuse."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.backbone import FPN, ResNet, prepare_inference
from drivestack.bev.published.ego_motion import images_from_ego
from drivestack.core.batch import Batch
from drivestack.core.errors import ConfigError
from drivestack.core.frames import Frame
from drivestack.core.labels import OccupancyTargets
from drivestack.data_tools.clips.can_bus import can_bus_of_pose
from drivestack.engine.config import build_model, load_config
from drivestack.geometry import invert_pose, pose, rotation_z
from drivestack.occupancy.published.bevformer_occ import BEVFormerOcc, OccupancyMap, VoxelHead
from drivestack.occupancy.published.voxel_decoders import voxel_trunk

OFFSETS = (-2, -1, 0)
HEIGHT_PX, WIDTH_PX, PADDED_PX = 60, 96, 64
LIDAR = pose(rotation_z(-np.pi / 2), [0.9, 0.0, 1.8])  # ego_from_bev
AHEAD = np.array([[48.0, -48, 0, 0], [30, 0, -48, 48], [1, 0, 0, 0], [0, 0, 0, 1]])  # image from ego
VIEWS = np.stack([AHEAD, AHEAD @ np.diag([-1.0, -1, 1, 1])])
SIGNALS = np.linspace(-1, 1, 9)
DRIVE = [pose(rotation_z(0.1 * t), [100 + 2.0 * t, 50 + 0.3 * t, 0]) for t in range(3)]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bevformer_intern_s_occ", 888),
        ("bevformer_base_occ", 821),
        ("bevformer_small_occ", 397),
        ("bevformer_small_occ_challenge", 789),
    ],
)
def test_a_published_model_has_its_keys(name, count, reference_dir):
    config = load_config(name)
    with torch.device("meta"):
        model = build_model(config)
    text = gzip.decompress((reference_dir / "occupancy" / "keys" / f"{name}.txt.gz").read_bytes()).decode()
    published = dict(line.split() for line in text.splitlines())
    actual = {key: "x".join(map(str, value.shape)) or "-" for key, value in model.state_dict().items()}
    assert len(actual) == count and actual == published
    assert model.frame_offsets == (-4, -3, -2, -1, 0)
    settings = config.test_dataset.image
    assert settings.test_height_px == config.train_dataloader.dataset.image.train_heights_px[0]


def tiny(mask: str = "camera", **settings) -> BEVFormerOcc:
    torch.manual_seed(0)
    bev_map = OccupancyMap(
        bev_size=(8, 10),
        embed_dims=16,
        num_heads=2,
        num_cams=2,
        num_levels=2,
        num_layers=1,
        ffn_dims=32,
        rotate_center=(5, 4),
    )
    return BEVFormerOcc(
        img_backbone=ResNet(depth=18, out_indices=(2, 3), base_channels=16),
        img_neck=FPN(in_channels=(64, 128), out_channels=16, num_outs=2),
        bev_map=bev_map,
        voxel_head=VoxelHead(embed_dims=16, num_z=4, out_dim=8, mask=mask),
        **dict(frame_offsets=OFFSETS, history_frames=None) | settings,
    )


def targets(seed: int = 0) -> OccupancyTargets:
    generator = torch.Generator().manual_seed(seed)
    semantics = torch.randint(0, 18, (10, 8, 4), generator=generator).to(torch.uint8)
    seen = torch.rand(10, 8, 4, generator=generator) > 0.5
    return OccupancyTargets(semantics, ~seen, seen)


def frame(t: int, scene: str = "scene") -> Frame:
    return Frame(f"{scene} {t}", scene, scene, t, (), DRIVE[t], LIDAR, prev_token=f"{scene} {t - 1}" if t else "")


def clip(times=(0, 1, 2), scene: str = "scene") -> Batch:
    """One clip of a drive, each frame's matrices as seen from the last one's BEV frame."""
    images = torch.zeros(1, len(times), 2, 3, PADDED_PX, WIDTH_PX)
    matrices = []
    for i, t in enumerate(times):
        generator = torch.Generator().manual_seed(t)
        images[0, i, ..., :HEIGHT_PX, :] = torch.randn(2, 3, HEIGHT_PX, WIDTH_PX, generator=generator)
        matrices.append(VIEWS @ invert_pose(DRIVE[t]) @ DRIVE[times[-1]] @ LIDAR)
    return Batch(
        images=images,
        frame_offsets=tuple(t - times[-1] for t in times),
        frame_valid=torch.ones(1, len(times), dtype=torch.bool),
        image_from_bev=torch.from_numpy(np.stack(matrices)).float()[None],
        image_size_px=torch.tensor([HEIGHT_PX, WIDTH_PX]).expand(1, len(times), 2, 2),
        image_flipped=torch.zeros(1, dtype=torch.bool),
        bda=torch.eye(3)[None],
        intrinsics=torch.eye(3).expand(1, 2, 3, 3),
        bev_from_camera=torch.eye(4).expand(1, 2, 4, 4),
        occupancy=[targets()],
        ego_from_bev=torch.from_numpy(LIDAR).float()[None],
        global_from_ego=torch.from_numpy(np.stack([DRIVE[t] for t in times]))[None],
        can_bus=torch.from_numpy(np.stack([can_bus_of_pose(DRIVE[t], SIGNALS) for t in times]))[None],
        frames=[frame(times[-1], scene)],
    )


def join(a: Batch, b: Batch) -> Batch:
    """Two batches as one."""
    both = lambda x, y: x if x is None else torch.cat([x, y]) if isinstance(x, torch.Tensor) else x + y
    return replace(a, **{n: both(v, getattr(b, n)) for n, v in vars(a).items() if n != "frame_offsets"})


def test_every_frame_is_seen_from_its_own_ego_frame():
    matrices = images_from_ego(clip())
    np.testing.assert_allclose(matrices[0].numpy(), np.stack([VIEWS] * 3), atol=1e-3)
    with pytest.raises(ConfigError, match="scene 2: the batch lacks global_from_ego"):
        images_from_ego(replace(clip(), global_from_ego=None))


def test_a_video_frame_by_frame_is_the_clip():
    """With the history passed on by hand, in one batch of three frames, and as a whole clip: the same map."""
    model = tiny().eval()
    history = None
    for t in range(3):
        answers, history = model.predict(clip([t]), history)
    whole, state = model.predict(clip())
    torch.testing.assert_close(history["scene 2"].bev, state["scene 2"].bev, atol=1e-4, rtol=1e-4)
    assert list(history) == ["scene 2"] and answers[0].token == "scene 2" and answers[0].boxes is None
    np.testing.assert_array_equal(answers[0].occupancy.semantics, whole[0].occupancy.semantics)
    assert answers[0].occupancy.semantics.shape == (10, 8, 4) and answers[0].occupancy.semantics.dtype == np.uint8

    batch = join(join(clip([0]), clip([1])), clip([2]))
    _, together = model.predict(batch)
    torch.testing.assert_close(together["scene 2"].bev, state["scene 2"].bev, atol=1e-4, rtol=1e-4)
    _, alone = model.predict(clip([2]))
    assert (alone["scene 2"].bev - state["scene 2"].bev).abs().max() > 1e-2  # history matters


def test_another_scene_starts_afresh():
    model = tiny().eval()
    _, history = model.predict(clip([0]))
    foreign = replace(history["scene 0"], scene_token="another")
    _, found = model.predict(clip([1]), {"scene 0": foreign})
    _, fresh = model.predict(clip([1]))
    assert torch.equal(found["scene 1"].bev, fresh["scene 1"].bev)


def test_a_missing_frame_is_the_start_of_the_scene():
    model = tiny().eval()
    batch = clip()
    batch.images[:, 0], batch.image_from_bev[:, 0] = 0, 0
    batch.global_from_ego[:, 0], batch.can_bus[:, 0] = torch.eye(4), 0
    batch = replace(batch, frame_valid=torch.tensor([[False, True, True]]))
    shorter = replace(clip([1, 2]))
    model.frame_offsets = (-1, 0)
    expected = model.predict(shorter)[1]["scene 2"].bev
    model.frame_offsets = OFFSETS
    torch.testing.assert_close(model.predict(batch)[1]["scene 2"].bev, expected)
    # beside a sample that has the frame, too
    mixed = model.predict(join(batch, clip(scene="other")))[1]
    torch.testing.assert_close(mixed["scene 2"].bev, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed["other 2"].bev, model.predict(clip())[1]["scene 2"].bev, atol=1e-5, rtol=1e-5)


def test_a_step_reaches_every_parameter_and_lowers_the_loss():
    model, batch = tiny(grid_mask=False).train(), join(clip(), clip())
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    values = []
    for _ in range(6):
        optimizer.zero_grad()
        losses = model(batch, mode="loss")
        assert list(losses) == ["loss_occ_cross_entropy"]
        losses["loss_occ_cross_entropy"].backward()
        optimizer.step()
        values.append(losses["loss_occ_cross_entropy"].item())
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert values[-1] < values[0] - 0.2
    unlabelled = replace(batch, occupancy=[None, targets()])
    half = model.eval()(unlabelled, mode="loss")["loss_occ_cross_entropy"]
    single = model(replace(clip(), occupancy=[targets()]), mode="loss")["loss_occ_cross_entropy"]
    torch.testing.assert_close(half, single, atol=1e-5, rtol=1e-5)


def test_a_step_draws_from_the_history(monkeypatch):
    model, chosen = tiny(history_frames=1), []
    maps = model.clip_maps
    monkeypatch.setattr(model, "clip_maps", lambda batch, own: chosen.append(tuple(own)) or maps(batch, own))
    seen = []
    features = model.extract_features
    monkeypatch.setattr(model, "extract_features", lambda images: seen.append(images) or features(images))
    batch = clip()
    for _ in range(8):
        model(batch, mode="loss")
    assert set(chosen) == {(0, 2), (1, 2)}
    # what it drew is what it encoded, in this order
    assert all(torch.equal(images, batch.images[:, t]) for images, t in zip(seen, sum(chosen, ()), strict=True))


def test_prepared_for_inference_it_says_the_same():
    model = tiny().eval()
    prepared = prepare_inference(model)
    a, b = (m.predict(clip())[1]["scene 2"].bev for m in (model, prepared))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_what_cannot_work_is_said():
    model = tiny()
    with pytest.raises(ConfigError, match=r"learns from frames \(-2, -1, 0\), the batch has \(0,\)"):
        model(clip([0]), mode="loss")
    with pytest.raises(ConfigError, match="scene 2: the batch lacks can_bus; ClipDataset makes it"):
        model(replace(clip(), can_bus=None), mode="loss")
    with pytest.raises(ConfigError, match="scene 2 have no voxel labels"):
        model(replace(clip(), occupancy=[None]), mode="loss")
    with pytest.raises(ConfigError, match="does not follow image flips"):
        model.predict(replace(clip(), image_flipped=torch.ones(1, dtype=torch.bool)))
    with pytest.raises(ConfigError, match=r"the batch has frames \(-1, 0\)"):
        model.predict(clip([1, 2]))
    with pytest.raises(ValueError, match="mode is 'loss' or 'predict', got 'tensor'"):
        model(clip(), mode="tensor")
    with pytest.raises(ConfigError, match="end with 0"):
        tiny(frame_offsets=(-1, 0, 1))
    with pytest.raises(ConfigError, match="history_frames 3, but frame_offsets hold 2"):
        tiny(history_frames=3)
    for settings, message in [
        (dict(kind="conv4d"), "no voxel decoder 'conv4d': choose one of conv3d, conv2d, mlp"),
        (dict(num_z=3), "16 channels of the BEV map cannot be split into 3 layers"),
        (dict(transposed=True), "transposed is for conv2d and mlp"),
        (dict(kind="mlp", out_dim=16), "the mlp trunk gives 8 features per voxel, not out_dim 16"),
    ]:
        with pytest.raises(ConfigError, match=message):
            voxel_trunk(**dict(kind="conv3d", channels=16, num_z=4, out_dim=8) | settings)
