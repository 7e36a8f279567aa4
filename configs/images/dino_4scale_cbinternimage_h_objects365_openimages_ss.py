"""DINO with CB-InternImage-H on OpenImages, from Objects365. Published: mAP 74.1 by OpenImages' own measure."""

from mmengine.config import read_base

from drivestack.backbone.pretrain.toolbox_source import ToolboxData

with read_base():
    from .dino_4scale_cbinternimage_h_objects365_coco_ss import *

data = "data/openimages"
model.net.num_classes = 601
openimages = dict(
    type="OpenImagesDataset",
    data_root=data,
    label_file="annotations/class-descriptions-boxable.csv",
    hierarchy_file="annotations/bbox_labels_600_hierarchy.json",
)
train_dataloader.dataset.source = dict(
    type=ToolboxData,
    dataset=dict(
        **openimages,
        ann_file="annotations/oidv6-train-annotations-bbox.csv",
        data_prefix=dict(img="OpenImages/train/"),
        meta_file="annotations/train-image-metas.pkl",
    ),
)
train_dataloader.dataset.pipeline[2].scale = [(2000, 600), (2000, 1200)]
test_dataset.source = dict(
    type=ToolboxData,
    dataset=dict(
        **openimages,
        ann_file="annotations/validation-annotations-bbox.csv",
        data_prefix=dict(img="OpenImages/validation/"),
        meta_file="annotations/validation-image-metas.pkl",
        image_level_ann_file="annotations/validation-annotations-human-imagelabels-boxable.csv",
        test_mode=True,
    ),
)
train_cfg.max_iters = 100_000
