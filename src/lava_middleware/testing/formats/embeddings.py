"""This file knows how to answer OpenAI embeddings: vectors that mean nothing, and a usage that is right."""

from __future__ import annotations

import base64
import functools
import math
import struct
import zlib
from typing import Any

from ..ask import Ask, embedded
from ..generation import Generation, figures
from ..script import Script
from ..served import Figures
from .wire import Stamp, dumps


def body(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> tuple[dict[str, Any], Figures]:
    told = figures(script, ask, 0, 0)
    asked = ask.body.get("dimensions")
    dimensions = asked if isinstance(asked, int) and 1 <= asked <= 4096 else 1536
    plain = ask.body.get("encoding_format") != "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _embedding(dumps(item), dimensions, plain)}
        for index, item in enumerate(embedded(ask.body.get("input")))
    ]
    answer: dict[str, Any] = {"object": "list", "data": data, "model": script.model or ask.model}
    if script.usage:
        answer["usage"] = {"prompt_tokens": told.input_tokens, "total_tokens": told.input_tokens}
    return answer, told


def _embedding(text: str, dimensions: int, plain: bool) -> list[float] | str:
    made = vector(text, dimensions)
    return made if plain else base64.b64encode(struct.pack(f"<{dimensions}f", *made)).decode()


def vector(text: str, dimensions: int) -> list[float]:
    turn = zlib.crc32(text.encode()) % dimensions
    wave = _wave(dimensions)
    return list(wave[turn:] + wave[:turn])


@functools.lru_cache(maxsize=8)
def _wave(dimensions: int) -> tuple[float, ...]:
    """A vector of length one; each text gets it turned by another angle."""
    raw = [math.sin(1 + place * place) for place in range(dimensions)]
    length = math.sqrt(sum(value * value for value in raw))
    return tuple(round(value / length, 8) for value in raw)
