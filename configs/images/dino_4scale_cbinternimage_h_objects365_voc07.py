"""DINO with CB-InternImage-H on VOC 2007, from Objects365. Published: AP50 94.0 on its test set."""

from mmengine.config import read_base

from drivestack.backbone.pretrain.toolbox_source import ToolboxData

with read_base():
    from .dino_4scale_cbinternimage_h_objects365_coco_ss import *

data = "data/VOCdevkit"
model.net.num_classes = 20
voc = dict(type="VOCDataset", data_root=data)
trainval = [
    dict(**voc, ann_file=f"{year}/ImageSets/Main/trainval.txt", data_prefix=dict(sub_data_root=f"{year}/"))
    for year in ("VOC2007", "VOC2012")
]
test = dict(
    **voc, ann_file="VOC2007/ImageSets/Main/test.txt", data_prefix=dict(sub_data_root="VOC2007/"), test_mode=True
)
train_dataloader.dataset.source = dict(type=ToolboxData, dataset=dict(type="ConcatDataset", datasets=trainval))
train_dataloader.dataset.pipeline[2] = dict(type="Resize", scale=(1000, 600), keep_ratio=True)  # docs/image_models.md
test_dataset.source = dict(type=ToolboxData, dataset=test)
optim_wrapper.optimizer.lr = 5e-5
