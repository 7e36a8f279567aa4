"""State dicts under published keys: there and back, inside other modules, in copies, with strict loading."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from drivestack.core.weights.published_keys import keep_published_keys, published_name, renamed


class Map(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Embedding(2, 3)
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


class Model(nn.Module):
    """Built of a map and a head, published as one head with a transformer in it."""

    KEYS = {
        "map.": "head.transformer.",
        "map.queries.": "head.queries.",
        "box.": "head.",
        "box.decoder.": "head.transformer.decoder.",
    }

    def __init__(self) -> None:
        super().__init__()
        self.map = Map()
        self.box = nn.ModuleDict({"decoder": nn.Linear(3, 2), "score": nn.Linear(2, 1)})
        self.plain = nn.Linear(1, 1)
        keep_published_keys(self, self.KEYS)


PUBLISHED = {
    "head.queries.weight",
    *(f"head.transformer.encoder.0.{name}" for name in ("weight", "bias")),
    *(f"head.transformer.encoder.1.{n}" for n in ("weight", "bias", "running_mean", "running_var")),
    "head.transformer.encoder.1.num_batches_tracked",
    *(f"head.transformer.decoder.{name}" for name in ("weight", "bias")),
    *(f"head.score.{name}" for name in ("weight", "bias")),
    *(f"plain.{name}" for name in ("weight", "bias")),
}


def randomized(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return module


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_state_dict_has_the_published_keys_and_comes_back():
    source, target = randomized(Model(), 0), randomized(Model(), 1)
    state = source.state_dict()
    assert set(state) == PUBLISHED and not same(source, target)
    untouched = dict(state)
    assert target.load_state_dict(state).missing_keys == []
    assert same(source, target)
    assert set(state) == set(untouched)  # the caller's state dict is left as it is


def test_names_of_parameters_are_those_of_their_keys():
    model = Model()
    state = model.state_dict(keep_vars=True)
    for name, parameter in model.named_parameters():
        assert state[published_name(model, name)] is parameter
    assert published_name(nn.Linear(1, 1), "weight") == "weight"


def test_the_longest_prefix_wins():
    prefixes = {"a.": "x.", "a.b.": "y.", "": "z."}
    assert [renamed(key, prefixes) for key in ("a.c", "a.b.c", "b.c")] == ["x.c", "y.c", "z.b.c"]
    assert renamed("b.c", {"a.": "x."}) == "b.c"


def test_inside_another_module_and_twice():
    def outer(seed: int) -> nn.ModuleDict:
        return randomized(nn.ModuleDict({"first": Model(), "second": Model(), "map": nn.Linear(1, 1)}), seed)

    source, target = outer(0), outer(1)
    state = source.state_dict()
    expected = {f"{part}.{key}" for part in ("first", "second") for key in PUBLISHED} | {"map.weight", "map.bias"}
    assert set(state) == expected
    target.load_state_dict(state)
    assert same(source, target)


def test_a_copy_keeps_its_keys_and_its_own_weights():
    model = randomized(Model(), 0)
    other = randomized(copy.deepcopy(model), 1)
    assert set(other.state_dict()) == PUBLISHED and not same(model, other)
    name = "head.transformer.decoder.weight"
    assert torch.equal(other.state_dict()[name], other.box["decoder"].weight)
    assert torch.equal(model.state_dict()[name], model.box["decoder"].weight)
    other.load_state_dict(model.state_dict())
    assert same(model, other)


def test_strict_loading_is_strict():
    model = Model()
    state = model.state_dict()
    score = state.pop("head.score.weight")
    with pytest.raises(RuntimeError, match=r"Missing key.*\"head\.score\.weight\""):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*nowhere"):
        model.load_state_dict({**state, "head.score.weight": score, "nowhere.weight": score})
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({**state, "head.score.weight": score[:, :1]})


def test_missing_and_unexpected_keys_are_named_as_published():
    model = nn.ModuleDict({"first": Model(), "second": Model()})
    state = model.state_dict()
    del state["second.head.transformer.encoder.0.bias"], state["first.head.queries.weight"]
    state["second.head.transformer.surplus"] = torch.zeros(1)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) == {"second.head.transformer.encoder.0.bias", "first.head.queries.weight"}
    assert unexpected == ["second.head.transformer.surplus"]


def test_two_parts_of_one_published_name_are_refused():
    with pytest.raises(ValueError, match="two prefixes have one published name"):
        keep_published_keys(nn.Linear(1, 1), {"a.": "x.", "b.": "x."})
