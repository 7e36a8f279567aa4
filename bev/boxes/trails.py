"""How fast an object moves, from where it was: straight lines through its last places.

One frame hardly shows a velocity; places half a second apart do, with an error that falls with the length of the line,
as long as the object keeps its speed. So several lines are fitted, through few and through many places, and the object
itself says how much it trusts each of them and the network's own guess:

    v = w_0 v_network + sum_n w_n v_line(n),  w = softmax(choice(content, speeds, distances of places from their line))

Weights that sum to 1 turn with the map: a scene seen from another side has the same answer. An object without earlier
places keeps the network's velocity to the bit. The heading learns as well how far to trust the direction of motion: at
ten pixels a pedestrian looks the same from the front and from the back.

Shapes: B batch, Q queries, T earlier places, C channels, W lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...core.registries import MODELS

_SPEED_MPS, _FAR_M = 10.0, 5.0  # units in which speeds and distances are given to ``choice``
_TURNING_MPS = 0.5  # below it a direction of motion counts less than half


@MODELS.register_module()
class TrailVelocity(nn.Module):
    """Velocities and headings of boxes from their earlier places; ObjectMemory uses it.

    channels: of the content of objects, ObjectMemory gives them. places: of how many earlier places each line is made,
    ascending; the longest is how many an object remembers.
    """

    def __init__(self, channels: int, places: Sequence[int] = (1, 2, 4, 6), hidden: int = 64) -> None:
        super().__init__()
        if not places or list(places) != sorted(set(places)) or places[0] < 1:
            raise ValueError(f"places: different numbers from 1 on, ascending, got {tuple(places)}")
        self.places = tuple(places)
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.choice = nn.Sequential(
            nn.Linear(channels + 3 * len(places) + 1, hidden), nn.ReLU(), nn.Linear(hidden, len(places) + 2)
        )
        nn.init.zeros_(self.choice[-1].weight)
        nn.init.zeros_(self.choice[-1].bias)
        with torch.no_grad():
            self.choice[-1].bias[-1] = -3.0  # the heading starts as the network's

    def forward(self, content: Tensor, codes: Tensor, trail: Tensor) -> Tensor:
        """Codes [B, Q, 10] (box_coder) with velocity and heading from content [B, Q, C] and trails [B, Q, T, 3].

        A place of a trail is (x, y, age_s) in the frame of the codes, the newest first, age 0 where there is none.
        """
        places, network = codes[..., :2].detach(), codes[..., 8:]
        lines, apart, new = self.lines(places, trail)
        speeds = torch.cat([network[..., None, :].detach(), lines], -2).norm(dim=-1)
        clues = [
            self.norm(content),
            speeds / _SPEED_MPS,
            (lines - network[..., None, :].detach()).norm(dim=-1) / _SPEED_MPS,
            apart / _FAR_M,
        ]
        chosen = self.choice(torch.cat([own.to(content.dtype) for own in clues], -1)).float()
        exists = torch.cat([torch.ones_like(new[..., :1]), new], -1)
        weights = chosen[..., :-1].masked_fill(~exists, float("-inf")).softmax(-1)
        velocity = (weights[..., None] * torch.cat([network[..., None, :], lines], -2)).sum(-2)
        moving = velocity.detach()
        ahead = moving / (moving.norm(dim=-1, keepdim=True) + _TURNING_MPS)
        trust = chosen[..., -1:].sigmoid()
        heading = (1 - trust) * codes[..., 6:8] - trust * ahead  # codes of a heading: minus its cosine and sine
        some = new.any(-1, keepdim=True)
        tail = torch.where(some, torch.cat([heading, velocity], -1), codes[..., 6:])
        return torch.cat([codes[..., :6], tail], -1)

    def lines(self, places: Tensor, trail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of straight lines through places [..., 2] and trails [..., T, 3]: velocities [..., W, 2], root mean square
        distances [..., W] of the places from them, and whether each has a place that the shorter ones have not.
        """
        xy = torch.cat([places[..., None, :], trail[..., :2]], -2)  # [..., 1 + T, 2]
        time = torch.cat([torch.zeros_like(places[..., :1]), -trail[..., 2]], -1)  # [..., 1 + T]
        exists = torch.cat([torch.ones_like(places[..., :1]), (trail[..., 2] > 0).to(places)], -1)
        velocities, apart, new = [], [], []
        before = torch.ones_like(exists[..., 0])
        for count in self.places:
            w = exists[..., : 1 + count]
            number = w.sum(-1, keepdim=True)
            t = time[..., : 1 + count] - (time[..., : 1 + count] * w).sum(-1, keepdim=True) / number
            x = xy[..., : 1 + count, :]
            x = x - (x * w[..., None]).sum(-2, keepdim=True) / number[..., None]
            spread = (w * t * t).sum(-1).clamp(min=1e-4)
            velocity = ((w * t)[..., None] * x).sum(-2) / spread[..., None]
            rest = ((x - velocity[..., None, :] * t[..., None]).square().sum(-1) * w).sum(-1) / number[..., 0]
            velocities.append(velocity)
            apart.append(rest.clamp(min=0).sqrt())
            new.append(number[..., 0] > before)
            before = number[..., 0]
        return torch.stack(velocities, -2), torch.stack(apart, -1), torch.stack(new, -1)
