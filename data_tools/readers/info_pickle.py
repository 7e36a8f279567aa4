"""Published info pickles to Frames: mmdet3d's 1.1 layout and BEVFormer's temporal infos.

Boxes in the files: mmdet3d 1.1 (x, y, z gravity centre, l, w, h, yaw); BEVFormer (x, y, z gravity centre, w, l, h,
clockwise yaw of mmdet3d < 1.0). Both in the frame of LIDAR_TOP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...core.frames import Annotations, CameraView, Frame
from ...core.pickles import load_pickle
from ...geometry import PinholeCamera, boxes_from_legacy, invert_pose, nearest_rigid, pose, rotation_z
from ..clips.can_bus import SIGNALS
from .checks import check_frames
from .links import link_frames
from .registry import Conventions, register_reader


@register_reader(
    "nuscenes_infos",
    "published info pickles: mmdet3d's 1.1 layout, BEVFormer's temporal infos",
    Conventions(
        boxes="gravity centre and l w h, counter-clockwise yaw (mmdet3d 1.1) or w l h, clockwise yaw (BEVFormer)",
        quaternions="w x y z",
        time="seconds in mmdet3d's layout, microseconds in BEVFormer's",
        cameras="as the file lists them; pinholes; 1600 x 900 where the file states no size",
        frames="EGO: nuScenes' (x ahead, y left, z up); BEV maps lie in the LIDAR_TOP frame",
    ),
)
def read_nuscenes_infos(
    root: str | Path, info_pickle: str | Path, image_size_px: tuple[int, int] = (1600, 900)
) -> list[Frame]:
    """``read_info_pickle`` with the folder of the images first, as readers have it."""
    return read_info_pickle(info_pickle, root, image_size_px)


def read_info_pickle(
    path: str | Path, dataroot: str | Path, image_size_px: tuple[int, int] = (1600, 900)
) -> list[Frame]:
    """Frames of an info pickle of either layout, sorted by scene and time.

    dataroot: folder of the images (with ``samples/`` in it, or the images themselves); image_size_px: (width,
    height) of the images where the file does not state it. The 1.1 layout has no attributes (they stay '') and may
    lack scenes: then drives are cut at pauses.

    Raises DataError naming the file and the sample.
    """
    content = load_pickle(path)
    layouts: dict[str, Callable] = {"data_list": _frame_of_mmdet3d, "infos": _frame_of_bevformer}
    key = next((k for k in layouts if isinstance(content, dict) and k in content), None)
    if key is None:
        raise DataError(f"{path}: neither mmdet3d 1.1 infos ('data_list') nor BEVFormer infos ('infos'): another file?")
    if not content[key]:
        raise DataError(f"{path}: holds no samples; make the infos again with its converter")
    resolve = _ImagePaths(Path(dataroot))
    categories = content.get("metainfo", {}).get("categories", {})
    names = {label: name for name, label in categories.items()}
    frames = []
    for info in content[key]:
        try:
            frames.append(layouts[key](info, resolve, image_size_px, names))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            token = info.get("token", "?") if isinstance(info, dict) else "?"
            raise DataError(
                f"{path}: sample {token}: unusable entry ({type(error).__name__}: {error}); "
                "make the infos again with the converter of its layout"
            ) from error
    check_frames(frames)
    return link_frames(frames)


class _ImagePaths:
    """Where the images are: published files name them relative to another folder, or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.flat: bool | None = None

    def __call__(self, name: str, sensor: str) -> str:
        parts = PurePosixPath(name).parts
        for folder in ("samples", "sweeps"):
            if folder in parts:
                return str(self.root.joinpath(*parts[parts.index(folder) :]))
        if self.flat is None:
            self.flat = (self.root / name).exists()
        return str(self.root / name if self.flat else self.root / "samples" / sensor / name)


def _annotations(
    global_from_lidar: NDArray[np.float64],
    boxes: NDArray[np.float64],
    names: list[str],
    lidar_points: Sequence[int],
    radar_points: Sequence[int],
    categories: Sequence[str] = (),
) -> Annotations:
    """Boxes [n, 9] of the LIDAR_TOP frame as annotations."""
    rotation = global_from_lidar[:3, :3]
    n = len(boxes)
    # nuScenes boxes stand upright in the global frame. The files turned their heading and velocity, both horizontal,
    # into the LIDAR frame (tilted by a degree or two) and kept x and y: undo just that.
    upright = np.linalg.inv(rotation[:2, :2])
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], 1) @ upright
    velocity = boxes[:, 7:9] @ upright
    return Annotations(
        names=names,
        centre_global_m=boxes[:, :3] @ rotation.T + global_from_lidar[:3, 3],
        rotation_global=rotation_z(np.arctan2(heading[:, 1], heading[:, 0])),
        size_lwh_m=boxes[:, 3:6],
        velocity_global_mps=velocity,
        attributes=[""] * n,
        num_lidar_points=np.asarray(lidar_points, dtype=np.int64),
        num_radar_points=np.asarray(radar_points, dtype=np.int64),
        tokens=[""] * n,
        instance_tokens=[""] * n,
        categories=list(categories),
    )


def _frame_of_mmdet3d(info: dict, resolve: _ImagePaths, image_size_px: tuple[int, int], names: dict[int, str]) -> Frame:
    global_from_ego = nearest_rigid(info["ego2global"])
    ego_from_lidar = nearest_rigid(info["lidar_points"]["lidar2ego"])
    global_from_lidar = global_from_ego @ ego_from_lidar
    views = []
    for name, image in info["images"].items():
        lidar_from_camera = invert_pose(nearest_rigid(image["lidar2cam"]))
        # without cam2ego the car is taken to be where it was at the keyframe's time
        mounted = nearest_rigid(image["cam2ego"]) if "cam2ego" in image else None
        ego_from_camera = ego_from_lidar @ lidar_from_camera if mounted is None else mounted
        size = image.get("width") or image_size_px[0], image.get("height") or image_size_px[1]
        views.append(
            CameraView(
                name=name,
                image_path=resolve(image["img_path"], name),
                camera=PinholeCamera(np.array(image["cam2img"], dtype=np.float64)[:3, :3], *size),
                ego_from_camera=ego_from_camera,
                global_from_ego=global_from_lidar @ lidar_from_camera @ invert_pose(ego_from_camera),
                timestamp_us=round(image["timestamp"] * 1e6),
                sample_data_token=image.get("sample_data_token", ""),
            )
        )
    annotations = None
    if "instances" in info:
        objects = info["instances"]
        boxes = [[*o["bbox_3d"], *o.get("velocity", (np.nan, np.nan))] for o in objects]
        annotations = _annotations(
            global_from_lidar,
            np.array(boxes, dtype=np.float64).reshape(-1, 9),
            [names.get(int(o["bbox_label_3d"]), "") for o in objects],
            [o["num_lidar_pts"] for o in objects],
            [o["num_radar_pts"] for o in objects],
        )
    return Frame(
        token=info["token"],
        scene_token=info.get("scene_token", ""),
        scene_name=info.get("scene_name", ""),
        timestamp_us=round(info["timestamp"] * 1e6),
        cameras=tuple(views),
        ego_from_bev=ego_from_lidar,
        global_from_ego=global_from_ego,
        lidar_path=resolve(info["lidar_points"]["lidar_path"], "LIDAR_TOP"),
        annotations=annotations,
    )


def _frame_of_bevformer(
    info: dict, resolve: _ImagePaths, image_size_px: tuple[int, int], names: dict[int, str]
) -> Frame:
    global_from_ego = pose(info["ego2global_rotation"], info["ego2global_translation"])
    ego_from_lidar = pose(info["lidar2ego_rotation"], info["lidar2ego_translation"])
    views = []
    for name, cam in info["cams"].items():
        views.append(
            CameraView(
                name=name,
                image_path=resolve(cam["data_path"], name),
                camera=PinholeCamera(cam["cam_intrinsic"], *image_size_px),
                ego_from_camera=pose(cam["sensor2ego_rotation"], cam["sensor2ego_translation"]),
                global_from_ego=pose(cam["ego2global_rotation"], cam["ego2global_translation"]),
                timestamp_us=int(cam["timestamp"]),
                sample_data_token=cam["sample_data_token"],
            )
        )
    annotations = None
    if "gt_boxes" in info:
        old = np.asarray(info["gt_boxes"], dtype=np.float64).reshape(-1, 7).copy()
        old[:, 2] -= old[:, 5] / 2  # the file has gravity centres, the old convention bottom centres
        velocity = np.asarray(info["gt_velocity"], dtype=np.float64).reshape(-1, 2)
        annotations = _annotations(
            global_from_ego @ ego_from_lidar,
            np.concatenate([boxes_from_legacy(old), velocity], 1),
            [str(name) for name in info["gt_names"]],
            info["num_lidar_pts"],
            info["num_radar_pts"],
            [str(name) for name in info["gt_names"]],  # what is no detection class kept its category's name
        )
    return Frame(
        token=info["token"],
        scene_token=info["scene_token"],
        scene_name="",
        timestamp_us=int(info["timestamp"]),
        cameras=tuple(views),
        ego_from_bev=ego_from_lidar,
        global_from_ego=global_from_ego,
        lidar_path=resolve(info["lidar_path"], "LIDAR_TOP"),
        annotations=annotations,
        occupancy_path=str(resolve.root / info["occ_gt_path"]) if info.get("occ_gt_path") else "",
        can_signals=np.array(info["can_bus"][SIGNALS], dtype=np.float64) if "can_bus" in info else None,
    )
