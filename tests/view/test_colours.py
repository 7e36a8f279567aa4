"""The palette: any class names get distinguishable colours."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.occupancy.classes import OCC3D_NUSCENES, OCC3D_WAYMO
from drivestack.view.colours import CLASS_COLOURS, FIXED_COLOURS, GROUND_TRUTH, VOXEL_COLOURS, Palette, colour_distance

OWN = ["pkw", "lkw", "person", "two_wheeler", "obstacle"]
WHITE = (255, 255, 255)


def least_distance(palette: Palette) -> float:
    colours = np.array(list(palette.values()))
    between = colour_distance(colours[:, None], colours[None])
    return float(between[~np.eye(len(colours), dtype=bool)].min())


def test_nuscenes_classes_keep_their_colours_whatever_stands_beside_them() -> None:
    assert dict(Palette.of(list(CLASS_COLOURS))) == dict(CLASS_COLOURS)
    mixed = Palette.of(["pkw", "car", "bus", "lkw"])
    assert mixed["car"] == CLASS_COLOURS["car"] and mixed["bus"] == CLASS_COLOURS["bus"]
    assert len(set(mixed.values())) == 4


@pytest.mark.parametrize(("count", "least"), [(5, 35), (10, 28), (20, 25), (30, 20), (80, 12), (200, 7)])
def test_own_classes_differ_from_one_another_from_labels_and_from_white(count: int, least: float) -> None:
    palette = Palette.of([f"class {i}" for i in range(count)])
    assert least_distance(palette) > least
    for colour in palette.values():
        assert colour_distance(colour, GROUND_TRUTH) > 30
        assert colour_distance(colour, WHITE) > 30
        hue, _, strength = colorsys.rgb_to_hsv(*(np.array(colour) / 255))
        assert strength < 0.2 or not 55 < 360 * hue < 179, "green belongs to the ground truth"


def test_a_palette_is_stable() -> None:
    first = Palette.of(OWN)
    assert dict(Palette.of(list(OWN))) == dict(first)
    assert list(first) == OWN
    longer = Palette.of([*OWN, *(f"more {i}" for i in range(20))])
    assert {name: longer[name] for name in OWN} == dict(first)


@pytest.mark.parametrize("names", [OCC3D_NUSCENES, OCC3D_WAYMO])
def test_voxels_of_occ3d_have_its_colours(names: tuple[str, ...]) -> None:
    palette = Palette.of(list(CLASS_COLOURS), names)
    assert all(palette[name] == VOXEL_COLOURS[name] for name in names[:-1])
    assert "free" not in palette
    assert min(colour_distance(colour, WHITE) for colour in palette.values()) > 20


def test_own_voxel_classes_share_the_colours_of_boxes_with_the_same_name() -> None:
    palette = Palette.of(OWN, ("strasse", "pkw", "gehweg", "frei"))
    assert palette["pkw"] == Palette.of(OWN)["pkw"]
    assert set(palette) == {*OWN, "strasse", "gehweg"}
    assert least_distance(palette) > 28
    beside_occ3d = Palette.of(OWN, OCC3D_NUSCENES)
    assert all(beside_occ3d[name] == VOXEL_COLOURS[name] for name in OCC3D_NUSCENES[:-1])
    assert len(set(beside_occ3d.values())) == len(OWN) + len(OCC3D_NUSCENES) - 1


def test_a_box_class_named_like_a_surface_is_not_green() -> None:
    assert colour_distance(Palette.of(["vegetation"])["vegetation"], GROUND_TRUTH) > 30


def test_fixed_colours_cannot_be_taken_for_ground_truth() -> None:
    others = [colour for colour in FIXED_COLOURS if colour != GROUND_TRUTH]
    assert min(colour_distance(others, GROUND_TRUTH)) > 50


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(DataError, match="class name is empty"):
        Palette.of(["car", ""])
