"""Learning-rate schedules beside MMEngine's own."""

from __future__ import annotations

import math
from typing import Any

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(LRSchedulerMixin, _ParamScheduler):
    """From ``warmup_lr`` to each group's own rate in ``warmup`` iterations, then along a cosine to ``min_lr``.

    The cosine counts from iteration 0 (so it sets in a little below the full rate) and ends at ``total``. These are the
    numbers of timm's CosineLRScheduler with one cycle, with which InternImage's classifiers were trained. Each value is
    a function of the iteration alone.
    """

    def __init__(
        self,
        optimizer: Any,
        total: int,
        warmup: int = 0,
        warmup_lr: float = 0.0,
        min_lr: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if not 0 <= warmup <= total or total < 1:
            raise ValueError(f"WarmupCosineLR: {warmup} iterations of warm-up do not fit into {total}")
        self.total, self.warmup, self.warmup_lr, self.min_lr = total, warmup, warmup_lr, min_lr
        super().__init__(optimizer, **kwargs)

    def _get_value(self) -> list[float]:
        done = min(self.last_step, self.total)
        if done < self.warmup:
            return [self.warmup_lr + done * (rate - self.warmup_lr) / self.warmup for rate in self.base_values]
        share = 0.5 * (1 + math.cos(math.pi * done / self.total))
        return [self.min_lr + (rate - self.min_lr) * share for rate in self.base_values]
