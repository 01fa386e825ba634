"""This file knows how to meter an answer that is one JSON body: keep its pieces, parse once, at the end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..core.intent import Text
from .jsons import parsed, value_at
from .known import Known

LARGEST_PARSED = 32 * 1024 * 1024
"""Bytes of a body that are kept. Of a larger one the beginning and the end are: its figures are looked for there."""
KEPT_HEAD = 64 * 1024
KEPT_TAIL = 1024 * 1024

_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_MODEL = re.compile(rb'"model"\s*:\s*(?=")')


class WholeBodyMeter(Known):
    """The machinery of every answer that is one body; a dialect says what the object means."""

    __slots__ = ("_chunks", "_ended", "_head", "_size")

    def __init__(self) -> None:
        super().__init__()
        self._chunks: list[bytes] = []
        self._size = 0
        self._head = b""
        """The beginning of a body that is too large to keep."""
        self._ended = False

    def _whole(self, value: Mapping[str, Any]) -> None:
        """Take what the parsed body says."""
        raise NotImplementedError

    @property
    def in_tool_call(self) -> bool:
        return False

    @property
    def content(self) -> Text:
        self.weigh_words()
        return Text(self._weight.bytes, self._weight.hundredths, self._parts)

    def feed(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        if self._size > LARGEST_PARSED and not self._head:
            self._head = b"".join(self._chunks)[:KEPT_HEAD]
        if self._head and (len(self._chunks) > 64 or len(data) > KEPT_TAIL):
            self._chunks = [b"".join(self._chunks)[-KEPT_TAIL:]]

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        body = b"".join(self._chunks)
        self._chunks = []
        try:
            self._look_around(body[-KEPT_TAIL:]) if self._head else self._read(body)
        except Exception:  # a mistake of ours must not break the application's answer (G7); the tests want none
            self.misread += 1

    def _read(self, body: bytes) -> None:
        """The whole body. A dialect whose bodies are large in what it need not know reads less of it."""
        value = parsed(body)
        if isinstance(value, dict):
            self.finished = True
            self._whole(value)
            self.weigh_words()

    def _look_around(self, tail: bytes) -> None:
        """The figures of a body that is not parsed: what stands after `"usage":` near one of its ends."""
        found = outline(tail) or outline(self._head)
        if found:
            self._whole({**outline(self._head, model_only=True), **found})


def outline(raw: bytes, *, model_only: bool = False) -> dict[str, Any]:
    """The model and the last `usage` object in these bytes, without parsing what is around them.

    Safe on bodies whose other content has no quotes in it (numbers, base64): a key cannot be mistaken then, and
    `"usage":{` cannot stand inside a JSON string, whose quotes are escaped.
    """
    found: dict[str, Any] = {}
    if (model := _MODEL.search(raw)) is not None and isinstance(name := value_at(raw, model.end()), str):
        found["model"] = name
    if model_only:
        return found
    ends = [one.end() for one in _USAGE.finditer(raw)]
    usage = value_at(raw, ends[-1]) if ends else None
    return {**found, "usage": usage} if isinstance(usage, dict) else {}
