"""DINO on COCO, 12 epochs, four levels. Start from a classifier: `--load-from FILE`."""

from mmengine.config import read_base

from drivestack.backbone.pretrain.detection.heads import dino
from drivestack.backbone.pretrain.openmmlab import MMModel

with read_base():
    from .detection import *

model = dict(type=MMModel, net=dict(type=dino, encoder="T", num_classes=80))
new_parts = (  # that a classifier's file lacks
    "neck.",
    "encoder.",
    "decoder.",
    "bbox_head.",
    "dn_query_generator.",
    "level_embed",
    "memory_trans_",
    "query_embedding.",
    "backbone.cb_linears.",
)
read[1].with_mask = False
larger = dict(type="RandomChoiceResize", scales=[(400, 4200), (500, 4200), (600, 4200)], keep_ratio=True)
detr_augmentation.transforms[1][0] = larger
detr_augmentation.transforms[1][1].allow_negative_crop = False
train_dataloader.dataset.source.masks = False
train_dataloader.dataset.pipeline = [*read, detr_augmentation, *finish]
test_dataset.source.masks = False
optim_wrapper.optimizer.weight_decay = 1e-4
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.9
optim_wrapper.clip_grad = dict(max_norm=0.1, norm_type=2)
param_scheduler[1].milestones = [11 * epoch]
