"""This file knows how to cut a JSON array that grows into its elements without changing a byte."""

from __future__ import annotations

import re

_SIGN = re.compile(rb'["{}\]]')
_INSIDE_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
"""As much of a string as is there, up to its closing quote or to a backslash whose sign has not come yet."""
_QUOTE = 0x22


class ArraySplitter:
    """Takes bytes cut anywhere, gives back objects, each with the bracket, comma and blanks before it, and then the
    bracket that closes the array."""

    __slots__ = ("_at", "_depth", "_in_string", "_kept")

    def __init__(self) -> None:
        self._kept = b""
        self._at = 0
        """How much of `_kept` has been looked at."""
        self._depth = 0
        self._in_string = False

    @property
    def kept(self) -> int:
        """Length of the unfinished element."""
        return len(self._kept)

    def split(self, data: bytes) -> list[bytes]:
        """The elements that `data` completes."""
        raw = self._kept + data if self._kept else data
        events: list[bytes] = []
        done = 0
        while (end := self._next_end(raw)) is not None:
            events.append(raw[done:end])
            done = end
        self._kept = raw[done:]
        self._at -= done
        return events

    def _next_end(self, raw: bytes) -> int | None:
        """Where the next element, or the array, ends; None: not in these bytes."""
        while self._at < len(raw):
            if self._in_string:
                self._at = _INSIDE_STRING.match(raw, self._at).end()  # type: ignore[union-attr]  # it matches nothing too
                if self._at == len(raw) or raw[self._at] != _QUOTE:
                    return None
                self._at += 1
                self._in_string = False
            elif (sign := _SIGN.search(raw, self._at)) is None:
                self._at = len(raw)
            else:
                self._at = sign.end()
                if self._closes(sign.group()):
                    return self._at
        return None

    def _closes(self, sign: bytes) -> bool:
        """Take one sign outside strings. Whether it ends an element, or the array."""
        if sign == b'"':
            self._in_string = True
        elif sign == b"{":
            self._depth += 1
        elif sign == b"}":
            self._depth = max(self._depth - 1, 0)
            return self._depth == 0
        else:
            return self._depth == 0
        return False

    def rest(self) -> bytes:
        """What is left of an element that was never finished; what follows is taken for its continuation."""
        rest, self._kept, self._at = self._kept, b"", 0
        return rest
