"""Cameras and LiDAR in the street world, ray-cast."""
