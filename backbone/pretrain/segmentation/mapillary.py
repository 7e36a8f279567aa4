"""Mapillary Vistas 1.2 with the classes of Cityscapes, as the InternImage release trains on it."""

from __future__ import annotations

CITYSCAPES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
MAPILLARY_NUMBERS = (
    (13, 24, 41),  # road, general lane marking, manhole
    (2, 15),  # curb, sidewalk
    (17,),
    (6,),
    (3,),
    (45, 47),  # pole, utility pole
    (48,),
    (50,),  # traffic sign, front
    (30,),
    (29,),
    (27,),
    (19,),
    (20, 21, 22),  # bicyclist, motorcyclist, other rider
    (55,),
    (61,),
    (54,),
    (58,),
    (57,),
    (52,),
)
"""Mapillary's numbers of each class of Cityscapes (InternImage release, segmentation/mmseg_custom, MapillaryHack)."""
NUM_MAPILLARY, NO_CLASS = 66, 255

MAPILLARY_TO_CITYSCAPES = {number: NO_CLASS for number in range(NUM_MAPILLARY)} | {
    number: label for label, numbers in enumerate(MAPILLARY_NUMBERS) for number in numbers
}
"""Stored number -> class; 255 for what has none."""
