"""Feature pyramid: Feature Pyramid Networks for Object Detection, arXiv 1612.03144; extra levels as in FCOS.

Parameter names are those of mmdet's FPN (Apache-2.0), in which the released detectors are stored; written anew.

Shape legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.registries import MODELS
from .features import FeatureInfo


class ConvModule(nn.Module):
    """A convolution under the key `conv`, as mmdet stores it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@MODELS.register_module()
class FPN(nn.Module):
    """Maps [N, C_i, H_i, W_i] of falling size -> `num_outs` maps [N, out_channels, H_i, W_i].

    Args:
        in_channels: channels of each input map, finest first.
        out_channels: channels of every output map.
        num_outs: number of output maps; those beyond the inputs halve the last one.
        start_level: first input map to use; finer ones are ignored.
        add_extra_convs: "on_output" makes extra maps by 3x3 convolutions of stride 2 on the previous output, False
            by taking every second pixel.
        relu_before_extra_convs: ReLU before each extra convolution but the first.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        start_level: int = 0,
        add_extra_convs: str | bool = False,
        relu_before_extra_convs: bool = False,
    ):
        super().__init__()
        used = len(in_channels) - start_level
        if used < 1 or num_outs < used:
            raise ValueError(
                f"in_channels={tuple(in_channels)}, start_level={start_level}, num_outs={num_outs}: need at least one "
                "input map and an output for each"
            )
        if add_extra_convs not in (False, "on_output"):
            raise ValueError(f"add_extra_convs={add_extra_convs!r}: choose False or 'on_output'")
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.start_level = start_level
        self.relu_before_extra_convs = relu_before_extra_convs
        self.lateral_convs = nn.ModuleList(ConvModule(c, out_channels, 1) for c in in_channels[start_level:])
        self.fpn_convs = nn.ModuleList(ConvModule(out_channels, out_channels, 3) for _ in range(used))
        if add_extra_convs:
            self.fpn_convs.extend(ConvModule(out_channels, out_channels, 3, stride=2) for _ in range(num_outs - used))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def output_info(self, inputs: Sequence[FeatureInfo]) -> tuple[FeatureInfo, ...]:
        """Channels and stride of each output map, given what the encoder publishes.

        Raises:
            ValueError: if the encoder's channels are not those this pyramid was built for.
        """
        channels = tuple(info.channels for info in inputs)
        if channels != self.in_channels:
            raise ValueError(f"the encoder gives maps of {channels} channels, FPN was built for {self.in_channels}")
        strides = [info.stride for info in inputs[self.start_level :]]
        while len(strides) < self.num_outs:
            strides.append(2 * strides[-1])
        return tuple(FeatureInfo(self.out_channels, stride) for stride in strides)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        if len(features) != len(self.in_channels):
            raise ValueError(f"FPN was built for {len(self.in_channels)} maps, got {len(features)}")
        merged = [conv(x) for conv, x in zip(self.lateral_convs, features[self.start_level :])]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, merged)]
        used = len(outputs)
        for i in range(used, self.num_outs):
            source = outputs[-1]
            if len(self.fpn_convs) == used:
                outputs.append(F.max_pool2d(source, 1, stride=2))
            else:
                outputs.append(
                    self.fpn_convs[i](source.relu() if self.relu_before_extra_convs and i > used else source)
                )
        return outputs
