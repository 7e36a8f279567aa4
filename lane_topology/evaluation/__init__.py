"""Scores, submissions and rules of OpenLane-V2."""
