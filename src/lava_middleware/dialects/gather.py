"""This file knows how to gather what a request says about its size: text, media, what is only referred to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..core.intent import Text
from .media import audio_tokens, data_url, document_tokens, image_size, image_tokens_openai
from .text import weigh

Block = Mapping[str, Any]

DEEPEST = 32
"""Levels that are looked through for media; what lies deeper is counted as it is written."""


class Gathered:
    """Adds up a request. Strings are collected and weighed once, at the end."""

    __slots__ = ("_pieces", "cache_ttls", "media_tokens", "parts", "refuse", "unseen")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.media_tokens = 0
        self.parts = 0
        self.unseen = False
        self.cache_ttls: set[str] = set()
        self.refuse: str | None = None
        """Why it cannot be measured: nested too deeply."""

    def text(self, value: object) -> None:
        """A string the provider will read; anything else is counted as it is written."""
        if isinstance(value, str):
            self._string(value)
        elif value is not None and value is not False and value is not True:
            self.json(value)

    def json(self, value: object) -> None:
        """A schema, a tool: counted with its keys and braces."""
        try:
            self.note_caching(value)
            self._pieces.append(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str))
        except RecursionError:
            self.refuse = "unreadable"

    def block(self, value: object, known: Mapping[str, Callable[[Gathered, Block], None]], depth: int = 0) -> None:
        """A message, a content part, or a list of them. `known` says what to do with a block of that `type`;
        of all others every string counts, whatever its key, so that nothing is overlooked."""
        if isinstance(value, str):
            self._string(value)
        elif depth > DEEPEST:
            self.json(value)
        elif isinstance(value, list):
            for one in value:
                self.block(one, known, depth + 1)
        elif isinstance(value, dict):
            self.parts += 1
            self._note_marker(value)
            special = known.get(kind) if isinstance(kind := value.get("type"), str) else None
            if special is not None:
                special(self, value)
            else:
                for key, inner in value.items():
                    if key != "cache_control" and isinstance(inner, str | list | dict):
                        self.block(inner, known, depth + 1)

    def _string(self, value: str) -> None:
        """A string in a place we do not know; base64 in it is a file, never text."""
        found = data_url(value) if value.startswith("data:") and ";base64," in value[:200] else None
        if found is None:
            self._pieces.append(value)
        elif found[0].startswith("image/"):
            self.media_tokens += image_tokens_openai(None, None, image_size(found[1]))
        elif found[0].startswith(("audio/", "video/")):
            self.media_tokens += audio_tokens(len(found[1]), None)
        else:
            self.media_tokens += document_tokens(found[1], found[0])

    def note_caching(self, value: object) -> None:
        """Remember the cache markers of a value that is counted as a whole."""
        if isinstance(value, dict):
            self._note_marker(value)
        elif isinstance(value, list):
            for one in value:
                self.note_caching(one)

    def _note_marker(self, block: Block) -> None:
        marker = block.get("cache_control")
        if isinstance(marker, dict):
            self.cache_ttls.add(str(marker.get("ttl") or "5m"))

    @property
    def cache_writes(self) -> str | None:
        """The dearest lifetime asked for."""
        if not self.cache_ttls:
            return None
        return "5m" if self.cache_ttls <= {"5m"} else "1h"

    def weight(self) -> Text:
        """All text so far. A space between pieces keeps one from running into the next."""
        joined = weigh(" ".join(self._pieces))
        return Text(joined.bytes, joined.hundredths, self.parts)
