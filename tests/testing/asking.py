"""This file knows how to put plain questions to the stand-in."""

from __future__ import annotations

import json
from typing import Any

MODEL = "gpt-4o-mini"
CLAUDE = "claude-sonnet-4-6"
MESSAGES: Any = [{"role": "user", "content": "Tell me about ledgers."}]


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, **more}


def claude(**more: Any) -> dict[str, Any]:
    return {"model": CLAUDE, "messages": MESSAGES, "max_tokens": 1000, **more}


def data_lines(body: bytes) -> list[Any]:
    """The JSON of a stream's data lines; [DONE] as it stands."""
    lines = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def event_names(body: bytes) -> list[str]:
    return [line[7:] for line in body.decode().split("\n") if line.startswith("event: ")]
