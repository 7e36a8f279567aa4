"""The machinery around the kernels: fallback, choice of backend, torch.library, torch.compile."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

import drivestack.ops.dispatch.backend as backend_module
from drivestack.ops import BackendFallbackWarning, BackendUnavailableError, backend_report, dcnv3, ms_deform_attn
from drivestack.ops.dispatch.backend import BACKEND_VARIABLE, Extension


def dcnv3_inputs(dtype=torch.float32, **options):
    value = torch.randn(2, 5, 6, 16, dtype=dtype, **options)
    return value, torch.randn(2, 5, 6, 36, dtype=dtype, **options), torch.rand(2, 5, 6, 18, dtype=dtype, **options)


def msda_inputs(dtype=torch.float32, **options):
    value, locations = torch.randn(2, 20, 2, 8, dtype=dtype, **options), torch.rand(2, 7, 2, 1, 3, 2, dtype=dtype)
    return value, locations.requires_grad_(value.requires_grad), torch.rand(2, 7, 2, 1, 3, dtype=dtype, **options)


@pytest.fixture
def no_extension(monkeypatch):
    missing = Extension(None, None, "no compiled operators in /here")
    monkeypatch.setattr(backend_module, "_extensions", {"cpu": missing, "cuda": missing})
    monkeypatch.setattr(backend_module, "_with_kernel", set())
    monkeypatch.setattr(backend_module, "_warned", set())
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)


def test_missing_extension_warns_once_and_the_reference_runs(no_extension):
    value, locations, weights = msda_inputs()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = dcnv3(*dcnv3_inputs(), groups=2)
        dcnv3(*dcnv3_inputs(), groups=2)
        ms_deform_attn(value, [(4, 5)], locations, weights)
    fallbacks = [w for w in caught if w.category is BackendFallbackWarning]
    assert first.shape == (2, 5, 6, 16) and len(fallbacks) == 1
    assert "no compiled operators" in str(fallbacks[0].message) and "build_ext --inplace" in str(fallbacks[0].message)
    assert fallbacks[0].filename == __file__
    report = backend_report()
    assert report["backend"] == "reference" and report["reason"] and "build_ext" in report["fix"]


def test_asking_for_missing_kernels_raises(no_extension):
    with pytest.raises(BackendUnavailableError, match=r"no compiled operators.*build_ext --inplace"):
        dcnv3(*dcnv3_inputs(), groups=2, backend="cpp")


def test_a_broken_shared_object_is_a_reason_not_a_crash(tmp_path, monkeypatch):
    (tmp_path / "_C.abi3.so").write_bytes(b"not a library")
    monkeypatch.setattr(backend_module, "_FOLDER", tmp_path)
    found = backend_module._load("cpu")
    assert "does not load" in found.reason and found.variant is None


def test_the_argument_wins_over_the_environment(monkeypatch, no_extension):
    monkeypatch.setenv(BACKEND_VARIABLE, "cpp")
    dcnv3(*dcnv3_inputs(), groups=2, backend="reference")
    with pytest.raises(BackendUnavailableError):
        dcnv3(*dcnv3_inputs(), groups=2)
    monkeypatch.setenv(BACKEND_VARIABLE, "fast")
    with pytest.raises(ValueError, match=f"{BACKEND_VARIABLE} must be one of auto, cpp, cuda, reference; got 'fast'"):
        dcnv3(*dcnv3_inputs(), groups=2)
    with pytest.raises(ValueError, match="backend must be one of"):
        dcnv3(*dcnv3_inputs(), groups=2, backend="gpu")


def test_cuda_kernels_are_demanded_or_missed(no_extension):
    with pytest.raises(BackendUnavailableError, match="the CUDA kernels were requested, but the tensors are on cpu"):
        dcnv3(*dcnv3_inputs(), groups=2, backend="cuda")
    report = backend_report()["cuda"]
    assert report["path"] is None and report["architectures"] is None and report["reason"]
    assert "DRIVESTACK_CUDA=1 python setup.py build_ext --inplace" in report["fix"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not backend_module.use_kernel("dcnv3", None, "cuda")
        assert not backend_module.use_kernel("ms_deform_attn", None, "cuda")
        assert not backend_module.use_kernel("dcnv3", None, "cpu")  # warns once more: another device
    assert len(caught) == 2 and "DRIVESTACK_CUDA=1" in str(caught[0].message)
    with pytest.raises(BackendUnavailableError, match="no compiled operators"):
        backend_module.use_kernel("dcnv3", "cpp", "cuda")


@pytest.mark.parametrize(
    "architectures, gpu, runs",
    [
        ("75 80 90", (9, 0), True),
        ("75 80 90", (8, 6), True),
        ("75 80 90", (12, 0), False),
        ("75 80 90 120+PTX", (12, 1), True),
        ("90+PTX", (12, 0), True),
        ("90+PTX", (8, 0), False),
        ("86", (8, 0), False),
        ("90a", (9, 0), True),
        ("", (8, 0), True),
    ],
)
def test_kernels_for_another_gpu_are_a_reason(architectures, gpu, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
    assert (backend_module._gpu_problem(architectures) is None) == runs


def test_importing_loads_no_library():
    code = "import drivestack.ops, drivestack.ops.dispatch.backend as b; assert not b._extensions"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, timeout=120)


def test_instruction_set_from_the_environment(kernels):
    code = "from drivestack.ops import backend_report; print(backend_report()['instruction_set'])"
    environment = os.environ | {"DRIVESTACK_OPS_ISA": "baseline"}
    out = subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120, capture_output=True)
    assert out.stdout.decode().strip() == "baseline"


def test_direct_calls_with_wrong_sizes_stay_inside_their_memory(kernels):
    value, offset, mask = dcnv3_inputs()
    with pytest.raises(RuntimeError, match="offset or mask does not fit"):
        torch.ops.drivestack.dcnv3(value, offset[:, :2], mask, 3, 3, 1, 1, 1, 1, 1, 1, 2, 1.0, False, False)
    value, locations, weights = msda_inputs()
    with pytest.raises(RuntimeError, match="leaves the tokens of value"):
        torch.ops.drivestack.ms_deform_attn(value, [400, 500], locations, weights)


def test_the_reference_compiles_without_graph_breaks():
    value, offset, mask = dcnv3_inputs(requires_grad=True)
    attended, locations, weights = msda_inputs(requires_grad=True)

    def function(value, offset, mask, attended, locations, weights):
        first = dcnv3(value, offset, mask, groups=2, backend="reference")
        second = ms_deform_attn(attended, ((4, 5),), locations, weights, backend="reference")
        return first.sum() + second.square().sum()

    inputs = (value, offset, mask, attended, locations, weights)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(function(*inputs), inputs)
    for found, wanted in zip(torch.autograd.grad(compiled(*inputs), inputs), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
