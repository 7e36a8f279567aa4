"""Pictures of coloured rectangles with COCO and PNG labels, and runs of the toolboxes' own Runner on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = {"red": (200, 40, 40), "blue": (40, 60, 200)}
SIZE_PX = (96, 64)
INTERNIMAGE = """dict(_delete_=True, type="InternImage", core_op="DCNv3", channels=16, depths=[1, 1, 1, 1],
    groups=[1, 2, 4, 8], mlp_ratio=2.0, drop_path_rate=0.1, norm_layer="LN", layer_scale=1.0, offset_scale=1.0,
    post_norm=False, with_cp=True, out_indices={out_indices}, init_cfg=None)"""
"""As configs of the InternImage release write their backbone."""


def rectangles(seed: int) -> tuple[np.ndarray, list[tuple[int, int, int, int, int]]]:
    """A picture and its rectangles (class, x1, y1, x2, y2), the later ones in front."""
    rng = np.random.default_rng(seed)
    width, height = SIZE_PX
    picture = np.full((height, width, 3), 110, np.uint8) + rng.integers(-15, 15, (height, width, 3)).astype(np.uint8)
    found = []
    for kind in rng.permutation([0, 1]):
        x1, y1 = rng.integers(0, (width - 30, height - 24))
        x2, y2 = x1 + rng.integers(14, 30), y1 + rng.integers(12, 24)
        picture[y1:y2, x1:x2] = list(CLASSES.values())[kind]
        found.append((int(kind), int(x1), int(y1), int(x2), int(y2)))
    return picture, found


def write_coco(folder: Path, count: int) -> None:
    """``images/`` and ``instances.json``; every other mask as RLE."""
    from pycocotools import mask as coco_masks

    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        picture, found = rectangles(i)
        Image.fromarray(picture).save(folder / "images" / f"{i}.png")
        images.append(dict(id=i, file_name=f"{i}.png", width=SIZE_PX[0], height=SIZE_PX[1]))
        for kind, x1, y1, x2, y2 in found:
            shape: Any = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            if len(annotations) % 2:
                mask = np.zeros(SIZE_PX[::-1], np.uint8)
                mask[y1:y2, x1:x2] = 1
                rle = coco_masks.encode(np.asfortranarray(mask))
                shape = {"size": rle["size"], "counts": rle["counts"].decode()}
            size = dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=0)
            annotations.append(
                dict(id=len(annotations) + 1, image_id=i, category_id=kind + 1, segmentation=shape, **size)
            )
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    text = json.dumps(dict(images=images, annotations=annotations, categories=categories))
    (folder / "instances.json").write_text(text)


def write_segmentation(folder: Path, count: int) -> None:
    """``images/`` and ``labels/``: 0 road, 1 and 2 the rectangles."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        picture, found = rectangles(i)
        labels = np.zeros(picture.shape[:2], np.uint8)
        for kind, x1, y1, x2, y2 in found:
            labels[y1:y2, x1:x2] = kind + 1
        Image.fromarray(picture).save(folder / "images" / f"{i}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{i}.png")


def run(folder: Path, config_text: str) -> tuple[Any, list[float], dict[str, float]]:
    """Train and validate as the toolboxes' tools/train.py does: the runner, the loss of each iteration, the scores."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    folder.mkdir(exist_ok=True)
    (folder / "config.py").write_text(config_text)
    config = Config.fromfile(folder / "config.py")
    config.work_dir = str(folder / "work")
    runner = Runner.from_cfg(config)
    before = {name: value.clone() for name, value in runner.model.named_parameters()}
    runner.train()
    changed = [name for name, value in runner.model.named_parameters() if not value.equal(before[name])]
    assert any(name.startswith("backbone.levels.0.") and ".dcn." in name for name in changed), changed
    losses = [float(value) for value in runner.message_hub.get_scalar("train/loss").data[0]]
    scores = {
        key: float(history.data[0][-1])
        for key, history in runner.message_hub.log_scalars.items()
        if key.startswith("val/") and "time" not in key
    }
    return runner, losses, scores
