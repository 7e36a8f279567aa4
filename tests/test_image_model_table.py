"""The table of docs/image_models.md states every published detector and segmentor with its checkpoint's size."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def test_every_published_model_is_listed_with_its_number_of_parameters(
    repository_root: Path, reference_dir: Path
) -> None:
    published = {}
    for task in ("detection", "segmentation"):
        file = reference_dir / "openmmlab" / "keys" / f"{task}.json.gz"
        for name, keys in json.loads(gzip.decompress(file.read_bytes())).items():
            tensors = (math.prod(shape) for key, shape in keys.items() if not key.endswith(BUFFERS))
            published[name.split("__")[1]] = sum(tensors)
    page = (repository_root / "docs" / "image_models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \|[^|]+\|[^|]+\| ([\d,]+) \|", page, re.MULTILINE)
    assert {name: int(count.replace(",", "")) for name, count in rows} == published
    assert len(rows) == len(published) == 51
