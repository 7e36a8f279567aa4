"""Monocular 3D pretraining: losses as inside the BEV model, boxes over a rig and of one camera, configs that fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.backbone.fpn import FPN
from drivestack.backbone.internimage.model import InternImage
from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.boxes.task import BoxTask
from drivestack.bev.map.bev_map import BevMap
from drivestack.bev.perspective.head import NuscenesDD3D
from drivestack.bev.pretrain import MonoDetector
from drivestack.core.errors import ConfigError
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.engine.config import build_model, load_config
from support.mono_frames import CLASSES, OBJECTS, RANGE, make_frames


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[Frame]:
    return make_frames(tmp_path_factory.mktemp("images"), 2)


def parts(**head) -> dict:
    torch.manual_seed(0)
    return dict(
        img_backbone=InternImage(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), out_indices=(1, 2, 3)),
        img_neck=FPN(in_channels=(32, 64, 128), out_channels=32, num_outs=3),
        perspective=NuscenesDD3D(in_channels=32, num_convs=1, strides=(8, 16, 32), cls_prior=0.06, **head),
    )


def dataset(frames: list[Frame], **settings) -> ClipDataset:
    image = {"crop": (0, 0, 1, 1), "train_heights_px": (128,), "test_height_px": 128, "flip": True}
    arguments = {"image": image, "mono": True, "training": True, "pc_range": RANGE}
    return ClipDataset(classes=CLASSES.split(), frames=frames, **arguments | settings)


def batch_of(data: ClipDataset, flipped: bool | None = None):
    """Both samples, as first drawn mirrored or not."""
    samples = [data[i, draw] for i in range(len(data)) for draw in range(20)]
    chosen = [s for s in samples if flipped is None or s.image_flipped == flipped]
    return collate_clips([next(s for s in chosen if s.frame.token == frame.token) for frame in data.frames])


@pytest.mark.parametrize("flipped", [False, True])
def test_losses_are_those_of_the_perspective_head_in_the_bev_model(frames: list[Frame], flipped: bool) -> None:
    mono = MonoDetector(**parts()).train()
    size = {"embed_dims": 32, "pc_range": RANGE}
    layers = size | {"num_heads": 4, "ffn_dims": 64, "dropout": 0.0}
    own = parts()
    bev = BEVFormerV2(
        bev_map=BevMap(bev_size=(6, 6), num_cams=3, num_levels=3, num_layers=1, **layers),
        boxes=BoxTask(
            head=BoxHead(num_query=6, num_layers=1, **layers),
            perspective=own.pop("perspective"),
            num_perspective_levels=3,
            **size,
        ),
        grid_mask=False,
        **own,
    ).train()
    state = mono.state_dict()
    assert {key.partition(".")[0] for key in state} == {"img_backbone", "img_neck", "fcos3d_bbox_head"}
    bev.load_state_dict(state, strict=False)
    batch = batch_of(dataset(frames), flipped)
    assert bool(batch.image_flipped.all()) == flipped
    alone = mono(batch, mode="loss")
    inside = {name.removesuffix("_mono"): value for name, value in bev.loss(batch).items() if name.endswith("_mono")}
    assert alone.keys() == inside.keys() and len(alone) == 10
    for name, value in alone.items():
        torch.testing.assert_close(value, inside[name], rtol=1e-5, atol=1e-6)


def test_a_step_reaches_every_parameter_also_where_no_image_is_labelled(frames: list[Frame]) -> None:
    model, batch = MonoDetector(**parts()).train(), batch_of(dataset(frames))
    sum(model.loss(batch).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad(set_to_none=True)
    losses = model.loss(replace(batch, mono=[[None] * 3, None]))
    assert all(value == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_images_without_labels_do_not_go_through_the_encoder(frames: list[Frame]) -> None:
    model, batch = MonoDetector(**parts()).train(), batch_of(dataset(frames))
    seen = []
    model.img_backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model.loss(batch)
    assert seen == [4]  # nothing stands before the third camera


def test_a_single_image_overfits_in_the_ego_frame_and_in_the_camera_frame(frames: list[Frame]) -> None:
    """One camera: after some steps the boxes are where the labels are, whichever frame they are read in."""
    image = {"crop": (0, 0, 1, 1), "train_heights_px": (128,), "test_height_px": 128}
    data = dataset(frames[:1], camera_names=("C0",), image=image)
    batch = batch_of(data)
    assert batch.images.shape[2] == 1
    model = MonoDetector(**parts(score_threshold=0.2)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(120):
        optimiser.zero_grad()
        sum(model.loss(batch).values()).backward()
        optimiser.step()
    model.train()  # a batch norm of one image: its running statistics are far behind
    ((camera,),) = model.detect(batch)
    (answer,), _ = model.predict(batch)
    found = answer.boxes
    assert found.token == "f0" and (np.diff(found.scores) <= 0).all()
    for name in ("car", "pedestrian"):
        label = CLASSES.split().index(name)
        rows = np.flatnonzero(found.labels == label)
        assert len(rows), name
        centre = (frames[0].ego_from_bev @ [*found.boxes[rows[0], :3], 1])[:3]
        assert np.linalg.norm(centre - OBJECTS[name][:3]) < 1.5, name
        best = int((camera.labels == label).nonzero()[0])
        view = frames[0].cameras[0]
        in_ego = (view.ego_from_camera @ [*camera.boxes.centre[best].double().numpy(), 1])[:3]
        assert np.linalg.norm(in_ego - OBJECTS[name][:3]) < 1.5, name


def test_one_object_in_two_cameras_is_one_box_and_classes_do_not_suppress_each_other(frames: list[Frame]) -> None:
    model, batch = MonoDetector(**parts(), max_boxes=3).eval(), batch_of(dataset(frames, training=False))
    box = [10.0, 2.0, 1.0, 4.0, 2.0, 1.5, 0.1, 0.0, 0.0]
    shifted, far = [10.3, *box[1:]], [-10.0, *box[1:]]
    boxes = torch.tensor([box, shifted, shifted, far, [30.0, *box[1:]]])
    seen = [boxes, boxes[:0]], [torch.tensor([0.5, 0.9, 0.3, 0.4, 0.1]), torch.zeros(0)]
    labels = [torch.tensor([3, 3, 9, 3, 3]), torch.zeros(0).long()]
    model.perspective.detect_in_bev = lambda *_, **__: (*seen, labels)
    first, second = (answer.boxes for answer in model.predict(batch)[0])
    np.testing.assert_allclose(first.scores, [0.9, 0.4, 0.3])
    assert first.labels.tolist() == [3, 3, 9] and first.boxes[0, 0] == np.float32(10.3)
    assert second.boxes.shape == (0, 9)


def test_a_camera_that_a_frame_lacks_finds_nothing(frames: list[Frame]) -> None:
    lacking = replace(frames[1], cameras=frames[1].cameras[1:])
    data = dataset([frames[0], lacking], training=False, image={"crop": (0, 0, 1, 1), "test_height_px": 128})
    model, batch = MonoDetector(**parts(score_threshold=0.0)).eval(), batch_of(data)
    found = model.detect(batch)
    assert [[camera is None for camera in cameras] for cameras in found] == [[False] * 3, [True, False, False]]
    answers, memory = model.predict(batch, memory="kept")
    assert memory == "kept" and [a.token for a in answers] == ["f0", "f1"]


def test_samples_of_one_camera_each_as_in_nuimages(frames: list[Frame]) -> None:
    """Every sample is one image of another camera of the car."""
    single = [replace(frame, cameras=frame.cameras[i : i + 1]) for i, frame in enumerate(frames)]
    data = dataset(single)
    assert data.camera_names == ("C0", "C1")
    model, batch = MonoDetector(**parts(score_threshold=0.0)).train(), batch_of(data)
    seen = []
    model.img_backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    losses = model.loss(batch)
    assert all(value.isfinite() for value in losses.values())
    found = model.eval().detect(batch)
    assert seen == [2, 2]
    assert [[camera is None for camera in cameras] for cameras in found] == [[False, True], [True, False]]


def test_what_cannot_be_learned_is_refused_by_name(frames: list[Frame]) -> None:
    batch = batch_of(dataset(frames))
    with pytest.raises(ConfigError, match=r"samples f0, f1 have no labels of single images.*mono=True"):
        MonoDetector(**parts()).loss(replace(batch, mono=[]))
    few = MonoDetector(**parts(num_classes=3, canonical_sizes_wlh=[[1, 1, 1]] * 3))
    with pytest.raises(ConfigError, match="the label 9, but the model has 3 classes"):
        few.loss(batch)
    flat = MonoDetector(**parts(box3d_on=False)).train()
    assert len(flat.loss(batch)) == 5
    with pytest.raises(ConfigError, match="box3d_on=False"):
        flat.eval().predict(batch)
    with pytest.raises(ConfigError, match="answers boxes, not lanes"):
        MonoDetector(**parts()).eval().predict(batch, tasks=("lanes",))


@pytest.mark.parametrize(
    ("pretraining", "target"),
    [
        ("mono3d_tiny_synthetic", "perception_tiny_synthetic"),
        ("mono3d_tiny_synthetic", "bevformerv2_tiny_synthetic"),
        ("mono3d_internimage_t", "bevformerv2_internimage_t_t1"),
        ("mono3d_internimage_b", "bevformerv2_internimage_b_t1"),
        ("mono3d_r50", "bevformerv2_r50_t1_24ep"),
    ],
)
def test_configs_have_the_encoder_and_images_of_the_bev_models(pretraining: str, target: str) -> None:
    ours, theirs = load_config(pretraining), load_config(target)
    with torch.device("meta"):
        mine, wanted = (build_model(config).state_dict() for config in (ours, theirs))
    encoder = {key: value.shape for key, value in wanted.items() if key.startswith(("img_backbone.", "img_neck."))}
    assert encoder and encoder == {key: mine[key].shape for key in encoder}
    assert {key for key in mine if not key.startswith("fcos3d_bbox_head.")} == set(encoder)
    assert ours.test_dataset == theirs.test_dataset
