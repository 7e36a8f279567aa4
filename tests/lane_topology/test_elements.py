"""Elements of a few pixels: convolutions on the image itself find sides that a coarse map does not show."""

import pytest
import torch

from drivestack.lane_topology.elements import DenseElements

SIZE, STRIDE = (32, 64), 8


def _drawn(count: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Images with two bright rectangles of 5 to 8 px each, and their boxes."""
    rng = torch.Generator().manual_seed(0)
    images, boxes = torch.zeros(count, 3, *SIZE), []
    for b in range(count):
        corner = torch.stack([torch.randint(2, 22, (2,), generator=rng) + torch.tensor([0, 30]),
                              torch.randint(2, 22, (2,), generator=rng)], 1)  # fmt: skip
        size = torch.randint(5, 9, (2, 2), generator=rng)
        boxes.append(torch.cat([corner, corner + size], 1).float())
        for x1, y1, x2, y2 in boxes[b].int():
            images[b, :, y1:y2, x1:x2] = 1
    return images, boxes


def _overlaps(found: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    low, high = torch.maximum(found[:, None, :2], boxes[:, :2]), torch.minimum(found[:, None, 2:], boxes[:, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    area = lambda b: (b[:, 2:] - b[:, :2]).prod(-1)
    return both / (area(found)[:, None] + area(boxes) - both)


@pytest.mark.parametrize("stem_channels, enough", [(8, True), (0, False)])
def test_only_the_image_shows_where_the_sides_are(stem_channels, enough):
    images, boxes = _drawn(24)
    level = torch.nn.functional.avg_pool2d(images, STRIDE)  # all that a cell of 8 px keeps is how much of it is bright
    torch.manual_seed(0)
    head = DenseElements(3, 16, upsample=4, num_attributes=2, stem_channels=stem_channels)
    optimiser = torch.optim.AdamW(head.parameters(), lr=5e-3)
    labels = [torch.zeros(2, dtype=torch.long)] * 24
    for _ in range(80):
        loss = sum(head.loss(head(level, images), boxes, labels).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    maps = head.eval()(level, images)
    assert maps.stride_px == (2.0, 2.0)
    found = head.peaks(maps, 2).boxes
    best = torch.stack([_overlaps(f, b).amax(0) for f, b in zip(found, boxes)])
    assert ((best > 0.75).float().mean() > 0.8) == enough, best.mean()
