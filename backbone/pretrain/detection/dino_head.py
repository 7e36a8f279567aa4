"""DINO's head with the numbers of the InternImage release.

mmdet 3.3 limits reference points to [1e-5, 1 - 1e-5] before it takes their logit, the release to [1e-3, 1 - 1e-3]; so
released weights would put boxes at the image's border up to 1.4e-3 of its size elsewhere.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

REFERENCE_EPS = 1e-3  # InternImage release, detection/mmdet_custom dino_head.py


@cache
def released_dino_head() -> Any:
    """The class: mmdet's DINOHead, which is imported now, with the release's limit."""
    from mmdet.models import DINOHead

    class ReleasedDINOHead(DINOHead):
        """DINOHead whose box deltas are added to the logit of reference points at least REFERENCE_EPS inside."""

        def forward(self, hidden_states: Tensor, references: list[Tensor]) -> tuple[Tensor, Tensor]:
            """Decoder states [layers, N, Q, C] and boxes that each layer starts from, normalised cxcywh [N, Q, 4].

            Returns class logits [layers, N, Q, K] and boxes, normalised cxcywh, [layers, N, Q, 4].
            """
            logits, boxes = [], []
            for layer, states in enumerate(hidden_states):
                logits.append(self.cls_branches[layer](states))
                start = torch.special.logit(references[layer].clamp(0, 1), eps=REFERENCE_EPS)
                boxes.append((self.reg_branches[layer](states) + start).sigmoid())
            return torch.stack(logits), torch.stack(boxes)

    return ReleasedDINOHead
