"""Fixtures of the operator tests: which implementation, how many threads (put back afterwards), a call per operator.

`call_case` holds what the tests of PyTorch's machinery need of every operator: a public call, its tensors, and the same
call at the dispatcher.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from drivestack import ops
from drivestack.ops.dispatch.backend import extension


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def kernels():
    """Value for `backend=`; skips where there are no CPU kernels. test_instruction_sets.py runs the others of them."""
    if extension("cpu").reason:
        pytest.skip(extension("cpu").reason)
    return "cpp"


@pytest.fixture(params=["cpp", "reference"])
def backend(request):
    """Value for `backend=`: the kernels as this processor runs them, and the reference implementation."""
    return request.getfixturevalue("kernels") if request.param == "cpp" else request.param


@dataclass
class CallCase:
    """A call of one operator on small tensors."""

    name: str
    """At the dispatcher."""
    function: Callable
    """The public call: function(*tensors, backend=None)."""
    raw: Callable
    """Inputs of the schema from the tensors (of one dtype)."""
    make: Callable[[int, int, torch.dtype], list[Tensor]]
    """Tensors for so many samples and queries (columns of the map)."""
    fixed: tuple[int, ...] = ()
    """Places of the tensors that get no gradient."""

    def tensors(self, batch=2, queries=5, dtype=torch.float64, requires_grad=False) -> list[Tensor]:
        torch.manual_seed(batch + 100 * queries)
        tensors = self.make(batch, queries, dtype)
        for i in set(range(len(tensors))) - set(self.fixed):
            tensors[i].requires_grad_(requires_grad)
        return tensors

    def differentiated(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t for i, t in enumerate(tensors) if i not in self.fixed]


_LEVELS = ((3, 4), (2, 3))  # 18 tokens
_FLAT_LEVELS = [3, 4, 0, 2, 3, 12]
_WINDOW = (3, 3, 1, 1, 1, 1, 1, 1, 2, 1.5, False)


def _maps(batch: int, width: int, dtype: torch.dtype, last: int = 18) -> list[Tensor]:
    map_of = lambda channels, scale: (scale * torch.randn(batch, 4, width, channels)).to(dtype)
    return [map_of(8, 1.0), map_of(2 * last, 0.7), map_of(last, 1.0)]


def _attention(batch: int, queries: int, dtype: torch.dtype, cameras: int = 0) -> list[Tensor]:
    """value, reference points (of cameras), offsets, logits; 2 heads, 4 points on 2 levels."""
    many = (batch, cameras) if cameras else (batch,)
    wide = dtype if dtype == torch.float64 else torch.float32
    reference = (*many, queries, 2, 2) if cameras else (1, queries, 1, 2, 2)
    return [
        torch.randn(*many, 18, 2, 4).to(dtype),
        (0.5 + 0.3 * torch.randn(reference)).to(wide),
        torch.randn(batch, queries, 2, 2, 4, 2).to(dtype),
        torch.randn(batch, queries, 2, 2, 4).to(dtype),
    ]


def _locations(batch: int, queries: int, dtype: torch.dtype) -> list[Tensor]:
    wide = dtype if dtype == torch.float64 else torch.float32
    value, _, offsets, logits = _attention(batch, queries, dtype)
    return [value, (0.5 + 0.3 * offsets).to(wide), logits.to(wide).softmax(-1)]


def _cameras(batch: int, queries: int, dtype: torch.dtype) -> list[Tensor]:
    value, reference, offsets, logits = _attention(batch, queries, dtype, cameras=3)
    return [value, reference, torch.rand(batch, 3, queries) > 0.4, offsets, logits]


def _packed(batch: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    packed = 0.7 * torch.randn(batch, 4, width, ops.packed_width(2))
    return [_maps(batch, width, dtype)[0], packed.to(dtype)]


def _unpacked(value: Tensor, packed: Tensor) -> tuple:
    grouped = packed[..., :54].unflatten(-1, (2, 27))
    return value, grouped[..., :18], grouped[..., 18:], *_WINDOW, False


_OPTIONS = {"groups": 2, "offset_scale": 1.5}
CASES = {
    "dcnv3": CallCase(
        "dcnv3",
        lambda *t, backend=None: ops.dcnv3(*t, **_OPTIONS, backend=backend),
        lambda *t: (*t, *_WINDOW, False),
        _maps,
    ),
    "dcnv3_softmax": CallCase(
        "dcnv3",
        lambda *t, backend=None: ops.dcnv3(*t, **_OPTIONS, mask_softmax=True, backend=backend),
        lambda *t: (*t, *_WINDOW, True),
        _maps,
    ),
    "dcnv4": CallCase("dcnv3", lambda *t, backend=None: ops.dcnv4(*t, **_OPTIONS, backend=backend), _unpacked, _packed),
    "ms_deform_attn": CallCase(
        "ms_deform_attn",
        lambda value, *t, backend=None: ops.ms_deform_attn(value, _LEVELS, *t, backend=backend),
        lambda value, *t: (value, [3, 4, 2, 3], *t),
        _locations,
    ),
    "fused": CallCase(
        "ms_deform_attn_fused",
        lambda value, *t, backend=None: ops.ms_deform_attn_fused(value, _LEVELS, *t, backend=backend),
        lambda value, *t: (value, _FLAT_LEVELS, *t, False),
        _attention,
    ),
    "fused_level_mean": CallCase(
        "ms_deform_attn_fused",
        lambda value, *t, backend=None: ops.ms_deform_attn_fused(
            value, _LEVELS, *t, level_mean=True, level_starts=(6, 3), backend=backend
        ),
        lambda value, *t: (value, [3, 4, 6, 2, 3, 3], *t, True),
        _attention,
    ),
    "spatial_cross_attention": CallCase(
        "spatial_cross_attention",
        lambda value, *t, backend=None: ops.spatial_cross_attention(value, _LEVELS, *t, backend=backend),
        lambda value, *t: (value, _FLAT_LEVELS, *t),
        _cameras,
        fixed=(1, 2),
    ),
}


@pytest.fixture(params=CASES)
def call_case(request) -> CallCase:
    return CASES[request.param]
