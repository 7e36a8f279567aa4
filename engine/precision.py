"""The numbers in which a model computes, by name."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch

from ..core.errors import ConfigError
from ..core.once import warn_once

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"


def chosen_precision(name: str, device: torch.device | str) -> str:
    """``name``, a key of PRECISIONS; of "auto" "bf16" where the device computes bfloat16 by itself, else "fp32".

    Where it does not, bfloat16 is emulated: on a CPU without AVX-512 a training step of a tiny model takes seven times
    as long as in float32 (docs/LOG.md). Who asks for it there gets it, with a warning. Raises ConfigError for another
    name.
    """
    kind = torch.device(device).type
    if name == AUTO:
        return "bf16" if _has_bfloat16(kind) else "fp32"
    if name not in PRECISIONS:
        raise ConfigError(f"unknown precision {name!r}: choose from {', '.join((*PRECISIONS, AUTO))}")
    if name == "bf16" and not _has_bfloat16(kind):
        warn_once(
            f"this {kind.upper()} has no bfloat16 arithmetic of its own, so bf16 is several times slower than fp32"
        )
    return name


@cache
def _has_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return kind == "cpu" and torch.backends.mkldnn.is_available() and supported is not None and supported()


def precision_context(precision: str, device: torch.device) -> Any:
    """Autocast by name, to be entered. Raises ConfigError for an unknown one."""
    dtype = PRECISIONS[chosen_precision(precision, device)]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
