"""The encoder's part of a detector's or segmentor's config, as OpenMMLab's constructors take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..builder import internimage
from ..internimage.composite import CBInternImage
from ..internimage.model import NUM_LEVELS, InternImage
from ..internimage.variants import VARIANTS

Encoder = str | Mapping[str, Any]
"""The name of a variant ("T", ..., "G"), or arguments of `InternImage` for one of other sizes."""

RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""What InternImage's released weights expect: ImageNet's mean and standard deviation of RGB in 0..255."""


def encoder_config(
    encoder: Encoder, out_indices: Sequence[int], task: str = "features", options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Config of the encoder.

    task: "features" or "composite", of `internimage`; options: more arguments, which win.

    Raises ValueError for an unknown variant.
    """
    more = dict(options or {})
    if isinstance(encoder, str):
        return dict(type=internimage, variant=encoder, task=task, out_indices=tuple(out_indices), **more)
    kind = CBInternImage if task == "composite" else InternImage
    return {"type": kind, **encoder, "out_indices": tuple(out_indices), **more}


def widths(encoder: Encoder) -> list[int]:
    """Channels of the encoder's four levels. Raises ValueError for an unknown variant."""
    if not isinstance(encoder, str):
        return [encoder["channels"] << i for i in range(NUM_LEVELS)]
    if encoder not in VARIANTS:
        raise ValueError(f"unknown InternImage variant {encoder!r}: choose one of {', '.join(VARIANTS)}")
    return [VARIANTS[encoder].channels << i for i in range(NUM_LEVELS)]
