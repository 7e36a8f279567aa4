"""The verbs features and throughput of image classifiers: what layers put out, and images per second."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from .images import image_model
from .options import add_model, at_least_zero, positive, verb
from .outputs import writing


def add_features(verbs: Any) -> None:
    examples = [
        "drivestack features internimage_t_1k_224 internimage_t_1k_224.pth --images photos/ \\",
        "    --layers levels.2.blocks.17 conv_head --out features.npz",
    ]
    parser = verb(verbs, "features", _run_features, "write what layers of a classifier put out for images", examples)
    add_model(parser)
    parser.add_argument("--images", nargs="+", required=True, metavar="PATH", help="images, or folders of images")
    parser.add_argument(
        "--layers", nargs="+", required=True, metavar="NAME", help="such as conv_head or levels.2.blocks.0"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help=".npz or .safetensors; axis 0: the images")


def _run_features(options: argparse.Namespace) -> int:
    import torch

    from ..backbone.pretrain.classification.features import FORMATS, layer_features, save_features
    from ..engine.precision import precision_context
    from ..tasks.images import image_dataset, image_files

    if Path(options.out).suffix not in FORMATS:
        raise ConfigError(f"{options.out}: the name must end in {' or '.join(FORMATS)}")
    files = image_files(options.images)
    config, model, device = image_model(options, task="classes")
    dataset = image_dataset(config, files)
    with writing(f"features {options.config}", [Path(options.out)]):
        parts = []
        for start in range(0, len(files), options.batch_size):
            chosen = range(start, min(start + options.batch_size, len(files)))
            batch: Any = dataset.collate([dataset[i] for i in chosen]).to(device)
            with precision_context(options.precision, device):
                parts.append(layer_features(model.eval(), batch, options.layers))
        path = save_features({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, options.out)
    shapes = ", ".join(f"{name} {[len(files), *value.shape[1:]]}" for name, value in parts[0].items())
    print(f"wrote {path}: {shapes}")
    return 0


def add_throughput(verbs: Any) -> None:
    examples = ["drivestack throughput internimage_t_1k_224 random --batch-size 8 --size 224"]
    summary = "images per second of a classifier: 50 batches to warm up, 30 timed"
    parser = verb(verbs, "throughput", _run_throughput, summary, examples)
    add_model(parser)
    parser.add_argument("--size", type=positive, default=224, metavar="PX", help="of the images (default: %(default)s)")
    parser.add_argument("--warm-up", type=at_least_zero, default=50, metavar="N", help="batches (default: %(default)s)")
    parser.add_argument("--timed", type=positive, default=30, metavar="N", help="batches (default: %(default)s)")


def _run_throughput(options: argparse.Namespace) -> int:
    from ..backbone.pretrain.classification.throughput import throughput
    from ..engine.precision import chosen_precision

    _, model, device = image_model(options, task="classes")
    precision = chosen_precision(options.precision, device)
    found = throughput(model, options.size, options.batch_size, options.warm_up, options.timed, precision)
    print(f"{found.images_per_s:.2f} images/s, {found.batches} batches of {found.batch_size} in {found.seconds:.1f} s")
    return 0
