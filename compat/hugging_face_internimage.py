"""InternImage in transformers: AutoModelForImageClassification and AutoBackbone load the hub's folders with our code.

    from drivestack.compat.hugging_face_internimage import register_internimage

    _, Backbone, _ = register_internimage()
    model = AutoModelForImageClassification.from_pretrained("OpenGVLab/internimage_t_1k_224")   # or a folder
    maps = Backbone.from_pretrained(FOLDER, out_indices=(1, 2, 3))(pixel_values).feature_maps

The hub's own code (``trust_remote_code``) never finds its CUDA operator; ours needs neither it nor remote code. Read
and written are the hub's names of weights. transformers (Apache 2.0) is imported by `register_internimage` alone.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone.internimage.classifier import InternImageClassifier
from ..backbone.internimage.model import NUM_LEVELS, InternImage
from ..core.errors import ConfigError

MODEL_TYPE = "internimage"
TRUNK: dict[str, Any] = {
    "channels": 64,
    "depths": (4, 4, 18, 4),
    "groups": (4, 8, 16, 32),
    "mlp_ratio": 4.0,
    "drop_rate": 0.0,
    "drop_path_rate": 0.0,
    "act_layer": "GELU",
    "norm_layer": "LN",
    "layer_scale": None,
    "offset_scale": 1.0,
    "post_norm": False,
    "dw_kernel_size": None,
    "level2_post_norm": False,
    "level2_post_norm_block_ids": None,
    "res_post_norm": False,
    "center_feature_scale": False,
    "remove_center": False,
}
"""Settings of the hub's config.json that describe the trunk, with their defaults there (InternImage-T)."""
HEAD: dict[str, Any] = {"cls_scale": 1.5, "use_clip_projector": False}
KEY_MAPPING = {r"\.layer_scale([12])$": r".gamma\1"}
CLASSIFIER_KEYS = r"model\.(conv_head|head|dcnv3_head_x[34]|clip_projector|fc_norm)\."


@functools.cache
def register_internimage() -> tuple[type, type, type]:
    """Register with transformers' Auto classes; returns (config, backbone, classification model).

    A second call returns the same classes. Raises ConfigError without transformers.
    """
    try:
        from transformers import (
            AutoBackbone,
            AutoConfig,
            AutoModelForImageClassification,
            PretrainedConfig,
            PreTrainedModel,
        )
        from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput

        try:
            from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
        except ImportError:  # transformers 4
            from transformers.utils.backbone_utils import BackboneConfigMixin, BackboneMixin
    except ImportError as error:
        raise ConfigError(f"transformers is not there ({error}): pip install transformers") from error

    class InternImageConfig(BackboneConfigMixin, PretrainedConfig):
        """Settings of an InternImage, as the hub's config.json has them."""

        model_type = MODEL_TYPE

        def __init__(self, out_features: Any = None, out_indices: Any = None, **settings: Any) -> None:
            for name, default in {**TRUNK, **HEAD}.items():
                setattr(self, name, settings.pop(name, default))
            self.stage_names = settings.pop("stage_names", [f"stage{i}" for i in range(NUM_LEVELS)])
            if "num_classes" in settings:  # the hub's word
                settings.setdefault("num_labels", settings.pop("num_classes"))
            super().__init__(**settings)
            out_indices = list(out_indices) if out_indices is not None else None
            self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)

        def trunk_options(self) -> dict[str, Any]:
            return {name: getattr(self, name) for name in TRUNK}

    class InternImagePreTrained(PreTrainedModel):
        config_class = InternImageConfig
        base_model_prefix = ""
        main_input_name = "pixel_values"
        _no_split_modules = ["InternImageLayer"]

        def _init_weights(self, module: nn.Module) -> None:
            """Layers have their initial weights when they are made."""

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            kwargs["key_mapping"] = {**KEY_MAPPING, **(kwargs.get("key_mapping") or {})}
            return super().from_pretrained(*args, **kwargs)

        def save_pretrained(self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> Any:
            state = self.state_dict() if state_dict is None else state_dict
            kwargs["state_dict"] = {_hub_key(key): value for key, value in state.items()}
            return super().save_pretrained(save_directory, *args, **kwargs)

    class InternImageBackbone(BackboneMixin, InternImagePreTrained):
        """Maps [N, C, H, W] of the levels that the config's out_indices name."""

        has_attentions = False
        _keys_to_ignore_on_load_unexpected = [CLASSIFIER_KEYS]

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.num_features = [config.channels << i for i in range(NUM_LEVELS)]
            self.model = InternImage(**config.trunk_options(), out_indices=tuple(range(NUM_LEVELS)))
            self.post_init()

        def forward(
            self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool = True, **_: Any
        ) -> Any:
            maps = self.model(pixel_values)
            chosen = tuple(maps[i] for i in self.out_indices)
            if not return_dict:
                return (chosen,)
            return BackboneOutput(feature_maps=chosen, hidden_states=tuple(maps) if output_hidden_states else None)

    class InternImageForImageClassification(InternImagePreTrained):
        """Logits [N, num_labels], and the loss where labels [N] are given."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.num_labels = config.num_labels
            self.model = InternImageClassifier(
                **config.trunk_options(),
                num_classes=config.num_labels,
                cls_scale=config.cls_scale,
                clip_projector=config.use_clip_projector,
            )
            self.post_init()

        def forward(
            self,
            pixel_values: Tensor,
            labels: Tensor | None = None,
            output_hidden_states: bool | None = None,
            return_dict: bool = True,
            **_: Any,
        ) -> Any:
            levels = self.model.forward_levels(pixel_values)
            logits = self.model.head(self.model.pool(self.model.unpooled(levels, pixel_values)))
            loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
            if not return_dict:
                return (logits,) if loss is None else (loss, logits)
            maps = tuple(level.permute(0, 3, 1, 2) for level in levels) if output_hidden_states else None
            return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=maps)

    AutoConfig.register(MODEL_TYPE, InternImageConfig)
    AutoBackbone.register(InternImageConfig, InternImageBackbone)
    AutoModelForImageClassification.register(InternImageConfig, InternImageForImageClassification)
    return InternImageConfig, InternImageBackbone, InternImageForImageClassification


def _hub_key(key: str) -> str:
    return key.replace(".gamma1", ".layer_scale1").replace(".gamma2", ".layer_scale2")
