"""OpenLane-V2's baselines under their released keys."""
