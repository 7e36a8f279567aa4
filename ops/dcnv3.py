"""Deformable convolution v3 and v4: sparse sampling with learned offsets and weights.

Sources: InternImage, arXiv 2211.05778 (v3); Efficient Deformable ConvNets, arXiv 2401.06197 (v4, the same without the
softmax, offsets and weights in one packed tensor).
"""

from collections.abc import Sequence

from torch import Tensor

from .dispatch.calls import run
from .dispatch.checks import window_of
from .dispatch.operators import DCNV3


def dcnv3(
    value: Tensor,
    offset: Tensor,
    mask: Tensor,
    *,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    mask_softmax: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Sum over taps of mask * bilinear(value, anchor + offset_scale * (grid + offset)), zero outside the image.

    Args:
        value: [N, H, W, C], channels group-major: C = groups * D.
        offset: [N, Ho, Wo, groups * K * 2] or [N, Ho, Wo, groups, K * 2], last (group, tap, (dx, dy)) in pixels. Taps
            go column by column: tap = ix * kernel_h + iy. NaN or infinite offsets sample nothing.
        mask: [N, Ho, Wo, groups * K] or [N, Ho, Wo, groups, K], the weights of the taps; with `mask_softmax` their
            logits. Offset and mask may be slices of one packed projection: the kernels read them where they lie.
        kernel_size, stride, padding, dilation: an int, or two ints (vertical, horizontal). Ho and Wo are those of an
            ordinary convolution. Padding adds no pixels, it only shifts the anchor: outside, the image is zero.
        groups: channel groups; all channels of a group share offsets and weights.
        offset_scale: stretches the regular grid as well as the offsets.
        remove_center: leave out the tap at (kernel_w // 2, kernel_h // 2); K is then kernel_h * kernel_w - 1.
        mask_softmax: take the softmax of the mask over the K taps of each group first.
        backend: "auto", "cpp", "cuda" or "reference"; None reads the environment (see ops/dispatch/backend.py).

    Returns:
        [N, Ho, Wo, C] in the dtype of value. float32, float64, bfloat16 and float16; half-precision values may come
        with float32 offsets and masks; coordinates and sums are float32 at least. Under autocast all three are cast.

    Raises:
        ValueError: shapes that do not fit, with the shapes. TypeError: dtypes that do not.
        BackendUnavailableError: backend "cpp" or "cuda" without such a kernel.
    """
    window = window_of(kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
    return run(DCNV3, backend, value, offset, mask, *window, mask_softmax)


def packed_width(groups: int, kernel_size: int | Sequence[int] = 3, remove_center: bool = False) -> int:
    """Channels of DCNv4's packed `offset_mask`: three numbers per tap and group, padded to a multiple of 8."""
    kernel_h, kernel_w = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    return -(-groups * 3 * (kernel_h * kernel_w - bool(remove_center)) // 8) * 8


def dcnv4(
    value: Tensor,
    offset_mask: Tensor,
    *,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    backend: str | None = None,
) -> Tensor:
    """`dcnv3` without a softmax, from the packed output of one projection; nothing is copied.

    Args:
        offset_mask: [N, Ho, Wo, P]: for each group the 2 K offsets, then the K weights; P = groups * 3 * K or that
            padded, to a multiple of 8 as upstream's layers do (`packed_width`). The padding is ignored.

    The others, the result and the errors are those of `dcnv3`.
    """
    window = window_of(kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
    taps = window[0] * window[1] - bool(remove_center)
    used = groups * 3 * taps
    if not isinstance(offset_mask, Tensor) or offset_mask.dim() != 4 or offset_mask.shape[3] < used or groups < 1:
        got = list(offset_mask.shape) if isinstance(offset_mask, Tensor) else type(offset_mask).__name__
        raise ValueError(f"dcnv4: offset_mask must be [N, Ho, Wo, {used}] or more (padding), got {got}")
    grouped = offset_mask.narrow(3, 0, used).view(*offset_mask.shape[:3], groups, 3 * taps)
    offset, mask = grouped.narrow(4, 0, 2 * taps), grouped.narrow(4, 2 * taps, taps)
    return run(DCNV3, backend, value, offset, mask, *window, False, shown_as="dcnv4")
