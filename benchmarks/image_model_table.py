"""Writes the table of detectors and segmentors into docs/image_models.md: each shipped config, built without memory.

python benchmarks/image_model_table.py          (needs `make openmmlab`)
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import torch

from drivestack.core.files import atomic_path
from drivestack.engine.config import build_model, load_config

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "image_models.md"
START, END = "<!-- table: benchmarks/image_model_table.py -->\n", "<!-- end of table -->\n"
OURS = ("_synthetic", "_own_coco", "_own_masks")
"""Configs that are not the release's."""


def published_configs() -> list[str]:
    """Names of the release's detectors and segmentors that ship here."""
    files = sorted((ROOT / "configs" / "images").glob("*.py"))
    kinds = ("mask_rcnn_", "cascade_", "dino_", "upernet_", "segformer_", "mask2former_")
    return [file.stem for file in files if file.stem.startswith(kinds) and not file.stem.endswith(OURS)]


def row(name: str) -> str:
    """A line of the table."""
    config = load_config(name)
    with torch.device("meta"):
        model = build_model(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    encoder = ("CB-" if config.model.net.get("composite") else "") + config.model.net.encoder
    cells = [f"`{name}`", encoder, str(config.model.net.num_classes), f"{count:,}", f"{config.train_cfg.max_iters:,}"]
    return "| " + " | ".join([*cells, published_result(name)]) + " |\n"


def published_result(name: str) -> str:
    """As the config's first lines state it."""
    text: Any = ast.get_docstring(ast.parse((ROOT / "configs" / "images" / f"{name}.py").read_text(encoding="utf-8")))
    found = re.search(r"Published: (.*?)\.(?:\n|$)", text, re.DOTALL)
    return " ".join(found[1].split()) if found else "-"


def table() -> str:
    head = ["config", "InternImage", "classes", "parameters", "iterations", "published result"]
    lines = ["| " + " | ".join(head) + " |\n", "|---|---|--:|--:|--:|---|\n"]
    return "".join([*lines, *map(row, published_configs())])


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    with atomic_path(PAGE) as temporary:
        temporary.write_text(before + START + table() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
