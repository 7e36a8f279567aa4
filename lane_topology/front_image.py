"""The front camera of a batch, and its pixels as the model sees them and as they lie on disk."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.batch import Batch
from ..core.errors import ConfigError


def front_index(front_camera: str | int, batch: Batch) -> int:
    """Index of the front camera, given by name or index, in the batch.

    Raises ConfigError where the batch does not have the camera, or its labels' elements lie in another one.
    """
    if isinstance(front_camera, str):
        places = {names.index(front_camera) if front_camera in names else -1 for names in batch.camera_names}
        if len(places) != 1 or -1 in places:
            known = "; ".join(sorted({", ".join(names) for names in batch.camera_names}))
            raise ConfigError(f"front_camera {front_camera!r} is not in one place among the batch's cameras {known}")
        (front_camera,) = places
    if not 0 <= front_camera < batch.images.shape[2]:
        raise ConfigError(f"front_camera {front_camera}, but the batch has {batch.images.shape[2]} cameras")
    for targets in batch.lanes:
        if targets is not None and targets.front_camera != front_camera:
            raise ConfigError(
                f"the labels' elements lie in camera {targets.front_camera}, the head looks at camera {front_camera}: "
                "give the dataset and the head the same front_camera"
            )
    return front_camera


def boxes_on_disk(boxes: Tensor, batch: Batch, sample: int, front: int) -> Tensor:
    """Boxes [k, 4] xyxy of the model's front image in the image on disk, kept inside it.

    The image on disk was scaled and cropped; the two intrinsic matrices say how. A sample whose frame holds no cameras
    is taken as it is. ``front``: index of the camera in the batch.
    """
    frame = batch.frames[sample]
    if not frame.cameras:
        return boxes
    intrinsics = batch.intrinsics[sample, front].double().cpu()
    name = batch.camera_names[sample][front]
    view = next(view for view in frame.cameras if view.name == name)
    on_disk = torch.from_numpy(view.camera.image_from_camera).double()
    scale = intrinsics.diagonal()[:2].abs() / on_disk.diagonal()[:2]
    shift = intrinsics[:2, 2] - scale * on_disk[:2, 2]
    limit = torch.tensor([view.camera.width_px, view.camera.height_px] * 2)
    moved = (boxes.double().cpu() - shift.repeat(2)) / scale.repeat(2)
    return moved.clamp(min=torch.zeros(4, dtype=torch.float64), max=limit.double()).to(boxes)
