"""The class of every pixel of a picture, as semantic segmentation has it: surfaces first, then the ten object classes.

Made from the same rays as the instances, so that an instance's pixels have its class and no other pixels have it.
"""

from __future__ import annotations

import numpy as np

from ..sensing.observe import SKY, CameraPicture
from ..world.mesh import Semantic, Structure

DETECTION_CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip
"""The detection classes of nuScenes in the order that its users have agreed on."""
STUFF_CLASSES = (
    "road", "sidewalk", "terrain", "other_flat", "building", "street_furniture", "traffic_element", "vegetation", "sky",
)  # fmt: skip
SEGMENT_CLASSES = STUFF_CLASSES + DETECTION_CLASSES
IGNORE = 255

_OF_SEMANTIC: dict[int, str] = {
    Semantic.DRIVEABLE_SURFACE: "road", Semantic.SIDEWALK: "sidewalk", Semantic.TERRAIN: "terrain",
    Semantic.OTHER_FLAT: "other_flat", Semantic.VEGETATION: "vegetation",
    **{Semantic[name.upper()]: name for name in DETECTION_CLASSES}, SKY: "sky",
}  # fmt: skip
_OF_STRUCTURE: dict[int, str] = {
    Structure.BUILDING: "building", Structure.FURNITURE: "street_furniture",
    Structure.TRAFFIC_ELEMENT: "traffic_element",
}  # fmt: skip


def _table() -> np.ndarray:
    """[256 semantic, structures] uint8 class, IGNORE for what has none."""
    table = np.full((256, len(Structure)), IGNORE, np.uint8)
    for semantic, name in _OF_SEMANTIC.items():
        table[semantic] = SEGMENT_CLASSES.index(name)
    for structure, name in _OF_STRUCTURE.items():
        table[Semantic.MANMADE, structure] = SEGMENT_CLASSES.index(name)
    return table


_TABLE = _table()


def segment_classes(picture: CameraPicture) -> np.ndarray:
    """[H, W] uint8 index into SEGMENT_CLASSES; IGNORE for surfaces that belong to none."""
    return _TABLE[picture.semantic, picture.structure]
