"""A copy of a model that only predicts: norms folded into convolutions, weights packed for the processor.

The numbers stay the same up to rounding. What is done here could not be done inside the modules themselves: nothing
tells them whether their weights will change again.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..internimage.layers import DepthwiseBranch
from .linear import Linear, PackedConv2d, PackedLinear

Model = TypeVar("Model", bound=nn.Module)


def prepare_inference(model: Model) -> Model:
    """A copy of ``model`` in evaluation mode that runs faster; the model itself and its weights do not change.

    - BatchNorms that follow a convolution are folded into it, InternImage's branch scales into the layer before them.
    - Layers over the same input run as one (DCNv3's offsets and masks, the offsets and weights of an attention).
    - On CPUs, weights are packed for oneDNN on the first call, once per dtype: under autocast without a cast per call.

    The copy follows later changes of the model's weights in no way, has other state-dict keys and takes about twice the
    memory of its weights on a CPU. It compiles and exports like the model.
    """
    # what is made under inference_mode has no version counter, by which the packed layers notice changed weights
    with torch.inference_mode(False), torch.no_grad():
        model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in list(model.modules()):
            fold_batch_norms(module)
        for module in list(model.modules()):
            for change in ("fold_scales", "join_projections"):
                if hasattr(module, change):
                    getattr(module, change)()
        _replace(model)
    return model


def fold_batch_norms(parent: nn.Module) -> int:
    """Fold BatchNorms among a module's direct children into the convolutions before them, in place; how many.

    A BatchNorm belongs to the convolution before it in an ``nn.Sequential``, and to ``conv<i>`` if it is called
    ``bn<i>``. Both must be in evaluation mode.
    """
    children = dict(parent.named_children())
    if isinstance(parent, nn.Sequential):
        pairs = list(itertools.pairwise(children))
    else:
        pairs = [(name.replace("bn", "conv", 1), name) for name in children if name.startswith("bn")]
    folded = 0
    for conv_name, norm_name in pairs:
        conv, holder, key = children.get(conv_name), parent, norm_name
        norm = children[norm_name]
        if isinstance(norm, nn.Sequential) and len(norm):  # a norm, then maybe another layout: layers.build_norm
            holder, key, norm = norm, "0", norm[0]
        if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(holder, key, nn.Identity())
            folded += 1
    return folded


def _replace(parent: nn.Module) -> None:
    packers: dict[type[nn.Module], Callable[..., nn.Module]] = {
        nn.Linear: PackedLinear,
        Linear: PackedLinear,
        nn.Conv2d: PackedConv2d,
    }
    if isinstance(parent, DepthwiseBranch) and parent.one_pass:
        return  # an operator of its own
    for name, child in list(parent.named_children()):
        packer = packers.get(type(child))
        if packer is None or (isinstance(child, nn.Conv2d) and child.padding_mode != "zeros"):
            _replace(child)
        elif not isinstance(child.padding if isinstance(child, nn.Conv2d) else (), str):
            setattr(parent, name, packer(child))
