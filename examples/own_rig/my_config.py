"""My five cameras and five classes on the tiny model: what differs from the shipped config."""

from mmengine.config import read_base

with read_base():
    from drivestack.configs.boxes.bevformerv2_tiny_synthetic import *

class_names = ["pkw", "lkw", "person", "two_wheeler", "obstacle"]
model.boxes.head.num_classes = len(class_names)
model.bev_map.num_cams = 5
mine = dict(classes=class_names, camera_names=["front", "left", "right", "rear_left", "rear_right"])
source = dict(reader="my_reader.py", root="data/own_rig")
train_dataloader.dataset.update(mine)
test_dataset.update(mine)
train_dataloader.dataset.source = dict(**source, split="train")
test_dataset.source = dict(**source, split="val")

train_cfg.max_iters = 300
param_scheduler[0].end = param_scheduler[1].begin = 20
param_scheduler[1].end = 300
validation = dict(interval=100, metric="mAP")
