"""This file knows how a client of the application reads its streamed answers."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import httpx

from .stage import signed_in_as


def ask(client: httpx.Client, customer: str, text: str) -> Generator[dict[str, Any], None, None]:
    """The events of one streamed chat. Leaving the loop (and closing the iterator) hangs up."""
    with client.stream("POST", "/chat", json={"text": text}, headers=signed_in_as(customer)) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))
