"""drivestack: surround-view camera images to 3D boxes, voxels and lanes, one encoder for every task.

Importing this package is light: no room (`geometry`, `ops`, `backbone`, `bev`, ...) loads until it is asked for.
"""

__version__ = "0.1.0"
