"""The verbs evaluate and predict for image models: classes, instances and segmentation of single images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from .options import above_zero, at_least_zero, share
from .outputs import check_outputs, run_folder, writing

if TYPE_CHECKING:
    from mmengine.config import Config

OTHERS = (
    "tasks", "dataroot", "data_version", "split", "reader", "reader_options", "openlane", "info_pickle",
    "perturb_calibration", "class_range", "team", "half", "official", "everywhere", "mapping", "waymo_entry",
)  # fmt: skip
"""Options that belong to surround-camera models."""


def add_images(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models of single images (classification, detection, segmentation)")
    group.add_argument(
        "--images", nargs="+", metavar="PATH", help="images, or folders of images (default: the config's test dataset)"
    )
    group.add_argument(
        "--watch", metavar="DIR", help="answer the images that lie in this folder and those that come, a line each"
    )
    group.add_argument("--seconds", type=above_zero, metavar="S", help="watch so long (default: until interrupted)")
    group.add_argument(
        "--pictures", type=at_least_zero, default=0, metavar="N", help="draw the answers to the first N images"
    )
    group.add_argument(
        "--score-threshold", type=share, default=0.3, metavar="P", help="draw instances above this (default: 0.3)"
    )


def refuse_others(options: argparse.Namespace) -> None:
    """Raises ConfigError for options that only surround-camera models have."""
    for name in OTHERS:
        if getattr(options, name, None):
            flag = {"data_version": "version", "reader_options": "option"}.get(name, name).replace("_", "-")
            raise ConfigError(
                f"--{flag} is for models of surround cameras; {options.config} answers single images: name them with "
                "--images, or change test_dataset with --set"
            )


def refuse_images(options: argparse.Namespace) -> None:
    """Raises ConfigError for options that only image models have."""
    if any(getattr(options, name, None) for name in ("images", "pictures", "watch")):
        raise ConfigError(
            f"--images, --watch and --pictures are for models of single images; {options.config} answers surround "
            "cameras: see `drivestack visualize`"
        )


def evaluate_images(options: argparse.Namespace, config: Config) -> int:
    """Score the config's test images; answers and scores go to ``--out``."""
    from ..core.files import write_json
    from ..tasks.images import class_names_of, score_images

    refuse_others(options)
    out = Path(options.out or run_folder(options.config) / "evaluation")
    check_outputs(folders=[out])
    model, checkpoint = _model(options, config)
    with writing(f"evaluate {options.config}", [out / "scores.json"], [out]):
        names = class_names_of(config, checkpoint)
        scores = score_images(config, model, out, names, **_run(options))
        write_json(out / "scores.json", scores, indent=2)
    width = max(map(len, scores))
    print("\n".join(f"{name:<{width}}  {value:.4f}" for name, value in scores.items()))
    print(f"\nscores      {out / 'scores.json'}\nanswers     {out / 'answers.jsonl'}")
    return 0


def predict_images(options: argparse.Namespace, config: Config) -> int:
    """Answer images, named ones or the config's test images; answers and pictures go to ``--out``."""
    from ..core.image_answers import ImageAnswer
    from ..engine.predict import predict_images as run
    from ..tasks.images import check_classes, class_names_of, image_dataset, image_files, named, writing_answers

    refuse_others(options)
    if options.watch is not None:
        return _watch(options, config)
    if options.seconds is not None:
        raise ConfigError("--seconds is how long to watch: name the folder with --watch, or leave it out")
    out = Path(options.out or "answers")
    check_outputs(folders=[out])
    files = None if options.images is None else image_files(options.images)
    model, checkpoint = _model(options, config)
    dataset = image_dataset(config, files)
    names = class_names_of(config, checkpoint)
    check_classes(names, dataset.class_names)
    names = names or tuple(dataset.class_names)
    count = 0
    with writing(f"predict {options.config}", [out / "answers.jsonl"], [out]), writing_answers(out, names) as write:
        for answer in run(model, dataset, **_run(options)):
            assert isinstance(answer, ImageAnswer)
            write(answer)
            if count < options.pictures:
                _draw(
                    out / "pictures" / f"{count:05d}.png", dataset.image(count), answer, named(names, answer), options
                )
            count += 1
    print(f"wrote {out / 'answers.jsonl'}: {count} images")
    return 0


def image_model(options: argparse.Namespace, task: str) -> tuple[Config, Any, Any]:
    """Config, model and device of the options. Raises ConfigError for a model of another task."""
    from ..engine.config import load_config
    from ..tasks.images import is_image_config

    refuse_others(options)
    config = load_config(options.config, options.overrides)
    if not is_image_config(config):
        raise ConfigError(f"{options.config} answers surround cameras, not single images: name a classifier's config")
    model, _ = _model(options, config)
    if model.task != task:
        raise ConfigError(f"{options.config} answers {model.task}, not {task}: name a config of that task")
    device = _run(options)["device"]
    return config, model.to(device), device


def _watch(options: argparse.Namespace, config: Config) -> int:
    """A line of JSON for each image, on standard output, until the command is interrupted; broken images on the way
    are named on standard error."""
    import json
    import sys

    from ..backbone.pretrain.arrivals import arrivals
    from ..core.errors import DataError
    from ..tasks.image_answer import ImagePerception
    from ..tasks.images import as_plain, class_names_of, write_segmentation

    if options.images is not None or options.pictures:
        raise ConfigError("--watch prints its answers: give no --images and no --pictures beside it")
    model, checkpoint = _model(options, config)
    if model.task == "segmentation" and options.out is None:
        raise ConfigError("--watch with a model of segmentation needs --out, the folder of its PNGs")
    run = _run(options)
    answers = ImagePerception(model.to(run["device"]), config, options.precision, class_names_of(config, checkpoint))
    for path in arrivals(options.watch, seconds=options.seconds):
        try:
            result = answers(path)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        if options.out is not None:
            write_segmentation(Path(options.out), result.raw)
        line = as_plain(result.raw, result.class_names) | {"image": str(path)}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    return 0


def _model(options: argparse.Namespace, config: Config) -> tuple[Any, Path | str | None]:
    from ..tasks.run import load_model, parse_device

    if options.device is not None:
        parse_device(options.device)
    checkpoint = None if options.checkpoint == "random" else options.checkpoint
    return load_model(config, checkpoint), checkpoint


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from ..engine.runner import local_device
    from ..tasks.run import parse_device

    return {
        "device": parse_device(options.device) if options.device else local_device(),
        "precision": options.precision,
        "batch_size": options.batch_size,
        "num_workers": options.workers,
    }


def _draw(path: Path, image: Any, answer: Any, names: Any, options: argparse.Namespace) -> None:
    from PIL import Image

    from ..view.boxes import save_picture
    from ..view.images import render_image_answer

    save_picture(Image.fromarray(render_image_answer(image, answer, names, options.score_threshold)), path)
