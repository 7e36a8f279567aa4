"""What one task adds to the shared BEV map before its head reads it.

Residual adapters (arXiv 1705.08045) of depthwise separable convolutions, 2 x (C * 9 + C * C + 2 C) parameters: 9.6 k
for 64 channels. A task can change the map for itself without changing it for the others.

Shapes: B batch, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn


class BevAdapter(nn.Module):
    """Maps [B, C, num_y, num_x] to the same plus ``num_blocks`` times a 1 x 1 convolution of ReLU of a depthwise 3 x 3.

    The 1 x 1 convolutions start at zero: a new adapter changes nothing, to the bit.
    """

    def __init__(self, channels: int, num_blocks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, channels, 1),
            )
            for _ in range(num_blocks)
        )
        self.init_weights()

    def init_weights(self) -> None:
        for block in self.blocks:
            for parameter in block[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, bev: Tensor) -> Tensor:
        for block in self.blocks:
            bev = bev + block(bev)
        return bev
