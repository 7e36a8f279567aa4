"""A BEV model's memory of past keyframes: their image features, as explicit state that the caller holds.

In evaluation the features of a past image equal those computed when it was current, so caching them gives the numbers
of re-encoding the whole clip while the image encoder runs once per frame.

Shapes: N cameras, C channels, h x w feature cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.frames import Frame, past_bev_from_current
from ...geometry.lenses import ROW


@dataclass(frozen=True)
class PastFrame:
    """Image features of one keyframe with what is needed to sample them from a later one."""

    frame: Frame
    feats: tuple[Tensor, ...]
    """Levels [N, C, h, w]."""
    image_from_bev: Tensor
    """[N, 4, 4] from the frame's own BEV frame."""
    image_size_px: Tensor
    """[N, 2] (height, width) before padding."""
    lenses: Tensor | None = None
    """[N, ROW], see Batch; None: all cameras are pinholes."""


History = Mapping[str, PastFrame]
"""Past frames by token."""


def find_past(history: History, frame: Frame, steps: int) -> PastFrame | None:
    """The frame ``steps`` keyframes before ``frame`` in its scene, if the history holds it and all frames between."""
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


def remember(levels: Sequence[Tensor], batch: Batch) -> dict[str, PastFrame]:
    """The history that a batch of current frames adds for later ones; ``levels`` [B, N, C, h, w]."""
    return {
        frame.token: PastFrame(
            frame,
            tuple(level[b] for level in levels),
            batch.image_from_bev[b, 0],
            batch.image_size_px[b, 0],
            None if batch.lenses is None else batch.lenses[b, 0],
        )
        for b, frame in enumerate(batch.frames)
    }


def recall(
    levels: Sequence[Tensor], batch: Batch, history: History, offsets: Sequence[int]
) -> tuple[list[list[Tensor]], Batch]:
    """The features of a clip of frames at ``offsets`` (past ones and 0), and the batch as it would be with all of them
    loaded. Raises ValueError where images of the past were padded to another size.
    """
    clip, matrices, sizes, valid, lenses = [], [], [], [], []
    no_lens = batch.image_from_bev.new_zeros((*batch.image_from_bev.shape[2:3], ROW))  # of pinholes
    for offset in offsets:
        past = [None if offset == 0 else find_past(history, frame, -offset) for frame in batch.frames]
        for frame, p in zip(batch.frames, past):
            if p is not None and any(feats.shape != level.shape[1:] for feats, level in zip(p.feats, levels)):
                raise ValueError(
                    f"sample {frame.token}: the features of sample {p.frame.token} before it are "
                    f"{list(p.feats[0].shape)}, its own {list(levels[0].shape[1:])}: a scene needs the same "
                    "cameras and, in every batch, the same padded image size (do not mix rigs in a batch)"
                )
        own = list(enumerate(past))
        valid.append(torch.tensor([offset == 0 or p is not None for p in past], device=levels[0].device))
        clip.append(
            [torch.stack([level[b] if p is None else p.feats[i] for b, p in own]) for i, level in enumerate(levels)]
        )
        seen = [batch.image_from_bev[b, 0] if p is None else _seen_from(batch, b, p) for b, p in own]
        matrices.append(torch.stack(seen))
        now = [None] * len(past) if batch.lenses is None else batch.lenses[:, 0]
        rows = [now[b] if p is None else p.lenses for b, p in own]
        lenses.append(torch.stack([no_lens if row is None else row for row in rows]))
        sizes.append(torch.stack([batch.image_size_px[b, 0] if p is None else p.image_size_px for b, p in own]))
    return clip, replace(
        batch,
        frame_offsets=tuple(offsets),
        frame_valid=torch.stack(valid, 1),
        image_from_bev=torch.stack(matrices, 1),
        image_size_px=torch.stack(sizes, 1),
        lenses=every if (every := torch.stack(lenses, 1))[..., 0].any() else None,
    )


def _seen_from(batch: Batch, b: int, past: PastFrame) -> Tensor:
    """[N, 4, 4]: points of sample b's current BEV frame to pixels of a past frame's images (see Batch)."""
    motion = torch.from_numpy(past_bev_from_current(batch.frames[b], past.frame)).to(past.image_from_bev.device)
    return (past.image_from_bev.double() @ motion).to(past.image_from_bev.dtype)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Runs a module as in evaluation (no dropout, running statistics) and gives each sub-module its own mode back.

    Past frames are encoded this way in training (released recipe); unlike upstream, sub-modules that were deliberately
    kept in evaluation mode stay there (docs/quirks.md#training-mode-restored-everywhere).
    """
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
