"""Voxel and lane labels of the street world."""
