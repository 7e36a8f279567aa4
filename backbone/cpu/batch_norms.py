"""Which BatchNorms stand directly behind which convolutions, found in what modules compute and not in their names.

A forward is recorded by torch.fx with every child as one step. A pair is folded where the convolution's result goes to
the norm and nowhere else, in every recording, and where neither is used in another place. What cannot be recorded (it
branches on values), shared modules, hooks, adapters and norms in training mode are left alone: they stay right, a
little slower.
"""

from __future__ import annotations

import collections
import copy
import inspect
import itertools
from collections.abc import Iterator
from typing import cast

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .plain import is_plain

Pair = tuple[str, str]
"""Names of a convolution and of the norm behind it, from the root of the model."""
_PACKAGE = __name__.partition(".")[0]
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


class _Recorder(fx.Tracer):
    """Takes every child as one step, whatever it computes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _recordings(module: nn.Module) -> list[fx.Graph] | None:
    """Graphs of ``module``'s forward: with all arguments, and with its defaults; None where it cannot be recorded."""
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    try:
        return [_Recorder().trace(module, given) for given in ([None, defaults] if defaults else [None])]
    except Exception:  # the forward of any model, run on placeholders: whatever it raises, nothing is known about it
        return None


def _modules_used(graph: fx.Graph) -> Iterator[str]:
    """Names of the modules that are called, and of those whose weight is taken by itself."""
    for node in graph.nodes:
        if node.op == "call_module":
            yield node.target
        elif node.op == "get_attr":
            yield node.target.rpartition(".")[0]


def _pairs_of_graph(module: nn.Module, graph: fx.Graph) -> Iterator[Pair]:
    for node in graph.nodes:
        if node.op != "call_module" or len(node.users) != 1:
            continue
        (user,) = node.users
        if user.op != "call_module" or user.args != (node,) or user.kwargs:
            continue
        norm, name = module.get_submodule(user.target), user.target
        if is_plain(norm, nn.Sequential) and len(norm):  # a norm, then maybe another layout: layers.build_norm
            name += "." + next(iter(dict(norm.named_children())))
        yield node.target, name


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        is_plain(conv, nn.Conv2d)
        and is_plain(norm, nn.BatchNorm2d)
        and not norm.training
        and norm.running_mean is not None
        and norm.num_features == conv.out_channels
        and norm.running_mean.dtype == conv.weight.dtype
    )


class _Calls:
    """Who calls whom in a model, as far as it can be recorded."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.places = collections.Counter(id(module) for module in self.modules.values())
        self.pairs: list[Pair] = []
        self.uses: collections.Counter[str] = collections.Counter()
        """Calls of a module by its parent or modules further up."""
        self.unknown: set[str] = set()
        """Modules whose calls could not be recorded."""
        for path, module in self.modules.items():
            if not isinstance(module, (*_CONTAINERS, nn.BatchNorm2d)) and _has_batch_norm(module):
                self._record(path, module)

    def _record(self, path: str, module: nn.Module) -> None:
        prefix = f"{path}." if path else ""
        if is_plain(module, nn.Sequential):
            names = [prefix + name for name, _ in module.named_children()]
            self.pairs += itertools.pairwise(names)
            self.uses.update(names)
            return
        graphs = _recordings(module)
        if graphs is None:
            if type(module).__module__.partition(".")[0] != _PACKAGE:  # our own call their sequences as a whole
                self.unknown.add(path)
            return
        found = set.intersection(*(set(_pairs_of_graph(module, graph)) for graph in graphs))
        self.pairs += [(prefix + conv, prefix + norm) for conv, norm in sorted(found)]
        calls = [collections.Counter(_modules_used(graph)) for graph in graphs]
        self.uses.update({prefix + name: count for name, count in (calls[0] | calls[-1]).items()})

    def used_once(self, name: str) -> bool:
        """Whether a module stands in one place, is called once there, and not by anybody who could not be recorded."""
        above = name.rpartition(".")[0]
        if (
            self.uses[name] != 1
            or self.places[id(self.modules[name])] != 1
            or self.places[id(self.modules[above])] != 1
        ):
            return False
        while above and isinstance(self.modules[above], (nn.Sequential, *_CONTAINERS)):  # whose entries are accessible
            above = above.rpartition(".")[0]
        return above not in self.unknown


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def foldable_pairs(model: nn.Module) -> list[Pair]:
    """Convolutions and the BatchNorms that take their result, and nothing else does; ``model`` in evaluation mode."""
    # Recording runs forwards, which may keep what they compute: a copy with the same parameters takes that.
    calls = _Calls(copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}))
    return [
        (conv, norm)
        for conv, norm in calls.pairs
        if _foldable(calls.modules[conv], calls.modules[norm]) and calls.used_once(conv) and calls.used_once(norm)
    ]


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> int:
    """Fold BatchNorms into the convolutions before them, in place, see `foldable_pairs`; how many."""
    pairs = foldable_pairs(model)
    for conv, norm in pairs:
        layer = cast(nn.Conv2d, model.get_submodule(conv))
        model.set_submodule(conv, fuse_conv_bn_eval(layer, model.get_submodule(norm)))
        model.set_submodule(norm, nn.Identity())
    return len(pairs)
