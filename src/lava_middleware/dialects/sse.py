"""This file knows how to cut server-sent events out of a stream of bytes without changing one of them.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import re

_BORDER = re.compile(rb"\r\n(?:\r\n|\n|\r)|\n(?:\r\n|\n|\r)|\r(?!\n)(?:\r\n|\n|\r)")
"""Two line ends in a row; a line ends with CRLF, LF or CR. `\\r(?!\\n)` keeps one CRLF from counting as two."""

_LONGEST_BORDER = 4


class Splitter:
    """Takes bytes cut anywhere, gives back whole events, each with the blank line that ends it."""

    __slots__ = ("_kept", "_searched")

    def __init__(self) -> None:
        self._kept = bytearray()
        self._searched = 0
        """How much of `_kept` is known to hold no border: each byte is searched once, whatever the cuts."""

    @property
    def kept(self) -> int:
        """Length of the unfinished event."""
        return len(self._kept)

    def split(self, data: bytes) -> list[bytes]:
        """The events that `data` completes. UTF-8 needs no care: no part of a longer character is a line end."""
        kept = self._kept
        start = 0
        if kept:
            kept += data
            if b"\n" not in data and b"\r" not in data:
                return []
            start = max(0, self._searched - _LONGEST_BORDER)
            data = bytes(kept)
        elif data.find(b"\n\n") == len(data) - 2 and len(data) > 2 and b"\r" not in data:
            return [data]  # exactly one event, as it usually comes
        elif _is_one_of_crlf(data):
            return [data]  # the same, as Google writes it
        events, done = _split_lf(data, start) if b"\r" not in data else _split_any(data, start)
        if done or not kept:
            kept[:] = data[done:]
        self._searched = len(kept)
        return events

    def rest(self) -> bytes:
        """What is left of an event that was never ended by a blank line; nothing is kept afterwards."""
        rest = bytes(self._kept)
        self._kept.clear()
        self._searched = 0
        return rest


def _is_one_of_crlf(data: bytes) -> bool:
    """Whether this is exactly one event, all of whose lines end with CRLF."""
    if not data.endswith(b"\r\n\r\n") or data.find(b"\r\n\r\n") != len(data) - 4 or len(data) == 4:
        return False
    return data.count(b"\r") == data.count(b"\n") == data.count(b"\r\n")


def _split_lf(data: bytes, start: int) -> tuple[list[bytes], int]:
    events: list[bytes] = []
    done = 0
    find = data.find
    while (border := find(b"\n\n", start)) >= 0:
        start = border + 2
        events.append(data[done:start])
        done = start
    return events, done


def _split_any(data: bytes, start: int) -> tuple[list[bytes], int]:
    events: list[bytes] = []
    done = 0
    while (border := _BORDER.search(data, start)) is not None:
        start = border.end()
        if start == len(data) and border.group() in (b"\r\n\r", b"\n\r"):
            break  # the LF of this CRLF has not come yet
        events.append(data[done:start])
        done = start
    return events, done


def fields_of(event: bytes) -> tuple[bytes, bytes]:
    """(event name, data) of one event: data lines joined by LF, comments and other fields left out."""
    name, data = b"", []
    for line in event.removeprefix(b"\xef\xbb\xbf").splitlines():  # bytes: only CR, LF and CRLF end a line
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value[1:] if value.startswith(b" ") else value)
        elif field == b"event":
            name = value[1:] if value.startswith(b" ") else value
    return name, data[0] if len(data) == 1 else b"\n".join(data)


def is_event_stream(content_type: str) -> bool:
    """Whether a Content-Type means server-sent events, however it is spelled."""
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"
