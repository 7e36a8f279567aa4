"""Scores, submissions and rules of nuScenes; scores of Waymo."""
