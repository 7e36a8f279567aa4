"""Small parts of InternImage: norms between memory layouts, activation, MLP, stem, downsampling.

InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions, arXiv 2211.05778.
Released code MIT; this file is written anew and keeps only the parameter names of the released checkpoints.

The trunk is channels-last (NHWC). A convolution sees the same memory through a permuted view, which PyTorch
recognises as its `channels_last` format: no copy is made in either direction.

Shape legend: N images, H height, W width, C channels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...ops.norm import depthwise_norm, layer_norm
from ..cpu.linear import run_linear
from ..cpu.plain import inference_on_cpu, is_exact_gelu, is_plain

LAYER_NORM_EPS = 1e-6
ACTIVATIONS = {"GELU": nn.GELU, "SiLU": nn.SiLU, "ReLU": nn.ReLU}
NORMS = ("LN", "BN")


class ToChannelsLast(nn.Module):
    """[N, C, H, W] -> [N, H, W, C], a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class ToChannelsFirst(nn.Module):
    """[N, H, W, C] -> [N, C, H, W], a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


def build_activation(name: str) -> nn.Module:
    """Build one of the activations of the released models; raises ValueError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"act_layer={name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def build_norm(channels: int, norm_layer: str = "LN", *, source: str = "NHWC", target: str = "NHWC") -> nn.Sequential:
    """Build a norm that reads layout `source` and returns layout `target` ("NHWC" or "NCHW").

    The permutations are entries of the returned `nn.Sequential`, so that the norm's index, and with it the
    key in a checkpoint, is the published one: 0 where the source layout fits the norm already, else 1.
    """
    if norm_layer not in NORMS:
        raise ValueError(f"norm_layer={norm_layer!r}: choose one of {', '.join(NORMS)}")
    norm: nn.Module
    if norm_layer == "LN":
        native, norm = "NHWC", LayerNorm(channels, eps=LAYER_NORM_EPS)
    else:
        native, norm = "NCHW", nn.BatchNorm2d(channels)
    to_layout = {"NHWC": ToChannelsLast, "NCHW": ToChannelsFirst}
    parts: list[nn.Module] = [norm]
    if source != native:
        parts.insert(0, to_layout[native]())
    if target != native:
        parts.append(to_layout[target]())
    return nn.Sequential(*parts)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last axis, by a kernel for inference on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if inference_on_cpu(x) and self.takes(x.dtype):
            return layer_norm(x, self.weight, self.bias, self.eps)
        return super().forward(x)

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether the kernel does what PyTorch's norm does with inputs of this dtype."""
        if self.weight is None or self.bias is None or self.weight.dtype != self.bias.dtype:
            return False
        return self.weight.dtype == dtype or (self.weight.dtype == torch.float32 and dtype.itemsize == 2)

    def fused(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        """The norm, then exact GELU, then a residual added, in one pass; for inference where `norm_of` finds it."""
        if residual is None or residual.dtype == x.dtype:
            return layer_norm(x, self.weight, self.bias, self.eps, gelu=gelu, residual=residual)
        return residual + layer_norm(x, self.weight, self.bias, self.eps, gelu=gelu)


def norm_of(norm: nn.Module, x: Tensor) -> LayerNorm | None:
    """The LayerNorm in a norm of `build_norm` that may be computed in one pass with what stands around it, or None."""
    if not (inference_on_cpu(x) and is_plain(norm, nn.Sequential)):
        return None
    found: LayerNorm | None = None
    for part in cast(nn.Sequential, norm):
        if found is None and is_plain(part, LayerNorm) and part.takes(x.dtype):
            found = cast(LayerNorm, part)
        elif not is_plain(part, ToChannelsLast, ToChannelsFirst):
            return None
    return found


def norm_and_activate(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """A norm of `build_norm` and the activation behind it, in one pass where they are LayerNorm and GELU."""
    layer = norm_of(norm, x) if is_exact_gelu(act) else None
    if layer is None:
        return act(norm(x))
    for part in cast(nn.Sequential, norm):
        x = layer.fused(x, gelu=True) if part is layer else part(x)
    return x


class DepthwiseBranch(nn.Sequential):
    """Depthwise convolution, norm, activation: [N, H, W, C] -> [N, Ho, Wo, C]."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int,
        padding: int,
        norm_layer: str = "LN",
        act_layer: str = "GELU",
    ):
        super().__init__(
            nn.Conv2d(channels, channels, kernel_size, stride, padding, groups=channels),
            build_norm(channels, norm_layer, source="NCHW", target="NHWC"),
            build_activation(act_layer),
        )
        self.one_pass = norm_layer == "LN"

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, act = self
        scale = self._scale(x) if self.one_pass else None
        if scale is None:
            return norm_and_activate(norm, act, conv(x.permute(0, 3, 1, 2)))
        gelu = is_exact_gelu(act)
        y = depthwise_norm(
            x,
            conv.weight,
            conv.bias,
            scale.weight,
            scale.bias,
            scale.eps,
            gelu=gelu,
            stride=conv.stride[0],
            padding=conv.padding[0],
        )
        return y if gelu else act(y)

    def _scale(self, x: Tensor) -> LayerNorm | None:
        """The norm, where convolution and norm are what the kernel computes."""
        conv, norm = cast(nn.Conv2d, self[0]), self[1]
        if not is_plain(conv, nn.Conv2d) or conv.bias is None:
            return None
        if conv.weight.dtype != x.dtype and not torch.is_autocast_enabled("cpu"):
            return None
        window = (conv.groups, conv.padding_mode, *conv.dilation, conv.stride[1])
        if window != (conv.in_channels, "zeros", 1, 1, conv.stride[0]) or isinstance(conv.padding, str):
            return None
        return norm_of(norm, x)


class MLP(nn.Module):
    """Two linear layers with an activation between, over the last axis ([..., C] -> [..., C])."""

    def __init__(self, channels: int, hidden_channels: int, act_layer: str = "GELU", drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.act = build_activation(act_layer)
        self.fc2 = nn.Linear(hidden_channels, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(run_linear(self.fc2, self._hidden(x)))  # [..., C]

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual + self(x)``, without a pass over the map of its own where that can be."""
        if is_plain(self.drop, nn.Dropout) and not self.drop.training:
            return run_linear(self.fc2, self._hidden(x), residual=residual)
        return residual + self.drop(run_linear(self.fc2, self._hidden(x)))

    def _hidden(self, x: Tensor) -> Tensor:
        return self.drop(run_linear(self.fc1, x, self.act))  # [..., 4C]


class Stem(nn.Module):
    """Image [N, 3, H, W] -> tokens [N, H/4, W/4, C] by two 3x3 convolutions of stride 2."""

    def __init__(self, out_channels: int, in_channels: int = 3, act_layer: str = "GELU", norm_layer: str = "LN"):
        super().__init__()
        half = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, half, 3, stride=2, padding=1)
        self.norm1 = build_norm(half, norm_layer, source="NCHW", target="NCHW")
        self.act = build_activation(act_layer)
        self.conv2 = nn.Conv2d(half, out_channels, 3, stride=2, padding=1)
        self.norm2 = build_norm(out_channels, norm_layer, source="NCHW", target="NHWC")

    def forward(self, images: Tensor) -> Tensor:
        x = norm_and_activate(self.norm1, self.act, self.conv1(images))  # [N, C/2, H/2, W/2]
        return self.norm2(self.conv2(x))  # [N, H/4, W/4, C]


class Downsample(nn.Module):
    """[N, H, W, C] -> [N, H/2, W/2, 2C] by a 3x3 convolution of stride 2 without bias."""

    def __init__(self, channels: int, norm_layer: str = "LN"):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = build_norm(2 * channels, norm_layer, source="NCHW", target="NHWC")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)))
