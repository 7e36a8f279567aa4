"""Where the tasks meet: the gradients that each sends into the shared BEV map.

All heads read one tensor, so the gradients of the tasks at that tensor say how loud each speaks to the encoder (norms)
and whether two pull in opposite directions (cosines), without a backward pass through the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from ..core.errors import ConfigError


def junction_gradients(bev: Tensor, losses: Mapping[str, Tensor]) -> dict[str, float]:
    """``norm_TASK`` of the gradient of each task's loss at the map [B, C, num_y, num_x], and ``cosine_TASK_TASK`` of
    each pair. A task without labels in this batch has the norm 0 and no cosine.

    One backward pass per task, from its loss to the map; the graph stays for the training step, and no parameter gets a
    gradient. Raises ConfigError where no gradient can reach the map.
    """
    if not bev.requires_grad:
        raise ConfigError(
            "gradient_log_interval: nothing up to the BEV map learns (model.frozen), so no gradient is at it: leave "
            "gradient_log_interval out"
        )
    found: dict[str, float] = {}
    gradients: dict[str, Tensor] = {}
    with torch.autocast(bev.device.type, enabled=False):
        for task, loss in losses.items():
            (gradient,) = torch.autograd.grad(loss, bev, retain_graph=True, allow_unused=True)
            flat = torch.zeros(1) if gradient is None else gradient.detach().float().flatten()
            norm = float(flat.norm())
            found[f"norm_{task}"] = norm
            if norm > 0:
                gradients[task] = flat / norm
        for one, other in combinations(gradients, 2):
            found[f"cosine_{one}_{other}"] = float(gradients[one] @ gradients[other])
    return found
