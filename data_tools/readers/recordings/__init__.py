"""Recordings of one's own car."""
