"""This file knows the command `demo`: it has arguments of its own, and says itself what it needs."""

from __future__ import annotations

import argparse

from ..demo import main


def demo(arguments: argparse.Namespace) -> int:
    return main(arguments.rest)
