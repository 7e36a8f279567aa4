"""The interface of all models: losses of a Batch by name; a SceneAnswer per sample, with memory for the next."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..core.answers import SceneAnswer
from ..core.batch import Batch, BevFeatures
from ..core.errors import ConfigError
from ..core.once import warn_once
from ..core.registries import MODELS
from .map.bev_map import BevMap

TASKS = ("boxes", "occupancy", "lanes")
Levels = list[Tensor]
"""Feature maps [B, N, C, h, w], finest first."""


def build(config: dict | nn.Module | None, **known: Any) -> Any:
    """A module from its config, or the module itself.

    known: arguments that another part of the model decides, such as channels: used where the config leaves them out
    and the class has them, so that a config states a number once.
    """
    if not isinstance(config, dict):
        return config
    made = MODELS.get(config["type"]) if isinstance(config["type"], str) else config["type"]
    if known and made is not None:
        accepted = inspect.signature(made).parameters
        config = {name: value for name, value in known.items() if name in accepted} | dict(config)
    return MODELS.build(config)


def build_encoder(img_backbone: dict | nn.Module, img_neck: dict | nn.Module) -> tuple[nn.Module, nn.Module]:
    """Image encoder and neck; the neck's ``in_channels`` follow from the encoder's ``feature_info``."""
    backbone = build(img_backbone)
    channels = tuple(level.channels for level in getattr(backbone, "feature_info", ()))
    return backbone, build(img_neck, **(dict(in_channels=channels) if channels else {}))


def image_levels(backbone: nn.Module, neck: nn.Module, images: Tensor, flipped: Tensor) -> Levels:
    """Pyramid levels [B, N, C, h, w] of images [B, N, 3, H, W]; those of mirrored samples are mirrored back.

    flipped: [B] bool. Geometry downstream never sees a mirrored image.
    """
    levels = [level.unflatten(0, (len(images), -1)) for level in neck(backbone(images.flatten(0, 1)))]
    if not torch.compiler.is_compiling() and not flipped.any():  # a compiled graph has one path
        return levels
    mirrored = flipped.view(-1, 1, 1, 1, 1)
    return [torch.where(mirrored, level.flip(-1), level) for level in levels]


def check_classes(batch: Batch, num_classes: int) -> None:
    """Raises ConfigError for a label of a box that is none of the model's classes."""
    labels = [own for own in batch.gt_labels if own is not None]
    highest = max((int(own.max()) for own in labels if len(own)), default=-1)
    if highest >= num_classes:
        raise ConfigError(
            f"samples {', '.join(batch.tokens)} have the label {highest}, but the model has {num_classes} classes: "
            "make num_classes the length of the dataset's class list"
        )


class PerceptionModel(BaseModel):
    """The protocol of all models, ours and the published ones.

    tasks: what the model answers, of TASKS. frame_offsets: keyframes of a training clip relative to the current one.
    streams: whether training hands its memory from one iteration to the next (``stream_loss``).
    gives_tracks: whether its boxes have ``track_ids``. teachers: prefixes of state-dict keys of parts that only
    training meets: weights to answer with may lack them.
    """

    tasks: tuple[str, ...] = TASKS
    frame_offsets: tuple[int, ...] = (0,)
    measures_gradients = False
    """Whether ``loss`` also measures what gradients the tasks send into what they share, in a model that can."""
    gradients: Mapping[str, float] | None = None
    """The last such measurement, by name; None: the model has never made one."""
    streams: bool = False
    gives_tracks: bool = False
    teachers: tuple[str, ...] = ()

    @property
    def remembers(self) -> bool:
        """Whether past keyframes change the answers."""
        return self.streams or len(self.frame_offsets) > 1

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms; those whose name contains "loss" are added up."""
        raise NotImplementedError

    def predict(
        self, batch: Batch, memory: Any = None, tasks: Sequence[str] | None = None
    ) -> tuple[list[SceneAnswer], Any]:
        """One answer per sample for the current frames, and the memory to pass in with the batch that follows in time.

        memory: None at the start; what it holds is the model's own matter, and samples of other scenes never see it.
        tasks: answer only these; default all. Labels in the batch are not looked at.
        """
        raise NotImplementedError

    def stream_loss(self, batch: Batch, memory: Any = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """``loss`` of models that ``streams``, and the states of the batch's streams after it, without gradient.

        memory: states by stream of earlier batches of training (engine/training_memory.py), also of streams that are
        not in this batch.
        """
        raise NotImplementedError

    def pack_memory(self, memory: Any) -> dict[str, Any]:
        """States as dicts, tensors and plain values, by stream."""
        raise NotImplementedError

    def unpack_memory(self, packed: dict[str, Any]) -> dict[str, Any]:
        """The inverse of ``pack_memory``."""
        raise NotImplementedError

    def asked(self, tasks: Sequence[str] | None) -> tuple[str, ...]:
        """``tasks`` in our order. Raises ConfigError for one that the model does not have."""
        if tasks is None:
            return self.tasks
        if missing := [task for task in tasks if task not in self.tasks]:
            raise ConfigError(f"the model answers {', '.join(self.tasks)}, not {missing[0]}: choose of these")
        return tuple(task for task in self.tasks if task in tasks)

    def check_clip(self, batch: Batch) -> None:
        """Raises ConfigError for a batch of other frame offsets than the model is trained on."""
        if batch.frame_offsets != self.frame_offsets:
            raise ConfigError(
                f"the model learns from frames {self.frame_offsets}, the batch has {batch.frame_offsets}: give its "
                "dataset the same frame_offsets"
            )

    def check_inputs(self, camera_names: Sequence[str], pc_range: Sequence[float] | None = None) -> None:
        """Compare a dataset's rig and range with the model's BEV map, before any work.

        Raises ConfigError for more cameras than the map has embeddings; warns of fewer, and of another range (pc_range
        None: not compared).
        """
        for bev_map in (module for module in self.modules() if isinstance(module, BevMap)):
            bev_map.check_cameras(len(camera_names))
            known = len(bev_map.cams_embeds)
            if len(camera_names) < known:
                warn_once(
                    f"the rig has {len(camera_names)} cameras ({', '.join(camera_names)}), the model was made for "
                    f"{known}: it answers from what these see"
                )
            if pc_range is not None and tuple(map(float, pc_range)) != bev_map.pc_range:
                warn_once(
                    f"the dataset's pc_range {tuple(map(float, pc_range))} is not the model's {bev_map.pc_range}: "
                    "objects outside either are not learned, or not found; give both the same"
                )

    def forward(self, batch: Batch, mode: str = "loss", memory: Any = None) -> Any:
        """``loss`` in training; ``predict`` without memory; "stream": ``stream_loss``. Other modes raise ValueError."""
        if mode not in ("loss", "predict", "stream"):
            raise ValueError(f"mode is 'loss' or 'predict', got {mode!r}")
        if mode == "stream":
            return self.stream_loss(batch, memory)
        return self.loss(batch) if mode == "loss" else self.predict(batch)[0]


class TaskHead(Protocol):
    """The interface of a head on the shared BEV map; ``levels``: the current frame's pyramid maps [B, N, C, h, w]."""

    def pyramid_views(self, batch: Batch) -> list[tuple[int, int]]:
        """(level, camera) of the maps of ``levels`` that it reads (fixed_features.py). Raises ConfigError: all."""

    def __call__(self, features: BevFeatures, levels: Levels, batch: Batch) -> Any: ...

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Named terms. A sample whose labels are None adds nothing; without any, zeros that keep the graph."""

    def predict(self, outputs: Any, batch: Batch) -> list[Any]:
        """One answer per sample, with its token."""
