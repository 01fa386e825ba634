"""A client of the application goes away in the middle of a streamed answer, through uvicorn and the middleware."""

from __future__ import annotations

import gc
import importlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from lava_middleware import LavaMiddleware
from lava_middleware.testing import Script

from ..frameworks.served import serving
from .rig import CUSTOMER, Rig, chat, eventually, rigged

ENDLESS = Script(endless=True, chunk_delay_s=0.002)


def application(rig: Rig, http: Any) -> FastAPI:
    """Passes a provider's stream on as it comes, in both colours."""
    app = FastAPI()
    app.add_middleware(LavaMiddleware, lava=rig.lava, customer=lambda request: CUSTOMER)

    @app.get("/asyncio")
    async def _async() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            async with (
                http.AsyncClient(verify=False) as client,
                client.stream("POST", rig.chat_url, json=chat(stream=True)) as answer,
            ):
                async for piece in answer.aiter_bytes():
                    yield piece

        return StreamingResponse(pieces())

    @app.get("/sync")
    def _sync() -> StreamingResponse:
        def pieces() -> Iterator[bytes]:
            with (
                http.Client(verify=False) as client,
                client.stream("POST", rig.chat_url, json=chat(stream=True)) as answer,
            ):
                yield from answer.iter_bytes()

        return StreamingResponse(pieces())

    return app


@pytest.mark.parametrize("colour", ["sync", "asyncio"])
@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_a_client_that_disconnects_ends_the_call_it_was_paying_for(library: str, colour: str) -> None:
    """T10, T17, T18: upstream is closed, one settlement for what was delivered, nothing held."""
    http = importlib.import_module(library)
    with rigged(ENDLESS) as rig, serving(application(rig, http)) as url:
        where = urlsplit(url)
        with socket.create_connection((where.hostname, where.port or 80)) as client:
            client.sendall(f"GET /{colour} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            received = b""
            while received.count(b'"content":') < 20:
                piece = client.recv(65_536)
                assert piece, received
                received += piece
        # Starlette drops a sync generator that nobody wants any more: the collector closes it.
        eventually(lambda: gc.collect() >= 0 and rig.kinds()[-1:] == ["settled"])
        rig.provider.wait_idle()
        assert rig.endings() == ["settled"]
        assert rig.record.facts["ending"] in ("cancelled", "closed", "collected")
        assert rig.served.aborted_after is not None
        assert rig.record.basis == "counted"
        assert 14 <= rig.record.usage["output"] <= 1.2 * rig.served.output_tokens
        assert rig.record.overrun_cause is None
