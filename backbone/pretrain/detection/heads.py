"""Detectors of the InternImage release as configs of mmdet 3.3: functions from an encoder to a config.

Sizes and thresholds: released detection/configs (arXiv 2211.05778) and the mmdet 2.28 bases they derive from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..encoders import RGB_MEAN, RGB_STD, Encoder, encoder_config, widths

Config = dict[str, Any]
STRIDES = (4, 8, 16, 32)
CASCADE_IOUS = (0.5, 0.6, 0.7)
CASCADE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


def mask_rcnn(
    encoder: Encoder,
    num_classes: int,
    *,
    width: int = 256,
    fc_width: int = 1024,
    mask_convs: int = 4,
    anchor_scale: int = 8,
    backbone: Mapping[str, Any] | None = None,
) -> Config:
    """Mask R-CNN (arXiv 1703.06870) with FPN.

    width: channels of FPN and of the heads' convolutions; fc_width: of the box head's two linear layers; anchor_scale:
    anchor side over stride; backbone: more arguments of the encoder.
    """
    box_loss = dict(type="L1Loss", loss_weight=1.0)
    return dict(
        type="MaskRCNN",
        **_two_stage(encoder, width, anchor_scale, box_loss, backbone),
        roi_head=dict(
            type="StandardRoIHead",
            bbox_roi_extractor=_roi_extractor(7, width),
            bbox_head=dict(
                type="Shared2FCBBoxHead",
                fc_out_channels=fc_width,
                **_box_head(num_classes, width, CASCADE_STDS[0]),
                loss_bbox=box_loss,
            ),
            mask_roi_extractor=_roi_extractor(14, width),
            mask_head=_mask_head(num_classes, width, mask_convs),
        ),
        train_cfg=dict(
            rpn=_rpn_training(allowed_border=-1),
            rpn_proposal=_proposals(2000, 1000),
            rcnn=_roi_training(0.5, match_low_quality=True),
        ),
        test_cfg=_two_stage_test(),
    )


def cascade_mask_rcnn(
    encoder: Encoder,
    num_classes: int,
    *,
    masks: bool = True,
    width: int = 256,
    fc_width: int = 1024,
    mask_convs: int = 4,
    shared_convs: int = 4,
    anchor_scale: int = 8,
    backbone: Mapping[str, Any] | None = None,
) -> Config:
    """Cascade (Mask) R-CNN (arXiv 1906.09756): three box heads at rising IoU thresholds.

    masks: as released for COCO, box heads of four normalised convolutions and a linear layer, class by class, GIoU on
    decoded boxes; False: as released for CrowdHuman, boxes only, two linear layers, one regression for all classes.
    Other arguments: see `mask_rcnn`. BatchNorm where the release has SyncBN; training over several GPUs synchronises
    it (the config's ``sync_bn``).
    """
    if masks:
        kind = dict(
            type="ConvFCBBoxHead",
            num_shared_convs=shared_convs,
            num_shared_fcs=1,
            conv_out_channels=width,
            norm_cfg=dict(type="BN"),
            reg_decoded_bbox=True,
            loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
        )
    else:
        kind = dict(type="Shared2FCBBoxHead", loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0))
    box_heads = [
        {**kind, "fc_out_channels": fc_width, **_box_head(num_classes, width, stds, class_agnostic=not masks)}
        for stds in CASCADE_STDS
    ]
    roi_head = dict(
        type="CascadeRoIHead",
        num_stages=len(CASCADE_IOUS),
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_roi_extractor=_roi_extractor(7, width),
        bbox_head=box_heads,
    )
    if masks:
        roi_head["mask_roi_extractor"] = _roi_extractor(14, width)
        roi_head["mask_head"] = _mask_head(num_classes, width, mask_convs)
    smooth = dict(type="SmoothL1Loss", beta=1.0 / 9.0, loss_weight=1.0)
    return dict(
        type="CascadeRCNN",
        **_two_stage(encoder, width, anchor_scale, smooth, backbone, pad_mask=masks),
        roi_head=roi_head,
        train_cfg=dict(
            rpn=_rpn_training(allowed_border=0),
            rpn_proposal=_proposals(2000, 2000),
            rcnn=[_roi_training(iou, match_low_quality=False) for iou in CASCADE_IOUS],
        ),
        test_cfg=_two_stage_test(),
    )


def dino(
    encoder: Encoder,
    num_classes: int,
    *,
    composite: bool = False,
    num_queries: int = 900,
    dn_queries: int = 100,
    max_per_image: int = 300,
    layers: tuple[int, int] = (6, 6),
    width: int = 256,
    ffn_width: int = 2048,
    norm_groups: int = 32,
    backbone: Mapping[str, Any] | None = None,
) -> Config:
    """DINO (arXiv 2203.03605) with four feature levels, its head as in the InternImage release.

    composite: two encoders, the first feeding the second (CB-InternImage); dn_queries: denoising queries in all groups;
    layers: of encoder and decoder; norm_groups: of the neck's GroupNorm.
    """
    from .composite import composite_dino
    from .dino_head import released_dino_head

    deformable = dict(embed_dims=width, num_levels=4, dropout=0.0)
    ffn = dict(embed_dims=width, feedforward_channels=ffn_width, ffn_drop=0.0)
    return dict(
        type=composite_dino() if composite else "DINO",
        num_queries=num_queries,
        with_box_refine=True,
        as_two_stage=True,
        data_preprocessor=preprocessor(pad_mask=False),
        backbone=encoder_config(encoder, (1, 2, 3), "composite" if composite else "features", backbone),
        neck=dict(
            type="ChannelMapper",
            in_channels=widths(encoder)[1:],
            kernel_size=1,
            out_channels=width,
            act_cfg=None,
            norm_cfg=dict(type="GN", num_groups=norm_groups),
            num_outs=4,
        ),
        encoder=dict(num_layers=layers[0], layer_cfg=dict(self_attn_cfg=deformable, ffn_cfg=ffn)),
        decoder=dict(
            num_layers=layers[1],
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=width, num_heads=8, dropout=0.0), cross_attn_cfg=deformable, ffn_cfg=ffn
            ),
            post_norm_cfg=None,
        ),
        positional_encoding=dict(num_feats=width // 2, normalize=True, offset=0.0, temperature=20),
        bbox_head=dict(
            type=released_dino_head(),
            num_classes=num_classes,
            embed_dims=width,
            sync_cls_avg_factor=True,
            loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=5.0),
            loss_iou=dict(type="GIoULoss", loss_weight=2.0),
        ),
        dn_cfg=dict(
            label_noise_scale=0.5,
            box_noise_scale=1.0,
            group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=dn_queries),
        ),
        train_cfg=dict(
            assigner=dict(
                type="HungarianAssigner",
                match_costs=[
                    dict(type="FocalLossCost", weight=2.0),
                    dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                    dict(type="IoUCost", iou_mode="giou", weight=2.0),
                ],
            )
        ),
        test_cfg=dict(max_per_img=max_per_image),
    )


def preprocessor(pad_mask: bool) -> Config:
    """Images to normalised RGB, padded to multiples of 32."""
    return dict(
        type="DetDataPreprocessor",
        mean=list(RGB_MEAN),
        std=list(RGB_STD),
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=pad_mask,
    )


def _two_stage(
    encoder: Encoder,
    width: int,
    anchor_scale: int,
    box_loss: Config,
    backbone: Mapping[str, Any] | None,
    pad_mask: bool = True,
) -> Config:
    return dict(
        data_preprocessor=preprocessor(pad_mask),
        backbone=encoder_config(encoder, (0, 1, 2, 3), options=backbone),
        neck=dict(type="FPN", in_channels=widths(encoder), out_channels=width, num_outs=5),
        rpn_head=dict(
            type="RPNHead",
            in_channels=width,
            feat_channels=width,
            anchor_generator=dict(
                type="AnchorGenerator", scales=[anchor_scale], ratios=[0.5, 1.0, 2.0], strides=[*STRIDES, 64]
            ),
            bbox_coder=_box_coder((1.0, 1.0, 1.0, 1.0)),
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
            loss_bbox=box_loss,
        ),
    )


def _box_coder(stds: Sequence[float]) -> Config:
    return dict(type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=list(stds))


def _roi_extractor(size: int, width: int) -> Config:
    return dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=size, sampling_ratio=0),
        out_channels=width,
        featmap_strides=list(STRIDES),
    )


def _box_head(num_classes: int, width: int, stds: Sequence[float], class_agnostic: bool = False) -> Config:
    return dict(
        in_channels=width,
        roi_feat_size=7,
        num_classes=num_classes,
        bbox_coder=_box_coder(stds),
        reg_class_agnostic=class_agnostic,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    )


def _mask_head(num_classes: int, width: int, convs: int) -> Config:
    return dict(
        type="FCNMaskHead",
        num_convs=convs,
        in_channels=width,
        conv_out_channels=width,
        num_classes=num_classes,
        loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
    )


def _assigner(positive: float, negative: float, match_low_quality: bool) -> Config:
    return dict(
        type="MaxIoUAssigner",
        pos_iou_thr=positive,
        neg_iou_thr=negative,
        min_pos_iou=negative,
        match_low_quality=match_low_quality,
        ignore_iof_thr=-1,
    )


def _sampler(number: int, share: float, add_gt: bool) -> Config:
    return dict(type="RandomSampler", num=number, pos_fraction=share, neg_pos_ub=-1, add_gt_as_proposals=add_gt)


def _rpn_training(allowed_border: int) -> Config:
    return dict(
        assigner=_assigner(0.7, 0.3, True),
        sampler=_sampler(256, 0.5, False),
        allowed_border=allowed_border,
        pos_weight=-1,
        debug=False,
    )


def _roi_training(iou: float, match_low_quality: bool) -> Config:
    return dict(
        assigner=_assigner(iou, iou, match_low_quality),
        sampler=_sampler(512, 0.25, True),
        mask_size=28,
        pos_weight=-1,
        debug=False,
    )


def _proposals(before_nms: int, after_nms: int) -> Config:
    return dict(nms_pre=before_nms, max_per_img=after_nms, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0)


def _two_stage_test() -> Config:
    return dict(
        rpn=_proposals(1000, 1000),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5),
    )
