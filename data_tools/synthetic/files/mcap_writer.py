"""Frames as a ROS 2 recording in an MCAP file: what readers/recordings reads, for tests and tools that replay MCAP.

Per camera ``/camera/NAME/image_raw/compressed`` and ``/camera/NAME/camera_info``, their mounting on ``/tf_static``, the
car's poses on ``/odometry`` at the times of keyframes and images. Boxes are no part of it: ``write_boxes`` of
readers/box_files.py puts them beside it. Needs the packages mcap and mcap-ros2-support (extra ``mcap``).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....core.errors import ConfigError, DataError
from ....core.files import atomic_path
from ....core.frames import CameraView, Frame
from ....geometry import CameraModel, matrix_to_quaternion

BASE, FIXED = "base_link", "odom"

_TIME = "int32 sec\nuint32 nanosec"
_HEADER = "builtin_interfaces/Time stamp\nstring frame_id"
_VECTOR = "float64 x\nfloat64 y\nfloat64 z"
_QUATERNION = "float64 x\nfloat64 y\nfloat64 z\nfloat64 w"
_PARTS = {
    "builtin_interfaces/Time": _TIME,
    "std_msgs/Header": _HEADER,
    "sensor_msgs/RegionOfInterest": "uint32 x_offset\nuint32 y_offset\nuint32 height\nuint32 width\nbool do_rectify",
    "geometry_msgs/Vector3": _VECTOR,
    "geometry_msgs/Point": _VECTOR,
    "geometry_msgs/Quaternion": _QUATERNION,
    "geometry_msgs/Transform": "geometry_msgs/Vector3 translation\ngeometry_msgs/Quaternion rotation",
    "geometry_msgs/TransformStamped": "std_msgs/Header header\nstring child_frame_id\n"
    "geometry_msgs/Transform transform",
    "geometry_msgs/Pose": "geometry_msgs/Point position\ngeometry_msgs/Quaternion orientation",
    "geometry_msgs/PoseWithCovariance": "geometry_msgs/Pose pose\nfloat64[36] covariance",
    "geometry_msgs/Twist": "geometry_msgs/Vector3 linear\ngeometry_msgs/Vector3 angular",
    "geometry_msgs/TwistWithCovariance": "geometry_msgs/Twist twist\nfloat64[36] covariance",
}
_MESSAGES = {
    "sensor_msgs/msg/CompressedImage": "std_msgs/Header header\nstring format\nuint8[] data",
    "sensor_msgs/msg/CameraInfo": "std_msgs/Header header\nuint32 height\nuint32 width\nstring distortion_model\n"
    "float64[] d\nfloat64[9] k\nfloat64[9] r\nfloat64[12] p\nuint32 binning_x\nuint32 binning_y\n"
    "sensor_msgs/RegionOfInterest roi",
    "tf2_msgs/msg/TFMessage": "geometry_msgs/TransformStamped[] transforms",
    "nav_msgs/msg/Odometry": "std_msgs/Header header\nstring child_frame_id\ngeometry_msgs/PoseWithCovariance pose\n"
    "geometry_msgs/TwistWithCovariance twist",
}
_BROWN_NAMES = {5: "plumb_bob", 8: "rational_polynomial", 12: "thin_prism"}


def definition_of(message: str) -> str:
    """The definition of a message type as it stands in MCAP files: its fields, then those of all types in it."""
    parts, todo = [_MESSAGES[message]], [_MESSAGES[message]]
    done: set[str] = set()
    while todo:
        for line in todo.pop().splitlines():
            name = line.split()[0].partition("[")[0]
            if name in _PARTS and name not in done:
                done.add(name)
                todo.append(_PARTS[name])
                parts.append(f"MSG: {name}\n{_PARTS[name]}")
    return f"\n{'=' * 80}\n".join(parts)


def write_mcap(
    frames: Sequence[Frame], path: str | Path, *, compression: str = "zstd", chunk_bytes: int = 1 << 20
) -> Path:
    """The frames of one scene as an MCAP file.

    Image files go in as they are, images in memory as PNG. compression: "zstd", "lz4" or "none" of chunks of about
    chunk_bytes. Raises DataError for frames of several scenes, a camera that moves on the car, and lenses that no
    CameraInfo describes; ConfigError without the packages.
    """
    try:
        from mcap.writer import CompressionType
        from mcap_ros2.writer import Writer
    except ImportError as error:
        raise ConfigError(
            f"writing MCAP files needs mcap and mcap-ros2-support ({error}); pip install 'drivestack[mcap]'"
        ) from None
    kinds = {"zstd": CompressionType.ZSTD, "lz4": CompressionType.LZ4, "none": CompressionType.NONE}
    if compression not in kinds:
        raise ConfigError(f"compression {compression!r}: choose from {', '.join(kinds)}")
    _check(frames)
    views = [view for frame in frames for view in frame.cameras]
    mounts = {view.name: view.ego_from_camera for view in views}
    poses = {frame.timestamp_us: frame.global_from_ego for frame in frames}
    poses |= {view.timestamp_us: view.global_from_ego for view in views}
    first_us = min(poses)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        writer = Writer(file, chunk_size=chunk_bytes, compression=kinds[compression])
        schemas = {name: writer.register_msgdef(name, definition_of(name)) for name in _MESSAGES}

        def put(topic: str, kind: str, message: Any, time_us: int) -> None:
            writer.write_message(topic, schemas[kind], message, time_us * 1000, time_us * 1000)

        static = [_transform_message(first_us, name, mounted) for name, mounted in mounts.items()]
        put("/tf_static", "tf2_msgs/msg/TFMessage", {"transforms": static}, first_us)
        for time_us in sorted(poses):
            put("/odometry", "nav_msgs/msg/Odometry", _odometry(time_us, poses[time_us]), time_us)
        for view in sorted(views, key=lambda view: view.timestamp_us):
            topic, header = f"/camera/{view.name}", _header(view.timestamp_us, _frame_id(view.name))
            put(
                f"{topic}/camera_info",
                "sensor_msgs/msg/CameraInfo",
                camera_info(view.camera, header),
                view.timestamp_us,
            )
            kind, data = _image_file(view)
            image = {"header": header, "format": kind, "data": data}
            put(f"{topic}/image_raw/compressed", "sensor_msgs/msg/CompressedImage", image, view.timestamp_us)
        writer.finish()
    return Path(path)


def _check(frames: Sequence[Frame]) -> None:
    if len({frame.scene_token for frame in frames}) != 1:
        raise DataError(f"frames of {len({f.scene_token for f in frames})} scenes: an MCAP file holds one drive")
    mounts: dict[str, NDArray[np.float64]] = {}
    for frame in frames:
        for view in frame.cameras:
            if not np.allclose(mounts.setdefault(view.name, view.ego_from_camera), view.ego_from_camera, atol=1e-9):
                raise DataError(
                    f"sample {frame.token}, camera {view.name}: it moves on the car; tf_static cannot say so"
                )


def camera_info(camera: CameraModel, header: Any) -> dict[str, Any]:
    """The CameraInfo of a camera. Raises DataError for a lens that ROS has no name for."""
    if camera.lens is None:
        model, values = "plumb_bob", [0.0] * 5
    elif camera.lens.kind == "brown_conrady":
        given = list(camera.lens.coefficients)
        count = next(n for n in (5, 8, 12) if not any(given[n:]))
        model, values = _BROWN_NAMES[count], given[:count]
    elif camera.lens.kind == "kannala_brandt":
        model, values = "equidistant", list(camera.lens.coefficients)
    else:
        raise DataError(f"lens {camera.lens.kind}: CameraInfo has no distortion model for it; undistort the images")
    k = camera.intrinsics.ravel().tolist()
    p = np.hstack([camera.intrinsics, np.zeros((3, 1))]).ravel().tolist()
    roi = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
    return {
        "header": header,
        "height": camera.height_px,
        "width": camera.width_px,
        "distortion_model": model,
        "d": values,
        "k": k,
        "r": np.eye(3).ravel().tolist(),
        "p": p,
        "binning_x": 0,
        "binning_y": 0,
        "roi": roi,
    }


def _frame_id(camera: str) -> str:
    return f"{camera}_optical"


def _header(time_us: int, frame_id: str) -> dict[str, Any]:
    return {"stamp": {"sec": time_us // 10**6, "nanosec": time_us % 10**6 * 1000}, "frame_id": frame_id}


def _parts(matrix: NDArray[np.float64]) -> tuple[dict[str, float], dict[str, float]]:
    """Translation and quaternion."""
    w, x, y, z = matrix_to_quaternion(matrix[:3, :3]).tolist()
    return dict(zip("xyz", matrix[:3, 3].tolist())), {"x": x, "y": y, "z": z, "w": w}


def _transform_message(time_us: int, camera: str, mounted: NDArray[np.float64]) -> dict[str, Any]:
    translation, rotation = _parts(mounted)
    transform = {"translation": translation, "rotation": rotation}
    return {"header": _header(time_us, BASE), "child_frame_id": _frame_id(camera), "transform": transform}


def _odometry(time_us: int, global_from_ego: NDArray[np.float64]) -> dict[str, Any]:
    position, orientation = _parts(global_from_ego)
    still = dict.fromkeys("xyz", 0.0)
    return {
        "header": _header(time_us, FIXED),
        "child_frame_id": BASE,
        "pose": {"pose": {"position": position, "orientation": orientation}, "covariance": [0.0] * 36},
        "twist": {"twist": {"linear": still, "angular": still}, "covariance": [0.0] * 36},
    }


def _image_file(view: CameraView) -> tuple[str, bytes]:
    """(format, content) of a view's image."""
    if view.image is not None:
        out = io.BytesIO()
        Image.fromarray(view.image).save(out, "png")
        return "png", out.getvalue()
    try:
        data = view.encoded.read() if view.encoded is not None else Path(view.image_path).read_bytes()
    except OSError as error:
        raise DataError(f"camera {view.name}: {view.source}: {error.strerror or error}; fetch the image") from None
    return "png" if data.startswith(b"\x89PNG") else "jpeg", data
