"""Every rule of an occupancy submission that a folder or zip file breaks, each with the place and the fix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...core.errors import SubmissionError
from ...geometry import OCC3D_GRID
from ..classes import OCC3D_NUSCENES
from .submission import VoxelFiles

SPLIT_SAMPLES = {"train": 28130, "val": 6019, "test": 6008}
"""Keyframes of the nuScenes splits; the challenge's server takes the test split."""


def check_submission(
    path: str | os.PathLike[str],
    expected_tokens: Iterable[str] | None = None,
    num_classes: int = len(OCC3D_NUSCENES),
    num_samples: int | None = None,
) -> list[str]:
    """Problems as one line each; an empty list means valid.

    expected_tokens: sample tokens of the split; without them missing and foreign samples are not reported, but
    their number is checked: num_samples (see SPLIT_SAMPLES).
    Raises SubmissionError if the path cannot be opened at all.
    """
    predictions = VoxelFiles(path)
    problems = [
        f"{name}: only .npz files belong into a submission; remove it"
        for name in predictions.files
        if not name.endswith(".npz")
    ]
    names = Counter(Path(name).stem for name in predictions.files if name.endswith(".npz"))
    problems += [f"sample {t}: {count} files; keep one" for t, count in names.items() if count > 1]
    if expected_tokens is not None:
        expected = set(expected_tokens)
        problems += [f"sample {t}: no file; predict it" for t in sorted(expected - set(names))]
        problems += [f"sample {t}: not of this split; remove its file" for t in sorted(set(names) - expected)]
    elif not names:
        problems.append("no .npz file at all; write one per sample")
    elif num_samples not in (None, len(names)):
        problems.append(f"{len(names)} samples, but the split has {num_samples}; predict every keyframe of it")
    shape = list(OCC3D_GRID.shape)
    for token in names:
        try:
            voxels = predictions.read(token)
        except SubmissionError as error:
            problems.append(f"sample {token}: {error}")
            continue
        if list(voxels.shape) != shape:
            problems.append(f"sample {token}: shape {list(voxels.shape)}; it must be {shape} of the ego frame")
        if voxels.dtype != np.uint8:
            problems.append(f"sample {token}: dtype {voxels.dtype}; write voxels.astype(numpy.uint8)")
        elif voxels.size and voxels.max() >= num_classes:
            problems.append(f"sample {token}: class {voxels.max()}; classes are 0..{num_classes - 1}, the last is free")
    return problems
