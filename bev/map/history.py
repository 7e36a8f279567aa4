"""What a BEV model remembers of past keyframes: their image features, as explicit state that the caller holds.

In evaluation the features of a past image equal those computed when it was current, so caching them gives the numbers
of re-encoding the whole clip while the image encoder runs once per frame (spec/bevformer.md section 15).

Shapes: N cameras, C channels, h x w feature cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ...core.frames import Frame


@dataclass(frozen=True)
class PastFrame:
    """Image features of one keyframe with what is needed to look at them from a later one."""

    frame: Frame
    feats: tuple[Tensor, ...]
    """Levels [N, C, h, w]."""
    image_from_lidar: Tensor
    """[N, 4, 4] from the frame's own LIDAR frame."""
    image_size_px: Tensor
    """[N, 2] (height, width) before padding."""


History = Mapping[str, PastFrame]
"""Past frames by token."""


def find_past(history: History, frame: Frame, steps: int) -> PastFrame | None:
    """The frame ``steps`` keyframes before ``frame`` in its scene, if the history holds the way there."""
    past, token = None, frame.prev_token
    for _ in range(steps):
        past = history.get(token)
        if past is None or past.frame.scene_token != frame.scene_token:
            return None
        token = past.frame.prev_token
    return past


def prune(history: dict[str, PastFrame], current: list[Frame], steps: int) -> dict[str, PastFrame]:
    """The last ``steps`` frames up to and including each current one; all else is forgotten."""
    kept = {}
    for frame in current:
        token = frame.token
        for _ in range(steps):
            past = history.get(token)
            if past is None:
                break
            kept[token] = past
            token = past.frame.prev_token
    return kept


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Runs a module as in evaluation (no dropout, running statistics) and gives each sub-module its own mode back.

    Past frames are encoded this way in training (released recipe, spec section 6.4); unlike upstream, sub-modules that
    were deliberately kept in evaluation mode stay there (quirk Q31).
    """
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
