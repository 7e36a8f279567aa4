"""Detectors on a composite encoder (CB-InternImage): trained on both encoders' features, used with the leading ones.

As in CBNet (arXiv 2107.00420) and the InternImage release, one neck and head see the features of both encoders as if
they were of different images, and the assisting half's losses count half. The release takes exactly one image per GPU;
here any number will do.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

ASSISTANT_WEIGHT = 0.5  # InternImage release, CB-DINO


@cache
def composite_dino() -> Any:
    """The class: mmdet's DINO, which is imported now, on an encoder that returns two lists of maps."""
    from mmdet.models import DINO

    class CompositeDINO(DINO):
        """DINO whose encoder returns (assisting maps, leading maps)."""

        def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
            """Images [N, 3, H, W] -> the neck's maps of the leading features."""
            return self.neck(tuple(self.backbone(batch_inputs)[1]))

        def loss(self, batch_inputs: Tensor, batch_data_samples: list[Any]) -> dict[str, Any]:
            """Loss terms of the leading half, and of the assisting one under ``assistant.``, weighted."""
            assisting, leading = self.backbone(batch_inputs)
            features = self.neck(tuple(torch.cat(pair) for pair in zip(assisting, leading)))  # [2N, C, H, W]
            inputs = self.forward_transformer(features, [*batch_data_samples, *batch_data_samples])
            num_images = len(batch_data_samples)
            halves = [slice(0, num_images), slice(num_images, None)]
            of_assistant, of_lead = (
                self.bbox_head.loss(**_half(inputs, half), batch_data_samples=batch_data_samples) for half in halves
            )
            weighted = {f"assistant.{name}": value * ASSISTANT_WEIGHT for name, value in of_assistant.items()}
            return {**of_lead, **weighted}

    return CompositeDINO


def _half(inputs: dict[str, Any], half: slice) -> dict[str, Any]:
    """The head's inputs for some of the images."""
    return {
        "hidden_states": inputs["hidden_states"][:, half],
        "references": [boxes[half] for boxes in inputs["references"]],
        "enc_outputs_class": inputs["enc_outputs_class"][half],
        "enc_outputs_coord": inputs["enc_outputs_coord"][half],
        "dn_meta": inputs["dn_meta"],
    }
