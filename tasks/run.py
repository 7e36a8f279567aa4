"""Shared by the API and the verbs: a config's model with its weights, its answers on frames, their scores."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..core.errors import ConfigError, DataError
from ..core.files import check_writable
from ..core.folders import folder_lock
from ..core.frames import Frame
from ..core.weights.shipped import weights_file
from ..data_tools.readers.registry import DataSource
from .base import GroundTruth, Predictions, Task

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config

    from ..bev.protocol import PerceptionModel
    from ..core.answers import SceneAnswer
    from ..data_tools.clips.clip_dataset import ClipDataset


def source_of(config: Config) -> DataSource:
    """The data that the config's ``test_dataset`` names. Raises ConfigError if it names none."""
    dataset = config.get("test_dataset", {})
    if "source" not in dataset:
        raise ConfigError("no data named: the config's test_dataset has no source; give --dataroot, or --reader")
    return DataSource.of(dataset.source)


def class_names(config: Config) -> list[str]:
    """Names of the labels 0, 1, ... of the config's boxes."""
    return list(input_settings(config)["classes"])


def class_ranges_m(config: Config, further: Mapping[str, float] | None = None) -> dict[str, float]:
    """Radius within which boxes of a class are scored, where it is not nuScenes': the config's, then ``further``."""
    return dict(config.get("class_range_m", {})) | dict(further or {})


def box_task(
    config: Config,
    class_range_m: Mapping[str, float] | None = None,
    official: bool = False,
    entry: Any = None,
    everywhere: bool = False,
) -> Task:
    """The task of the config's boxes, on the benchmark that it names (``benchmark``, default nuScenes).

    class_range_m: further ranges, of nuScenes' score. entry: who submits what, beside the config's ``waymo_entry``.
    everywhere: Argoverse 2's score without the region of interest, as the config's ``region_of_interest = False``.
    Raises ConfigError for what the benchmark does not have.
    """
    from .argoverse2_boxes import Argoverse2Boxes
    from .boxes import Boxes
    from .waymo_boxes import WaymoBoxes

    ranges = class_ranges_m(config, class_range_m)
    benchmark = config.get("benchmark", "nuscenes")
    if benchmark != "argoverse2" and (everywhere or "region_of_interest" in config):
        what = "--everywhere" if everywhere else "region_of_interest"
        raise ConfigError(f"{what} is of Argoverse 2's score, and the benchmark of the config's boxes is {benchmark}")
    if benchmark == "nuscenes":
        if entry:
            raise ConfigError('--waymo-entry is of Waymo\'s submissions: the config lacks benchmark = "waymo"')
        return Boxes(class_names(config), ranges, official)
    if ranges or official:
        what = "--official" if official else "class_range_m and --class-range"
        raise ConfigError(f"benchmark {config.benchmark} has ranges and a metric of its own: leave out {what}")
    if config.benchmark == "argoverse2":
        if entry:
            raise ConfigError("--waymo-entry is of Waymo's submissions, and the config's benchmark is argoverse2")
        return Argoverse2Boxes(class_names(config), False if everywhere else config.get("region_of_interest"))
    offsets = tuple(config.model.get("bev_map", {}).get("frames", (0,)))  # of the data's frames, as they are read
    looks_at = {"past_frames": max(0, -min(offsets)), "future_frames": max(0, *offsets, 0)}
    return WaymoBoxes(class_names(config), {**looks_at, **config.get("waymo_entry", {}), **(entry or {})})


def input_settings(config: Config) -> dict[str, Any]:
    """How frames become network input at test time: the config's ``test_dataset`` without its source."""
    if "test_dataset" not in config:
        raise ConfigError("the config has no test_dataset; it says how images become network input, and the classes")
    return {key: value for key, value in config.test_dataset.items() if key != "source"}


def input_dataset(
    config: Config, model: PerceptionModel, frames: Sequence[Frame], camera_names: Sequence[str] | None = None
) -> ClipDataset:
    """The frames as network input; past ones come from the model's memory: one encoder pass per frame.

    camera_names: of the rig, which the frames may lack; default the config's, else all that the frames have. Raises
    ConfigError for more cameras than the model has embeddings for.
    """
    from ..engine.config import build_dataset
    from ..engine.predict import check_inputs

    offsets = tuple(model.frame_offsets)
    if offsets[-1] == 0:
        offsets = (0,)
    settings = input_settings(config)
    settings |= {"frames": list(frames), "frame_offsets": offsets, "training": False, "cache_images": False}
    if camera_names is not None:
        settings |= {"camera_names": list(camera_names), "may_lack": list(camera_names)}
    dataset = cast("ClipDataset", build_dataset(settings))
    check_inputs(model, dataset)
    return dataset


def load_model(config: Config, checkpoint: str | Path | None, seed: int = 0) -> PerceptionModel:
    """The config's model with the weights of a checkpoint; with None random ones from ``seed``.

    Raises CheckpointError if the file is missing, broken or of another model.
    """
    import torch

    from ..core.checkpoint import load_checkpoint
    from ..engine.config import build_model

    if checkpoint is not None:
        checkpoint = weights_file(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cast("PerceptionModel", build_model(config))
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, may_lack=getattr(model, "teachers", ()))
    return model


def predict_frames(
    config: Config,
    model: PerceptionModel,
    frames: Sequence[Frame],
    *,
    device: str | None = None,
    tasks: Sequence[str] | None = None,
    keep: Callable[[SceneAnswer], SceneAnswer] = lambda answer: answer,
    **settings: Any,
) -> Predictions:
    """Answer every frame with the test settings of the config; ``keep`` and ``settings``: see engine.predict.predict.

    The model is not changed. Raises DataError where an image cannot be used.
    """
    from ..backbone import prepare_inference
    from ..engine.predict import predict
    from ..engine.runner import local_device
    from .registry import asked_of_model

    dataset = input_dataset(config, model, frames)
    warn_lost_history(model, frames)
    start = time.monotonic()
    chosen = parse_device(device) if device else local_device()
    if chosen.type == "cpu":
        model = prepare_inference(model)
    asked = None if tasks is None else asked_of_model(tasks)
    found = predict(model, dataset, device=chosen, tasks=asked, keep=keep, **settings)
    times_s = {"predict": round(time.monotonic() - start, 2)}
    times_s |= {name: value for name, value in found.timing.items() if name.endswith("_per_sample")}
    return Predictions(list(dataset.frames), found.answers, class_names(config), times_s)


def warn_lost_history(model: PerceptionModel, frames: Sequence[Frame]) -> None:
    """Warn where a model that uses past frames gets frames that are not linked in time."""
    import logging

    past = [offset for offset in model.frame_offsets if offset < 0]
    if past and len(frames) > 1 and not any(frame.prev_token in {f.token for f in frames} for frame in frames):
        logging.getLogger("drivestack").warning(
            "the model looks at past keyframes %s, but no frame's prev_token names another of these frames: each is "
            "answered as the first of its scene",
            tuple(past),
        )


def score_frames(
    config: Config,
    model: PerceptionModel,
    truth: GroundTruth,
    chosen: Mapping[str, Task],
    out: Path | None = None,
    **run: Any,
) -> dict[str, dict[str, Any]]:
    """Predict the ground truth's frames and score the tasks, by task name; submissions are kept in ``out``, if given.

    run: arguments of predict_frames. Raises what the tasks' ``demand``, ``write`` and ``score`` do, before predicting
    as far as that can be known.
    """
    from .boxes import Boxes
    from .occupancy import Occupancy
    from .registry import in_folder

    for task in chosen.values():
        task.demand(truth)
    place = tempfile.TemporaryDirectory(prefix="drivestack_") if out is None else folder_lock(out, "evaluate")
    with place as folder:
        paths = in_folder(Path(folder), list(chosen), chosen)
        for path in paths.values():
            check_writable(path)
        if isinstance(voxels := chosen.get("occupancy"), Occupancy):
            run["keep"] = voxels.keep(paths["occupancy"])
        frames = truth.frames
        if isinstance(boxes := chosen.get("boxes"), Boxes) and boxes.across is not None:
            frames = boxes.across.mapping.renamed(frames)
        predictions = predict_frames(config, model, frames, tasks=list(chosen), **run)
        scores = {}
        for name, task in chosen.items():
            task.write(paths[name], predictions, truth.split)
            scores[name] = task.score(paths[name], truth, run.get("progress", True))
    return scores


def parse_device(name: str) -> torch.device:
    """Raises ConfigError for a device that does not exist here."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device="meta" if device.type == "cuda" else device)
    except (RuntimeError, NotImplementedError, AssertionError):
        raise ConfigError(f"unknown device {name!r}; use cpu, cuda, cuda:1, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"no device {name!r} here; leave --device out, and see `drivestack doctor`")
    return device


def choose_frames(frames: Sequence[Frame], scene: str | None, tokens: Sequence[str], limit: int) -> list[Frame]:
    """Frames to draw: named samples, a scene, or all; of more than ``limit``, evenly spread ones.

    Raises DataError for a scene or sample that the frames do not hold.
    """
    if scene is not None:
        scenes = sorted({frame.scene_name for frame in frames})
        if scene not in scenes:
            raise DataError(
                f"no scene {scene!r} here; there are {', '.join(scenes[:10])}{', ...' * (len(scenes) > 10)}"
            )
        frames = [frame for frame in frames if frame.scene_name == scene]
    if tokens:
        by_token = {frame.token: frame for frame in frames}
        missing = [token for token in tokens if token not in by_token]
        if missing:
            raise DataError(f"no sample {missing[0]!r} among the {len(by_token)} chosen; check split and token")
        return [by_token[token] for token in tokens]
    if len(frames) <= limit:
        return list(frames)
    return [frames[i * len(frames) // limit] for i in range(limit)]
