"""The DCNv3 layer: projections, offset and mask branches around the operator `ops.dcnv3`.

InternImage, arXiv 2211.05778, section 3.1. Released code MIT; written anew with the released parameter names.

Shape legend: N images, H height, W width, C channels, G groups, K taps of the kernel (without a removed centre).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import dcnv3
from ..cpu.linear import PackedLinear, joinable, run_linear
from .layers import DepthwiseBranch


def depthwise_padding(dw_kernel_size: int, kernel_size: int, pad: int, dilation: int) -> int:
    """Padding that centres a depthwise kernel on the operator's window, so that both give maps of the same size.

    Negative: the border of the image is to be cropped. Raises ValueError where the two have no common centre.
    """
    window = dilation * (kernel_size - 1) + 1
    if (dw_kernel_size - window) % 2:
        raise ValueError(
            f"dw_kernel_size={dw_kernel_size} cannot be centred on a window of {window} pixels "
            f"(kernel_size={kernel_size}, dilation={dilation}): both must be odd or both even"
        )
    return pad + (dw_kernel_size - window) // 2


def at_window_centres(x: Tensor, kernel_size: int, stride: int, pad: int, dilation: int) -> Tensor:
    """Pixels of x [N, H, W, C] at the centres of the operator's windows [N, Ho, Wo, C], zero outside the image."""
    reach = dilation * (kernel_size - 1)
    before, after = pad - reach // 2, pad - (reach - reach // 2)
    if before or after:
        x = F.pad(x, (0, 0, before, after, before, after))  # negative: cropped
    return x[:, ::stride, ::stride] if stride > 1 else x


class DCNv3(nn.Module):
    """Deformable convolution v3 as a layer, [N, H, W, C] -> [N, Ho, Wo, C], Ho and Wo as of a convolution.

    Offsets and masks are predicted from a depthwise convolution of the input. It moves with the window of the operator
    (the same stride, padded so that its centre lies on the window's centre), so there is one prediction per output
    pixel. Upstream predicts at every input pixel (docs/quirks.md#offsets-per-input-pixel).

    Args:
        channels: C, a multiple of `group`.
        kernel_size: side of the deformable kernel.
        dw_kernel_size: side of the depthwise kernel in front of the offset and mask branches; None takes
            `kernel_size`. Odd, unless the window (dilation * (kernel_size - 1) + 1 pixels) is even too.
        stride, pad, dilation: as for a convolution; `pad=None` takes dilation * (kernel_size - 1) // 2, which keeps
            H and W at stride 1 (odd window).
        group: G; the channels of a group share sampling locations and masks.
        offset_scale: multiplies offsets and the regular grid alike.
        act_layer, norm_layer: of the depthwise branch, see `layers`.
        center_feature_scale: blend each output with the value at its centre by a learned gate per group (H, G).
        remove_center: leave the central tap out (odd kernels only).

    Raises:
        ValueError: for arguments that do not fit each other.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int | None = None,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ):
        super().__init__()
        if group < 1 or channels % group:
            raise ValueError(f"channels={channels} is not a multiple of group={group}")
        if remove_center and kernel_size % 2 == 0:
            raise ValueError(f"remove_center needs an odd kernel_size, got {kernel_size}")
        pad = dilation * (kernel_size - 1) // 2 if pad is None else pad
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        dw_pad = depthwise_padding(dw_kernel_size, kernel_size, pad, dilation)

        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.pad = pad
        self.dilation = dilation
        self.group = group
        self.offset_scale = offset_scale
        self.remove_center = remove_center
        self.num_taps = kernel_size * kernel_size - int(remove_center)
        self.dw_crop = max(-dw_pad, 0)

        # Bare parameters, and first: so they stand in the released checkpoints.
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))
        self.center_feature_scale = center_feature_scale
        self.dw_conv = DepthwiseBranch(channels, dw_kernel_size, stride, max(dw_pad, 0), norm_layer, act_layer)
        self.offset = nn.Linear(channels, group * self.num_taps * 2)
        self.mask = nn.Linear(channels, group * self.num_taps)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.offset_mask: PackedLinear | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero offsets and equal masks: the fresh layer averages a box between two xavier projections."""
        for branch in (self.offset, self.mask):
            nn.init.zeros_(branch.weight)
            nn.init.zeros_(branch.bias)
        for projection in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def join_projections(self) -> None:
        """For inference, see `prepare_inference`: one product gives offsets and masks, read in place."""
        if self.offset_mask is None and joinable(self.offset, self.mask):
            self.offset_mask = PackedLinear(self.offset, self.mask)
            del self.offset, self.mask

    def _offsets_and_logits(self, guide: Tensor) -> tuple[Tensor, Tensor]:
        """[N, Ho, Wo, G*K*2] in pixels and [N, Ho, Wo, G*K] before the softmax."""
        if self.offset_mask is None:
            return run_linear(self.offset, guide), run_linear(self.mask, guide)
        taps = self.group * self.num_taps
        return run_linear(self.offset_mask, guide).split((2 * taps, taps), -1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> [N, Ho, Wo, C]."""
        return run_linear(self.output_proj, self._aggregate(x))

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual + self(x)``, without a pass over the map of its own where that can be."""
        return run_linear(self.output_proj, self._aggregate(x), residual=residual)

    def _aggregate(self, x: Tensor) -> Tensor:
        """What the output projection gets, [N, Ho, Wo, C]."""
        value = run_linear(self.input_proj, x)  # [N, H, W, C]
        seen = x[:, self.dw_crop : -self.dw_crop, self.dw_crop : -self.dw_crop] if self.dw_crop else x
        guide = self.dw_conv(seen)  # [N, Ho, Wo, C]
        offset, logits = self._offsets_and_logits(guide)
        y = dcnv3(
            value,
            offset,
            logits,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.pad,
            dilation=self.dilation,
            groups=self.group,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
            mask_softmax=True,
        )
        if self.center_feature_scale:
            gate = F.linear(guide, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias)
            gate = gate.sigmoid().unsqueeze(-1)  # [N, Ho, Wo, G, 1]
            grouped = (*guide.shape[:3], self.group, -1)
            centre = at_window_centres(value, self.kernel_size, self.stride, self.pad, self.dilation).reshape(grouped)
            y = torch.lerp(y.view(grouped), centre, gate.to(y.dtype)).flatten(3)
        return y
