"""The released InternImage classifier as its PyTorch code computes it, on the parameters of our model.

Written here from the published formulas: separate linear layers for offsets and masks, softmax over the taps, DCNv3 by
grid_sample, norm and activation as operators of their own; no kernel of ours and no oneDNN call that PyTorch would not
make by itself. It is the peer of `models.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from peers import upstream_dcnv3
from torch import Tensor, nn

from drivestack.backbone import DCNv3, InternImageClassifier


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _norm(parts: nn.Sequential, x: Tensor) -> Tensor:
    """Of an NHWC map."""
    norm = next(part for part in parts if isinstance(part, nn.LayerNorm))
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """NHWC to NHWC by views."""
    y = F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups)
    return y.permute(0, 2, 3, 1)


def _dcnv3(layer: DCNv3, x: Tensor) -> Tensor:
    n, height, width, _ = x.shape
    value = _linear(layer.input_proj, x)
    guide = F.gelu(_norm(layer.dw_conv[1], _convolution(layer.dw_conv[0], x)))
    offset = _linear(layer.offset, guide)
    mask = _linear(layer.mask, guide).view(n, height, width, layer.group, -1).softmax(-1).to(value.dtype)
    y = upstream_dcnv3(value, offset, mask.flatten(3), groups=layer.group, offset_scale=layer.offset_scale)
    return _linear(layer.output_proj, y)


def _mlp(layer: nn.Module, x: Tensor) -> Tensor:
    return _linear(layer.fc2, F.gelu(_linear(layer.fc1, x)))


def _block(block: nn.Module, x: Tensor) -> Tensor:
    branches = ((_dcnv3, block.dcn, block.norm1, block.gamma1), (_mlp, block.mlp, block.norm2, block.gamma2))
    for branch, layer, norm, gamma in branches:
        y = _norm(norm, branch(layer, x)) if block.post_norm else branch(layer, _norm(norm, x))
        x = x + (y if gamma is None else gamma * y)
    return x


def upstream_internimage(model: InternImageClassifier, images: Tensor) -> Tensor:
    """Logits of T, S, B, L and XL in evaluation mode: [N, 3, H, W] -> [N, classes]."""
    stem = model.patch_embed
    x = F.gelu(_norm(stem.norm1, _convolution(stem.conv1, images.permute(0, 2, 3, 1))))
    x = _norm(stem.norm2, _convolution(stem.conv2, x))
    for level in model.levels:
        for block in level.blocks:
            x = _block(block, x)
        if isinstance(level.norm, nn.Sequential):
            x = _norm(level.norm, x)
        if level.downsample is not None:
            x = _norm(level.downsample.norm, _convolution(level.downsample.conv, x))
    conv, norm, _ = model.conv_head
    y = F.gelu(norm(conv(x.permute(0, 3, 1, 2))))
    return _linear(model.head, y.mean((2, 3)))
