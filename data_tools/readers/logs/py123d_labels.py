"""What py123d's logs leave to each data set: numbers of classes, names of cameras, velocities that mean something else.

Numbers as in py123d 0.7 (kesai-labs/py123d, Apache-2.0). Names are those that the data set itself uses, where it has
any: nuScenes' categories, Argoverse 2's upper case; py123d's in lower case elsewhere.

Shapes: n boxes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ....core.frames import SEEN_POINTS

_NAMES = {
    "AV2SensorBoxDetectionLabel": (
        "ANIMAL ARTICULATED_BUS BICYCLE BICYCLIST BOLLARD BOX_TRUCK BUS CONSTRUCTION_BARREL CONSTRUCTION_CONE DOG "
        "LARGE_VEHICLE MESSAGE_BOARD_TRAILER MOBILE_PEDESTRIAN_CROSSING_SIGN MOTORCYCLE MOTORCYCLIST OFFICIAL_SIGNALER "
        "PEDESTRIAN RAILED_VEHICLE REGULAR_VEHICLE SCHOOL_BUS SIGN STOP_SIGN STROLLER TRAFFIC_LIGHT_TRAILER TRUCK "
        "TRUCK_CAB VEHICULAR_TRAILER WHEELCHAIR WHEELED_DEVICE WHEELED_RIDER"
    ),
    "KITTI360BoxDetectionLabel": (
        "bicycle box bus car caravan lamp motorcycle person pole rider smallpole stop traffic_light traffic_sign "
        "trailer train trash_bin truck vending_machine"
    ),
    "NuPlanBoxDetectionLabel": "vehicle bicycle pedestrian traffic_cone barrier czone_sign generic_object",
    "NureasoningBoxDetectionLabel": (
        "vehicle_car vehicle_personal_mobility_bycicle human other_trafficcone other_temporary_trafficsign other_other "
        "vehicle_door vehicle_truck vehicle_bus vehicle_motorcycle vehicle_bicycle human_pedestrian "
        "construction_traffic_cone"
    ),
    "NuScenesBoxDetectionLabel": (
        "vehicle.car vehicle.truck vehicle.bus.bendy vehicle.bus.rigid vehicle.construction "
        "vehicle.emergency.ambulance vehicle.emergency.police vehicle.trailer vehicle.bicycle vehicle.motorcycle "
        "human.pedestrian.adult human.pedestrian.child human.pedestrian.construction_worker "
        "human.pedestrian.personal_mobility human.pedestrian.police_officer human.pedestrian.stroller "
        "human.pedestrian.wheelchair movable_object.trafficcone movable_object.barrier "
        "movable_object.pushable_pullable movable_object.debris static_object.bicycle_rack animal"
    ),
    "PandasetBoxDetectionLabel": (
        "animals_bird animals_other bicycle bus car cones construction_signs emergency_vehicle medium_sized_truck "
        "motorcycle motorized_scooter other_vehicle_construction_vehicle other_vehicle_pedicab other_vehicle_uncommon "
        "pedestrian pedestrian_with_object personal_mobility_device pickup_truck pylons road_barriers "
        "rolling_containers semi_truck signs temporary_construction_barriers towed_object train tram_subway"
    ),
    "WODPerceptionBoxDetectionLabel": "UNKNOWN VEHICLE PEDESTRIAN SIGN CYCLIST",
    "WODMotionBoxDetectionLabel": "UNSET VEHICLE PEDESTRIAN CYCLIST OTHER",
    "PhysicalAIAVBoxDetectionLabel": (
        "automobile person bus heavy_truck other_vehicle protruding_object rider stroller trailer animal "
        "train_or_tram_car trolley_bus"
    ),
    "GriffinBoxDetectionLabel": "pedestrian car truck bus motorcycle bicycle",
    "TruckDriveBoxDetectionLabel": (
        "bike passenger_car person road_obstruction semi_truck_cab semi_truck_trailer vehicle traffic_sign "
        "emergency_vehicle"
    ),
    "DefaultBoxDetectionLabel": (
        "ego vehicle train two_wheeler person animal traffic_sign traffic_cone traffic_light barrier generic_object "
        "other"
    ),
}
LABELS: Mapping[str, tuple[str, ...]] = {name: tuple(words.split()) for name, words in _NAMES.items()}
"""Name of py123d's class of labels -> name of each number."""

CAMERAS: Mapping[str, Mapping[str, str]] = {
    "wod-perception": {"1": "FRONT", "2": "FRONT_LEFT", "3": "FRONT_RIGHT", "4": "SIDE_LEFT", "5": "SIDE_RIGHT"}
}
"""Data set -> name of a camera in its logs -> its name; other cameras keep theirs."""

ZERO_IS_UNKNOWN = frozenset({"av2-sensor", "physical-ai-av", "ncore", "truckdrive"})
"""Data sets without velocities, for which py123d writes 0 (unless it infers them, an option of its converter)."""

OBJECT_FRAME = frozenset({"kitti360"})
"""Data sets whose velocities py123d turns into the object's own axes, x ahead, y right, z down."""
_FROM_OBJECT_AXES = np.array([1.0, -1.0, -1.0])

MAX_NEIGHBOUR_GAP_S = 1.5
"""As nuScenes: no velocity follows from places further apart in time."""


def known_velocities(
    velocity_mps: NDArray[np.float64],
    rotation: NDArray[np.float64],
    dataset: str,
    tracks: list[str],
    neighbours: frozenset[str],
) -> NDArray[np.float64]:
    """Velocities [n, 3] of one keyframe as its log means them, NaN where they are unknown.

    velocity_mps: [n, 3] as stored, NaN where the log has none; rotation: [n, 3, 3] of the boxes; dataset: '' where
    velocities are global whatever the set's are; neighbours: tracks that the log also has shortly before or after. A
    velocity of exactly 0 is unknown in sets that have none, and in every set for an object that is seen only here,
    where py123d writes 0 for want of another place.
    """
    unknown = np.asarray(~velocity_mps.any(1), bool)  # NaN counts as something
    if dataset not in ZERO_IS_UNKNOWN:
        unknown &= np.array([track not in neighbours for track in tracks], bool)
    out = velocity_mps
    if dataset in OBJECT_FRAME:
        out = np.einsum("nij,nj->ni", rotation, velocity_mps * _FROM_OBJECT_AXES)
    return np.where(unknown[:, None], np.nan, out)


def known_counts(counts: NDArray[np.float64], split: str) -> NDArray[np.int64]:
    """LiDAR points [n] of a keyframe's boxes; SEEN_POINTS where they were not counted (NaN).

    In the splits "nuscenes-interpolated_*" all boxes between two labelled keyframes have 0: not counted either.
    """
    if "interpolated" in split and not counts.any():
        counts = np.full_like(counts, np.nan)
    return np.where(np.isnan(counts), SEEN_POINTS, counts).astype(np.int64)
