"""BEVFormer v1: the head with a previous BEV, and the whole recurrent detector, agree with upstream."""

from __future__ import annotations

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from drivestack.backbone import FPN, ResNet
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.published.bevformer_v1 import BEVFormerV1
from drivestack.bev.published.recurrent_map import RecurrentBevMap
from drivestack.core.batch import Batch
from drivestack.core.errors import ConfigError
from drivestack.core.frames import Frame
from drivestack.core.weights.published_keys import published_name
from drivestack.engine.config import build_model, load_config
from drivestack.geometry import boxes_from_legacy
from support.maps import map_of, tokens_of
from support.published_head import PublishedHead

IMAGE = (96, 160)
LAYERS = dict(embed_dims=32, num_layers=2, num_heads=4, ffn_dims=64, dropout=0.0)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5, rtol: float = 0) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def map_v1(num_levels: int) -> RecurrentBevMap:
    return RecurrentBevMap(rotate_center=(5, 5), bev_size=(10, 10), num_cams=3, num_levels=num_levels, **LAYERS)


def head_v1() -> BoxHead:
    return BoxHead(num_query=12, bbox_weight=0.25, bbox_beta=0.0, max_num=20, **LAYERS)


def test_head_with_previous_bev_agrees_with_upstream(case):
    ref = case("head_v1_prev_train")
    head = head_v1()
    model = PublishedHead(map_v1(num_levels=2), head)
    model.load_state_dict(ref.weights("head_v1_prev_train"))
    feats = [ref[f"in.feats.{level}"].requires_grad_() for level in range(2)]
    bev = model.bev_map.encode_recurrent(
        feats,
        ref["in.lidar2img"][None],
        torch.tensor(IMAGE).expand(1, 3, 2),
        IMAGE,
        ref["in.can_bus"][None],
        map_of(ref["in.prev_bev"]),
    )
    close(tokens_of(bev).transpose(0, 1), ref["out.bev_embed"])
    outs = head.decode(bev)
    close(outs.cls_logits, ref["out.all_cls_scores"])
    close(outs.box_codes, ref["out.all_bbox_preds"], 1e-4)  # metres over a range of 102 m
    losses = head.loss(outs, [boxes_from_legacy(ref["in.gt_boxes_lidar_bottom"])], [ref["in.gt_labels"]])
    for name, value in losses.items():
        close(value, ref[f"out.loss.{name}"].squeeze(), 0, 1e-4)
    assert len(losses) == 4

    sum(losses.values()).backward()
    actual = {"grad.feat0": feats[0].grad, "grad.feat1": feats[1].grad}
    learned = {published_name(model, name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    actual |= {f"grad.param.{name}": gradient for name, gradient in learned.items()}
    actual |= {f"grad.norm.{name}": gradient.norm() for name, gradient in learned.items()}
    expected = {k: v for k, v in ref.arrays.items() if k.startswith("grad.")}
    assert expected
    for key, value in expected.items():
        assert (actual[key] - value).abs().max() <= 1e-4 * value.abs().max() + 1e-6, key


@pytest.fixture
def video(case) -> tuple:
    """The recorded case and the detector with its weights."""
    ref = case("e2e_v1")
    backbone = ResNet(
        depth=50,
        style="pytorch",
        base_channels=8,
        stem_channels=8,
        out_indices=(3,),
        frozen_stages=1,
        norm_eval=True,
        norm_requires_grad=False,
    )
    model = BEVFormerV1(
        img_backbone=backbone,
        img_neck=FPN(in_channels=[256], out_channels=32, num_outs=1),
        bev_map=map_v1(num_levels=1),
        box_head=head_v1(),
        grid_mask=False,
        frame_offsets=(-2, -1, 0),
    )
    model.load_state_dict(ref.weights("e2e_v1"))
    return ref, model


def clip(ref, times=(0, 1, 2), valid=(True, True, True), scene: str = "scene") -> Batch:
    """Frames of the recorded video, labelled as its last one. Upstream was given one camera matrix for all frames."""
    count, last = len(times), times[-1]
    here = np.eye(4)
    frame = Frame(f"{scene} {last}", scene, scene, last, (), here, prev_token=f"{scene} {last - 1}" if last else "")
    return Batch(
        images=ref["in.imgs"][list(times), 0][None],
        frame_offsets=tuple(t - last for t in times),
        frame_valid=torch.tensor([valid[:count]]),
        image_from_bev=ref["in.lidar2img"].expand(1, count, 3, 4, 4),
        image_size_px=torch.tensor(IMAGE).expand(1, count, 3, 2),
        image_flipped=torch.zeros(1, dtype=torch.bool),
        bda=torch.eye(3)[None],
        intrinsics=torch.eye(3).expand(1, 3, 3, 3),
        bev_from_camera=torch.eye(4).expand(1, 3, 4, 4),
        gt_boxes=[boxes_from_legacy(ref["in.gt_boxes_lidar_bottom"])],
        gt_labels=[ref["in.gt_labels"]],
        ego_from_bev=torch.eye(4)[None],
        # a car that stands: own and current BEV frame are one; the recorded motion is in the CAN-bus numbers
        global_from_ego=torch.eye(4, dtype=torch.float64).expand(1, count, 4, 4),
        can_bus=ref["in.can_bus"][list(times)][None],
        frames=[frame],
    )


def join(a: Batch, b: Batch) -> Batch:
    """Two batches as one."""
    both = lambda x, y: torch.cat([x, y]) if isinstance(x, Tensor) else x and x + y
    return replace(a, **{n: both(v, getattr(b, n)) for n, v in vars(a).items() if n != "frame_offsets"})


def test_video_agrees_with_upstream(video):
    ref, model = video
    model.eval()
    memory = None
    for t in range(3):
        answers, memory = model.predict(clip(ref, [t]), memory)
        found = answers[0].boxes
        assert answers[0].token == found.token == f"scene {t}" and list(memory) == [f"scene {t}"]
        expected = {name: ref[f"out.test_seq.{t}.{name}"] for name in ("boxes", "scores", "labels", "bev")}
        # 50 layers with random weights lie before it
        close(tokens_of(memory[f"scene {t}"].bev[None])[0], expected["bev"][:, 0], 1e-3)
        close(torch.from_numpy(found.scores), expected["scores"], 1e-5)
        assert torch.equal(torch.from_numpy(found.labels), expected["labels"])
        close(torch.from_numpy(found.boxes), boxes_from_legacy(expected["boxes"]), 1e-3)


def test_a_whole_clip_is_the_video(video):
    ref, model = video
    model.eval()
    found, memory = model.predict(clip(ref))
    expected = {name: ref[f"out.test_seq.2.{name}"] for name in ("scores", "bev")}
    close(tokens_of(memory["scene 2"].bev[None])[0], expected["bev"][:, 0], 1e-3)
    close(torch.from_numpy(found[0].boxes.scores), expected["scores"], 1e-5)


def test_another_scene_starts_afresh(video):
    ref, model = video
    model.eval()
    _, memory = model.predict(clip(ref, [0]))
    foreign = {"scene 0": replace(memory["scene 0"], scene_token="another")}
    _, other = model.predict(clip(ref, [1]), foreign)
    _, fresh = model.predict(clip(ref, [1]))
    _, follows = model.predict(clip(ref, [1]), memory)
    assert torch.equal(other["scene 1"].bev, fresh["scene 1"].bev)
    assert not torch.equal(follows["scene 1"].bev, fresh["scene 1"].bev)


def test_training_agrees_with_upstream(video):
    ref, model = video
    model.train()
    losses = model(clip(ref))
    for name, value in losses.items():
        close(value, ref[f"out.train_loss.{name}"].squeeze(), 0, 1e-4)
    total = sum(losses.values())
    close(total, ref["out.train_total"].squeeze(), 0, 1e-4)
    total.backward()
    norms = {k.removeprefix("grad.norm."): v for k, v in ref.arrays.items() if k.startswith("grad.norm.")}
    actual = {published_name(model, name): p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    assert set(actual) == set(norms)
    largest = max(v.item() for v in norms.values())
    for name, value in norms.items():
        assert abs(actual[name] - value) <= 1e-4 * value + 1e-7 * largest, name


def test_batch_is_two_single_clips(video):
    """One sample in the middle of a video, the other at the start of a scene."""
    ref, model = video
    model.eval()
    one, two = clip(ref), clip(ref, valid=(False, False, True), scene="other")
    apart = torch.stack([model.loss(batch)["loss_bbox"] for batch in (one, two)])
    assert apart[0] != apart[1]
    close(model.loss(join(one, two))["loss_bbox"], apart.mean(), 1e-5)


def test_what_cannot_work_is_said(video):
    ref, model = video
    with pytest.raises(ConfigError, match=r"learns from frames \(-2, -1, 0\), the batch has \(0,\)"):
        model.loss(clip(ref, [2]))
    with pytest.raises(ConfigError, match="samples scene 2 have no boxes"):
        model.loss(clip(ref).without_labels())
    with pytest.raises(ConfigError, match="scene 2: the batch lacks can_bus"):
        model.predict(replace(clip(ref), can_bus=None))
    with pytest.raises(ConfigError, match="does not follow image flips"):
        model.predict(replace(clip(ref), image_flipped=torch.ones(1, dtype=torch.bool)))
    with pytest.raises(ConfigError, match=r"the batch has frames \(-1, 0\)"):
        model.predict(clip(ref, [1, 2]))
    with pytest.raises(ConfigError, match="the model answers boxes, not lanes"):
        model.predict(clip(ref), tasks=("lanes",))


@pytest.mark.parametrize(
    ("name", "parameters", "trainable"),
    [("base", 69034947, 68707193), ("small", 59463619, 59135865), ("tiny", 33521157, 33245627)],
)
def test_full_size_keys_are_the_published(reference_dir, name, parameters, trainable):
    """Also those of tiny_fp16, which has tiny's."""
    text = gzip.decompress((reference_dir / "bev" / "keys" / f"bevformer_{name}.txt.gz").read_bytes()).decode()
    published = dict(line.split() for line in text.splitlines())
    with torch.device("meta"):
        model = build_model(load_config(f"bevformer_v1_{name}"))
    actual = {k: "x".join(map(str, v.shape)) or "-" for k, v in model.state_dict().items()}
    assert actual == published
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
