"""What a head says of its own boxes: targets, loss, the switch for scores, and nothing changed without it."""

import math

import numpy as np
import pytest
import torch

from drivestack.bev.boxes.box_coder import encode_boxes
from drivestack.bev.boxes.head import BoxHead, QueryOutputs
from drivestack.bev.boxes.quality import quality_targets
from drivestack.core.checkpoint import load_checkpoint, save_safetensors
from support import toy_rig

LAYERS = dict(embed_dims=32, num_layers=2, num_heads=4, ffn_dims=64, dropout=0.0)


def head(**settings):
    torch.manual_seed(0)
    return BoxHead(num_query=12, max_num=20, **LAYERS, **settings)


def test_targets_are_of_distance_and_heading():
    truth = torch.tensor([[1.0, 2, 0, 4, 2, 1.5, 0.3, 0, 0]]).repeat(4, 1)
    found = truth.clone()
    found[1, :3] += torch.tensor([0.6, 0.0, 0.8])  # 1 m
    found[2, 6] += math.pi  # faces backwards
    found[3, 6] += math.radians(89)
    targets = quality_targets(encode_boxes(found), encode_boxes(truth))
    torch.testing.assert_close(targets[:, 0], torch.tensor([1, math.exp(-1), 1, 1]))
    assert targets[:, 1].tolist() == [1, 1, 0, 1]


def test_the_loss_is_over_matched_queries_alone():
    judge = head(quality_weight=2.0)
    truth = torch.tensor([[3.0, 5, 0, 4, 2, 1.5, 0.4, 0, 0]])
    codes = torch.zeros(2, 1, 12, 10)
    codes[..., 5, :] = encode_boxes(truth + torch.tensor([0.5, 0, 0, 0, 0, 0, 0, 0, 0]))
    codes[..., 0] += torch.where(torch.arange(12) == 5, 0.0, 30.0)
    logits = torch.full((2, 1, 12, 10), -5.0)
    quality = torch.randn(1, 12, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = judge.loss(QueryOutputs(logits, codes, 1, quality=quality), [truth], [torch.tensor([2])])
    p = quality[0, 5].sigmoid()
    near = math.exp(-0.5)
    expected = -(near * p[0].log() + (1 - near) * (1 - p[0]).log()) - p[1].log()
    torch.testing.assert_close(losses["loss_quality"], 2 * expected)
    losses["loss_quality"].backward()
    assert (quality.grad[0].abs().sum(1) > 0).nonzero().flatten().tolist() == [5]
    assert set(losses) == {"loss_cls", "loss_bbox", "d0.loss_cls", "d0.loss_bbox", "loss_quality"}


def test_scores_are_multiplied_by_centerness_where_asked():
    outs = QueryOutputs(
        torch.randn(2, 1, 12, 10, generator=torch.Generator().manual_seed(1)),
        torch.randn(2, 1, 12, 10, generator=torch.Generator().manual_seed(2)),
        1,
        quality=torch.randn(1, 12, 2, generator=torch.Generator().manual_seed(3)),
    )
    plain = head(quality_weight=1.0).eval().predict(outs, ["a"])[0]
    np.testing.assert_array_equal(plain.scores, head().eval().predict(outs, ["a"])[0].scores)
    found = head(quality_weight=1.0, rescore=True).eval().predict(outs, ["a"])[0]
    scores = outs.cls_logits[-1, 0].sigmoid() * outs.quality[0, :, :1].sigmoid()
    np.testing.assert_allclose(found.scores, scores.flatten().topk(20).values.numpy(), rtol=1e-6)
    with pytest.raises(ValueError, match="quality_weight"):
        head(rescore=True)


def test_it_starts_at_zero_effect_and_weights_go_both_ways(tmp_path):
    """Ranking and boxes of rescored answers are those of the plain head until something is learned."""
    alone, judging = toy_rig.build(dropout=0.0), toy_rig.build(dropout=0.0)
    judging.boxes.head = BoxHead(
        num_query=6, num_groups=2, embed_dims=32, num_layers=2, num_heads=4, ffn_dims=64, dropout=0.0,
        pc_range=toy_rig.RANGE, quality_weight=1.0, rescore=True,
    )  # fmt: skip
    extra = [p for n, p in judging.boxes.head.named_parameters() if n.startswith("quality_branch")]
    assert sum(p.numel() for p in extra) == 2 * 32 + 2
    save_safetensors(alone, tmp_path / "old.safetensors")
    report = load_checkpoint(judging, tmp_path / "old.safetensors", may_lack=("pts_bbox_head.quality_branch.",))
    assert report.clean
    frames, images = toy_rig.scene(1)
    clip = toy_rig.clip(frames, images, 0, (0,))
    old, new = (m.eval().predict(clip)[0][0].boxes for m in (alone, judging))
    np.testing.assert_array_equal(new.boxes, old.boxes)
    np.testing.assert_array_equal(new.scores, old.scores / 2)
    save_safetensors(judging, tmp_path / "new.safetensors")
    report = load_checkpoint(alone, tmp_path / "new.safetensors")
    assert report.clean and "2 tensors of teachers" in str(report)
