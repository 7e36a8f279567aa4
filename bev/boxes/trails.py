"""How fast an object moves and where it is, from where it was: straight lines through its last places.

One frame hardly shows a velocity; places half a second apart do, with an error that falls with the length of the line,
as long as the object keeps its speed. So several lines are fitted, through few and through many places, and the object
itself says how much it trusts each of them and the network's own guess:

    v = w_0 v_network + sum_n w_n v_line(n),  w = softmax(choice(content, speeds, distances of places from their line))

Weights that sum to 1 turn with the map: a scene seen from another side has the same answer. An object without earlier
places keeps the network's velocity to the bit. The heading learns as well how far to trust the direction of motion: at
ten pixels a pedestrian looks the same from the front and from the back.

With ``smooth`` the place is drawn towards the mean of earlier places, moved on at that velocity, by a share and weights
of a network of their own:

    c = c_network + share sum_n w_n (mean_n(place + v age) - c_network),  share = tanh(...), zero at first

Shapes: B batch, Q queries, T earlier places, C channels, W lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...core.registries import MODELS

_SPEED_MPS, _FAR_M = 10.0, 5.0  # units in which speeds and distances are given to ``choice``
_NEVER = -1e4  # the weight of a line that does not exist; infinity where none exists would be NaN
_TURNING_MPS = 0.5  # below it a direction of motion counts less than half


@dataclass(frozen=True)
class Lines:
    """Of W lines through ever more places of objects."""

    velocities: Tensor
    """[..., W, 2]"""
    apart: Tensor
    """[..., W] root mean square distance of the places from the line, metres"""
    new: Tensor
    """[..., W] whether it has a place that the shorter ones have not"""
    middle: Tensor
    """[..., W, 2] mean of the places"""
    middle_s: Tensor
    """[..., W] mean of their times, now is 0"""


@MODELS.register_module()
class TrailVelocity(nn.Module):
    """Velocities and headings of boxes from their earlier places; ObjectMemory uses it.

    channels: of the content of objects, ObjectMemory gives them. places: of how many earlier places each line is made,
    ascending; the longest is how many an object remembers. smooth: whether it also corrects the place.
    """

    def __init__(
        self, channels: int, places: Sequence[int] = (1, 2, 4, 6), hidden: int = 64, smooth: bool = False
    ) -> None:
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
        self.place = None
        if smooth:
            clues = channels + 4 * len(places) + 1
            self.place = nn.Sequential(nn.Linear(clues, hidden), nn.ReLU(), nn.Linear(hidden, len(places) + 1))
            nn.init.zeros_(self.place[-1].weight)
            nn.init.zeros_(self.place[-1].bias)

    def forward(self, content: Tensor, codes: Tensor, trail: Tensor) -> Tensor:
        """Codes [B, Q, 10] (box_coder) with velocity, heading and place from content [B, Q, C] and trails [B, Q, T, 3].

        A place of a trail is (x, y, age_s) in the frame of the codes, the newest first, age 0 where there is none.
        """
        places, network = codes[..., :2].detach(), codes[..., 8:]
        found = self.lines(places, trail)
        lines, new = found.velocities, found.new
        speeds = torch.cat([network[..., None, :].detach(), lines], -2).norm(dim=-1)
        clues = [
            self.norm(content),
            speeds / _SPEED_MPS,
            (lines - network[..., None, :].detach()).norm(dim=-1) / _SPEED_MPS,
            found.apart / _FAR_M,
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
        if self.place is None:
            return torch.cat([codes[..., :6], tail], -1)
        offsets = found.middle - moving[..., None, :] * found.middle_s[..., None] - places[..., None, :]
        clues.append(offsets.norm(dim=-1) / _FAR_M)
        drawn = self.place(torch.cat([own.to(content.dtype) for own in clues], -1)).float()
        weights = drawn[..., :-1].masked_fill(~new, _NEVER).softmax(-1)
        moved = codes[..., :2] + drawn[..., -1:].tanh() * (weights[..., None] * offsets).sum(-2)
        return torch.cat([torch.where(some, moved, codes[..., :2]), codes[..., 2:6], tail], -1)

    def lines(self, places: Tensor, trail: Tensor) -> Lines:
        """Straight lines through places [..., 2] and trails [..., T, 3]."""
        xy = torch.cat([places[..., None, :], trail[..., :2]], -2)  # [..., 1 + T, 2]
        time = torch.cat([torch.zeros_like(places[..., :1]), -trail[..., 2]], -1)  # [..., 1 + T]
        exists = torch.cat([torch.ones_like(places[..., :1]), (trail[..., 2] > 0).to(places)], -1)
        found: list[tuple[Tensor, ...]] = []
        before = torch.ones_like(exists[..., 0])
        for count in self.places:
            w = exists[..., : 1 + count]
            number = w.sum(-1, keepdim=True)
            middle_s = (time[..., : 1 + count] * w).sum(-1, keepdim=True) / number
            t = time[..., : 1 + count] - middle_s
            x = xy[..., : 1 + count, :]
            middle = (x * w[..., None]).sum(-2, keepdim=True) / number[..., None]
            x = x - middle
            spread = (w * t * t).sum(-1).clamp(min=1e-4)
            velocity = ((w * t)[..., None] * x).sum(-2) / spread[..., None]
            rest = ((x - velocity[..., None, :] * t[..., None]).square().sum(-1) * w).sum(-1) / number[..., 0]
            apart, new = rest.clamp(min=0).sqrt(), number[..., 0] > before
            found.append((velocity, apart[..., None], new[..., None], middle[..., 0, :], middle_s))
            before = number[..., 0]
        velocity, apart, new, middle, middle_s = (torch.stack(own, -2) for own in zip(*found))
        return Lines(velocity, apart[..., 0], new[..., 0], middle, middle_s[..., 0])
