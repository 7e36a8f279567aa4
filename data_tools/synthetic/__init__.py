"""A procedural street world in the nuScenes format: see docs/synthetic.md."""

from .files.generate import synthesize
from .world.world import WORLD_VERSION, World, build_world

__all__ = ["WORLD_VERSION", "World", "build_world", "synthesize"]
