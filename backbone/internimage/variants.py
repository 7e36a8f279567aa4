"""The seven InternImages as data.

Sizes and drop-path rates: released code of arXiv 2211.05778 (classification/configs, detection/configs), table 1 of
the paper for T to XL; H and G are the follow-up models of the same release.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """Everything in which one InternImage differs from another."""

    channels: int
    depths: tuple[int, int, int, int]
    groups: tuple[int, int, int, int]
    drop_path_classification: float
    drop_path_features: float
    layer_scale_classification: float | None = None
    layer_scale_features: float | None = None
    """Detection and segmentation start their branch scales at 1; T has none in classification."""
    post_norm: bool = False
    res_post_norm: bool = False
    offset_scale: float = 1.0
    dw_kernel_size: int | None = None
    level2_post_norm_block_ids: tuple[int, ...] = ()
    center_feature_scale: bool = False
    clip_projector: bool = False
    """The classification head: attention pooling of two levels instead of a 1x1 convolution and averaging."""

    def trunk_options(self) -> dict[str, Any]:
        """Keyword arguments of `InternImage` that are the same for every task."""
        return {
            "channels": self.channels,
            "depths": self.depths,
            "groups": self.groups,
            "post_norm": self.post_norm,
            "res_post_norm": self.res_post_norm,
            "offset_scale": self.offset_scale,
            "dw_kernel_size": self.dw_kernel_size,
            "level2_post_norm": bool(self.level2_post_norm_block_ids),
            "level2_post_norm_block_ids": self.level2_post_norm_block_ids or None,
            "center_feature_scale": self.center_feature_scale,
        }


VARIANTS: dict[str, Variant] = {
    "T": Variant(
        channels=64,
        depths=(4, 4, 18, 4),
        groups=(4, 8, 16, 32),
        drop_path_classification=0.1,
        drop_path_features=0.2,
        layer_scale_features=1.0,
    ),
    "S": Variant(
        channels=80,
        depths=(4, 4, 21, 4),
        groups=(5, 10, 20, 40),
        drop_path_classification=0.4,
        drop_path_features=0.3,
        layer_scale_classification=1e-5,
        layer_scale_features=1.0,
        post_norm=True,
    ),
    "B": Variant(
        channels=112,
        depths=(4, 4, 21, 4),
        groups=(7, 14, 28, 56),
        drop_path_classification=0.5,
        drop_path_features=0.4,
        layer_scale_classification=1e-5,
        layer_scale_features=1.0,
        post_norm=True,
    ),
    "L": Variant(
        channels=160,
        depths=(5, 5, 22, 5),
        groups=(10, 20, 40, 80),
        drop_path_classification=0.1,
        drop_path_features=0.4,
        layer_scale_classification=1e-5,
        layer_scale_features=1.0,
        post_norm=True,
        offset_scale=2.0,
    ),
    "XL": Variant(
        channels=192,
        depths=(5, 5, 24, 5),
        groups=(12, 24, 48, 96),
        drop_path_classification=0.2,
        drop_path_features=0.4,
        layer_scale_classification=1e-5,
        layer_scale_features=1.0,
        post_norm=True,
        offset_scale=2.0,
    ),
    "H": Variant(
        channels=320,
        depths=(6, 6, 32, 6),
        groups=(10, 20, 40, 80),
        drop_path_classification=0.2,
        drop_path_features=0.5,
        res_post_norm=True,
        dw_kernel_size=5,
        level2_post_norm_block_ids=(5, 11, 17, 23, 29),
        center_feature_scale=True,
        clip_projector=True,
    ),
    "G": Variant(
        channels=512,
        depths=(2, 2, 48, 4),
        groups=(16, 32, 64, 128),
        drop_path_classification=0.4,
        drop_path_features=0.5,
        post_norm=True,
        dw_kernel_size=5,
        level2_post_norm_block_ids=(5, 11, 17, 23, 29, 35, 41, 47),
        center_feature_scale=True,
        clip_projector=True,
    ),
}
