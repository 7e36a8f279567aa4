"""Every operator under torch.compile, torch.export, autocast, opcheck, fake and meta tensors."""

import io
import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from drivestack.ops import dcnv3, ms_deform_attn, ms_deform_attn_fused
from drivestack.ops.dispatch import registration
from drivestack.ops.dispatch.operators import OPERATORS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(call_case, kernels, dtype, requires_grad):
    tensors = call_case.tensors(dtype=dtype, requires_grad=requires_grad)
    operator = getattr(torch.ops.drivestack, call_case.name)
    inputs = call_case.raw(*tensors)
    torch.library.opcheck(operator.default, inputs)
    if dtype == torch.float32:
        grad_out = torch.randn_like(operator(*inputs)).requires_grad_(requires_grad)
        backward = getattr(torch.ops.drivestack, f"{call_case.name}_backward")
        # Compiling a double backward would trace the reference; the other tests do not.
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(backward.default, (grad_out, *inputs, False), test_utils=tests)


def test_compiles_without_graph_breaks(call_case, kernels):
    """One graph for all sizes, forward and backward (sizes that differ: equal ones would be taken for the same)."""
    function = lambda *t: call_case.function(*t).square().sum()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for batch, queries in ((5, 7), (6, 9), (3, 13)):
        tensors = call_case.tensors(batch, queries, torch.float32, requires_grad=True)
        leaves = call_case.differentiated(tensors)
        expected = torch.autograd.grad(function(*tensors), leaves)
        for found, wanted in zip(torch.autograd.grad(compiled(*tensors), leaves), expected):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    calls = [sum("drivestack" in str(node.target) for node in graph.graph.nodes) for graph in counter.graphs]
    assert sum(calls) == 1, "compiled anew for another size"


def test_exports_with_a_dynamic_batch_and_comes_back(call_case, kernels):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return call_case.function(*tensors)

    batch = Dim("batch", min=1, max=64)
    example = call_case.tensors(2, dtype=torch.float32)
    shared = [t.shape[0] == 1 for t in example]  # reference points of all samples
    program = torch.export.export(
        Module(), tuple(example), dynamic_shapes=(tuple({} if s else {0: batch} for s in shared),)
    )
    assert [n.target for n in program.graph.nodes if "drivestack" in str(n.target)] == [
        getattr(torch.ops.drivestack, call_case.name).default
    ]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for size in (1, 5):
        tensors = call_case.tensors(size, dtype=torch.float32)
        assert torch.equal(loaded(*tensors), call_case.function(*tensors))


RUN_PROGRAM = """
import sys, torch
import drivestack.ops
from drivestack.ops.dispatch.backend import _with_kernel

tensors, expected = torch.load(sys.argv[1] + "/tensors.pt")
found = torch.export.load(sys.argv[1] + "/program.pt2").module()(*tensors)
print(sorted(_with_kernel), (found - expected).abs().max().item())
"""


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_an_exported_program_loads_the_kernels_or_runs_without(folder, tmp_path, kernels):
    """In a new process that called nothing else; DRIVESTACK_OPS_FOLDER hides the kernels."""

    class Module(torch.nn.Module):
        def forward(self, value, offset, mask):
            return dcnv3(value, offset, mask, groups=2)

    tensors = tuple(torch.randn(2, 5, 6, channels) for channels in (8, 36, 18))
    torch.export.save(torch.export.export(Module(), tensors), tmp_path / "program.pt2")
    torch.save((tensors, Module()(*tensors)), tmp_path / "tensors.pt")
    environment = os.environ | {"DRIVESTACK_OPS_FOLDER": folder and str(tmp_path / folder)}
    command = [sys.executable, "-W", "ignore", "-c", RUN_PROGRAM, str(tmp_path)]
    said = subprocess.run(command, check=True, env=environment, timeout=120, capture_output=True, text=True).stdout
    serving, difference = said.rsplit(" ", 1)
    assert serving == ("[]" if folder else "[('dcnv3', 'cpu')]")
    assert float(difference) <= (1e-5 if folder else 0)


def test_operators_without_kernels_run_the_reference(call_case, monkeypatch):
    """What the dispatcher does with an operator that has no kernel for a device: forward and backward."""
    tensors = call_case.tensors()
    inputs = call_case.raw(*tensors)
    monkeypatch.setenv("DRIVESTACK_OPS_BACKEND", "reference")
    operator = OPERATORS[call_case.name]
    out = registration._without_kernel(operator, False)(*inputs)
    torch.testing.assert_close(out, call_case.function(*tensors, backend="reference"))
    grads = registration._without_kernel(operator, True)(torch.ones_like(out), *inputs, False)
    leaves = [inputs[i].detach().requires_grad_() for i in operator.differentiated_at]
    arguments = list(inputs)
    for i, leaf in zip(operator.differentiated_at, leaves):
        arguments[i] = leaf
    expected = torch.autograd.grad(operator.reference(*arguments).sum(), leaves)
    for found, wanted in zip(grads, expected):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(call_case, backend, dtype):
    """The output has the autocast dtype; values, offsets and logits are cast, coordinates and gradients are not."""
    tensors = call_case.tensors(dtype=torch.float32, requires_grad=True)
    leaves = call_case.differentiated(tensors)
    with torch.autocast("cpu", dtype=dtype):
        out = call_case.function(*tensors, backend=backend)
    assert out.dtype == dtype
    exact = call_case.function(*(t.to(dtype).float() if t.is_floating_point() else t for t in tensors))
    assert (out - exact).abs().max() <= 0.03 * exact.abs().max()
    assert [g.dtype for g in torch.autograd.grad(out.float().sum(), leaves)] == [torch.float32] * len(leaves)
    with torch.autocast("cpu", dtype=dtype):
        doubles = call_case.tensors(dtype=torch.float64)
        assert call_case.function(*doubles, backend=backend).dtype == torch.float64


def test_autocast_at_the_dispatcher_and_compiled(call_case, kernels):
    tensors = call_case.tensors(dtype=torch.float32, requires_grad=True)
    leaves = call_case.differentiated(tensors)
    compiled = torch.compile(call_case.function, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        direct = getattr(torch.ops.drivestack, call_case.name)(*call_case.raw(*tensors))
        results = [call_case.function(*tensors), direct, compiled(*tensors)]
    gradients = [torch.autograd.grad(out.float().square().sum(), leaves) for out in results]
    for result, gradient in zip(results[1:], gradients[1:]):
        assert torch.equal(result, results[0])
        for found, expected in zip(gradient, gradients[0]):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_coordinates_are_never_in_half_precision(backend):
    """In bfloat16 a location on a 200-cell map is off by up to half a cell."""
    value, weights = torch.zeros(1, 400, 1, 4), torch.ones(1, 1, 1, 1, 1)
    value[:, 150] = 1
    location = torch.full((1, 1, 1, 1, 1, 2), 0.5)
    location[..., 0] = 150.5 / 400
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ms_deform_attn(value, ((1, 400),), location, weights, backend=backend)
        fused = ms_deform_attn_fused(
            value, ((1, 400),), location[:, :, 0], torch.zeros_like(location), weights, backend=backend
        )
    assert (found == 1).all() and (fused == 1).all()


def test_fake_and_meta_tensors(call_case, kernels):
    tensors = call_case.tensors(dtype=torch.float32, requires_grad=True)
    expected = call_case.function(*tensors)
    elsewhere = [t.detach().to("meta").requires_grad_(t.requires_grad) for t in tensors]
    found = call_case.function(*elsewhere)
    assert found.shape == expected.shape and found.device.type == "meta"
    leaves = call_case.differentiated(elsewhere)
    assert [g.shape for g in torch.autograd.grad(found.sum(), leaves)] == [t.shape for t in leaves]
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert call_case.function(*call_case.tensors(dtype=torch.float32)).shape == expected.shape


def test_mixed_dtypes(call_case, backend):
    """Half-precision values beside float32 offsets, weights and masks: computed as they are, not cast down."""
    tensors = call_case.tensors(dtype=torch.float32)
    tensors = [tensors[0].bfloat16(), *tensors[1:]]
    out = call_case.function(*tensors, backend=backend)
    exact = call_case.function(tensors[0].float(), *tensors[1:])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=1e-2, atol=1e-2)


def test_a_kernel_inside_a_data_parallel_model(tmp_path, kernels):
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.packed = torch.nn.Linear(8, 54)

        def forward(self, x):
            offset, mask = self.packed(x).split((36, 18), -1)
            return dcnv3(x, offset, mask, groups=2, mask_softmax=True, backend=kernels)

    torch.manual_seed(0)
    layer, x = Layer(), torch.randn(2, 5, 6, 8)
    expected = torch.autograd.grad(layer(x).square().sum(), layer.parameters())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(layer)
        parallel(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, gradient in zip(layer.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient)
