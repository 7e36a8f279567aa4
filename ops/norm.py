"""Layer norm and the depthwise convolution with norm and GELU, for inference on CPUs: what stands around DCNv3.

ATen takes one pass over the map for each of convolution, norm and activation, and its norm is slow where rows are
short. The kernels here make one pass. Where autograd, compilers or other devices are concerned, PyTorch's own operators
are the better choice: `backbone.internimage.layers` calls these for inference only.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch.backend import use_kernel
from .dispatch.library import count_flops, define, implement

_NORM = "Tensor weight, Tensor bias, float eps, bool gelu"
define("layer_norm", f"(Tensor x, {_NORM}, Tensor? residual) -> Tensor")
define("depthwise_norm", f"(Tensor x, Tensor kernel, Tensor kernel_bias, {_NORM}, int stride, int padding) -> Tensor")


def layer_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool, residual: Tensor | None = None
) -> Tensor:
    """Reference implementation of `layer_norm`."""
    y = F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)
    y = F.gelu(y) if gelu else y
    return y if residual is None else residual + y


def depthwise_norm_reference(
    x: Tensor,
    kernel: Tensor,
    kernel_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    gelu: bool,
    stride: int,
    padding: int,
) -> Tensor:
    """Reference implementation of `depthwise_norm`."""
    image = x.permute(0, 3, 1, 2)
    y = F.conv2d(image, kernel.to(x.dtype), kernel_bias.to(x.dtype), stride, padding, groups=x.shape[3])
    return layer_norm_reference(y.permute(0, 2, 3, 1).contiguous(), weight, bias, eps, gelu)


def _depthwise_shape(x: Tensor, kernel: Tensor, stride: int, padding: int) -> tuple[int, ...]:
    n, height, width, channels = x.shape
    rows, columns = ((size + 2 * padding - kernel.shape[-1]) // stride + 1 for size in (height, width))
    return n, rows, columns, channels


def _depthwise_flops(x: Tensor, kernel: Tensor, *rest: Any) -> int:
    return 2 * math.prod(_depthwise_shape(x, kernel, *rest[-2:])) * kernel[0].numel()


def _layer_norm_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _depthwise_norm_fake(
    x: Tensor,
    kernel: Tensor,
    kernel_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    gelu: bool,
    stride: int,
    padding: int,
) -> Tensor:
    return x.new_empty(_depthwise_shape(x, kernel, stride, padding))


for _name, _reference in (("layer_norm", layer_norm_reference), ("depthwise_norm", depthwise_norm_reference)):
    implement(_name, "CompositeExplicitAutograd", _reference)
implement("layer_norm", "fake", _layer_norm_fake)
implement("depthwise_norm", "fake", _depthwise_norm_fake)
count_flops("layer_norm", lambda *_: 0)  # as PyTorch counts its own
count_flops("depthwise_norm", _depthwise_flops)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Layer norm over the last axis of x [..., C], then GELU and optionally the residual [..., C] added. No gradient.

    float32, bfloat16 and float16, sums in float32, the result in the dtype of x; weight and bias [C] may be float32
    beside half precision. float64 goes to PyTorch.

    Raises:
        ValueError: parameters that do not fit. BackendUnavailableError: see `drivestack.ops.dcnv3`.
    """
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(f"layer_norm: weight {list(weight.shape)}, bias {list(bias.shape)} for x {list(x.shape)}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"layer_norm: residual {residual.dtype} {list(residual.shape)} for x {x.dtype} {list(x.shape)}"
        )
    if x.dtype == torch.float64 or x.device.type != "cpu" or not use_kernel("layer_norm", backend, "cpu"):
        return layer_norm_reference(x, weight, bias, eps, gelu, residual)
    return torch.ops.drivestack.layer_norm(x, weight, bias, eps, gelu, residual)


def depthwise_norm(
    x: Tensor,
    kernel: Tensor,
    kernel_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    gelu: bool = False,
    stride: int = 1,
    padding: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Depthwise convolution of x [N, H, W, C] by kernel [C, 1, K, K] and bias [C], then `layer_norm`. No gradient.

    Returns [N, Ho, Wo, C], the size an ordinary convolution gives; padding is less than K. dtypes as `layer_norm`.

    Raises:
        ValueError: shapes that do not fit. BackendUnavailableError: see `drivestack.ops.dcnv3`.
    """
    channels, side = x.shape[-1], kernel.shape[-1]
    fits = x.dim() == 4 and kernel.shape == (channels, 1, side, side) and 0 <= padding < side
    if not fits or any(p.shape != (channels,) for p in (kernel_bias, weight, bias)):
        raise ValueError(
            f"depthwise_norm: kernel {list(kernel.shape)} with bias {list(kernel_bias.shape)}, padding {padding}, norm "
            f"{list(weight.shape)}, {list(bias.shape)} do not fit x {list(x.shape)}"
        )
    arguments = (x, kernel, kernel_bias, weight, bias, eps, gelu, stride, padding)
    if x.dtype == torch.float64 or x.device.type != "cpu" or not use_kernel("depthwise_norm", backend, "cpu"):
        return depthwise_norm_reference(*arguments)
    return torch.ops.drivestack.depthwise_norm(*arguments)
