"""Operators within torch: counted, and registered once although their modules are loaded again."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from drivestack.backbone import InternImage, prepare_inference
from drivestack.ops import dcnv3, ms_deform_attn, ms_deform_attn_fused, spatial_cross_attention
from drivestack.ops.dispatch.library import define
from drivestack.ops.norm import depthwise_norm


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def dcnv3_call() -> torch.Tensor:
    value, offset, mask = torch.randn(2, 5, 6, 8), torch.randn(2, 5, 6, 36), torch.randn(2, 5, 6, 18)
    return dcnv3(value.requires_grad_(), offset.requires_grad_(), mask.requires_grad_(), groups=2)


def attention_call() -> torch.Tensor:
    weights = torch.rand(2, 5, 3, 1, 4).requires_grad_()
    return ms_deform_attn(torch.randn(2, 12, 3, 7).requires_grad_(), [(3, 4)], torch.rand(2, 5, 3, 1, 4, 2), weights)


def fused_call() -> torch.Tensor:
    value, offsets, logits = torch.randn(2, 12, 3, 7), torch.randn(2, 5, 3, 1, 4, 2), torch.randn(2, 5, 3, 1, 4)
    return ms_deform_attn_fused(value.requires_grad_(), [(3, 4)], torch.rand(2, 5, 1, 1, 2), offsets, logits)


def cameras_call() -> torch.Tensor:
    value, offsets, logits = torch.randn(2, 6, 12, 3, 7), torch.randn(2, 5, 3, 1, 4, 2), torch.randn(2, 5, 3, 1, 4)
    visible = torch.rand(2, 6, 5) > 0.5
    points = torch.rand(2, 6, 5, 1, 2)
    return spatial_cross_attention(value.requires_grad_(), [(3, 4)], points, visible, offsets, logits)


@pytest.mark.parametrize(
    ("call", "samples"),
    [
        (dcnv3_call, 2 * 5 * 6 * 9 * 8),  # positions, taps, channels
        (attention_call, 2 * 5 * 4 * 3 * 7),  # queries, points, channels
        (fused_call, 2 * 5 * 4 * 3 * 7),
        (cameras_call, 6 * 2 * 5 * 4 * 3 * 7),
    ],
)
def test_operations_are_counted(call, samples):
    with torch.no_grad():
        assert counted(call) == 10 * samples
    assert counted(call) == 10 * samples
    assert counted(lambda: call().sum().backward()) == 30 * samples


def test_depthwise_norm_counts_as_its_convolution():
    x, kernel, per_channel = torch.randn(1, 6, 6, 4), torch.randn(4, 1, 3, 3), torch.ones(4)
    with torch.no_grad():
        run = lambda: depthwise_norm(x, kernel, per_channel, per_channel, per_channel, 1e-6, padding=1)
        assert counted(run) == 2 * 6 * 6 * 4 * 9


def test_models_count_the_same_in_every_mode():
    model = InternImage(channels=8, depths=(1, 1, 1, 1), groups=(1, 2, 2, 2)).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        alone = counted(lambda: model(images))
        assert counted(lambda: prepare_inference(model)(images)) == alone
    assert counted(lambda: model(images)) == alone
    layers = [2 * m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert alone > 5 * sum(layers)  # at 25 positions on average and more; DCNv3 is in it


def test_another_schema_is_refused():
    with pytest.raises(RuntimeError, match=r"dcnv3 is .* start a new process"):
        define("dcnv3", "(Tensor x) -> Tensor")


RELOAD = """
import importlib, sys, torch
import drivestack.backbone, drivestack.bev.bevformer_v2, drivestack.data_tools.readers.registry
from drivestack.data_tools.readers.registry import find_reader
find_reader("nuscenes")
names = [name for name in sys.modules if name.startswith("drivestack")]
for name in names:
    importlib.reload(sys.modules[name])
importlib.reload(drivestack.data_tools.readers.registry).find_reader("nuscenes")
for name in [name for name in sys.modules if name.startswith("drivestack.ops")]:
    del sys.modules[name]  # as a deep reload does
from drivestack.ops import ms_deform_attn
x = torch.randn(1, 4, 1, 8, requires_grad=True)
ms_deform_attn(x, [(2, 2)], torch.rand(1, 3, 1, 1, 2, 2), torch.rand(1, 3, 1, 1, 2)).sum().backward()
from drivestack.core.registries import MODELS
fpn = MODELS.build(dict(type="FPN", in_channels=[4], out_channels=4, num_outs=1))
assert type(fpn) is sys.modules["drivestack.backbone.fpn"].FPN and x.grad.abs().sum() > 0
print(len(names))
"""


def test_modules_can_be_loaded_again():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RELOAD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60
