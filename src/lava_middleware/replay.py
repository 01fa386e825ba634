"""This file knows how to send recorded exchanges through the real transport and say what was metered.

    python -m lava_middleware.replay FILE

FILE holds one JSON object a line (gzipped if it ends in .gz): `id`, `method`, `url`, `request_headers`,
`request_body` with `request_body_encoding` ("utf-8" or "base64"), and likewise `response_status`, `response_headers`,
`response_body`. Each goes through LavaTransport over an inner transport that answers what was recorded, in mode
observe on a ledger in memory. For each a JSON line is printed: id, metered, basis, provider, model, totals, or the
reason why nothing was metered. Nothing leaves the machine.
"""

from __future__ import annotations

import base64
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from .core.outcome import TOTALS
from .lava import Lava
from .transport.httpx import LavaTransport

CUSTOMER = "replay"


class Recorded(httpx.BaseTransport):
    """Answers every request with one recorded response, its body in pieces."""

    def __init__(self, exchange: dict[str, Any], pieces: Callable[[bytes], list[bytes]]) -> None:
        self._exchange = exchange
        self._pieces = pieces

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = _bytes(self._exchange, "response_body") or b""
        headers = [(name, value) for name, value in (self._exchange.get("response_headers") or {}).items()]
        stream = _Pieces(self._pieces(body))
        return httpx.Response(self._exchange["response_status"], headers=headers, stream=stream)


class _Pieces(httpx.SyncByteStream):
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces


def whole(body: bytes) -> list[bytes]:
    """A body in one piece."""
    return [body] if body else []


def replay(
    lava: Lava, exchange: dict[str, Any], pieces: Callable[[bytes], list[bytes]] = whole
) -> tuple[dict[str, Any], bytes]:
    """(what was metered, the bytes that reached the application) of one recorded exchange."""
    before = {record.id for record in lava.records(CUSTOMER)} if lava.settings.mode != "observe" else set()
    transport = LavaTransport(Recorded(exchange, pieces), lava=lava)
    request = httpx.Request(
        exchange.get("method") or "POST",
        exchange["url"],
        headers=[(name, value) for name, value in (exchange.get("request_headers") or {}).items()],
        content=_bytes(exchange, "request_body"),
    )
    with lava.charge_to(CUSTOMER):
        response = transport.handle_request(request)
        try:
            received = b"".join(response.stream)  # type: ignore[arg-type]
        finally:
            response.close()
    record = next(iter(lava.records(CUSTOMER)), None)
    metered = record is not None and record.id == response.extensions.get("lava_record_id") and record.id not in before
    answer: dict[str, Any] = {"id": exchange["id"], "metered": metered}
    if record is None or not metered:
        answer["reason"] = "nothing was owed" if "lava_record_id" in response.extensions else "not a metered endpoint"
        return answer, received
    totals = record.facts.get("totals", {})
    answer |= {
        "basis": record.basis,
        "provider": record.provider,
        "model": record.model,
        "totals": {name: totals.get(name) for name in TOTALS},
    }
    return answer, received


def _bytes(exchange: dict[str, Any], name: str) -> bytes | None:
    text = exchange.get(name)
    if text is None:
        return None
    encoded = exchange.get(f"{name}_encoding") == "base64"
    return base64.b64decode(text) if encoded else str(text).encode("utf-8", "surrogatepass")


def read(path: str) -> Iterator[dict[str, Any]]:
    """The exchanges of a file, one at a time."""
    if path.endswith(".gz"):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, filter(str.strip, lines))
    else:
        with open(path, encoding="utf-8") as lines:
            yield from map(json.loads, filter(str.strip, lines))


def main(arguments: list[str]) -> int:
    """The command. Exit status 2 for a file that cannot be read."""
    if len(arguments) != 1:
        print("usage: python -m lava_middleware.replay FILE", file=sys.stderr)
        return 2
    progress = sys.stderr.isatty()
    try:
        with Lava("sqlite:///:memory:", mode="observe", tracing=False) as lava:
            for number, exchange in enumerate(read(arguments[0]), 1):
                print(json.dumps(replay(lava, exchange)[0]))
                if progress and number % 50 == 0:
                    print(f"\r{number:,} exchanges", end="", file=sys.stderr, flush=True)
    except (OSError, ValueError, KeyError) as error:
        print(f"{arguments[0]}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if progress:
        print(file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
