"""A classifier that two CPU cores train in minutes on crops of the synthetic world's objects, ten classes.

64 x 64 pixels, an InternImage of 32 channels. `--set data_train=DIR` and `data_val=DIR` name other folders of crops.
"""

from mmengine.config import read_base

from drivestack.backbone.internimage.classifier import InternImageClassifier

with read_base():
    from .internimage_t_1k_224 import *

data_command = (
    "drivestack synthesize data/crops_train --split train --scenes 60 --keyframes 3 --seed 100 --labels classes; "
    "drivestack synthesize data/crops_val --split val --scenes 12 --keyframes 3 --seed 200 --labels classes"
)
data_train, data_val = "data/crops_train/crops", "data/crops_val/crops"
train_dataloader.dataset.source.root = data_train
test_dataset.source.root = data_val

model.network = dict(
    type=InternImageClassifier, channels=32, depths=(1, 2, 5, 2), groups=(2, 4, 8, 16), drop_path_rate=0.05
)
model.mixup = None
size_px = 64
image = dict(size_px=size_px, crop=False)  # the whole object, squeezed
train_dataloader.dataset.image.update(
    **image, augment=dict(scale=(0.5, 1.0), auto_augment=None, color_jitter=0.3, re_prob=0.1, re_mode="pixel")
)
test_dataset.image.update(image)
train_dataloader.update(batch_size=64, num_workers=0)
epochs.update(total=20, warmup=1, lr=2e-3, warmup_lr=0.0, min_lr=1e-5, images_per_lr=64)
optim_wrapper.precision = "auto"
ema = dict(momentum=0.005, update_buffers=True)
checkpoint = dict(interval=200, keep=2)
log_interval = 20
