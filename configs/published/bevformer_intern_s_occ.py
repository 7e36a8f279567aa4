"""The occupancy challenge's BEVFormer with InternImage-S, the configuration that InternImage's authors published.

Reported: mIoU 25.11 with camera mask (InternImage's autonomous_driving/occupancy_prediction). Our scores: none yet.
"""

from mmengine.config import read_base

from drivestack.backbone.builder import internimage

with read_base():
    from .._base_.images import *
    from .bevformer_base_occ import *

model.img_backbone = dict(
    type=internimage,
    variant="S",
    drop_path_rate=0.3,
    out_indices=(1, 2, 3),
    activation_checkpointing=True,
    # pretrained="mask_rcnn_internimage_s_fpn_3x_coco.pth": published weights to start from
)

# InternImage was trained on RGB, ImageNet statistics.
train_dataloader.dataset.image.update(imagenet_rgb)
test_dataset.image.update(imagenet_rgb)

optim_wrapper.optimizer.weight_decay = 0.05
optim_wrapper.paramwise_cfg = dict(no_decay=("norm", "sampling_offsets"))
