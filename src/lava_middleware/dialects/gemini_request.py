"""This file knows how to read what a request to Gemini says about its size.

https://ai.google.dev/api/generate-content#request-body. Google takes each name in camelCase and in snake_case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from .gather import Gathered
from .jsons import mapping, sequence, text_or_none
from .media import data_url, document_tokens, image_size

TILE_TOKENS = 258
LARGEST_IMAGE = 36 * TILE_TOKENS
"""An image whose size its head does not tell: 36 tiles of 768 pixels."""
DETAILED_IMAGE = 2_240
"""Newer models count an image by its resolution class, whatever its size; this is the highest.
https://ai.google.dev/gemini-api/docs/media-resolution#token-counts"""

_CLIENT_TOOLS = ("functionDeclarations", "computerUse")
"""Tools that the application runs itself. All others are Google's own."""


@lru_cache(maxsize=64)
def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda sign: "_" + sign.group().lower(), name)


def either(given: Mapping[str, Any], name: str) -> Any:
    """A member by its camelCase name, in either spelling."""
    value = given.get(name)
    return given.get(_snake(name)) if value is None else value


def spelled(given: Mapping[str, Any], name: str) -> str:
    """The name as this object spells it; camelCase where it has neither."""
    return _snake(name) if name not in given and _snake(name) in given else name


def gather_content(gathered: Gathered, content: object) -> None:
    """A content (or several), which Google also takes as one part or as a string."""
    if isinstance(content, list):
        for one in content:
            gather_content(gathered, one)
    elif isinstance(content, str):
        gathered.text(content)
    elif isinstance(content, dict):
        gathered.parts += 1
        parts = content.get("parts", content if "role" not in content else None)
        for part in parts if isinstance(parts, list) else [parts]:
            _gather_part(gathered, part)


def _gather_part(gathered: Gathered, part: object) -> None:
    if not isinstance(part, dict):
        gathered.text(part)
        return
    gathered.parts += 1
    for key, value in part.items():
        if key in ("inlineData", "inline_data"):
            _gather_inline(gathered, mapping(value))
        elif key in ("fileData", "file_data"):
            gathered.unseen = True  # a file's id or a video's URL: its length is not in the request
        elif key in ("thoughtSignature", "thought_signature"):
            # Thoughts of an earlier turn, encrypted: some four characters of base64 a token.
            gathered.media_tokens += len(value) // 4 if isinstance(value, str) else 0
        elif key in ("functionResponse", "function_response"):
            _gather_response(gathered, mapping(value))
        elif isinstance(value, str):
            gathered.text(value)
        elif isinstance(value, dict | list):
            gathered.json(value)


def _gather_response(gathered: Gathered, response: Mapping[str, Any]) -> None:
    """What a function gave back; newer models take pictures in it."""
    gathered.json({key: value for key, value in response.items() if key != "parts"})
    for part in sequence(response.get("parts")):
        _gather_part(gathered, part)


def _gather_inline(gathered: Gathered, blob: Mapping[str, Any]) -> None:
    """A file within the request."""
    data, kind = blob.get("data"), (text_or_none(either(blob, "mimeType")) or "").lower()
    if not isinstance(data, str):
        return
    found = data_url(data) if data.startswith("data:") else None
    payload = found[1] if found else data
    size = len(payload) * 3 // 4
    if kind.startswith("image/"):
        gathered.media_tokens += image_tokens(payload)
    elif kind.startswith("video/"):
        gathered.media_tokens += size // 40 + TILE_TOKENS  # 300 tokens a second, of at least 12 kB
    elif kind.startswith("audio/"):
        raw = "wav" in kind or "l16" in kind or "pcm" in kind
        gathered.media_tokens += size // (500 if raw else 60) + 32  # 32 tokens a second
    elif kind.startswith("text/") or kind == "application/json":
        gathered.media_tokens += document_tokens(payload, "text/plain")
    else:
        gathered.media_tokens += document_tokens(payload, kind)


def image_tokens(payload: str) -> int:
    """The most tokens an image costs: 258 for each tile, whose side is between 256 and 768 pixels.

    https://ai.google.dev/gemini-api/docs/tokens#multimodal-tokens
    """
    size = image_size(payload)
    if size is None:
        return LARGEST_IMAGE
    side = min(max(int(min(size) / 1.5), 256), 768)
    return max(DETAILED_IMAGE, TILE_TOKENS * -(-size.width // side) * -(-size.height // side))


def gather_tools(gathered: Gathered, tools: object) -> tuple[bool, bool]:
    """Count the declared tools. (any are declared, Google runs some of them)."""
    server = False
    for tool in tools if isinstance(tools, list) else [tools] if isinstance(tools, dict) else []:
        gathered.parts += 1
        gathered.json(tool)
        clients = {*_CLIENT_TOOLS, *map(_snake, _CLIENT_TOOLS)}
        server |= any(name not in clients and value is not None for name, value in mapping(tool).items())
    return bool(tools), server
