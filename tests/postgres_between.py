"""This file knows how to stand between a client and PostgreSQL: as a network that fails, and as a pooler that swaps.

Both listen on a port of their own, for as long as their block lasts.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit, urlunsplit


class _Listener:
    """Accepts connections and serves each on a thread; closes all at the end."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = parts.hostname or "", parts.port or 5432
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{self._listener.getsockname()[1]}"))
        self.accepted = 0
        self._sockets: set[socket.socket] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                self.accepted += 1
                threading.Thread(target=self._guarded, args=(client,), daemon=True).start()

    def _guarded(self, client: socket.socket) -> None:
        mine = [client]
        self._sockets.add(client)
        try:
            self._serve(client, mine)
        except OSError:
            pass
        finally:
            for one in mine:
                self._sockets.discard(one)
                one.close()

    def _to_server(self, mine: list[socket.socket]) -> socket.socket:
        server = socket.create_connection(self._server, 10)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        mine.append(server)
        self._sockets.add(server)
        return server

    def _serve(self, client: socket.socket, mine: list[socket.socket]) -> None:
        raise NotImplementedError

    def drop(self) -> None:
        """Cut every connection, at once."""
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        self.drop()

    def __enter__(self):  # type: ignore[no-untyped-def]  # Self, in both
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Network(_Listener):
    """Passes bytes on, until it is told to fail."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.stalled = False
        """Nothing passes any more, and nobody is told."""
        self.lose_answer: Callable[[bytes], bool] | None = None
        """Asked for each piece that a client sends: True lets it through, then cuts the line before the answer."""
        self.refuse = False
        """New connections are cut at once."""
        self.keep_back: Callable[[bytes], bool] | None = None
        """Asked likewise: True keeps the piece on its way until `let_go` is set, whatever becomes of the client."""
        self.let_go = threading.Event()
        self.kept = self.late = 0
        """Pieces kept back; those of them that have been delivered and answered."""

    @contextlib.contextmanager
    def stall(self) -> Iterator[None]:
        self.stalled = True
        try:
            yield
        finally:
            self.stalled = False

    def half_close(self) -> None:
        """The server's side of each connection goes silent: it sends no more, and the client may go on talking."""
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RD)

    def _serve(self, client: socket.socket, mine: list[socket.socket]) -> None:
        if self.refuse:
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = self._to_server(mine)
        deaf = False
        while not self._closed:
            ready, _, _ = select.select([client, server], [], [], 0.05)
            if self.stalled:
                threading.Event().wait(0.01)
                continue
            for one in ready:
                data = one.recv(65536)
                if not data:
                    return
                if one is client and self.keep_back is not None and self.keep_back(data):
                    self.kept += 1
                    self.let_go.wait(60)
                    server.sendall(data)
                    server.recv(65536)
                    self.late += 1
                    return
                if one is client:
                    server.sendall(data)
                    deaf = deaf or (self.lose_answer is not None and self.lose_answer(data))
                elif deaf:  # the server has answered, so it is done: now the line is cut
                    return
                else:
                    client.sendall(data)


class Pooler(_Listener):
    """A pooler in transaction mode: after every transaction the client goes on over another server connection.

    What a session would keep (a SET, a prepared statement's name, a lock, a LISTEN) is gone, or somebody else's.
    """

    CONNECTIONS = 3

    def __init__(self, url: str) -> None:
        self.swaps = 0
        super().__init__(url)

    def _serve(self, client: socket.socket, mine: list[socket.socket]) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = _startup(client)
        servers = []
        for number in range(self.CONNECTIONS):
            server = self._to_server(mine)
            server.sendall(greeting)
            answer = _until_ready(server)[0]
            if not number:
                client.sendall(answer)
            servers.append(server)
        turn = 0
        while True:
            request = _request(client)
            if request is None:
                return
            servers[turn].sendall(request)
            answer, idle = _until_ready(servers[turn])
            client.sendall(answer)
            if idle:
                turn = (turn + 1) % len(servers)
                self.swaps += 1


def _exactly(one: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = one.recv(count - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def _startup(client: socket.socket) -> bytes:
    """The start-up message; encryption is declined. (postgresql.org/docs/current/protocol-message-formats.html)"""
    while True:
        head = _exactly(client, 8)
        length, code = struct.unpack("!ii", head)
        if code in (80877103, 80877104):  # SSLRequest, GSSENCRequest
            client.sendall(b"N")
            continue
        return head + _exactly(client, length - 8)


def _message(one: socket.socket) -> bytes:
    head = _exactly(one, 5)
    return head + _exactly(one, struct.unpack("!i", head[1:])[0] - 4)


def _request(client: socket.socket) -> bytes | None:
    """All up to a Sync or a simple Query; None: the client says goodbye."""
    data = b""
    while True:
        message = _message(client)
        if message[:1] == b"X":
            return None
        data += message
        if message[:1] in (b"S", b"Q"):
            return data


def _until_ready(server: socket.socket) -> tuple[bytes, bool]:
    """(all up to ReadyForQuery, whether no transaction is open)"""
    data = b""
    while True:
        message = _message(server)
        data += message
        if message[:1] == b"Z":
            return data, message[5:6] == b"I"
        if message[:1] == b"E" and b"FATAL" in message:
            return data, True
