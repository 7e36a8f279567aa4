"""transformers models whose deformable attention is ours: the same outputs."""

from __future__ import annotations

import copy
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from drivestack.compat import hugging_face, use_drivestack_attention
from drivestack.ops import ms_deform_attn

SHAPES = [(4, 5), (2, 3)]


def tensors(points: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 26, 2, 4, generator=generator),
        torch.rand(2, 3, 2, points, 2, generator=generator),
        torch.rand(2, 3, 2, points, generator=generator),
    )


def test_points_may_differ_by_level():
    value, locations, weights = tensors(4)
    even = ms_deform_attn(value, SHAPES, locations.unflatten(3, (2, 2)), weights.unflatten(3, (2, 2)))
    torch.testing.assert_close(
        hugging_face.multi_scale_deformable_attention_v2(value, SHAPES, locations, weights, [2, 2]), even
    )
    uneven = hugging_face.multi_scale_deformable_attention_v2(value, SHAPES, locations, weights, [1, 3])
    first = ms_deform_attn(value[:, :20], SHAPES[:1], locations[..., None, :1, :], weights[..., None, :1])
    second = ms_deform_attn(value[:, 20:], SHAPES[1:], locations[..., None, 1:, :], weights[..., None, 1:])
    torch.testing.assert_close(uneven, first + second)
    with pytest.raises(ValueError, match="only 'default'"):
        hugging_face.multi_scale_deformable_attention_v2(value, SHAPES, locations, weights, [2, 2], "discrete")


def test_all_kinds_of_attention_are_found_and_found_again(monkeypatch):
    file = ModuleType("modelling_file_of_a_test")
    monkeypatch.setitem(sys.modules, file.__name__, file)
    source = """
from torch import nn

class MultiScaleDeformableAttention(nn.Module):
    pass

def multi_scale_deformable_attention(value, shapes, locations, weights):
    raise NotImplementedError

def multi_scale_deformable_attention_v2(value, shapes, locations, weights, num_points_list, method="default"):
    return f"theirs, {method}"

class Plain(nn.Module):
    def forward(self, *arguments):
        return multi_scale_deformable_attention(*arguments)

class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.ms_deformable_attn_core = multi_scale_deformable_attention_v2

class Mmcv(nn.Linear):
    pass

Mmcv.__name__ = "MultiScaleDeformableAttention"
"""
    exec(source, vars(file))
    model = nn.ModuleList([file.MultiScaleDeformableAttention(), file.Plain(), file.Kept(), file.Mmcv(2, 2)])
    assert use_drivestack_attention(model) == 3
    assert use_drivestack_attention(model) == 3
    value, locations, weights = tensors(4)
    locations, weights = locations.unflatten(3, (2, 2)), weights.unflatten(3, (2, 2))
    want = ms_deform_attn(value, SHAPES, locations, weights)
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, 20])
    torch.testing.assert_close(model[0](value, shapes, SHAPES, starts, locations, weights, 64), want)
    torch.testing.assert_close(model[1](value, shapes, locations, weights), want)
    flat = locations.flatten(3, 4), weights.flatten(3)
    torch.testing.assert_close(model[2].ms_deformable_attn_core(value, SHAPES, *flat, [2, 2]), want)
    assert model[2].ms_deformable_attn_core(value, SHAPES, *flat, [2, 2], method="discrete") == "theirs, discrete"
    assert isinstance(model[3], nn.Linear)
    copied = copy.deepcopy(model[2]).ms_deformable_attn_core
    torch.testing.assert_close(copied(value, SHAPES, *flat, [2, 2]), want)
    with pytest.raises(ValueError, match="Linear has no deformable attention"):
        use_drivestack_attention(nn.Linear(2, 2))


def tiny_model(kind: str) -> nn.Module:
    import transformers as hf

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    maps = ["stage2", "stage3", "stage4"]
    small = {"d_model": 32, "num_queries": 7, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 32}
    small |= {"encoder_attention_heads": 4, "encoder_ffn_dim": 32}
    if kind == "DeformableDetr":
        backbone = hf.ResNetConfig(**sizes, out_features=maps)
        boxes = {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 7}
        config = hf.DeformableDetrConfig(backbone_config=backbone, encoder_layers=1, **boxes, **small)
    else:
        backbone = hf.RTDetrResNetConfig(**sizes, out_features=maps)
        small |= {"encoder_in_channels": [12, 16, 20], "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3}
        points = {"decoder_n_points": [3, 6, 3]} if kind == "DFine" else {}
        config = getattr(hf, f"{kind}Config")(backbone_config=backbone, **small, **points)
    return getattr(hf, f"{kind}ForObjectDetection")(config).eval()


@pytest.mark.parametrize("kind", ["DeformableDetr", "RTDetr", "RTDetrV2", "DFine"])
def test_outputs_of_transformers_models_stay(kind):
    pytest.importorskip("transformers", reason="pip install transformers")
    torch.manual_seed(0)
    model, image = tiny_model(kind), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        before = model(image)
        assert use_drivestack_attention(model) >= 2
        after = model(image)
    torch.testing.assert_close(after.logits, before.logits, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(after.pred_boxes, before.pred_boxes, atol=2e-5, rtol=1e-4)
