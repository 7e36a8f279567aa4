"""Two InternImages in a row, the first feeding its deep features back into the second.

CBNet: A Composite Backbone Network Architecture for Object Detection, arXiv 2107.00420 (CBNetV2, dense
higher-level composition), as released with InternImage-H detectors (arXiv 2211.05778). Released code MIT; written
anew with the released parameter names.

Differs from the released code: the scales gamma stay in the weights' own precision (released: cast to float16).

Shape legend: N images, H height, W width, C channels of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checkpoint import load_checkpoint
from ...core.registries import MODELS
from ...core.weights.names import StateDict
from ..features import FeatureInfo
from .model import NUM_LEVELS, InternImage


class LeadInternImage(InternImage):
    """The second trunk: it has no stem of its own and takes feedback at the start of each level."""

    def __init__(self, **trunk: Any):
        super().__init__(**trunk)
        del self.patch_embed
        for i in range(NUM_LEVELS):
            self.register_parameter(f"gamma{i}", nn.Parameter(torch.zeros(self.channels << i)))

    def _frozen_modules(self) -> list[nn.Module]:
        return [*self.levels[: max(self.frozen_stages, 0)]]

    def adapt_checkpoint(self, state: StateDict) -> tuple[StateDict, list[str]]:
        """Also take the checkpoint of a whole trunk: leave its stem out, keep the feedback scales as they are."""
        state, notes = super().adapt_checkpoint(state)
        state = {key: value for key, value in state.items() if not key.startswith("patch_embed.")}
        scales = [f"gamma{i}" for i in range(NUM_LEVELS)]
        if not any(name in state for name in scales):
            state.update({name: getattr(self, name).detach() for name in scales})
            notes.append("no feedback scales gamma0..3: kept as they are")
        return state, notes

    def forward_from(self, stem: Tensor, feedback: Sequence[Tensor]) -> list[Tensor]:
        """Stem output [N, H/4, W/4, C] and a feedback map per level, NHWC -> NHWC features of `out_indices`."""
        x, features = self.pos_drop(stem), []
        for i, level in enumerate(self.levels[: self.out_indices[-1] + 1]):
            feature, x_next = level(x + getattr(self, f"gamma{i}") * feedback[i])
            features.append(feature)
            x = x_next
        return [features[i] for i in self.out_indices]


@MODELS.register_module()
class CBInternImage(nn.Module):
    """Composite backbone: images [N, 3, H, W] -> (assisting maps, leading maps), two lists of NCHW maps.

    Both lists follow `feature_info` (`out_indices`, by default strides 8, 16, 32). Detectors train on both and
    predict from the second.

    Args:
        out_indices: levels to return.
        pretrained: checkpoint of a single InternImage, for both trunks, loaded by `init_weights()`.
        trunk: arguments of `InternImage`, the same for both trunks.
    """

    def __init__(self, *, out_indices: Sequence[int] = (1, 2, 3), pretrained: str | None = None, **trunk: Any):
        super().__init__()
        self.pretrained = pretrained
        self.cb_modules = nn.ModuleList([InternImage(**trunk), LeadInternImage(out_indices=out_indices, **trunk)])
        widths = [self.lead.channels << i for i in range(NUM_LEVELS)]
        # cb_linears[i][j - i] brings level j of the first trunk to level i's channels.
        self.cb_linears = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(widths[j], widths[i], 1) if j > i else nn.Identity() for j in range(i, NUM_LEVELS))
            for i in range(NUM_LEVELS)
        )

    @property
    def assistant(self) -> InternImage:
        return cast(InternImage, self.cb_modules[0])

    @property
    def lead(self) -> LeadInternImage:
        return cast(LeadInternImage, self.cb_modules[1])

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of each map of either list."""
        return self.lead.feature_info

    def _feedback(self, features: list[Tensor]) -> list[Tensor]:
        """Sum, per level, of its own and all deeper assisting features, brought to its size; NCHW -> NHWC."""
        feedback = []
        for i, linears in enumerate(self.cb_linears):
            size = features[i].shape[-2:]
            total = features[i]
            for linear, deeper in zip(linears[1:], features[i + 1 :]):
                total = total + F.interpolate(linear(deeper), size=size, mode="nearest")
            feedback.append(total.permute(0, 2, 3, 1))
        return feedback

    def forward_features(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        stem = self.assistant.patch_embed(images)
        x, assisting = self.assistant.pos_drop(stem), []
        for level in self.assistant.levels:
            feature, x = level(x)
            assisting.append(feature.permute(0, 3, 1, 2))
        leading = self.lead.forward_from(stem, self._feedback(assisting))
        return [assisting[i] for i in self.lead.out_indices], [y.permute(0, 3, 1, 2) for y in leading]

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.forward_features(images)

    def init_weights(self) -> None:
        """Load the checkpoint of one trunk named by `pretrained`, if any, into both trunks."""
        if self.pretrained is not None:
            load_checkpoint(self.assistant, self.pretrained)
            load_checkpoint(self.lead, self.pretrained)
