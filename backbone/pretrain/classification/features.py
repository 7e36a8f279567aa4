"""What layers of a classifier put out for images, by the layers' names; to a file that any program reads."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ....core.errors import ConfigError
from ....core.files import atomic_path
from .batch import ClassBatch
from .model import Classifier, network_of

FORMATS = (".npz", ".safetensors")


def layer_features(model: nn.Module, batch: ClassBatch | Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of the named layers, by name, on the CPU, of a model in eval mode.

    layers: names as in ``network.named_modules()``, such as "levels.2.blocks.17", "levels.3", "conv_head" or "head";
    "" is the whole network's output. A layer that puts out several tensors gives "name.0", "name.1", ... .
    batch: of a ClassDataset, or images [B, 3, H, W]. InternImage's inner maps are [B, H, W, C].

    Raises ConfigError for a layer that the network has not, or that did not run.
    """
    network = network_of(model)
    modules = dict(network.named_modules())
    for name in layers:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=3) or [key for key, _ in network.named_children()]
            raise ConfigError(f"layer {name!r}: the network has none of this name; near it: {', '.join(near)}")
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            found[name] = output.detach().cpu().clone()
        elif isinstance(output, (list, tuple)):
            for i, part in enumerate(output):
                keep(f"{name}.{i}", part)

    def keep_as(name: str) -> Any:
        return lambda module, inputs, output: keep(name, output)

    with ExitStack() as stack, torch.no_grad():
        for name in dict.fromkeys(layers):
            stack.callback(modules[name].register_forward_hook(keep_as(name)).remove)
        images = batch.images if isinstance(batch, ClassBatch) else batch
        if isinstance(model, Classifier) and isinstance(batch, ClassBatch):
            model.logits(batch)
        else:
            network(images)
    if silent := [name for name in layers if not any(key == name or key.startswith(f"{name}.") for key in found)]:
        raise ConfigError(f"layer {silent[0]!r}: it did not run by itself; name the layer around it, or one inside")
    return found


def save_features(features: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write features to ``path``, .npz (NumPy) or .safetensors, atomically. Raises ConfigError for another suffix."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: features are written as {' or '.join(FORMATS)}; choose one by the file's suffix")
    tensors = {name or "output": value.detach().cpu().contiguous() for name, value in features.items()}
    with atomic_path(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, **{name: value.float().numpy() for name, value in tensors.items()})
        else:
            save_file(tensors, temporary)
    return path
