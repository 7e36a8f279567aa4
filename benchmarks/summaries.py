"""The numbers that experiments are compared by, from the scores of all tasks, by short names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LOWER_IS_BETTER = ("mATE", "mASE", "mAOE", "mAVE", "mAAE", "AOE", "AVE", "velocity", "thickness", "gap", "false on ray")
"""How the names of errors begin."""
MAIN = (
    "NDS", "mAP", "mATE", "mAVE", "AOE pedestrian", "mIoU", "mIoU unmasked", "RayIoU",
    "OLS", "OLS occurring", "DET_l", "TOP_ll", "F lanes",
)  # fmt: skip


def is_error(name: str) -> bool:
    """Whether less is better."""
    return name.startswith(LOWER_IS_BETTER)


def flat(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Scores by name, of ``drivestack.evaluate``'s result; NaN where there is nothing to measure."""
    found: dict[str, Any] = {}
    if (boxes := scores.get("boxes")) is not None:
        found |= {"NDS": boxes["nds"], "mAP": boxes["map"], **boxes["tp_errors"]}
        for name, errors in boxes["tp_errors_per_class"].items():
            found |= {f"AP {name}": boxes["ap"][name], f"AOE {name}": errors["mAOE"], f"AVE {name}": errors["mAVE"]}
    if (voxels := scores.get("occupancy")) is not None:
        miou = voxels["miou"]
        found |= {"mIoU": miou.get("camera"), "mIoU lidar": miou.get("lidar"), "mIoU unmasked": miou["none"]}
        found |= voxels["rayiou"] | {"F voxels": voxels["fscore"].get("camera", voxels["fscore"]["none"])}
    if (lanes := scores.get("lanes")) is not None:
        found |= {
            "OLS": lanes["ols"],
            "OLS occurring": lanes["ols_occurring"],
            "DET_t occurring": lanes["det_t_occurring"],
        }
        found |= {name: lanes[name.lower()] for name in ("DET_l", "DET_t", "TOP_ll", "TOP_lt")}
        found |= {"F lanes": lanes["lane_fscore"]}
    return {name: math.nan if value is None else float(value) for name, value in found.items()}
