"""The adapters compile without graph breaks and export, with lists of sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drivestack.compat.dcnv3 import DCNv3
from drivestack.compat.dcnv4 import DCNv4
from drivestack.compat.ms_deform_attn import MultiScaleDeformableAttention


class Adapters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiScaleDeformableAttention(16, 4, 2, 2, batch_first=True)
        self.v3 = DCNv3(16, group=2, stride=2)
        self.v4 = DCNv4(16, group=2, stride=2)

    def forward(self, query: Tensor, boxes: Tensor, value: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        attended = self.attention(query, value=value, reference_points=boxes, spatial_shapes=[(4, 5), (2, 3)])
        return attended, self.v3(image), self.v4(image.flatten(1, 2), tuple(image.shape[1:3]))


def test_compile_without_graph_breaks_and_export():
    torch.manual_seed(0)
    model = Adapters().eval()
    inputs = torch.randn(2, 5, 16), torch.rand(2, 5, 2, 4), torch.randn(2, 26, 16), torch.randn(2, 6, 7, 16)
    want = model(*inputs)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(found, want)
    sum(x.sum() for x in found).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    exported = torch.export.export(model, inputs)
    targets = [str(node.target) for node in exported.graph.nodes]
    assert sum(target.startswith("drivestack.") for target in targets) == 3
    torch.testing.assert_close(exported.module()(*inputs), want)
