"""The front camera of a batch, and its pixels as the model sees them and as they lie on disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..core.answers import LaneGraph
from ..core.batch import Batch
from ..core.cameras import front_camera as camera_that_looks_ahead
from ..core.errors import ConfigError
from ..data_tools.clips.rectify import moved_boxes
from ..geometry import CameraModel, Lens


def front_index(front_camera: str | int | None, batch: Batch) -> int | None:
    """Index in the batch of the front camera, given by name or index; None: the one that looks ahead, by its name or
    its optical axis (core.cameras.front_camera). The answer is None where no camera does.

    Raises ConfigError where the batch does not have the camera, has it in different places, or its labels' elements
    lie in another one.
    """
    if isinstance(front_camera, str):
        places = {names.index(front_camera) if front_camera in names else -1 for names in batch.camera_names}
        if len(places) != 1 or -1 in places:
            known = "; ".join(sorted({", ".join(names) for names in batch.camera_names}))
            raise ConfigError(f"front_camera {front_camera!r} is not in one place among the batch's cameras {known}")
        (front_camera,) = places
    elif front_camera is None:
        found = set(batch.front_cameras) or _looking_ahead(batch)
        if len(found) != 1:
            known = "; ".join(sorted({", ".join(names) for names in batch.camera_names}))
            raise ConfigError(
                f"the front camera is not in one place among the batch's cameras {known}: batch these rigs apart, or "
                "give front_camera"
            )
        (front_camera,) = found
    if front_camera is not None and not 0 <= front_camera < batch.images.shape[2]:
        raise ConfigError(f"front_camera {front_camera}, but the batch has {batch.images.shape[2]} cameras")
    for targets in batch.lanes:
        if targets is not None and len(targets.attributes) and targets.front_camera != front_camera:
            raise ConfigError(
                f"the labels' elements lie in camera {targets.front_camera}, the head looks at camera {front_camera}: "
                "give the dataset and the head the same front_camera"
            )
    return front_camera


def _looking_ahead(batch: Batch) -> set[int | None]:
    """Index of the front camera in each sample of a batch that was made by hand, as its labels have it where neither
    names nor poses say."""
    count = batch.images.shape[2]
    if count == 1 and not any(batch.camera_names):
        return {0}  # the only camera, without a name
    poses = batch.bev_from_camera if batch.ego_from_bev is None else batch.ego_from_bev[:, None] @ batch.bev_from_camera
    found: set[int | None] = set()
    for b, axes in enumerate(poses[:, :, :3, 2].double().cpu().numpy()):
        named = batch.camera_names[b] if b < len(batch.camera_names) else ()
        names = tuple(named) or tuple(map(str, range(count)))
        name = camera_that_looks_ahead(dict(zip(names, axes)))
        found.add(None if name is None else names.index(name))
    labelled = {targets.front_camera for targets in batch.lanes if targets is not None}
    return labelled if labelled and found == {None} else found


def front_seen(front: int | None, batch: Batch) -> list[bool]:
    """For each sample whether its current frame has the front camera (``front_index``)."""
    if front is None:
        return [False] * len(batch.images)
    return [cameras[front] for cameras in batch.camera_valid] or [True] * len(batch.images)


def without_elements(graph: LaneGraph) -> LaneGraph:
    """The lanes alone: nothing is known of the elements where there is no front image."""
    return replace(
        graph,
        elements_xyxy_px=graph.elements_xyxy_px[:0],
        attributes=graph.attributes[:0],
        element_scores=graph.element_scores[:0],
        lane_element=graph.lane_element[:, :0],
    )


def boxes_on_disk(boxes: Tensor, batch: Batch, sample: int, front: int) -> Tensor:
    """Boxes [k, 4] xyxy of the model's front image in the image on disk, kept inside it.

    The image on disk was scaled and cropped; the two intrinsic matrices say how. Where it was re-projected to a virtual
    camera, each box is put around what it is in the real one. A sample whose frame holds no cameras
    is taken as it is. ``front``: index of the camera in the batch; the boxes of a frame that lacks it stay as they are.
    """
    frame = batch.frames[sample]
    name = batch.camera_names[sample][front] if frame.cameras else ""
    view = next((view for view in frame.cameras if view.name == name), None)
    if view is None:
        return boxes
    intrinsics = batch.intrinsics[sample, front].double().cpu()
    limit = torch.tensor([view.camera.width_px, view.camera.height_px] * 2)
    lens = _lens(batch, sample, front)
    if not _same(lens, view.camera.lens):
        model = CameraModel(intrinsics.numpy(), 1, 1, lens)  # its size plays no part
        moved = torch.from_numpy(moved_boxes(boxes.double().cpu().numpy(), model, view.camera)).nan_to_num()
        return moved.clamp(min=torch.zeros(4, dtype=torch.float64), max=limit.double()).to(boxes)
    on_disk = torch.from_numpy(view.camera.intrinsics).double()
    scale = intrinsics.diagonal()[:2].abs() / on_disk.diagonal()[:2]
    shift = intrinsics[:2, 2] - scale * on_disk[:2, 2]
    moved = (boxes.double().cpu() - shift.repeat(2)) / scale.repeat(2)
    return moved.clamp(min=torch.zeros(4, dtype=torch.float64), max=limit.double()).to(boxes)


def _lens(batch: Batch, sample: int, camera: int) -> Lens | None:
    """Of the camera that the model's image is of, real or virtual."""
    if batch.current_lenses is None:
        return None
    return Lens.of_row(batch.current_lenses[sample, camera].double().cpu().tolist())


def _same(a: Lens | None, b: Lens | None) -> bool:
    """Up to the rounding of a batch's numbers."""
    if a is None or b is None:
        return a is b
    return a.kind == b.kind and np.allclose(a.coefficients, b.coefficients, rtol=1e-5, atol=1e-9)
