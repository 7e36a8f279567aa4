"""Clips of frames, augmented and ready for a model: the dataset behind training, evaluation and prediction.

Shapes: T frames of a clip, N cameras, n boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from ...core.cameras import cameras_of, check_camera_names, front_camera_of
from ...core.errors import ConfigError, DataError
from ...core.feature_store import FeatureStore
from ...core.frames import CameraView, Frame, past_bev_from_current
from ...core.labels import LaneTargets, MonoTargets, OccupancyTargets
from ...core.once import warn_once
from ...core.registries import DATASETS
from ...geometry import invert_pose
from ...geometry.lenses import ROW
from ..labels.files import check_lanes, occupancy_classes, read_occupancy
from ..labels.ground_truth import ground_truth
from ..labels.mono_targets import mono_targets
from ..readers.checks import check_frames
from ..readers.links import in_scene_order
from ..readers.registry import DataSource
from .can_bus import can_bus_of_pose
from .collate import ClipSample
from .depth import DepthSource, check_depth_source, read_depth_points
from .images import load_image
from .mirror import mirror_clip
from .sampler import StreamStep
from .street_maps import StreetMapSettings, lines_to_show, training_lines
from .transforms import (
    BdaDraw,
    BdaSettings,
    ImageDraw,
    ImagePlacement,
    ImageSettings,
    PhotometricDraw,
    PhotometricSettings,
    augment_image,
    resize_image,
)

logger = logging.getLogger("drivestack")

Settings = TypeVar("Settings")
Targets = tuple[NDArray[np.float32], NDArray[np.int64], list[MonoTargets | None] | None]
"""Boxes [n, 9], labels [n], per-image targets (None: not requested, or no annotations)."""


def _settings(cls: Callable[..., Settings], value: Settings | Mapping[str, Any]) -> Settings:
    """Settings given as an object, or as keyword arguments by a config."""
    if not isinstance(value, Mapping):
        return value
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "type"}
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ConfigError(f"{getattr(cls, '__name__', cls)}: {error}") from None


def _checked_range(pc_range: Sequence[float]) -> tuple[float, ...]:
    """x, y, z from and to, in metres. Raises ConfigError for anything else."""
    try:
        values = tuple(map(float, pc_range))
    except (TypeError, ValueError, OverflowError):
        values = ()
    if len(values) != 6 or not np.isfinite(values).all() or any(low >= high for low, high in zip(values, values[3:])):
        raise ConfigError(
            f"pc_range {str(pc_range)[:80]}: write six finite numbers in metres, x y z from and x y z to, each from "
            "below its to"
        )
    return values


@DATASETS.register_module()
class ClipDataset(Dataset):
    """Clips around every keyframe of one or several data sets.

    Sources (one of):
        frames: Frames at hand.
        source: what a registered reader reads: ``dict(reader="nuscenes", root="data/nuscenes", split="train", ...)``,
            or a DataSource; ``root`` may be a list of folders (readers/registry.py).
        However these order their frames, clips are in the order of time, scene by scene.

    What a clip is:
        classes: names of the labels 0, 1, ...
        frame_offsets: keyframes of a clip relative to the current one, e.g. (-1, 0); 0 must be among them. A
            neighbour is found by the frames' prev_token and next_token within the scene; frames before its start or
            after its end are marked missing. Frames without any such links are warned of.
        camera_names: cameras and their order; default: all that any frame has, nuScenes' in the order of published
            models, others as they come. A frame may lack some of them: they are masked (Batch.camera_valid), counted
            and reported once.
        may_lack: those of ``camera_names`` that all the frames may lack, as a live rig's silent camera.
        image, photometric, bda: settings of the augmentations (objects of transforms.py, or dicts of their fields);
            photometric and bda None: off. All draws happen in training only.
        pc_range, use_valid_flag, keep_unknown_velocity: which objects are ground truth, and what a velocity is that
            is unknown, see ground_truth.py.
        ego_from_bev: [4, 4], where the model's BEV maps live, for frames that do not say so themselves (identity):
            what weights that were trained on nuScenes need on a car without its LiDAR.
        mirror: reflect half of the training clips, images, rig and objects together (mirror.py).
        mono: also give per-image targets for the perspective head.
        occupancy, lanes: also give voxel and lane labels, None for a frame that has none. They live in the ego frame
            and know neither BEV augmentation nor upstream's image mirroring; ``mirror`` reflects them.
        depth: also give depth of the current images' cells, None for a frame without: True, 'lidar' (depth.py).
        front_camera: name of the camera that shows the traffic elements; default: the one that looks ahead, by its
            name or its optical axis (core/cameras.py). A frame that lacks it has no elements.
        street_map: also give the street map around the car, an input of the lane head: True, or StreetMapSettings
            (jitter, drop-out, range). Frames without one give None; ``mirror`` reflects it.

    How it is used:
        training: draw augmentations, and replace a clip that has no ground truth by another, drawn with its seed.
        seed: ``dataset[index, draw]`` is a pure function of (seed, draw, index); ``dataset[index]`` has draw 0.
            A StreamStep (sampler.py) has the augmentation of its sequence, a function of (seed, draw).
        cache_images: keep cropped and resized images in memory (``image.resample`` 'area' only): 3 bytes per pixel
            of network input. Every loader worker keeps its own.

    Raises ConfigError for settings that contradict one another, DataError for data that cannot be used.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str],
        frames: Sequence[Frame] | None = None,
        source: DataSource | Mapping[str, Any] | None = None,
        frame_offsets: Sequence[int] = (0,),
        camera_names: Sequence[str] | None = None,
        may_lack: Sequence[str] = (),
        image: ImageSettings | Mapping[str, Any] = ImageSettings(),  # noqa: B008 (frozen)
        photometric: PhotometricSettings | Mapping[str, Any] | None = None,
        bda: BdaSettings | Mapping[str, Any] | None = None,
        pc_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        use_valid_flag: bool = True,
        keep_unknown_velocity: bool = False,
        ego_from_bev: ArrayLike | None = None,
        mirror: bool = False,
        mono: bool = False,
        occupancy: bool = False,
        lanes: bool = False,
        depth: DepthSource = False,
        front_camera: str | None = None,
        street_map: StreetMapSettings | Mapping[str, Any] | bool = False,
        training: bool = False,
        seed: int = 0,
        cache_images: bool = False,
    ) -> None:
        if frames is not None:
            check_frames(frames)
            self.frames = in_scene_order(frames)
        else:
            self.frames = in_scene_order(DataSource.of(source or {}).read())
        if not self.frames:
            raise ConfigError("ClipDataset has no frames: give frames, or a source")
        if ego_from_bev is not None:
            placed = np.array(ego_from_bev, dtype=np.float64).reshape(4, 4)
            unplaced = lambda frame: np.array_equal(frame.ego_from_bev, np.eye(4))
            self.frames = [replace(frame, ego_from_bev=placed) if unplaced(frame) else frame for frame in self.frames]
        self.classes = tuple(classes)
        self.frame_offsets = tuple(sorted(set(frame_offsets)))
        if 0 not in self.frame_offsets:
            raise ConfigError(f"frame_offsets must contain 0 (the current frame), got {tuple(frame_offsets)}")
        self.image = _settings(ImageSettings, image)
        self.photometric = None if photometric is None else _settings(PhotometricSettings, photometric)
        self.bda = None if bda is None else _settings(BdaSettings, bda)
        self.pc_range, self.use_valid_flag = _checked_range(pc_range), use_valid_flag
        self.keep_unknown_velocity = keep_unknown_velocity
        given = StreetMapSettings() if street_map is True else street_map
        self.street_map = None if given is False else _settings(StreetMapSettings, given)
        if self.street_map is not None and not any(frame.street_map for frame in self.frames):
            warn_once("street_map is asked for, but no frame has one: the model sees none")
        self.mirror, self.mono, self.training, self.seed = mirror, mono, training, seed
        self.tasks = tuple(name for name, wanted in (("occupancy", occupancy), ("lanes", lanes)) if wanted)
        if self.tasks and (self.bda is not None or self.image.flip):
            raise ConfigError(
                f"{' and '.join(self.tasks)} labels do not follow bda and image.flip: leave both off, use mirror"
            )
        check_depth_source(depth, self.frames)
        self.depth = depth
        if mirror and mono:
            raise ConfigError("mirror does not reflect perspective targets: give mirror or mono, not both")
        if cache_images and self.image.resample != "area":
            raise ConfigError(f"cache_images needs image.resample 'area', got {self.image.resample!r}")
        self._cache: dict[str, NDArray[np.uint8]] | None = {} if cache_images else None
        self._features: FeatureStore | None = None

        known = cameras_of(self.frames)
        self.camera_names = tuple(camera_names or known)
        check_camera_names(self.camera_names, (*known, *may_lack))
        if front_camera is not None and front_camera not in self.camera_names:
            raise ConfigError(f"front_camera {front_camera!r} is none of the cameras {', '.join(self.camera_names)}")
        front = front_camera or front_camera_of(self.frames, self.camera_names)
        self.front_camera = None if front is None else self.camera_names.index(front)
        labelled = [frame.lanes for frame in self.frames if "lanes" in self.tasks and frame.lanes is not None]
        if front is None and any(len(labels.attributes) for labels in labelled):
            warn_once(
                "no camera looks ahead, so the labels of traffic elements are left out; name the camera that they "
                f"belong to (front_camera): {', '.join(self.camera_names)}"
            )
        self._index: dict[str, int] = {}
        for i, frame in enumerate(self.frames):
            if self._index.setdefault(frame.token, i) != i:
                raise DataError(f"sample {frame.token} occurs twice: two data roots hold the same scenes; give one")
        self._report_missing_cameras()
        if len(self.frame_offsets) > 1 and len(self) > 1 and not any(f.prev_token or f.next_token for f in self.frames):
            logger.warning(
                "frame_offsets are %s, but no frame names its prev_token or next_token: all history will be missing",
                self.frame_offsets,
            )

    @property
    def scene_tokens(self) -> list[str]:
        """Scene of each clip, for the samplers."""
        return [frame.scene_token for frame in self.frames]

    @property
    def labelled_tasks(self) -> tuple[str, ...]:
        """Of boxes, occupancy and lanes those whose labels the clips bring, as far as any frame has them."""
        found = {
            "boxes": bool(self.classes) and any(frame.annotations is not None for frame in self.frames),
            "occupancy": "occupancy" in self.tasks and any(frame.occupancy_path for frame in self.frames),
            "lanes": "lanes" in self.tasks and any(frame.lanes is not None for frame in self.frames),
        }
        return tuple(task for task, is_there in found.items() if is_there)

    @property
    def tokens(self) -> list[str]:
        """Sample token of each clip."""
        return [frame.token for frame in self.frames]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, item: int | tuple[int, int]) -> ClipSample:
        """The clip at an index, or at (index, draw) as the samplers yield it."""
        index, draw = item if isinstance(item, tuple) else (item, 0)
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        index %= len(self)
        if self.training and isinstance(item, StreamStep):
            return self._streamed(index, draw)
        rng = np.random.default_rng([self.seed, draw, index])
        if not self.training:
            frame, image_draw = self.frames[index], self.image.test_draw
            clip = self._clip(frame, image_draw, BdaDraw(), self._targets(frame, image_draw, BdaDraw()), None)
            if self.street_map is not None:
                clip.street_map = lines_to_show(self.frames, index, self.street_map, rng)
            return clip
        image_draw = self.image.draw(rng)
        bda_draw = self.bda.draw(rng) if self.bda is not None else BdaDraw()
        frame, targets = self._labelled(index, image_draw, bda_draw, rng)
        clip = self._clip(frame, image_draw, bda_draw, targets, rng if self.photometric is not None else None)
        clip.stream = f"{frame.scene_token} {draw} {index}"  # of this clip alone
        if self.street_map is not None:  # drawn apart: all else is drawn as without a map
            clip.street_map = training_lines(frame, self.street_map, np.random.default_rng([self.seed, draw, index, 1]))
        return self._seen(clip, mirrored=self.mirror and bool(rng.integers(2)))

    def _seen(self, clip: ClipSample, mirrored: bool) -> ClipSample:
        """The clip or its mirror image, with the stored features of either."""
        clip = mirror_clip(clip) if mirrored else clip
        if self._features is not None:
            clip.features = self._features.read(clip.frame.token, mirrored)
        return clip

    def use_features(self, store: FeatureStore) -> None:
        """Give clips their stored features from now on, and load no images but those that heads read themselves: the
        front camera's where lanes are learned."""
        self._features = store
        self._cache = None if self._cache is None else {}

    def undrawn(self, index: int, mirrored: bool) -> ClipSample:
        """What a training clip shows of frame ``index``, as it is or mirrored, without boxes.

        Raises ConfigError where training draws more than that: the images are then no function of (sample, mirrored).
        """
        drawn = {
            "photometric": self.photometric is not None,
            "bda": self.bda is not None,
            "image.flip": self.image.flip,
            "image.train_heights_px": len(set(self.image.train_heights_px)) > 1,
            "frame_offsets": len(self.frame_offsets) > 1,
        }
        if names := [name for name, is_drawn in drawn.items() if is_drawn]:
            raise ConfigError(f"stored features need one view of each frame: switch {', '.join(names)} off")
        nothing = np.zeros((0, 9), np.float32), np.zeros(0, np.int64), None
        draw = ImageDraw(self.image.train_heights_px[0])
        return self._seen(self._clip(self.frames[index], draw, BdaDraw(), nothing, None), mirrored)

    def _streamed(self, index: int, draw: int) -> ClipSample:
        """A step of a sequence: all its frames have the same draws, and none is replaced for want of labels."""
        frame, rng = self.frames[index], np.random.default_rng([self.seed, draw])
        is_mirrored = self.mirror and bool(rng.integers(2))  # first: cameras that are missing draw nothing
        image_draw = self.image.draw(rng)
        bda_draw = self.bda.draw(rng) if self.bda is not None else BdaDraw()
        targets = self._targets(frame, image_draw, bda_draw)
        clip = self._clip(frame, image_draw, bda_draw, targets, rng if self.photometric is not None else None)
        clip.stream = f"{frame.scene_token} {draw}"
        if self.street_map is not None:
            clip.street_map = training_lines(frame, self.street_map, np.random.default_rng([self.seed, draw, 1]))
        return self._seen(clip, is_mirrored)

    def neighbours(self, frame: Frame) -> list[Frame | None]:
        """The T frames of a clip, None where the scene has none."""
        return [self._neighbour(frame, offset) for offset in self.frame_offsets]

    def _neighbour(self, frame: Frame, offset: int) -> Frame | None:
        for _ in range(abs(offset)):
            token = frame.prev_token if offset < 0 else frame.next_token
            at = self._index.get(token)
            if at is None or self.frames[at].scene_token != frame.scene_token:
                return None
            frame = self.frames[at]
        return frame

    def _report_missing_cameras(self) -> None:
        """Raises DataError for a frame without any of the cameras; warns of those that some frames lack."""
        missing = dict.fromkeys(self.camera_names, 0)
        for frame in self.frames:
            present = {view.name for view in frame.cameras}
            absent = [name for name in self.camera_names if name not in present]
            if len(absent) == len(self.camera_names):
                place = f"sample {frame.token} (scene {frame.scene_name})"
                raise DataError(
                    f"{place}: none of the cameras {', '.join(self.camera_names)}; it has "
                    f"{', '.join(sorted(present))}: leave the sample out, or correct camera_names"
                )
            for name in absent:
                missing[name] += 1
        counts = [f"camera {name} missing in {n} of {len(self.frames)} frames" for name, n in missing.items() if n]
        if not counts:
            return
        front = None if self.front_camera is None else self.camera_names[self.front_camera]
        elements = f" (without {front} a frame has no traffic elements)" if front and missing[front] else ""
        warn_once(f"{'; '.join(counts)}; masked{elements}")

    def _views(self, frame: Frame) -> list[CameraView | None]:
        """The frame's cameras in the order of ``camera_names``, None where it lacks one; virtual ones where images are
        re-projected (``image.lens``)."""
        by_name = {view.name: self._virtual(view) for view in frame.cameras}
        return [by_name.get(name) for name in self.camera_names]

    def _virtual(self, view: CameraView) -> CameraView:
        found = self.image.rectified(view.camera)
        return view if found is None else replace(view, camera=found.camera)

    def _placement(self, view: CameraView, draw: ImageDraw) -> ImagePlacement:
        return self.image.placement(view.name, view.camera, draw.height_px)

    def _labelled(
        self, index: int, image_draw: ImageDraw, bda_draw: BdaDraw, rng: np.random.Generator
    ) -> tuple[Frame, Targets]:
        """The frame at the index, or the first of a random order that has labels; and its targets."""
        for candidates in ([index], rng.permutation(len(self))):
            for i in candidates:
                targets = self._targets(self.frames[i], image_draw, bda_draw)
                _, labels, mono = targets
                has_boxes = len(labels) and (not self.mono or any(image is not None for image in mono or ()))
                if has_boxes or self._has_task_labels(self.frames[i]):
                    return self.frames[i], targets
        boxes = f"a ground-truth box of the classes {', '.join(self.classes)} within pc_range {self.pc_range}"
        wanted = [boxes] * bool(self.classes) + [f"{task} labels" for task in self.tasks]
        raise DataError(
            f"none of the {len(self)} frames (first: sample {self.frames[0].token}) has {' or '.join(wanted)}; use a "
            "split with annotations" + ", or widen the classes or the range" * bool(self.classes)
        )

    def _has_task_labels(self, frame: Frame) -> bool:
        return ("occupancy" in self.tasks and frame.occupancy_path != "") or (
            "lanes" in self.tasks and frame.lanes is not None
        )

    def _occupancy(self, frame: Frame) -> OccupancyTargets | None:
        if "occupancy" not in self.tasks or not frame.occupancy_path:
            return None
        try:
            labels = read_occupancy(frame.occupancy_path)
        except DataError as error:
            raise DataError(f"sample {frame.token}: {error}") from error
        masks = (None if mask is None else torch.from_numpy(mask) for mask in (labels.mask_lidar, labels.mask_camera))
        return OccupancyTargets(torch.from_numpy(labels.semantics), *masks)

    def class_counts(self, most: int = 1000) -> list[int]:
        """[K] observed voxels of each class in the labels of at most ``most`` frames, evenly chosen.

        Raises ConfigError without voxel labels, and for those of two numberings.
        """
        labelled = [frame for frame in self.frames if frame.occupancy_path] if "occupancy" in self.tasks else []
        if not labelled:
            raise ConfigError("no voxels to count: the training data need occupancy=True, and voxel labels")
        chosen = np.linspace(0, len(labelled) - 1, min(most, len(labelled))).round().astype(int)
        sizes: dict[int, str] = {}
        for frame in labelled:
            sizes.setdefault(occupancy_classes(frame.occupancy_path), frame.token)
        if len(sizes) > 1:
            raise ConfigError(
                f"voxel labels of {' and of '.join(map(str, sizes))} classes (samples {', '.join(sizes.values())}): "
                "train on one kind"
            )
        counts = np.zeros(next(iter(sizes)), np.int64)
        for i in chosen:
            target = self._occupancy(labelled[i])
            assert target is not None  # it has a file
            seen = target.semantics if target.mask_lidar is None else target.semantics[target.mask_lidar]
            counts += np.bincount(seen.numpy().ravel(), minlength=len(counts))
        return counts.tolist()

    def _lanes(self, frame: Frame, draw: ImageDraw) -> LaneTargets | None:
        """Elements of which less than half lies in the cropped image are left out; they are labelled in real pixels."""
        if "lanes" not in self.tasks or frame.lanes is None:
            return None
        labels, front = frame.lanes, self.front_camera
        view = None if front is None else self._views(frame)[front]
        if view is None:  # nothing is known of the elements
            boxes, kept = np.zeros((len(labels.attributes), 4)), np.zeros(len(labels.attributes), bool)
        else:
            (real,) = (own for own in frame.cameras if own.name == view.name)
            check_lanes(labels, f"sample {frame.token}", real.image_size_px)
            found = self.image.rectified(real.camera)
            elements = labels.elements_xyxy_px if found is None else found.boxes(labels.elements_xyxy_px)
            placement = self._placement(view, draw)
            whole = (elements - [placement.left_px, placement.top_px] * 2) * (placement.scale_xy * 2)
            boxes = placement.boxes(elements)
            area = lambda xyxy: (xyxy[:, 2:] - xyxy[:, :2]).prod(1)
            kept = area(boxes) >= 0.5 * area(whole)  # NaN, of what a virtual camera cannot see, is not
        return LaneTargets(
            centrelines=[torch.from_numpy(line) for line in labels.centrelines],
            elements_xyxy_px=torch.from_numpy(boxes[kept].astype(np.float32)),
            attributes=torch.from_numpy(labels.attributes[kept]),
            lane_lane=torch.from_numpy(labels.lane_lane.astype(bool)),
            lane_element=torch.from_numpy(labels.lane_element[:, kept].astype(bool)),
            front_camera=front,
        )

    def _targets(self, frame: Frame, image_draw: ImageDraw, bda_draw: BdaDraw) -> Targets:
        selection = self.pc_range, self.use_valid_flag, bda_draw, self.keep_unknown_velocity
        boxes, labels = ground_truth(frame, self.classes, *selection)
        notes, mono = frame.annotations, None
        if self.mono and notes is not None:
            mono = [
                None if view is None else mono_targets(notes, view, self.classes, self._placement(view, image_draw))
                for view in self._views(frame)
            ]
        return boxes, labels, mono

    def _clip(
        self,
        frame: Frame,
        draw: ImageDraw,
        bda_draw: BdaDraw,
        targets: Targets,
        rng: np.random.Generator | None,
    ) -> ClipSample:
        shape = len(self.frame_offsets), len(self.camera_names)
        images: list[list[NDArray[np.float32] | None] | None] = []
        lenses = np.zeros((*shape, ROW))
        image_from_bev = np.zeros((*shape, 4, 4))  # zeros: nothing is visible in a missing frame or camera
        global_from_ego = np.tile(np.eye(4), (shape[0], 1, 1))
        can_bus = np.zeros((shape[0], 18))
        for t, neighbour in enumerate(self.neighbours(frame)):
            if neighbour is None:
                images.append(None)
                continue
            bev_from_current = past_bev_from_current(frame, neighbour)
            global_from_ego[t] = neighbour.global_from_ego
            can_bus[t] = can_bus_of_pose(neighbour.global_from_ego, neighbour.can_signals)
            pictures: list[NDArray[np.float32] | None] = [None] * shape[1]
            images.append(pictures)
            for n, view in enumerate(self._views(neighbour)):
                if view is None:
                    continue
                camera = self._placement(view, draw).camera(view.camera)
                camera_from_bev = invert_pose(neighbour.bev_from_camera(view)) @ bev_from_current
                if camera.lens is None:
                    image_from_bev[t, n] = camera.image_from_camera @ camera_from_bev
                else:
                    image_from_bev[t, n] = camera_from_bev
                lenses[t, n] = camera.row
                photometric = None if self.photometric is None or rng is None else self.photometric.draw(rng)
                is_read = self._features is None or ("lanes" in self.tasks and n == self.front_camera)
                pictures[n] = self._image(view, neighbour, draw, photometric) if is_read else self._blank(view, draw)
        intrinsics, bev_from_camera = np.tile(np.eye(3), (shape[1], 1, 1)), np.tile(np.eye(4), (shape[1], 1, 1))
        for n, view in enumerate(self._views(frame)):
            if view is not None:
                intrinsics[n] = self._placement(view, draw).camera(view.camera).intrinsics
                bev_from_camera[n] = frame.bev_from_camera(view)
        boxes, labels, mono = targets
        labelled = frame.annotations is not None
        return ClipSample(
            images=images,
            frame_offsets=self.frame_offsets,
            image_from_bev=image_from_bev.astype(np.float32),
            image_flipped=draw.flip,
            bda=bda_draw.matrix.astype(np.float32),
            intrinsics=intrinsics.astype(np.float32),
            bev_from_camera=bev_from_camera.astype(np.float32),
            lenses=lenses.astype(np.float32) if lenses[..., 0].any() else None,
            frame=frame,
            camera_names=self.camera_names,
            front_camera=self.front_camera,
            gt_boxes=boxes if labelled else None,
            gt_labels=labels if labelled else None,
            mono=mono,
            global_from_ego=global_from_ego,
            can_bus=can_bus,
            occupancy=self._occupancy(frame),
            lanes=self._lanes(frame, draw),
            depth=read_depth_points(frame, self._views(frame), self.image, draw, self.depth),
        )

    def _blank(self, view: CameraView, draw: ImageDraw) -> NDArray[np.float32]:
        """[3, h, w] zeros in place of an image."""
        placement = self._placement(view, draw)
        return np.zeros((3, placement.height_px, placement.width_px), np.float32)

    def _image(
        self, view: CameraView, frame: Frame, draw: ImageDraw, photometric: PhotometricDraw | None
    ) -> NDArray[np.float32]:
        placement = self._placement(view, draw)
        source = self._source(view, frame)
        if self._cache is not None:  # already cropped
            whole = (0, 0, source.shape[1], source.shape[0])
            placement = ImagePlacement(*whole, placement.width_px, placement.height_px)
        return augment_image(source, placement, self.image, draw.flip, photometric)

    def _source(self, view: CameraView, frame: Frame) -> NDArray[np.uint8]:
        """The decoded (and re-projected) image, or its cached crop at the largest height that this dataset uses."""
        if self._cache is None:
            return self._loaded(view, frame)
        key = view.image_path or f"{frame.token} {view.name}"
        if key not in self._cache:
            height_px = max(self.image.train_heights_px) if self.training else self.image.test_height_px
            placement = self._placement(view, ImageDraw(height_px))
            crop = placement.crop(self._loaded(view, frame))
            self._cache[key] = resize_image(crop, placement.width_px, placement.height_px, "area").copy()
        return self._cache[key]

    def _loaded(self, view: CameraView, frame: Frame) -> NDArray[np.uint8]:
        """The decoded image as the camera of the view (``_views``) has it."""
        (real,) = (own for own in frame.cameras if own.name == view.name)
        found = self.image.rectified(real.camera)
        image = load_image(real, frame.token)
        return image if found is None else found.image(image)
