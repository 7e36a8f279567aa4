"""The occupancy challenge's ``annotations.json`` to Frames: scenes of a split, cameras, ego poses, label files.

    <root>/annotations.json
    <root>/imgs/CAM_FRONT/<name>.jpg          (or samples/CAM_FRONT/..., as nuScenes has them)
    <root>/gts/<scene>/<sample token>/labels.npz

Source: CVPR 2023 occupancy challenge. Its ``prev`` and ``next`` are documented the wrong way round
(docs/quirks.md#previous-and-next-exchanged): neighbours are taken from the timestamps. The file has no LiDAR; as BEV
maps of published models lie in the frame of LIDAR_TOP, every frame gets nuScenes' nominal mounting
(``EGO_FROM_LIDAR``), on which nothing else depends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ....core.errors import DataError, library_errors
from ....core.frames import CameraView, Frame
from ....geometry import CameraModel, pose, rotation_z
from ..cameras import ImageSizes, camera_order
from ..checks import check_frames
from ..file_paths import path_below, portable_path
from ..lenses import LensNotes, LensUse
from ..links import link_frames
from ..registry import Conventions, register_reader

FILE_NAME = "annotations.json"
_FIELDS = ("img_path", "intrinsics", "intrinsic", "extrinsic", "ego_pose")
EGO_FROM_LIDAR = pose(rotation_z(-np.pi / 2), [0.94, 0.0, 1.84])
"""[4, 4]: x to the right, y ahead, as on nuScenes."""


@register_reader(
    "occ3d_challenge",
    "the occupancy challenge's annotations.json",
    Conventions(
        boxes="none",
        quaternions="w x y z",
        time="microseconds",
        cameras="in the order of published models; pinholes, or with the lens that an entry states; sizes from one "
        "image of each camera",
        frames="EGO: nuScenes'; BEV maps lie where LIDAR_TOP is mounted, which the file does not state",
    ),
)
def read_challenge(
    root: str | Path, split: str, image_size_px: tuple[int, int] | None = None, lens: LensUse = "used"
) -> list[Frame]:
    """All keyframes of a split, sorted by scene name and time.

    split: "train" or "val" of the file's lists, or "test": the scenes that neither list names. Cameras come in the
    order of published models, others alphabetically after them. image_size_px: (width, height) of all images; default:
    from the header of one image of each camera. lens: "ignored" takes cameras as pinholes whatever the entries state. A
    sample without ``gt_path`` has no labels, as in the test set. Frames have no boxes.

    Raises DataError naming the file and the sample for a missing or broken file, an unknown split, one without scenes,
    and entries that cannot be used.
    """
    path = Path(root) / FILE_NAME
    content = _load(path)
    frames: list[Frame] = []
    rig = _Rig(ImageSizes(image_size_px), LensNotes(str(path), lens))
    for scene in _scenes(content, split, path):
        if not isinstance(entries := content["scene_infos"][scene], dict):
            raise DataError(f"{path}: scene {scene[:100]} is no mapping of samples; fetch the file again")
        for token, entry in entries.items():
            where = f"{path}: sample {token[:100]} (scene {scene[:100]}): unusable entry"
            with library_errors(DataError, where, "fetch the file again"), np.errstate(over="ignore", invalid="ignore"):
                frames.append(_frame(Path(root), scene, token, entry, rig))
    rig.lenses.report()
    frames = link_frames(frames)
    check_frames(frames)
    return sorted(frames, key=lambda frame: frame.scene_name)


class _Rig(NamedTuple):
    sizes: ImageSizes
    lenses: LensNotes


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the folder that holds {FILE_NAME}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); fetch the file again") from None
    if not isinstance(content, dict) or not isinstance(content.get("scene_infos"), dict):
        raise DataError(f"{path}: has no scene_infos; is it the occupancy challenge's file?")
    return content


def _scenes(content: Mapping[str, Any], split: str, path: Path) -> list[str]:
    with library_errors(DataError, f"{path}: train_split, val_split", "list scene names in both"):
        listed = {name: set(content.get(f"{name}_split") or ()) for name in ("train", "val")}
    if split not in (*listed, "test"):
        raise DataError(f"{path}: unknown split {split!r}; use train, val or test")
    present = set(content["scene_infos"])
    scenes = present - listed["train"] - listed["val"] if split == "test" else present & listed[split]
    if not scenes:
        raise DataError(
            f"{path}: none of its {len(present)} scenes belongs to split {split!r}; give the file of that split"
        )
    return sorted(scenes)


def _pose(record: Mapping[str, Any]) -> np.ndarray:
    return pose(record["rotation"], record["translation"])


def _frame(root: Path, scene: str, token: str, entry: Mapping[str, Any], rig: _Rig) -> Frame:
    global_from_ego = _pose(entry["ego_pose"])
    time_us = int(entry["timestamp"])
    views = {}
    for key, camera in entry["camera_sensor"].items():
        path = portable_path(camera["img_path"])
        name = key if key.startswith("CAM_") else path.parent.name  # the key may be a token
        field = "intrinsics" if "intrinsics" in camera else "intrinsic"  # both occur
        image = _image(root, path)
        model = CameraModel(np.array(camera[field], float), *rig.sizes(name, camera[field], image))
        views[name] = CameraView(
            name=name,
            image_path=str(image),
            camera=rig.lenses.add(name, model, camera, _FIELDS),
            ego_from_camera=_pose(camera["extrinsic"]),
            global_from_ego=_pose(camera["ego_pose"]),
            timestamp_us=int(camera["ego_pose"].get("timestamp", time_us)),
        )
    label_file = entry.get("gt_path")
    return Frame(
        token=token,
        scene_token=scene,
        scene_name=scene,
        timestamp_us=time_us,
        cameras=tuple(views[name] for name in camera_order(views)),
        ego_from_bev=EGO_FROM_LIDAR,
        global_from_ego=global_from_ego,
        occupancy_path=str(path_below(root, label_file)) if label_file else "",
    )


def _image(root: Path, path: PurePosixPath) -> Path:
    """Where the image lies: as the file says, or below imgs/ or samples/, in its camera's folder."""
    places = [root / path, *(root / folder / path.parent.name / path.name for folder in ("imgs", "samples"))]
    return next((place for place in places if place.is_file()), places[1])
