"""BEVFormer v1: the head with a previous BEV, and the whole recurrent detector, agree with upstream."""

from __future__ import annotations

import gzip

import pytest
import torch
from torch import Tensor

from drivestack.backbone import FPN, ResNet
from drivestack.bev.boxes.head import BEVFormerHead
from drivestack.bev.map.transformer import BevTransformerV1
from drivestack.bev.published.bevformer_v1 import BEVFormerV1, RecurrentState, can_bus_since
from drivestack.bev.published.variants_v1 import bevformer_v1
from drivestack.geometry import boxes_from_legacy

IMAGE = (96, 160)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5, rtol: float = 0) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def head_v1(num_levels: int) -> BEVFormerHead:
    transformer = BevTransformerV1(
        rotate_center=(5, 5),
        bev_size=(10, 10),
        embed_dims=32,
        num_heads=4,
        num_cams=3,
        num_levels=num_levels,
        encoder_layers=2,
        decoder_layers=2,
        ffn_dims=64,
        dropout=0.0,
    )
    return BEVFormerHead(
        transformer,
        num_query=12,
        embed_dims=32,
        num_decoder_layers=2,
        bev_size=(10, 10),
        bbox_weight=0.25,
        bbox_beta=0.0,
        max_num=20,
    )


def test_head_with_previous_bev_agrees_with_upstream(case):
    ref = case("head_v1_prev_train")
    head = head_v1(num_levels=2)
    head.load_state_dict(ref.weights("head_v1_prev_train"))
    feats = [ref[f"in.feats.{level}"].requires_grad_() for level in range(2)]
    bev = head.transformer.encode_recurrent(
        feats,
        ref["in.lidar2img"][None],
        torch.tensor(IMAGE).expand(1, 3, 2),
        IMAGE,
        head.bev_embedding.weight,
        head.positional_encoding(),
        ref["in.can_bus"][None],
        ref["in.prev_bev"],
    )
    close(bev.transpose(0, 1), ref["out.bev_embed"])
    outs = head.decode(bev.transpose(1, 2).unflatten(2, (10, 10)))
    close(outs.cls_logits, ref["out.all_cls_scores"])
    close(outs.box_codes, ref["out.all_bbox_preds"], 1e-4)  # metres over a range of 102 m
    losses = head.loss(outs, [boxes_from_legacy(ref["in.gt_boxes_lidar_bottom"])], [ref["in.gt_labels"]])
    for name, value in losses.items():
        close(value, ref[f"out.loss.{name}"].squeeze(), 0, 1e-4)
    assert len(losses) == 4

    sum(losses.values()).backward()
    actual = {"grad.feat0": feats[0].grad, "grad.feat1": feats[1].grad}
    actual |= {f"grad.param.{name}": p.grad for name, p in head.named_parameters()}
    actual |= {f"grad.norm.{name}": p.grad.norm() for name, p in head.named_parameters() if p.grad is not None}
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
        pts_bbox_head=head_v1(num_levels=1),
        grid_mask=False,
    )
    model.load_state_dict(ref.weights("e2e_v1"))
    return ref, model


def frame(ref, t: int) -> tuple[Tensor, ...]:
    return ref["in.imgs"][t, 0], ref["in.lidar2img"], torch.tensor(IMAGE).expand(3, 2), ref["in.can_bus"][t]


def test_video_agrees_with_upstream(video):
    ref, model = video
    model.eval()
    state: RecurrentState | None = None
    for t in range(3):
        found, state = model.predict(*frame(ref, t), "scene", f"frame {t}", state)
        expected = {name: ref[f"out.test_seq.{t}.{name}"] for name in ("boxes", "scores", "labels", "bev")}
        close(state.bev, expected["bev"][:, 0], 1e-3)  # 50 layers with random weights lie before it
        close(torch.from_numpy(found.scores), expected["scores"], 1e-5)
        assert torch.equal(torch.from_numpy(found.labels), expected["labels"])
        close(torch.from_numpy(found.boxes), boxes_from_legacy(expected["boxes"]), 1e-3)


def test_another_scene_starts_afresh(video):
    ref, model = video
    model.eval()
    _, state = model.predict(*frame(ref, 0), "scene", "a")
    _, other = model.predict(*frame(ref, 1), "another scene", "b", state)
    _, fresh = model.predict(*frame(ref, 1), "another scene", "b")
    assert torch.equal(other.bev, fresh.bev)


def clip(ref) -> dict:
    can_bus = [can_bus_since(ref["in.can_bus"][t], ref["in.can_bus"][t - 1] if t else None) for t in range(3)]
    return {
        "images": ref["in.imgs"][:, 0][None],
        "image_from_bev": ref["in.lidar2img"].expand(1, 3, 3, 4, 4),
        "image_size_px": torch.tensor(IMAGE).expand(1, 3, 3, 2),
        "can_bus": torch.stack(can_bus)[None],
        "has_previous": torch.tensor([[False, True, True]]),
        "gt_boxes": [boxes_from_legacy(ref["in.gt_boxes_lidar_bottom"])],
        "gt_labels": [ref["in.gt_labels"]],
    }


def test_training_agrees_with_upstream(video):
    ref, model = video
    model.train()
    losses = model(**clip(ref))
    for name, value in losses.items():
        close(value, ref[f"out.train_loss.{name}"].squeeze(), 0, 1e-4)
    total = sum(losses.values())
    close(total, ref["out.train_total"].squeeze(), 0, 1e-4)
    total.backward()
    norms = {k.removeprefix("grad.norm."): v for k, v in ref.arrays.items() if k.startswith("grad.norm.")}
    actual = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    assert set(actual) == set(norms)
    largest = max(v.item() for v in norms.values())
    for name, value in norms.items():
        assert abs(actual[name] - value) <= 1e-4 * value + 1e-7 * largest, name


def test_batch_is_two_single_clips(video):
    """One sample in the middle of a video, the other at the start of a scene."""
    ref, model = video
    model.eval()
    one = clip(ref)
    two = dict(one, has_previous=torch.tensor([[False, True, False]]))
    both = {k: v + two[k] if isinstance(v, list) else torch.cat([v, two[k]]) for k, v in one.items()}
    apart = torch.stack([model.loss(**c)["loss_bbox"] for c in (one, two)])
    assert apart[0] != apart[1]
    close(model.loss(**both)["loss_bbox"], apart.mean(), 1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "trainable"),
    [("base", 69034947, 68707193), ("small", 59463619, 59135865), ("tiny", 33521157, 33245627)],
)
def test_full_size_keys_are_the_published(reference_dir, name, parameters, trainable):
    """Also those of tiny_fp16, which has tiny's."""
    text = gzip.decompress((reference_dir / "bev" / "keys" / f"bevformer_{name}.txt.gz").read_bytes()).decode()
    published = dict(line.split() for line in text.splitlines())
    model = bevformer_v1(name)
    actual = {k: "x".join(map(str, v.shape)) or "-" for k, v in model.state_dict().items()}
    assert actual == published
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


def test_unknown_variant_is_named():
    with pytest.raises(ValueError, match="no BEVFormer v1 model 'huge': choose one of base, small, tiny"):
        bevformer_v1("huge")
