"""Muon for matrices and AdamW for the rest: each as torch's own, groups by kind of layer, resumed to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from drivestack.core.errors import ConfigError
from drivestack.engine.checkpoints import read_checkpoint
from drivestack.engine.config import build_model, load_config
from drivestack.engine.muon import MuonAdamW, MuonConstructor, orthogonal
from drivestack.engine.optim import PrecisionOptimWrapper
from drivestack.engine.train import train

OPTIMIZER = dict(type=MuonAdamW, lr=0.02, weight_decay=0.1)


def wrapper(model: nn.Module, **options: Any) -> PrecisionOptimWrapper:
    config = dict(type=PrecisionOptimWrapper, optimizer=dict(OPTIMIZER))
    return MuonConstructor(config, options or None)(model)


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 64), (2, 64, 16)])
def test_singular_values_move_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = torch.linalg.svdvals(orthogonal(matrices, steps=6).float())
    assert found.min() > 0.4 and found.max() < 1.3
    # the same directions: U and V of the matrix diagonalise its answer
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    middle = u.mT @ orthogonal(matrices).float() @ vh.mT
    assert (middle - torch.diag_embed(middle.diagonal(dim1=1, dim2=2))).abs().max() < 0.06


def test_steps_are_those_of_torch() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24), nn.LayerNorm(24))
    twin = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24), nn.LayerNorm(24))
    twin.load_state_dict(net.state_dict())
    ours = wrapper(net).optimizer
    matrices = [twin[0].weight, twin[2].weight]
    theirs = [
        Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        AdamW([p for p in twin.parameters() if p.ndim < 2], lr=0.02, weight_decay=0.1),
    ]
    for _ in range(4):
        x = torch.randn(8, 24)
        for model, optimizers in ((net, [ours]), (twin, theirs)):
            (model(x) ** 3).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for (name, found), expected in zip(net.named_parameters(), twin.parameters()):
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0, msg=name)
        assert not torch.equal(found, torch.zeros_like(found))


def test_groups_by_kind_of_layer() -> None:
    model = build_model(load_config("perception_tiny_synthetic"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = wrapper(model).optimizer.param_groups
    by_muon = {names[id(p)] for group in groups if group["muon"] for p in group["params"]}
    rest = {names[id(p)] for group in groups if not group["muon"] for p in group["params"]}
    assert "bev_map.encoder.layers.0.ffns.0.layers.1.weight" in by_muon
    assert "img_backbone.levels.0.blocks.0.mlp.fc1.weight" in by_muon
    assert {
        "bev_map.bev_embedding.weight",
        "boxes.head.query_embedding.weight",
        "img_neck.lateral_convs.0.conv.weight",
    } < rest
    assert not any("norm" in name or name.endswith("bias") for name in by_muon)
    assert by_muon | rest == {name for name, p in model.named_parameters() if p.requires_grad} and not by_muon & rest
    fewer = wrapper(model, adamw=["img_backbone.", "bev_map.encoder."]).optimizer.param_groups
    assert {names[id(p)] for g in fewer if g["muon"] for p in g["params"]} == {
        name for name in by_muon if not name.startswith(("img_backbone.", "bev_map.encoder."))
    }
    flat = wrapper(model, decay_one_dim=False).optimizer.param_groups
    assert all(p.ndim < 2 for group in flat if group["weight_decay"] == 0 for p in group["params"])


def test_names_as_set_on_the_command_line(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(1, hidden=32)
    config.optim_wrapper.update(constructor="MuonConstructor", optimizer=dict(OPTIMIZER, type="MuonAdamW"))
    state = read_checkpoint(train(config, tmp_path))["optimizer"]["state"]
    assert any("momentum_buffer" in own for own in state.values())


def test_resumed_equals_undisturbed_bitwise(toy: Any, tmp_path: Path) -> None:
    def config(iterations: int) -> Any:
        found = toy.toy_config(iterations, hidden=32)
        found.optim_wrapper.update(constructor=MuonConstructor, optimizer=dict(OPTIMIZER, lr=1e-2))
        return found

    whole = read_checkpoint(train(config(12), tmp_path / "whole"))
    train(config(5), tmp_path / "parts")
    parts = read_checkpoint(train(config(12), tmp_path / "parts", resume="auto"))
    assert all(torch.equal(parts["state_dict"][name], value) for name, value in whole["state_dict"].items())
    buffers = [s["momentum_buffer"] for s in whole["optimizer"]["state"].values() if "momentum_buffer" in s]
    assert [tuple(buffer.shape) for buffer in buffers] == [(32, 6)]


def test_wrong_options_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 16))
    with pytest.raises(ConfigError, match="unknown decay; known are adamw, decay_one_dim"):
        wrapper(model, decay=1)
    with pytest.raises(ConfigError, match="no parameter has 'head' in its name"):
        wrapper(model, adamw=["head"])
    with pytest.raises(ConfigError, match="MuonConstructor needs MuonAdamW"):
        MuonConstructor(dict(type=PrecisionOptimWrapper, optimizer=dict(type=AdamW, lr=1.0)))
