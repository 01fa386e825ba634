"""The command `lava`: what an operator does and asks at a terminal, or from a script with --json."""

from .main import main

__all__ = ["main"]
