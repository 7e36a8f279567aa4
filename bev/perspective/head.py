"""The perspective head of BEVFormer v2: 3D boxes from each image alone (DD3D with FCOS, per level, no anchors).

Papers: BEVFormer v2 (arXiv 2211.10439), DD3D (arXiv 2108.06417), FCOS (arXiv 1904.01355). In training it teaches the
image encoder what objects look like; the paper also takes proposals from it at inference, which the release lacks and
this module has (``detect``). Parameter names are those of the released checkpoints (prefix ``fcos3d_bbox_head.``).

Shapes: I images, C channels, h x w feature cells, P locations of all levels together, K classes, M positives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from ...core.labels import MonoTargets
from ...core.registries import MODELS
from .geometry import CameraBoxes, decode_camera_boxes, labelled_boxes
from .losses import losses_2d, losses_3d, losses_attributes, normalisers
from .targets import SIZES_OF_INTEREST, assign_locations, feature_locations

# nuScenes, in the class order of the released configs (alphabetical): mean (w, l, h) in metres, DD3D's config.
NUSCENES_SIZES_WLH = (
    (2.3524184, 0.5062202, 1.0413622),  # barrier
    (0.61416006, 1.7016163, 1.3054738),  # bicycle
    (2.9139307, 10.725025, 3.2832346),  # bus
    (1.9751819, 4.641267, 1.74352),  # car
    (2.772134, 6.565072, 3.2474296),  # construction_vehicle
    (0.7800532, 2.138673, 1.4437162),  # motorcycle
    (0.6667362, 0.7181772, 1.7616143),  # pedestrian
    (0.40246472, 0.4027083, 1.0084083),  # traffic_cone
    (3.0059454, 12.8197, 4.1213827),  # trailer
    (2.4986045, 6.9310856, 2.8382742),  # truck
)
NUM_ATTRIBUTES = 3


class _Scale(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([float(value)]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _Offset(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([float(value)]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class _TowerConv(nn.Conv2d):
    """A 3 x 3 convolution shared by the levels, with a separate batch norm for each."""

    def __init__(self, in_channels: int, out_channels: int, num_levels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in range(num_levels))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward_level(self, x: Tensor, level: int) -> Tensor:
        return F.relu(self.norm[level](self(x)))


def _tower(in_channels: int, channels: int, num_convs: int, num_levels: int) -> nn.ModuleList:
    return nn.ModuleList(_TowerConv(channels if i else in_channels, channels, num_levels) for i in range(num_convs))


def _run(tower: nn.ModuleList, x: Tensor, level: int) -> Tensor:
    for conv in tower:
        x = conv.forward_level(x, level)
    return x


def _predictor(channels: int, out: int, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, 3, padding=1, bias=bias)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if bias:
        nn.init.zeros_(conv.bias)
    return conv


class _Fcos2dHead(nn.Module):
    def __init__(
        self, in_channels: int, channels: int, num_classes: int, num_convs: int, strides: Sequence[int]
    ) -> None:
        super().__init__()
        self.cls_tower = _tower(in_channels, channels, num_convs, len(strides))
        self.box2d_tower = _tower(in_channels, channels, num_convs, len(strides))
        self.cls_logits = _predictor(channels, num_classes)
        self.box2d_reg = _predictor(channels, 4)
        self.centerness = _predictor(channels, 1)
        self.scales_box2d_reg = nn.ModuleList(_Scale(stride) for stride in strides)

    def forward(self, x: Tensor, level: int) -> tuple[dict[str, Tensor], Tensor]:
        """Predictions of one level, and the class tower's output."""
        cls, box = _run(self.cls_tower, x, level), _run(self.box2d_tower, x, level)
        return {
            "logits": self.cls_logits(cls),
            "box2d": F.relu(self.scales_box2d_reg[level](self.box2d_reg(box))),
            "centerness": self.centerness(box),
        }, cls


class _Fcos3dHead(nn.Module):
    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        num_convs: int,
        strides: Sequence[int],
        mean_depth: Sequence[float],
        std_depth: Sequence[float],
    ) -> None:
        super().__init__()
        self.register_buffer("mean_depth_per_level", torch.tensor(mean_depth, dtype=torch.float32))
        self.register_buffer("std_depth_per_level", torch.tensor(std_depth, dtype=torch.float32))
        self.box3d_tower = _tower(in_channels, channels, num_convs, len(strides))
        # Lists of one: published predictors could be per level, but are shared. Channel = component * K + class.
        self.box3d_quat = nn.ModuleList([_predictor(channels, 4 * num_classes)])
        self.box3d_ctr = nn.ModuleList([_predictor(channels, 2 * num_classes)])
        self.box3d_depth = nn.ModuleList([_predictor(channels, num_classes, bias=False)])
        self.box3d_size = nn.ModuleList([_predictor(channels, 3 * num_classes)])
        self.box3d_conf = nn.ModuleList([_predictor(channels, num_classes)])
        self.scales_proj_ctr = nn.ModuleList(_Scale(stride) for stride in strides)
        self.scales_size = nn.ModuleList(_Scale(1.0) for _ in strides)
        self.scales_conf = nn.ModuleList(_Scale(1.0) for _ in strides)
        self.scales_depth = nn.ModuleList(_Scale(0.3 * sigma) for sigma in std_depth)
        self.offsets_depth = nn.ModuleList(_Offset(mean) for mean in mean_depth)

    def forward(self, x: Tensor, level: int) -> dict[str, Tensor]:
        x = _run(self.box3d_tower, x, level)
        return {
            "quat": self.box3d_quat[0](x),
            "proj_ctr": self.scales_proj_ctr[level](self.box3d_ctr[0](x)),
            "depth": self.offsets_depth[level](self.scales_depth[level](self.box3d_depth[0](x))),
            "size": self.scales_size[level](self.box3d_size[0](x)),
            "conf": self.scales_conf[level](self.box3d_conf[0](x)),
        }


@dataclass(frozen=True)
class PerspectiveOutputs:
    """Raw predictions at all locations of all levels."""

    maps: dict[str, Tensor]
    """name -> [I, components * K or components, P] for logits, box2d, centerness, attr, speed and, with 3D on,
    quat, proj_ctr, depth, size, conf"""
    shapes: tuple[tuple[int, int], ...]
    """(h, w) of each level"""
    images: Tensor
    """[I] long: which of the images that were passed in these are"""
    num_images: int
    """how many were passed in"""


@dataclass(frozen=True)
class CameraDetections:
    """The detections in one image, best first."""

    boxes_xyxy_px: Tensor
    """[m, 4]"""
    boxes: CameraBoxes | None
    """m boxes, None with 3D off"""
    scores: Tensor
    """[m] sqrt(class probability * centerness)"""
    scores_3d: Tensor
    """[m] scores times the confidence of the 3D box; the order"""
    labels: Tensor
    """[m]"""
    attributes: Tensor
    """[m] in 0..2"""
    speeds: Tensor
    """[m] m/s"""


@MODELS.register_module()
class NuscenesDD3D(nn.Module):
    """Dense monocular 3D detection with attributes and speeds.

    num_classes: K; in_channels: C of each level; channels, num_convs: of the towers (num_convs per tower).
    strides: pixels per cell of each level, finest first; sizes_of_interest: pixel range of the objects each learns.
    canonical_sizes_wlh: K x (w, l, h) metres, in the order of the class list. mean_depth, std_depth: metres, per level
    (DD3D's nuScenes statistics; they initialise the depth predictor). depth_range: metres, predictions are clamped.
    box3d_on: False leaves a plain FCOS with attributes and speeds.
    cls_prior: probability the class logits start from. None is the release, which has no prior and starts at
    losses around 1000 (docs/quirks.md#no-focal-prior); 0.01 is what FCOS uses.
    score_threshold, pre_nms_top, nms_iou, max_per_image: of ``detect``; threshold_with_centerness multiplies the class
    probability by the centerness before comparing.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 256,
        channels: int | None = None,
        num_convs: int = 4,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        sizes_of_interest: Sequence[tuple[float, float]] | None = None,
        canonical_sizes_wlh: Sequence[Sequence[float]] = NUSCENES_SIZES_WLH,
        mean_depth: Sequence[float] = (44.921, 20.252, 11.712, 7.166, 8.548),
        std_depth: Sequence[float] = (24.331, 9.833, 6.223, 4.611, 8.275),
        depth_range: tuple[float, float] = (0.1, 80.0),
        centre_radius: float = 1.5,
        box3d_on: bool = True,
        cls_prior: float | None = None,
        score_threshold: float = 0.05,
        pre_nms_top: int = 1000,
        nms_iou: float = 0.75,
        max_per_image: int = 100,
        threshold_with_centerness: bool = False,
    ) -> None:
        super().__init__()
        num_levels = len(strides)
        known = min(len(mean_depth), len(std_depth), len(sizes_of_interest or SIZES_OF_INTEREST))
        if num_levels > known:
            raise ValueError(
                f"{num_levels} levels (strides) need as many mean_depth, std_depth and sizes_of_interest, got {known}"
            )
        if sizes_of_interest is None:
            sizes_of_interest = (*SIZES_OF_INTEREST[: num_levels - 1], (SIZES_OF_INTEREST[num_levels - 1][0], 1e8))
        if len(canonical_sizes_wlh) != num_classes:
            raise ValueError(f"{num_classes} classes need as many canonical sizes, got {len(canonical_sizes_wlh)}")
        self.num_classes, self.box3d_on = num_classes, box3d_on
        self.strides, self.sizes_of_interest = tuple(strides), tuple(sizes_of_interest)
        self.depth_range, self.centre_radius = depth_range, centre_radius
        self.score_threshold, self.pre_nms_top = score_threshold, pre_nms_top
        self.nms_iou, self.max_per_image = nms_iou, max_per_image
        self.threshold_with_centerness = threshold_with_centerness
        sizes = torch.tensor(canonical_sizes_wlh, dtype=torch.float32)
        self.register_buffer("canonical_sizes_wlh", sizes, persistent=False)

        channels = channels or in_channels
        self.fcos2d_head = _Fcos2dHead(in_channels, channels, num_classes, num_convs, strides)
        if box3d_on:
            self.fcos3d_head = _Fcos3dHead(
                in_channels, channels, num_classes, num_convs, strides, mean_depth[:num_levels], std_depth[:num_levels]
            )
        self.attr_logits = _predictor(channels, NUM_ATTRIBUTES)
        self.speed = _predictor(channels, 1)
        if cls_prior is not None:
            nn.init.constant_(self.fcos2d_head.cls_logits.bias, -math.log((1 - cls_prior) / cls_prior))

    def forward(self, feats: Sequence[Tensor], labelled: Sequence[bool] | None = None) -> PerspectiveOutputs:
        """Predictions for I images from levels [I, C, h, w].

        ``labelled`` [I] runs only the images that are: as released, images without labels are left out of training,
        batch statistics included. Where none is, the first is run, so that each parameter stays in the graph.
        Raises ValueError for another number of levels than strides.
        """
        if len(feats) != len(self.strides):
            raise ValueError(f"the perspective head has {len(self.strides)} levels (strides), got {len(feats)}")
        num_images = len(feats[0])
        images = torch.arange(num_images, device=feats[0].device)
        if labelled is not None and not all(labelled):
            images = images[torch.tensor(labelled, device=images.device)] if any(labelled) else images[:1]
            feats = [level[images] for level in feats]
        levels = []
        for i, x in enumerate(feats):
            maps, cls_features = self.fcos2d_head(x, i)
            maps["attr"], maps["speed"] = self.attr_logits(cls_features), F.relu(self.speed(cls_features))
            if self.box3d_on:
                maps |= self.fcos3d_head(x, i)
            levels.append(maps)
        joined = {name: torch.cat([maps[name].flatten(2).float() for maps in levels], 2) for name in levels[0]}
        return PerspectiveOutputs(joined, tuple((x.shape[2], x.shape[3]) for x in feats), images, num_images)

    # ---- training ------------------------------------------------------------------------------------------------

    def loss(
        self,
        outs: PerspectiveOutputs,
        intrinsics: Tensor,
        targets: Sequence[MonoTargets | None],
        lenses: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The ten loss terms (five with 3D off) of the images that have labels.

        intrinsics: [I, 3, 3]; targets: I labels, None for an image without; lenses: [I, ROW], see Batch. All are of all
        the images that went in.
        """
        kept = [i for i, image in enumerate(outs.images.tolist()) if targets[image] is not None]
        if not kept:
            return self.no_loss(torch.stack([value.sum() for value in outs.maps.values()]).sum())
        maps = {name: value[kept] if len(kept) < len(value) else value for name, value in outs.maps.items()}
        images = outs.images[kept]
        labels = [targets[i] for i in images.tolist()]
        locations = feature_locations(outs.shapes, self.strides, images.device)
        assigned = assign_locations(
            labels,
            locations,
            [h * w for h, w in outs.shapes],
            self.strides,
            self.sizes_of_interest,
            self.centre_radius,
        )
        image, location = assigned.image, assigned.location
        at = {name: value[image, :, location] for name, value in maps.items()}  # [M, components (* K)]
        losses, total_weight = losses_2d(maps["logits"], at["box2d"], at["centerness"][:, 0], assigned)
        weight = assigned.centerness
        if self.box3d_on:
            classes = assigned.labels[image, location]
            own = None if lenses is None else lenses[images[image]]
            inverse = torch.linalg.inv(intrinsics)[images[image]]
            pred, confidence = self._boxes(at, classes, locations[location], inverse, own)
            all_boxes = torch.cat([t.boxes3d_camera.float() for t in labels])
            target = labelled_boxes(all_boxes[assigned.object], intrinsics[images[image]], own)
            losses |= losses_3d(pred, confidence, target, weight, total_weight)
        attributes = torch.cat([t.attributes for t in labels])[assigned.object]
        speeds = torch.cat([t.speed for t in labels]).float()[assigned.object]
        losses |= losses_attributes(at["attr"], at["speed"][:, 0], attributes, speeds, weight)
        return losses

    def no_loss(self, anchor: Tensor) -> dict[str, Tensor]:
        """The terms where no image is labelled: zeros. anchor: a number of the graph, for zeros that back-propagate."""
        normalisers(None, anchor)
        return {f"loss_{name}": anchor * 0 for name in self._loss_names()}

    def _loss_names(self) -> list[str]:
        boxes = ["conf3d", "box3d_quat", "box3d_proj_ctr", "box3d_depth", "box3d_size"] if self.box3d_on else []
        return ["cls", "box2d_reg", "centerness", *boxes, "attr", "speed"]

    def _boxes(
        self,
        at: dict[str, Tensor],
        classes: Tensor,
        locations: Tensor,
        inv_intrinsics: Tensor,
        lenses: Tensor | None = None,
    ) -> tuple[CameraBoxes, Tensor]:
        """3D boxes and confidence logits [M] of one class each from raw predictions [M, components * K]."""
        rows = torch.arange(len(classes), device=classes.device)
        quat, ctr, depth, size, conf = (
            at[name].unflatten(1, (-1, self.num_classes))[rows, :, classes]
            for name in ("quat", "proj_ctr", "depth", "size", "conf")
        )
        boxes = decode_camera_boxes(
            quat,
            ctr,
            depth[:, 0],
            size,
            locations,
            inv_intrinsics,
            self.canonical_sizes_wlh[classes],
            self.depth_range,
            lenses=lenses,
        )
        return boxes, conf[:, 0]

    # ---- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def detect(
        self, outs: PerspectiveOutputs, intrinsics: Tensor, lenses: Tensor | None = None
    ) -> list[CameraDetections]:
        """Detections in each of the images that were run, after suppression inside the image (same class, 2D IoU).

        intrinsics: [I, 3, 3], lenses: [I, ROW], of all the images that went in.
        """
        locations = feature_locations(outs.shapes, self.strides, outs.images.device)
        sizes = [h * w for h, w in outs.shapes]
        inverse = torch.linalg.inv(intrinsics)
        return [
            self._detect_image(
                {n: v[i] for n, v in outs.maps.items()},
                locations,
                sizes,
                inverse[image],
                None if lenses is None else lenses[image],
            )
            for i, image in enumerate(outs.images.tolist())
        ]

    def _detect_image(
        self,
        maps: dict[str, Tensor],
        locations: Tensor,
        level_sizes: Sequence[int],
        inv_intrinsics: Tensor,
        lens: Tensor | None,
    ) -> CameraDetections:
        probability = maps["logits"].sigmoid()  # [K, P]
        scores = probability * maps["centerness"].sigmoid()
        passing = (scores if self.threshold_with_centerness else probability) > self.score_threshold
        chosen, first = [], 0
        for size in level_sizes:
            classes, index = passing[:, first : first + size].nonzero(as_tuple=True)
            index = index + first
            if len(index) > self.pre_nms_top:
                top = scores[classes, index].topk(self.pre_nms_top).indices
                classes, index = classes[top], index[top]
            chosen.append(torch.stack([classes, index]))
            first += size
        classes, index = torch.cat(chosen, 1)
        at = {name: value[:, index].T for name, value in maps.items()}  # [m, components (* K)]
        point = locations[index]
        boxes_2d = torch.cat([point - at["box2d"][:, :2], point + at["box2d"][:, 2:]], 1)
        score = scores[classes, index].sqrt()
        boxes, score_3d = None, score
        if self.box3d_on:
            lenses = None if lens is None else lens.expand(len(index), -1)
            boxes, confidence = self._boxes(at, classes, point, inv_intrinsics.expand(len(index), 3, 3), lenses)
            score_3d = score * confidence.sigmoid()

        solid = (boxes_2d[:, 2:] > boxes_2d[:, :2]).all(1).nonzero().flatten()  # the ReLU can give boxes without area
        kept = solid[batched_nms(boxes_2d[solid], score_3d[solid], classes[solid], self.nms_iou)]
        if len(kept) > self.max_per_image:
            # as released: the 2D score decides who stays, the 3D score the order
            kept = kept[score[kept].topk(self.max_per_image).indices.sort().values]
        return CameraDetections(
            boxes_2d[kept],
            None if boxes is None else boxes[kept],
            score[kept],
            score_3d[kept],
            classes[kept],
            at["attr"][kept].argmax(1),
            at["speed"][kept, 0],
        )

    @torch.no_grad()
    def detect_in_bev(
        self,
        outs: PerspectiveOutputs,
        intrinsics: Tensor,
        bev_from_camera: Tensor,
        camera_valid: Sequence[Sequence[bool]] = (),
        lenses: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes B x [m, 9] in the BEV frame of all N views together, their 3D scores [m] and labels [m].

        intrinsics [B, N, 3, 3]; bev_from_camera [B, N, 4, 4]; camera_valid B x N: a camera that a frame lacks gives
        none; left out: all are there; lenses [B, N, ROW], see Batch. The speed points along the heading. For
        proposals.PerspectiveProposals, which suppresses duplicates between the views.
        """
        batch, num_cameras = intrinsics.shape[:2]
        boxes: list[list[Tensor]] = [[] for _ in range(batch)]
        scores: list[list[Tensor]] = [[] for _ in range(batch)]
        labels: list[list[Tensor]] = [[] for _ in range(batch)]
        rows = None if lenses is None else lenses.flatten(0, 1)
        for image, found in zip(outs.images.tolist(), self.detect(outs, intrinsics.flatten(0, 1), rows)):
            sample, camera = divmod(image, num_cameras)
            if camera_valid and not camera_valid[sample][camera]:
                continue
            pose = bev_from_camera[sample, camera].to(found.scores).expand(len(found.labels), 4, 4)
            box = found.boxes.in_frame(pose)  # [m, 7]
            velocity = found.speeds[:, None] * torch.stack([box[:, 6].cos(), box[:, 6].sin()], 1)
            boxes[sample].append(torch.cat([box, velocity], 1))
            scores[sample].append(found.scores_3d)
            labels[sample].append(found.labels)
        none = bev_from_camera.new_zeros
        return (
            [torch.cat([none(0, 9), *b]) for b in boxes],
            [torch.cat([none(0), *s]) for s in scores],
            [torch.cat([none(0).long(), *c]) for c in labels],
        )
