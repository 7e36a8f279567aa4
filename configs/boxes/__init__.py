"""Configs of 3D box models."""
