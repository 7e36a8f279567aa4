"""Mask2Former with InternImage-H on COCO-Stuff 10K, from 164K: `--load-from FILE`.

Published: mIoU 59.2, at several scales 59.6.
"""

from mmengine.config import read_base

with read_base():
    from .mask2former_internimage_h_896_80k_cocostuff164k import *

crop = (512, 512)
scale = (2048, 512)
data = "data/coco_stuff10k"
max_iters = 40_000
model.net.train_size = crop
stuff = dict(type="COCOStuffDataset", data_root=data, reduce_zero_label=True)
train_dataloader.dataset.source.dataset = dict(
    **stuff, data_prefix=dict(img_path="images/train2014", seg_map_path="annotations/train2014")
)
test_dataset.source.dataset = dict(
    **stuff, data_prefix=dict(img_path="images/test2014", seg_map_path="annotations/test2014"), test_mode=True
)
train_dataloader.dataset.pipeline[2].scale = scale
train_dataloader.dataset.pipeline[3].crop_size = crop
test_dataset.pipeline[1].scale = scale
optim_wrapper.optimizer.lr = 1e-5
param_scheduler[1].end = max_iters
train_cfg.max_iters = max_iters
