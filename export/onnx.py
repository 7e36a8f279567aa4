"""ONNX files of models that use our operators: `export_onnx`.

ONNX has none of the operators of this package. An exported file holds them in one of three ways, `operators_as`:

    grid_sample  written out in standard operators around GridSample: runs wherever ONNX runs
    tensorrt     as the nodes that TensorRT plugins are known for: mmdeploy's TRTDCNv3 for DCNv3, NVIDIA's own
                 MultiscaleDeformableAttnPlugin_TRT (version 2) for all attention
    drivestack   as one node each in the domain `drivestack`, with the names, inputs and arguments of the operators in
                 torch (see registration.py), for a runtime that brings kernels of its own

Exporting needs the packages of `pip install 'drivestack[export]'`.

Shapes: N or B batch, G groups, K taps, D channels of a group or head, S value tokens, M heads, Q queries, L levels,
P points, R reference points of a query.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import DrivestackError
from ..core.files import atomic_path, check_writable, sync_files, write_errors
from ..core.folders import file_lock
from ..ops.dispatch import registration  # noqa: F401  (defines the operators)
from ..ops.reference import compute_dtype, output_size

PACKAGES = ("onnx", "onnxscript")
LARGEST_FILE_BYTES = 1_900_000_000  # protobuf stops at 2 GiB
Level = tuple[int, int, int]
"""Height, width, first token."""


class ExportError(DrivestackError, RuntimeError):
    """The model cannot be written as ONNX; the message says why and what to do."""


# The same sums for every way. `attend` gets value [B, S, M, D], levels, per level locations [B, Q, M, P, 2] in [0, 1],
# and weights [B, Q, M, L, P], and gives [B, Q, M * D].

Attend = Callable[[Tensor, Sequence[Level], Sequence[Tensor], Tensor], Tensor]


def _grid_sum(images: Tensor, grid: Tensor, weights: Tensor) -> Tensor:
    """Sum over points of weights [n, Q, P] * bilinear samples of images [n, D, H, W] at [n, Q, P, 2]: [n, D, Q]."""
    samples = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (samples * weights.unsqueeze(1)).sum(-1)


def _attend_by_grid_sample(
    value: Tensor, levels: Sequence[Level], locations: Sequence[Tensor], weights: Tensor
) -> Tensor:
    b, _, heads, channels = value.shape
    out: Tensor | None = None
    for level, ((height, width, start), points) in enumerate(zip(levels, locations)):
        tokens = value[:, start : start + height * width].permute(0, 2, 3, 1)  # [B, M, D, H * W]
        images = tokens.reshape(b * heads, channels, height, width)
        grid = (2 * points - 1).transpose(1, 2).flatten(0, 1)  # [B * M, Q, P, 2]
        summed = _grid_sum(images, grid, weights[:, :, :, level].transpose(1, 2).flatten(0, 1))
        out = summed if out is None else out + summed  # [B * M, D, Q]
    assert out is not None  # there are levels
    return out.reshape(b, heads * channels, weights.shape[1]).transpose(1, 2)


def _attend_by_plugin(value: Tensor, levels: Sequence[Level], locations: Sequence[Tensor], weights: Tensor) -> Tensor:
    b, _, heads, channels = value.shape

    def integers(numbers: Sequence[int]) -> Tensor:
        return torch.cat([torch.full((1,), n, dtype=torch.int32, device=value.device) for n in numbers])

    shapes = integers([side for height, width, _ in levels for side in (height, width)]).reshape(-1, 2)
    inputs = (value, shapes, integers([start for *_, start in levels]), torch.stack(tuple(locations), 3), weights)
    shape = (b, weights.shape[1], heads, channels)
    return _node("trt::MultiscaleDeformableAttnPlugin_TRT", inputs, {"plugin_version": "2"}, value, shape).flatten(2)


def _triples(levels: Sequence[int]) -> list[Level]:
    return list(zip(levels[::3], levels[1::3], levels[2::3]))


def _ms_deform_attn(attend: Attend, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    dtype = compute_dtype(value, locations, weights)
    levels, start = [], 0
    for height, width in zip(shapes[::2], shapes[1::2]):
        levels.append((height, width, start))
        start = start + height * width
    return attend(value.to(dtype), levels, locations.to(dtype).unbind(3), weights.to(dtype)).to(value.dtype)


def _locations(levels: Sequence[Level], reference: Tensor, offsets: Tensor) -> list[Tensor]:
    """Per level where to sample, [B, Q, M, P, 2] in [0, 1]: reference [B or 1, Q, L or 1, R, 2] + offsets in cells."""
    points, turns = offsets.shape[4], reference.shape[3]
    turn = torch.arange(points, device=offsets.device) % turns  # point p takes reference point p % R
    locations = []
    for level, (height, width, _) in enumerate(levels):
        at = reference[:, :, min(level, reference.shape[2] - 1)].unsqueeze(2)  # [B or 1, Q, 1, R, 2]
        at = at if turns == 1 else at.index_select(3, turn)
        x = at[..., 0] + offsets[:, :, :, level, :, 0] / width
        y = at[..., 1] + offsets[:, :, :, level, :, 1] / height
        locations.append(torch.stack((x, y), -1))
    return locations


def _ms_deform_attn_fused(
    attend: Attend,
    value: Tensor,
    levels: Sequence[int],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    level_mean: bool,
) -> Tensor:
    dtype = compute_dtype(value, reference, offsets, logits)
    logits = logits.to(dtype)
    if level_mean:
        weights = logits.softmax(-1) / logits.shape[3]
    else:
        weights = logits.flatten(3).softmax(-1).reshape(logits.shape)
    locations = _locations(_triples(levels), reference.to(dtype), offsets.to(dtype))
    return attend(value.to(dtype), _triples(levels), locations, weights).to(value.dtype)


def _spatial_cross_attention(
    attend: Attend,
    value: Tensor,
    levels: Sequence[int],
    reference: Tensor,
    visible: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    dtype = compute_dtype(value, reference, offsets, logits)
    total: Tensor | None = None
    for camera in range(value.shape[1]):
        camera_value, at = value[:, camera].to(dtype), reference[:, camera].unsqueeze(2)
        seen = _ms_deform_attn_fused(attend, camera_value, levels, at, offsets, logits, False)
        seen = torch.where(visible[:, camera].unsqueeze(-1), seen, 0.0)
        total = seen if total is None else total + seen
    assert total is not None  # there are cameras
    cameras = visible.sum(1).clamp(min=1).unsqueeze(-1)  # [B, Q, 1]
    return (total / cameras).to(value.dtype)


def _dcnv3_by_grid_sample(value: Tensor, offset: Tensor, mask: Tensor, *window: Any) -> Tensor:
    kernel, stride, padding, dilation = (window[i : i + 2] for i in (0, 2, 4, 6))
    groups, scale, remove_center, mask_softmax = window[8:]
    n, height, width, channels = value.shape
    out_h, out_w = output_size((height, width), kernel, stride, padding, dilation)
    dtype, device = compute_dtype(value, offset, mask), value.device
    tap = torch.arange(kernel[0] * kernel[1] - bool(remove_center), device=device)  # column by column
    if remove_center:
        tap = tap + (tap >= (kernel[1] // 2) * kernel[0] + kernel[0] // 2)
    taps = tap.shape[0]

    def axis(which: int, size: int, out: int, step: Tensor) -> Tensor:
        """Normalised coordinates [out, K] of the regular grid: pixel i of n lies at (2 i + 1) / n - 1."""
        centre = dilation[which] * (kernel[which] - 1) // 2
        anchor = torch.arange(out, dtype=dtype, device=device) * stride[which] + (centre - padding[which])
        steps = (step * dilation[which] - centre).to(dtype) * scale
        return (2 * (anchor[:, None] + steps) + 1) / size - 1

    grid_y = axis(0, height, out_h, tap % kernel[0])[None, :, None, None]  # [1, Ho, 1, 1, K]
    grid_x = axis(1, width, out_w, tap // kernel[0])[None, None, :, None]
    offset = offset.to(dtype).reshape(n, out_h, out_w, groups, taps, 2)
    x, y = grid_x + offset[..., 0] * (2 * scale / width), grid_y + offset[..., 1] * (2 * scale / height)
    grid = torch.stack((x, y), -1).permute(0, 3, 1, 2, 4, 5)  # [N, G, Ho, Wo, K, 2]
    weights = mask.to(dtype).reshape(n, out_h * out_w, groups, taps)
    weights = (weights.softmax(-1) if mask_softmax else weights).transpose(1, 2)  # [N, G, Ho * Wo, K]
    images = value.to(dtype).permute(0, 3, 1, 2).reshape(n * groups, channels // groups, height, width)
    out = _grid_sum(images, grid.flatten(2, 3).flatten(0, 1), weights.flatten(0, 1))  # [N * G, D, Ho * Wo]
    return out.reshape(n, channels, out_h, out_w).permute(0, 2, 3, 1).to(value.dtype)


def _node(name: str, inputs: Sequence[Tensor], attributes: Mapping[str, Any], like: Tensor, shape: Sequence) -> Tensor:
    """One node of a custom domain, "domain::operator"."""
    return torch.onnx.ops.symbolic(name, inputs, dict(attributes), dtype=like.dtype, shape=shape, version=1)


_WINDOW = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")


def _window_output(value: Tensor, window: Sequence[Any]) -> tuple[int, int, int, int]:
    n, height, width, channels = value.shape
    kernel, stride, padding, dilation = ((window[i], window[i + 1]) for i in (0, 2, 4, 6))
    return n, *output_size((height, width), kernel, stride, padding, dilation), channels


def _dcnv3_by_plugin(value: Tensor, offset: Tensor, mask: Tensor, *window: Any) -> Tensor:
    groups, scale, remove_center, mask_softmax = window[8:]
    if remove_center or tuple(window[2:4]) != (1, 1):
        raise ExportError(
            "mmdeploy's TRTDCNv3 supports neither remove_center nor another stride than 1: export with "
            "operators_as='grid_sample' or 'drivestack'"
        )
    shape = _window_output(value, window)
    taps = (*shape[:3], groups, window[0] * window[1])
    if mask_softmax:
        mask = mask.reshape(taps).softmax(-1)
    attributes = dict(zip(_WINDOW, window)) | {
        "group": groups,
        "group_channels": value.shape[3] // groups,
        "offset_scale": float(scale),
        "im2col_step": 256,
    }
    inputs = (value, offset.reshape(*shape[:3], -1), mask.reshape(*shape[:3], -1))
    return _node("mmdeploy::TRTDCNv3", inputs, attributes, value, shape)


def _dcnv3_node(value: Tensor, offset: Tensor, mask: Tensor, *window: Any) -> Tensor:
    names = (*_WINDOW, "groups", "offset_scale", "remove_center", "mask_softmax")
    attributes = {name: float(x) if name == "offset_scale" else int(x) for name, x in zip(names, window)}
    return _node("drivestack::dcnv3", (value, offset, mask), attributes, value, _window_output(value, window))


def _attention_node(name: str, sizes: str) -> Callable[..., Tensor]:
    """The operator as a node: its tensors as inputs, its sizes (and `level_mean`) as attributes."""

    def decompose(value: Tensor, levels: Sequence[int], *others: Any) -> Tensor:
        tensors = [x for x in others if isinstance(x, Tensor)]
        attributes: dict[str, Any] = {sizes: list(levels)}
        if len(tensors) < len(others):
            attributes["level_mean"] = int(others[-1])
        shape = (value.shape[0], tensors[-1].shape[1], value.shape[-2] * value.shape[-1])
        return _node(f"drivestack::{name}", (value, *tensors), attributes, value, shape)

    return decompose


def _attentions(attend: Attend) -> dict[str, Callable[..., Tensor]]:
    return {
        "ms_deform_attn": lambda *arguments: _ms_deform_attn(attend, *arguments),
        "ms_deform_attn_fused": lambda *arguments: _ms_deform_attn_fused(attend, *arguments),
        "spatial_cross_attention": lambda *arguments: _spatial_cross_attention(attend, *arguments),
    }


_DECOMPOSITIONS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "grid_sample": {"dcnv3": _dcnv3_by_grid_sample, **_attentions(_attend_by_grid_sample)},
    "tensorrt": {"dcnv3": _dcnv3_by_plugin, **_attentions(_attend_by_plugin)},
    "drivestack": {
        "dcnv3": _dcnv3_node,
        "ms_deform_attn": _attention_node("ms_deform_attn", "spatial_shapes"),
        "ms_deform_attn_fused": _attention_node("ms_deform_attn_fused", "levels"),
        "spatial_cross_attention": _attention_node("spatial_cross_attention", "levels"),
    },
}


def export_onnx(
    model: nn.Module,
    args: tuple[Any, ...],
    file: str | os.PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    operators_as: str = "grid_sample",
    opset: int = 20,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> torch.onnx.ONNXProgram:
    """Write a model with our operators as ONNX, by `torch.export` and torch's exporter. No compiled kernels needed.

    Args:
        model: in evaluation mode. args, kwargs: inputs to trace it with, any values of the right shapes.
        file: where to write; None: only return the program. Above 2 GB the weights go to a second file, FILE.data.
        operators_as: "grid_sample", "tensorrt" or "drivestack", see above. Half-precision operators compute in float32
            as they do in torch. With GridSample, NaN coordinates are the runtime's business.
        opset: of the standard operators, 18 or higher.
        dynamic_shapes: as in `torch.export.export`, for instance ({0: torch.export.Dim("batch")},) for an argument.
        input_names, output_names: names in the file.

    Returns:
        The program; its `model_proto` is the ONNX model.

    Raises:
        ConfigError: a BEV model is traced with cameras that have lenses; exported models project pinholes.
        ExportError: packages are missing, the model is in training mode, or the plugins cannot do what it needs.
        OutputError: `file` cannot be written.
        ValueError: unknown `operators_as`, or an opset below 18.
    """
    if operators_as not in _DECOMPOSITIONS:
        raise ValueError(f"operators_as must be one of {', '.join(_DECOMPOSITIONS)}; got {operators_as!r}")
    if opset < 18:
        raise ValueError(f"opset must be 18 or higher (torch's exporter writes nothing older), got {opset}")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"exporting to ONNX needs {' and '.join(missing)}: pip install 'drivestack[export]' "
            f"(or pip install {' '.join(missing)})"
        )
    if file is not None:
        check_writable(file)
    if model.training:
        raise ExportError("the model is in training mode: call model.eval() before exporting it")
    with torch.no_grad():
        exported = torch.export.export(model, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
        decompositions = {
            getattr(torch.ops.drivestack, name).default: function
            for name, function in _DECOMPOSITIONS[operators_as].items()
        }
        exported = exported.run_decompositions(decompositions)
        program = torch.onnx.export(
            exported,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=input_names,
            output_names=output_names,
        )
    assert program is not None  # as it is with dynamo=True
    if file is not None:
        tensors = [*exported.state_dict.values(), *(c for c in exported.constants.values() if isinstance(c, Tensor))]
        if sum(t.nbytes for t in tensors) > LARGEST_FILE_BYTES:
            _save_in_two(program, Path(file))
        else:
            with atomic_path(file) as temporary:
                program.save(temporary, external_data=False)
    return program


def _save_in_two(program: torch.onnx.ONNXProgram, file: Path) -> None:
    """Model and weights, FILE.data, which is put in place first; neither is ever there by halves."""
    with file_lock(file, "ONNX export"):
        folder = file.absolute().with_name(f".{file.name}.drivestack-tmp")
        shutil.rmtree(folder, ignore_errors=True)  # of a killed run
        folder.mkdir()
        try:
            with write_errors(file):
                program.save(folder / file.name, external_data=True)
                parts = sorted(folder.iterdir(), key=lambda part: part.name == file.name)
                sync_files(parts)
                for part in parts:
                    part.replace(file.absolute().with_name(part.name))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
