"""This file knows how to measure what a provider call costs more with us than without, over real sockets."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import httpx2
from openai import OpenAI

from lava_middleware import Lava
from lava_middleware.transport.gate import GATE
from lava_middleware.transport.instrument import instrument, uninstrument

from .lines import Line, paired, timed

PAIRS = 200
BODY = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "Say something about the sea, in a few words."}],
}


@contextmanager
def stand_in(*options: str) -> Iterator[str]:
    """The base URL of a stand-in in a process of its own: it must not share our interpreter lock."""
    command = [sys.executable, "-u", "-m", "lava_middleware.testing", "--port", "0", *options]
    # Into a file: it logs a line per request, and a pipe that nobody reads would stop it.
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT) as process:
        try:
            yield _url_in(said)
        finally:
            process.terminate()


def _url_in(said: IO[bytes]) -> str:
    for _ in range(200):
        said.seek(0)
        if found := re.search(rb"http://127\.0\.0\.1:\d+", said.read()):
            return found[0].decode()
        time.sleep(0.05)
    raise RuntimeError("the stand-in did not start")


def lines(wanted: Callable[[str], bool]) -> Iterator[Line]:
    names = ("first-byte-unary", "first-byte-stream", "unary-httpx2", "unary-openai", "stream-httpx2", "stream-openai")
    if not any(wanted(name) for name in names):
        return
    with (
        stand_in("--tokens", "200", "--tokens-per-chunk", "1", "--chunk-delay", "0", "--first-byte-delay", "0") as url,
        tempfile.TemporaryDirectory() as directory,
    ):
        host = url.removeprefix("http://")
        ledger = f"sqlite:///{pathlib.Path(directory) / 'bench.db'}"
        with Lava(ledger, hosts={host: ("openai",)}, markup="1.20") as lava:
            lava.instrument()
            lava.grant("bench", "100000")
            yield from _lines(lava, url, wanted)
            uninstrument()


def _lines(lava: Lava, url: str, wanted: Callable[[str], bool]) -> Iterator[Line]:
    client = httpx2.Client(base_url=url)
    sdk = OpenAI(base_url=f"{url}/v1", api_key="bench", max_retries=0)

    def bare(call: Callable[[], float]) -> Callable[[], float]:
        def run() -> float:
            uninstrument()
            return call()

        return run

    def ours(call: Callable[[], float]) -> Callable[[], float]:
        def run() -> float:
            instrument(lambda: GATE)
            with lava.charge_to("bench"):
                return call()

        return run

    def head(stream: bool) -> Callable[[], float]:
        def call() -> float:
            request = client.build_request("POST", "/v1/chat/completions", json={**BODY, "stream": stream})
            began = time.perf_counter()
            response = client.send(request, stream=True)
            seconds = time.perf_counter() - began
            for _ in response.iter_bytes():
                pass
            return seconds

        return call

    def unary() -> float:
        return timed(lambda: client.post("/v1/chat/completions", json=BODY))

    def streamed() -> float:
        def read() -> None:
            with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response:
                for _ in response.iter_bytes():
                    pass

        return timed(read)

    def sdk_unary() -> float:
        return timed(lambda: sdk.chat.completions.create(**BODY))  # type: ignore[call-overload]

    def sdk_streamed() -> float:
        def read() -> None:
            for _ in sdk.chat.completions.create(**BODY, stream=True):  # type: ignore[call-overload]
                pass

        return timed(read)

    if wanted("first-byte-unary"):
        _, added = paired(bare(head(False)), ours(head(False)), pairs=PAIRS)
        yield Line("first-byte-unary", "added before the first byte, unary", added * 1e6, "µs", "≤ 100 µs")
    if wanted("first-byte-stream"):
        _, added = paired(bare(head(True)), ours(head(True)), pairs=PAIRS // 4)
        yield Line("first-byte-stream", "added before the first byte, stream", added * 1e6, "µs", "≤ 100 µs")
    if wanted("unary-httpx2"):
        without, added = paired(bare(unary), ours(unary), pairs=PAIRS)
        yield Line(
            "unary-httpx2",
            "added to a whole unary call, httpx2",
            added * 1e6,
            "µs",
            "≤ 200 µs",
            {"bare_us": without * 1e6},
        )
    if wanted("unary-openai"):
        without, added = paired(bare(sdk_unary), ours(sdk_unary), pairs=PAIRS)
        yield Line(
            "unary-openai",
            "whole unary call, times the same through the openai SDK",
            1 + added / without,
            "×",
            "≤ 1.12 ×",
            {"bare_us": without * 1e6},
        )
    if wanted("stream-httpx2"):
        without, added = paired(bare(streamed), ours(streamed), pairs=PAIRS // 4)
        yield Line("chunk", "added per streamed chunk, text counted", added * 1e6 / 200, "µs", "≤ 4 µs")
        yield Line(
            "stream-httpx2",
            "200-chunk stream, times bare httpx2",
            1 + added / without,
            "×",
            "≤ 1.20 ×",
            {"bare_us": without * 1e6},
        )
    if wanted("stream-openai"):
        without, added = paired(bare(sdk_streamed), ours(sdk_streamed), pairs=PAIRS // 4)
        yield Line(
            "stream-openai",
            "200-chunk stream, times the same through the openai SDK",
            1 + added / without,
            "×",
            "≤ 1.05 ×",
            {"bare_us": without * 1e6},
        )
    client.close()
    sdk.close()
