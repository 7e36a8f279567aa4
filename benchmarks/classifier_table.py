"""Writes the table of published classifiers into docs/classification.md: each shipped config, built without memory.

python benchmarks/classifier_table.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import torch

from drivestack.backbone.pretrain.classification.model import Classifier
from drivestack.core.files import atomic_path
from drivestack.engine.config import build_model, load_config

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "configs" / "images"
PAGE = ROOT / "docs" / "classification.md"
START, END = "<!-- table: benchmarks/classifier_table.py -->\n", "<!-- end of table -->\n"
IMAGES_OF_A_STEP = {"1k_224": 4096, "22kto1k": 512}
"""Of the release's READMEs; those of iNaturalist are not stated."""


def published_configs() -> list[str]:
    """Names of the release's classifiers that ship here."""
    return [path.stem for path in sorted(FOLDER.glob("internimage_*k*_*.py")) if "tiny" not in path.stem]


def row(name: str) -> str:
    """A line of the table."""
    config = load_config(name)
    with torch.device("meta"):
        model = build_model(config)
    assert isinstance(model, Classifier)
    count = sum(parameter.numel() for parameter in model.parameters())
    epochs, decay = config.epochs, config.optim_wrapper.paramwise_cfg.layer_decay_rate
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
    result = re.search(r"([\d.]+) % top-1 published", text)
    step = next((str(images) for part, images in IMAGES_OF_A_STEP.items() if part in name), "-")
    rate = f"{epochs.lr * int(step) / epochs.images_per_lr:.2g}" if step != "-" else f"{epochs.lr:.2g} / 512"
    has_recipe = "_22k_" not in name
    cells = [
        f"`{name}`",
        f"{count:,}",
        str(model.num_classes),
        str(config.test_dataset.image.size_px),
        str(epochs.total) if has_recipe else "-",
        step if has_recipe else "-",
        rate if has_recipe else "-",
        "-" if decay is None or not has_recipe else f"{decay:g}",
        f"{result[1]} %" if result else "-",
    ]
    return "| " + " | ".join(cells) + " |\n"


def table() -> str:
    head = "config, parameters, classes, pixels, epochs, images a step, learning rate, layer decay, published top-1"
    lines = ["| " + " | ".join(head.split(", ")) + " |\n", "|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"]
    return "".join([*lines, *map(row, published_configs())])


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    with atomic_path(PAGE) as temporary:
        temporary.write_text(before + START + table() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
