"""ONNX export: the written file computes what torch does, in standard operators or as nodes of custom domains."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from drivestack.backbone import DCNv3, InternImage
from drivestack.compat.ms_deform_attn import MSDeformAttn
from drivestack.export import onnx as onnx_export
from drivestack.export.onnx import ExportError, export_onnx
from drivestack.ops import dcnv3, dcnv4, ms_deform_attn, ms_deform_attn_fused, spatial_cross_attention

installed = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not installed, reason="pip install 'drivestack[export]' onnxruntime")
SHAPES = [(4, 5), (2, 3)]  # 26 tokens
GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Weights and inputs do not depend on which tests ran before: tolerances are tight."""
    torch.manual_seed(0)
    GENERATOR.manual_seed(0)


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR) * scale


class EveryOperator(nn.Module):
    """All operators and their options, once each; standard ones so that every plugin is used with `plain`."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain

    def forward(
        self,
        image: Tensor,
        packed: Tensor,
        value: Tensor,
        points: Tensor,
        offsets: Tensor,
        logits: Tensor,
        seen: Tensor,
    ) -> tuple[Tensor, ...]:
        offset, mask = packed.split((36, 18), -1)  # G = 2, K = 9
        outputs = [
            dcnv3(image, offset, mask, groups=2, mask_softmax=True),
            ms_deform_attn(value, SHAPES, points + 0.1 * offsets, logits),
            ms_deform_attn_fused(value, SHAPES, points[:, :, 0, :, :2], offsets, logits),
            ms_deform_attn_fused(
                value, [(4, 5)] * 2, points[:1, :, 0, :1], offsets, logits, level_mean=True, level_starts=(0, 6)
            ),
            spatial_cross_attention(
                torch.stack((value, 2 * value), 1), SHAPES, points[:, :, 0].transpose(1, 2), seen, offsets, logits
            ),
        ]
        if not self.plain:
            few, masks = packed[:, ::2, ::2, :32], packed[:, ::2, ::2, 32:48]  # G = 2, K = 8
            outputs.append(
                dcnv3(image, few, masks, groups=2, stride=2, padding=1, remove_center=True, offset_scale=0.5)
            )
            outputs.append(dcnv4(image, packed[:, :5, :8, :37], kernel_size=(3, 2), padding=(0, 0), groups=2))
        return tuple(outputs)


def inputs(batch: int) -> tuple[Tensor, ...]:
    """7 x 9 images of 8 channels; 6 queries, 2 heads, 2 levels, 3 points, 2 cameras."""
    return (
        normal(batch, 7, 9, 8),
        normal(batch, 7, 9, 54),
        normal(batch, 26, 2, 4),
        torch.rand(batch, 6, 2, 2, 3, 2, generator=GENERATOR),
        normal(batch, 6, 2, 2, 3, 2),
        normal(batch, 6, 2, 2, 3),
        torch.rand(batch, 2, 6, generator=GENERATOR) > 0.4,
    )


def run(program: torch.onnx.ONNXProgram | bytes, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    import onnxruntime

    content = program if isinstance(program, bytes) else program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content)
    feeds = {put.name: x.numpy() for put, x in zip(session.get_inputs(), arguments)}
    return [torch.from_numpy(x) for x in session.run(None, feeds)]


def operators(program: torch.onnx.ONNXProgram) -> dict[str, int]:
    """How often each operator occurs: "domain::name", standard ones without a domain."""
    counts: dict[str, int] = {}
    for node in program.model_proto.graph.node:
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return counts


def check(program: torch.onnx.ONNXProgram | bytes, model: nn.Module, *arguments: tuple[Tensor, ...]) -> None:
    for tensors in arguments:
        with torch.no_grad():
            expected = model(*tensors)
        expected = (expected,) if isinstance(expected, Tensor) else expected
        for ours, theirs in zip(run(program, tensors), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@needs_onnx
def test_written_out_around_grid_sample(tmp_path):
    model, arguments = EveryOperator().eval(), inputs(2)
    names = ["image", "packed", "value", "points", "offsets", "logits", "seen"]
    outputs = [f"out{i}" for i in range(7)]
    file = tmp_path / "new" / "operators.onnx"
    program = export_onnx(model, arguments, file, input_names=names, output_names=outputs)
    counts = operators(program)
    assert not [name for name in counts if "::" in name]
    assert counts["GridSample"] == 1 + 2 + 2 + 2 + 2 * 2 + 1 + 1
    check(file.read_bytes(), model, inputs(2))
    assert [put.name for put in program.model_proto.graph.input] == names
    assert [path.name for path in file.parent.iterdir()] == ["operators.onnx"]


@needs_onnx
def test_layer_for_any_number_and_size_of_images():
    model = DCNv3(8, group=2, stride=2, center_feature_scale=True).eval()
    nn.init.normal_(model.offset.weight, generator=GENERATOR)
    axes = {axis: torch.export.Dim.DYNAMIC for axis in range(3)}
    program = export_onnx(model, (normal(2, 6, 7, 8),), dynamic_shapes=(axes,))
    check(program, model, (normal(2, 6, 7, 8),), (normal(3, 9, 5, 8),))


def plugins() -> list[type]:
    """What the plugins are known to compute, by our operators, for ONNX's reference evaluator."""
    from onnx.reference.op_run import OpRun

    window = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")

    class TRTDCNv3(OpRun):
        op_domain = "mmdeploy"

        def _run(self, value, offset, mask, **a):
            assert a["im2col_step"] == 256
            assert a["group"] * a["group_channels"] == value.shape[3]
            tensors = [torch.tensor(x) for x in (value, offset, mask)]
            numbers = [a[name] for name in window]
            out = torch.ops.drivestack.dcnv3(*tensors, *numbers, a["group"], a["offset_scale"], False, False)
            return (out.numpy(),)

    class MultiscaleDeformableAttnPlugin_TRT(OpRun):
        op_domain = "trt"

        def _run(self, value, shapes, starts, locations, weights, plugin_version=None):
            assert plugin_version == "2"
            assert shapes.dtype == starts.dtype == "int32"
            total = 0
            for level, ((h, w), start) in enumerate(zip(shapes.tolist(), starts.tolist())):
                tokens = torch.tensor(value[:, start : start + h * w])
                at, by = (torch.tensor(x[:, :, :, level : level + 1]) for x in (locations, weights))
                total = total + ms_deform_attn(tokens, [(h, w)], at, by)
            return (total.unflatten(2, value.shape[2:]).numpy(),)

    def ours(name: str) -> type:
        schema = getattr(torch.ops.drivestack, name).default._schema.arguments

        def _run(self, *inputs, **attributes):
            tensors = iter(inputs)
            is_tensor = [str(argument.type) == "Tensor" for argument in schema]
            arguments = [
                torch.tensor(next(tensors)) if tensor else attributes[argument.name]
                for argument, tensor in zip(schema, is_tensor)
            ]
            return (getattr(torch.ops.drivestack, name)(*arguments).numpy(),)

        return type(name, (OpRun,), {"op_domain": "drivestack", "_run": _run})

    names = ("dcnv3", "ms_deform_attn", "ms_deform_attn_fused", "spatial_cross_attention")
    return [TRTDCNv3, MultiscaleDeformableAttnPlugin_TRT, *map(ours, names)]


@needs_onnx
@pytest.mark.parametrize(
    ("way", "nodes"),
    [
        ("tensorrt", {"mmdeploy::TRTDCNv3": 1, "trt::MultiscaleDeformableAttnPlugin_TRT": 5}),
        (
            "drivestack",
            {
                "drivestack::dcnv3": 3,
                "drivestack::ms_deform_attn": 1,
                "drivestack::ms_deform_attn_fused": 2,
                "drivestack::spatial_cross_attention": 1,
            },
        ),
    ],
)
def test_nodes_of_custom_domains(way, nodes):
    from onnx.reference import ReferenceEvaluator

    model, arguments = EveryOperator(plain=way == "tensorrt").eval(), inputs(1)
    program = export_onnx(model, arguments, operators_as=way)
    counts = operators(program)
    assert {name: count for name, count in counts.items() if "::" in name} == nodes
    assert "GridSample" not in counts
    evaluator = ReferenceEvaluator(program.model_proto, new_ops=plugins())
    feeds = {name: x.numpy() for name, x in zip(evaluator.input_names, arguments)}
    for ours, theirs in zip(evaluator.run(None, feeds), model(*arguments), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=2e-5, rtol=1e-4)


@needs_onnx
def test_internimage():
    model = InternImage(channels=8, depths=(1, 1, 1, 1), groups=(1, 1, 2, 2), out_indices=(0, 3)).eval()
    for layer in model.modules():
        if isinstance(layer, DCNv3):  # zero at the start
            nn.init.normal_(layer.offset.weight, generator=GENERATOR)
            nn.init.normal_(layer.mask.weight, generator=GENERATOR)
    image = normal(1, 3, 64, 96)
    program = export_onnx(model, (image,))
    assert operators(program)["GridSample"] == 4
    check(program, model, (image,))


@needs_onnx
def test_deformable_attention_layer_in_half_precision():
    model = MSDeformAttn(16, n_levels=2, n_heads=2, n_points=2).eval().half()
    arguments = (normal(1, 3, 16), torch.rand(1, 3, 2, 2, generator=GENERATOR), normal(1, 26, 16))
    arguments = tuple(x.half() for x in arguments)
    layer = Attached(model).eval()
    program = export_onnx(layer, arguments)
    (out,) = run(program, arguments)
    torch.testing.assert_close(out, layer(*arguments), atol=5e-3, rtol=5e-3)


class Attached(nn.Module):
    """An attention layer with the sizes of its maps."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, query: Tensor, points: Tensor, value: Tensor) -> Tensor:
        return self.attention(query, points, value, SHAPES)


def test_what_cannot_be_exported_says_why(monkeypatch):
    layer = DCNv3(8, group=2, stride=2).eval()
    x = normal(1, 6, 6, 8)
    with pytest.raises(ValueError, match="operators_as must be one of grid_sample"):
        export_onnx(layer, (x,), operators_as="plugin")
    with pytest.raises(ValueError, match="opset must be 18"):
        export_onnx(layer, (x,), opset=16)
    monkeypatch.setattr(onnx_export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"onnx and onnxscript: pip install 'drivestack\[export\]'"):
        export_onnx(layer, (x,))
    monkeypatch.setattr(onnx_export.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ExportError, match=r"call model.eval\(\)"):
        export_onnx(layer.train(), (x,))
    with pytest.raises(ExportError, match="TRTDCNv3 supports neither"):
        export_onnx(layer.eval(), (x,), operators_as="tensorrt")


def test_an_exported_program_keeps_the_operators(monkeypatch):
    monkeypatch.setenv("DRIVESTACK_OPS_BACKEND", "reference")
    exported = torch.export.export(DCNv3(8, group=2).eval(), (normal(1, 6, 6, 8),))
    assert "drivestack.dcnv3" in str(exported.graph)


@needs_onnx
def test_a_large_model_is_written_in_two_files_and_whole(tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnx_export, "LARGEST_FILE_BYTES", 0)
    layer, x = nn.Linear(64, 64).eval(), normal(2, 64)
    file = tmp_path / "new" / "model.onnx"
    (file.parent / ".model.onnx.drivestack-tmp").mkdir(parents=True)  # of a killed run
    export_onnx(layer, (x,), file)
    assert sorted(path.name for path in file.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), layer(x).detach(), atol=2e-5, rtol=1e-4)
