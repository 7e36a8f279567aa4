"""Segmentors of the InternImage release as configs of mmseg 1.2: functions from an encoder to a config.

Sizes: released segmentation/configs (arXiv 2211.05778) and the mmseg 0.27 bases they derive from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....core.errors import ConfigError
from ..encoders import RGB_MEAN, RGB_STD, Encoder, encoder_config, widths
from .losses import WeightedCrossEntropy

Config = dict[str, Any]
LEVELS = (0, 1, 2, 3)
IGNORED = 255
"""Label of pixels that neither train nor count."""


def upernet(
    encoder: Encoder,
    num_classes: int,
    *,
    width: int = 512,
    aux_width: int = 256,
    dropout: float = 0.1,
    train_size: tuple[int, int] | None = None,
    test: Mapping[str, Any] | None = None,
    backbone: Mapping[str, Any] | None = None,
    class_weights: Sequence[float] | Mapping[str, float] | None = None,
) -> Config:
    """UperNet (arXiv 1807.10221) with an auxiliary FCN head on level 2.

    train_size: (height, width) that training images are padded to, default multiples of 32 in each batch;
    test: how images are cut, ``dict(mode="whole")`` (default) or ``dict(mode="slide", crop_size=(h, w), stride=(h,
    w))``; backbone: more arguments of the encoder; class_weights: of the loss, one for each class. BatchNorm where the
    release has SyncBN; training over several GPUs synchronises it (the config's ``sync_bn``).
    """
    maps = widths(encoder)
    return dict(
        **_segmentor(encoder, train_size, test, backbone),
        decode_head=dict(
            type="UPerHead",
            in_channels=maps,
            in_index=list(LEVELS),
            pool_scales=(1, 2, 3, 6),
            **_pixel_head(num_classes, width, dropout, 1.0, class_weights),
        ),
        auxiliary_head=dict(
            type="FCNHead",
            in_channels=maps[2],
            in_index=2,
            num_convs=1,
            concat_input=False,
            **_pixel_head(num_classes, aux_width, dropout, 0.4, class_weights),
        ),
    )


def segformer(
    encoder: Encoder,
    num_classes: int,
    *,
    width: int = 256,
    dropout: float = 0.1,
    train_size: tuple[int, int] | None = None,
    test: Mapping[str, Any] | None = None,
    backbone: Mapping[str, Any] | None = None,
) -> Config:
    """SegFormer's all-MLP head (arXiv 2105.15203). Arguments: see `upernet`."""
    return dict(
        **_segmentor(encoder, train_size, test, backbone),
        decode_head=dict(
            type="SegformerHead",
            in_channels=widths(encoder),
            in_index=list(LEVELS),
            **_pixel_head(num_classes, width, dropout, 1.0),
        ),
    )


def mask2former(
    encoder: Encoder,
    num_classes: int,
    *,
    width: int = 256,
    num_heads: int = 8,
    ffn_width: int = 2048,
    num_queries: int = 100,
    layers: tuple[int, int] = (6, 9),
    norm_groups: int = 32,
    pixel_ffn_width: int | None = None,
    num_points: int = 12544,
    train_size: tuple[int, int] | None = None,
    test: Mapping[str, Any] | None = None,
    backbone: Mapping[str, Any] | None = None,
) -> Config:
    """Mask2Former (arXiv 2112.01527) for semantic segmentation, its head as in the InternImage release.

    width, num_heads, ffn_width: of both decoders; pixel_ffn_width: of the pixel decoder's FFNs, default four times
    width; layers: of pixel and transformer decoder; num_points: at which masks are compared in training. Other
    arguments: see `upernet`.
    """
    from .mask2former_head import released_mask2former_head

    attention = dict(
        embed_dims=width, num_heads=num_heads, attn_drop=0.0, proj_drop=0.0, dropout_layer=None, batch_first=True
    )
    relu = dict(type="ReLU", inplace=True)
    position = dict(num_feats=width // 2, normalize=True)
    pixel_decoder = dict(
        type="mmdet.MSDeformAttnPixelDecoder",
        num_outs=3,
        norm_cfg=dict(type="GN", num_groups=norm_groups),
        act_cfg=dict(type="ReLU"),
        encoder=dict(
            num_layers=layers[0],
            layer_cfg=dict(
                self_attn_cfg=dict(
                    embed_dims=width,
                    num_heads=num_heads,
                    num_levels=3,
                    num_points=4,
                    im2col_step=64,
                    dropout=0.0,
                    batch_first=True,
                    norm_cfg=None,
                ),
                ffn_cfg=dict(
                    embed_dims=width,
                    feedforward_channels=4 * width if pixel_ffn_width is None else pixel_ffn_width,
                    num_fcs=2,
                    ffn_drop=0.0,
                    act_cfg=relu,
                ),
            ),
        ),
        positional_encoding=position,
    )
    transformer_decoder = dict(
        return_intermediate=True,
        num_layers=layers[1],
        layer_cfg=dict(
            self_attn_cfg=attention,
            cross_attn_cfg=attention,
            ffn_cfg=dict(
                embed_dims=width,
                feedforward_channels=ffn_width,
                num_fcs=2,
                act_cfg=relu,
                ffn_drop=0.0,
                dropout_layer=None,
                add_identity=True,
            ),
        ),
    )
    return dict(
        **_segmentor(encoder, train_size, test, backbone),
        decode_head=dict(
            type=released_mask2former_head(),
            in_channels=widths(encoder),
            strides=[4, 8, 16, 32],
            feat_channels=width,
            out_channels=width,
            num_classes=num_classes,
            num_queries=num_queries,
            num_transformer_feat_level=3,
            align_corners=False,
            ignore_index=IGNORED,
            pixel_decoder=pixel_decoder,
            enforce_decoder_input_project=False,
            positional_encoding=position,
            transformer_decoder=transformer_decoder,
            **_mask_losses(num_classes),
            train_cfg=_matching(num_points),
        ),
    )


def _segmentor(
    encoder: Encoder,
    train_size: tuple[int, int] | None,
    test: Mapping[str, Any] | None,
    backbone: Mapping[str, Any] | None,
) -> Config:
    padding = dict(size_divisor=32) if train_size is None else dict(size=tuple(train_size))
    return dict(
        type="EncoderDecoder",
        data_preprocessor=dict(
            type="SegDataPreProcessor",
            mean=list(RGB_MEAN),
            std=list(RGB_STD),
            bgr_to_rgb=True,
            pad_val=0,
            seg_pad_val=IGNORED,
            **padding,
            test_cfg=dict(size_divisor=1),  # images of one batch to one size
        ),
        backbone=encoder_config(encoder, LEVELS, options=backbone),
        train_cfg={},
        test_cfg=dict(test or dict(mode="whole")),
    )


def _pixel_head(
    num_classes: int,
    width: int,
    dropout: float,
    loss_weight: float,
    class_weights: Sequence[float] | Mapping[str, float] | None = None,
) -> Config:
    if isinstance(class_weights, Mapping):  # by name, in the order of the classes
        class_weights = list(class_weights.values())
    if class_weights is not None and len(class_weights) != num_classes:
        raise ConfigError(
            f"class_weights: {len(class_weights)} weights for {num_classes} classes; give one for each, or None"
        )
    loss = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=loss_weight)
    if class_weights is not None:
        loss = dict(type=WeightedCrossEntropy, class_weights=list(class_weights), loss_weight=loss_weight)
    return dict(
        channels=width,
        num_classes=num_classes,
        dropout_ratio=dropout,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        ignore_index=IGNORED,
        loss_decode=loss,
    )


def _mask_losses(num_classes: int) -> Config:
    return dict(
        loss_cls=dict(
            type="mmdet.CrossEntropyLoss",
            use_sigmoid=False,
            loss_weight=2.0,
            reduction="mean",
            class_weight=[1.0] * num_classes + [0.1],  # the last is "nothing"
        ),
        loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="mean", loss_weight=5.0),
        loss_dice=dict(
            type="mmdet.DiceLoss",
            use_sigmoid=True,
            activate=True,
            reduction="mean",
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0,
        ),
    )


def _matching(num_points: int) -> Config:
    return dict(
        num_points=num_points,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        assigner=dict(
            type="mmdet.HungarianAssigner",
            match_costs=[
                dict(type="mmdet.ClassificationCost", weight=2.0),
                dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
                dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
            ],
        ),
        sampler=dict(type="mmdet.MaskPseudoSampler"),
    )
