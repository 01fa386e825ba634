"""A forward proxy in a thread: enough of one for SDKs that are told to use it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


class ForwardProxy:
    """Relays `POST http://host:port/path`, and tunnels for CONNECT. `passed` counts requests."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.passed = 0
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        for one in (self._listening, *self._open):
            with suppress(OSError):
                one.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._open.append(client)
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        """One request; the connection ends with its answer (a keep-alive would need an HTTP parser)."""
        with suppress(OSError), client, client.makefile("rb") as file:
            method, target, _ = file.readline().decode().split()
            headers = []
            while (line := file.readline()) not in (b"\r\n", b""):
                headers.append(line)
            self.passed += 1
            where = urlsplit(target if "://" in target else f"//{target}")
            with socket.create_connection((where.hostname, where.port or 80)) as upstream:
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    threading.Thread(target=_pump, args=(client, upstream), daemon=True).start()
                else:
                    length = next(int(one[15:]) for one in headers if one.lower().startswith(b"content-length:"))
                    kept = [one for one in headers if not one.lower().startswith((b"connection", b"proxy-"))]
                    path = f"{where.path}?{where.query}" if where.query else where.path
                    head = f"{method} {path} HTTP/1.1\r\n".encode() + b"".join(kept) + b"connection: close\r\n\r\n"
                    upstream.sendall(head + file.read(length))
                    with upstream.makefile("rb") as answer:
                        client.sendall(answer.readline() + b"connection: close\r\n")
                        while data := answer.read1(65_536):
                            client.sendall(data)
                    return
                _pump(upstream, client)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
