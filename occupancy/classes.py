"""Class lists of the occupancy data sets, in their id order.

Sources: Occ3D, arXiv 2304.14365; OpenOcc (OccNet), arXiv 2306.02851; OpenOccupancy, arXiv 2303.03991.
"""

_THINGS = (
    "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "traffic_cone", "trailer",
    "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation",
)  # fmt: skip

OCC3D_NUSCENES = ("others", *_THINGS, "free")
OCC3D_WAYMO = (
    "general_object", "vehicle", "pedestrian", "sign", "cyclist", "traffic_light", "pole", "construction_cone",
    "bicycle", "motorcycle", "building", "vegetation", "tree_trunk", "road", "walkable", "free",
)  # fmt: skip
OPENOCC = (
    "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone",
    "barrier", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation", "free",
)  # fmt: skip
OPENOCC_MOVING = OPENOCC[:8]
"""Classes whose flow counts in OccScore."""
OPENOCCUPANCY = ("free", *_THINGS)
