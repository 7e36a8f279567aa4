"""What `operators.py` compares with: the original projects' PyTorch formulations, and libraries where installed.

The formulations are written here from their published description: normalised sampling grids and grid_sample. They
compute in float32 at least, as the originals do under autocast, and return value's dtype. Every function takes the
tensors of `cases.py`; what a library wants otherwise (layout, order of taps) is converted inside and so timed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from cases import level_sizes, ours
from torch import Tensor

Function = Callable[..., Tensor]


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors)


# --- the original formulations ----------------------------------------------------------------------------------------


def upstream_dcnv3(value: Tensor, offset: Tensor, mask: Tensor, *, groups: int, offset_scale: float = 1.0) -> Tensor:
    """InternImage's DCNv3, 3 x 3, stride 1, padding 1: pad, reference points and tap grid as fractions of the padded
    image, one NCHW grid_sample over all taps, product with the mask, sum over the taps."""
    dtype = value.dtype
    value, offset, mask = at_least_float32(value, offset, mask)
    n, height, width, channels = value.shape
    k = 9
    value = F.pad(value, (0, 0, 1, 1, 1, 1))
    padded_h, padded_w = height + 2, width + 2
    options = {"dtype": offset.dtype, "device": offset.device}
    y, x = torch.meshgrid(
        torch.linspace(1.5, height + 0.5, height, **options),
        torch.linspace(1.5, width + 0.5, width, **options),
        indexing="ij",
    )
    reference = torch.stack((x / padded_w, y / padded_h), -1).view(1, height, width, 1, 2)
    tap_x, tap_y = torch.meshgrid(
        torch.linspace(-1, 1, 3, **options), torch.linspace(-1, 1, 3, **options), indexing="ij"
    )
    taps = torch.stack((tap_x / padded_w, tap_y / padded_h), -1).view(k, 2)  # column by column
    size = torch.tensor([padded_w, padded_h], **options).repeat(groups * k)
    centres = (reference + offset_scale * taps.repeat(groups, 1)).repeat(n, 1, 1, 1, 1).flatten(3)
    grid = 2 * (centres + offset * offset_scale / size) - 1  # [N, H, W, G * K * 2]
    image = value.view(n, padded_h * padded_w, channels).transpose(1, 2)
    image = image.reshape(n * groups, channels // groups, padded_h, padded_w)
    grid = grid.view(n, height * width, groups, k, 2).transpose(1, 2).flatten(0, 1)
    sample = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)  # [NG, D, HW, K]
    weight = mask.view(n, height * width, groups, k).transpose(1, 2).reshape(n * groups, 1, height * width, k)
    out = (sample * weight).sum(-1).view(n, channels, height * width)
    return out.transpose(1, 2).reshape(n, height, width, channels).contiguous().to(dtype)


def upstream_dcnv3_softmax(value: Tensor, offset: Tensor, mask: Tensor, *, groups: int) -> Tensor:
    """The softmax over the taps is the layer's: in float32, then back to value's dtype."""
    mask = mask.unflatten(-1, (groups, 9)).softmax(-1, torch.promote_types(mask.dtype, torch.float32))
    return upstream_dcnv3(value, offset, mask.flatten(-2).to(value.dtype), groups=groups)


def upstream_dcnv4(value: Tensor, packed: Tensor, *, groups: int) -> Tensor:
    """The same from DCNv4's packed tensor, which is taken apart first."""
    n, height, width, _ = value.shape
    packed = packed[..., : groups * 27].view(n, height, width, groups, 27)
    offset, mask = packed[..., :18].flatten(-2), packed[..., 18:].flatten(-2)
    return upstream_dcnv3(value, offset, mask, groups=groups)


def upstream_attention(value: Tensor, locations: Tensor, weights: Tensor, *, shapes: Sequence) -> Tensor:
    """Deformable DETR's and mmcv's multi-scale deformable attention: one grid_sample per level, stacked."""
    dtype = value.dtype
    value, locations, weights = at_least_float32(value, locations, weights)
    b, _, m, d = value.shape
    q, levels, points = locations.shape[1], *locations.shape[3:5]
    grids = 2 * locations - 1
    samples = []
    for level, tokens in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        image = tokens.flatten(2).transpose(1, 2).reshape(b * m, d, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [BM, Q, P, 2]
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(b * m, 1, q, levels * points)
    out = (torch.stack(samples, -2).flatten(-2) * weights).sum(-1)  # [BM, D, Q]
    return out.view(b, m * d, q).transpose(1, 2).contiguous().to(dtype)


def upstream_locations(reference: Tensor, offsets: Tensor, shapes: Sequence) -> Tensor:
    """reference [B, Q, L or 1, R, 2], offsets [B, Q, M, L, P, 2] in cells: fractions of each level's image."""
    offsets = offsets / level_sizes(shapes, dtype=offsets.dtype, device=offsets.device)
    offsets = offsets.unflatten(4, (-1, reference.shape[3]))  # [B, Q, M, L, P / R, R, 2]
    return (reference[:, :, None, :, None] + offsets).flatten(4, 5)


def upstream_fused(
    value: Tensor, offsets: Tensor, logits: Tensor, *, shapes: Sequence, reference: Tensor, level_mean: bool
) -> Tensor:
    """Softmax, locations, attention. With level_mean (BEVFormer's temporal attention, maps of one size) the maps become
    the batch and the answers are averaged."""
    dtype = value.dtype
    value, offsets, logits = at_least_float32(value, offsets, logits)
    if not level_mean:
        weights = logits.flatten(3).softmax(-1).view(logits.shape)
        locations = upstream_locations(reference, offsets, shapes)
        return upstream_attention(value, locations, weights, shapes=shapes).to(dtype)
    b, q, m, levels, points = logits.shape
    maps = value.unflatten(1, (levels, -1)).flatten(0, 1)  # [B * L, S / L, M, D]
    weights = logits.softmax(-1).permute(0, 3, 1, 2, 4).reshape(b * levels, q, m, 1, points)
    offsets = offsets.permute(0, 3, 1, 2, 4, 5).reshape(b * levels, q, m, 1, points, 2)
    reference = reference.expand(b, q, levels, -1, 2).transpose(1, 2).reshape(b * levels, q, 1, -1, 2)
    locations = upstream_locations(reference, offsets, shapes[:1])
    out = upstream_attention(maps, locations, weights, shapes=shapes[:1])
    return out.view(b, levels, q, -1).mean(1).to(dtype)


def upstream_cross_attention(
    value: Tensor,
    *tensors: Tensor,
    shapes: Sequence,
    reference: Tensor,
    visible: Tensor,
    project: bool,
) -> Tensor:
    """BEVFormer's spatial cross-attention: per camera the list of queries it sees, padded to the longest list; offsets
    and weights (by GEMMs where `project`), attention, scatter to the BEV, mean over the cameras that see a cell."""
    dtype = value.dtype
    per_query = tensors[:1] if project else tensors  # the query, or its offsets and logits
    batch, cameras, _, m, d = value.shape
    lists = [[visible[b, i].nonzero().squeeze(-1) for i in range(cameras)] for b in range(batch)]
    longest = max(len(ids) for row in lists for ids in row)
    rebatched = [t.new_zeros(batch, cameras, longest, *t.shape[2:]) for t in per_query]
    anchors = reference.new_zeros(batch, cameras, longest, *reference.shape[3:])
    for b, row in enumerate(lists):
        for i, ids in enumerate(row):
            anchors[b, i, : len(ids)] = reference[b, i, ids]
            for target, t in zip(rebatched, per_query):
                target[b, i, : len(ids)] = t[b, ids]
    rebatched = [t.flatten(0, 1) for t in rebatched]
    if project:
        layout = (batch * cameras, longest, m, len(shapes), -1)
        offsets = F.linear(rebatched[0], tensors[1], tensors[2]).view(*layout, 2)
        logits = F.linear(rebatched[0], tensors[3], tensors[4]).view(layout)
    else:
        offsets, logits = rebatched
    value, offsets, logits = at_least_float32(value, offsets, logits)
    weights = logits.flatten(3).softmax(-1).view(logits.shape)
    locations = upstream_locations(anchors.flatten(0, 1)[:, :, None], offsets, shapes)
    answers = upstream_attention(value.flatten(0, 1), locations, weights, shapes=shapes)
    answers = answers.view(batch, cameras, longest, m * d)
    slots = value.new_zeros(batch, visible.shape[2], m * d)
    for b, row in enumerate(lists):
        for i, ids in enumerate(row):
            slots[b, ids] += answers[b, i, : len(ids)]
    return (slots / visible.sum(1).clamp(min=1)[..., None]).to(dtype)


UPSTREAM: dict[str, Function] = {
    "dcnv3": upstream_dcnv3,
    "dcnv3_softmax": upstream_dcnv3_softmax,
    "dcnv4": upstream_dcnv4,
    "ms_deform_attn": upstream_attention,
    "ms_deform_attn_fused": upstream_fused,
    "spatial_cross_attention": partial(upstream_cross_attention, project=False),
    "spatial_cross_attention_whole": partial(upstream_cross_attention, project=True),
}


# --- libraries --------------------------------------------------------------------------------------------------------


def modulated_convolution(convolve: Function, value: Tensor, offset: Tensor, mask: Tensor, *, groups: int) -> Tensor:
    """DCNv3 as a DCNv2: a convolution whose groups are the offset groups and whose weight is the identity at every tap
    (the quickest of the three weights that do it). DCNv2 has NCHW, taps row by row, (dy, dx)."""
    dtype = value.dtype
    value, offset, mask = at_least_float32(value, offset, mask)
    n, height, width, channels = value.shape
    offset = offset.view(n, height, width, groups, 3, 3, 2).permute(0, 3, 5, 4, 6, 1, 2).flip(4)
    mask = mask.view(n, height, width, groups, 3, 3).permute(0, 3, 5, 4, 1, 2)
    d = channels // groups
    weight = torch.eye(d, dtype=value.dtype, device=value.device).repeat(groups, 1)
    weight = weight.view(channels, d, 1, 1).expand(-1, -1, 3, 3).contiguous()
    offset = offset.reshape(n, groups * 18, height, width)
    out = convolve(value.permute(0, 3, 1, 2).contiguous(), offset, mask.reshape(n, groups * 9, height, width), weight)
    return out.permute(0, 2, 3, 1).contiguous().to(dtype)


def load_torchvision(kind: str, device: str) -> Function | None:
    from torchvision.ops import deform_conv2d

    convolve = lambda value, offset, mask, weight: deform_conv2d(value, offset, weight, padding=1, mask=mask)
    return partial(modulated_convolution, convolve) if kind == "dcnv3" else None


def level_tensors(shapes: Sequence, device: torch.device) -> tuple[Tensor, Tensor]:
    """(height, width) and the first token of each level, as the CUDA extensions want them."""
    starts = [0, *accumulate(h * w for h, w in shapes)][:-1]
    return torch.tensor(shapes, device=device), torch.tensor(starts, device=device)


def load_mmcv(kind: str, device: str) -> Function | None:
    if kind == "dcnv3":
        from mmcv.ops import modulated_deform_conv2d

        def convolve(value: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
            groups = mask.shape[1] // 9
            return modulated_deform_conv2d(value, offset, mask, weight, None, 1, 1, 1, groups, groups)

        return partial(modulated_convolution, convolve)
    if kind != "ms_deform_attn":
        return None
    from mmcv.ops import multi_scale_deform_attn as mmcv_attention

    def run(value: Tensor, locations: Tensor, weights: Tensor, *, shapes: Sequence) -> Tensor:
        sizes, starts = level_tensors(shapes, value.device)
        if device == "cpu":  # the compiled operator is for CUDA
            return mmcv_attention.multi_scale_deformable_attn_pytorch(value, sizes, locations, weights)
        operator = mmcv_attention.MultiScaleDeformableAttnFunction
        return operator.apply(value, sizes, starts, locations, weights, value.shape[0])

    return run


def load_deformops(kind: str, device: str) -> Function | None:
    from deformops.registry import msda

    def run(value: Tensor, locations: Tensor, weights: Tensor, *, shapes: Sequence) -> Tensor:
        return msda(value, *level_tensors(shapes, value.device), locations, weights.to(value.dtype))

    return run if kind == "ms_deform_attn" else None


def load_hugging_face(kind: str, device: str) -> Function | None:
    """Downloads a compiled kernel from the Hugging Face hub, so it has to be named."""
    from kernels import get_kernel

    if kind != "ms_deform_attn" or device == "cpu":
        return None
    kernel = get_kernel("kernels-community/deformable-detr")

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, value: Tensor, sizes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
        ) -> Tensor:
            ctx.save_for_backward(value, sizes, starts, locations, weights)
            return kernel.ms_deform_attn_forward(value, sizes, starts, locations, weights, value.shape[0])

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            found = kernel.ms_deform_attn_backward(*saved, gradient.contiguous(), saved[0].shape[0])
            return found[0], None, None, found[1], found[2]

    def run(value: Tensor, locations: Tensor, weights: Tensor, *, shapes: Sequence) -> Tensor:
        sizes, starts = level_tensors(shapes, value.device)
        return Attention.apply(value, sizes, starts, locations.to(value.dtype), weights.to(value.dtype))

    return run


def load_compiled_reference(kind: str, device: str) -> Function | None:
    torch._dynamo.reset()  # one shape at a time: nothing is recompiled as dynamic
    return torch.compile(partial(ours, kind, backend="reference"), dynamic=False)


# key of --peers: (name in the table, how to get the function for a kind of call; None where it has no such operator)
PEERS: dict[str, tuple[str, Callable[[str, str], Function | None]]] = {
    "upstream": ("upstream formulation", lambda kind, device: UPSTREAM[kind]),
    "torchvision": ("torchvision deform_conv2d", load_torchvision),
    "mmcv": ("mmcv", load_mmcv),
    "deformops": ("deformops", load_deformops),
    "hf": ("Hugging Face kernel", load_hugging_face),
    "reference": ("reference", lambda kind, device: partial(ours, kind, backend="reference")),
    "compile": ("torch.compile of the reference", load_compiled_reference),
}
DEFAULT_PEERS = "upstream,torchvision,mmcv,deformops"
