"""Pure functions from one state dict to another: what released checkpoints need before they fit a model.

Sources: InternImage release (arXiv 2211.05778), classification/utils.py and detection backbones; BEVFormer v2 release
(arXiv 2211.10439). Written anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ...core.errors import CheckpointError
from ...core.weights.names import StateDict
from .variants import VARIANTS

CLASSIFICATION_PREFIXES = (
    "conv_head.",
    "head.",
    "dcnv3_head_x3.",
    "dcnv3_head_x4.",
    "clip_projector.",
    "fc_norm.",
    "meta_head_1.",
    "meta_head_2.",
    "meta_norm.",
    "meta_head.",
)
FIRST_BLOCK = "levels.0.blocks.0.norm1.0.weight"
CENTRE_TAP = 4  # of a 3x3 kernel's nine, whatever their order


def adapt_internimage(model: nn.Module, state: StateDict) -> tuple[StateDict, list[str]]:
    """Bring an InternImage checkpoint of another task to `model`'s keys, where that loses nothing.

    - Hugging Face's names of the branch scales become the released ones.
    - Without a classification head in the model, the checkpoint's is left out.
    - Branch scales that the checkpoint lacks (InternImage-T) are 1, which is exact.
    - A 9-tap checkpoint loses its centre taps for a model with `remove_center`.

    Returns:
        The new state dict and a note on each change.
    """
    notes = []
    wanted = model.state_dict()
    state = {re.sub(r"\.layer_scale([12])$", r".gamma\1", key): value for key, value in state.items()}
    if not any(key.startswith(CLASSIFICATION_PREFIXES) for key in wanted):
        surplus: tuple[str, ...] = CLASSIFICATION_PREFIXES
    else:
        surplus = () if "head.weight" in wanted else ("head.",)
    kept = {key: value for key, value in state.items() if not key.startswith(surplus)}
    if len(kept) < len(state):
        notes.append("left out the classification head")
    state = kept
    scales = [key for key in wanted if key.endswith((".gamma1", ".gamma2"))]
    # Only where the checkpoint has blocks but none of the scales: a lost key must stay an error.
    if scales and FIRST_BLOCK in state and not any(key in state for key in scales):
        state.update({key: torch.ones_like(wanted[key], device="cpu") for key in scales})
        notes.append("no branch scales gamma1, gamma2: they are 1")
    cut = 0
    for key, value in state.items():
        branch = re.search(r"\.dcn\.(offset|mask)\.(weight|bias)$", key)
        if branch and key in wanted and value.shape[0] * 8 == wanted[key].shape[0] * 9:
            state[key] = remove_centre_tap(value, 2 if branch[1] == "offset" else 1)
            cut += 1
    if cut:
        notes.append("removed the centre taps of offsets and masks")
    return state, notes


def remove_centre_tap(rows: Tensor, values_per_tap: int) -> Tensor:
    """Drop the centre tap of each group: [G * 9 * values_per_tap, ...] -> [G * 8 * values_per_tap, ...]."""
    taps = rows.unflatten(0, (-1, 9, values_per_tap))  # [G, 9, values, ...]
    return torch.cat([taps[:, :CENTRE_TAP], taps[:, CENTRE_TAP + 1 :]], 1).flatten(0, 2)


def read_class_rows(path: str | Path) -> Tensor:
    """Read a class map, one checkpoint row per line and target class (such as the release's map22kto1k.txt), [n] long.

    Raises:
        CheckpointError: if the file is missing or has a line that is not a number, naming it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
        return torch.tensor([int(line) for line in lines], dtype=torch.long)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a class map (one row number per line): {error}") from error


def describe_internimage(state: StateDict) -> str | None:
    """Say which InternImage a trunk's state dict belongs to, or None if it is none."""
    stem = state.get("patch_embed.conv2.weight")
    if stem is None:
        return None
    blocks = [0, 0, 0, 0]
    for key in state:
        if found := re.match(r"levels\.([0-3])\.blocks\.(\d+)\.", key):
            level, block = int(found[1]), int(found[2])
            blocks[level] = max(blocks[level], block + 1)
    size = f"channels {stem.shape[0]}, depths {'-'.join(map(str, blocks))}"
    for name, variant in VARIANTS.items():
        if (variant.channels, variant.depths) == (stem.shape[0], tuple(blocks)):
            return f"InternImage-{name} ({size})"
    return f"an InternImage with {size}"
