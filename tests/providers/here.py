"""How a name on the network is answered by this machine, so that a stand-in can be any host."""

from __future__ import annotations

import socket
from typing import Any

import pytest


def resolve_here(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """These names, and those below them, lead to the loopback interface; all others do what they did."""
    ask = socket.getaddrinfo

    def answer(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        ours = any(name == one or name.endswith("." + one) for one in names)
        return ask("127.0.0.1" if ours else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
