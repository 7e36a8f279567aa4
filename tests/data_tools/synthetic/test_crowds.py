"""Which objects of an image become crowd regions."""

from __future__ import annotations

import numpy as np
import pytest

from drivestack.data_tools.synthetic.labels.instances import MIN_AREA_PX, split_crowds
from drivestack.data_tools.synthetic.labels.visible import VisibleObject
from drivestack.data_tools.synthetic.world.assets import MEAN_SIZE_LWH
from drivestack.data_tools.synthetic.world.mesh import box
from drivestack.data_tools.synthetic.world.population import Motion, WorldObject

WIDTH_PX = 400  # regions nearer than 8 px are one


def seen(number: int, name: str, left: int, top: int, size: int, share: float = 1.0) -> VisibleObject:
    motion = Motion(np.zeros((1, 2)), 0.0, 0.0, 0.0)
    thing = WorldObject(number, name, MEAN_SIZE_LWH[name], "", motion, box((0, 0, 0), (1, 1, 1), (1, 1, 1)))
    place = (left, top, left + size, top + size)
    return VisibleObject(thing, place, size * size, place, share, np.zeros(3), np.eye(3), None, 0.0, 0.0)


def numbers(objects: list[VisibleObject]) -> list[int]:
    return [v.thing.instance for v in objects]


def split(objects: list[VisibleObject], labelled: set[int]) -> tuple[list[int], list[list[int]]]:
    single, crowds = split_crowds(objects, labelled, WIDTH_PX)
    return numbers(single), [numbers(crowd) for crowd in crowds]


@pytest.mark.parametrize(
    ("thing", "labelled"),
    [
        (seen(1, "car", 50, 50, 40), set()),  # too far for a 3D label
        (seen(1, "car", 50, 50, int(MIN_AREA_PX**0.5)), {1}),
        (seen(1, "car", 50, 50, 40, share=0.05), {1}),
    ],
)
def test_what_cannot_be_labelled_by_itself_is_a_crowd(thing, labelled):
    assert split([thing, seen(2, "car", 200, 50, 40)], {2} | labelled) == ([2], [[1]])


def test_distant_objects_of_one_kind_and_place_are_one_crowd():
    far = [seen(1, "pedestrian", 10, 50, 5), seen(2, "pedestrian", 20, 52, 5), seen(3, "pedestrian", 30, 50, 5)]
    others = [seen(4, "pedestrian", 300, 50, 5), seen(5, "car", 15, 50, 5)]
    assert split(far + others, {1, 2, 3, 4, 5}) == ([], [[1, 2, 3], [4], [5]])


def test_three_small_objects_in_front_of_one_another_are_a_crowd_and_two_are_not():
    row = [seen(i, "traffic_cone", 10 * i, 50, 20) for i in (1, 2, 3)]
    assert split(row, {1, 2, 3}) == ([], [[1, 2, 3]])
    assert split(row[:2], {1, 2}) == ([1, 2], [])
    apart = [seen(i, "traffic_cone", 30 * i, 50, 20) for i in (1, 2, 3)]
    assert split(apart, {1, 2, 3}) == ([1, 2, 3], [])
    large = [seen(i, "traffic_cone", 20 * i, 50, 40) for i in (1, 2, 3)]
    assert split(large, {1, 2, 3}) == ([1, 2, 3], [])
    kinds = [seen(i, name, 10 * i, 50, 20) for i, name in enumerate(("car", "bus", "truck"), 1)]
    assert split(kinds, {1, 2, 3}) == ([1, 2, 3], [])
