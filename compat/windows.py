"""The window of DCNv3 and DCNv4 as upstream's functions take it, as the keyword arguments of our operators."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def keyword_arguments(
    input: Tensor,
    sizes: tuple[int, int, int, int, int, int, int, int],
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool | int,
) -> dict[str, Any]:
    """For `drivestack.ops.dcnv3` or `dcnv4` on ``input`` [N, H, W, group * group_channels].

    ``sizes`` are kernel, stride, padding and dilation, vertical and horizontal each.

    Raises:
        ValueError: the channels of ``input`` are not group * group_channels.
    """
    if input.shape[-1] != group * group_channels:
        raise ValueError(
            f"input has {input.shape[-1]} channels, not group * group_channels = {group} * {group_channels}"
        )
    return {
        "kernel_size": sizes[0:2],
        "stride": sizes[2:4],
        "padding": sizes[4:6],
        "dilation": sizes[6:8],
        "groups": group,
        "offset_scale": offset_scale,
        "remove_center": bool(remove_center),
    }
