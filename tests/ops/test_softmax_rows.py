"""softmax_rows against torch.softmax."""

import pytest
import torch

from drivestack.ops import softmax_rows


def run(function, logits, grad_out):
    logits = logits.detach().clone().requires_grad_()
    out = function(logits)
    return out.detach(), *torch.autograd.grad(out, logits, grad_out)


@pytest.mark.parametrize("shape", [(1,), (9,), (5, 4), (2, 3, 17, 9), (33, 32), (7, 64), (0, 9), (3, 65)], ids=str)
def test_agrees_with_torch(shape, backend):
    logits, grad_out = 5 * torch.randn(shape), torch.randn(shape)
    expected = run(lambda x: x.softmax(-1), logits.double(), grad_out.double())
    for dtype, tolerance in (
        (torch.float32, 1e-6),
        (torch.bfloat16, 2e-2),
        (torch.float16, 2e-3),
        (torch.float64, 1e-12),
    ):
        found = run(lambda x: softmax_rows(x, backend=backend), logits.to(dtype), grad_out.to(dtype))
        if dtype.itemsize == 2:
            expected_here = run(lambda x: x.softmax(-1), logits.to(dtype).double(), grad_out.to(dtype).double())
        else:
            expected_here = expected
        for f, e in zip(found, expected_here):
            assert f.dtype == dtype
            torch.testing.assert_close(f.double(), e, rtol=tolerance, atol=tolerance)


def test_extreme_logits(backend):
    logits = torch.tensor([[1e30, 0.0, -1e30], [-float("inf"), 0.0, 100.0], [-200.0, -200.0, -200.0]])
    torch.testing.assert_close(softmax_rows(logits, backend=backend), logits.softmax(-1), rtol=1e-6, atol=1e-30)
    bad = torch.tensor([[float("nan"), 1.0], [float("inf"), 0.0], [-float("inf"), -float("inf")]])
    assert softmax_rows(bad, backend=backend).isnan()[:, 0].all()


def test_non_contiguous_and_double_backward():
    logits = torch.randn(9, 6).t()
    assert torch.equal(softmax_rows(logits), softmax_rows(logits.contiguous()))
    x, g, c = (torch.randn(4, 9, requires_grad=True) for _ in range(3))
    results = []
    for function in (softmax_rows, lambda t: t.softmax(-1)):
        first = torch.autograd.grad(function(x), x, g, create_graph=True)
        results.append(torch.autograd.grad(first, (x, g), c))
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_opcheck():
    torch.library.opcheck(torch.ops.drivestack.softmax_rows.default, (torch.randn(5, 9, requires_grad=True),))
