"""Any model of mmdet or mmseg in our own training loop: exact resume, safe checkpoints, our answers.

The only file of this folder that imports both packages, when a model or data set of theirs is first built. Both
build what a config names by text from a registry of their own; `toolbox` chooses which.

Shape legend: n instances, H and W of the image on disk.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.image_answers import ImageAnswer, Instances
from ...core.registries import MODELS
from ...core.weights.names import StateDict, some
from ...core.weights.published_keys import keep_published_keys
from .detection.keys import adapt_detector
from .protocol import ImageModel
from .segmentation.keys import adapt_segmentor

SCOPES = {"instances": "mmdet", "segmentation": "mmseg"}
"""Task -> the package that does it, which is also the name of its registries."""

KEYS: Mapping[str, Callable[[StateDict], tuple[StateDict, list[str]]]] = {
    "instances": adapt_detector,
    "segmentation": adapt_segmentor,
}
ENCODER = "backbone."
STEM = "patch_embed.conv1.weight"
"""At the top level of a checkpoint: it holds an encoder alone."""


@contextmanager
def toolbox(task: str) -> Iterator[None]:
    """Within, names of types are those of mmdet (task "instances") or mmseg ("segmentation").

    Raises ConfigError where they are not installed, or for another task.
    """
    if task not in SCOPES:
        raise ConfigError(f"task {task!r}: OpenMMLab's models answer one of {', '.join(SCOPES)}")
    try:
        from ...compat.mmcv_ops import patch_mmcv  # the operators under mmcv.ops; tests/test_arrows.py says why

        patch_mmcv()
        for module in ("mmdet.models", "mmdet.datasets", "mmseg.models", "mmseg.datasets"):
            importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"detection and segmentation need mmdet, mmseg and mmcv-lite ({error}): run `make openmmlab`"
        ) from error
    with DefaultScope.overwrite_default_scope(SCOPES[task]):
        yield


@dataclass
class MMBatch:
    """What a model of mmdet or mmseg takes: ``inputs`` and ``data_samples``, each a list with an entry per image.

    With test-time augmentation both hold a list per view instead.
    """

    data: dict[str, Any]
    tokens: list[str]

    def to(self, device: torch.device | str) -> MMBatch:
        """Unchanged: the model's own preprocessor moves images as it normalises them."""
        return self


@MODELS.register_module()
class MMModel(ImageModel):
    """A detector or segmentor under our protocol of image models.

    Args:
        net: a config of mmdet or mmseg, or ``dict(type=FUNCTION, ...)`` with a function of detection/heads.py or
            segmentation/heads.py that returns one.
        task: "instances" or "segmentation".
        tta: config of a model for test-time augmentation, "DetTTAModel" or "SegTTAModel", which merges the views that
            the data set's pipeline makes of each image.

    Its state dict has the keys of the package's own model, so weights go to and from their tools. Released
    InternImage detectors and segmentors load through `adapt_checkpoint`, as do encoders alone.
    """

    def __init__(self, net: Mapping[str, Any], task: str = "instances", tta: Mapping[str, Any] | None = None):
        super().__init__()
        self.task = task
        with toolbox(task):
            options = dict(net)
            if callable(options["type"]) and not isinstance(options["type"], type):
                options = options.pop("type")(**options)
            self.net = ROOT_MODELS.build(ConfigDict(options))  # their constructors read entries as attributes
        if isinstance(levels := getattr(self.net, "level_embed", None), nn.Parameter):
            nn.init.normal_(levels)  # DINO leaves the memory as it finds it until init_weights(): at times NaN
        self._tta = None if tta is None else dict(tta)
        if self._tta is not None and task == "instances" and getattr(self.net, "with_mask", False):
            raise ConfigError(
                "model.tta: mmdet merges boxes of several views, not masks; leave it out, or use a model of boxes"
            )
        keep_published_keys(self, {"net.": ""})

    @property
    def encoder(self) -> nn.Module:
        """The image encoder."""
        return self.net.backbone

    def loss(self, batch: MMBatch) -> dict[str, Tensor]:
        data = self.net.data_preprocessor(batch.data, training=self.training)
        losses = self.net(**data, mode="loss")
        return {name: _scalar(value) for name, value in losses.items()}

    def predict(self, batch: MMBatch) -> list[ImageAnswer]:
        if self._tta is not None:
            samples = self._merged_views(batch)
        else:
            data = self.net.data_preprocessor(batch.data, training=False)
            samples = self.net(**data, mode="predict")
        return [self._answer(sample, token) for sample, token in zip(samples, batch.tokens)]

    def _merged_views(self, batch: MMBatch) -> list[Any]:
        with toolbox(self.task):
            return ROOT_MODELS.build(ConfigDict(**(self._tta or {}), module=self.net)).test_step(batch.data)

    def _answer(self, sample: Any, token: str) -> ImageAnswer:
        height, width = sample.metainfo["ori_shape"][:2]
        if self.task == "segmentation":
            classes = sample.pred_sem_seg.data.reshape(height, width)
            if int(classes.max()) > 255:
                raise ConfigError(f"class {int(classes.max())}: answers of segmentation hold at most 256 classes")
            return ImageAnswer(token, (width, height), segmentation=classes.to(torch.uint8).cpu().numpy())
        return ImageAnswer(token, (width, height), instances=_instances(sample.pred_instances, width, height))

    def adapt_checkpoint(self, state: StateDict) -> tuple[StateDict, list[str]]:
        """Bring released checkpoints, and encoders' alone, to this model's keys; see load_checkpoint."""
        own = self.state_dict()
        state, averaged = _without_averages(state, own)
        state, notes = KEYS[self.task](state)
        notes = averaged + notes
        alone = {key.removeprefix(ENCODER): value for key, value in state.items()}
        if STEM in state or (STEM in alone and all(key.startswith(ENCODER) for key in state)):
            state, more = self._encoder_alone(alone)
            notes += more
        return state, notes

    def _encoder_alone(self, state: StateDict) -> tuple[StateDict, list[str]]:
        """Weights of one encoder for the model's, or for both trunks of a composite one."""
        trunks = {"": self.encoder}
        if hasattr(self.encoder, "cb_modules"):
            trunks = {f"cb_modules.{i}.": trunk for i, trunk in enumerate(self.encoder.cb_modules)}
        placed: StateDict = {}
        notes: list[str] = []
        for prefix, trunk in trunks.items():
            adapt = getattr(trunk, "adapt_checkpoint", None)
            part, more = (state, []) if adapt is None else adapt(state)
            placed |= {f"{ENCODER}{prefix}{key}": value for key, value in part.items()}
            notes += [note for note in more if note not in notes]
        return placed, [*notes, "an encoder alone: the rest of the model is not in it"]


def _scalar(value: Tensor | Sequence[Tensor]) -> Tensor:
    """A loss as mmdet and mmseg mean it: lists (one entry a level or layer) are added up."""
    if isinstance(value, Tensor):
        return value.mean()
    return torch.stack([part.mean() for part in value]).sum()


def _instances(found: Any, width_px: int, height_px: int) -> Instances:
    order = torch.argsort(found.scores, descending=True, stable=True)
    limits = found.bboxes.new_tensor([width_px, height_px, width_px, height_px])
    boxes = found.bboxes[order].clamp(min=0).minimum(limits)
    masks = found.masks[order] if "masks" in found else None
    if isinstance(masks, Tensor):
        masks = masks.cpu().numpy()
    return Instances(
        boxes.float().cpu().numpy(),
        found.scores[order].float().cpu().numpy(),
        found.labels[order].cpu().numpy().astype(np.int64),
        None if masks is None else masks.astype(np.bool_, copy=False),
    )


def _without_averages(state: StateDict, own: Mapping[str, Tensor]) -> tuple[StateDict, list[str]]:
    """Leave out what mmcv 1's EMA hook keeps beside the averaged weights: the raw ones, as ``ema_backbone_...``."""
    names = {"ema_" + key.replace(".", "_") for key in (*own, *state)}
    raw = [key for key in state if key in names]
    if not raw:
        return state, []
    kept = {key: value for key, value in state.items() if key not in names}
    return kept, [f"left out {len(raw)} weights from before averaging ({some(raw, limit=1)})"]
