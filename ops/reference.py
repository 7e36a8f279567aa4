"""The operators in pure PyTorch: the exact mathematics, slowly. The fallback, and what tests compare with.

    DCNv3                          InternImage, arXiv 2211.05778 (the published formula, taps column by column)
    multi-scale deformable attn.   Deformable DETR, arXiv 2010.04159
    spatial cross-attention        BEVFormer, arXiv 2203.17270, section 3.3

Both are written from the bilinear formula in pixel coordinates (pixel centres at integers), not with grid_sample: its
normalised coordinates round, which spoils float64 and moves gradients across whole pixels. Every step is a
differentiable PyTorch operation, so double backward, float64, autocast and any device work.

Shapes: N or B batch, H W input size, Ho Wo output size, G groups, K taps, D channels of a group or head, C = G * D,
S value tokens over all levels, M heads, Q queries, L levels, P points, R reference points of a query. In spatial
cross-attention N is the number of cameras.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = tuple[int, int]


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is float64, else float32: coordinates and sums are never kept in half precision."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def output_size(size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """(Ho, Wo) of a convolution window slid over an image of (H, W)."""
    height = (size[0] + 2 * padding[0] - dilation[0] * (kernel_size[0] - 1) - 1) // stride[0] + 1
    width = (size[1] + 2 * padding[1] - dilation[1] * (kernel_size[1] - 1) - 1) // stride[1] + 1
    return height, width


def tap_grid(kernel_size: Pair, dilation: Pair, remove_center: bool) -> tuple[list[int], list[int]]:
    """Pixel offsets (x, y) of the K taps from the window's anchor: x in the outer loop, y in the inner."""
    (kernel_h, kernel_w), (dilation_h, dilation_w) = kernel_size, dilation
    center_x, center_y = dilation_w * (kernel_w - 1) // 2, dilation_h * (kernel_h - 1) // 2
    taps = [
        (i * dilation_w - center_x, j * dilation_h - center_y)
        for i in range(kernel_w)
        for j in range(kernel_h)
        if not (remove_center and (i, j) == (kernel_w // 2, kernel_h // 2))
    ]
    return [x for x, _ in taps], [y for _, y in taps]


def _bilinear(
    rows: Tensor, first_row: Tensor, pixel_stride: int, x: Tensor, y: Tensor, height: int, width: int
) -> Tensor:
    """Sample [..., D] at (x, y) [...] from images that lie in `rows` [R, D], zero outside.

    Pixel (iy, ix) of the image of a sample is row `first_row + (iy * width + ix) * pixel_stride`.
    """
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)  # false for NaN: such a point samples nothing
    x, y = torch.where(inside, x, -2.0), torch.where(inside, y, -2.0)
    x0, y0 = x.detach().floor(), y.detach().floor()
    weight_x, weight_y = (x0 + 1 - x, x - x0), (y0 + 1 - y, y - y0)
    x0, y0 = x0.long(), y0.long()
    sample: Tensor | None = None
    for iy, wy in zip((y0, y0 + 1), weight_y):
        for ix, wx in zip((x0, x0 + 1), weight_x):
            valid = (ix >= 0) & (ix < width) & (iy >= 0) & (iy < height)
            row = first_row + (iy.clamp(0, height - 1) * width + ix.clamp(0, width - 1)) * pixel_stride
            corner = rows.index_select(0, row.flatten()).view(*row.shape, rows.shape[1])  # [..., D]
            weighted = torch.where(valid, wy * wx, 0.0).unsqueeze(-1) * corner
            sample = weighted if sample is None else sample + weighted
    assert sample is not None  # four corners
    return sample


def dcnv3_reference(
    value: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    offset_scale: float,
    remove_center: bool,
    mask_softmax: bool = False,
) -> Tensor:
    """Reference implementation of `drivestack.ops.dcnv3`, arguments already checked."""
    n, height, width, channels = value.shape
    out_h, out_w = output_size((height, width), kernel_size, stride, padding, dilation)
    grid_x, grid_y = tap_grid(kernel_size, dilation, remove_center)
    k = len(grid_x)
    dtype, device = compute_dtype(value, offset, mask), value.device

    offset = offset.to(dtype).reshape(n, out_h, out_w, groups, k, 2)
    anchor_x = torch.arange(out_w, dtype=dtype, device=device) * stride[1] - padding[1]
    anchor_y = torch.arange(out_h, dtype=dtype, device=device) * stride[0] - padding[0]
    anchor_x = anchor_x + dilation[1] * (kernel_size[1] - 1) // 2  # [Wo]
    anchor_y = anchor_y + dilation[0] * (kernel_size[0] - 1) // 2  # [Ho]
    step_x = offset_scale * (torch.tensor(grid_x, dtype=dtype, device=device) + offset[..., 0])
    step_y = offset_scale * (torch.tensor(grid_y, dtype=dtype, device=device) + offset[..., 1])
    x = anchor_x.view(1, 1, out_w, 1, 1) + step_x  # [N, Ho, Wo, G, K]
    y = anchor_y.view(1, out_h, 1, 1, 1) + step_y

    image = torch.arange(n, device=device).view(n, 1, 1, 1, 1) * (height * width * groups)
    first_row = image + torch.arange(groups, device=device).view(1, 1, 1, groups, 1)
    rows = value.to(dtype).reshape(-1, channels // groups)  # row (n, y, x, g)
    sample = _bilinear(rows, first_row, groups, x, y, height, width)  # [N, Ho, Wo, G, K, D]
    mask = mask.to(dtype).reshape(n, out_h, out_w, groups, k)
    if mask_softmax:
        mask = mask.softmax(-1)
    return (sample * mask.unsqueeze(-1)).sum(4).reshape(n, out_h, out_w, channels).to(value.dtype)


def _attend(
    value: Tensor, levels: Sequence[tuple[int, int, int]], coordinates: Sequence[tuple[Tensor, Tensor]], weights: Tensor
) -> Tensor:
    """Sum over levels and points of weights [B, Q, M, L, P] * bilinear(value [B, S, M, D]): [B, Q, M * D].

    Levels are (height, width, first token); coordinates are pixels x, y [B, Q, M, P] of each level.
    """
    b, s, m, d = value.shape
    q, n_points = weights.shape[1], weights.shape[4]
    rows = value.reshape(-1, d)  # row (b, s, m)
    batch = torch.arange(b, device=value.device).view(b, 1, 1, 1) * (s * m)
    head = batch + torch.arange(m, device=value.device).view(1, 1, m, 1)
    out = value.new_zeros((b, q, m, d))
    for level, ((height, width, start), (x, y)) in enumerate(zip(levels, coordinates)):
        first_row = (head + start * m).expand(b, q, m, n_points)
        sample = _bilinear(rows, first_row, m, x, y, height, width)  # [B, Q, M, P, D]
        out = out + (sample * weights[:, :, :, level].unsqueeze(-1)).sum(3)
    return out.reshape(b, q, m * d)


def levels_of(spatial_shapes: Sequence[Pair]) -> list[tuple[int, int, int]]:
    """(height, width, first token) of levels that lie one after the other."""
    levels, following = [], 0
    for height, width in spatial_shapes:
        levels.append((height, width, following))
        following += height * width
    return levels


def ms_deform_attn_reference(
    value: Tensor, spatial_shapes: Sequence[Pair], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Reference implementation of `drivestack.ops.ms_deform_attn`, arguments already checked."""
    dtype = compute_dtype(value, sampling_locations, attention_weights)
    locations, weights = sampling_locations.to(dtype), attention_weights.to(dtype)
    coordinates = [
        (locations[:, :, :, level, :, 0] * width - 0.5, locations[:, :, :, level, :, 1] * height - 0.5)
        for level, (height, width) in enumerate(spatial_shapes)
    ]
    return _attend(value.to(dtype), levels_of(spatial_shapes), coordinates, weights).to(value.dtype)


def ms_deform_attn_fused_reference(
    value: Tensor,
    levels: Sequence[tuple[int, int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    level_mean: bool = False,
) -> Tensor:
    """Reference implementation of `drivestack.ops.ms_deform_attn_fused`, arguments already checked."""
    b, q, _, n_levels, n_points = logits.shape
    dtype = compute_dtype(value, reference_points, offsets, logits)
    if level_mean:
        weights = logits.to(dtype).softmax(-1) / n_levels
    else:
        weights = logits.to(dtype).flatten(3).softmax(-1).view(logits.shape)
    offsets = offsets.to(dtype)
    turn = torch.arange(n_points, device=value.device) % reference_points.shape[3]  # point p takes reference p % R
    reference = reference_points.to(dtype)[:, :, :, turn].expand(b, q, n_levels, n_points, 2).unsqueeze(2)
    coordinates = [
        (
            reference[:, :, :, level, :, 0] * width + offsets[:, :, :, level, :, 0] - 0.5,  # [B, Q, M, P]
            reference[:, :, :, level, :, 1] * height + offsets[:, :, :, level, :, 1] - 0.5,
        )
        for level, (height, width, _) in enumerate(levels)
    ]
    return _attend(value.to(dtype), levels, coordinates, weights).to(value.dtype)


def spatial_cross_attention_reference(
    value: Tensor,
    levels: Sequence[tuple[int, int, int]],
    reference_points: Tensor,
    visible: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Reference implementation of `drivestack.ops.spatial_cross_attention`, arguments already checked."""
    dtype = compute_dtype(value, reference_points, offsets, logits)
    b, cameras, _, m, d = value.shape
    total = value.new_zeros((b, logits.shape[1], m * d), dtype=dtype)
    for camera in range(cameras):
        reference = reference_points[:, camera].unsqueeze(2)  # [B, Q, 1, R, 2]
        seen = ms_deform_attn_fused_reference(value[:, camera].to(dtype), levels, reference, offsets, logits)
        total = total + torch.where(visible[:, camera].unsqueeze(-1), seen, 0.0)
    cameras_seeing = visible.sum(1).clamp(min=1).unsqueeze(-1)  # [B, Q, 1]
    return (total / cameras_seeing).to(value.dtype)
