"""This file knows the command `demo`: it needs more than the package, and says so."""

from __future__ import annotations

import argparse

from .common import Stop


def demo(arguments: argparse.Namespace) -> int:
    try:
        from ..demo import main
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("lava_middleware"):
            raise
        raise Stop(f"the demo needs {missing.name}: pip install 'lava-middleware[demo]'") from missing
    return main(list(arguments.rest))
