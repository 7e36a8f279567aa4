"""DCNv4 under the names and signatures of the DCNv4 repository: layer, function, and FlashDeformAttn.

    from DCNv4 import DCNv4                          ->  from drivestack.compat.dcnv4 import DCNv4
    from DCNv4.functions import DCNv4Function        ->  from drivestack.compat.dcnv4 import DCNv4Function

Source: Efficient Deformable ConvNets, arXiv 2401.06197; the signatures are those of github.com/OpenGVLab/DCNv4 (MIT),
the code is our own. Differences are listed in docs/compat.md.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone.cpu.linear import run_linear
from ..backbone.internimage.dcnv3_layer import at_window_centres, depthwise_padding
from ..ops import dcnv4, ms_deform_attn, packed_width
from .ms_deform_attn import MSDeformAttn
from .windows import keyword_arguments


class DCNv4Function:
    """Replaces upstream's autograd function; the gradients come with the operator."""

    @staticmethod
    def apply(
        input: Tensor,
        offset_mask: Tensor,
        kernel_h: int,
        kernel_w: int,
        stride_h: int,
        stride_w: int,
        pad_h: int,
        pad_w: int,
        dilation_h: int,
        dilation_w: int,
        group: int,
        group_channels: int,
        offset_scale: float,
        im2col_step: int = 256,
        remove_center: bool | int = False,
    ) -> Tensor:
        """[N, H, W, C] and packed offsets and weights [N, Ho, Wo, P] -> [N, Ho, Wo, C].

        The last axis of `offset_mask` holds for each group 2 K offsets (dx, dy per tap), then K weights (no softmax),
        and may be padded (upstream: to a multiple of 8). `im2col_step` changes no number and is ignored.

        Raises:
            ValueError: shapes that do not fit. TypeError: dtypes that do not.
        """
        sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
        options = keyword_arguments(input, sizes, group, group_channels, offset_scale, remove_center)
        return dcnv4(input, offset_mask, **options)


class DCNv4(nn.Module):
    """Upstream's layer over tokens, [N, H * W, C] -> [N, Ho * Wo, C].

    Offsets and weights are predicted once per output pixel (upstream: per input pixel, so that only stride 1 with the
    padding that keeps H and W works).

    Args:
        channels: C, a multiple of `group`; any channels per group and any kernel (upstream: multiples of 16, 8 or 9
            taps).
        kernel_size, stride, pad, dilation, group, offset_scale, remove_center: of the operator.
        dw_kernel_size: side of a depthwise convolution in front of the offsets; None: straight from the input.
        center_feature_scale: blend each output with the value at its window's centre by a learned gate per group.
        output_bias: of the output projection.
        without_pointwise: no input and output projections.

    Raises:
        ValueError: for arguments that do not fit each other. TypeError: for unknown arguments (upstream drops them).
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
    ) -> None:
        super().__init__()
        if group < 1 or channels % group:
            raise ValueError(f"channels={channels} is not a multiple of group={group}")
        if remove_center and kernel_size % 2 == 0:
            raise ValueError(f"remove_center needs an odd kernel_size, got {kernel_size}")
        self.channels, self.group, self.group_channels = channels, group, channels // group
        self.kernel_size, self.stride, self.pad, self.dilation = kernel_size, stride, pad, dilation
        self.offset_scale = offset_scale
        self.dw_kernel_size = dw_kernel_size
        self.center_feature_scale = center_feature_scale
        self.remove_center = int(remove_center)
        self.without_pointwise = without_pointwise
        self.dw_crop = 0
        if dw_kernel_size is not None:
            dw_pad = depthwise_padding(dw_kernel_size, kernel_size, pad, dilation)
            self.dw_crop = max(-dw_pad, 0)
            self.offset_mask_dw = nn.Conv2d(channels, channels, dw_kernel_size, stride, max(dw_pad, 0), groups=channels)
        self.offset_mask = nn.Linear(channels, packed_width(group, kernel_size, bool(remove_center)))
        if not without_pointwise:
            self.value_proj = nn.Linear(channels, channels)
            self.output_proj = nn.Linear(channels, channels, bias=output_bias)
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero offsets and weights (so the fresh layer gives its output bias), xavier projections."""
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)
        if not self.without_pointwise:
            for projection in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(projection.weight)
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)

    def _guide(self, x: Tensor) -> Tensor:
        """The features that offsets and weights are predicted from, [N, Ho, Wo, C], of the input [N, H, W, C]."""
        if self.dw_kernel_size is None:
            return at_window_centres(x, self.kernel_size, self.stride, self.pad, self.dilation)
        seen = x[:, self.dw_crop : -self.dw_crop, self.dw_crop : -self.dw_crop] if self.dw_crop else x
        return self.offset_mask_dw(seen.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """``input`` [N, H * W, C], ``shape`` (H, W); without it the map is square. Returns [N, Ho * Wo, C]."""
        n, tokens, _ = input.shape
        side = math.isqrt(tokens)
        height, width = (side, side) if shape is None else shape
        if height * width != tokens:
            raise ValueError(f"{tokens} tokens are not a map of {height} x {width}; give shape=(H, W)")
        image = input.reshape(n, height, width, self.channels)
        value = image if self.without_pointwise else run_linear(self.value_proj, image)
        y = dcnv4(
            value,
            run_linear(self.offset_mask, self._guide(image)),
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.pad,
            dilation=self.dilation,
            groups=self.group,
            offset_scale=self.offset_scale,
            remove_center=bool(self.remove_center),
        )  # [N, Ho, Wo, C]
        if self.center_feature_scale:
            gate = F.linear(y, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias).sigmoid()
            gate = gate.to(y.dtype).repeat_interleave(self.group_channels, -1)
            y = torch.lerp(y, at_window_centres(value, self.kernel_size, self.stride, self.pad, self.dilation), gate)
        y = y.flatten(1, 2)
        return y if self.without_pointwise else run_linear(self.output_proj, y)


class FlashDeformAttnFunction:
    """Replaces upstream's autograd function; the gradients come with the operator."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_loc_attn: Tensor,
        im2col_step: int = 64,
        K: int = 8,
    ) -> Tensor:
        """``value`` [B, S, M, D], ``sampling_loc_attn`` [B, Q, M, 3 * L * K] -> [B, Q, M * D].

        The packed axis holds L * K locations (x, y) in [0, 1], then L * K logits, whose softmax is taken over all of
        them. Locations are read in the dtype they come in, at least float32 inside; pass float32 (upstream's layer
        rounds them to half precision). `value_level_start_index` is implied by the shapes; neither it nor
        `im2col_step` is read.
        """
        levels = len(value_spatial_shapes)
        samples, rest = divmod(sampling_loc_attn.shape[-1], 3)
        if rest or samples != levels * K:
            raise ValueError(
                f"the last axis of sampling_loc_attn has {sampling_loc_attn.shape[-1]} numbers, not "
                f"3 * levels * K = 3 * {levels} * {K}"
            )
        locations, logits = sampling_loc_attn.split((2 * samples, samples), -1)
        weights = logits.float().softmax(-1) if logits.dtype != torch.float64 else logits.softmax(-1)
        return ms_deform_attn(
            value, value_spatial_shapes, locations.unflatten(-1, (levels, K, 2)), weights.unflatten(-1, (levels, K))
        )


class FlashDeformAttn(MSDeformAttn):
    """Upstream's layer: the arguments, state-dict names and numbers of `MSDeformAttn`, whose class it therefore is."""
