"""Which visible objects are labelled one by one, and which are merged into crowd regions (COCO's ``iscrowd``).

An object is an instance if its 3D box is labelled and enough of it can be seen. All others (too far for a 3D label, too
small, almost hidden) and small ones of a kind in front of one another become crowd regions, one for each kind and
place. So every pixel of an object belongs to exactly one instance or crowd, and a detector is not punished for a box
that it finds in a crowd.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from .visible import VisibleObject

MIN_AREA_PX = 30
MIN_SIDE_PX = 4
MIN_VISIBLE_SHARE = 0.1
SMALL_SIDE_PX = 32
"""COCO's small objects: three and more of them may stand too close to be told apart."""
MIN_CROWD = 3
_COVERED_SHARE = 0.3  # of the smaller of two boxes: from here on they are one group
_GAP_SHARE = 0.02  # of the image's width: regions nearer than this are one region

Box = tuple[int, int, int, int]


def split_crowds(
    seen: Sequence[VisibleObject], labelled: Collection[int], width_px: int
) -> tuple[list[VisibleObject], list[list[VisibleObject]]]:
    """The instances and the crowds of one image, in the order of ``seen``.

    labelled: instance numbers of the objects with a 3D label at that moment. width_px: of the image.
    """
    single = {v.thing.instance for v in seen if v.thing.instance in labelled and _is_clear(v)}
    small = [v for v in seen if v.thing.instance in single and _longer_side(v) < SMALL_SIDE_PX]
    for group in _groups(small, _overlap):
        if len(group) >= MIN_CROWD:
            single -= {v.thing.instance for v in group}
    gap_px = _GAP_SHARE * width_px
    rest = [v for v in seen if v.thing.instance not in single]
    crowds = _groups(rest, lambda a, b: _near(a, b, gap_px))
    return [v for v in seen if v.thing.instance in single], crowds


def _is_clear(v: VisibleObject) -> bool:
    left, top, right, bottom = v.box_xyxy_px
    return (
        v.area_px >= MIN_AREA_PX
        and min(right - left, bottom - top) >= MIN_SIDE_PX
        and v.visible_share >= MIN_VISIBLE_SHARE
    )


def _longer_side(v: VisibleObject) -> int:
    left, top, right, bottom = v.box_xyxy_px
    return max(right - left, bottom - top)


def _overlap(a: Box, b: Box) -> bool:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width > 0 and height > 0 and width * height >= _COVERED_SHARE * smaller


def _near(a: Box, b: Box, gap_px: float) -> bool:
    return all(max(a[k], b[k]) - min(a[k + 2], b[k + 2]) <= gap_px for k in (0, 1))


def _groups(seen: Sequence[VisibleObject], joined: Callable[[Box, Box], bool]) -> list[list[VisibleObject]]:
    """Objects of one class that are joined, directly or through others; groups in the order of their first member."""
    group = list(range(len(seen)))
    for i, a in enumerate(seen):
        for j, b in enumerate(seen[:i]):
            if group[i] != group[j] and a.thing.name == b.thing.name and joined(a.box_xyxy_px, b.box_xyxy_px):
                old, new = sorted((group[i], group[j]), reverse=True)
                group = [new if number == old else number for number in group]
    return [[v for v, number in zip(seen, group) if number == k] for k in sorted(set(group))]
