"""The Waymo Open Dataset: records (v1) and Parquet tables (v2)."""

from __future__ import annotations

from .reader import read_waymo

__all__ = ["read_waymo"]
