"""What an image encoder publishes about its feature maps, so that a neck can be built from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureInfo:
    """One feature map of an encoder or neck."""

    channels: int
    """Number of channels of the map."""
    stride: int
    """Input pixels per map pixel, the same along height and width."""


def validate_out_indices(out_indices: tuple[int, ...], num_levels: int) -> tuple[int, ...]:
    """Check that level indices are ascending, unique and inside ``range(num_levels)``."""
    indices = tuple(out_indices)
    if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= num_levels:
        raise ValueError(f"out_indices={indices}: give ascending, distinct level numbers from 0 to {num_levels - 1}")
    return indices
