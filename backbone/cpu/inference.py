"""A copy of a model that only predicts: norms folded into convolutions, weights packed for the processor.

The numbers stay the same up to rounding. What is done here could not be done inside the modules themselves: nothing
tells them whether their weights will change again.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..internimage.layers import DepthwiseBranch
from .batch_norms import fold_batch_norms
from .linear import PackedConv2d, PackedLinear
from .plain import is_plain

Model = TypeVar("Model", bound=nn.Module)


def prepare_inference(model: Model) -> Model:
    """A copy of ``model`` in evaluation mode that runs faster; the model itself and its weights do not change.

    - BatchNorms that follow a convolution are folded into it, InternImage's branch scales into the layer before them.
    - Layers over the same input run as one (DCNv3's offsets and masks, the offsets and weights of an attention).
    - On CPUs, weights are packed for oneDNN on the first call, once per dtype: under autocast without a cast per call.

    Only plain modules are changed, of which the order is certain: layers with hooks, adapters or parametrisations,
    pruned, quantised and shared ones stay what they are, and work. Quantise or adapt a model before it is prepared:
    what looks for `nn.Linear` later finds none.

    The copy follows later changes of the model's weights in no way, has other state-dict keys and takes about twice the
    memory of its weights on a CPU. It compiles and exports like the model.
    """
    # what is made under inference_mode has no version counter, by which the packed layers notice changed weights
    with torch.inference_mode(False), torch.no_grad():
        model = copy.deepcopy(model, _computed_tensors(model)).eval().requires_grad_(False)
        fold_batch_norms(model)
        shared = _shared_modules(model)
        for module in list(model.modules()):
            for change in ("fold_scales", "join_projections"):
                if hasattr(module, change) and not any(id(part) in shared for part in module.modules()):
                    getattr(module, change)()
        _replace(model)
    return model


def _computed_tensors(model: nn.Module) -> dict[int, Any]:
    """Copies of what deepcopy refuses: tensors computed from parameters (pruning, weight norm), by identity."""
    attributes = (value for module in model.modules() for value in vars(module).values())
    return {id(x): x.detach().clone() for x in attributes if isinstance(x, Tensor) and not x.is_leaf}


def _shared_modules(model: nn.Module) -> set[int]:
    """Identities of the modules that stand in several places of the model."""
    counts = collections.Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    return {identity for identity, count in counts.items() if count > 1}


def _replace(parent: nn.Module) -> None:
    packers: dict[type[nn.Module], Callable[..., nn.Module]] = {nn.Linear: PackedLinear, nn.Conv2d: PackedConv2d}
    if isinstance(parent, DepthwiseBranch) and parent.one_pass:
        return  # an operator of its own
    for name, child in list(parent.named_children()):
        packer = packers.get(type(child))
        if packer is None:
            _replace(child)
        elif is_plain(child, type(child)) and (packer is PackedLinear or _zero_padded(child)):
            setattr(parent, name, packer(child))


def _zero_padded(conv: nn.Module) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
