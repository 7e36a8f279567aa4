"""The occupancy challenge's BEVFormer, for its published checkpoints: a recurrent BEV map of the EGO frame to voxels.

Source: the CVPR 2023 occupancy challenge's baseline, as InternImage ships it (spec/occupancy.md section 2). State-dict
prefixes are the published ones: ``img_backbone.``, ``img_neck.``, ``pts_bbox_head.``. Kept because the weights depend
on it: the ego motion displaces both maps of the temporal attention, the padding of the images counts as seen, and the
CAN-bus numbers (info pickles hold all of them; from other sources the car's own signals are zeros). New models should
be an OccupancyHead on a bev.multi_task.BevPerception.

Shapes: B batch, T frames of a clip, N cameras, C channels, H = num_y * num_x BEV cells, X, Y, Z voxels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...bev.bevformer_v2 import build
from ...bev.boxes.head import LearnedPositionalEncoding
from ...bev.map.temporal import images_from_ego
from ...bev.map.transformer import BevTransformerV1
from ...bev.published.bevformer_v1 import RecurrentBev, RecurrentState, can_bus_since
from ...core.answers import OccupancyGrid, SceneAnswer
from ...core.batch import Batch
from ...core.errors import ConfigError
from ...core.labels import OccupancyTargets
from ...data_tools.clips.can_bus import can_bus_deltas
from ...geometry import OCC3D_GRID
from ..losses import VoxelLoss
from .voxel_decoders import voxel_predictor, voxel_trunk

OCC3D_RANGE = (*OCC3D_GRID.origin_m.tolist(), *(OCC3D_GRID.origin_m + OCC3D_GRID.size_m).tolist())
"""(x_min, y_min, z_min, x_max, y_max, z_max) metres of the EGO frame."""


@MODELS.register_module()
class OccupancyTransformer(BevTransformerV1):
    """Image features to a BEV map of the EGO frame, and the map to voxels; sizes default to the published ones."""

    def __init__(
        self,
        voxel_decoder: str = "conv3d",
        num_z: int = 16,
        out_dim: int = 32,
        num_classes: int = 18,
        transposed: bool = False,
        point_range: Sequence[float] = OCC3D_RANGE,
        encoder_layers: int = 4,
        num_points_in_pillar: int = 8,
        **transformer: object,
    ) -> None:
        """``voxel_decoder``, ``out_dim``, ``transposed``: see decoder.py; ``transformer``: arguments of
        BevTransformerV1. Raises ConfigError as ``decoder.voxel_trunk``.
        """
        super().__init__(
            point_range=point_range,
            encoder_layers=encoder_layers,
            decoder_layers=0,
            num_points_in_pillar=num_points_in_pillar,
            shift_current=True,
            **transformer,
        )
        self.decoder = voxel_trunk(voxel_decoder, self.embed_dims, num_z, out_dim, transposed)
        self.predicter = voxel_predictor(out_dim, num_classes)
        for part in (self.decoder, self.predicter):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)

    def voxels(self, bev: Tensor) -> Tensor:
        """Logits [B, X, Y, Z, K] of maps [B, C, Y, X]."""
        return self.predicter(self.decoder(bev))


@MODELS.register_module()
class BEVFormerOccHead(nn.Module):
    """BEV queries around an OccupancyTransformer, and what is learned from the voxels.

    transformer: module or its config. num_classes, free, mask, loss_weights, class_weights: see losses.VoxelLoss; the
    default is the published one, cross entropy over all voxels. (Counting only what the cameras see gains 13 to 15
    points of the masked mIoU and costs RayIoU: spec/occupancy.md section 5.)
    """

    def __init__(
        self,
        transformer: nn.Module | dict,
        num_classes: int = 18,
        free: int = 17,
        mask: str = "none",
        loss_weights: Mapping[str, float] | None = None,
        class_weights: Sequence[float] | str | None = None,
    ) -> None:
        super().__init__()
        self.transformer = build(transformer)
        self.grid, channels = self.transformer.grid, self.transformer.embed_dims
        self.positional_encoding = LearnedPositionalEncoding(channels // 2, self.grid.num_y, self.grid.num_x)
        self.bev_embedding = nn.Embedding(self.grid.num_y * self.grid.num_x, channels)
        self.voxel_loss = VoxelLoss(num_classes, free, mask, loss_weights, class_weights)

    def logits(self, bev: Tensor) -> Tensor:
        """[B, X, Y, Z, K] of maps [B, H, C]."""
        return self.transformer.voxels(bev.transpose(1, 2).unflatten(2, (self.grid.num_y, self.grid.num_x)))

    def loss(self, logits: Tensor, targets: Sequence[OccupancyTargets | None]) -> dict[str, Tensor]:
        """Terms over the voxels that count, of all labelled samples together; zeros that keep the graph without any."""
        labelled = [(own, target) for own, target in zip(logits, targets) if target is not None]
        nothing = logits.sum() * 0.0
        if not labelled:
            return self.voxel_loss([], nothing)
        counts = [self.voxel_loss.counts(target) for _, target in labelled]
        voxels = torch.cat([own[where] for (own, _), where in zip(labelled, counts)])
        truth = torch.cat([target.semantics[where] for (_, target), where in zip(labelled, counts)])
        return self.voxel_loss([(voxels, truth)], nothing)


@MODELS.register_module()
class BEVFormerOcc(RecurrentBev):
    """Surround video to voxels. img_backbone, img_neck: see RecurrentBev; pts_bbox_head: BEVFormerOccHead.

    frame_offsets: keyframes of a training clip, ascending, the current one (0) last.
    history_frames: how many of the frames before it a training step uses, drawn anew each time (upstream leaves one of
        four out, so that the model meets different speeds); None for all.

    Raises ConfigError for other offsets, or fewer of them than history_frames.
    """

    tasks = ("occupancy",)

    def __init__(
        self,
        *,
        img_backbone: dict | nn.Module,
        img_neck: dict | nn.Module,
        pts_bbox_head: dict | nn.Module,
        grid_mask: bool = True,
        frame_offsets: Sequence[int] = (-4, -3, -2, -1, 0),
        history_frames: int | None = 3,
    ) -> None:
        super().__init__(img_backbone=img_backbone, img_neck=img_neck, pts_bbox_head=pts_bbox_head, grid_mask=grid_mask)
        self.frame_offsets = tuple(frame_offsets)
        if self.frame_offsets[-1:] != (0,) or list(self.frame_offsets) != sorted(set(self.frame_offsets)):
            raise ConfigError(f"frame_offsets are ascending and end with 0 (now), got {self.frame_offsets}")
        past = len(self.frame_offsets) - 1
        self.history_frames = past if history_frames is None else history_frames
        if not 0 <= self.history_frames <= past:
            raise ConfigError(f"history_frames {history_frames}, but frame_offsets hold {past} past frames")

    # ---- clips ---------------------------------------------------------------------------------------------------

    def _clip_maps(self, batch: Batch, chosen: Sequence[int]) -> Tensor:
        """Maps [B, H, C] of the current frames, through the chosen frames of their clips (ascending, current last)."""
        # frames that no sample has would be encoded for nothing
        chosen = [t for t in chosen if t == batch.current or bool(batch.frame_valid[:, t].any())]
        signals, known = [], []
        for b, own in enumerate(self._can_bus(batch)[:, chosen].cpu().numpy()):
            valid = batch.frame_valid[b, chosen].tolist()
            scenes = ["scene" if ok else f"missing {t}" for t, ok in enumerate(valid)]
            signal, has_previous = can_bus_deltas(own, scenes)
            signals.append(torch.from_numpy(signal))
            known.append(torch.from_numpy(has_previous))
        return self.encode_clip(
            batch.images[:, chosen],
            images_from_ego(batch)[:, chosen],
            self._seen_size(batch)[:, chosen],
            torch.stack(signals).to(batch.images.device),
            torch.stack(known),
        )

    @staticmethod
    def _can_bus(batch: Batch) -> Tensor:
        """[B, T, 18] absolute numbers."""
        if batch.can_bus is None:
            raise ConfigError(f"samples {', '.join(batch.tokens)}: the batch lacks can_bus; ClipDataset makes it")
        return batch.can_bus

    @staticmethod
    def _seen_size(batch: Batch) -> Tensor:
        """[B, T, N, 2] the padded size: published models take a point on the padding for one that is seen."""
        padded = torch.tensor(batch.images.shape[-2:], device=batch.images.device)
        return padded.expand(batch.image_size_px.shape)

    # ---- training ------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ``loss_occ_*``. A sample without labels adds nothing; ConfigError where none has any, or the batch is
        another clip than ``frame_offsets``.
        """
        if batch.frame_offsets != self.frame_offsets:
            raise ConfigError(
                f"the model learns from frames {self.frame_offsets}, the batch has {batch.frame_offsets}: set the "
                "training data's frame_offsets"
            )
        if all(target is None for target in batch.occupancy):
            raise ConfigError(
                f"samples {', '.join(batch.tokens)} have no voxel labels (gts/<scene>/<sample>/labels.npz): train on a "
                "split that has, with occupancy=True"
            )
        self._refuse_flips(batch)
        past = torch.randperm(batch.current)[: self.history_frames].sort().values.tolist()
        bev = self._clip_maps(batch, [*past, batch.current])
        return self.pts_bbox_head.loss(self.pts_bbox_head.logits(bev), batch.occupancy)

    @staticmethod
    def _refuse_flips(batch: Batch) -> None:
        if batch.image_flipped.any():
            raise ConfigError("voxels do not follow image flips: leave image.flip off, use mirror")

    # ---- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self, batch: Batch, history: Mapping[str, RecurrentState] | None = None
    ) -> tuple[list[SceneAnswer], dict[str, RecurrentState]]:
        """Voxels of the current frames, and what to pass in with the batch that follows them in time.

        A batch of current frames only takes the map of each frame's ``prev_token`` from ``history`` or from this very
        batch; without it the frame counts as the first of its scene. A batch of whole clips goes through all of each.
        Raises ConfigError for other frame offsets.
        """
        self._refuse_flips(batch)
        if batch.frame_offsets == (0,):
            maps = self._next_maps(batch, history or {})
        elif batch.frame_offsets == self.frame_offsets:
            maps = self._clip_maps(batch, range(len(self.frame_offsets)))
        else:
            raise ConfigError(
                f"the batch has frames {batch.frame_offsets}: give the current ones (0,) with a history, or whole "
                f"clips {self.frame_offsets}"
            )
        states, answers = {}, []
        for b, frame in enumerate(batch.frames):
            states[frame.token] = RecurrentState(frame.scene_token, maps[b], self._can_bus(batch)[b, batch.current])
            classes = self.pts_bbox_head.logits(maps[b : b + 1])[0].max(-1).indices.to(torch.uint8)
            answers.append(SceneAnswer(frame.token, occupancy=OccupancyGrid(frame.token, classes.cpu().numpy())))
        return answers, states

    def _next_maps(self, batch: Batch, history: Mapping[str, RecurrentState]) -> Tensor:
        """Maps [B, H, C] of frames that follow those of the history, or one another."""
        states = dict(history)
        levels = self.extract_features(batch.images[:, 0])
        matrices, sizes = images_from_ego(batch)[:, 0], self._seen_size(batch)[:, 0]
        maps = []
        for b, frame in enumerate(batch.frames):
            past = states.get(frame.prev_token)
            if past is not None and past.scene_token != frame.scene_token:
                past = None
            signal, one = self._can_bus(batch)[b, 0], slice(b, b + 1)
            bev = self.encode(
                [level[one] for level in levels],
                matrices[one],
                sizes[one],
                tuple(batch.images.shape[-2:]),
                can_bus_since(signal, None if past is None else past.can_bus)[None],
                [None if past is None else past.bev],
            )
            states[frame.token] = RecurrentState(frame.scene_token, bev[0], signal)
            maps.append(bev)
        return torch.cat(maps)

    # ---- MMEngine ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, mode: str = "loss") -> dict[str, Tensor] | list[SceneAnswer]:
        """``loss`` in training; ``predict`` without history. Other modes raise ValueError."""
        if mode not in ("loss", "predict"):
            raise ValueError(f"mode is 'loss' or 'predict', got {mode!r}")
        return self.loss(batch) if mode == "loss" else self.predict(batch)[0]
