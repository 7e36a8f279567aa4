"""InternImage-H on iNaturalist 2018 with date and place of each image (MetaFormer's heads): 92.6 % top-1 published.

Start it with `--fine-tune internimage_h_jointto22k_384.pth`; the classification layer begins anew. `--set data=DIR`:
the folder with {train,val}2018.json, {train,val}2018_locations.json and the images.
"""

from mmengine.config import read_base

from drivestack.backbone.pretrain.classification.inaturalist import INaturalistSource

with read_base():
    from .internimage_h_22kto1k_384 import *

data = "data/inaturalist2018"
source = dict(type=INaturalistSource, root=data, metadata=True)
train_dataloader.dataset.source = dict(**source, part="train")
test_dataset.source = dict(**source, part="val")
model.network.update(task="metaformer", num_classes=8142, drop_path_rate=0.6)
epochs.update(total=100, warmup=0)
optim_wrapper.paramwise_cfg.layer_decay_rate = None
ema = None
