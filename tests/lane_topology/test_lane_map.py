"""The dense branch of the lane head."""

from __future__ import annotations

import torch
from torch import nn

from drivestack.lane_topology.lane_map import SampleNorm


def test_a_sample_is_normalised_as_alone_in_training_and_in_answers() -> None:
    norm = SampleNorm(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    maps = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 4 + 3
    trained = norm(maps)
    answered = norm.eval()(maps)
    torch.testing.assert_close(answered, trained, rtol=0, atol=0)
    torch.testing.assert_close(norm(maps[1:]), answered[1:])
    torch.testing.assert_close(norm.running_mean, torch.zeros(3))  # nothing was counted

    reference = nn.BatchNorm2d(3)
    reference.load_state_dict(norm.state_dict())  # and the names are BatchNorm's
    torch.testing.assert_close(reference(maps[:1]), trained[:1])
