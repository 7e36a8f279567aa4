"""OpenLane-V2's collections."""

from __future__ import annotations

from .reader import read_openlane

__all__ = ["read_openlane"]
