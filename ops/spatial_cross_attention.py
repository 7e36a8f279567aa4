"""Spatial cross-attention (BEVFormer, arXiv 2203.17270, section 3.3): BEV cells look into the cameras that see them."""

from collections.abc import Sequence

from torch import Tensor

from .dispatch.calls import run
from .dispatch.operators import SPATIAL_CROSS_ATTENTION
from .dispatch.traced import run_of_shapes, traced_shapes
from .ms_deform_attn import flat_levels


def spatial_cross_attention(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]] | Tensor,
    reference_points: Tensor,
    visible: Tensor,
    offsets: Tensor,
    logits: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Mean over the cameras that see a query of its deformable attention into their feature maps.

    No lists of visible queries, no padding, no locations: `visible` is read query by query, for every sample of the
    batch its own (upstream uses the mask of sample 0 for the whole batch).

    Args:
        value: [B, N, S, M, D], N cameras; the levels one after the other, each row by row; S = sum of height * width.
        spatial_shapes: (height, width) of each level, as a list or an int64 tensor [L, 2]. Lists are quicker.
        reference_points: [B, N, Q, R, 2], (x, y) in [0, 1] over each camera's image, float32 (float64 with float64).
            Where a camera sees nothing of a query they may be anything. They get no gradient.
        visible: [B, N, Q] bool, whether the camera sees the query.
        offsets: [B, Q, M, L, P, 2], (x, y) in pixels of the level, the same for all cameras. Point p belongs to
            reference point p % R.
        logits: [B, Q, M, L, P]. Their softmax over all levels and points of a query and head is the attention.
            Offsets and logits may be slices of one packed projection: the kernels read them where they lie.
        backend: "auto", "cpp", "cuda" or "reference"; None reads the environment (see ops/dispatch/backend.py).

    Returns:
        [B, Q, M * D] in the dtype of value, zero for queries that no camera sees. Locations, softmax and sums are
        float32 at least. Under autocast value, offsets and logits are cast, the reference points are not.

    Raises:
        ValueError: shapes that do not fit, with the shapes; reference points that require a gradient.
        TypeError: dtypes that do not fit. BackendUnavailableError: backend "cpp" or "cuda" without such a kernel.
    """
    if backend is None and (traced := traced_shapes(spatial_shapes)) is not None:
        return run_of_shapes(SPATIAL_CROSS_ATTENTION, value, traced, reference_points, visible, offsets, logits)
    levels = flat_levels(spatial_shapes)
    return run(SPATIAL_CROSS_ATTENTION, backend, value, levels, reference_points, visible, offsets, logits)
