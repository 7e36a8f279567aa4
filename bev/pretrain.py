"""Monocular 3D pretraining: the perspective head alone on the image encoder, the route to good camera BEV weights.

Each image teaches by itself: 2D and 3D boxes, attributes and speeds (DD3D, arXiv 2108.06417; FCOS3D, arXiv 2104.10956,
does the same with another head). Encoder, neck and head keep the names that they have in BEVFormer v2
(``img_backbone.``, ``img_neck.``, ``fcos3d_bbox_head.``), so that `drivestack hand-over` and `train --fine-tune` find
them. Data are ClipDataset's with ``mono=True``, of any rig, one camera included.

Shapes: B batch, N cameras, M images that are run, C channels, h x w feature cells, m boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.answers import Detections, SceneAnswer
from ..core.batch import Batch
from ..core.errors import ConfigError
from ..core.finite import check_answer
from ..core.registries import MODELS
from ..core.weights.published_keys import keep_published_keys
from ..geometry import bev_nms
from .perspective.head import CameraDetections, PerspectiveOutputs
from .protocol import PerceptionModel, build, build_encoder, check_classes, image_levels


@MODELS.register_module()
class MonoDetector(PerceptionModel):
    """3D boxes from each image alone; over a rig, those of all cameras together without duplicates.

    img_backbone, img_neck: image encoder, as in BEVFormerV2. perspective: NuscenesDD3D; takes as many pyramid maps as
    it has strides, finest first. Its ``in_channels`` follow from the neck.
    duplicate_iou: of two boxes of one class whose footprints overlap by more the better one stays (two cameras see it).
    max_boxes: answered for a keyframe, best first.
    """

    tasks = ("boxes",)
    frame_offsets = (0,)

    def __init__(
        self,
        *,
        img_backbone: dict | nn.Module,
        img_neck: dict | nn.Module,
        perspective: dict | nn.Module,
        duplicate_iou: float = 0.3,
        max_boxes: int = 300,
    ) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = build_encoder(img_backbone, img_neck)
        self.perspective = build(perspective, in_channels=self.img_neck.out_channels)
        self.duplicate_iou, self.max_boxes = duplicate_iou, max_boxes
        keep_published_keys(self, {"perspective.": "fcos3d_bbox_head."})

    def _outputs(self, batch: Batch, run: Sequence[int]) -> PerspectiveOutputs:
        """Raw predictions for these of the B * N images; no other goes through the encoder."""
        num_cameras = batch.images.shape[2]
        index = torch.tensor(run, device=batch.images.device)
        images = batch.images[:, batch.current].flatten(0, 1)[index][:, None]  # [M, 1, 3, H, W]
        flipped = batch.image_flipped[index // num_cameras]  # [M]
        levels = image_levels(self.img_backbone, self.img_neck, images, flipped)[: len(self.perspective.strides)]
        outs = self.perspective([level[:, 0] for level in levels])
        return replace(outs, images=index, num_images=len(batch.images) * num_cameras)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The head's terms over the images that have labels; other images are not run, as released.

        Where no image has any: zeros that keep every parameter in the graph.
        Raises ConfigError for a batch whose samples all come without labels of single images, or with labels that are
        none of the head's classes.
        """
        self.check_clip(batch)
        if all(cameras is None for cameras in batch.mono):
            raise ConfigError(
                f"samples {', '.join(batch.tokens)} have no labels of single images to learn from: give the dataset "
                "mono=True and a split with annotations"
            )
        check_classes(batch, self.perspective.num_classes)
        num_cameras = batch.images.shape[2]
        targets = [target for cameras in batch.mono for target in cameras or [None] * num_cameras]
        run = [i for i, target in enumerate(targets) if target is not None]
        outs = self._outputs(batch, run or [0])
        return self.perspective.loss(outs, batch.intrinsics.flatten(0, 1), targets, self._lenses(batch))

    @torch.no_grad()
    def detect(self, batch: Batch) -> list[list[CameraDetections | None]]:
        """What each image shows, in the frame of its own camera and in pixels of the network's input: B x N.

        None for a camera that the frame lacks. Boxes of one image do not overlap in it (2D suppression by class).
        """
        num_cameras = batch.images.shape[2]
        outs = self._outputs(batch, run := self._present(batch))
        found = dict(zip(run, self.perspective.detect(outs, batch.intrinsics.flatten(0, 1), self._lenses(batch))))
        return [[found.get(b * num_cameras + n) for n in range(num_cameras)] for b in range(len(batch.images))]

    @torch.no_grad()
    def predict(
        self, batch: Batch, memory: Any = None, tasks: Sequence[str] | None = None
    ) -> tuple[list[SceneAnswer], Any]:
        """The boxes of all cameras together, in the BEV frame (``Answer`` has them in the EGO frame); no memory.

        Velocities point along the headings. Raises ConfigError for a head without 3D boxes, PredictionError for
        outputs that are not finite.
        """
        if not self.perspective.box3d_on:
            raise ConfigError("the perspective head has box3d_on=False: it finds 2D boxes (MonoDetector.detect) only")
        self.asked(tasks)
        outs = self._outputs(batch, self._present(batch))
        where = batch.intrinsics, batch.bev_from_camera
        seen = self.perspective.detect_in_bev(outs, *where, lenses=batch.current_lenses)
        answers = []
        for token, boxes, scores, labels in zip(batch.tokens, *seen):
            check_answer("boxes", token, boxes, scores)
            found = self._merged(token, *(values.cpu().numpy() for values in (boxes.float(), scores.float(), labels)))
            answers.append(SceneAnswer(token, boxes=found))
        return answers, memory

    @staticmethod
    def _lenses(batch: Batch) -> Tensor | None:
        """[B * N, ROW] of all images, None where all cameras are pinholes."""
        return None if batch.current_lenses is None else batch.current_lenses.flatten(0, 1)

    @staticmethod
    def _present(batch: Batch) -> list[int]:
        """Which of the B * N images are there."""
        if not batch.camera_valid:
            return list(range(len(batch.images) * batch.images.shape[2]))
        return [i for i, valid in enumerate(v for cameras in batch.camera_valid for v in cameras) if valid]

    def _merged(self, token: str, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Detections:
        """The best ones of boxes [m, 9], without what two cameras see of one object."""
        rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        kept = np.concatenate(
            [np.zeros(0, np.int64), *(own[bev_nms(boxes[own], scores[own], self.duplicate_iou)] for own in rows)]
        )
        kept = kept[np.argsort(-scores[kept], kind="stable")][: self.max_boxes]
        return Detections(token, boxes[kept], scores[kept], labels[kept])
