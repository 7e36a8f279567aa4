"""What the verbs of the command line share: open data, load a model, run it, say what came out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config
    from torch import nn

    from ..core.answers import Detections, SceneAnswer
    from ..core.frames import Frame

logger = logging.getLogger("drivestack")


@dataclass(frozen=True)
class Source:
    """Where frames come from: a nuScenes split, an info pickle, an OpenLane-V2 split, or (nothing given) the config's
    test dataset."""

    dataroot: str | None = None
    version: str | None = None
    split: str | None = None
    info_pickle: str | None = None
    openlane: str | None = None
    """Root of OpenLane-V2, instead of ``dataroot``."""

    def read(self) -> list[Frame]:
        """The frames of a source that is fully given. Raises ConfigError if it is not, DataError if unreadable."""
        from ..data_tools.readers.info_pickle import read_info_pickle
        from ..data_tools.readers.nuscenes import read_nuscenes

        if self.openlane is not None:
            from ..data_tools.readers.openlane import read_openlane

            if self.split is None or self.dataroot is not None:
                raise ConfigError("--openlane needs --split (train, val, test, or a collection), and no --dataroot")
            return read_openlane(self.openlane, self.split)
        if self.dataroot is None:
            raise ConfigError(
                "no data named: give --dataroot with --version and --split, or with --info-pickle, or --openlane"
            )
        if self.info_pickle is not None:
            return read_info_pickle(self.info_pickle, self.dataroot)
        if self.version is None or self.split is None:
            raise ConfigError("--dataroot needs --version and --split, for example --version v1.0-trainval --split val")
        return read_nuscenes(self.dataroot, self.version, self.split)

    def completed(self, config: Config) -> Source:
        """This source, or the one of ``config.test_dataset`` where nothing is given."""
        if self.dataroot is not None or self.openlane is not None:
            return self
        if self.info_pickle is not None or self.version is not None or self.split is not None:
            raise ConfigError("--version, --split and --info-pickle need --dataroot, the folder that holds the images")
        dataset = config.get("test_dataset", {})
        roots = dataset.get("dataroots") or []
        roots = [roots] if isinstance(roots, (str, Path)) else list(roots)
        if len(roots) != 1:
            raise ConfigError(f"the config's test_dataset has {len(roots)} data roots; name one with --dataroot")
        pickles = dataset.get("info_pickles")
        pickle = pickles if isinstance(pickles, (str, Path)) or not pickles else pickles[0]
        version, split = dataset.get("version", "v1.0-trainval"), dataset.get("split", "val")
        if getattr(dataset.get("type"), "__name__", dataset.get("type")) == "OpenLaneDataset":
            return Source(split=split, openlane=str(roots[0]))
        return Source(str(roots[0]), version, split, None if pickle is None else str(pickle))


@dataclass(frozen=True)
class Outcome:
    """Predictions on a list of frames."""

    frames: list[Frame]
    answers: dict[str, SceneAnswer]
    """By sample token, without what was not kept in memory."""
    class_names: list[str]
    times_s: dict[str, float]

    @property
    def detections(self) -> dict[str, Detections]:
        """The boxes, by sample token."""
        return {token: answer.boxes for token, answer in self.answers.items() if answer.boxes is not None}


def load_model(config: Config, checkpoint: str | Path | None, seed: int = 0) -> nn.Module:
    """The config's model with the weights of a checkpoint; with None random ones from ``seed``.

    Raises CheckpointError if the file is missing, broken or of another model.
    """
    import torch

    from ..core.checkpoint import load_checkpoint
    from ..engine.config import build_model

    if checkpoint is not None and not Path(checkpoint).is_file():
        raise CheckpointError(f"{checkpoint}: no such checkpoint; train one with `drivestack train`, or check the path")
    torch.manual_seed(seed)
    model = build_model(config)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model


def tasks_of(model: nn.Module, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """What a model answers of "boxes", "occupancy" and "lanes"; with ``wanted`` it is told to answer only that.

    Raises ConfigError if it cannot answer what is wanted.
    """
    answered = tuple(getattr(model, "tasks", ("boxes",)))
    if missing := [task for task in wanted if task not in answered]:
        raise ConfigError(f"the model of this config answers {', '.join(answered)}, not {missing[0]}: choose of these")
    if wanted and set(wanted) != set(answered):
        model.tasks = answered = tuple(task for task in answered if task in wanted)
    return answered


def run_model(
    config: Config,
    model: nn.Module,
    frames: Sequence[Frame],
    device: str | None = None,
    keep: Callable[[SceneAnswer], SceneAnswer] = lambda answer: answer,
) -> Outcome:
    """Predict every frame with the test pipeline of the config; ``keep``: see engine.predict.predict.

    Raises DataError where an image cannot be used.
    """
    from ..backbone import prepare_inference
    from ..engine.config import build_dataset
    from ..engine.predict import keep_freed_memory, predict
    from ..engine.runner import local_device

    if "test_dataset" not in config:
        raise ConfigError("the config has no test_dataset; it says how images become network input, and the classes")
    settings = dict(config.test_dataset)
    for source_key in ("dataroots", "version", "split", "info_pickles"):
        settings.pop(source_key, None)
    offsets = tuple(config.model.get("frame_offsets", (0,)))
    if offsets[-1] == 0:  # past frames come out of the model's history: one encoder pass per frame
        offsets = (0,)
    settings |= {"frames": list(frames), "frame_offsets": offsets, "training": False, "cache_images": False}
    dataset = build_dataset(settings)
    start = time.monotonic()
    chosen = _device(device) if device else local_device()
    if chosen.type == "cpu":
        keep_freed_memory()
        model = prepare_inference(model)
    found = predict(model, dataset, device=chosen, keep=keep)
    times_s = {"predict": round(time.monotonic() - start, 2)}
    times_s |= {name: value for name, value in found.timing.items() if name.endswith("_per_sample")}
    return Outcome(list(frames), found.answers, list(settings["classes"]), times_s)


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}; use cpu, cuda, cuda:1, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"no device {name!r} here; leave --device out, and see `drivestack doctor`")
    return device


def labelled_split(source: Source) -> tuple[str, str, str]:
    """(dataroot, version, split) to score on. Raises ConfigError where they are not known."""
    if source.info_pickle is not None or not (source.dataroot and source.version and source.split):
        raise ConfigError("scores need the tables of the set: give --dataroot, --version and --split, no info pickle")
    return source.dataroot, source.version, source.split


def draw_pictures(
    frames: Iterable[Frame],
    answer_of: Callable[[Frame], SceneAnswer],
    class_names: Sequence[str],
    folder: Path,
    score_threshold: float,
) -> list[Path]:
    """One PNG per frame, ``scene_time_token.png``; the paths."""
    from PIL import Image

    from ..view.boxes import save_picture
    from ..view.drawing import View
    from ..view.picture import render_answers

    view = View(score_threshold=score_threshold)
    paths = []
    for frame in frames:
        name = f"{frame.scene_name or 'scene'}_{frame.timestamp_us}_{frame.token[:8]}.png"
        path = folder / name.replace("/", "_")  # names of OpenLane-V2 are paths
        save_picture(Image.fromarray(render_answers(frame, answer_of(frame), class_names, view)), path)
        paths.append(path)
    return paths


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
