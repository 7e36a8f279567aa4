"""How far the operators' results and gradients are from exact ones, for every operator, dtype and device.

    python benchmarks/errors.py                      CPU, and CUDA where a GPU is visible; a minute on 2 cores
    python benchmarks/errors.py --json errors.json --markdown

Exact: the PyTorch reference in float64 on the same numbers (inputs are rounded to the dtype first, so that rounding
them is no error of the operator). The error of a tensor is its largest difference over the largest magnitude in it; the
table reports the worst of three seeds. Gradients to offsets and locations jump where a sampling point crosses a pixel
border, and float32 may see it on the other side: all points keep 1/8 of a pixel away from borders. The JSON rows also
have the error of the reference in the same dtype (float32 arithmetic, rounded at the end).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from drivestack.ops import (
    backend_report,
    dcnv3,
    dcnv4,
    ms_deform_attn,
    ms_deform_attn_fused,
    packed_width,
    spatial_cross_attention,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LEVELS = ((16, 44), (8, 22), (4, 11))
TOKENS = sum(h * w for h, w in LEVELS)


def between_borders(positions: Tensor) -> Tensor:
    """Positions in pixels, moved to odd multiples of 1/8, which every dtype holds up to 16 pixels."""
    return (positions * 4).floor() / 4 + 1 / 8


def dcnv3_inputs(softmax: bool) -> tuple[Callable, dict[str, Tensor]]:
    offset = between_borders(1.5 * torch.randn(2, 28, 28, 4 * 18))
    weights = torch.randn(2, 28, 28, 4 * 9)
    tensors = {"value": torch.randn(2, 28, 28, 64), "offset": offset, "mask": weights}
    if not softmax:
        tensors["mask"] = weights.unflatten(-1, (4, 9)).softmax(-1).flatten(-2)
    return lambda *t, backend: dcnv3(*t, groups=4, mask_softmax=softmax, backend=backend), tensors


def dcnv4_inputs() -> tuple[Callable, dict[str, Tensor]]:
    packed = torch.randn(2, 28, 28, packed_width(4))
    offsets = packed[..., :108].unflatten(-1, (4, 27))[..., :18]
    offsets.copy_(between_borders(1.5 * offsets))
    tensors = {"value": torch.randn(2, 28, 28, 64), "offset_mask": packed}
    return lambda *t, backend: dcnv4(*t, groups=4, backend=backend), tensors


def queries(count: int) -> dict[str, Tensor]:
    return {
        "offsets": between_borders(2 * torch.randn(2, count, 8, len(LEVELS), 4, 2)),
        "logits": torch.randn(2, count, 8, len(LEVELS), 4),
    }


def centres(*shape: int) -> Tensor:
    """Reference points (x, y) on corners between pixels of the coarsest level, hence of all."""
    height, width = LEVELS[-1]
    steps = torch.rand(*shape, 2) * torch.tensor([width, height])
    return steps.floor() / torch.tensor([width, height]) + torch.tensor([0.5 / width, 0.5 / height])


def ms_deform_attn_inputs() -> tuple[Callable, dict[str, Tensor]]:
    given = queries(300)
    size = torch.tensor([(w, h) for h, w in LEVELS]).view(len(LEVELS), 1, 2)
    tensors = {
        "value": torch.randn(2, TOKENS, 8, 32),
        "locations": centres(2, 300, 1, 1, 1) + given["offsets"] / size,
        "weights": given["logits"].flatten(3).softmax(-1).view(given["logits"].shape),
    }
    return lambda v, *t, backend: ms_deform_attn(v, LEVELS, *t, backend=backend), tensors


def fused_inputs(level_mean: bool) -> tuple[Callable, dict[str, Tensor]]:
    tensors = {"value": torch.randn(2, TOKENS, 8, 32), "reference_points": centres(2, 300, 1, 2), **queries(300)}
    call = lambda v, *t, backend: ms_deform_attn_fused(v, LEVELS, *t, level_mean=level_mean, backend=backend)
    return call, tensors


def cross_inputs() -> tuple[Callable, dict[str, Tensor]]:
    tensors = {"value": torch.randn(2, 3, TOKENS, 8, 32), "reference_points": centres(2, 3, 200, 4)}
    tensors |= {"visible": torch.rand(2, 3, 200) > 0.6, **queries(200)}
    return lambda v, *t, backend: spatial_cross_attention(v, LEVELS, *t, backend=backend), tensors


OPERATORS: dict[str, Callable[[], tuple[Callable, dict[str, Tensor]]]] = {
    "dcnv3": lambda: dcnv3_inputs(False),
    "dcnv3, softmax inside": lambda: dcnv3_inputs(True),
    "dcnv4": dcnv4_inputs,
    "ms_deform_attn": ms_deform_attn_inputs,
    "ms_deform_attn_fused": lambda: fused_inputs(False),
    "ms_deform_attn_fused, level mean": lambda: fused_inputs(True),
    "spatial_cross_attention": cross_inputs,
}
COORDINATES = ("locations", "weights", "reference_points")  # float32 beside half-precision values


def run(call: Callable, tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """Result and gradients, by name."""
    inputs = {name: t.detach().clone() for name, t in tensors.items()}
    fixed = ("visible", "reference_points") if "visible" in tensors else ()
    leaves = {name: t.requires_grad_() for name, t in inputs.items() if name not in fixed}
    out = call(*inputs.values(), backend=backend)
    grad_out = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=torch.float64).view(out.shape)
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out.bfloat16().to(out.dtype))  # exact in every dtype
    return {"result": out.detach(), **{f"to {name}": g for name, g in zip(leaves, grads)}}


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.cpu().double() - exact).abs().max() / exact.abs().max()).item()


def rows_of(name: str, device: str, dtype: torch.dtype, seeds: int) -> list[dict]:
    worst: dict[tuple[str, str], float] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        call, tensors = OPERATORS[name]()
        for key, t in tensors.items():
            if t.is_floating_point():
                narrow = torch.float32 if key in COORDINATES and dtype.itemsize == 2 else dtype
                tensors[key] = t.to(narrow)
        doubles = {key: t.double() if t.is_floating_point() else t for key, t in tensors.items()}
        exact = run(call, doubles, "reference")
        given = {key: t.to(device) for key, t in tensors.items()}
        for who, backend in (("kernel", "cpp"), ("reference", "reference")):
            for key, found in run(call, given, backend).items():
                worst[who, key] = max(worst.get((who, key), 0.0), error(found, exact[key]))
    gradients = [key for who, key in worst if who == "kernel" and key != "result"]
    return [
        {
            "op": name,
            "device": device,
            "dtype": str(dtype).removeprefix("torch."),
            "pass": "forward" if key == "result" else "backward",
            "tensor": key,
            "error": worst["kernel", key],
            "reference_error": worst["reference", key],
        }
        for key in ("result", *gradients)
    ]


def table(rows: list[dict], markdown: bool) -> str:
    """One line per operator, device and tensor, one column per dtype."""
    errors: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        errors.setdefault((row["op"], row["device"], row["tensor"]), {})[row["dtype"]] = row["error"]
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    lines = [("operator", "device", "tensor", *names)]
    lines += [(*key, *(f"{by_dtype[name]:.1e}" for name in names)) for key, by_dtype in errors.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in lines]
    if markdown:
        padded.insert(1, " | ".join("-" * w for w in widths))
        padded = [f"| {line} |" for line in padded]
    return "\n".join(padded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a list of objects")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--only", default="", help="operators whose name holds this")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    report = backend_report()
    print(
        f"torch {torch.__version__}, CPU kernels: {report['instruction_set']}, CUDA: {report['cuda']['architectures']}"
    )
    rows = []
    for name in (n for n in OPERATORS if args.only in n):
        for device in devices:
            for dtype in DTYPES:
                rows += rows_of(name, device, dtype, args.seeds)
    print(table(rows, args.markdown))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
