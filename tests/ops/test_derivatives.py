"""Derivatives of every operator, by kernel and reference: first, second and third order, torch.func."""

import pytest
import torch

from drivestack.ops import ms_deform_attn_fused, spatial_cross_attention


def test_gradcheck(call_case, backend):
    tensors = call_case.tensors(batch=1, queries=3, requires_grad=True)
    function = lambda *t: call_case.function(*t, backend=backend)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_dispatcher_calls_have_the_same_derivatives(call_case, kernels):
    """torch.compile and exported programs come this way, with formulas registered there."""
    tensors = call_case.tensors(requires_grad=True)
    leaves = call_case.differentiated(tensors)
    operator = getattr(torch.ops.drivestack, call_case.name)
    public, direct = call_case.function(*tensors), operator(*call_case.raw(*tensors))
    assert torch.equal(public, direct)
    weights = torch.randn_like(public)
    grads = [torch.autograd.grad((out * weights).sum(), leaves, create_graph=True) for out in (public, direct)]
    for found, expected in zip(*grads):
        assert torch.equal(found, expected)
    seconds = [torch.autograd.grad(sum(g.square().sum() for g in first), leaves) for first in grads]
    for found, expected in zip(*seconds):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_third_order(call_case, kernels):
    results = []
    for backend in (kernels, "reference"):
        tensors = call_case.tensors(batch=1, queries=2, requires_grad=True)
        leaves, value = call_case.differentiated(tensors), call_case.function(*tensors, backend=backend).pow(3).sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum((g * g.detach().cos()).sum() for g in grads)
        results.append([g.detach() for g in grads])
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def test_torch_func(call_case, kernels):
    tensors = call_case.tensors()
    places = [i for i in range(len(tensors)) if i not in call_case.fixed]

    def loss(*leaves, backend=None):
        given = list(tensors)
        for i, leaf in zip(places, leaves):
            given[i] = leaf
        return call_case.function(*given, backend=backend).square().sum()

    every = tuple(range(len(places)))
    leaves = call_case.differentiated(tensors)
    found = torch.func.grad(lambda *t: loss(*t, backend=kernels), every)(*leaves)
    for gradient, wanted in zip(found, torch.func.grad(lambda *t: loss(*t, backend="reference"), every)(*leaves)):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)
    curvature = lambda backend: torch.func.grad(
        lambda v: torch.func.grad(loss)(v, *leaves[1:], backend=backend).square().sum()
    )(leaves[0])
    torch.testing.assert_close(curvature(kernels), curvature("reference"), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_transformed_says_so(call_case, kernels):
    tensors = call_case.tensors()
    many = [torch.stack([t, t]) for t in tensors]
    refusal = rf"drivestack::{call_case.name} has no batching rule.*fold the mapped axis.*backend=\"reference\""
    for function in (call_case.function, lambda *t: getattr(torch.ops.drivestack, call_case.name)(*call_case.raw(*t))):
        with pytest.raises(NotImplementedError, match=refusal):
            torch.vmap(function)(*many)
    by_reference = torch.vmap(lambda *t: call_case.function(*t, backend="reference"))(*many)
    torch.testing.assert_close(by_reference[1], call_case.function(*tensors, backend="reference"))

    tangents = [torch.ones_like(t) for t in tensors[:1]]
    function = lambda value: call_case.function(value, *tensors[1:])
    with pytest.raises(NotImplementedError, match=f"{call_case.name} has no forward-mode derivative"):
        torch.func.jvp(function, tuple(tensors[:1]), tuple(tangents))


@pytest.mark.parametrize("rows, over", [(1, 1), (2, 2), (1, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradient_to_reference_points(rows, over, count, kernels):
    """Also where reference points are shared by samples or levels, or points do not divide among them."""
    shapes = ((3, 5), (4, 2))
    tensors = [
        torch.randn(2, 23, 3, 4, dtype=torch.float64),
        torch.rand(rows, 6, over, count, 2, dtype=torch.float64),
        torch.randn(2, 6, 3, 2, 4, 2, dtype=torch.float64),
        torch.randn(2, 6, 3, 2, 4, dtype=torch.float64),
    ]
    tensors = [t.requires_grad_() for t in tensors]
    run = lambda backend: ms_deform_attn_fused(tensors[0], shapes, *tensors[1:], backend=backend)
    grad_out = torch.randn_like(run("reference"))
    expected = torch.autograd.grad(run("reference"), tensors, grad_out)
    for found, wanted in zip(torch.autograd.grad(run(kernels), tensors, grad_out), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_gradient_to_reference_points_is_not_rounded_with_the_offsets(kernels):
    """It is a sum of gradients to offsets, which are bfloat16 here: the terms must not be."""
    value, offsets = torch.randn(1, 600, 8, 16).bfloat16(), torch.randn(1, 40, 8, 1, 8, 2).bfloat16()
    logits, reference = torch.randn(1, 40, 8, 1, 8).bfloat16(), torch.rand(1, 40, 1, 1, 2)
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        tensors = [t.to(dtype) for t in (value, offsets, logits)]
        point = reference.to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
        out = ms_deform_attn_fused(tensors[0], ((20, 30),), point, *tensors[1:], backend=kernels)
        gradients.append(torch.autograd.grad(out, point, torch.ones_like(out))[0].double())
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[1].abs().max()


def test_spatial_cross_attention_refuses_to_drop_a_gradient():
    value, reference = torch.randn(1, 2, 6, 1, 4), torch.rand(1, 2, 3, 1, 2, requires_grad=True)
    rest = (torch.ones(1, 2, 3, dtype=torch.bool), torch.randn(1, 3, 1, 1, 2, 2), torch.randn(1, 3, 1, 1, 2))
    with pytest.raises(ValueError, match="reference_points get no gradient here: detach them"):
        spatial_cross_attention(value, ((2, 3),), reference, *rest)
    with torch.no_grad():
        assert spatial_cross_attention(value, ((2, 3),), reference, *rest).shape == (1, 3, 4)
