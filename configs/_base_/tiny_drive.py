"""What perception_tiny_drive and the beginning of its training have in common beside the map: teacher and heads."""

from drivestack.bev.perspective.depth import DepthTeacher

drive_teacher = dict(type=DepthTeacher, weight=0.5)
# what only answers use was chosen on scenes that are not the demo's (docs/tiny_model.md)
drive_lanes = dict(end_map=dict(), one_to_many=dict(), snap_radius_m=4.0, snap_falloff_m=4.0, min_score=0.2)
drive_voxels = dict(mask="mixed", ray_loss=dict(), free_bias=1.5)
drive_sets = ["data/train_drives"]
drive_command = "drivestack synthesize data/train_drives --recipe train_drives"
