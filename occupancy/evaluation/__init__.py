"""Scores, submissions and rules of Occ3D."""
