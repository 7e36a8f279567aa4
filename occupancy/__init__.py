"""Voxel occupancy on top of the bird's-eye view."""
