"""InternImage: a hierarchical image encoder whose spatial operator is DCNv3.

InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions, arXiv 2211.05778.
Released code MIT; written anew. State-dict keys are those of the released checkpoints, for every task.

Differences from the released code:
- `frozen_stages=k` (k >= 0) freezes the stem too, as its documentation says (released: only the first k levels).
- `train()` returns the module (released detection backbones return None).
- DCNv3's zero initialisation of the offset and mask branches survives (released detection code overwrites it).

Shape legend: N images, H height, W width, C channels of the first level.
Level i has C * 2**i channels and stride 4 * 2**i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from ...core.checkpoint import load_checkpoint
from ...core.registries import MODELS
from ...core.weights.names import StateDict
from ..cpu.plain import inference_on_cpu, is_plain
from ..features import FeatureInfo, validate_out_indices
from .conversion import adapt_internimage, describe_internimage
from .dcnv3_layer import DCNv3
from .layers import MLP, Downsample, LayerNorm, Stem, build_norm, norm_of

NUM_LEVELS = 4


class InternImageLayer(nn.Module):
    """One block: DCNv3 and an MLP, each in a residual branch, [N, H, W, C] -> [N, H, W, C].

    Where the norms stand: `post_norm` norms the branch's output; else the input is normed and, with
    `res_post_norm`, the output once more. With `layer_scale` the res-post-norms exist but are not used: released
    weights were trained so. `post_norm` wins over `res_post_norm`.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        post_norm: bool = False,
        layer_scale: float | None = None,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        res_post_norm: bool = False,
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ):
        super().__init__()
        self.post_norm = post_norm
        if layer_scale is None:
            self.gamma1 = self.gamma2 = None
        else:
            self.gamma1 = nn.Parameter(torch.full((channels,), float(layer_scale)))
            self.gamma2 = nn.Parameter(torch.full((channels,), float(layer_scale)))
        self.norm1 = build_norm(channels)  # LayerNorm even where norm_layer="BN", as released
        self.dcn = DCNv3(
            channels,
            group=groups,
            offset_scale=offset_scale,
            act_layer=act_layer,
            norm_layer=norm_layer,
            dw_kernel_size=dw_kernel_size,
            center_feature_scale=center_feature_scale,
            remove_center=remove_center,
        )
        self.drop_path = StochasticDepth(drop_path, mode="row") if drop_path > 0 else nn.Identity()
        self.norm2 = build_norm(channels)
        self.mlp = MLP(channels, int(channels * mlp_ratio), act_layer, drop)
        self.res_post_norm1 = build_norm(channels) if res_post_norm else None
        self.res_post_norm2 = build_norm(channels) if res_post_norm else None

    def _residual(
        self, x: Tensor, branch: nn.Module, norm: nn.Module, out_norm: nn.Module | None, gamma: Tensor | None
    ) -> Tensor:
        joined = gamma is None and inference_on_cpu(x) and self._keeps_all_rows()
        if self.post_norm:
            y = branch(x)
            layer = norm_of(norm, y) if joined and len(norm) == 1 else None
            if layer is not None:
                return layer.fused(y, residual=x)
            y = norm(y)
        else:
            if joined and out_norm is None and is_plain(branch, DCNv3, MLP):
                return branch.add_to(x, norm(x))
            y = branch(norm(x))
            if out_norm is not None and gamma is None:
                y = out_norm(y)
        if gamma is not None:
            y = gamma * y
        return x + self.drop_path(y)

    def _keeps_all_rows(self) -> bool:
        """Whether nothing would happen in `drop_path`, nor anybody notice that it is not called."""
        return is_plain(self.drop_path, nn.Identity) or (
            is_plain(self.drop_path, StochasticDepth) and not self.drop_path.training
        )

    def fold_scales(self) -> None:
        """For inference, see `prepare_inference`: the branch scales go into the layer before them."""
        if self.gamma1 is not None and self._fold(self.gamma1, self.norm1, self.dcn, "output_proj"):
            self.gamma1 = self.res_post_norm1 = None  # the norm is unused beside branch scales, see above
        if self.gamma2 is not None and self._fold(self.gamma2, self.norm2, self.mlp, "fc2"):
            self.gamma2 = self.res_post_norm2 = None

    def _fold(self, gamma: Tensor, norm: nn.Module, branch: nn.Module, last_of_branch: str) -> bool:
        """Fold a scale into the norm or layer before it; whether that was possible."""
        if self.post_norm:
            if not (is_plain(norm, nn.Sequential) and len(norm) == 1 and is_plain(norm[0], LayerNorm)):
                return False
            scaled, rows = norm[0], gamma
        else:
            if not (is_plain(branch, DCNv3, MLP) and is_plain(getattr(branch, last_of_branch), nn.Linear)):
                return False
            scaled, rows = getattr(branch, last_of_branch), gamma[:, None]
        # new parameters: the old ones may be tied to those of another layer
        scaled.weight = nn.Parameter(scaled.weight * rows, requires_grad=False)
        scaled.bias = nn.Parameter(scaled.bias * gamma, requires_grad=False)
        return True

    def forward(self, x: Tensor) -> Tensor:
        x = self._residual(x, self.dcn, self.norm1, self.res_post_norm1, self.gamma1)
        return self._residual(x, self.mlp, self.norm2, self.res_post_norm2, self.gamma2)


class InternImageLevel(nn.Module):
    """The blocks of one resolution and the downsampling to the next.

    `forward` returns (feature [N, H, W, C], input of the next level [N, H/2, W/2, 2C] or None after the last).
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        drop_paths: Sequence[float],
        downsample: bool,
        post_norm_block_ids: Sequence[int] | None = None,
        activation_checkpointing: bool = False,
        **layer_options: Any,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.post_norm_block_ids = tuple(post_norm_block_ids or ())
        self.blocks = nn.ModuleList(
            InternImageLayer(channels, groups, drop_path=rate, **layer_options) for rate in drop_paths
        )
        has_norm = not layer_options.get("post_norm") or layer_options.get("center_feature_scale")
        self.norm = build_norm(channels) if has_norm else nn.Identity()
        if self.post_norm_block_ids:
            self.post_norms = nn.ModuleList(build_norm(channels) for _ in self.post_norm_block_ids)
        self.downsample = Downsample(channels, layer_options.get("norm_layer", "LN")) if downsample else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        for i, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if i in self.post_norm_block_ids:
                x = self.post_norms[self.post_norm_block_ids.index(i)](x)
        x = self.norm(x)
        return x, None if self.downsample is None else self.downsample(x)


@MODELS.register_module()
class InternImage(nn.Module):
    """Multi-level features of images: [N, 3, H, W] -> list of NCHW maps, one per entry of `out_indices`.

    Args:
        channels, depths, groups: C, blocks per level, DCNv3 groups per level.
        mlp_ratio: hidden over outer channels of the MLPs.
        drop_rate, drop_path_rate: dropout in stem and MLPs; stochastic depth, which rises linearly from 0 to the
            rate over all blocks (`drop_path_type="uniform"`: the rate everywhere).
        act_layer, norm_layer: "GELU" | "SiLU" | "ReLU"; "LN" | "BN" (stem, downsampling and depthwise branches).
        layer_scale: initial value of the per-channel branch scales, None for no such parameters.
        offset_scale, dw_kernel_size, center_feature_scale, remove_center: see `DCNv3`.
        post_norm, res_post_norm: see `InternImageLayer`.
        level2_post_norm, level2_post_norm_block_ids: norm the stream after these blocks of level 2 (H, G).
        out_indices: levels to return; levels beyond the last of them exist but are not run.
        frozen_stages: -1 trains everything, k >= 0 freezes the stem and the first k levels.
        activation_checkpointing: recompute blocks in the backward pass: less memory, about a third more time.
        pretrained: checkpoint to load when `init_weights()` is called (MMEngine's runner calls it before training).

    `feature_info` states channels and stride of each returned map. H and W may be any size; map i is
    ceil(H / stride) high.

    Raises:
        ValueError: for arguments that do not fit each other, naming them.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        depths: Sequence[int] = (4, 4, 18, 4),
        groups: Sequence[int] = (4, 8, 16, 32),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_type: str = "linear",
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        layer_scale: float | None = None,
        offset_scale: float = 1.0,
        post_norm: bool = False,
        dw_kernel_size: int | None = None,
        level2_post_norm: bool = False,
        level2_post_norm_block_ids: Sequence[int] | None = None,
        res_post_norm: bool = False,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        activation_checkpointing: bool = False,
        pretrained: str | None = None,
    ):
        super().__init__()
        if len(depths) != NUM_LEVELS or len(groups) != NUM_LEVELS:
            raise ValueError(f"depths={tuple(depths)} and groups={tuple(groups)}: give {NUM_LEVELS} numbers each")
        if drop_path_type not in ("linear", "uniform"):
            raise ValueError(f"drop_path_type={drop_path_type!r}: choose 'linear' or 'uniform'")
        if not -1 <= frozen_stages <= NUM_LEVELS:
            raise ValueError(f"frozen_stages={frozen_stages}: choose -1 (train all) to {NUM_LEVELS}")
        if activation_checkpointing and norm_layer == "BN":
            raise ValueError("activation_checkpointing would update BatchNorm's statistics twice: use norm_layer='LN'")
        if level2_post_norm and not level2_post_norm_block_ids:
            raise ValueError("level2_post_norm needs level2_post_norm_block_ids")
        self.channels = channels
        self.depths = tuple(depths)
        self.out_indices = validate_out_indices(out_indices, NUM_LEVELS)
        self.frozen_stages = frozen_stages
        self.pretrained = pretrained
        self.level2_post_norm_block_ids = tuple(level2_post_norm_block_ids or ()) if level2_post_norm else ()

        self.patch_embed = Stem(channels, act_layer=act_layer, norm_layer=norm_layer)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = drop_path_schedule(self.depths, drop_path_rate, drop_path_type)
        self.levels = nn.ModuleList(
            InternImageLevel(
                channels << i,
                groups[i],
                rates[i],
                downsample=i + 1 < NUM_LEVELS,
                post_norm_block_ids=self.level2_post_norm_block_ids if i == 2 else None,
                activation_checkpointing=activation_checkpointing,
                mlp_ratio=mlp_ratio,
                drop=drop_rate,
                act_layer=act_layer,
                norm_layer=norm_layer,
                post_norm=post_norm,
                layer_scale=layer_scale,
                offset_scale=offset_scale,
                dw_kernel_size=dw_kernel_size,
                res_post_norm=res_post_norm,
                center_feature_scale=center_feature_scale,
                remove_center=remove_center,
            )
            for i in range(NUM_LEVELS)
        )
        init_linears(self)
        self._freeze()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of each map that `forward_features` returns."""
        return tuple(FeatureInfo(self.channels << i, 4 << i) for i in self.out_indices)

    def forward_levels(self, images: Tensor, last: int = NUM_LEVELS - 1) -> list[Tensor]:
        """Features [N, H/4, W/4, C], ... of levels 0 to `last`, channels-last."""
        x = self.pos_drop(self.patch_embed(images))
        features = []
        for level in self.levels[: last + 1]:
            feature, x = level(x)
            features.append(feature)
        return features

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] -> the maps that `feature_info` describes, NCHW (in channels-last memory)."""
        features = self.forward_levels(images, self.out_indices[-1])
        return [features[i].permute(0, 3, 1, 2) for i in self.out_indices]

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.forward_features(images)

    def init_weights(self) -> None:
        """Load the checkpoint named by `pretrained`, if any; else keep the random initial weights."""
        if self.pretrained is not None:
            load_checkpoint(self, self.pretrained)

    def adapt_checkpoint(self, state: StateDict) -> tuple[StateDict, list[str]]:
        """Bring a checkpoint of the same trunk for another task to this model's keys, see `conversion`."""
        return adapt_internimage(self, state)

    @staticmethod
    def describe_checkpoint(state: StateDict) -> str | None:
        """Which InternImage a state dict belongs to, for messages."""
        return describe_internimage(state)

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, self.pos_drop, *self.levels[: self.frozen_stages]]

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> InternImage:
        """Set the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self


def drop_path_schedule(depths: Sequence[int], rate: float, kind: str = "linear") -> list[list[float]]:
    """Stochastic-depth rates of each block of each level: 0 to `rate` inclusive, or `rate` everywhere."""
    total = sum(depths)
    if kind == "uniform" or total == 1:
        flat = [rate] * total
    else:
        flat = [rate * i / (total - 1) for i in range(total)]
    starts = [sum(depths[:i]) for i in range(len(depths))]
    return [flat[start : start + depth] for start, depth in zip(starts, depths)]


def init_linears(model: nn.Module) -> None:
    """Truncated normal (std 0.02) for every Linear, then DCNv3's own initialisation, as in the paper."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, DCNv3):
            module.reset_parameters()
