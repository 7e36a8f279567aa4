"""T4 data sets (TIER IV's format for own recordings, https://github.com/tier4/t4-devkit): nuScenes' tables, one scene
a folder, lenses, and names of one's own.

    <root>/[<dataset>/[<version>/]]annotation/*.json
    <root>/[<dataset>/[<version>/]]data/<CHANNEL>/<frame>.jpg

Beyond nuScenes' there are `camera_distortion` (OpenCV's order; images are as the lens made them), `is_valid` of an
image and, where a set has it, the velocity of an object. Other tables are not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ....core.errors import DataError
from ....core.frames import Frame
from ....core.once import warn_once
from ....geometry import CameraModel, brown_conrady
from ..checks import check_frames
from ..choices import classes_of, names_of
from ..registry import Conventions, register_reader
from .reader import LIDARS, FrameJoiner
from .tables import (
    CalibratedSensor,
    Keyframe,
    SampleAnnotation,
    SampleData,
    Scene,
    SceneTables,
    join_tables,
    joining,
    read_rows,
)

TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "sample", "sample_annotation", "sample_data",
    "scene", "sensor",
)  # fmt: skip
"""Those that are read; a set without labels has empty ones."""
MERGED_LIDAR = LIDARS[1]


@register_reader(
    "t4",
    "T4 data sets of own recordings: nuScenes' tables, a scene for each folder, lenses and names of one's own",
    Conventions(
        boxes="gravity centre, w l h, quaternion, in the global frame",
        quaternions="w x y z",
        time="microseconds",
        cameras="in the order of published models, others alphabetically, the front one first; Brown-Conrady lenses; "
        "sizes from sample_data",
        frames="EGO: x ahead, y left, z up, at base_link (rear axle, on the ground); BEV maps lie in it, or in the "
        "frame of a LiDAR other than LIDAR_CONCAT, whose points are in the EGO frame",
    ),
)
def read_t4(
    root: str | Path,
    datasets: str | Sequence[str] = "",
    version: str = "",
    classes: Mapping[str, str] | None = None,
) -> list[Frame]:
    """All keyframes of all data sets below ``root``: a folder with ``annotation/``, or one that holds such folders.

    datasets: names of their folders, several with commas between, '' for all. version: folder of each data set, default
    the last. classes: category -> class, by default the category is the class. Velocities are those that the set
    states, else differences of places as nuScenes has them. Images that the set calls invalid are left out, and so are
    samples without any other, both counted; a row that is called invalid still gives time and pose.

    Raises DataError naming the file and the fix.
    """
    frames: list[Frame] = []
    scenes: dict[str, Path] = {}
    for folder in t4_folders(Path(root), names_of(datasets), version):
        found = _read_folder(folder, classes)
        for token in {frame.scene_token for frame in found}:
            if token in scenes:
                raise DataError(
                    f"{folder}: the scene {token} of {scenes[token]} again; name one with the option datasets"
                )
            scenes[token] = folder
        frames += found
    check_frames(frames)
    return frames


def t4_folders(root: Path, datasets: Sequence[str] = (), version: str = "") -> list[Path]:
    """Folders with ``annotation/``, one for each data set, sorted. Raises DataError where there is none."""
    if (root / "annotation").is_dir():
        return [root]
    found: dict[str, list[Path]] = {}
    for path in sorted([*root.glob("*/annotation"), *root.glob("*/*/annotation")]):
        found.setdefault(path.relative_to(root).parts[0], []).append(path.parent)
    if not found:
        raise DataError(f"{root}: no data set of T4 (annotation/*.json); give its folder, or that of several")
    if missing := set(datasets) - set(found):
        raise DataError(f"{root}: no data set {min(missing)}; it has {', '.join(list(found)[:5])}")
    out = []
    for name, folders in found.items():
        if datasets and name not in datasets:
            continue
        # the first is the data set itself, if it has tables without versions
        named = [folder for folder in folders if folder.name == version] if version else folders
        if not named:
            raise DataError(f"{root / name}: no version {version}; it has {', '.join(f.name for f in folders)}")
        out.append(max(named, key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.name)]))
    return out


def _read_folder(folder: Path, classes: Mapping[str, str] | None) -> list[Frame]:
    place = folder / "annotation"
    for table in TABLES:
        if not (place / f"{table}.json").is_file():
            raise DataError(f"{place / table}.json: table is missing; convert or fetch this data set again")
    scenes = sorted(read_rows(place / "scene.json", Scene), key=lambda scene: scene.name)
    if not scenes:
        raise DataError(f"{place / 'scene.json'}: holds no scene; convert or fetch this data set again")
    with joining(place):
        return _T4Joiner(join_tables(place, scenes), folder, place, classes).frames()


class _T4Joiner(FrameJoiner):
    def __init__(self, tables: SceneTables, root: Path, place: Path, classes: Mapping[str, str] | None) -> None:
        super().__init__(tables, root, place)
        self.own_classes = classes
        self.seen: set[str] = set()

    def frames(self) -> list[Frame]:
        samples, modality = self.tables.keyframes, {t: s.modality for t, s in self.tables.sensors.items()}
        sensor_of = {token: row.sensor_token for token, row in self.tables.calibrated_sensors.items()}
        images = [
            (token, row)
            for token, keyframe in samples.items()
            for row in keyframe.data.values()
            if modality[sensor_of[row.calibrated_sensor_token]] == "camera"
        ]
        self.seen = {token for token, row in images if self.has_image(row)}
        if invalid := sum(not self.has_image(row) for _, row in images):
            warn_once(f"{self.place}: {invalid} images are called invalid (is_valid); they are left out")
        if not self.seen:
            raise DataError(f"{self.place}: none of its {len(samples)} samples has a valid image; fetch this set again")
        if len(self.seen) < len(samples):
            blind = len(samples) - len(self.seen)
            warn_once(f"{self.place}: {blind} of {len(samples)} samples have no valid image; they are left out")
        return super().frames()

    def samples_of(self, keyframes: list[Keyframe]) -> list[Keyframe]:
        return [keyframe for keyframe in keyframes if keyframe.sample.token in self.seen]

    def has_image(self, record: SampleData) -> bool:
        return record.is_valid

    def model(self, sensor: CalibratedSensor, record: SampleData) -> CameraModel:
        lens = np.array(sensor.fields.get("camera_distortion") or (), np.float64).ravel().tolist()
        return brown_conrady(np.array(sensor.camera_intrinsic, float), record.width, record.height, lens)

    def ego_from_lidar(self, mounted: np.ndarray) -> np.ndarray:
        return np.eye(4) if self.reference == MERGED_LIDAR else mounted

    def class_names(self, categories: Sequence[str]) -> list[str]:
        return classes_of(categories, self.own_classes)

    def velocity(self, record: SampleAnnotation) -> tuple[float, float]:
        stated = record.velocity
        if stated is None:
            return super().velocity(record)
        try:
            x, y = (np.nan if part is None else float(part) for part in stated[:2])
        except (TypeError, ValueError):
            raise DataError(
                f"sample_annotation {record.token}: its velocity is {str(stated)[:40]}; give x, y, z in m/s or null"
            ) from None
        return x, y
