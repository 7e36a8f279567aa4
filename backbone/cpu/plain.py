"""Which calls may be computed by a quicker way: those where it is provably the same, asked of the module itself.

A fused operator replaces several calls of modules. Nobody must notice: hooks (features, Grad-CAM, counters), adapters
(LoRA), pruning, weight norm, parametrisations, quantised or sharded weights, other classes and activations all go the
ordinary way, in which a module calls its children with one argument.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module

_GLOBAL_HOOKS = (
    nn_module._global_forward_pre_hooks,
    nn_module._global_forward_hooks,
    nn_module._global_backward_pre_hooks,
    nn_module._global_backward_hooks,
)
_OWN_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_PLAIN_TENSORS = (nn.Parameter, Tensor)


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether calling ``module`` does what its class, exactly one of ``kinds``, does with plain tensors, and no more.

    False with hooks of its own, a ``forward`` or a weight put onto the instance (accelerate, pruning, weight norm),
    parametrisations, and parameters of another tensor class (quantised, distributed, lazy). It takes half a
    microsecond; of hooks for all modules it says nothing, `is_ordinary` does.
    """
    if type(module) not in kinds:  # parametrised and sharded modules get a class of their own
        return False
    state = module.__dict__
    for name in _OWN_HOOKS:
        if state[name]:
            return False
    if "forward" in state or "weight" in state or "bias" in state:
        return False
    for parameter in state["_parameters"].values():  # a generator would take longer to set up than to run
        if parameter is not None and type(parameter) not in _PLAIN_TENSORS:
            return False
    return True


def is_exact_gelu(module: nn.Module) -> bool:
    """Whether a module is a plain GELU, computed by the error function and not approximated."""
    return is_plain(module, nn.GELU) and module.approximate == "none"


def is_ordinary(x: Tensor) -> bool:
    """True for a plain, non-empty CPU tensor while nothing follows the calls or operators.

    What follows them: torch.compile, export and tracing, torch.func and forward-mode differentiation, hooks for all
    modules, and dispatch modes such as torch.utils.flop_counter's.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cpu
        and x.numel() > 0
        and not torch.jit.is_tracing()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not any(_GLOBAL_HOOKS)
    )


def inference_on_cpu(x: Tensor) -> bool:
    """Whether operators without a gradient may take this input."""
    return not torch.is_grad_enabled() and is_ordinary(x)
