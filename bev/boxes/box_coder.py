"""The 10 numbers a detection head regresses, and their conversion from and to boxes.

A code is (cx, cy, log w, log l, cz, log h, sin yaw_cw, cos yaw_cw, vx, vy) in metres and m/s, gravity centre, with the
clockwise heading yaw_cw = -yaw - pi/2 of the old LiDAR convention: published BEVFormer weights speak it, so it lives
here, at the border, and nowhere else. Boxes are rows (x, y, z, l, w, h, yaw_rad, vx, vy) of geometry.boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CODE_SIZE = 10


def encode_boxes(boxes: Tensor) -> Tensor:
    """Codes [..., 10] of boxes [..., 9]; a size of zero gives -inf, an unknown (NaN) velocity stays NaN."""
    x, y, z, length, width, height, yaw, vx, vy = boxes.unbind(-1)
    # sin(-yaw - pi/2) = -cos(yaw), cos(-yaw - pi/2) = -sin(yaw)
    return torch.stack([x, y, width.log(), length.log(), z, height.log(), -yaw.cos(), -yaw.sin(), vx, vy], dim=-1)


def decode_boxes(codes: Tensor) -> Tensor:
    """Boxes [..., 9] of codes [..., 10], heading in [-pi, pi]."""
    cx, cy, log_w, log_l, cz, log_h, sin_cw, cos_cw, vx, vy = codes.unbind(-1)
    yaw = torch.atan2(-cos_cw, -sin_cw)
    return torch.stack([cx, cy, cz, log_l.exp(), log_w.exp(), log_h.exp(), yaw, vx, vy], dim=-1)


def normalise_points(points_m: Tensor, pc_range: Tensor) -> Tensor:
    """Points [..., 3] in metres as fractions of pc_range (x_min, y_min, z_min, x_max, y_max, z_max)."""
    return (points_m - pc_range[:3]) / (pc_range[3:] - pc_range[:3])


def denormalise_points(points: Tensor, pc_range: Tensor) -> Tensor:
    """The inverse of :func:`normalise_points`."""
    return points * (pc_range[3:] - pc_range[:3]) + pc_range[:3]


@dataclass(frozen=True)
class NmsFreeCoder:
    """Turns the last decoder layer into detections without suppression (BEVFormer, DETR3D): top-k over all
    query-class pairs, so that one query may give several labels.

    post_center_range: (x_min, y_min, z_min, x_max, y_max, z_max) in metres; boxes whose centre lies outside are
    dropped (borders included). score_threshold: keep higher scores only; where nothing passes it is lowered by a
    tenth until something does, or altogether once below 0.01.
    """

    max_num: int = 300
    post_center_range: tuple[float, ...] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    score_threshold: float | None = None

    def decode(self, logits: Tensor, codes: Tensor, worth: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [k, 9], scores [k] (best first) and labels [k] of one sample's logits [Q, classes], codes [Q, 10].

        worth: [Q] factors of the scores, None for 1.
        """
        return self.decode_queries(logits, codes, worth)[0]

    def decode_queries(
        self, logits: Tensor, codes: Tensor, worth: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """What ``decode`` gives, and the query [k] of each box."""
        num_classes = logits.shape[-1]
        probability = logits.sigmoid() if worth is None else logits.sigmoid() * worth[:, None]
        scores, index = probability.flatten().topk(min(self.max_num, logits.numel()))
        labels = index % num_classes
        queries = index // num_classes
        boxes = decode_boxes(codes[queries])  # [k, 9]

        low, high = boxes.new_tensor(self.post_center_range).view(2, 3)
        keep = ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(-1)
        if self.score_threshold is not None:
            keep &= self._above_threshold(scores, self.score_threshold)
        return (boxes[keep], scores[keep], labels[keep]), queries[keep]

    @staticmethod
    def _above_threshold(scores: Tensor, threshold: float) -> Tensor:
        above = scores > threshold
        while not above.any():
            threshold *= 0.9
            if threshold < 0.01:
                return torch.ones_like(above)
            above = scores >= threshold
        return above
