"""What the physical world allows: the limits that data sets, predictions and submissions are held against.

They are wide: a set that breaks one has another convention or unit than its reader takes it for, or is damaged.
"""

from __future__ import annotations

MIN_KEYFRAME_GAP_S, MAX_KEYFRAME_GAP_S = 0.01, 10.0
"""Between neighbouring keyframes of a scene."""
MAX_SPEED_MPS = 100.0
"""Of the car itself and of every road user."""
MAX_SIZE_M = 100.0
"""Of a labelled object, in any direction (an articulated train of trailers is 53 m long)."""
MAX_DISTANCE_M = 1000.0
"""Of a labelled object from the car."""
