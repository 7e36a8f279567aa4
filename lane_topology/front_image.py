"""From pixels of the front image as the model sees it to pixels of the image on disk."""

from __future__ import annotations

import torch
from torch import Tensor

from ..structures import Batch


def boxes_on_disk(boxes: Tensor, batch: Batch, sample: int, front: int) -> Tensor:
    """Boxes [k, 4] xyxy of the model's front image in the image on disk, kept inside it.

    The image on disk was scaled and cropped; the two intrinsic matrices say how. A sample whose frame holds no cameras
    is taken as it is. ``front``: index of the camera in the batch.
    """
    frame = batch.frames[sample]
    intrinsics = batch.intrinsics[sample, front].double().cpu()
    seen_from = batch.lidar_from_camera[sample, front].double().cpu()
    if not frame.cameras:
        return boxes
    # a dataset may choose and order cameras: the view on disk is the one that stands where the batch's does
    poses = torch.stack([torch.from_numpy(view.lidar_from_camera) for view in frame.cameras]).double()
    view = frame.cameras[int((poses - seen_from).abs().amax((1, 2)).argmin())]
    on_disk = torch.from_numpy(view.camera.image_from_camera).double()
    scale = intrinsics.diagonal()[:2].abs() / on_disk.diagonal()[:2]
    shift = intrinsics[:2, 2] - scale * on_disk[:2, 2]
    limit = torch.tensor([view.camera.width_px, view.camera.height_px] * 2)
    moved = (boxes.double().cpu() - shift.repeat(2)) / scale.repeat(2)
    return moved.clamp(min=torch.zeros(4, dtype=torch.float64), max=limit.double()).to(boxes)
