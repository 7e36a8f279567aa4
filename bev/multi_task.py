"""One model, three answers: boxes, voxels and lanes from one pass of the image encoder and one BEV map.

The heads for voxels and lanes come as configs (``occupancy.OccupancyHead``, ``lane_topology.LaneTopologyHead``), so
that this room does not know those above it. All of them read the one BEV map of the LIDAR frame; each resamples it to
its own grid of the EGO frame (resample.resample_bev), so ranges may differ from head to head.

Shapes: B batch, N cameras, C channels, h x w cells of a feature level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..core.answers import SceneAnswer
from ..core.batch import Batch, BevFeatures
from ..core.errors import ConfigError
from .bevformer_v2 import BEVFormerV2, Levels, build
from .map.history import History

TASKS = ("boxes", "occupancy", "lanes")


class TaskHead(Protocol):
    """What a head for voxels or lanes offers; ``levels`` are the current frame's pyramid maps [B, N, C, h, w]."""

    def __call__(self, features: BevFeatures, levels: Levels, batch: Batch) -> Any: ...

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Named terms. A sample whose labels are None adds nothing; without any, zeros that keep the graph."""

    def predict(self, outputs: Any, batch: Batch) -> list[Any]:
        """One answer per sample, with its token."""


@MODELS.register_module()
class BevPerception(BEVFormerV2):
    """BEVFormer v2 with heads for voxels and lanes on the same BEV map.

    occupancy_head, lane_head: configs or modules; either, both or none.
    tasks: which answers are learned and given. Parameters that serve no task get no gradient (``requires_grad`` False),
        so that a model for one task trains under DDP and keeps the other heads' weights.
    loss_weights: factor per task on all its loss terms, 1 where absent.
    frozen: prefixes of parameter names that do not learn, e.g. ("img_backbone", "pts_bbox_head").
    Other arguments: see BEVFormerV2.

    Raises ConfigError for an unknown task or one without its head, and for a prefix that names nothing.
    """

    def __init__(
        self,
        *,
        occupancy_head: dict | nn.Module | None = None,
        lane_head: dict | nn.Module | None = None,
        tasks: Sequence[str] = TASKS,
        loss_weights: Mapping[str, float] | None = None,
        frozen: Sequence[str] = (),
        **detector: Any,
    ) -> None:
        super().__init__(**detector)
        self.occupancy_head, self.lane_head = build(occupancy_head), build(lane_head)
        self.loss_weights = dict(loss_weights or {})
        self.tasks = tuple(tasks)
        for task in (*self.tasks, *self.loss_weights):
            if task not in TASKS:
                raise ConfigError(f"{task!r} is no task: choose from {', '.join(TASKS)}")
        for task in self.tasks:
            if task != "boxes" and self._head(task) is None:
                raise ConfigError(f"task {task!r} has no head: configure {self._head_name(task)}")
        if not self.tasks:
            raise ConfigError("a model needs at least one task")
        self._freeze(frozen)

    @staticmethod
    def _head_name(task: str) -> str:
        return {"occupancy": "occupancy_head", "lanes": "lane_head"}[task]

    def _head(self, task: str) -> TaskHead | None:
        return getattr(self, self._head_name(task))

    def _freeze(self, prefixes: Sequence[str]) -> None:
        unused = [self._head_name(task) for task in TASKS[1:] if task not in self.tasks]
        if "boxes" not in self.tasks:
            # the BEV encoder and its queries live in the box head, under the published keys
            shared = ("transformer.encoder.", "transformer.level_embeds", "transformer.cams_embeds", "bev_embedding.")
            shared += ("transformer.fusion.", "positional_encoding.")
            for name, parameter in self.pts_bbox_head.named_parameters():
                if not name.startswith(shared):
                    parameter.requires_grad_(False)
            unused += ["fcos3d_bbox_head", "bev_proposals", "hybrid_queries", "perspective_proposals"]
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name, _ in self.named_parameters()):
                raise ConfigError(f"frozen: no parameter's name begins with {prefix!r}")
        for name, parameter in self.named_parameters():
            if name.startswith((*prefixes, *(f"{u}." for u in unused))):
                parameter.requires_grad_(False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms of all tasks, each with its task's weight.

        A batch may label some tasks only: a task whose labels no sample has adds zeros that keep its parameters in the
        graph, so nothing breaks under DDP. Raises as BEVFormerV2.loss; ConfigError if no task at all is labelled.
        """
        self._check_clip(batch)
        labelled = {"boxes": bool(batch.gt_boxes), "occupancy": any(t is not None for t in batch.occupancy)}
        labelled["lanes"] = any(t is not None for t in batch.lanes)
        if not any(labelled[task] for task in self.tasks):
            raise ConfigError(
                f"samples {', '.join(batch.tokens)} have labels for none of the tasks {', '.join(self.tasks)}: train "
                "on a split with annotations, and let the dataset load them (occupancy=True, lanes=True)"
            )
        if "boxes" in self.tasks and labelled["boxes"]:
            self._check_box_labels(batch)
        levels, features = self.encode_clip(batch)
        losses: dict[str, Tensor] = {}
        for task in self.tasks:
            if task == "boxes":
                terms = self._box_losses(levels, features, batch) if labelled[task] else self._no_boxes(features)
            else:
                head = self._head(task)
                terms = head.loss(head(features, levels, batch), batch)
            weight = self.loss_weights.get(task, 1.0)
            losses |= {name: value * weight for name, value in terms.items()}
        return losses

    def _no_boxes(self, features: BevFeatures) -> dict[str, Tensor]:
        """A zero that hangs on every parameter of the box task."""
        parts = (self.pts_bbox_head, self.fcos3d_bbox_head, self.bev_proposals, self.hybrid_queries)
        touched = [p.sum() for part in parts if part is not None for p in part.parameters() if p.requires_grad]
        return {"loss_boxes_unlabelled": (torch.stack(touched).sum() + features.bev.sum()) * 0.0}

    @torch.no_grad()
    def predict(self, batch: Batch, history: History | None = None) -> tuple[list[SceneAnswer], History]:
        """The answers of all tasks for the current frames, and the history to pass in next (BEVFormerV2.encode)."""
        levels, features, history = self.encode(batch, history)
        found: dict[str, list] = {}
        for task in self.tasks:
            if task == "boxes":
                found[task] = self._detect(levels, features, batch)
            else:
                head = self._head(task)
                found[task] = head.predict(head(features, levels, batch), batch)
        return [
            SceneAnswer(token, **{task: answers[b] for task, answers in found.items()})
            for b, token in enumerate(batch.tokens)
        ], history
