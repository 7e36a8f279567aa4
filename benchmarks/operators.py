"""Times the C++ operators against plain PyTorch (the grid_sample formulation), side by side in one process.

    python benchmarks/operators.py [--threads 2] [--rounds 15] [--dtype float32] [--json FILE]

Every row is checked against the float64 twin. Ours and the peer then take turns, and the medians are compared:
trust the ratios, not the milliseconds. Shapes: the stages of InternImage-T at 224 x 224, and the attention calls of
BEVFormer (batch 1).
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from drivestack.ops import backend_report, dcnv3, ms_deform_attn, softmax_rows

TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}
# side, channels, groups of InternImage-T's four stages
DCNV3_SHAPES = ((56, 64, 4), (28, 128, 8), (14, 256, 16), (7, 512, 32))
# name, batch, queries, heads, head channels, points, levels
MSDA_SHAPES = (
    ("decoder 900q, 100x100", 1, 900, 8, 32, 4, ((100, 100),)),
    ("BEV self-attention 50x50", 2, 2500, 8, 32, 4, ((50, 50),)),
    ("cameras to 50x50 BEV, 4 levels", 6, 500, 8, 32, 8, ((32, 88), (16, 44), (8, 22), (4, 11))),
    ("tiny model, 4096q, D=8", 1, 4096, 8, 8, 4, ((64, 64),)),
)


@dataclass
class Row:
    op: str
    shape: str
    dtype: str
    device: str
    pass_: str
    """forward or forward+backward; `pass` in the JSON file."""
    ours_ms: float
    peer: str
    peer_ms: float
    ratio: float
    """Peer's median over ours."""
    ratio_of_best: float
    """Peer's quickest round over ours: steadier on a busy machine."""
    error: float


@dataclass
class Case:
    op: str
    shape: str
    inputs: tuple[Tensor, ...]  # float64
    ours: Callable[..., Tensor]
    peer: Callable[..., Tensor]
    twin: Callable[..., Tensor]
    peer_name: str = "PyTorch grid_sample"


def grid_sample_dcnv3(value: Tensor, offset: Tensor, mask: Tensor, groups: int) -> Tensor:
    """DCNv3 (3 x 3, stride 1, padding 1) as one grid_sample over all taps. value [N, H, W, C]."""
    n, height, width, channels = value.shape
    k = mask.shape[-1] // groups
    tap = torch.arange(-1.0, 2.0, dtype=value.dtype)
    taps = torch.stack(torch.meshgrid(tap, tap, indexing="ij"), -1).view(k, 2)  # (x, y), x in the outer loop
    x = torch.arange(width, dtype=value.dtype).view(1, width, 1, 1)
    y = torch.arange(height, dtype=value.dtype).view(height, 1, 1, 1)
    offset = offset.view(n, height, width, groups, k, 2)
    x = (x + taps[:, 0] + offset[..., 0] + 0.5) * (2.0 / width) - 1.0  # [N, H, W, G, K]
    y = (y + taps[:, 1] + offset[..., 1] + 0.5) * (2.0 / height) - 1.0
    grid = torch.stack((x, y), -1).permute(0, 3, 1, 2, 4, 5).reshape(n * groups, height * width, k, 2)
    image = value.permute(0, 3, 1, 2).reshape(n * groups, channels // groups, height, width)
    sample = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)  # [NG, D, HW, K]
    weight = mask.view(n, height * width, groups, k).transpose(1, 2).reshape(n * groups, 1, height * width, k)
    out = (sample * weight).sum(-1)  # [NG, D, HW]
    return out.view(n, channels, height * width).transpose(1, 2).reshape(n, height, width, channels).contiguous()


def grid_sample_msda(value: Tensor, shapes: tuple, locations: Tensor, weights: Tensor) -> Tensor:
    """Multi-scale deformable attention as one grid_sample per level. value [B, S, M, D]."""
    b, _, m, d = value.shape
    q = locations.shape[1]
    levels = value.split([h * w for h, w in shapes], dim=1)
    grids = 2 * locations - 1
    samples = []
    for i, (height, width) in enumerate(shapes):
        image = levels[i].permute(0, 2, 3, 1).reshape(b * m, d, height, width)
        grid = grids[:, :, :, i].transpose(1, 2).flatten(0, 1)  # [BM, Q, P, 2]
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weight = weights.transpose(1, 2).reshape(b * m, 1, q, -1)
    out = (torch.cat(samples, -1) * weight).sum(-1)  # [BM, D, Q]
    return out.view(b, m * d, q).transpose(1, 2).contiguous()


def cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)
    rand = lambda *size: torch.rand(*size, generator=generator, dtype=torch.float64)
    for side, channels, groups in DCNV3_SHAPES:
        size = (1, side, side)
        mask = randn(*size, groups, 9).softmax(-1).view(*size, groups * 9)
        inputs = (randn(*size, channels), 0.7 * randn(*size, groups * 18), mask)
        yield Case(
            "dcnv3",
            f"{side}x{side}x{channels} G={groups}",
            inputs,
            lambda v, o, m, g=groups: dcnv3(v, o, m, groups=g, backend="cpp"),
            lambda v, o, m, g=groups: grid_sample_dcnv3(v, o, m, g),
            lambda v, o, m, g=groups: dcnv3(v, o, m, groups=g, backend="reference"),
        )
    for name, b, q, m, d, p, shapes in MSDA_SHAPES:
        levels = len(shapes)
        weights = randn(b, q, m, levels * p).softmax(-1).view(b, q, m, levels, p)
        # Points lie around a reference point per query, queries in reading order, as in a BEV grid.
        side = int(q**0.5)
        ids = torch.arange(q)
        anchor = torch.stack((ids % side, ids // side), -1).double().add(0.5).div(side + 1)
        size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64).view(levels, 1, 2)
        locations = anchor.view(1, q, 1, 1, 1, 2) + 2 * randn(b, q, m, levels, p, 2) / size
        inputs = (randn(b, sum(h * w for h, w in shapes), m, d) * rand(1), locations, weights)
        yield Case(
            "ms_deform_attn",
            name,
            inputs,
            lambda v, lo, w, s=shapes: ms_deform_attn(v, s, lo, w, backend="cpp"),
            lambda v, lo, w, s=shapes: grid_sample_msda(v, s, lo, w),
            lambda v, lo, w, s=shapes: ms_deform_attn(v, s, lo, w, backend="reference"),
        )

    taps = randn(1, 56, 56, 4, 9)
    plain = lambda x: x.softmax(-1)
    yield Case(
        "softmax_rows",
        "56x56 G=4 K=9",
        (taps,),
        lambda x: softmax_rows(x, backend="cpp"),
        plain,
        plain,
        "torch.softmax",
    )


def results(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], backward: bool) -> tuple[Tensor, ...]:
    if not backward:
        with torch.no_grad():
            return (function(*inputs),)
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    out = function(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, out.detach())


def error(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Mean difference over mean magnitude, worst tensor. (Gradients to locations jump at pixel borders, where float32
    may round to the other side of a border: a largest difference would report that as an error.)"""
    return max(float((f.double() - e).abs().mean() / e.abs().mean()) for f, e in zip(found, expected))


def measure(case: Case, dtype: torch.dtype, backward: bool, rounds: int) -> Row:
    inputs = tuple(t.to(dtype) for t in case.inputs)
    exact = results(case.twin, tuple(t.double() for t in inputs), backward)
    worst = error(results(case.ours, inputs, backward), exact)
    if worst > TOLERANCE[dtype]:
        raise SystemExit(f"error: {case.op} {case.shape} {dtype}: off by {worst:.1e} (relative); not timed")
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(rounds + 2):
        for name in ("ours", "peer") if turn % 2 else ("peer", "ours"):
            function = case.ours if name == "ours" else case.peer
            start = time.perf_counter()
            results(function, inputs, backward)
            if turn >= 2:  # two rounds to warm up
                times[name].append((time.perf_counter() - start) * 1e3)
    ours, peer = statistics.median(times["ours"]), statistics.median(times["peer"])
    best = min(times["peer"]) / min(times["ours"])
    label = "forward+backward" if backward else "forward"
    name = str(dtype).removeprefix("torch.")
    return Row(case.op, case.shape, name, "cpu", label, ours, case.peer_name, peer, peer / ours, best, worst)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--json", metavar="FILE", help="write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = backend_report()
    if report["reason"]:
        raise SystemExit(f"error: {report['reason']}; {report['fix']}")
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"torch {torch.__version__}, {args.threads} threads, kernels {report['instruction_set']}, "
        f"{platform.machine()}, load {load}, median of {args.rounds} interleaved rounds, batch 1"
    )
    print(
        f"{'operator':15} {'shape':32} {'pass':17} {'ours ms':>9} {'peer ms':>9} "
        f"{'ratio':>7} {'of best':>7} {'error':>8}"
    )
    rows = []
    for case in cases():
        for backward in (False, True):
            row = measure(case, getattr(torch, args.dtype), backward, args.rounds)
            rows.append(row)
            print(
                f"{row.op:15} {row.shape:32} {row.pass_:17} {row.ours_ms:9.3f} {row.peer_ms:9.3f} {row.ratio:6.1f}x "
                f"{row.ratio_of_best:6.1f}x {row.error:8.1e}"
            )
    if args.json:
        data = [{key.rstrip("_"): value for key, value in asdict(row).items()} for row in rows]
        with open(args.json, "w") as file:
            json.dump(data, file, indent=1)


if __name__ == "__main__":
    main()
