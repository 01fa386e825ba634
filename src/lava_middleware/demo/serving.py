"""This file knows how to serve an application with uvicorn on a free port, on a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

START_S, STOP_S = 15.0, 5.0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The application's address, as long as the block lasts."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = _Server(
            uvicorn.Config(app, log_config=None, access_log=False, backlog=512, timeout_graceful_shutdown=2)
        )
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="demo-application", daemon=True
        )
        thread.start()
        try:
            if not server.ready.wait(START_S):
                raise RuntimeError(f"uvicorn did not start within {START_S:.0f} seconds")
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(STOP_S)
