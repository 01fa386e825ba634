"""This file knows how to measure each dialect: the time added before the first byte of a stream, and for each chunk."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from lava_middleware import Lava
from lava_middleware.transport.gate import GATE
from lava_middleware.transport.instrument import instrument, uninstrument

from .calls import stand_in
from .lines import Line, paired

PAIRS = 40
TOKENS = 200
MESSAGES = [{"role": "user", "content": "Say something about the sea, in a few words."}]


@dataclass(frozen=True)
class Spoken:
    """One dialect as it is asked for a stream of two hundred chunks."""

    name: str
    provider: str
    path: str
    body: dict[str, Any]


SPOKEN = (
    Spoken("chat", "openai", "/v1/chat/completions", {"model": "gpt-4o-mini", "messages": MESSAGES, "stream": True}),
    Spoken("responses", "openai", "/v1/responses", {"model": "gpt-4o-mini", "input": MESSAGES, "stream": True}),
    Spoken(
        "messages",
        "anthropic",
        "/v1/messages",
        {"model": "claude-sonnet-4-5", "messages": MESSAGES, "max_tokens": 500, "stream": True},
    ),
    Spoken(
        "gemini",
        "gemini",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
        {"contents": [{"role": "user", "parts": [{"text": MESSAGES[0]["content"]}]}]},
    ),
)


def lines(wanted: Callable[[str], bool]) -> Iterator[Line]:
    asked = [one for one in SPOKEN if wanted(f"dialect-{one.name}")]
    if not asked:
        return
    options = ("--tokens", str(TOKENS), "--tokens-per-chunk", "1", "--chunk-delay", "0", "--first-byte-delay", "0")
    with stand_in(*options) as url:
        host = url.removeprefix("http://")
        hosts = {host: tuple(dict.fromkeys(one.provider for one in SPOKEN))}
        with Lava("memory://", hosts=hosts) as lava, httpx2.Client(base_url=url) as client:
            lava.grant("bench", "100000")
            for one in asked:
                yield from _measured(lava, client, one)
            uninstrument()


def _measured(lava: Lava, client: httpx2.Client, spoken: Spoken) -> Iterator[Line]:
    """From one stream both figures: when its head was there, and when it had ended. The second has the first in it,
    for what waits in the socket meanwhile is read faster afterwards."""
    heads: dict[bool, list[float]] = {True: [], False: []}

    def stream(ours: bool) -> float:
        request = client.build_request("POST", spoken.path, json=spoken.body)
        began = time.perf_counter()
        response = client.send(request, stream=True)
        head = time.perf_counter()
        for _ in response.iter_bytes():
            pass
        heads[ours].append(head - began)
        return time.perf_counter() - began

    def bare() -> float:
        uninstrument()
        return stream(False)

    def with_us() -> float:
        instrument(lambda: GATE)
        with lava.charge_to("bench"):
            return stream(True)

    _, added = paired(bare, with_us, pairs=PAIRS, warm=5)
    first = statistics.median(ours - without for ours, without in zip(heads[True], heads[False], strict=True))
    name = f"dialect-{spoken.name}"
    yield Line(f"{name}-first", f"{spoken.name}: added before a stream's first byte", first * 1e6, "µs", "≤ 100 µs")
    yield Line(f"{name}-chunk", f"{spoken.name}: added per streamed chunk", added * 1e6 / TOKENS, "µs", "≤ 4 µs")
