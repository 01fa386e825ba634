"""This file knows how to write what all formats share: JSON, server-sent events, ids and padding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

from ..served import Figures

T = TypeVar("T")
_NOTHING = object()
_ALPHABET = "Zf4sQ7mWc0eHt9UbRk2xLvYg"


class Event(NamedTuple):
    """One event of a stream, and what it means for the count."""

    data: bytes
    tokens: int = 0
    """Output tokens that it carries."""
    chunk: bool = False
    """Whether it carries output."""
    figures: Figures | None = None
    """The usage block that it carries."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What makes one answer different from the next."""

    serial: int
    now_s: int

    def id(self, kind: str, length: int) -> str:
        digest = hashlib.sha256(f"{kind} {self.serial}".encode()).hexdigest()
        return (digest * (1 + length // len(digest)))[:length]


def marked(events: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last."""
    waiting = next(events, _NOTHING)
    while waiting is not _NOTHING:
        following = next(events, _NOTHING)
        yield cast(T, waiting), following is _NOTHING
        waiting = following


def dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def sse(data: Mapping[str, Any] | str, event: str | None = None) -> bytes:
    text = data if isinstance(data, str) else dumps(data)
    return (f"event: {event}\ndata: {text}\n\n" if event else f"data: {text}\n\n").encode()


def padding(text: str) -> str:
    """OpenAI's `obfuscation`: as long as it takes to hide the length of what it stands beside."""
    return _ALPHABET[: 16 - len(text.encode()) % 16]
