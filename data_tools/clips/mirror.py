"""The mirror world: a clip whose images, rig and objects are all reflected, left for right.

Unlike ``ImageSettings.flip`` (upstream's: images mirrored, geometry kept, features mirrored back) and BEV flips,
nothing contradicts anything: an object that is seen facing left faces left. It doubles the data and leaves headings
sharp.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.labels import LaneTargets, OccupancyTargets
from ...core.street_maps import StreetLines
from ...geometry import wrap_angle
from ...geometry.lenses import mirrored_row
from .can_bus import mirror_can_bus
from .collate import ClipSample
from .depth import mirror_depth
from .street_maps import in_order

# OpenLane-V2's attributes that say left or right (arXiv 2304.10440)
_MIRRORED_ATTRIBUTE = {5: 6, 6: 5, 7: 8, 8: 7, 11: 12, 12: 11}


def mirror_clip(sample: ClipSample) -> ClipSample:
    """The sample reflected, left for right of the car, at a plane through the origin of the current BEV frame: x = 0
    where its x axis points sideways (nuScenes), y = 0 where it points ahead (the EGO frame).

    Raises ValueError for samples with perspective targets, which are not reflected.
    """
    if any(target is not None for target in sample.mono or ()):
        raise ValueError("mirror_clip does not reflect perspective targets: use mirror with mono=False")
    ego_from_bev = sample.frame.ego_from_bev if sample.ego_from_bev is None else sample.ego_from_bev
    sideways = int(np.abs(ego_from_bev[1, :2]).argmax())  # the BEV axis nearest to the ego frame's y
    reflect, reflect_camera = np.eye(4), np.diag([-1.0, 1.0, 1.0, 1.0])
    reflect[sideways, sideways] = -1.0
    image_from_bev = sample.image_from_bev.copy()
    lenses = None if sample.lenses is None else sample.lenses.copy()
    for t, views in enumerate(sample.images):
        for n, view in enumerate(views or ()):
            if view is None:
                continue
            bent = sample.lenses is not None and sample.lenses[t, n, 0] > 0
            mirror = reflect_camera if bent else _mirror_pixels(view.shape[2])
            image_from_bev[t, n] = mirror @ sample.image_from_bev[t, n] @ reflect
            if lenses is not None:
                lenses[t, n] = mirrored_row(lenses[t, n], view.shape[2])
    intrinsics = sample.intrinsics.copy()
    for n, view in enumerate(_current(sample)):
        if view is None:
            continue
        intrinsics[n] = (_mirror_pixels(view.shape[2])[:3, :3] @ sample.intrinsics[n] @ reflect_camera[:3, :3]).astype(
            np.float32
        )
    # the reflected ego frame is the ego frame reflected at its own middle, so that left stays left of forward
    reflect_ego = np.diag([1.0, -1.0, 1.0, 1.0])
    poses = sample.global_from_ego
    if poses is not None:
        poses = reflect_ego @ poses @ reflect_ego
    widths = [None if view is None else view.shape[2] for view in _current(sample)]
    boxes = sample.gt_boxes
    if boxes is not None:
        boxes = boxes.copy()
        boxes[:, [sideways, 7 + sideways]] *= -1
        boxes[:, 6] = wrap_angle((np.pi if sideways == 0 else 0.0) - boxes[:, 6])
    return replace(
        sample,
        images=[views and [_mirror_image(view) for view in views] for views in sample.images],
        image_from_bev=image_from_bev,
        lenses=lenses,
        intrinsics=intrinsics,
        bev_from_camera=(reflect @ sample.bev_from_camera @ reflect_camera).astype(np.float32),
        bda=(reflect[:3, :3] @ sample.bda @ reflect[:3, :3]).astype(np.float32),
        gt_boxes=boxes,
        ego_from_bev=(reflect_ego @ ego_from_bev @ reflect).astype(np.float32),
        global_from_ego=poses,
        can_bus=None if poses is None or sample.can_bus is None else mirror_can_bus(sample.can_bus, poses),
        occupancy=None if sample.occupancy is None else _mirror_occupancy(sample.occupancy),
        lanes=None if sample.lanes is None else _mirror_lanes(sample.lanes, sample),
        mirrored=not sample.mirrored,
        depth=None if sample.depth is None else mirror_depth(sample.depth, widths),
        street_map=None if sample.street_map is None else _mirror_streets(sample.street_map),
    )


def _mirror_occupancy(targets: OccupancyTargets) -> OccupancyTargets:
    """Voxels [x, y, z] of the ego frame, left for right; the grid is symmetric in y."""
    return targets.map(lambda grid: grid.flip(1))


def _mirror_image(image: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    return None if image is None else np.ascontiguousarray(image[:, :, ::-1])


def _current(sample: ClipSample) -> list[NDArray[np.float32] | None]:
    """The current frame's images, which every clip has; None for a camera that it lacks."""
    images = sample.images[sample.frame_offsets.index(0)]
    assert images is not None
    return images


def _mirror_lanes(targets: LaneTargets, sample: ClipSample) -> LaneTargets:
    """Lanes left for right with their direction kept, and front boxes with the attribute of the mirrored sign."""
    front = None if targets.front_camera is None else _current(sample)[targets.front_camera]
    width_px = 0 if front is None else front.shape[2]  # without the front image there are no elements
    flip_y = torch.tensor([1.0, -1.0, 1.0])
    left, top, right, bottom = targets.elements_xyxy_px.unbind(-1)
    says = torch.tensor([_MIRRORED_ATTRIBUTE.get(int(a), int(a)) for a in targets.attributes], dtype=torch.long)
    return replace(
        targets,
        centrelines=[line * flip_y for line in targets.centrelines],
        elements_xyxy_px=torch.stack([width_px - right, top, width_px - left, bottom], -1),
        attributes=says,
    )


def _mirror_streets(streets: StreetLines) -> StreetLines:
    """Streets left for right, those across in their order again."""
    flipped = (streets.lines.double() * torch.tensor([1.0, -1.0])).numpy()
    lines = np.array([in_order(line) for line in flipped], np.float32).reshape(flipped.shape)
    return replace(streets, lines=torch.from_numpy(lines))


def _mirror_pixels(width_px: int) -> np.ndarray:
    """[4, 4]: (u d, v d, d, 1) to ((width - u) d, v d, d, 1)."""
    matrix = np.eye(4)
    matrix[0, 0], matrix[0, 2] = -1.0, width_px
    return matrix
