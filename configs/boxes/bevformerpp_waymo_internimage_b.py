"""What of BEVFormer++ (first of Waymo's camera-only challenge 2022; arXiv 2209.05324) is architecture and training.

In it, beside bevformerv2_waymo_internimage_t:
* a larger encoder, cells of 0.5 m (220 x 300) and four frames half a second apart (the report: BEV 220 x 300, queue 4);
* 2D auxiliary heads: the perspective head, whose classes and 2D boxes are FCOS's; 3D boxes come on top of them;
* smooth L1 for boxes (in the base already), label smoothing, learned weights of the losses;
* LET-IoU in the matching, the decoder's assignment (bev/boxes/matching.py: our formula, the report gives none);
* colour jitter, scales from 0.5 to 1.2, GridMask; images and the BEV map are mirrored as in BEVFormer v2.

Left out, as the project has none of it: FreeAnchor and CenterPoint heads (only the DETR one is here), Swin-L, offsets
by convolution in the temporal attention, the deformable view encoder, corner pooling, experts for single classes and
times of day, tests at several scales. Left out, too, is the flip that exchanges left and right cameras (the dataset's
``mirror``): the labels of single images do not follow it. History is fused by concatenation (BEVFormer v2), not by
temporal attention. Ensembles: `drivestack ensemble`. The report's numbers (34.6 to 36.2 LET-3D-mAPL with ResNet-101 on
a fifth of the frames) are its own; this config was not trained.
"""

from mmengine.config import read_base

with read_base():
    from .bevformerv2_waymo_internimage_t import *

model.img_backbone.variant = "B"
model.bev_map.update(bev_size=(300, 220), frames=(-15, -10, -5, 0))  # of ten a second
# Past frames are counted in frames of the data, so all must be there; the number of iterations is the same. All 158,000
# frames take 4.4 GB of the main process's memory (28 kB each, docs/waymo_data.md), where every fifth takes 0.9 GB.
train_dataloader.dataset.source.stride = 1
model.boxes.learned_loss_weights = True
model.boxes.head.update(label_smoothing=0.1, let_weight=2.0)

# of the 640 rows that a test image has
train_dataloader.dataset.image.train_heights_px = tuple(range(320, 769, 64))
