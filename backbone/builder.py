"""One builder for every InternImage of the paper and every task."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from .internimage.classifier import InternImageClassifier, InternImageMetaFormer
from .internimage.composite import CBInternImage
from .internimage.model import InternImage
from .internimage.variants import VARIANTS

Task = Literal["features", "classification", "metaformer", "composite"]


def internimage(variant: str, task: Task = "features", **overrides: Any) -> nn.Module:
    """Build an InternImage by name.

    Args:
        variant: "T", "S", "B", "L", "XL", "H" or "G".
        task: "features" (multi-level maps for detection, BEV, segmentation), "classification" (image logits, 1000
            classes unless `num_classes` says otherwise), "metaformer" (image, date and place, iNaturalist 2018) or
            "composite" (two trunks, CBNetV2 style, for detection).
        overrides: any keyword argument of the class that is built.

    Raises:
        ValueError: for an unknown variant or task.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown InternImage variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    v = VARIANTS[variant]
    if task in ("features", "composite"):
        cls: type[nn.Module] = InternImage if task == "features" else CBInternImage
        options = {"layer_scale": v.layer_scale_features, "drop_path_rate": v.drop_path_features}
    elif task in ("classification", "metaformer"):
        cls = InternImageClassifier if task == "classification" else InternImageMetaFormer
        options = {
            "layer_scale": v.layer_scale_classification,
            "drop_path_rate": v.drop_path_classification,
            "clip_projector": v.clip_projector,
        }
    else:
        raise ValueError(f"unknown task {task!r}: choose 'features', 'classification', 'metaformer' or 'composite'")
    return cls(**{**v.trunk_options(), **options, **overrides})
