"""Operators with a slow, obvious twin and a fast kernel: DCNv3, multi-scale deformable attention."""
