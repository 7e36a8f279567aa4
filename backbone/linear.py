"""Linear layers and convolutions that take oneDNN's matrix products on CPUs where autograd is not asked for.

PyTorch sends float32 matrix products on x86 to MKL, which takes its AVX2 path on AMD processors: oneDNN does the same
in half the time there, and the same time on Intel's. It also fuses the activation, and keeps weights in its own layout
(`Packed*`, made by `inference.prepare_inference`), which saves a copy of all weights per call.
Elsewhere (training, other devices and dtypes, torch.compile, torch.export, tracing) these are PyTorch's own layers.
"""

from __future__ import annotations

import functools
import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
def _dtype_served(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def inference_on_cpu(x: Tensor) -> bool:
    """Whether operators without a gradient may take this input: an ordinary CPU tensor, no autograd, nobody tracing."""
    return (
        type(x) is Tensor
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _finish(x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
    if activation is not None:
        x = F.gelu(x) if activation == "gelu" else F.relu(x)
    return x if residual is None else residual + x


class Linear(nn.Linear):
    """`nn.Linear`, behind it an optional activation (None, "gelu": exact, or "relu") or a residual to be added."""

    def forward(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        weight = self.weight
        if x.dtype == torch.float32 == weight.dtype and inference_on_cpu(x) and not torch.is_autocast_enabled("cpu"):
            operator = _onednn(_LINEAR)
            if operator is not None and x.dim() > 1:
                # unpacked weights: oneDNN is slower with the activation fused than with one behind it
                return _finish(operator(x, weight, self.bias, "none", [], ""), activation, residual)
        return _finish(F.linear(x, weight, self.bias), activation, residual)


class _Packed(nn.Module):
    """Weights that do not change any more, kept in oneDNN's layout for each dtype that was asked for."""

    signature: str

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._packed: dict[torch.dtype, tuple[Any, Tensor, Tensor | None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}  # opaque tensors can neither be copied nor pickled

    def _for_input(self, x: Tensor) -> tuple[Any, Tensor, Any, Tensor | None] | None:
        """Operator, input, weight and bias of oneDNN's call; None where PyTorch's own layer has to serve."""
        if not inference_on_cpu(x):
            return None
        operator, autocast = _onednn(self.signature), torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        if operator is None or not _dtype_served(dtype) or not (autocast or dtype == self.weight.dtype):
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
        self.out_features, self.in_features = self.weight.shape

    def _pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def forward(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        packed = self._for_input(x) if x.dim() > 1 else None
        if packed is None:
            return _finish(F.linear(x, self.weight, self.bias), activation, residual)
        operator, x, weight, bias = packed
        if activation is None and residual is not None and residual.dtype == x.dtype:
            return operator.binary(x, residual.contiguous(), weight, bias, "add")
        name, algorithm = ACTIVATIONS[activation]
        return _finish(operator(x, weight, bias, name, [], algorithm), None, residual)


class PackedConv2d(_Packed):
    """A convolution for inference."""

    signature = _CONVOLUTION

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer.weight, layer.bias)
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
