"""This file knows how to show on a terminal that long work goes on; into a file or a pipe it says nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

EVERY_S = 0.1


class Progress:
    """`with Progress("checking entries") as progress: progress(done, total)`: one line, rewritten, gone at the end."""

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self._what = what
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._shown_at = 0.0
        self._length = 0
        self._counted = 0

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._terminal and now - self._shown_at >= EVERY_S:
            self._shown_at = now
            self._show(f"{self._what}: {done:,} of {total:,} ({100 * done // max(total, 1)} %)")

    def count(self, more: int) -> None:
        """So many more are done, of nobody knows how many."""
        self._counted += more
        now = time.monotonic()
        if self._terminal and now - self._shown_at >= EVERY_S:
            self._shown_at = now
            self._show(f"{self._what}: {self._counted:,}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._length:
            self._show("")
            self._stream.write("\r")
            self._stream.flush()

    def _show(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._length))
        self._stream.flush()
        self._length = len(text)
