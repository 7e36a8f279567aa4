"""The colours of all pictures: one palette from class names, with colours reserved for ground truth, lanes and lights.

Colours are RGB in 0..255. Distances between colours are Euclidean in CIE Lab (CIE 15), where about 2 is just visible.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.errors import DataError

Colour = tuple[int, int, int]

CLASS_COLOURS: Mapping[str, Colour] = {
    "car": (255, 159, 28),
    "truck": (255, 95, 60),
    "bus": (255, 61, 129),
    "trailer": (205, 133, 80),
    "construction_vehicle": (240, 205, 120),
    "pedestrian": (74, 144, 255),
    "motorcycle": (199, 125, 255),
    "bicycle": (0, 213, 255),
    "traffic_cone": (255, 236, 60),
    "barrier": (176, 182, 200),
}
"""The ten detection classes of nuScenes."""

VOXEL_COLOURS: Mapping[str, Colour] = {
    **CLASS_COLOURS,
    "others": (178, 64, 168),
    "driveable_surface": (98, 104, 128),
    "other_flat": (150, 104, 92),
    "sidewalk": (174, 148, 160),
    "terrain": (146, 160, 92),
    "manmade": (206, 196, 178),
    "vegetation": (72, 142, 74),
    "general_object": (178, 64, 168),
    "vehicle": CLASS_COLOURS["car"],
    "cyclist": CLASS_COLOURS["motorcycle"],
    "construction_cone": CLASS_COLOURS["traffic_cone"],
    "sign": (235, 80, 80),
    "traffic_light": (255, 140, 140),
    "pole": (176, 182, 200),
    "building": (206, 196, 178),
    "tree_trunk": (120, 88, 60),
    "road": (98, 104, 128),
    "walkable": (174, 148, 160),
}
"""Of Occ3D-nuScenes and Occ3D-Waymo: things as the boxes, surfaces as they look outdoors."""

GROUND_TRUTH: Colour = (57, 230, 95)
"""Labels, always thin and dashed. No prediction and no class of boxes has a similar green."""
LANE_COLOUR: Colour = (110, 196, 255)
JOINT_COLOUR: Colour = (255, 255, 255)
ELEMENT_COLOURS: Mapping[str, Colour] = {"red": (255, 70, 70), "green": (0, 190, 190), "yellow": (255, 220, 60)}
"""Lights by their state; green is the bluish green of real signals, distinct for red-green blind people."""
SIGN_COLOUR: Colour = (150, 150, 255)

BACKGROUND: Colour = (18, 21, 26)
PANEL: Colour = (26, 30, 37)
FAINT: Colour = (66, 73, 86)
LIDAR_COLOUR: Colour = (84, 94, 110)
TEXT: Colour = (226, 230, 236)
QUIET_TEXT: Colour = (150, 158, 172)

FIXED_COLOURS: tuple[Colour, ...] = (
    GROUND_TRUTH, LANE_COLOUR, JOINT_COLOUR, *ELEMENT_COLOURS.values(), SIGN_COLOUR,
    BACKGROUND, PANEL, FAINT, LIDAR_COLOUR, TEXT, QUIET_TEXT,
)  # fmt: skip
"""All that is drawn but classes."""

TRACK_COLOURS: tuple[Colour, ...] = (
    (255, 225, 25), (0, 130, 255), (245, 130, 48), (190, 70, 255), (70, 240, 240), (240, 50, 230), (250, 190, 190),
    (170, 110, 40), (255, 250, 200), (220, 40, 60), (90, 90, 255), (255, 215, 180),
)  # fmt: skip
"""Of tracks, one after the other; none is like the ground truth's green."""

_FIRST_OWN = (
    "car", "pedestrian", "bus", "traffic_cone", "motorcycle", "bicycle", "trailer", "truck", "construction_vehicle",
)  # fmt: skip
"""Whose colours other classes get first, unless the list holds that name itself."""

_GREEN_HUES_DEG = (50.0, 180.0)  # of HSV: kept free around the ground truth's 133 degrees
_LEAST_CHROMA, _LIGHTNESS = 32.0, (52.0, 88.0)  # of Lab: neither grey nor white, and visible on the dark panels
_LEAST_DISTANCE, _LEAST_TO_SURFACES = 24.0, 10.0  # to the fixed colours, to those of Occ3D


def colour_distance(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Distance in Lab between colours [..., 3] and [..., 3], broadcast."""
    return np.linalg.norm(_lab(a) - _lab(b), axis=-1)


def _lab(colours: ArrayLike) -> NDArray[np.float64]:
    rgb = np.asarray(colours, np.float32) / 255
    return cv2.cvtColor(rgb.reshape(1, -1, 3), cv2.COLOR_RGB2LAB).reshape(rgb.shape).astype(np.float64)


@dataclass(frozen=True)
class Palette(Mapping[str, Colour]):
    """Class name -> colour, for boxes in cameras, boxes from above, voxels and the legend alike.

    Made by ``Palette.of``: one list of names, one set of colours, none of them white, grey (but nuScenes' barrier)
    or the green of the ground truth where it is a class of boxes.
    """

    colours: Mapping[str, Colour]

    @staticmethod
    def of(class_names: Sequence[str], voxel_class_names: Sequence[str] = ()) -> Palette:
        """The palette of box classes and of voxel classes (the last of which, free, has no colour).

        nuScenes' ten classes, and in voxels those of Occ3D, keep the colours that they have everywhere. Other names
        get, in the order of the lists, colours as far from all others as there are; a name of both lists has one
        colour. A list of box classes that grows at its end by such names keeps the colours that it had.
        Raises DataError for an empty name.
        """
        return _palette(tuple(class_names), tuple(voxel_class_names[:-1]))

    def __getitem__(self, name: str) -> Colour:
        return self.colours[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.colours)

    def __len__(self) -> int:
        return len(self.colours)


@lru_cache(maxsize=32)
def _palette(class_names: tuple[str, ...], voxel_names: tuple[str, ...]) -> Palette:
    if not all((*class_names, *voxel_names)):
        raise DataError("a class name is empty: every class needs a name in the legend; name it in the class list")
    known = {name: CLASS_COLOURS[name] for name in class_names if name in CLASS_COLOURS}
    known |= {name: VOXEL_COLOURS[name] for name in voxel_names if name in VOXEL_COLOURS and name not in class_names}
    own = list(dict.fromkeys(name for name in (*class_names, *voxel_names) if name not in known))
    first = [CLASS_COLOURS[name] for name in _FIRST_OWN if CLASS_COLOURS[name] not in known.values()]
    others = _farthest(max(0, len(own) - len(first)), [*known.values(), *first])
    found = known | dict(zip(own, [*first, *others]))
    return Palette({name: found[name] for name in (*class_names, *voxel_names)})


def _farthest(count: int, taken: Sequence[Colour]) -> list[Colour]:
    """``count`` colours, each as far as can be from ``taken`` and from those before it."""
    candidates = _candidates()
    distance = np.full(len(candidates), np.inf)
    for colour in taken:
        distance = np.minimum(distance, colour_distance(candidates, colour))
    found = []
    for _ in range(count):
        best = candidates[int(distance.argmax())]
        found.append((int(best[0]), int(best[1]), int(best[2])))
        distance = np.minimum(distance, colour_distance(candidates, best))
    return found


@lru_cache(maxsize=1)
def _candidates() -> NDArray[np.int64]:
    """[n, 3] colours that a class may have: strong, neither dark nor white, apart from all fixed colours."""
    steps = np.arange(0, 256, 15)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = _lab(rgb)
    hue_deg = cv2.cvtColor((rgb / 255).astype(np.float32)[None], cv2.COLOR_RGB2HSV)[0, :, 0]
    fits = (lab[:, 0] > _LIGHTNESS[0]) & (lab[:, 0] < _LIGHTNESS[1])
    fits &= np.hypot(lab[:, 1], lab[:, 2]) > _LEAST_CHROMA
    fits &= (hue_deg < _GREEN_HUES_DEG[0]) | (hue_deg > _GREEN_HUES_DEG[1])
    rgb = rgb[fits]
    apart = colour_distance(rgb[:, None], np.array(FIXED_COLOURS)[None]).min(1) > _LEAST_DISTANCE
    surfaces = np.array(list(VOXEL_COLOURS.values()))
    return rgb[apart & (colour_distance(rgb[:, None], surfaces[None]).min(1) > _LEAST_TO_SURFACES)]
