"""nuScenes and what shares its tables or boxes: info files, Occ3D's challenge, T4."""

from __future__ import annotations

from .reader import read_nuscenes

__all__ = ["read_nuscenes"]
