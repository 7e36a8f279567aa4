"""A BEV map with a box head under the keys of a released head, for numbers recorded from such heads alone."""

from __future__ import annotations

from torch import nn

from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.map.bev_map import BevMap
from drivestack.core.weights.published_keys import keep_published_keys


class PublishedHead(nn.Module):
    """What upstream calls the head: its state dict has the keys below ``pts_bbox_head.``."""

    def __init__(self, bev_map: BevMap, head: BoxHead) -> None:
        super().__init__()
        self.bev_map, self.head = bev_map, head
        keep_published_keys(
            self,
            {
                "bev_map.": "transformer.",
                "bev_map.bev_embedding.": "bev_embedding.",
                "bev_map.positional_encoding.": "positional_encoding.",
                "head.": "",
                "head.decoder.": "transformer.decoder.",
                "head.reference_points.": "transformer.reference_points.",
            },
        )
