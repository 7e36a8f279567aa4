"""InternImage in timm: ``timm.create_model("internimage_t")`` and all that timm does with a model of its own.

    from drivestack.compat.timm import register_internimage

    register_internimage()
    model = timm.create_model("internimage_t", num_classes=10, drop_path_rate=0.1)
    model = timm.create_model(
        "internimage_t", pretrained=True, pretrained_cfg_overlay=dict(file="internimage_t_1k_224.pth")
    )
    maps = timm.create_model("internimage_t", features_only=True)(images)   # four, [N, C, H, W]

Weights: files of the release in any layout, read as `drivestack.backbone.load_checkpoint` reads them; without
``file`` timm fetches the hub's. timm (Apache 2.0) is imported by `register_internimage` and by models that it made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone.internimage.classifier import InternImageClassifier
from ..backbone.internimage.conversion import adapt_internimage
from ..backbone.internimage.model import NUM_LEVELS
from ..backbone.internimage.variants import VARIANTS
from ..backbone.pretrain.classification.transforms import IMAGENET_MEAN, IMAGENET_STD
from ..core.checkpoint import load_checkpoint
from ..core.errors import ConfigError
from ..core.weights.names import fit_prefix

__all__ = ["TimmInternImage", "register_internimage"]

RELEASES = {
    "T": {"in1k": ("internimage_t_1k_224", 224, 1000)},
    "S": {"in1k": ("internimage_s_1k_224", 224, 1000)},
    "B": {"in1k": ("internimage_b_1k_224", 224, 1000)},
    "L": {"in22k_ft_in1k": ("internimage_l_22kto1k_384", 384, 1000), "in22k": ("internimage_l_22k_384", 384, 21841)},
    "XL": {"in22k_ft_in1k": ("internimage_xl_22kto1k_384", 384, 1000), "in22k": ("internimage_xl_22k_384", 384, 21841)},
    "H": {
        "in22k_ft_in1k": ("internimage_h_22kto1k_640", 640, 1000),
        "in22k": ("internimage_h_jointto22k_384", 384, 21841),
    },
    "G": {
        "in22k_ft_in1k": ("internimage_g_22kto1k_512", 512, 1000),
        "in22k": ("internimage_g_jointto22k_384", 384, 21841),
    },
}
"""Variant -> timm's tag -> (repository of the hub, image size in pixels, classes); the first is the default."""
default_cfgs: dict[str, Any] = {}
"""timm looks here, in the module of a model, for its weights; filled by register_internimage."""


class TimmInternImage(InternImageClassifier):
    """An InternImage with what timm asks of a model. Arguments as of InternImageClassifier, beside timm's own.

    drop_rate acts after the stem, as in the release. Raises ValueError for another number of input channels than 3,
    and for a pooling other than timm's "avg" (the variants have their own).
    """

    feature_info: Any = None  # a property of the base; timm wants a list of dicts

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", **trunk: Any) -> None:
        if in_chans != 3:
            raise ValueError(f"in_chans={in_chans}: InternImage takes images of 3 channels")
        if global_pool not in ("", "avg"):
            raise ValueError(f"global_pool={global_pool!r}: InternImage pools in its own way; leave it out")
        super().__init__(num_classes=num_classes, **trunk)
        self.feature_info = [
            dict(num_chs=self.channels << i, reduction=4 << i, module=f"levels.{i}") for i in range(NUM_LEVELS)
        ]
        self.num_features = self.channels << (NUM_LEVELS - 1)
        pooled = self.fc_norm[0].normalized_shape[0] if self.clip_projector else self.conv_head[0].out_channels
        self.head_hidden_size = pooled

    def forward_features(self, images: Tensor) -> Tensor:  # type: ignore[override]  # as timm means it
        return self.forward_unpooled(images)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.pool(x)
        return pooled if pre_logits else self.head(pooled)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        parameter = next(self.parameters())
        place = {"device": parameter.device, "dtype": parameter.dtype}
        self.head = nn.Linear(self.head_hidden_size, num_classes, **place) if num_classes > 0 else nn.Identity()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps [N, C, H, W] of the levels ``indices``; unless ``intermediates_only`` (unpooled features, these maps).

        norm is accepted and changes nothing: a level's norm, where there is one, is part of it.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r}: choose 'NCHW' or 'NHWC'")
        taken = _taken(indices)
        maps = self.forward_levels(x, max(taken) if stop_early and intermediates_only else len(self.levels) - 1)
        chosen = [maps[i] if output_fmt == "NHWC" else maps[i].permute(0, 3, 1, 2) for i in taken]
        return chosen if intermediates_only else (self.unpooled(maps, x), chosen)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of ``indices`` do not need."""
        taken = _taken(indices)
        self.levels = self.levels[: max(taken) + 1]
        if prune_head:
            for name in ("conv_head", "dcnv3_head_x4", "dcnv3_head_x3", "clip_projector", "fc_norm", "head"):
                if isinstance(getattr(self, name, None), nn.Module):
                    setattr(self, name, nn.Identity())
        return taken

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """For timm's layer-wise rates: the stem, then each block; a level's end learns with the next level."""
        blocks: Any = r"^levels\.(\d+)"
        if not coarse:
            blocks = [
                (r"^levels\.(\d+)\.blocks\.(\d+)", None),
                (r"^levels\.(\d+)\.(?:downsample|norm|post_norms)", (99999,)),
            ]
        return dict(stem=r"^patch_embed", blocks=blocks)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for level in self.levels:
            setattr(level, "activation_checkpointing", enable)  # noqa: B010 (mypy takes it for a submodule)

    def no_weight_decay(self) -> set[str]:
        """Names without weight decay, beside biases and norms; none."""
        return set()

    def load_pretrained(self, path: str, prefix: str = "") -> None:
        """Released weights from a file; a classification layer of another size starts anew. timm calls this."""
        load_checkpoint(self, path)


def _taken(indices: int | Sequence[int] | None) -> list[int]:
    """Levels by number: all, the last so many, or those named (negative: from the end)."""
    if indices is None:
        return list(range(NUM_LEVELS))
    if isinstance(indices, int):
        return list(range(NUM_LEVELS - indices, NUM_LEVELS))
    if wrong := [i for i in indices if not -NUM_LEVELS <= i < NUM_LEVELS]:
        raise ValueError(f"level {wrong[0]}: InternImage has levels 0 to {NUM_LEVELS - 1}")
    return [i % NUM_LEVELS for i in indices]


def register_internimage() -> list[str]:
    """Add the seven InternImages to timm's registry, "internimage_t" to "internimage_g"; returns these names.

    A name that timm has already is left as it is, so a second call changes nothing. Raises ConfigError without timm.
    """
    try:
        from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
    except ImportError as error:
        raise ConfigError(f"timm is not there ({error}): pip install 'drivestack[classification]'") from error
    names = {variant: f"internimage_{variant.lower()}" for variant in VARIANTS}
    if not default_cfgs:
        entries = {
            f"{names[variant]}.{tag}": _settings(*release)
            for variant, releases in RELEASES.items()
            for tag, release in releases.items()
        }
        default_cfgs.update(generate_default_cfgs(entries))
    for variant, name in names.items():
        if not is_model(name):
            register_model(_entry_point(variant, name, build_model_with_cfg))
    return list(names.values())


def _settings(repository: str, size_px: int, num_classes: int) -> dict[str, Any]:
    return dict(
        hf_hub_id=f"OpenGVLab/{repository}",
        num_classes=num_classes,
        input_size=(3, size_px, size_px),
        pool_size=None,
        crop_pct=1.0,
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        first_conv="patch_embed.conv1",
        classifier="head",
        license="mit",
    )


def _entry_point(variant: str, name: str, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    known = VARIANTS[variant]
    options = {
        **known.trunk_options(),
        "layer_scale": known.layer_scale_classification,
        "clip_projector": known.clip_projector,
    }

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(
            TimmInternImage,
            name,
            pretrained,
            feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls="getter"),
            pretrained_filter_fn=_fitting,
            **{**options, **kwargs},
        )

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"InternImage-{variant} (arXiv 2211.05778)."
    return entry


def _fitting(state: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A released state dict under the model's keys."""
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return adapt_internimage(model, fit_prefix(tensors, model, "weights"))[0]
