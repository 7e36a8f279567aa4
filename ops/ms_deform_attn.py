"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159): the sampling core of BEVFormer's attention."""

from collections.abc import Sequence

from torch import Tensor

from .dispatch.calls import run
from .dispatch.checks import check_filled
from .dispatch.operators import MS_DEFORM_ATTN, MS_DEFORM_ATTN_FUSED
from .dispatch.traced import run_of_shapes, traced_shapes

Shapes = Sequence[Sequence[int]] | Tensor


def shape_pairs(spatial_shapes: Shapes) -> list[tuple[int, int]]:
    """(height, width) of each level as ints, from a list or a tensor [L, 2]."""
    return [(h, w) for h, w in (spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes)]


def flat_levels(spatial_shapes: Shapes, starts: Sequence[int] | None = None) -> list[int]:
    """Height, width and first token of each level, one after the other; without `starts` level follows level."""
    flat: list[int] = []
    following = 0
    for i, (height, width) in enumerate(shape_pairs(spatial_shapes)):
        flat += (height, width, following if starts is None else starts[i])
        following += height * width
    return flat


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Sum over levels and points of attention_weights * bilinear(value of the level, sampling_locations).

    Args:
        value: [B, S, M, D], the levels one after the other, each row by row; S = sum of height * width. M heads.
        spatial_shapes: (height, width) of each level, as a list or an int64 tensor [L, 2]. Lists are quicker.
        sampling_locations: [B, Q, M, L, P, 2], (x, y) in [0, 1] over the level's image: pixel centres lie at
            (i + 0.5) / size, as grid_sample with align_corners=False. Outside the image is zero; NaN samples nothing.
        attention_weights: [B, Q, M, L, P], after the softmax.
        backend: "auto", "cpp", "cuda" or "reference"; None reads the environment (see ops/dispatch/backend.py).

    Returns:
        [B, Q, M * D] in the dtype of value. float32, float64, bfloat16 and float16; keep the locations of
        half-precision values in float32 (half-precision locations are up to 0.1 pixels off). Under autocast the value
        is cast, locations and weights are not.

    Raises:
        ValueError: shapes that do not fit, with the shapes. TypeError: dtypes that do not.
        BackendUnavailableError: backend "cpp" or "cuda" without such a kernel.
    """
    if backend is None and (traced := traced_shapes(spatial_shapes)) is not None:
        return run_of_shapes(MS_DEFORM_ATTN, value, traced, sampling_locations, attention_weights)
    flat_shapes = [side for shape in shape_pairs(spatial_shapes) for side in shape]
    return run(MS_DEFORM_ATTN, backend, value, flat_shapes, sampling_locations, attention_weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Shapes,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    *,
    level_mean: bool = False,
    level_starts: Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """`ms_deform_attn` straight from what a layer predicts: neither locations nor weights come to exist.

    The location of point p on a level is reference_points[p % R] + offsets / (width, height) of the level.

    Args:
        value: [B, S, M, D] as in `ms_deform_attn`.
        spatial_shapes: (height, width) of each level, as a list or an int64 tensor [L, 2]. Lists are quicker.
        reference_points: [B or 1, Q, L or 1, R, 2], (x, y) in [0, 1] over the level's image, float32 (float64 with
            float64). NaN and far away sample nothing.
        offsets: [B, Q, M, L, P, 2], (x, y) in pixels of the level.
        logits: [B, Q, M, L, P]. Their softmax over all levels and points of a query and head is the attention.
            Offsets and logits may be slices of one packed projection: the kernels read them where they lie.
        level_mean: softmax over the points of each level instead, and the mean of the levels (the temporal attention
            of BEVFormer).
        level_starts: first token of each level, for levels that share tokens; None: one after the other.
        backend: "auto", "cpp", "cuda" or "reference"; None reads the environment (see ops/dispatch/backend.py).

    Returns:
        [B, Q, M * D] in the dtype of value; locations, softmax and sums are float32 at least. Differentiable in all
        four tensors. Under autocast value, offsets and logits are cast, the reference points are not.

    Raises:
        ValueError: shapes that do not fit, with the shapes. TypeError: dtypes that do not.
        BackendUnavailableError: backend "cpp" or "cuda" without such a kernel.
    """
    if backend is None and level_starts is None and (traced := traced_shapes(spatial_shapes)) is not None:
        return run_of_shapes(MS_DEFORM_ATTN_FUSED, value, traced, reference_points, offsets, logits, level_mean)
    if level_starts is not None and len(level_starts) != len(spatial_shapes):
        raise ValueError(f"ms_deform_attn_fused: {len(level_starts)} level_starts for {len(spatial_shapes)} levels")
    levels = flat_levels(spatial_shapes, level_starts)
    if level_starts is None:
        check_filled(MS_DEFORM_ATTN_FUSED.name, value, levels)
    return run(MS_DEFORM_ATTN_FUSED, backend, value, levels, reference_points, offsets, logits, level_mean)
