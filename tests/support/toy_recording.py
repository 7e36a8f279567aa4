"""Recordings in MCAP files, message by message. Times are in ns since START_US; log times say nothing, on purpose."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from drivestack.data_tools.readers.recordings import mcap_file
from drivestack.data_tools.synthetic.files import mcap_writer
from drivestack.geometry import CameraModel, matrix_to_quaternion, pose, rotation_z
from support.toy_drive import AHEAD, START_US, K

MOUNTED = pose(AHEAD, [1.5, 0.0, 1.0])
S = 10**9


class Log:
    """Writes a recording message by message; times in ns since START."""

    def __init__(self, path: Path) -> None:
        from mcap_ros2.writer import Writer

        self.path = path
        self.file = path.open("wb")
        self.writer = Writer(self.file, chunk_size=4000)
        self.schemas = {n: self.writer.register_msgdef(n, mcap_writer.definition_of(n)) for n in mcap_file.USED}

    def put(self, topic: str, kind: str, message: dict, time_ns: int = 0) -> None:
        self.writer.write_message(topic, self.schemas[kind], message, time_ns)

    def header(self, time_ns: int, frame: str) -> dict:
        seconds, rest = divmod(START_US * 1000 + time_ns, 10**9)
        return {"stamp": {"sec": seconds, "nanosec": rest}, "frame_id": frame}

    def image(self, time_ns: int, topic: str = "/cam/front/image_raw/compressed", frame: str = "front_optical",
              size: tuple[int, int] = (128, 80), kind: str = "jpeg") -> None:  # fmt: skip
        out = io.BytesIO()
        Image.new("RGB", size, (90, 120, 40)).save(out, "jpeg")
        message = {"header": self.header(time_ns, frame), "format": kind, "data": out.getvalue()}
        self.put(topic, mcap_file.IMAGE, message, 10 * S - time_ns)  # the log times say nothing

    def info(self, topic: str = "/cam/front/camera_info", time_ns: int = 0, **changed) -> None:
        model = CameraModel(K, 128, 80)
        info = mcap_writer.camera_info(model, self.header(time_ns, "front_optical")) | changed
        self.put(topic, mcap_file.INFO, info)

    def moving(self, time_ns: int, matrix: np.ndarray, child: str = "base_link", topic: str = "/odom") -> None:
        w, x, y, z = matrix_to_quaternion(matrix[:3, :3])
        body = mcap_writer._odometry(0, np.eye(4)) | {"header": self.header(time_ns, "odom"), "child_frame_id": child}
        body["pose"] = {
            "pose": {"position": dict(zip("xyz", matrix[:3, 3])), "orientation": dict(x=x, y=y, z=z, w=w)},
            "covariance": [0.0] * 36,
        }
        self.put(topic, mcap_file.ODOMETRY, body)

    def transform(
        self, parent: str, child: str, matrix: np.ndarray, time_ns: int = 0, topic: str = "/tf_static"
    ) -> None:
        w, x, y, z = matrix_to_quaternion(matrix[:3, :3])
        inside = {"translation": dict(zip("xyz", matrix[:3, 3])), "rotation": dict(x=x, y=y, z=z, w=w)}
        row = {"header": self.header(time_ns, parent), "child_frame_id": child, "transform": inside}
        self.put(topic, mcap_file.TRANSFORMS, {"transforms": [row]})

    def done(self) -> Path:
        self.writer.finish()
        self.file.close()
        return self.path


def usual(path: Path, *, info: bool = True, images: bool = True, motion: bool = True, mount: bool = True) -> Log:
    """One camera at 10 Hz for 1 s, odometry at 20 Hz: 5 m/s ahead, turning by 0.4 rad/s."""
    log = Log(path)
    if mount:
        log.transform("base_link", "front_optical", MOUNTED)
    if info:
        log.info()
    for i in range(21 if motion else 0):
        log.moving(i * S // 20, pose(rotation_z(0.4 * i / 20), [5 * i / 20, 0, 0.3]))
    for i in range(10 if images else 0):
        log.image(i * S // 10 + S // 40)
    return log
