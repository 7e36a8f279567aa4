"""Every rule of an occupancy submission that a folder or zip file breaks, each with the place and the fix."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from ...core.errors import SubmissionError
from ...core.ids import ids_apart
from ...data_tools.labels.voxel_layouts import known_grid
from ...geometry import OCC3D_GRID
from ..classes import OCC3D_NUSCENES
from .submission import VoxelFiles, sample_name

SPLIT_SAMPLES = {"train": 28130, "val": 6019, "test": 6008}
"""Keyframes of the nuScenes splits; the challenge's server takes the test split."""


def check_submission(
    path: str | os.PathLike[str],
    expected_tokens: Iterable[str] | None = None,
    num_classes: int = len(OCC3D_NUSCENES),
    num_samples: int | None = None,
    strict: bool = True,
) -> list[str]:
    """Problems as one line each; an empty list means valid.

    expected_tokens: sample tokens of the split; without them missing and foreign samples are not reported, but
    their number is checked: num_samples (see SPLIT_SAMPLES). strict: by the rules of the challenge's server; without,
    what can be read all the same is let through: arrays called ``pred``, .npy files, integers of other widths.
    Shapes and dtypes are read before the arrays, which are read only where those are right.
    Raises SubmissionError if the path cannot be opened at all.
    """
    found = VoxelFiles(path)
    problems = [f"{name}: {reason}" for name, reason in found.strange.items()]
    problems += [f"sample {token}: {count} files; keep one" for token, count in found.repeated.items()]
    names = set(found.tokens)
    if expected_tokens is not None:
        expected = {sample_name(token) for token in expected_tokens}
        problems += [apart] if (apart := ids_apart(names, expected)) else []
        problems += [f"sample {t}: no file; predict it" for t in sorted(expected - names)]
        problems += [f"sample {t}: not of this split; remove its file" for t in sorted(names - expected)]
    elif not names:
        problems.append("no .npz file at all; write one per sample")
    elif num_samples not in (None, len(names)):
        problems.append(f"{len(names)} samples, but the split has {num_samples}; predict every keyframe of it")
    for token in found.tokens:
        problems += faults(found, token, num_classes, strict)
    return problems


def faults(found: VoxelFiles, token: str, num_classes: int = len(OCC3D_NUSCENES), strict: bool = True) -> list[str]:
    """Problems of one sample's file; see ``check_submission``."""
    try:
        return [f"sample {token}: {problem}" for problem in _faults(found, token, num_classes, strict)]
    except SubmissionError as error:
        return [f"sample {token}: {error}"]


def _faults(found: VoxelFiles, token: str, num_classes: int, strict: bool) -> list[str]:
    array, header = found.header(token)
    problems = []
    if strict and array != "arr_0":
        problems.append(f"the array is called {array}; the server reads arr_0: numpy.savez_compressed(path, voxels)")
    if strict and found.name(token).endswith(".npy"):
        problems.append("is an .npy file; the server reads .npz: numpy.savez_compressed(path, voxels)")
    if header.shape != OCC3D_GRID.shape:
        known = known_grid(header.shape)
        wanted = f"it must be {list(OCC3D_GRID.shape)} of the ego frame"
        problems.append(f"shape {list(header.shape)}{known and f', {known}'}; {wanted}")
    if header.dtype.kind not in "iu" or (strict and header.dtype != np.uint8):
        problems.append(f"dtype {header.dtype}; write voxels.astype(numpy.uint8)")
    elif header.shape == OCC3D_GRID.shape:
        voxels = found.read(token)
        strange = voxels.min() if voxels.min() < 0 else voxels.max()
        if not 0 <= strange < num_classes:
            problems.append(f"class {strange}; classes are 0..{num_classes - 1}, the last is free")
    return problems
