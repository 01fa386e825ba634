"""This file knows how to keep the demo to itself: what is set in the environment must not change what is shown."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_SDKS = ("OPENAI_", "ANTHROPIC_")


@contextmanager
def alone() -> Iterator[None]:
    """Without anybody's LAVA_* settings, keys of SDKs and proxies. Puts them back."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("LAVA_", *_SDKS)) or name.upper() in _PROXIES:
            del os.environ[name]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Log(logging.Handler):
    """What the library says to its operator while the demo runs, kept to be shown where it belongs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        (self.errors if record.levelno >= logging.ERROR else self.lines).append(record.getMessage())


@contextmanager
def listening() -> Iterator[Log]:
    """The library's log, heard here and nowhere else."""
    logger, log = logging.getLogger("lava_middleware"), Log()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(log)
    try:
        yield log
    finally:
        logger.removeHandler(log)
        logger.propagate = propagated
