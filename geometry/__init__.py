"""Poses, cameras, boxes and grids: the one place where frames and units are defined (see README.md here)."""

from .boxes import (
    bev_iou,
    bev_nms,
    bev_overlap,
    box_corners,
    box_corners_bev,
    boxes_from_legacy,
    boxes_to_legacy,
    points_in_boxes,
    transform_boxes,
)
from .cameras import CameraModel, brown_conrady, cylinder, double_sphere, f_theta, kannala_brandt, mei
from .grids import OCC3D_GRID, BevGrid, VoxelGrid
from .lenses import Lens
from .poses import (
    interpolate_poses,
    invert_pose,
    matrix_to_quaternion,
    nearest_rigid,
    pose,
    quaternion_to_matrix,
    rotation_z,
    slerp,
    transform_points,
    wrap_angle,
    yaw_of,
)

__all__ = [
    "OCC3D_GRID",
    "BevGrid",
    "CameraModel",
    "Lens",
    "VoxelGrid",
    "bev_iou",
    "bev_nms",
    "bev_overlap",
    "box_corners",
    "box_corners_bev",
    "boxes_from_legacy",
    "boxes_to_legacy",
    "brown_conrady",
    "cylinder",
    "double_sphere",
    "f_theta",
    "interpolate_poses",
    "invert_pose",
    "kannala_brandt",
    "matrix_to_quaternion",
    "mei",
    "nearest_rigid",
    "points_in_boxes",
    "pose",
    "quaternion_to_matrix",
    "rotation_z",
    "slerp",
    "transform_boxes",
    "transform_points",
    "wrap_angle",
    "yaw_of",
]
