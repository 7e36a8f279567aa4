"""Segmentors on Mapillary Vistas 1.2 with Cityscapes' classes, 80,000 iterations, scored on Cityscapes.

Data: `--set data=DIR`, `--set cityscapes=DIR`. Trained on Mapillary's training and validation images.
"""

from mmengine.config import read_base

with read_base():
    from .cityscapes import *

data = "data/mapillary"
cityscapes = "data/cityscapes"
max_iters = 80_000
mapillary = dict(type="MapillaryDataset_v1", data_root=data)
parts = [
    dict(**mapillary, data_prefix=dict(img_path=f"{part}/images", seg_map_path=f"{part}/v1.2/labels"))
    for part in ("training", "validation")
]
train_dataloader.dataset.source = dict(
    type=ToolboxData,
    task="segmentation",
    dataset=dict(type="ConcatDataset", datasets=parts),
    relabelled="mapillary_to_cityscapes",
)
train_dataloader.dataset.pipeline[2].ratio_range = (0.5, 1.0)
test_dataset.source.dataset.data_root = cityscapes
param_scheduler[1].end = max_iters
train_cfg.max_iters = max_iters
