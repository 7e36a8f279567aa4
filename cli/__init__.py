"""The command `drivestack`: a thin skin over api and tasks."""

from .main import main

__all__ = ["main"]
