"""This file knows how to do small things once a second, beside the calls, while a process serves."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from .errors import logger

CHORES_S = 1.0
"""How often counts are written down and stalled streams looked for."""


class Chores:
    """A thread that does small things once a second while there is something to do. Started when first needed."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._pid = 0
        self._closed = False
        self._stopped = threading.Event()

    def start(self) -> None:
        if self._pid != os.getpid() and not self._closed:  # never started here, or in the parent of a fork
            self._pid = os.getpid()
            self._stopped = threading.Event()
            threading.Thread(target=self._run, args=(self._stopped,), name="lava-chores", daemon=True).start()

    def stop(self) -> None:
        """For good."""
        self._closed = True
        self._stopped.set()

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(CHORES_S):
            try:
                self._work()
            except Exception:
                logger.exception("lava: a periodic task failed; it is tried again")
