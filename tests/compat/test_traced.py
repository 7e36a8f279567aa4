"""torch.jit.trace with gradients on, saved and loaded: the same numbers and gradients, for other sizes too."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from drivestack.backbone import InternImage
from drivestack.compat.dcnv3 import DCNv3
from drivestack.compat.dcnv4 import DCNv4
from drivestack.compat.ms_deform_attn import MSDeformAttn
from drivestack.ops import ms_deform_attn, spatial_cross_attention

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch: traces are deprecated, and sizes compared in Python


def attention_inputs(shapes: list[list[int]], batch: int = 1, numbers: int = 2) -> tuple[Tensor, ...]:
    tokens = sum(h * w for h, w in shapes)
    points = torch.rand(batch, 5, len(shapes), numbers)
    return torch.randn(batch, 5, 16), points, torch.randn(batch, tokens, 16), torch.tensor(shapes)


class Maps(nn.Module):
    """A user's model: sizes come from maps, and are ints of the trace."""

    def forward(self, first: Tensor, second: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        shapes = [tuple(x.shape[-2:]) for x in (first, second)]
        value = torch.cat([x.flatten(2).transpose(1, 2) for x in (first, second)], 1)[:, :, None]
        return ms_deform_attn(value, shapes, locations, weights)


class Cameras(nn.Module):
    def forward(self, value, shapes, points, visible, offsets, logits) -> Tensor:
        return spatial_cross_attention(value, shapes, points, visible, offsets, logits)


def maps(h: int, w: int) -> tuple[Tensor, ...]:
    return torch.randn(1, 4, h, w), torch.randn(1, 4, 2, 3), torch.rand(1, 6, 1, 2, 3, 2), torch.rand(1, 6, 1, 2, 3)


def cameras(h: int, w: int) -> tuple[Tensor, ...]:
    value, shapes = torch.randn(1, 2, h * w, 2, 4), torch.tensor([[h, w]])
    visible = torch.rand(1, 2, 5) > 0.3
    return value, shapes, torch.rand(1, 2, 5, 1, 2), visible, torch.randn(1, 5, 2, 1, 3, 2), torch.randn(1, 5, 2, 1, 3)


CASES = {
    "DCNv3": (DCNv3(16, group=2), (torch.randn(1, 8, 8, 16),), (torch.randn(2, 6, 9, 16),)),
    "DCNv4": (DCNv4(16, group=2, center_feature_scale=True), (torch.randn(1, 64, 16),), (torch.randn(2, 25, 16),)),
    "MSDeformAttn": (
        MSDeformAttn(16, 2, 2, 2),
        attention_inputs([[8, 8], [4, 4]]),
        attention_inputs([[4, 16], [4, 4]], batch=2),  # as many tokens, another shape
    ),
    "boxes": (
        MSDeformAttn(16, 2, 2, 2),
        attention_inputs([[8, 8], [4, 4]], numbers=4),
        attention_inputs([[4, 16], [4, 4]], numbers=4),
    ),
    "sizes of maps": (Maps(), maps(4, 6), maps(6, 4)),
    "cameras": (Cameras(), cameras(4, 6), cameras(6, 4)),
    "InternImage": (
        InternImage(channels=8, depths=(1, 1, 1, 1), groups=(1, 2, 2, 2), out_indices=(3,)).eval(),
        (torch.randn(1, 3, 64, 64),),
        (torch.randn(2, 3, 96, 64),),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_traced_programs_are_saved_and_give_the_same(case):
    torch.manual_seed(0)
    model, inputs, others = CASES[case]
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, inputs, check_trace=False), file)
    file.seek(0)
    loaded = torch.jit.load(file)

    def run(program, given) -> Tensor:
        answer = program(*given)
        return answer if isinstance(answer, Tensor) else answer[0]

    for given in (inputs, others):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                torch.testing.assert_close(run(loaded, given), run(model, given), rtol=1e-4, atol=1e-5)
        x = given[0].clone().requires_grad_()
        found, expected = (torch.autograd.grad(run(p, (x, *given[1:])).square().sum(), x)[0] for p in (loaded, model))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_traced_program_refuses_shapes_that_do_not_fit_in_our_words():
    inputs = attention_inputs([[8, 8], [4, 4]])
    traced = torch.jit.trace(MSDeformAttn(16, 2, 2, 2), inputs, check_trace=False)
    with pytest.raises(Exception, match="hold 20 tokens but value has 80"):
        traced(*inputs[:3], torch.tensor([[4, 4], [2, 2]]))
