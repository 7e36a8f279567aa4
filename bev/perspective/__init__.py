"""Boxes from single images (DD3D): a training aid, and a source of proposals."""
