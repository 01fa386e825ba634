"""This file knows how to speak HTTP/1.1 on one connection, and whether the peer is still there."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

from .ask import Call

_HEAD_MAX = 64 * 1024


class Gone(Exception):
    """The peer has left."""


class Unreadable(Exception):
    """Not HTTP/1.1."""


class Connection(asyncio.Protocol):
    """One client. `serve` is run for as long as it is there. Knows at once when the peer leaves."""

    def __init__(self, serve: Callable[[Connection], Coroutine[Any, Any, None]]) -> None:
        self._serve = serve
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.task = asyncio.get_running_loop().create_task(self._serve(self))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._arrived.set()

    def eof_received(self) -> None:
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _leave(self) -> None:
        self.gone.set()
        self._arrived.set()
        self._writable.set()

    # What the server calls.

    async def request(self) -> Call:
        """The next request, whole. Raises Gone where the peer left, Unreadable where it sends something else."""
        head = bytes(await self._until(b"\r\n\r\n"))
        try:
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            pairs = (line.partition(":") for line in lines if line)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            length = int(headers.get("content-length", "0"))
        except ValueError as error:
            raise Unreadable from error
        if headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        body = await self._chunked() if chunked else await self._exactly(length)
        return Call(method, target, headers, body)

    def check(self) -> None:
        """Raises Gone where the peer has left."""
        if self.gone.is_set():
            raise Gone

    def write(self, data: bytes) -> None:
        self.check()
        self._transport.write(data)

    async def drain(self) -> None:
        """Let others work, and wait until the peer takes more. Raises Gone."""
        await asyncio.sleep(0)
        await self._writable.wait()
        self.check()

    async def rest(self, seconds: float | None) -> None:
        """Wait, for good with None. Raises Gone as soon as the peer leaves."""
        if seconds is not None and seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.gone.wait()
        except TimeoutError:
            return
        raise Gone

    async def unless_gone(self, waiting: Coroutine[Any, Any, None]) -> None:
        """Wait for something else. Raises Gone as soon as the peer leaves."""
        wanted = asyncio.ensure_future(waiting)
        leaving = asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait((wanted, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not wanted.done():
                raise Gone
            wanted.result()
        finally:
            for task in (wanted, leaving):
                task.cancel()
            await asyncio.gather(wanted, leaving, return_exceptions=True)

    def close(self, *, reset: bool = False) -> None:
        """Hang up: after all that was written, or at once and rudely."""
        if reset and not self._transport.is_closing():
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if reset:
            self._transport.abort()
        else:
            self._transport.close()

    async def _until(self, end: bytes) -> bytearray:
        start = 0
        while (found := self._buffer.find(end, start)) < 0:
            if len(self._buffer) > _HEAD_MAX:
                raise Unreadable
            start = max(len(self._buffer) - len(end), 0)
            await self._more()
        return self._take(found + len(end))

    async def _exactly(self, length: int) -> bytes:
        while len(self._buffer) < length:
            await self._more()
        return bytes(self._take(length))

    async def _chunked(self) -> bytes:
        body = bytearray()
        while True:
            try:
                size = int((await self._until(b"\r\n")).split(b";")[0], 16)
            except ValueError as error:
                raise Unreadable from error
            if not size:
                break
            body += (await self._exactly(size + 2))[:-2]
        while await self._until(b"\r\n") != b"\r\n":
            pass  # trailers
        return bytes(body)

    def _take(self, length: int) -> bytearray:
        taken = self._buffer[:length]
        del self._buffer[:length]
        return taken

    async def _more(self) -> None:
        self.check()
        self._arrived.clear()
        await self._arrived.wait()


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """The first bytes of an answer."""
    lines = [f"HTTP/1.1 {status} {_phrase(status)}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unassigned"  # 529, for one


def framed(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
