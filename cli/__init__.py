"""The command `drivestack`: on top of api and tasks."""

from .main import main

__all__ = ["main"]
