"""Names of Argoverse 2's sensor data set that its reader, its score and its submissions share."""

from __future__ import annotations

from .errors import DataError
from .frames import Frame

EVALUATED_CLASSES = (
    "ARTICULATED_BUS", "BICYCLE", "BICYCLIST", "BOLLARD", "BOX_TRUCK", "BUS", "CONSTRUCTION_BARREL",
    "CONSTRUCTION_CONE", "DOG", "LARGE_VEHICLE", "MESSAGE_BOARD_TRAILER", "MOBILE_PEDESTRIAN_CROSSING_SIGN",
    "MOTORCYCLE", "MOTORCYCLIST", "PEDESTRIAN", "REGULAR_VEHICLE", "SCHOOL_BUS", "SIGN", "STOP_SIGN", "STROLLER",
    "TRUCK", "TRUCK_CAB", "VEHICULAR_TRAILER", "WHEELCHAIR", "WHEELED_DEVICE", "WHEELED_RIDER",
)  # fmt: skip
"""The 26 categories of the detection benchmark, in the official order."""

OTHER_CATEGORIES = ("ANIMAL", "OFFICIAL_SIGNALER", "RAILED_VEHICLE", "TRAFFIC_LIGHT_TRAILER")
"""Annotated, and not evaluated."""


def sweep_token(log: str, timestamp_ns: int) -> str:
    """Sample token of a LiDAR sweep."""
    return f"{log}-{timestamp_ns}"


def sweep_time_ns(frame: Frame) -> int:
    """Time of a frame's sweep to the nanosecond, which submissions need: out of its token.

    Raises DataError for a frame that is no sweep of an Argoverse 2 log.
    """
    time = frame.token.removeprefix(f"{frame.scene_token}-")
    if time == frame.token or not (time.isascii() and time.isdigit()) or len(time) > 19 or int(time) >= 2**63:
        raise DataError(
            f"sample {frame.token}: is no sweep of an Argoverse 2 log (LOG-NANOSECONDS); read the set with the reader "
            "argoverse2_sensor"
        )
    return int(time)
