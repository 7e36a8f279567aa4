"""What Waymo's labels say in numbers, for those who read, write and score them. Source: waymo-open-dataset 1.6.7."""

from __future__ import annotations

from collections.abc import Mapping

CLASS_TYPES: Mapping[str, int] = {"vehicle": 1, "pedestrian": 2, "sign": 3, "cyclist": 4}
"""Of the enumeration Label.Type, label.proto; 0 is unknown."""
OBJECT_TYPES: Mapping[int, str] = {number: name.upper() for name, number in CLASS_TYPES.items()}
MAX_POINTS_HARD = 5
"""An object whose difficulty is not stated is LEVEL_2 with at most so many LiDAR points, else LEVEL_1."""
