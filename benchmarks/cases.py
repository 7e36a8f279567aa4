"""The calls that `operators.py` times: real shapes of InternImage, BEVFormer and Deformable DETR, synthetic numbers.

A kind of call has one layout of tensors; ours and every peer take them alike: `function(*tensors, **fixed)`.

    kind                     tensors that get gradients                               fixed
    dcnv3                    value, offset, mask                                      groups
    dcnv3_softmax            the same, mask holds logits                              groups
    dcnv4                    value, packed offsets and masks                          groups
    ms_deform_attn           value, locations, weights                                shapes
    ms_deform_attn_fused     value, offsets, logits                                   shapes, reference, level_mean
    spatial_cross_attention  value, offsets, logits                                   shapes, reference, visible
    spatial_cross_attention_whole  value, query, weight and bias of offsets and of logits      as above

Shapes: N batch or cameras, H W image, G groups, K = 9 taps; B batch, S tokens of all levels, M heads, D channels of a
head, Q queries, L levels, P points, R reference points of a query.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drivestack.ops import dcnv3, dcnv4, ms_deform_attn, ms_deform_attn_fused, spatial_cross_attention

Call = tuple[tuple[Tensor, ...], dict[str, Any]]
Shapes = list[tuple[int, int]]

# channels and groups of stage 1; both double from stage to stage, height and width halve
INTERNIMAGE = {"T": (64, 4), "B": (112, 7), "XL": (192, 12), "G": (512, 16)}
LEVELS_V2 = [(80, 200), (40, 100), (20, 50), (10, 25)]
LEVELS_BASE = [(116, 200), (58, 100), (29, 50), (15, 25)]
LEVELS_DETR = [(100, 134), (50, 67), (25, 34), (13, 17)]
# side of the BEV map, camera image (height, width), scale of the 1600-pixel camera, rows cut off above, levels
CROSS_ATTENTION = {
    "tiny": (50, (480, 800), 0.5, 0, [(15, 25)]),
    "small": (150, (736, 1280), 0.8, 0, [(23, 40)]),
    "v2": (200, (640, 1600), 1.0, 260, LEVELS_V2),
    "base": (200, (928, 1600), 1.0, 0, LEVELS_BASE),
}
HEADS, HEAD_CHANNELS = 8, 32

# --- a camera rig -----------------------------------------------------------------------------------------------------

# heading in degrees (left is positive), position forward and left in metres, focal length in pixels at width 1600
RIG = ((0, 1.7, 0.0, 1260), (55, 1.5, 0.5, 1260), (-55, 1.5, -0.5, 1260), (180, 0.0, 0.0, 810))
RIG += ((110, 1.0, 0.5, 1260), (-110, 1.0, -0.5, 1260))
CAMERA_HEIGHT, LIDAR_HEIGHT, RANGE = 1.5, 1.84, 51.2  # metres
PILLAR = (-4.5, -13 / 6, 1 / 6, 2.5)  # heights of a pillar's points in the lidar frame, metres


def project_pillars(bev: int, image: tuple[int, int], scale: float, cut: int) -> tuple[Tensor, Tensor]:
    """Where six nuScenes-like cameras see the pillars of a bev x bev map.

    Returns reference points [6, Q, 4, 2], (x, y) as fractions of the image, and which pillars are seen [6, Q].
    """
    centre = (torch.arange(bev) + 0.5) / bev * 2 * RANGE - RANGE
    y, x, z = torch.meshgrid(centre, centre, torch.tensor(PILLAR) + LIDAR_HEIGHT, indexing="ij")
    points, seen = [], []
    for heading, forward, left, focal in RIG:
        cos, sin = math.cos(math.radians(heading)), math.sin(math.radians(heading))
        depth = (x - forward) * cos + (y - left) * sin
        right = (x - forward) * sin - (y - left) * cos
        reach = focal * scale / depth.clamp(min=1e-5)
        u = (right * reach + 800 * scale) / image[1]
        v = ((CAMERA_HEIGHT - z) * reach + 450 * scale - cut) / image[0]
        inside = (depth > 1e-5) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
        points.append(torch.stack((u, v), -1).flatten(0, 1))
        seen.append(inside.flatten(0, 1).any(-1))
    return torch.stack(points), torch.stack(seen)


# --- inputs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """How the sampled points scatter."""

    uniform: bool = False
    """Anywhere in the image, the worst case for caches; else close to where trained networks look."""
    seed: int = 0

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def offsets(self, generator: torch.Generator, reference: Tensor, shape: tuple[int, ...], shapes: Shapes) -> Tensor:
        """Offsets in cells, `shape` [..., M, L, P, 2], around reference points that broadcast against it."""
        if not self.uniform:
            return 2 * torch.randn(shape, generator=generator)
        return (torch.rand(shape, generator=generator) - reference) * level_sizes(shapes)


def level_sizes(shapes: Shapes, **options: Any) -> Tensor:
    """(width, height) of each level [L, 1, 2]."""
    return torch.tensor([(float(w), float(h)) for h, w in shapes], **options)[:, None]


def dcnv3_inputs(law: Law, size: tuple[int, ...], softmax: bool) -> Call:
    """`size`: (batch, height, width, channels, groups)."""
    generator = law.generator()
    batch, height, width, channels, groups = size
    size = (batch, height, width)
    value = torch.randn(*size, channels, generator=generator)
    if law.uniform:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        anywhere = torch.rand(*size, groups * 9, 2, generator=generator) * torch.tensor([width, height])
        offset = (anywhere - torch.stack((x, y), -1)[..., None, :]).flatten(-2)
    else:
        offset = 0.7 * torch.randn(*size, groups * 18, generator=generator)
    mask = torch.randn(*size, groups, 9, generator=generator)
    mask = (mask if softmax else mask.softmax(-1)).flatten(-2)
    return (value, offset, mask), {"groups": groups}


def dcnv4_inputs(law: Law, size: tuple[int, ...]) -> Call:
    """Per group 18 offsets and 9 weights, padded at the end to a multiple of 8."""
    (value, offset, mask), _ = dcnv3_inputs(law, size, softmax=False)
    layout, groups = size[:3], size[4]
    packed = torch.cat((offset.view(*layout, groups, 18), mask.view(*layout, groups, 9)), -1).flatten(-2)
    return (value, F.pad(packed, (0, -packed.shape[-1] % 8))), {"groups": groups}


def attention_inputs(law: Law, reference: Tensor, shapes: Shapes, points: int, level_mean: bool = False) -> Call:
    """Reference points [B, Q, R, 2], the same for all levels. The kind is ms_deform_attn_fused."""
    generator = law.generator()
    batch, queries, levels = reference.shape[0], reference.shape[1], len(shapes)
    layout = (batch, queries, HEADS, levels, points)
    value = torch.randn(batch, sum(h * w for h, w in shapes), HEADS, HEAD_CHANNELS, generator=generator)
    spread = reference.repeat(1, 1, points // reference.shape[2], 1)[:, :, None, None]  # [B, Q, 1, 1, P, 2]
    offsets = law.offsets(generator, spread, (*layout, 2), shapes)
    logits = torch.randn(layout, generator=generator)
    fixed = {"shapes": shapes, "reference": reference[:, :, None], "level_mean": level_mean}
    return (value, offsets, logits), fixed


def as_locations(call: Call) -> Call:
    """The same attention as ms_deform_attn gets it: normalised locations, weights after the softmax."""
    (value, offsets, logits), fixed = call
    points = logits.shape[-1] // fixed["reference"].shape[3]
    reference = fixed["reference"].repeat(1, 1, 1, points, 1)[:, :, None]  # [B, Q, 1, 1, P, 2]
    locations = reference + offsets / level_sizes(fixed["shapes"])
    return (value, locations, logits.flatten(-2).softmax(-1).view(logits.shape)), {"shapes": fixed["shapes"]}


def grid_reference(height: int, width: int, batch: int = 1) -> Tensor:
    """Cell centres [B, H * W, 1, 2], each query looks at its own cell."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack((x, y), -1).view(1, -1, 1, 2).expand(batch, -1, 1, 2).contiguous()


def camera_lists(reference: Tensor, visible: Tensor) -> Tensor:
    """The reference points of the queries that each camera sees, padded with zeros to the longest list."""
    out = reference.new_zeros(reference.shape[0], int(visible.sum(-1).max()), *reference.shape[2:])
    for camera, seen in enumerate(visible):
        out[camera, : int(seen.sum())] = reference[camera, seen]
    return out


def cross_attention_inputs(law: Law, size: str, whole: bool) -> Call:
    bev, image, scale, cut, shapes = CROSS_ATTENTION[size]
    reference, visible = project_pillars(bev, image, scale, cut)
    generator = law.generator()
    queries, points, channels = bev * bev, 8, HEADS * HEAD_CHANNELS
    samples = HEADS * len(shapes) * points
    tokens = sum(h * w for h, w in shapes)
    value = torch.randn(1, len(RIG), tokens, HEADS, HEAD_CHANNELS, generator=generator)
    fixed = {"shapes": shapes, "reference": reference[None], "visible": visible[None]}
    if whole:  # projections of the query whose results scatter as the offsets below
        query = torch.randn(1, queries, channels, generator=generator)
        weights = [torch.randn(n, channels, generator=generator) / channels**0.5 for n in (2 * samples, samples)]
        return (value, query, 2 * weights[0], torch.zeros(2 * samples), weights[1], torch.zeros(samples)), fixed
    layout = (1, queries, HEADS, len(shapes), points)
    first_camera = reference[visible.int().argmax(0), torch.arange(queries)]  # [Q, 4, 2], of a camera that sees it
    spread = first_camera.repeat(1, points // 4, 1)[None, :, None, None]
    offsets = law.offsets(generator, spread, (*layout, 2), shapes)
    return (value, offsets, torch.randn(layout, generator=generator)), fixed


# --- ours, and the part of a call that the float64 reference checks --------------------------------------------------


def ours(kind: str, *tensors: Tensor, backend: str | None = None, **fixed: Any) -> Tensor:
    """Our operator, through its public function."""
    if kind in ("dcnv3", "dcnv3_softmax"):
        return dcnv3(*tensors, groups=fixed["groups"], mask_softmax=kind == "dcnv3_softmax", backend=backend)
    if kind == "dcnv4":
        return dcnv4(*tensors, groups=fixed["groups"], backend=backend)
    if kind == "ms_deform_attn":
        value, locations, weights = tensors
        return ms_deform_attn(value, fixed["shapes"], locations, weights, backend=backend)
    if kind == "ms_deform_attn_fused":
        value, offsets, logits = tensors
        mean, reference = fixed["level_mean"], fixed["reference"]
        return ms_deform_attn_fused(
            value, fixed["shapes"], reference, offsets, logits, level_mean=mean, backend=backend
        )
    value, offsets, logits = (
        tensors if kind == "spatial_cross_attention" else project_queries(fixed["shapes"], *tensors)
    )
    return spatial_cross_attention(
        value, fixed["shapes"], fixed["reference"], fixed["visible"], offsets, logits, backend=backend
    )


def exact(kind: str, *tensors: Tensor, **fixed: Any) -> Tensor:
    """Our reference implementation in float64. GEMMs keep the precision of their tensors: they are not the operator's,
    and the offsets that they round to bfloat16 move by hundredths of a cell."""
    if kind == "spatial_cross_attention_whole":
        kind, tensors = "spatial_cross_attention", project_queries(fixed["shapes"], *tensors)
    return ours(kind, *(t.double() for t in tensors), **fixed, backend="reference")


def project_queries(shapes: Shapes, value: Tensor, query: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, and of queries [B, Q, C] offsets [B, Q, M, L, P, 2] and logits [B, Q, M, L, P], by one GEMM each."""
    layout = (*query.shape[:2], value.shape[-2], len(shapes), -1)
    offsets = F.linear(query, weights[0], weights[1]).view(*layout, 2)
    return value, offsets, F.linear(query, weights[2], weights[3]).view(layout)


# Groups, heads and queries are independent, so a part of them is checked: for every tensor the axis of the groups or
# heads and the axis of the queries.
_ATTENTION = ((2, None), (2, 1), (2, 1))
AXES = {
    "dcnv3": ((3, None),) * 3,
    "dcnv3_softmax": ((3, None),) * 3,
    "dcnv4": ((3, None),) * 2,
    "ms_deform_attn": _ATTENTION,
    "ms_deform_attn_fused": _ATTENTION,
    "spatial_cross_attention": ((3, None), (2, 1), (2, 1)),
    "spatial_cross_attention_whole": ((3, None), (None, 1), *((0, None),) * 4),
}
QUERIES_CHECKED = 512


def some_queries(count: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, QUERIES_CHECKED)).long()


@dataclass(frozen=True)
class Case:
    kind: str
    shape: str
    """For the reader."""
    build: Callable[[Law], Call]
    heads: int
    """Or groups."""
    quick: bool = False
    """In the short table."""

    @property
    def op(self) -> str:
        return self.kind.removesuffix("_whole").removesuffix("_softmax")

    def inputs(self, law: Law, dtype: torch.dtype, device: str) -> Call:
        """Locations, weights and reference points of half-precision values stay float32."""
        wide = torch.promote_types(dtype, torch.float32)
        keep = (1, 2) if self.kind == "ms_deform_attn" else ()
        tensors, fixed = self.build(law)
        tensors = tuple(t.to(device, wide if i in keep else dtype) for i, t in enumerate(tensors))
        return tensors, {
            name: x.to(device, wide if x.is_floating_point() else x.dtype) if isinstance(x, Tensor) else x
            for name, x in fixed.items()
        }

    def part(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Of inputs or their gradients: the last head or group, and up to 512 queries."""
        parts = []
        for i, (tensor, (heads_axis, queries_axis)) in enumerate(zip(tensors, AXES[self.kind])):
            if heads_axis is not None:
                packed = self.kind == "dcnv4" and i == 1  # padded behind the last group
                size = 27 if packed else tensor.shape[heads_axis] // self.heads
                tensor = tensor.narrow(heads_axis, (self.heads - 1) * size, size)
                tensor = F.pad(tensor, (0, 5)) if packed else tensor
            if queries_axis is not None:
                index = some_queries(tensor.shape[queries_axis]).to(tensor.device)
                tensor = tensor.index_select(queries_axis, index)
            parts.append(tensor)
        return tuple(parts)

    def part_fixed(self, fixed: dict[str, Any]) -> dict[str, Any]:
        fixed = {**fixed, "groups": 1} if "groups" in fixed else dict(fixed)
        for name in ("reference", "visible"):
            if name in fixed:
                axis = 2 if self.kind.startswith("spatial") else 1
                fixed[name] = fixed[name].index_select(
                    axis, some_queries(fixed[name].shape[axis]).to(fixed[name].device)
                )
        return fixed

    def part_out(self, out: Tensor) -> Tensor:
        """Of the output [N, H, W, C] or [B, Q, C]."""
        out = out.chunk(self.heads, -1)[-1]
        return out if out.dim() == 4 else out[:, some_queries(out.shape[1]).to(out.device)]

    def part_gradient(self, out: Tensor) -> Tensor:
        """A gradient of the output that is zero outside the part."""
        weight = torch.linspace(0.5, 1.5, out.shape[-1] // self.heads, dtype=out.dtype, device=out.device)
        gradient = torch.zeros_like(out)
        part = gradient.chunk(self.heads, -1)[-1]
        if out.dim() == 4:
            part += weight
        else:
            part[:, some_queries(out.shape[1]).to(out.device)] = weight
        return gradient


# --- the list ---------------------------------------------------------------------------------------------------------

FULL, WIDE = (224, 224), (640, 1600)


def dcnv3_case(kind: str, model: str, stage: int, image: tuple[int, int], batch: int, quick: bool = False) -> Case:
    channels, groups = (n << stage - 1 for n in INTERNIMAGE[model])
    height, width = (side >> stage + 1 for side in image)
    size = (batch, height, width, channels, groups)
    shape = f"{model} stage {stage} at {image[0]}x{image[1]}: {batch}x{height}x{width}x{channels} G{groups}"
    if kind == "dcnv4":
        return Case(kind, shape, partial(dcnv4_inputs, size=size), groups, quick)
    softmax = kind == "dcnv3_softmax"
    shape += ", with softmax" if softmax else ""
    return Case(kind, shape, partial(dcnv3_inputs, size=size, softmax=softmax), groups, quick)


def attention_case(
    name: str, reference: Callable[[], Tensor], shapes: Shapes, points: int, fused: str, quick: bool = False
) -> Case:
    """`fused`: "" (locations and weights given), joint (offsets and logits given) or mean (softmax per level)."""

    def build(law: Law) -> Call:
        call = attention_inputs(law, reference(), shapes, points, fused == "mean")
        return call if fused else as_locations(call)

    kind = "ms_deform_attn_fused" if fused else "ms_deform_attn"
    return Case(kind, name, build, HEADS, quick)


def camera_case(size: str) -> Case:
    """The rebatched call of spatial cross-attention: 6 cameras, each with the queries that it sees."""
    bev, image, scale, cut, shapes = CROSS_ATTENTION[size]
    reference = camera_lists(*project_pillars(bev, image, scale, cut))
    name = f"cameras, BEVFormer {size}: 6 x {reference.shape[1]}q, L{len(shapes)} P8"
    return attention_case(name, lambda: reference, shapes, 8, "")


def cross_attention_case(size: str, whole: bool) -> Case:
    bev, _, _, _, shapes = CROSS_ATTENTION[size]
    name = f"BEVFormer {size}: {bev}x{bev}, 6 cameras, L{len(shapes)} P8"
    kind = "spatial_cross_attention" + ("_whole" if whole else "")
    build = partial(cross_attention_inputs, size=size, whole=whole)
    return Case(kind, name + (", with the GEMMs" if whole else ""), build, HEADS, whole and size == "tiny")


def all_cases(device: str) -> list[Case]:
    """Batch 1 (a laptop) on the CPU; on a GPU batch 64 at 224 x 224 and six cameras at 640 x 1600. The slow ones come
    first, so that the others share what is left of the time."""
    batch, cameras = (1, 1) if device == "cpu" else (64, 6)
    cases = []
    for size in reversed(CROSS_ATTENTION):
        cases += [camera_case(size), cross_attention_case(size, False), cross_attention_case(size, True)]
    for kind in ("dcnv3", "dcnv3_softmax"):
        cases += [dcnv3_case(kind, model, stage, WIDE, cameras) for model in ("XL", "T") for stage in (1, 3)]
        cases.append(dcnv3_case(kind, "G", 3, (512, 512), batch))
    cases.append(dcnv3_case("dcnv4", "T", 1, WIDE, cameras))

    anywhere = lambda: torch.rand(1, 900, 1, 2, generator=torch.Generator().manual_seed(1))
    encoder = lambda: torch.cat([grid_reference(h, w) for h, w in LEVELS_DETR], 1)
    for name, side in (("base", 200), ("tiny", 50)):
        label = f"temporal, BEVFormer {name}: 2 x {side}x{side}, P4"
        quick = name == "tiny"
        cases.append(attention_case(label, partial(grid_reference, side, side, 2), [(side, side)], 4, "", quick))
        cases.append(attention_case(label, partial(grid_reference, side, side), [(side, side)] * 2, 4, "mean", quick))
    for fused in ("", "joint"):
        cases.append(attention_case("Deformable DETR encoder: 800x1066, L4 P4", encoder, LEVELS_DETR, 4, fused))
        cases.append(attention_case("decoder: 900q on 200x200, L1 P4", anywhere, [(200, 200)], 4, fused, True))

    for kind in ("dcnv3", "dcnv3_softmax"):
        for model in ("T", "B", "XL"):
            for stage in (1, 2, 3, 4):
                quick = (model, stage) in (("T", 1), ("T", 3), ("XL", 1))
                cases.append(dcnv3_case(kind, model, stage, FULL, batch, quick))
    cases += [dcnv3_case("dcnv4", "T", stage, FULL, batch) for stage in (1, 3)]
    return cases
