"""From a BEV map to voxel logits, as the occupancy challenge's baseline has it: three trunks and a predictor.

Source: the CVPR 2023 occupancy challenge's baseline, as InternImage ships it. Its
published models use the 3D trunk. The other two come out of upstream's code with x and y exchanged against the labels;
here they are right, and ``transposed`` gives upstream's order, for weights that were trained so
(docs/quirks.md#x-and-y-of-voxels-exchanged).

Shapes: B batch, C channels, X, Y, Z voxels of the EGO frame, D features of a voxel, K classes.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ...core.errors import ConfigError

TRUNKS = ("conv3d", "conv2d", "mlp")


def _block(dimensions: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """3 x 3 (x 3) convolution, batch norm, ReLU under the keys ``conv`` and ``bn``."""
    conv, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dimensions - 2]
    layers = {"conv": conv(in_channels, out_channels, 3, padding=1, bias=False), "bn": norm(out_channels)}
    return nn.Sequential(OrderedDict(layers, relu=nn.ReLU(inplace=True)))


class Conv3dTrunk(nn.Sequential):
    """The channels are split into Z layers of C / Z channels each, and convolved in 3D."""

    def __init__(self, channels: int, num_z: int, out_dim: int) -> None:
        super().__init__(_block(3, channels // num_z, out_dim), _block(3, out_dim, out_dim))
        self.num_z = num_z

    def forward(self, bev: Tensor) -> Tensor:
        """[B, C, Y, X] -> [B, X, Y, Z, D]"""
        volume = bev.unflatten(1, (-1, self.num_z))  # [B, C / Z, Z, Y, X]
        for block in self:
            volume = block(volume)
        return volume.permute(0, 4, 3, 2, 1)


class Conv2dTrunk(nn.Sequential):
    """Convolved in 2D to twice the channels, which are then split into Z layers."""

    def __init__(self, channels: int, num_z: int, transposed: bool = False) -> None:
        super().__init__(_block(2, channels, channels), _block(2, channels, 2 * channels))
        self.num_z, self.transposed = num_z, transposed

    def forward(self, bev: Tensor) -> Tensor:
        """[B, C, Y, X] -> [B, X, Y, Z, D], or [B, Y, X, Z, D] where ``transposed``."""
        for block in self:
            bev = block(bev)
        volume = bev.unflatten(1, (-1, self.num_z)).permute(0, 4, 3, 2, 1)  # [B, X, Y, Z, D]
        return volume.transpose(1, 2) if self.transposed else volume


class MlpTrunk(nn.Sequential):
    """Each column by itself: two linear layers, then split into Z layers."""

    def __init__(self, channels: int, num_z: int, transposed: bool = False) -> None:
        super().__init__(nn.Linear(channels, 2 * channels), nn.Softplus(), nn.Linear(2 * channels, 2 * channels))
        self.num_z, self.transposed = num_z, transposed

    def forward(self, bev: Tensor) -> Tensor:
        """[B, C, Y, X] -> [B, X, Y, Z, D], or [B, Y, X, Z, D] where ``transposed``."""
        columns = super().forward(bev.permute(0, 2, 3, 1))  # [B, Y, X, Z * D]: unlike above, D runs fastest
        volume = columns.unflatten(-1, (self.num_z, -1))
        return volume if self.transposed else volume.transpose(1, 2)


def voxel_trunk(kind: str, channels: int, num_z: int, out_dim: int, transposed: bool = False) -> nn.Sequential:
    """The trunk of a kind (of TRUNKS). Raises ConfigError for another kind, and for sizes that do not divide."""
    if kind not in TRUNKS:
        raise ConfigError(f"no voxel decoder {kind!r}: choose one of {', '.join(TRUNKS)}")
    if channels % num_z:
        raise ConfigError(f"{channels} channels of the BEV map cannot be split into {num_z} layers")
    if kind == "conv3d":
        if transposed:
            raise ConfigError("the 3D trunk's axes are right upstream too: transposed is for conv2d and mlp")
        return Conv3dTrunk(channels, num_z, out_dim)
    if out_dim != 2 * channels // num_z:
        raise ConfigError(f"the {kind} trunk gives {2 * channels // num_z} features per voxel, not out_dim {out_dim}")
    return (Conv2dTrunk if kind == "conv2d" else MlpTrunk)(channels, num_z, transposed)


def voxel_predictor(out_dim: int, num_classes: int) -> nn.Sequential:
    """Logits [..., K] of voxel features [..., D]."""
    return nn.Sequential(nn.Linear(out_dim, 2 * out_dim), nn.Softplus(), nn.Linear(2 * out_dim, num_classes))
