"""Sets of synthetic scenes by name: each number of a set that is trained on, judged by or shown is said here once.

``drivestack synthesize DIR --recipe judge`` writes one; so does ``synthesize("DIR", **RECIPES["judge"].arguments())``.
Seeds of training are below 1,000, those of sets that are only scored are above 90,000.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class SetRecipe:
    """Arguments of ``synthesize``, by their names there."""

    split: str
    seed: int
    num_scenes: int
    keyframes_per_scene: int = 20
    streets: str = "plain"
    image_width_px: int = 640
    labels: tuple[str, ...] = ("occupancy", "lanes")

    def arguments(self) -> dict[str, Any]:
        """For ``synthesize``."""
        return asdict(self)


_ALL_LABELS = ("occupancy", "lanes", "depth", "street_map")
RECIPES = {
    # scored: plain streets as the demo has shown them since its first release, and longer ones, where memory has time;
    # drives that turn; streets unlike both
    "demo": SetRecipe("val", 90_001, 10, 8),
    "long_scenes": SetRecipe("val", 94_001, 5),
    "demo_drive": SetRecipe("val", 93_001, 1, streets="turning"),
    "judge": SetRecipe("val", 91_001, 20, streets="turning", labels=("occupancy", "lanes", "street_map")),
    "towns": SetRecipe("val", 92_001, 20, streets="towns", labels=("occupancy", "lanes", "street_map")),
    # trained on: 600 keyframes of many streets each, and long drives
    "train100": SetRecipe("train", 100, 100, 6, labels=_ALL_LABELS),
    "train101": SetRecipe("train", 101, 100, 6, labels=_ALL_LABELS),
    "train102": SetRecipe("train", 102, 100, 6, labels=_ALL_LABELS),
    "train_drives": SetRecipe("train", 200, 75, streets="mixed", labels=_ALL_LABELS),
}
