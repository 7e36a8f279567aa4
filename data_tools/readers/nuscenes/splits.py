"""The official nuScenes splits, and those that a set defines itself.

nuScenes numbers its 1,000 scenes from 1 to 1110, with gaps; a split is written here as ranges of those numbers.
Source: the nuScenes split lists, https://www.nuscenes.org/nuscenes (a test compares them with nuscenes-devkit's).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from ....core.errors import DataError

_RANGES = {
    "train_detect": (
        "1-2 41-76 161-168 170-176 190-196 199-200 202-204 206-214 254-264 283-306 315-318 321 323-324 347-375 382 "
        "420-439 457-459 461-465 467-469 471-472 474-480 566 568 570-578 580 582-583 665-679 681 683-689 739-741 744 "
        "746-747 749-752 757-765 767-769 868-873 875-878 880 882-903 945 947 949 952-953 955-961 975-984 988-991 "
        "1011-1025 1074-1102 1104-1105"
    ),
    "train_track": (
        "4-11 19-34 120-135 138-139 149-152 154-155 157-160 177-185 187-188 218-220 222 224-253 328 376-381 383-386 "
        "388-403 405-408 410-419 440-456 499-502 504-515 517-518 525-539 541-546 584-600 639-664 695-698 700-701 "
        "703-719 726-728 730-731 733-738 786-787 789-792 803-806 808-813 815-817 819-822 847-856 858 860-866 992 "
        "994-1010 1044-1058 1106-1110"
    ),
    "val": (
        "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775 "
        "777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"
    ),
    "test": (
        "77-91 111-119 140 142-148 265-266 279-282 307-314 333-343 481-498 547-551 601-604 606-624 827-831 833-842 "
        "844-846 932-933 935-943 1026-1043"
    ),
    "mini_train": "61 553 655 757 796 1077 1094 1100",
    "mini_val": "103 916",
}


@cache
def official_splits() -> Mapping[str, tuple[str, ...]]:
    """Split -> its scene names, sorted: train, val, test (700, 150, 150), mini_train, mini_val (8, 2), and the two
    halves of train, train_detect and train_track."""
    numbers = {name: _numbers(ranges) for name, ranges in _RANGES.items()}
    numbers["train"] = numbers["train_detect"] + numbers["train_track"]
    return MappingProxyType(
        {name: tuple(f"scene-{number:04d}" for number in sorted(held)) for name, held in numbers.items()}
    )


def _numbers(ranges: str) -> list[int]:
    ends = [[int(end) for end in part.split("-")] for part in ranges.split()]
    return [number for end in ends for number in range(end[0], end[-1] + 1)]


def scenes_of_split(split: str, own_splits: Path) -> frozenset[str]:
    """Scene names of an official split, or of one of the set's own file (``splits.json``: split -> scene names).

    Raises DataError for an unknown split, or a file that cannot be read.
    """
    official = official_splits()
    if not isinstance(split, str):  # of a config
        raise DataError(f"split {str(split)[:60]} is no name; use one of {', '.join(sorted(official))}")
    if split in official:
        return frozenset(official[split])
    own = {}
    if own_splits.is_file():
        try:
            own = json.loads(own_splits.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{own_splits}: not valid JSON ({error}); write split -> [scene names]") from None
    if not isinstance(own, dict) or not isinstance(own.get(split, []), list):
        raise DataError(f"{own_splits}: must map split names to lists of scene names; correct it")
    if split not in own:
        known = ", ".join([*sorted(official), *own])
        raise DataError(f"{own_splits.parent}: unknown split {split!r}; use one of {known}")
    if not all(isinstance(name, str) for name in own[split]):
        raise DataError(f"{own_splits}: split {split} holds other things than scene names; correct it")
    return frozenset(own[split])
