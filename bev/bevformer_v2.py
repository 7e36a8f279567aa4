"""BEVFormer v2 with several heads: surround cameras in; boxes, voxels and lanes out, from one pass of one encoder.

Papers: BEVFormer v2 (arXiv 2211.10439), building on BEVFormer (arXiv 2203.17270) and Group DETR (arXiv 2207.13085).
State dicts have the keys of the released checkpoints: ``img_backbone.``, ``img_neck.``, ``pts_bbox_head.`` (BEV map and
box head), ``fcos3d_bbox_head.`` (perspective head). Parts that the release lacks have prefixes of their own.

The heads for voxels and lanes come as configs (``occupancy.OccupancyHead``, ``lane_topology.LaneTopologyHead``), so
that this room does not know those above it. All heads read the one map of the BEV frame; those for voxels and lanes
resample it to their own grid of the EGO frame, so ranges may differ from head to head.

Shapes: B batch, T frames of a clip, N cameras, C channels, H x W padded image, h x w feature cells of a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.answers import SceneAnswer
from ..core.batch import Batch, BevFeatures
from ..core.errors import ConfigError
from ..core.once import warn_once
from ..core.registries import MODELS
from ..core.weights.names import some
from ..core.weights.published_keys import keep_published_keys, published_name
from .boxes.memory import Objects, Past
from .boxes.task import BoxOutputs
from .fixed_features import Views, from_store, to_store
from .junction import junction_gradients
from .map.adapter import BevAdapter
from .map.gridmask import GridMask
from .map.history import History, evaluation_mode, prune, recall, remember
from .map.memory import SceneState, States, StreamingMemory, rounds
from .map.temporal import effective, warp_bev
from .protocol import TASKS, Levels, PerceptionModel, TaskHead, build, build_encoder, image_levels

PUBLISHED_KEYS = {
    "bev_map.": "pts_bbox_head.transformer.",
    "bev_map.bev_embedding.": "pts_bbox_head.bev_embedding.",
    "bev_map.positional_encoding.": "pts_bbox_head.positional_encoding.",
    "boxes.head.": "pts_bbox_head.",
    "boxes.head.decoder.": "pts_bbox_head.transformer.decoder.",
    "boxes.head.reference_points.": "pts_bbox_head.transformer.reference_points.",
    "boxes.perspective.": "fcos3d_bbox_head.",
    "boxes.bev_proposals.": "bev_proposals.",
    "boxes.hybrid_queries.": "hybrid_queries.",
}
TEACHERS = ("depth_teacher.", "lane_head.many.", "pts_bbox_head.quality_branch.")
"""Prefixes in state dicts of parts that only training meets."""


@MODELS.register_module()
class BEVFormerV2(PerceptionModel):
    """From a clip of surround images to boxes in the current BEV frame, voxels and lanes in its EGO frame.

    img_backbone, img_neck: image encoder; images [M, 3, H, W] -> maps -> pyramid maps [M, C, h, w].
    bev_map: BevMap; its ``frames`` are the keyframes of a clip.
    memory: StreamingMemory, which carries the map from frame to frame, for a ``bev_map`` of the current frame alone.
    boxes: BoxTask; occupancy_head, lane_head: heads for voxels and lanes. Any of them, at least one.
    depth_teacher: perspective.depth.DepthTeacher: learns depth from the image features in training, weighted by itself.
    tasks: which answers are learned and given; default all that have a head. Parameters that no task needs get no
        gradient (``requires_grad`` False), so that a model for one task trains under DDP and keeps the other weights.
    loss_weights: factor per task on all its loss terms, 1 where absent.
    adapters: tasks whose head reads the map through a BevAdapter of its own, which starts as nothing; True: all tasks.
    frozen: prefixes of names that do not learn: of state-dict keys, e.g. ("img_backbone.", "pts_bbox_head."), or of
        the parts above, e.g. "bev_map.".
    grid_mask: blanks a random grid of the images in training (GridMask, arXiv 2001.04086).

    A number is stated once: channels of neck and heads, ranges and class counts follow from the encoder, the BEV map
    and the box head where their configs leave them out.

    Raises ConfigError for an unknown task or one without its head, for a prefix that names nothing, and for memory
    beside several frames.
    """

    def __init__(
        self,
        *,
        img_backbone: dict | nn.Module,
        img_neck: dict | nn.Module,
        bev_map: dict | nn.Module,
        boxes: dict | nn.Module | None = None,
        occupancy_head: dict | nn.Module | None = None,
        lane_head: dict | nn.Module | None = None,
        memory: dict | nn.Module | None = None,
        depth_teacher: dict | nn.Module | None = None,
        tasks: Sequence[str] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        adapters: Sequence[str] | bool = (),
        frozen: Sequence[str] = (),
        grid_mask: bool = True,
    ) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = build_encoder(img_backbone, img_neck)
        self.bev_map = build(bev_map)
        channels, pc_range = self.bev_map.embed_dims, self.bev_map.pc_range
        self.boxes = build(boxes, embed_dims=channels, pc_range=pc_range)
        self.occupancy_head = build(occupancy_head, in_channels=channels)
        self.lane_head = build(lane_head, in_channels=channels)
        self.memory: StreamingMemory | None = build(memory, channels=channels, grid=self.bev_map.grid)
        if self.memory is not None and len(self.frame_offsets) > 1:
            raise ConfigError(
                f"memory carries the past, and bev_map.frames {self.frame_offsets} encode it again: leave memory out, "
                "or set bev_map.frames=(0,)"
            )
        if self.remembers_objects and self.memory is None:
            raise ConfigError("boxes.memory remembers objects in the state of a streaming memory: configure memory too")
        self.depth_teacher = build(depth_teacher, in_channels=channels)
        self.grid_mask = GridMask() if grid_mask else None
        self.loss_weights = dict(loss_weights or {})
        heads = {"boxes": self.boxes, "occupancy": self.occupancy_head, "lanes": self.lane_head}
        present = [task for task in TASKS if heads[task] is not None]
        adapted = tuple(present) * adapters if isinstance(adapters, bool) else tuple(adapters)
        for task in (*(tasks or ()), *self.loss_weights, *adapted):
            if task not in TASKS:
                raise ConfigError(f"{task!r} is no task: choose from {', '.join(TASKS)}")
            if heads[task] is None and task in (*(tasks or ()), *adapted):
                raise ConfigError(f"task {task!r} has no head: configure {self._head_name(task)}")
        self.adapters = nn.ModuleDict({task: BevAdapter(channels) for task in adapted})
        self.tasks = tuple(task for task in present if tasks is None or task in tasks)
        if not self.tasks:
            raise ConfigError("a model needs at least one task: configure boxes, occupancy_head or lane_head")
        keep_published_keys(self, PUBLISHED_KEYS)
        self._freeze(frozen)

    @property
    def frame_offsets(self) -> tuple[int, ...]:  # type: ignore[override]  # follows from a part of the model
        """Keyframes of a clip relative to the current one, ascending."""
        return self.bev_map.frames

    @property
    def streams(self) -> bool:  # type: ignore[override]  # follows from a part of the model
        """Whether training hands the memory from one iteration to the next."""
        return self.memory is not None

    @property
    def gives_tracks(self) -> bool:  # type: ignore[override]  # follows from a part of the model
        return "boxes" in self.tasks and self.remembers_objects

    @property
    def remembers_objects(self) -> bool:
        """Whether a box head, also one that is not among the tasks, has an object memory."""
        return self.boxes is not None and self.boxes.memory is not None

    @property
    def teachers(self) -> tuple[str, ...]:  # type: ignore[override]  # follows from a part of the model
        return TEACHERS[:-1] if self.boxes is not None and self.boxes.head.rescore else TEACHERS

    @staticmethod
    def _head_name(task: str) -> str:
        return {"boxes": "boxes", "occupancy": "occupancy_head", "lanes": "lane_head"}[task]

    def task_head(self, task: str) -> TaskHead:
        """The head of a task."""
        return getattr(self, self._head_name(task))

    def _freeze(self, prefixes: Sequence[str]) -> None:
        idle = [task for task in TASKS if task not in self.tasks]
        unused = (*(f"{self._head_name(task)}." for task in idle), *(f"adapters.{task}." for task in idle))
        names = {name: published_name(self, name) for name, _ in self.named_parameters()}
        chosen: set[str] = set()
        for prefix in prefixes:
            own = {name for pair in names.items() for name in pair if name.startswith(prefix)}
            if not own:
                raise ConfigError(f"frozen: no parameter's name begins with {prefix!r}")
            chosen |= own
        for name, parameter in self.named_parameters():
            if {name, names[name]} & chosen or (unused and name.startswith(unused)):
                parameter.requires_grad_(False)
        self.frozen = tuple(prefixes)

    def train(self, mode: bool = True) -> BEVFormerV2:
        """Set the mode; statistics of frozen BatchNorm layers stay as they are, and are used."""
        super().train(mode)
        for name, module in self.named_modules() if self.frozen and mode else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(
                    not f"{name}.".startswith(self.frozen)
                    and not published_name(self, f"{name}.").startswith(self.frozen)
                )
        return self

    def map_for(self, task: str, features: BevFeatures) -> BevFeatures:
        """The BEV map as the task's head reads it."""
        if task not in self.adapters:
            return features
        return replace(features, bev=self.adapters[task](features.bev))

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights without those of teachers that this model does not have, and a note of it."""
        own = self.state_dict()
        extra = [key for key in state if key.startswith(TEACHERS) and key not in own]
        if not extra:
            return state, []
        notes = [f"{len(extra)} tensors of teachers, which only training meets, are left out: {some(extra)}"]
        return {key: value for key, value in state.items() if key not in extra}, notes

    # ---- images to features and to the BEV map -------------------------------------------------------------------

    def extract_features(self, images: Tensor, flipped: Tensor) -> Levels:
        """Pyramid levels [B, N, C, h, w] of images [B, N, 3, H, W], with GridMask in training; see image_levels."""
        if self.training and self.grid_mask is not None:
            images = self.grid_mask(images.flatten(0, 1)).view_as(images)
        return image_levels(self.img_backbone, self.img_neck, images, flipped)

    def encode_frame_map(self, batch: Batch) -> tuple[Levels, BevFeatures]:
        """Features and BEV map of the current frames alone: no memory, and no BEV augmentation yet.

        All that a model of one frame computes from images comes from here; a function of (image, calibration) where
        nothing of it learns, and taken from the store where the batch brings it. Raises ValueError for a batch of other
        frames.
        """
        if batch.features is not None:
            return from_store(batch.features, self.bev_map.grid, self._views(batch), batch.images.shape[2])
        if batch.frame_offsets != (0,):
            raise ValueError(f"the model looks at the current frame (0,), the batch has {batch.frame_offsets}")
        levels = self.extract_features(batch.images[:, batch.current], batch.image_flipped)
        return levels, self.bev_map([levels], batch, augmented=False)

    def augmented(self, features: BevFeatures, batch: Batch) -> BevFeatures:
        """The map in the frame of the augmented boxes, in training. Where features are stored, nothing is augmented."""
        bda = effective(batch.bda) if self.training and batch.features is None else None
        return features if bda is None else replace(features, bev=warp_bev(features.bev, bda, features.grid))

    def encode_clip(self, batch: Batch) -> tuple[Levels, BevFeatures]:
        """Features of the current frame and the BEV map with history fused in, from a whole clip of images.

        Frames other than the current one are encoded as in evaluation and carry no gradient, as released.
        A batch that brings stored features has them taken instead.
        """
        if len(self.frame_offsets) == 1:
            levels, features = self.encode_frame_map(batch)
            return levels, self.augmented(features, batch)
        clip: list[Levels] = []
        for t in range(len(batch.frame_offsets)):
            present = t == batch.current
            with nullcontext() if present else torch.no_grad(), nullcontext() if present else evaluation_mode(self):
                clip.append(self.extract_features(batch.images[:, t], batch.image_flipped))
        return clip[batch.current], self.bev_map(clip, batch, augmented=self.training)

    def encode(self, batch: Batch, memory: History | None = None) -> tuple[Levels, BevFeatures, History]:
        """Image features and BEV map of the current frames, and the history to pass in with the next batch.

        A batch with the model's whole clip is encoded as it is. A batch of current frames only takes past ones from
        ``memory`` (their image features): the same numbers with one encoder pass per frame.
        Raises ValueError for other frame offsets, a memory for a model that looks into the future, or one of images
        that were padded to another size.
        """
        history = dict(memory or {})
        if batch.frame_offsets == self.frame_offsets:
            levels, features = self.encode_clip(batch)
        elif batch.frame_offsets == (0,) and self.frame_offsets[-1] == 0:
            levels = self.extract_features(batch.images[:, 0], batch.image_flipped)
            used = levels[: self.bev_map.num_levels]
            history |= remember(used, batch)
            features = self.bev_map(*recall(used, batch, history, self.frame_offsets), augmented=self.training)
            history = prune(history, batch.frames, -self.frame_offsets[0])
        else:
            raise ValueError(
                f"the model looks at frames {self.frame_offsets}; the batch has {batch.frame_offsets}. Give it "
                "the whole clip, or (0,) with a memory where no future frame is needed."
            )
        return levels, features, history

    # ---- features that training does not change (engine/feature_cache.py) ----------------------------------------

    def _views(self, batch: Batch) -> Views:
        return [view for task in self.tasks for view in self.task_head(task).pyramid_views(batch)]

    def fixed_state(self) -> dict[str, Tensor]:
        """Parameters and buffers behind ``fixed_features``, by name.

        Raises ConfigError where one of them learns, or features follow from more than the current frame's images.
        """
        found: dict[str, Tensor] = {}
        for part in ("img_backbone", "img_neck", "bev_map"):
            named = dict(getattr(self, part).named_parameters())
            if learning := [name for name, parameter in named.items() if parameter.requires_grad]:
                raise ConfigError(
                    f"features can be stored only where nothing up to the BEV map learns, but {part}.{learning[0]} "
                    "does: freeze it, frozen=['img_backbone.', 'img_neck.', 'bev_map.']"
                )
            found |= {f"{part}.{name}": value for name, value in named.items()}
            found |= {f"{part}.{name}": value for name, value in getattr(self, part).named_buffers()}
        if self.depth_teacher is not None:
            raise ConfigError("the depth teacher teaches the image encoder, which is frozen here: depth_teacher=None")
        if len(self.bev_map.frames) > 1:
            raise ConfigError(f"stored features are of one frame, the BEV map fuses frames {self.bev_map.frames}")
        if self.grid_mask is not None:
            raise ConfigError(
                "grid_mask draws other images every time: switch it off (grid_mask=False) to store features"
            )
        return found

    def fixed_features(self, batch: Batch) -> dict[str, Tensor]:
        """All that heads read of a batch of undrawn clips, each [B, ...], computed as in evaluation; see Batch."""
        self.fixed_state()
        with evaluation_mode(self):
            return to_store(*self.encode_clip(batch), self._views(batch))

    # ---- the protocol --------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms of all tasks, each with its task's weight.

        A sample may be labelled for some tasks only; it adds nothing to the others. A task that no sample of the batch
        is labelled for adds zeros that keep its parameters in the graph, so nothing breaks under DDP.
        Raises FloatingPointError if predictions are not finite, naming the layer; ConfigError for a batch of other
        frame offsets than the model's, without labels for any task (but with ``memory``, whose frames come in their
        order), or with labels that BoxTask.check_labels refuses.
        """
        return self.stream_loss(batch)[0]

    def stream_loss(
        self, batch: Batch, memory: States | None = None
    ) -> tuple[dict[str, Tensor], dict[str, SceneState]]:
        """``loss``, and the memory for the next iteration: states of the batch's streams, {} for a model without.

        Raises as ``loss``; ConfigError for a batch with two samples of one stream.
        """
        self.check_clip(batch)
        labels: dict[str, Sequence[Any]] = {"boxes": batch.gt_boxes, "occupancy": batch.occupancy, "lanes": batch.lanes}
        if not any(own is not None for task in self.tasks for own in labels[task]):
            names = ", ".join(self.tasks)
            if self.memory is None:
                raise ConfigError(
                    f"samples {', '.join(batch.tokens)} have no labels to learn {names} from: train on a split with "
                    "annotations, and let the dataset load them (occupancy=True, lanes=True)"
                )
            warn_once(f"there are frames without labels to learn {names} from: the memory goes through them")
        if "boxes" in self.tasks:
            self.boxes.check_labels(batch)
        states: dict[str, SceneState] = {}
        past = None
        if self.memory is None:
            levels, features = self.encode_clip(batch)
        else:
            levels, features = self.encode_frame_map(batch)
            features, states = self.memory(features, batch, memory)
            features, past = self.augmented(features, batch), self.past_objects(batch, memory, states)
        losses: dict[str, Tensor] = {}
        by_task: dict[str, Tensor] = {}
        for task in self.tasks:
            head = self.task_head(task)
            outputs = self.run_head(task, features, levels, batch, past)
            states |= self.left_behind(outputs, batch, states)
            terms = head.loss(outputs, batch)
            weight = self.loss_weights.get(task, 1.0)
            weighted = {name: value * weight for name, value in terms.items()}
            losses |= weighted
            if self.measures_gradients:
                by_task[task] = torch.stack([value for name, value in weighted.items() if "loss" in name]).sum()
        if self.measures_gradients:
            self.gradients = junction_gradients(features.bev, by_task)
        if self.depth_teacher is not None:
            losses |= self.depth_teacher.loss(levels, batch)
        return losses, states

    def pack_memory(self, memory: States | None) -> dict[str, Any]:
        """States as dicts by stream, which no other process has."""
        return {key: state.as_plain() for key, state in (memory or {}).items()}

    def unpack_memory(self, packed: dict[str, Any]) -> dict[str, SceneState]:
        """The inverse of ``pack_memory``."""
        return {key: SceneState.of_plain(own) for key, own in packed.items()}

    @torch.no_grad()
    def predict(
        self, batch: Batch, memory: History | States | None = None, tasks: Sequence[str] | None = None
    ) -> tuple[list[SceneAnswer], History | States]:
        """The answers for the current frames, and the memory to pass in next.

        That is the history of ``encode``, or with ``memory`` (StreamingMemory) the states of the batch's scenes. Frames
        of one scene in a batch are answered one after the other. Where objects are remembered, the box head runs even
        if ``tasks`` leaves boxes out, so that they and their ids are there at the next frame.
        """
        batch, asked = batch.without_labels(), self.asked(tasks)
        if self.memory is None:
            levels, features, history = self.encode(batch, memory)  # type: ignore[arg-type]
            outputs = {task: self.run_head(task, features, levels, batch) for task in asked}
            return self.answer(outputs, batch), history
        levels, features = self.encode_frame_map(batch)
        states: dict[str, SceneState] = dict(memory or {})  # type: ignore[arg-type]
        answers: list[SceneAnswer | None] = [None] * len(batch.tokens)
        for samples in rounds(batch):
            part, own_levels, own_features = batch.select(samples), levels, features
            if part is not batch:  # indexing would copy to another layout, whose sums round otherwise
                own_levels = [level[samples] for level in levels]
                own_features = replace(features, bev=features.bev[samples])
            fused, new = self.memory(own_features, part, states)
            past = self.past_objects(part, states, new)
            running = set(asked) | ({"boxes"} if any(past or ()) else set())  # what is remembered has to be carried on
            outputs = {task: self.run_head(task, fused, own_levels, part, past) for task in TASKS if task in running}
            left = self.left_behind(outputs.get("boxes"), part, new)
            if "boxes" not in asked:  # a scene that was never asked for boxes stays as it is alone
                left = {key: left[key] for key, own in zip(part.stream_keys, past or ()) if own is not None}
            states |= new | left
            for b, own in zip(samples, self.answer({task: outputs[task] for task in asked}, part)):
                answers[b] = own
        kept = {key: states[key] for key in batch.stream_keys if key in states}
        return [answer for answer in answers if answer is not None], kept

    def answer(self, outputs: Mapping[str, Any], batch: Batch) -> list[SceneAnswer]:
        """The answers that the outputs of heads, by task, stand for."""
        found = {task: self.task_head(task).predict(own, batch) for task, own in outputs.items()}
        return [
            SceneAnswer(token, **{task: own[b] for task, own in found.items()}) for b, token in enumerate(batch.tokens)
        ]

    # ---- heads, and what the box head remembers ------------------------------------------------------------------

    def run_head(
        self,
        task: str,
        features: BevFeatures,
        levels: Levels,
        batch: Batch,
        past: Sequence[Past | None] | None = None,
    ) -> Any:
        """The outputs of a task's head; ``past`` is what the box head remembers."""
        own = self.map_for(task, features)
        if task == "boxes" and past is not None:
            return self.boxes(own, levels, batch, past)
        return self.task_head(task)(own, levels, batch)

    def past_objects(self, batch: Batch, memory: States | None, states: States) -> list[Past | None] | None:
        """What the box head remembers of each sample's scene; None where it remembers nothing and leaves nothing.

        memory: of the frames before; states: of this batch, {} where it has no poses.
        """
        if not self.gives_tracks or self.memory is None or not states:
            return None
        found: list[Past | None] = []
        for key in batch.stream_keys:
            now = states[key]
            old = (memory or {}).get(key)
            if old is None or old.objects is None or old.scene_token != now.scene_token:
                found.append(None)
                continue
            objects = Objects.of_plain(old.objects)
            if self.memory.usable(old, now) is None:  # a gap: new objects, but no id a second time in the scene
                objects = objects.forgotten()
            motion = torch.linalg.inv(now.global_from_bev) @ old.global_from_bev.to(now.global_from_bev)
            found.append(Past(objects, motion, (now.timestamp_us - old.timestamp_us) * 1e-6))
        return found

    @staticmethod
    def left_behind(outputs: Any, batch: Batch, states: States) -> dict[str, SceneState]:
        """The states of the batch's streams with the objects that the box head leaves for the next frame."""
        if not isinstance(outputs, BoxOutputs) or outputs.remembered is None:
            return {}
        return {
            key: replace(states[key], objects=own.objects.as_plain())
            for key, own in zip(batch.stream_keys, outputs.remembered)
        }
