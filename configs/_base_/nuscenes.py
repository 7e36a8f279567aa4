"""nuScenes as BEVFormer v2's release trains and tests on it (arXiv 2211.10439)."""

from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.sampler import ResumableSampler
from drivestack.data_tools.clips.transforms import ImageSettings, PhotometricSettings

# Alphabetical: the perspective head of the released weights numbers its classes like this.
class_names = [
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
]
pc_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]

# x to the right, y ahead, 0.94 m before and 1.84 m above the ego origin: about where nuScenes mounts LIDAR_TOP
ego_from_bev = [[0.0, 1.0, 0.0, 0.94], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.84], [0.0, 0.0, 0.0, 1.0]]
source = dict(reader="nuscenes", root="data/nuscenes", version="v1.0-trainval")
dataset = dict(
    type=ClipDataset,
    classes=class_names,
    pc_range=pc_range,
    ego_from_bev=ego_from_bev,  # of frames without a LiDAR
    image=dict(type=ImageSettings),  # 640 x 1600, BGR, mean subtracted: what caffe-style ResNets expect
)
train_dataloader = dict(
    dataset=dict(
        **dataset,
        source=dict(**source, split="train"),
        training=True,
        mono=True,
        photometric=dict(type=PhotometricSettings),
    ),
    sampler=dict(type=ResumableSampler),
    batch_size=1,
    num_workers=4,
    collate_fn=collate_clips,
)
test_dataset = dict(**dataset, source=dict(**source, split="val"))
