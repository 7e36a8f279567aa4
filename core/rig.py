"""A car's cameras, without a data set: their calibration, and frames made of images in memory or files.

The EGO frame is the car's: x ahead, y left, z up, the origin on the ground. Camera frames: x right, y down, z ahead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..geometry import CameraModel, brown_conrady, double_sphere, kannala_brandt, mei
from .cameras import front_camera
from .errors import DataError
from .frames import Annotations, CameraView, Frame
from .images import rgb_pixels
from .labels import LaneLabels

_LENSES: dict[str, Callable[..., CameraModel]] = {
    "": brown_conrady,
    "brown_conrady": brown_conrady,
    "kannala_brandt": kannala_brandt,
    "mei": lambda k, width, height, c: mei(k, width, height, c[0], c[1:]),
    "double_sphere": lambda k, width, height, c: double_sphere(k, width, height, c[0], c[1]),
}
"""Name -> what makes a camera of its matrix, size and coefficients; a pinhole without a name."""
_COUNTS = {"": (0,), "brown_conrady": (4, 5, 8, 12, 14), "kannala_brandt": (4,), "mei": (5,), "double_sphere": (2,)}


@dataclass(frozen=True)
class Camera:
    """One camera of a car.

    intrinsics: [3, 3] matrix in pixels of the image as it is given, or a ``geometry.CameraModel``, which has size and
    lens as well; ego_from_camera: [4, 4] pose in metres; size_px: (width, height) of that image. lens, coefficients:
    "brown_conrady" with OpenCV's k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4]]]; "kannala_brandt" (OpenCV's fisheye, ROS's
    equidistant) with k1 k2 k3 k4; "mei" with xi k1 k2 p1 p2; "double_sphere" with xi alpha; without a lens images are
    undistorted. An f-theta lens: ``geometry.f_theta`` as the model. Raises ValueError for matrices that are none, and
    coefficients that do not belong to the lens.
    """

    intrinsics: ArrayLike | CameraModel
    ego_from_camera: ArrayLike
    size_px: tuple[int, int] | None = None
    lens: str = ""
    coefficients: Sequence[float] = ()
    model: CameraModel = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pose = np.array(self.ego_from_camera, dtype=np.float64)
        if pose.shape != (4, 4):
            raise ValueError(f"ego_from_camera must be a [4, 4] pose, got shape {pose.shape}")
        object.__setattr__(self, "ego_from_camera", pose)
        object.__setattr__(self, "model", self._model())

    def _model(self) -> CameraModel:
        if isinstance(self.intrinsics, CameraModel):
            own = self.intrinsics.width_px, self.intrinsics.height_px
            if self.lens or len(self.coefficients) or (self.size_px is not None and tuple(self.size_px) != own):
                raise ValueError("a camera model has its own size and lens: give no others beside it")
            object.__setattr__(self, "size_px", own)
            return self.intrinsics
        if self.size_px is None:
            raise ValueError("size_px is missing: the (width, height) of the image in pixels")
        if self.lens not in _LENSES:
            known = ", ".join(name for name in _LENSES if name)
            raise ValueError(f"lens {self.lens!r}: choose from {known}, or give a CameraModel as intrinsics")
        values = [float(value) for value in self.coefficients]
        if len(values) not in _COUNTS[self.lens]:
            counts = " or ".join(map(str, _COUNTS[self.lens]))
            what = (
                f"lens {self.lens} has {counts} coefficients" if self.lens else "coefficients need the name of a lens"
            )
            raise ValueError(f"{what}, got {values}")
        return _LENSES[self.lens](np.array(self.intrinsics, np.float64), *self.size_px, values)


class Rig(Mapping[str, Camera]):
    """Cameras by name, in any order. Traffic lights and signs are found in the one that looks ahead (``front``).

    cameras: Camera objects, or what makes one: (intrinsics, ego_from_camera, size_px), (camera model, pose).
    Raises ValueError without any, DataError as Camera does, naming the camera.
    """

    def __init__(self, cameras: Mapping[str, Camera | tuple]) -> None:
        if not cameras:
            raise ValueError("a rig needs at least one camera")
        made = {}
        for name, camera in cameras.items():
            try:
                made[name] = camera if isinstance(camera, Camera) else Camera(*camera)
            except (TypeError, ValueError) as error:
                raise DataError(f"camera {name}: {error}") from None
        self._cameras: dict[str, Camera] = made

    def __getitem__(self, name: str) -> Camera:
        return self._cameras[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cameras)

    def __len__(self) -> int:
        return len(self._cameras)

    def __repr__(self) -> str:
        return f"Rig({', '.join(self)})"

    @property
    def front(self) -> str | None:
        """The camera that looks ahead, by its name or its optical axis (core/cameras.py); None where none does."""
        return front_camera({name: np.asarray(camera.ego_from_camera)[:3, 2] for name, camera in self.items()})

    def frame(
        self,
        images: Mapping[str, Any] | Sequence[Any],
        *,
        token: str = "frame",
        scene: str = "scene",
        timestamp_us: int = 0,
        global_from_ego: ArrayLike | None = None,
        annotations: Annotations | None = None,
        lanes: LaneLabels | None = None,
        occupancy_path: str = "",
        prev_token: str = "",
        next_token: str = "",
    ) -> Frame:
        """A keyframe of this rig.

        images: by camera name, or in the rig's order: paths, uint8 arrays [H, W, 3] in RGB, PIL images, or tensors
        (uint8 or 0..1, [3, H, W] or [H, W, 3]); None for a camera that has no image now: it is masked. global_from_ego:
        [4, 4], where the car is; identity if left out. Raises DataError for a missing or surplus image, or one that is
        none of these.
        """
        pose = np.eye(4) if global_from_ego is None else np.array(global_from_ego, dtype=np.float64)
        views = []
        for name, image in self._by_name(images).items():
            if image is None:
                continue
            camera = self[name]
            path, pixels = as_image(image, name)
            views.append(
                CameraView(
                    name,
                    camera.model,
                    np.asarray(camera.ego_from_camera, np.float64),
                    pose,
                    timestamp_us,
                    path,
                    pixels,
                )
            )
        return Frame(
            token=token,
            scene_token=scene,
            scene_name=scene,
            timestamp_us=timestamp_us,
            cameras=tuple(views),
            global_from_ego=pose,
            annotations=annotations,
            lanes=lanes,
            occupancy_path=occupancy_path,
            prev_token=prev_token,
            next_token=next_token,
        )

    def _by_name(self, images: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
        if not isinstance(images, Mapping):
            if len(images) != len(self):
                raise DataError(
                    f"{len(images)} images for the {len(self)} cameras {', '.join(self)}: give one for each"
                )
            images = dict(zip(self, images))
        if missing := [name for name in self if name not in images]:
            raise DataError(
                f"no image of camera {missing[0]}: the rig has {', '.join(self)}; give it, or None to mask the camera"
            )
        if surplus := [name for name in images if name not in self]:
            raise DataError(f"an image of camera {surplus[0]!r}, which the rig lacks: it has {', '.join(self)}")
        if all(image is None for image in images.values()):
            raise DataError(f"no image of any camera: the rig has {', '.join(self)}; leave the keyframe out")
        return {name: images[name] for name in self}


def as_image(image: Any, camera: str) -> tuple[str, NDArray[np.uint8] | None]:
    """(path, None) of a path, ('', pixels [H, W, 3] RGB uint8) of anything else. Raises DataError naming the camera."""
    if isinstance(image, (str, os.PathLike)):
        return str(Path(image)), None
    if isinstance(image, torch.Tensor):
        tensor = image.detach().cpu()
        if tensor.ndim == 3 and tensor.shape[0] == 3 and tensor.shape[2] != 3:
            tensor = tensor.permute(1, 2, 0)
        if tensor.is_floating_point():
            if tensor.numel() and not (float(tensor.min()) >= 0 and float(tensor.max()) <= 1):
                raise DataError(f"camera {camera}: a tensor of floats must lie in 0..1, or give uint8")
            tensor = (tensor * 255).round().to(torch.uint8)
        array = tensor.numpy()
    elif hasattr(image, "convert"):  # PIL
        try:
            array = rgb_pixels(image)
        except ValueError as error:
            raise DataError(f"camera {camera}: {error}") from None
    else:
        array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise DataError(
            f"camera {camera}: an image of {array.dtype} {list(array.shape)}; give a path, a PIL image, uint8 "
            "[height, width, 3] in RGB, or a tensor [3, height, width]"
        )
    return "", array
