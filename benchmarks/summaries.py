"""The numbers that experiments are compared by, from the scores of all tasks, by short names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LOWER_IS_BETTER = ("mATE", "mASE", "mAOE", "mAVE", "mAAE", "AOE", "AVE", "velocity", "thickness", "gap", "false on ray")
"""How the names of errors begin."""
MAIN = (
    "NDS", "mAP", "mATE", "mAVE", "velocity network", "AOE pedestrian", "mIoU", "mIoU unmasked", "RayIoU",
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
        found |= {"NDS occurring": boxes["nds_occurring"], "mAP occurring": boxes["map_occurring"]}
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
    return numbers(found)


def flat_details(details: Mapping[str, Any]) -> dict[str, float]:
    """What judge.py measures beside the scores, by short names."""
    found: dict[str, Any] = {}
    if (velocity := details.get("velocity")) is not None:
        short = {"network": "network", "one step": "one step", "line": "line", "network if slow, else line": "tracker"}
        found |= {f"velocity {own}": velocity[name]["all"] for name, own in short.items()}
        found |= {f"velocity {own}, classes": velocity[name]["class_mean"] for name, own in short.items()}
    if (occluded := details.get("occluded")) is not None:
        found |= {"occluded recall": occluded["recall"], "occluded AP": occluded["ap"]}
    if (rays := details.get("rays")) is not None:
        found |= {"false on ray": rays["per_frame"]}
    if (hidden := details.get("hidden")) is not None:
        found |= {"mIoU hidden": hidden["lidar"]["miou"], "mIoU seen before": hidden["cameras"]["miou"]}
        found |= {"IoU seen before": hidden["cameras"]["occupied_iou"]}
    if (thickness := details.get("thickness")) is not None:
        found |= {"thickness": thickness["predicted"]}
    if (lanes := details.get("lanes")) is not None:
        found |= {f"lanes {band} m": own["recall"] for band, own in lanes["bands"].items()}
        found |= {"gap": lanes["gaps"]["mean_m"], **lanes["end_points"]}
    return numbers(found)


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """Floats, NaN where there is nothing to measure."""
    return {name: math.nan if value is None else float(value) for name, value in found.items()}
