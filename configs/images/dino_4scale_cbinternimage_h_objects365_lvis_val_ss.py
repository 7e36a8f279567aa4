"""DINO with CB-InternImage-H on LVIS, from Objects365. Published: box AP 62.3 on val."""

from mmengine.config import read_base

from drivestack.backbone.pretrain.toolbox_source import ToolboxData

with read_base():
    from .dino_4scale_cbinternimage_h_objects365_coco_ss import *

data = "data/lvis_v1"
model.net.num_classes = 1203
lvis = dict(type="LVISV1Dataset", data_root=data, ann_file="annotations/lvis_v1_train.json", data_prefix=dict(img=""))
balanced = dict(type="ClassBalancedDataset", oversample_thr=1e-3, dataset=lvis)
train_dataloader.dataset.source = dict(type=ToolboxData, dataset=balanced)
train_dataloader.dataset.pipeline[2].scale = [(2000, 600), (2000, 1200)]
test_dataset.source = dict(
    type=ToolboxData, dataset=dict(**{**lvis, "ann_file": "annotations/lvis_v1_val.json", "test_mode": True})
)
train_cfg.max_iters = 80_000
