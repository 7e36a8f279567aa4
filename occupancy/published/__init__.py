"""The occupancy challenge's baselines under their released keys."""
