"""drivestack for a program: load a model, give it images, read, score and train.

    model = drivestack.load("perception_tiny_drive")
    rig = drivestack.Rig({"CAM_FRONT": drivestack.Camera(K, ego_from_camera, size_px=(1600, 900)), ...})
    answer = model(images, rig, global_from_ego=pose, timestamp_us=t)
    answer.boxes, answer.voxels, answer.lanes
    answer.picture().save("answer.jpg")

The command line uses the same functions.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from .core.errors import ConfigError, DrivestackError
from .core.frames import Annotations, Frame
from .core.rig import Camera, Rig
from .data_tools.readers.registry import Conventions, DataSource, register_reader
from .tasks.answers import Answer
from .tasks.image_answer import ImagePerception, ImageResult

if TYPE_CHECKING:
    from mmengine.config import Config

    from .backbone.pretrain.hand_over import HandOverReport
    from .bev.protocol import PerceptionModel

_KEYFRAME_US = 500_000

__all__ = [
    "Annotations",
    "Answer",
    "Camera",
    "Conventions",
    "DataSource",
    "DrivestackError",
    "Frame",
    "ImagePerception",
    "ImageResult",
    "Perception",
    "Rig",
    "Session",
    "evaluate",
    "hand_over",
    "list_models",
    "load",
    "read",
    "register_reader",
    "train",
]


def list_models() -> list[str]:
    """Names that ``load`` finds with weights; other configs: ``drivestack.engine.config.config_names()``."""
    from .core.weights.shipped import shipped_weights

    return list(shipped_weights())


def load(
    name: str | Path, weights: str | Path | None = None, device: str | None = None, precision: str = "fp32"
) -> Any:
    """A model ready to answer: a Perception, or an ImagePerception where its config is one of single images.

    name: a shipped model (``list_models``); a folder with a config ``.py`` and weights, as training leaves it
    (best.pth, else the last checkpoint) or as published (one .safetensors or .pth); a config's name or ``.py`` file,
    with ``weights``. weights: a .safetensors or .pth file, a shipped model's name, or "random". device: "cpu", "cuda",
    ...; default a GPU if there is one. precision: "fp32", "bf16", "fp16", or "auto": bf16 where the device computes it,
    else fp32.

    Raises ConfigError for an unknown name, device or precision, CheckpointError for weights that do not fit.
    """
    from .engine.config import load_config
    from .engine.precision import chosen_precision
    from .engine.runner import local_device
    from .tasks.images import class_names_of, is_image_config
    from .tasks.run import load_model, parse_device

    chosen = parse_device(device) if device else local_device()
    chosen_precision(precision, chosen)  # a wrong name is said before weights are read
    config_file, found = _find_model(name)
    config = load_config(config_file)
    weights = weights or found
    if weights is None:
        raise ConfigError(f"{name}: no weights are shipped for it; give weights=FILE, or weights='random'")
    found_weights = None if weights == "random" else weights
    model = load_model(config, found_weights)
    if is_image_config(config):
        return ImagePerception(model.to(chosen), config, precision, class_names_of(config, found_weights))
    return Perception(model.to(chosen), config, precision)


def _find_model(name: str | Path) -> tuple[str, Path | None]:
    """Config and weights that a name stands for."""
    from .core.weights.shipped import shipped_weights
    from .engine.checkpoints import latest_checkpoint

    folder = Path(name)
    if not folder.is_dir():
        return str(name), shipped_weights().get(str(name))
    configs = sorted(folder.glob("*.py"))
    if len(configs) != 1:
        raise ConfigError(f"{folder}: holds {len(configs)} .py files; a model's folder holds its config alone")
    best, last = folder / "best.pth", latest_checkpoint(folder)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pth")])
    if best.is_file():
        return str(configs[0]), best
    if last is not None:
        return str(configs[0]), last
    if len(files) != 1:
        raise ConfigError(f"{folder}: holds {len(files)} weight files; name one with weights=")
    return str(configs[0]), files[0]


@dataclass
class Session:
    """A model's memory of one drive; it can be read, copied, and passed to a call to continue from there."""

    scene: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    count: int = 0
    """Keyframes answered in this scene."""
    timestamp_us: int | None = None
    """Of the last keyframe."""
    memory: Any = None
    """Opaque: what the model returned of this drive."""

    @property
    def token(self) -> str:
        """Of the last keyframe, '' before the first."""
        return f"{self.scene}-{self.count - 1}" if self.count else ""

    def holds(self, key: str) -> bool:
        """Whether an entry of a model's memory, under the token of a scene or of a keyframe, is of this drive."""
        return key == self.scene or key.startswith(f"{self.scene}-")

    def copy(self) -> Session:
        """A session that continues from here without changing this one."""
        return copy.copy(self)

    def reset(self) -> None:
        """Forget the drive: the next keyframe is the first of a new one."""
        self.__dict__.update(vars(Session()))


class Perception:
    """A model with its memory; ``load`` makes it.

    model: the torch module; config: its configuration; session: the memory that calls use unless given another.
    """

    def __init__(self, model: PerceptionModel, config: Config, precision: str = "fp32") -> None:
        from .backbone import prepare_inference
        from .tasks.run import class_names

        self.model = model.eval()
        on_cpu = next(model.parameters()).device.type == "cpu"
        self._running = prepare_inference(model) if on_cpu else model  # the same numbers, faster
        self.config, self.precision = config, precision
        self.class_names = tuple(class_names(config))
        self.session = Session()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the model, of boxes, occupancy and lanes."""
        return self.model.tasks

    @property
    def remembers(self) -> bool:
        """Whether past keyframes change its answers."""
        return self.model.remembers

    def __call__(
        self,
        images: Mapping[str, Any] | Sequence[Any],
        rig: Rig,
        global_from_ego: ArrayLike | None = None,
        timestamp_us: int | None = None,
        *,
        reset: bool = False,
        session: Session | None = None,
        tasks: Sequence[str] | None = None,
    ) -> Answer:
        """The answer for one keyframe.

        images: by camera name, or in the rig's order, None for one that has no image now; see ``Rig.frame``. The rig's
        order does not matter: cameras go to the model by name. global_from_ego: [4, 4], where the car is; a
        model that remembers needs it. timestamp_us: must rise within a drive; default 0.5 s after the last. reset: a
        new drive starts here. session: the memory to use and update, instead of this object's. tasks: answer only
        these.

        Each call is a keyframe: a model over several frames expects them as far apart as in training (0.5 s
        for the shipped and released ones).
        Raises DataError naming the camera for an image that cannot be used; ConfigError for a missing pose, a time that
        does not rise, or a rig that does not fit the model.
        """
        session = self.session if session is None else session
        (answer,) = self.batch(
            [images], [rig], [global_from_ego], [timestamp_us], resets=[reset], sessions=[session], tasks=tasks
        )
        return answer

    def batch(
        self,
        images: Sequence[Mapping[str, Any] | Sequence[Any]],
        rigs: Rig | Sequence[Rig],
        global_from_ego: Sequence[ArrayLike | None] | None = None,
        timestamps_us: Sequence[int | None] | None = None,
        *,
        resets: Sequence[bool] | None = None,
        sessions: Sequence[Session] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> list[Answer]:
        """Answers for one keyframe of each of several cars; the arguments are those of a call, one per car.

        rigs: one for all, or one each; cars with different numbers of cameras may be mixed. sessions: the memory of
        each car; without them every keyframe is answered as the first of a drive.
        """
        count = len(images)
        rigs = [rigs] * count if isinstance(rigs, Rig) else list(rigs)
        poses = [None] * count if global_from_ego is None else list(global_from_ego)
        times = [None] * count if timestamps_us is None else list(timestamps_us)
        given = sessions is not None
        sessions = [Session() for _ in images] if sessions is None else list(sessions)
        resets = [False] * count if resets is None else list(resets)
        lists = {"rigs": rigs, "poses": poses, "timestamps_us": times, "resets": resets, "sessions": sessions}
        for name, values in lists.items():
            if len(values) != count:
                raise ConfigError(f"{count} sets of images, but {len(values)} {name}: give one for each")
        # copies, so that a call that fails leaves every drive where it was
        drives = [Session() if anew else session.copy() for session, anew in zip(sessions, resets)]
        frames = [self._frame(images[i], rigs[i], poses[i], times[i], own, given) for i, own in enumerate(drives)]
        if min(len({drive.scene for drive in drives}), len({id(session) for session in sessions})) < count:
            raise ConfigError("two sessions are of one drive (the same one, or copies): answer them in separate calls")
        answers: list[Answer | None] = [None] * count
        groups: dict[tuple, list[int]] = {}  # a batch holds the same cameras, with the same one ahead
        for i, rig in enumerate(rigs):
            groups.setdefault((self._camera_names(rig), rig.front), []).append(i)
        for (names, _), group in groups.items():
            own = [frames[i] for i in group], [drives[i] for i in group]
            for i, answer in zip(group, self._answer(*own, names, tasks)):
                answers[i] = answer
        for session, drive in zip(sessions, drives):
            vars(session).update(vars(drive))
        return [answer for answer in answers if answer is not None]

    def _frame(
        self,
        images: Mapping[str, Any] | Sequence[Any],
        rig: Rig,
        pose: ArrayLike | None,
        timestamp_us: int | None,
        session: Session,
        in_drive: bool,
    ) -> Frame:
        if pose is None and self.remembers and in_drive:
            raise ConfigError(
                "this model looks at past keyframes: give global_from_ego, the car's pose, with every call"
            )
        last = session.timestamp_us
        following = 0 if last is None else last + _KEYFRAME_US
        if last is not None and timestamp_us is not None and timestamp_us <= last:
            raise ConfigError(f"timestamp_us {timestamp_us} is not after {last}: reset=True starts a new drive")
        return rig.frame(
            images,
            token=f"{session.scene}-{session.count}",
            scene=session.scene,
            timestamp_us=following if timestamp_us is None else int(timestamp_us),
            global_from_ego=pose,
            prev_token=session.token,
        )

    def _answer(
        self,
        frames: Sequence[Frame],
        sessions: Sequence[Session],
        camera_names: Sequence[str] | None,
        tasks: Sequence[str] | None,
    ) -> list[Answer]:
        import torch

        from .data_tools.clips.collate import collate_clips
        from .engine.precision import precision_context
        from .tasks.run import input_dataset

        dataset = input_dataset(self.config, self.model, frames, camera_names)
        device = next(self.model.parameters()).device
        batch = collate_clips([dataset[i] for i in range(len(frames))]).to(device)
        remembered = {key: value for session in sessions for key, value in (session.memory or {}).items()}
        with torch.inference_mode(), precision_context(self.precision, device):
            raw, memory = self._running.predict(batch, remembered or None, tasks)
        for session, frame in zip(sessions, frames):
            session.memory = {key: value for key, value in (memory or {}).items() if session.holds(key)}
            session.count += 1
            session.timestamp_us = frame.timestamp_us
        return [Answer.of(own, frame, self.class_names) for own, frame in zip(raw, dataset.frames)]

    def _camera_names(self, rig: Rig) -> tuple[str, ...] | None:
        """Cameras in the order of the model's embeddings: those of its training where the config has their names (a
        rig may lack some), else nuScenes' and Argoverse 2's in the published order and others as the rig has them.

        None: the rig has others than those of the training.
        """
        from .core.cameras import in_published_order
        from .tasks.run import input_settings

        trained = input_settings(self.config).get("camera_names")
        if trained is None:
            return in_published_order(rig)
        return tuple(trained) if set(rig) <= set(trained) else None

    def evaluate(self, data: DataSource | Sequence[Frame], **settings: Any) -> dict[str, dict[str, Any]]:
        """See the function ``evaluate``."""
        return evaluate(self, data, **settings)


def read(root: str | Path | Sequence[str | Path], reader: str | Callable = "nuscenes", **options: Any) -> list[Frame]:
    """The frames of a data set, checked: images' paths, calibration, poses, labels.

    root: its folder, or several. reader: a registered name ("nuscenes", "openlane", "nuscenes_infos", ...), a .py file
    that registers one, or a function ``read(root, ...) -> list[Frame]``. options: of the reader, such as
    ``version="v1.0-trainval", split="val"``.
    Raises ConfigError for options that it does not have, DataError naming the file and the fix for data it cannot use.
    """
    return DataSource(reader, root, options).read()


def evaluate(
    model: Perception,
    data: DataSource | Sequence[Frame],
    tasks: Sequence[str] | None = None,
    out: str | Path | None = None,
    class_range_m: Mapping[str, float] | None = None,
    mapping: Mapping[str, Any] | str | Path | None = None,
    **run: Any,
) -> dict[str, dict[str, Any]]:
    """Scores of a model by task: boxes (NDS, mAP, errors), occupancy (mIoU, RayIoU, F-score), lanes (OLS and parts),
    tracks (AMOTA and parts).

    Tracks ("tracks") are scored where they are named, or the model gives ids; else its boxes are linked over time.
    Boxes are scored on the config's ``benchmark``, nuScenes by default; Waymo's scores are LET-3D and standard AP.
    data: frames with labels, or where they come from. tasks: default all tasks of the model that the data have labels
    for; what is left out is logged. out: folder for the submissions. class_range_m: radius within which boxes of a
    class count, where it is neither the config's nor nuScenes'. mapping: a JSON file, or its content, that says what
    counts as what on a set of other classes and cameras; it is of boxes, the only task then unless ``tasks`` names more
    (docs/across_sets.md). run: batch_size, num_workers, progress.
    Raises DataError where the data have labels for none of the tasks, or labels that cannot be used, before predicting.
    """
    from .bev.evaluation.class_mapping import read_mapping
    from .tasks.across import AcrossSets
    from .tasks.base import GroundTruth, Task, labelled
    from .tasks.boxes import Boxes
    from .tasks.registry import TASKS, chosen_of_model
    from .tasks.run import box_task, class_ranges_m, score_frames

    truth = GroundTruth(data) if isinstance(data, DataSource) else GroundTruth(DataSource("frames", "memory"), data)
    tasks = ("boxes",) if mapping is not None and tasks is None else tasks
    benchmark = model.config.get("benchmark", "nuscenes")
    chosen: dict[str, Task] = {
        name: TASKS[name]() for name in chosen_of_model(model.model, tasks, model.class_names, benchmark)
    }
    if "boxes" in chosen:
        chosen["boxes"] = box_task(model.config, class_range_m if mapping is None else None)
    if mapping is not None:
        if "boxes" not in chosen:
            raise ConfigError("mapping is of boxes, and tasks leaves them out: leave one of them out")
        across = AcrossSets(read_mapping(mapping)).with_model(model.config, model.model, truth.frames)
        chosen["boxes"] = Boxes(model.class_names, class_ranges_m(model.config, class_range_m), across=across)
    if tasks is None:
        chosen = labelled(chosen, truth)
    device = str(next(model.model.parameters()).device)
    return score_frames(
        model.config,
        model.model,
        truth,
        chosen,
        None if out is None else Path(out),
        device=device,
        precision=model.precision,
        **run,
    )


def train(config: str | Path | Config, work_dir: str | Path, **settings: Any) -> Path:
    """Train and return the path of the last checkpoint; see engine.train.train for the settings.

    Overrides, resuming, fine-tuning, seeds, and scores during training (config key ``validation``) are as on the
    command line.
    """
    from .engine.config import load_config
    from .engine.train import train as run
    from .tasks.images import image_validator, is_image_config
    from .tasks.validate import Validator

    overrides: Mapping[str, Any] | Iterable[str] = settings.pop("overrides", ())
    loaded = load_config(config, overrides) if isinstance(config, (str, Path)) else config
    if loaded.get("validation") and settings.get("evaluate") is None:
        settings["evaluate"] = (image_validator if is_image_config(loaded) else Validator)(loaded)
    return run(loaded, work_dir, **settings)


def hand_over(weights: str | Path, config: str | Path | Config, out: str | Path, **settings: Any) -> HandOverReport:
    """The image encoder of a BEV config from the weights of any image model, written to the safetensors file ``out``.

    weights: a file, a folder, a shipped model's name; see backbone.pretrain.hand_over for what is understood and for
    the settings (prefix, use_ema, notes). ``train(config, work_dir, fine_tune=out)`` starts from the result.
    Returns the report. Raises ConfigError, CheckpointError (nothing is written then), OutputError.
    """
    import torch

    from .backbone.pretrain import hand_over as room
    from .core.weights.shipped import weights_file
    from .engine.config import build_model, load_config

    if Path(out).suffix != ".safetensors":
        raise ConfigError(f"{out}: the name must end in .safetensors")
    loaded = load_config(config) if isinstance(config, (str, Path)) else config
    with torch.device("meta"):  # names and shapes are all that is needed
        model = build_model(loaded)
    return room.hand_over(weights_file(weights), model, out, target=loaded.get("config_name", ""), **settings)
