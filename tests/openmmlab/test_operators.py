"""Every operator of compat.mmcv_ext, called by mmcv.ops, against torchvision or a slow reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import ops as vision

from drivestack.compat.mmcv_ext import SUPPLIED, MmcvMissingError

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
HALF_TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}  # relative; 11 and 8 bits of mantissa

pytestmark = pytest.mark.parametrize("device", DEVICES)


def random(*shape: int, device: str = "cpu", seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output and the gradients of a weighted sum of it."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    factor = torch.linspace(-1, 1, output.numel()).to(output).view_as(output)
    return [output.detach(), *torch.autograd.grad((output * factor).sum(), leaves)]


def check(ours: list[Tensor], theirs: list[Tensor], relative: float = 1e-10) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.device == b.device
        largest = float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b.double(), rtol=relative, atol=relative * max(1.0, largest))


def check_half(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Half precision gives half precision, near the result of the same rounded inputs in float32."""
    for dtype, relative in HALF_TOLERANCE.items():
        rounded = [x.to(dtype) for x in inputs]
        ours = with_gradients(function, *rounded)
        assert all(x.dtype == dtype for x in ours)
        check(ours, with_gradients(function, *[x.float() for x in rounded]), relative)


# ---- regions -------------------------------------------------------------------------------------------------------


def slow_roi_align(maps: Tensor, rois: Tensor, size: int, scale: float, samples: int, aligned: bool) -> Tensor:
    """Mean over samples x samples points of each cell, bilinear; a point more than a pixel outside is zero."""
    height, width = maps.shape[2:]
    results = []
    for roi in rois:
        x1, y1, x2, y2 = (roi[1:] * scale - (0.5 if aligned else 0.0)).tolist()
        wide, high = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        steps = (torch.arange(size * samples, dtype=torch.float64, device=maps.device) + 0.5) / (size * samples)
        x, y = x1 + steps * wide, y1 + steps * high
        inside = ((y >= -1) & (y <= height))[:, None] & ((x >= -1) & (x <= width))
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
        x0, y0 = x.floor().clamp(max=max(width - 2, 0)).long(), y.floor().clamp(max=max(height - 2, 0)).long()
        u, v = (x - x0).to(maps), (y - y0).to(maps)[:, None]
        picture = maps[int(roi[0])]

        def at(iy: Tensor, ix: Tensor, picture: Tensor = picture) -> Tensor:
            return picture[:, iy.clamp(max=height - 1)][:, :, ix.clamp(max=width - 1)]

        values = (at(y0, x0) * (1 - u) + at(y0, x0 + 1) * u) * (1 - v)
        values = (values + (at(y0 + 1, x0) * (1 - u) + at(y0 + 1, x0 + 1) * u) * v) * inside
        results.append(values.unflatten(2, (size, samples)).unflatten(1, (size, samples)).mean((2, 4)))
    return torch.stack(results)


ROIS = [[0, 2, 3, 30, 25], [1, -9, -9, 12, 50], [1, 7.3, 1.1, 9.2, 4.4], [0, 40, 30, 60, 44], [0, 5, 5, 5, 5]]


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align(device: str, aligned: bool) -> None:
    from mmcv.ops import RoIAlign

    maps, rois = random(2, 3, 11, 13, device=device), torch.tensor(ROIS, dtype=torch.float64, device=device)
    layer = RoIAlign(3, 0.25, 2, aligned=aligned)
    slow = with_gradients(lambda x: slow_roi_align(x, rois, 3, 0.25, 2, aligned), maps)
    check(with_gradients(lambda x: layer(x, rois), maps), slow)
    adaptive, half = RoIAlign((2, 5), 0.25, 0, aligned=aligned), rois.to(torch.bfloat16)
    theirs = with_gradients(lambda x: vision.roi_align(x, rois, (2, 5), 0.25, -1, aligned), maps)
    check(with_gradients(lambda x: adaptive(x, rois), maps), theirs)
    check_half(lambda x: layer(x, half.to(x)), maps)  # rois that both half types hold exactly enough
    check(with_gradients(lambda x: layer(x, rois[:0]), maps), [maps.new_zeros(0, 3, 3, 3), torch.zeros_like(maps)])


def test_roi_align_of_the_maximum_is_refused(device: str) -> None:
    from mmcv.ops import roi_align

    with pytest.raises(MmcvMissingError, match="pool_mode='max' needs mmcv's compiled operators"):
        roi_align(random(1, 1, 4, 4, device=device), torch.zeros(1, 5, device=device), 2, 1.0, 0, "max", True)


# ---- deformable convolutions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups, offset_groups", [(1, 1), (2, 1), (1, 2)])
def test_deformable_convolutions(device: str, groups: int, offset_groups: int) -> None:
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    image, weight = random(3, 4, 9, 8, device=device), random(6, 4 // groups, 3, 2, device=device, seed=1)
    bias, window = random(6, device=device, seed=2), ((2, 1), (1, 2), (1, 2))
    out = vision.deform_conv2d(image, image.new_zeros(3, 12, 5, 10), weight, None, *window).shape[2:]
    offset = random(3, offset_groups * 12, *out, device=device, seed=3) * 2
    mask = random(3, offset_groups * 6, *out, device=device, seed=4).sigmoid()

    def first(x: Tensor, o: Tensor, w: Tensor) -> Tensor:
        return deform_conv2d(x, o, w, *window, groups, offset_groups)

    def second(x: Tensor, o: Tensor, m: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return modulated_deform_conv2d(x, o, m, w, b, *window, groups, offset_groups)

    theirs = with_gradients(lambda x, o, w: vision.deform_conv2d(x, o, w, None, *window), image, offset, weight)
    check(with_gradients(first, image, offset, weight), theirs)
    inputs = (image, offset, mask, weight)
    slow = with_gradients(lambda x, o, m, w: vision.deform_conv2d(x, o, w, None, *window, m), *inputs)
    check(with_gradients(second, *inputs), slow)
    slow = with_gradients(lambda x, o, m, w, b: vision.deform_conv2d(x, o, w, b, *window, m), *inputs, bias)
    check(with_gradients(second, *inputs, bias), slow)
    plain = torch.conv2d(image, weight, bias, *window, groups)
    check([second(image, torch.zeros_like(offset), torch.ones_like(mask), weight, bias)], [plain])
    check_half(first, image, offset, weight)
    check_half(second, *inputs, bias)


# ---- boxes ---------------------------------------------------------------------------------------------------------


def boxes_and_scores(count: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    corner, size = (
        torch.rand((count, 2), generator=generator) * 60,
        5 + torch.rand((count, 2), generator=generator) * 40,
    )
    scores = torch.randperm(count, generator=generator) / count
    return torch.cat((corner, corner + size), 1).to(device), scores.to(device)


def slow_iou(a: list[float], b: list[float], offset: int) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]) + offset, min(a[3], b[3]) - max(a[1], b[1]) + offset
    common = max(wide, 0.0) * max(high, 0.0)
    return common / (sum((x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b)) - common)


def slow_soft_nms(
    boxes: list[list[float]], scores: list[float], threshold: float, method: str, offset: int
) -> list[tuple[int, float]]:
    """(index, score) of each chosen box; "hard" drops what overlaps more than the threshold."""
    left, chosen = dict(enumerate(scores)), []
    while left:
        best = max(left, key=left.__getitem__)
        chosen.append((best, left.pop(best)))
        for other, score in list(left.items()):
            iou = slow_iou(boxes[best], boxes[other], offset)
            weight = 1.0
            if method == "gaussian":
                weight = math.exp(-(iou**2) / 0.5)
            elif iou >= threshold:
                weight = 1 - iou if method == "linear" else 0.0
            left[other] = score * weight
            if left[other] < 1e-3:
                del left[other]
    return chosen


@pytest.mark.parametrize("offset", [0, 1])
def test_nms(device: str, offset: int) -> None:
    from mmcv.ops import batched_nms, nms

    boxes, scores = boxes_and_scores(80, device)
    kept = nms(boxes, scores, 0.4, offset)[1]
    assert kept.tolist() == [i for i, _ in slow_soft_nms(boxes.tolist(), (scores + 1).tolist(), 0.4, "naive", offset)]
    assert nms(boxes.bfloat16(), scores.double(), 0.4, offset)[1].device.type == device
    dets, kept = nms(boxes[:0], scores[:0], 0.4, offset)
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64
    labels = (torch.arange(80, device=device) % 3).long()
    kept = batched_nms(boxes, scores, labels, dict(type="nms", iou_threshold=0.4))[1]
    assert kept.tolist() == vision.batched_nms(boxes, scores, labels, 0.4).tolist()


@pytest.mark.parametrize("method, offset", list(itertools.product(["naive", "linear", "gaussian"], [0, 1])))
def test_soft_nms(device: str, method: str, offset: int) -> None:
    from mmcv.ops import soft_nms

    boxes, scores = boxes_and_scores(40, device)
    dets, kept = soft_nms(boxes, scores, 0.3, 0.5, 1e-3, method, offset)
    slow = slow_soft_nms(boxes.tolist(), scores.tolist(), 0.3, method, offset)
    assert kept.tolist() == [i for i, _ in slow] and dets.device.type == device
    np.testing.assert_allclose(dets[:, 4].cpu(), [score for _, score in slow], rtol=1e-4)
    assert torch.equal(dets[:, :4], boxes[kept])
    assert soft_nms(boxes[:0], scores[:0])[0].shape == (0, 5)


def covered(box: Tensor, points: Tensor) -> Tensor:
    """Which points [n, 2] lie in a turned box, by mmcv's definition of the angle."""
    x, y, wide, high, angle = box.tolist()
    dx, dy = points[:, 0] - x, points[:, 1] - y
    along, across = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    return (along.abs() <= wide / 2) & (across.abs() <= high / 2)


def turned_boxes(count: int, device: str, seed: int = 6) -> Tensor:
    rand = torch.rand((count, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale, start = torch.tensor([10.0, 10, 5, 5, 7]), torch.tensor([0.0, 0, 1, 1, -3.5])
    return (rand * scale + start).to(device, torch.float32)


def test_iou_of_turned_boxes(device: str) -> None:
    from mmcv.ops import box_iou_rotated

    a, b = turned_boxes(6, device), turned_boxes(5, device, seed=7)
    side = torch.linspace(-6, 16, 1400)
    points = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).view(-1, 2)
    in_a, in_b = (torch.stack([covered(box, points) for box in boxes]).float() for boxes in (a, b))
    common, areas = in_a @ in_b.T, in_a.sum(1)[:, None]
    for clockwise in (True, False):
        if not clockwise:
            a, b = a * a.new_tensor([1, 1, 1, 1, -1]), b * b.new_tensor([1, 1, 1, 1, -1])
        iou = box_iou_rotated(a, b, clockwise=clockwise)
        torch.testing.assert_close(iou.cpu(), common / (areas + in_b.sum(1) - common), atol=5e-3, rtol=0)
        iof = box_iou_rotated(a, b, mode="iof", clockwise=clockwise)
        torch.testing.assert_close(iof.cpu(), common / areas, atol=5e-3, rtol=0)
        for mode, full in (("iou", iou), ("iof", iof)):
            pairs = box_iou_rotated(a[:5], b, mode=mode, aligned=True, clockwise=clockwise)
            torch.testing.assert_close(pairs, full[:5].diagonal(), atol=1e-6, rtol=1e-5)
    assert box_iou_rotated(a[:0], b).shape == (0, 5) and box_iou_rotated(a[:0], b[:0], aligned=True).shape == (0,)


def test_nms_of_turned_boxes(device: str) -> None:
    from mmcv.ops import box_iou_rotated, nms_rotated

    boxes, scores = turned_boxes(40, device), boxes_and_scores(40, device)[1]
    iou, labels = box_iou_rotated(boxes, boxes).tolist(), [i % 3 for i in range(40)]

    def slow(by_label: bool) -> list[int]:
        kept: list[int] = []
        for i in scores.argsort(descending=True).tolist():
            if all(iou[i][j] <= 0.2 or (by_label and labels[i] != labels[j]) for j in kept):
                kept.append(i)
        return kept

    dets, kept = nms_rotated(boxes, scores, 0.2)
    assert kept.tolist() == slow(False) and dets.shape == (len(kept), 6) and kept.device.type == device
    kept = nms_rotated(boxes, scores, 0.2, torch.tensor(labels, device=device))[1]
    assert kept.tolist() == slow(True) and len(kept) > len(slow(False))


# ---- attention and loss --------------------------------------------------------------------------------------------


def test_deformable_attention(device: str, mmcv_attention: tuple[Any, Any]) -> None:
    function, in_pytorch = mmcv_attention
    shapes, starts = torch.tensor([[5, 4], [3, 2]], device=device), torch.tensor([0, 20], device=device)
    value, places = random(2, 26, 3, 4, device=device), random(2, 7, 3, 2, 2, 2, device=device, seed=8).sigmoid()
    weights = random(2, 7, 3, 4, device=device, seed=9).softmax(-1).view(2, 7, 3, 2, 2)

    def fast(v: Tensor, p: Tensor, w: Tensor) -> Tensor:
        return function.apply(v, shapes, starts, p, w, 64)

    def slow(v: Tensor, p: Tensor, w: Tensor) -> Tensor:
        return in_pytorch(v, shapes, p, w)

    check(with_gradients(fast, value, places, weights), with_gradients(slow, value, places, weights))
    for dtype, relative in HALF_TOLERANCE.items():  # mmcv rounds places to the value's type: so does the comparison
        inputs = [x.to(dtype) for x in (value, places, weights)]
        check(with_gradients(fast, *inputs), with_gradients(slow, *[x.double() for x in inputs]), relative)
    empty = [value, places[:, :0], weights[:, :0]]
    assert with_gradients(fast, *empty)[0].shape == (2, 0, 12)


def test_focal_loss(device: str) -> None:
    from mmcv.ops import sigmoid_focal_loss

    logits, target = random(30, 5, device=device) * 4, torch.arange(30, device=device) % 6  # class 5: background
    onehot = torch.nn.functional.one_hot(target, 6)[:, :5].to(logits)

    def fast(x: Tensor) -> Tensor:
        return sigmoid_focal_loss(x, target, 1.5, 0.3, None, "none")

    check(
        with_gradients(fast, logits), with_gradients(lambda x: vision.sigmoid_focal_loss(x, onehot, 0.3, 1.5), logits)
    )
    check_half(fast, logits)
    few, weight = target.clamp(max=4), torch.arange(1.0, 6, dtype=torch.float64, device=device)
    plain = with_gradients(lambda x: sigmoid_focal_loss(x, few, 2.0, 0.25, None, "none") * weight[few][:, None], logits)
    check(with_gradients(lambda x: sigmoid_focal_loss(x, few, 2.0, 0.25, weight, "none"), logits), plain)
    far = logits.new_tensor([[90.0, -90.0, 1e4, -1e4, 0.0]])
    loss, grad = with_gradients(lambda x: sigmoid_focal_loss(x, target[:1], 0.5, 0.25, None, "none"), far)
    assert loss.isfinite().all() and grad.isfinite().all()
    empty = with_gradients(lambda x: sigmoid_focal_loss(x, target[:0], 2.0, 0.25, None, "sum"), logits[:0])
    assert empty[0] == 0 and empty[1].shape == (0, 5)


# ---- what is not there ---------------------------------------------------------------------------------------------


def test_other_operators_say_that_they_are_missing(device: str) -> None:
    import mmcv.ops

    image = random(1, 4, 6, 6, device=device)
    with pytest.raises(MmcvMissingError, match=r"mmcv\._ext\.roi_pool_forward is used, .* drivestack only brings"):
        mmcv.ops.RoIPool(2, 1.0)(image, image.new_tensor([[0, 0, 0, 3, 3]]))
    with pytest.raises(MmcvMissingError, match=r"mmcv\._ext\.carafe_forward"):
        mmcv.ops.carafe(image, image.new_zeros(1, 9, 12, 12), 3, 1, 2)
    assert "torchvision" in mmcv.ops.get_compiler_version() and mmcv.ops.get_compiling_cuda_version()


def test_supplied_names_are_mmcvs(device: str) -> None:
    """Each is looked up by a file of mmcv.ops: a misspelt one would never be called."""
    from pathlib import Path

    import mmcv.ops

    text = "".join(path.read_text() for path in Path(mmcv.ops.__file__).parent.glob("*.py"))
    assert [name for name in SUPPLIED if f"ext_module.{name}(" not in text] == []
