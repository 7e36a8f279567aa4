"""Segmentors on Cityscapes, 160,000 iterations. Data: `--set data=DIR` with DIR/leftImg8bit and DIR/gtFine, masks of
training classes (`_labelTrainIds.png`).

The release's UperNet and SegFormer have 150 outputs here, of which 19 are used; so do these, to load its weights.
"""

from mmengine.config import read_base

with read_base():
    from .segmentation import *

data = "data/cityscapes"
crop = (512, 1024)
scale = (2048, 1024)
model.net.train_size = crop
train_dataloader.dataset.pipeline[2].scale = scale
train_dataloader.dataset.pipeline[3].crop_size = crop
train_dataloader.dataset.source.dataset = dict(
    type="CityscapesDataset",
    data_root=data,
    data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
)
test_dataset.source.dataset = dict(
    type="CityscapesDataset",
    data_root=data,
    data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
    test_mode=True,
)
test_dataset.pipeline = [
    dict(type=ReadImage),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="PackSegInputs"),
]
