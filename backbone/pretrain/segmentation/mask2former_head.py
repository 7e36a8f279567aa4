"""Mask2Former's head with the order of upsampling of the InternImage release.

mmseg 1.2 enlarges the masks' logits to the input's size before it takes sigmoids and adds the queries up; the release
adds up at a quarter of the size and enlarges the sums. Released weights reach their published mIoU in that order only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@cache
def released_mask2former_head() -> Any:
    """The class: mmseg's Mask2FormerHead, which is imported now, with the release's order."""
    from mmseg.models.decode_heads import Mask2FormerHead
    from mmseg.structures import SegDataSample

    class ReleasedMask2FormerHead(Mask2FormerHead):
        """Mask2FormerHead that sums queries before it enlarges."""

        def predict(self, x: tuple[Tensor, ...], batch_img_metas: list[dict], test_cfg: Any) -> Tensor:
            """Maps of the encoder -> scores of classes [N, K, H, W] at the padded input's size, not log-odds."""
            scores = self.class_scores(x, batch_img_metas)
            meta = batch_img_metas[0]
            size = tuple(meta.get("pad_shape", meta["img_shape"])[:2])
            return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)

        def class_scores(self, x: tuple[Tensor, ...], batch_img_metas: list[dict]) -> Tensor:
            """Sum over the queries of class probability times mask probability, [N, K, H/4, W/4]."""
            samples = [SegDataSample(metainfo=meta) for meta in batch_img_metas]
            class_logits, mask_logits = self(x, samples)
            probabilities = class_logits[-1].softmax(-1)[..., :-1]  # [N, Q, K], the last is "nothing"
            return torch.einsum("nqk,nqhw->nkhw", probabilities, mask_logits[-1].sigmoid())

    return ReleasedMask2FormerHead
