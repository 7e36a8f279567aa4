"""Linear layers and convolutions that take oneDNN's matrix products where PyTorch's own are slower.

PyTorch sends float32 matrix products on x86 to MKL, which takes its AVX2 path on AMD processors: on those with AVX-512
oneDNN does the same in half the time. It also fuses what follows, and keeps weights in its own layout (`Packed*`, made
by `inference.prepare_inference`), which saves a copy of all weights per call on any x86 processor. Modules call their
linear layers, which are PyTorch's own class, through `run_linear`. Elsewhere (other devices and dtypes, torch.compile,
torch.export, tracing, layers that are not plain) these are PyTorch's own calls.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain import inference_on_cpu, is_exact_gelu, is_ordinary, is_plain

CONVOLUTION_PAYS = 1 << 23  # multiplications; below, its set-up costs more than it saves
ACTIVATIONS = {None: ("none", ""), "gelu": ("gelu", "none"), "relu": ("relu", "")}
_LINEAR = "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm)"
_CONVOLUTION = (
    "mkldnn::_convolution_pointwise(Tensor X, Tensor W, Tensor? B, int[] padding, int[] stride, int[] dilation, "
    "int groups, str attr, Scalar?[] scalars, str? algorithm)"
)


@functools.cache
def _onednn(signature: str) -> Any:
    """The operator behind Inductor's oneDNN calls, None where this build or version of PyTorch has another or none."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return None
    name = signature.partition("(")[0].removeprefix("mkldnn::")
    packet = getattr(torch.ops.mkldnn, name, None)
    default = getattr(packet, "default", None)
    return packet if default is not None and str(default._schema).startswith(signature) else None


@functools.cache
def _dtype_supported(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def _mkl_lags() -> bool:
    """Whether MKL leaves half of this processor unused."""
    try:
        vendor = Path("/proc/cpuinfo").read_text()
    except OSError:
        vendor = platform.processor()
    return "AuthenticAMD" in vendor and "AVX512" in torch.backends.cpu.get_cpu_capability()


def _as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` as a 1 x 1 convolution over one long channels-last column: oneDNN in both directions."""
    column = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # [1, C, rows, 1]
    return F.conv2d(column, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _product(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, for a plain `nn.Linear` by the quickest matrix product."""
    if not (is_ordinary(x) and is_plain(layer, nn.Linear)):
        return layer(x)
    weight, bias = layer.weight, layer.bias
    if weight.dtype != torch.float32 or (bias is not None and bias.dtype != torch.float32):
        return layer(x)
    if torch.is_autocast_enabled("cpu"):
        if not torch.is_grad_enabled():
            # Autocast keeps all its half-precision weights until its context ends: cold memory, page by page. Cast
            # just before they are needed, they take the same warm place one after the other.
            dtype = torch.get_autocast_dtype("cpu")
            return F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))
    elif x.dtype == torch.float32 and _mkl_lags():
        if torch.is_grad_enabled():
            if x.numel() * weight.shape[0] >= CONVOLUTION_PAYS:
                return _as_convolution(x, weight, bias)
        elif x.dim() > 1:
            operator = _onednn(_LINEAR)
            if operator is not None:
                return operator(x, weight, bias, "none", [], "")
    return layer(x)


def run_linear(
    layer: nn.Module, x: Tensor, activation: nn.Module | None = None, residual: Tensor | None = None
) -> Tensor:
    """``residual + activation(layer(x))``, in fewer steps where ``layer`` and ``activation`` are plain modules.

    ``layer`` may be anything that is called with one argument: an adapter, a quantised layer, a hooked one.
    """
    if type(layer) is PackedLinear and inference_on_cpu(x) and is_plain(layer, PackedLinear):
        if activation is None:
            return layer.fused(x, None, residual)
        if is_exact_gelu(activation):
            return layer.fused(x, "gelu", residual)
        if is_plain(activation, nn.ReLU):
            return layer.fused(x, "relu", residual)
    y = _product(layer, x)
    if activation is not None:
        y = activation(y)
    return y if residual is None else residual + y


class _Packed(nn.Module):
    """Weights that do not change any more, kept in oneDNN's layout for each dtype that was used."""

    signature: str
    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._packed: dict[torch.dtype, tuple[Any, Tensor, Tensor | None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}  # opaque tensors can neither be copied nor pickled

    def _for_input(self, x: Tensor) -> tuple[Any, Tensor, Any, Tensor | None] | None:
        """Operator, input, weight and bias of oneDNN's call; None where PyTorch's own layer is used."""
        if not inference_on_cpu(x) or self.weight.is_inference():  # inference tensors do not count their changes
            return None
        operator, autocast = _onednn(self.signature), torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        if operator is None or not _dtype_supported(dtype) or not (autocast or dtype == self.weight.dtype):
            return None
        # buffers may still be replaced or rewritten: load_state_dict, .to()
        state = (self.weight.data_ptr(), self.weight._version, None if self.bias is None else self.bias._version)
        entry = self._packed.get(dtype)
        if entry is None or entry[0] != state:
            bias = None if self.bias is None else self.bias.to(dtype)
            entry = self._packed[dtype] = (state, self._pack(self.weight.to(dtype)), bias)
        return operator, x.to(dtype), *entry[1:]

    def _pack(self, weight: Tensor) -> Tensor:
        raise NotImplementedError


class PackedLinear(_Packed):
    """One or several linear layers over the same input, side by side, for inference."""

    signature = _LINEAR

    def __init__(self, *layers: nn.Linear) -> None:
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        super().__init__(torch.cat([layer.weight for layer in layers]), bias)
        self.out_features: int = self.weight.shape[0]
        self.in_features: int = self.weight.shape[1]

    def _pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x)

    def fused(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        """The product, behind it an activation (None, "gelu": exact, or "relu"), then a residual to be added."""
        packed = self._for_input(x) if x.dim() > 1 else None
        if packed is None:
            y = F.linear(x, self.weight, self.bias)
            if activation is not None:
                y = F.gelu(y) if activation == "gelu" else F.relu(y)
        else:
            operator, x, weight, bias = packed
            if activation is None and residual is not None and residual.dtype == x.dtype:
                return operator.binary(x, residual.contiguous(), weight, bias, "add")
            name, algorithm = ACTIVATIONS[activation]
            y = operator(x, weight, bias, name, [], algorithm)
        return y if residual is None else residual + y


def joinable(*layers: nn.Module) -> bool:
    """Whether `PackedLinear` gives what these layers give one by one."""
    first = layers[0]
    return all(
        is_plain(layer, nn.Linear)
        and layer.weight.dtype == first.weight.dtype
        and (layer.bias is None) == (first.bias is None)
        for layer in layers
    )


class PackedConv2d(_Packed):
    """A convolution for inference."""

    signature = _CONVOLUTION

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer.weight, layer.bias)
        self.in_channels, self.out_channels, self.kernel_size = layer.in_channels, layer.out_channels, layer.kernel_size
        self.padding, self.stride, self.dilation, self.groups = (
            layer.padding,
            layer.stride,
            layer.dilation,
            layer.groups,
        )

    def _pack(self, weight: Tensor) -> Tensor:
        window = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *window)

    def forward(self, x: Tensor) -> Tensor:
        packed = self._for_input(x)
        if packed is None:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        operator, x, weight, bias = packed
        return operator(x, weight, bias, self.padding, self.stride, self.dilation, self.groups, "none", [], "")
