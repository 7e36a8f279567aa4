"""BEVFormer v2 with InternImage-T on Waymo's five cameras, one frame, for the camera-only challenge.

Range and cells: those of the public Waymo fork of BEVFormer (OpenDriveLab/Birds-eye-view-Perception), 110 x 150 m, the
cameras' field of some 230 degrees, here in cells of 1 m. The upper part of the three front images, sky, is cut off so
that all five have one shape, 1920 x 886. Trained on every fifth frame, as public baselines are (0.9 GB of labels and
calibrations in memory; all would take 4.4 GB); tested on all. Schedule of bevformerv2_internimage_b_t1. Not trained by
us. `make waymo` installs what reads the v1 records.
"""

from mmengine.config import read_base

with read_base():
    from .bevformerv2_internimage_t_t1 import *

benchmark = "waymo"
# waymo_entry = dict(account="...", method="...", authors=["..."], affiliation="...")
class_names = ["vehicle", "pedestrian", "cyclist"]
camera_names = ["FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT"]
pc_range = [-35.0, -75.0, -3.0, 75.0, 75.0, 4.0]  # of the vehicle frame: x ahead, y left
frames_to_train = 31_600  # 798 segments of about 198 frames, every fifth

model.bev_map.update(pc_range=pc_range, bev_size=(150, 110), num_cams=len(camera_names))
model.boxes.head.update(num_classes=len(class_names), post_center_range=[-40.0, -80.0, -10.0, 80.0, 80.0, 10.0])
model.boxes.perspective.update(
    num_classes=len(class_names),
    # width, length, height: the anchors of public LiDAR detectors on Waymo (mmdetection3d, PointPillars)
    canonical_sizes_wlh=[(2.08, 4.73, 1.77), (0.84, 0.91, 1.74), (0.84, 1.81, 1.77)],
)

data = dict(classes=class_names, camera_names=camera_names, pc_range=pc_range, ego_from_bev=None)
image = dict(
    crop=(0.0, 394 / 1280, 1.0, 1.0),
    crops=dict(SIDE_LEFT=(0.0, 0.0, 1.0, 1.0), SIDE_RIGHT=(0.0, 0.0, 1.0, 1.0)),
)
source = dict(reader="waymo", root="data/waymo")
train_dataloader.dataset.update(data)
train_dataloader.dataset.image.update(image)
train_dataloader.dataset.source = dict(**source, split="train", stride=5)
test_dataset.update(data)
test_dataset.image.update(image)
test_dataset.source = dict(**source, split="val")

iterations_per_epoch = frames_to_train // 16
train_cfg.max_iters = 24 * iterations_per_epoch
param_scheduler[1].milestones = [20 * iterations_per_epoch]
"""16 clips a step."""
