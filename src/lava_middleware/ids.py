"""This file knows how to mint ids that sort by time and never repeat."""

from __future__ import annotations

import os
import random
import time

_entropy = random.Random(int.from_bytes(os.urandom(32), "big"))
# Ids need to be unique, not secret. The system's own source would give the interpreter lock away at every call.


def _reseed() -> None:
    _entropy.seed(int.from_bytes(os.urandom(32), "big"))


if hasattr(os, "register_at_fork"):  # a child that went on with its parent's sequence would mint the parent's ids
    os.register_at_fork(after_in_child=_reseed)


def new_id() -> str:
    """32 hexadecimal digits: milliseconds since 1970 (12), then 80 random bits (20)."""
    return f"{time.time_ns() // 1_000_000:012x}{_entropy.getrandbits(80):020x}"


def now_us() -> int:
    """Microseconds since 1970, the time of journals and records."""
    return time.time_ns() // 1_000
