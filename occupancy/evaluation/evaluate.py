"""All voxel metrics of a set of predictions side by side, each with its mask stated.

Sources: miou.py, rayiou.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError, NoLabelsError
from ...core.frames import Frame
from ...core.labels import OccupancyLabels
from ...core.once import warn_once
from ...data_tools.labels.files import occupancy_classes, read_occupancy
from ...data_tools.labels.voxel_layouts import has_openocc_numbers, occ3d_numbers
from ...geometry import invert_pose, transform_points
from ..classes import OCC3D_NUSCENES, OCC3D_WAYMO
from .miou import MASKS, ConfusionMatrix, fscore
from .rayiou import RayIoU, choose_origins

MASK_NAMES = {"camera": "camera mask", "lidar": "lidar mask", "none": "no mask"}
LIDAR_HEIGHT_M = 1.84  # of nuScenes' over the road


def ray_origins(frame: Frame, scene: Sequence[Frame]) -> NDArray[np.float32]:
    """[O, 3] LiDAR positions of a scene's keyframes in the EGO frame of one of them, as RayIoU chooses them.

    Keyframes without a LiDAR, whose BEV frame is the EGO frame on the road, are looked at from nuScenes' height: rays
    that begin in the road meet nothing else.
    """
    places = np.stack([transform_points(other.global_from_ego, lidar_place(other)[None])[0] for other in scene])
    return choose_origins(transform_points(invert_pose(frame.global_from_ego), places))


def lidar_place(frame: Frame) -> NDArray[np.float64]:
    """[3] in the EGO frame, from where rays look at voxels."""
    if frame.ego_from_bev[:3, 3].any():
        return frame.ego_from_bev[:3, 3]
    warn_once(f"frames without a LiDAR: RayIoU's rays begin {LIDAR_HEIGHT_M} m above the origin of the EGO frame")
    return np.array([0.0, 0.0, LIDAR_HEIGHT_M])


def classes_of(frames: Sequence[Frame]) -> tuple[str, ...]:
    """The classes, free last, that the frames' voxel labels are numbered by. Raises DataError for two numberings."""
    known = {len(names): names for names in (OCC3D_NUSCENES, OCC3D_WAYMO)}
    found = {occupancy_classes(frame.occupancy_path): frame.occupancy_path for frame in frames}
    if len(found) > 1:
        raise DataError(f"{' and '.join(found.values())} have classes of two data sets: score them one by one")
    return known[next(iter(found))]


def evaluate(
    frames: Sequence[Frame],
    predicted: Callable[[str], NDArray[np.integer]],
    class_names: Sequence[str] | None = None,
    on_sample: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Scores of ``predicted(sample token)`` [X, Y, Z] on all frames.

    class_names: free last; default those of the labels (``classes_of``).
    Returns ``miou`` and ``per_class`` by mask (camera, lidar, none), in 0..1 and over the classes that occur, free
    left out; ``fscore`` by mask (camera, none), the mean over samples; ``rayiou`` with its thresholds; ``samples``.
    Labels without masks (OpenOcc) give the scores without mask alone; where they have OpenOcc's class numbers,
    predictions that have them too are read so.
    Raises DataError, naming the sample, if a frame has no labels or a prediction cannot be compared.
    """
    check_labels(frames)
    class_names = classes_of(frames) if class_names is None else class_names
    free = len(class_names) - 1
    usable = masks_of(frames[0], len(class_names))
    matrices = {mask: ConfusionMatrix(len(class_names)) for mask in usable}
    surface: dict[str, list[float]] = {mask: [] for mask in usable if mask != "lidar"}
    rays = RayIoU(len(class_names))
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scenes.setdefault(frame.scene_token, []).append(frame)
    for frame in frames:
        labels, voxels = read_occupancy(frame.occupancy_path, len(class_names)), predicted(frame.token)
        if labels.openocc and has_openocc_numbers(voxels):
            voxels = occ3d_numbers(voxels)
        _check_masks(labels, frame, usable)
        masks = {"camera": labels.mask_camera, "lidar": labels.mask_lidar, "none": None}
        try:
            for name, matrix in matrices.items():
                matrix.add(labels.semantics, voxels, masks[name])
        except ValueError as error:
            raise DataError(f"sample {frame.token}: {error}") from None
        for name, values in surface.items():
            values.append(fscore(labels.semantics, voxels, masks[name], free=free)[0])
        rays.add(labels.semantics, voxels, ray_origins(frame, scenes[frame.scene_token]))
        on_sample()
    return {
        "samples": len(frames),
        "miou": {name: _number(matrix.mean_iou()) for name, matrix in matrices.items()},
        "per_class": {
            name: {c: _number(iou) for c, iou in zip(class_names, matrix.iou())} for name, matrix in matrices.items()
        },
        "fscore": {name: float(np.mean(values)) for name, values in surface.items()},
        "rayiou": {name: _number(value) for name, value in rays.scores().items()},
    }


def masks_of(frame: Frame, num_classes: int | None = None) -> tuple[str, ...]:
    """The masks under which a set with this frame's labels is scored: all, or none alone."""
    return MASKS if read_occupancy(frame.occupancy_path, num_classes).mask_camera is not None else ("none",)


def check_labels(frames: Sequence[Frame], read: bool = False) -> None:
    """Raises NoLabelsError, naming the sample, if a frame has no voxel labels; with ``read`` DataError, naming the
    file, if it has unusable ones, and for labels of two numberings."""
    bare = [frame.token for frame in frames if not frame.occupancy_path]
    place = "gts/<scene>/<sample>/labels.npz"
    if len(bare) == len(frames):
        raise NoLabelsError(
            f"none of the {len(frames)} frames has voxel labels ({place}); score a split that is labelled"
        )
    if bare:
        raise NoLabelsError(
            f"sample {bare[0]}: no voxel labels ({len(bare)} of {len(frames)} frames have none); fetch or generate "
            f"{place} again"
        )
    num_classes = len(classes_of(frames))
    if read:
        usable = masks_of(frames[0], num_classes)
        for frame in frames:
            _check_masks(read_occupancy(frame.occupancy_path, num_classes), frame, usable)


def _check_masks(labels: OccupancyLabels, frame: Frame, usable: Sequence[str]) -> None:
    masked, expected = labels.mask_camera is not None, "camera" in usable
    if masked != expected:
        have = lambda masks: "has masks" if masks else "has no masks"
        raise DataError(
            f"sample {frame.token}: {frame.occupancy_path} {have(masked)}, the split's first file {have(expected)}; "
            "scores are made of one kind of labels: fetch them again"
        )


def table(scores: Mapping[str, Any]) -> list[str]:
    """The scores as lines of text."""
    miou, surface, rays = scores["miou"], scores["fscore"], scores["rayiou"]
    masked = lambda by_mask: "   ".join(f"{MASK_NAMES[mask]} {_text(value)}" for mask, value in by_mask.items())
    columns = [(mask if i else f"IoU {mask}", 8 if i else 12) for i, mask in enumerate(miou)]
    lines = [
        f"mIoU      {masked(miou)}",
        f"F-score   {masked(surface)}",
        "RayIoU    no mask     " + "   ".join(f"{name} {_text(value)}" for name, value in rays.items()),
        "" if "camera" in miou else "(the labels have no masks: these are not the scores of Occ3D's benchmark)",
        f"{'class':<22}" + "".join(f"{title:>{width}}" for title, width in columns),
    ]
    for name in scores["per_class"]["none"]:
        values = (_text(by_class[name]) for by_class in scores["per_class"].values())
        lines.append(f"{name:<22}" + "".join(f"{text:>{width}}" for text, (_, width) in zip(values, columns)))
    return lines


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
