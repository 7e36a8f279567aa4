"""Argoverse 2: logs with their lanes, and the sensor data set with its boxes."""
