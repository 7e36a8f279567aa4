"""Centrelines, traffic elements and how they connect, on top of the bird's-eye view."""
