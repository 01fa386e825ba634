"""This file knows what differs between httpx and httpx2, so that nothing else has to."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

_UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError")
_UNSENT_BUILTIN = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """One HTTP library: the classes that the shell needs of it."""

    name: str
    """As it calls itself, whatever name it was imported under (`httpx2.alias_httpx()` makes `httpx` be httpx2)."""
    version: str
    Client: Any
    AsyncClient: Any
    Request: Any
    Response: Any
    ByteStream: Any
    SyncByteStream: Any
    AsyncByteStream: Any
    tracing: tuple[type[Any], ...]
    """Transports that announce the send through the `trace` extension."""
    unsent: tuple[type[BaseException], ...]
    LocalProtocolError: type[BaseException]

    def classify(self, error: BaseException) -> Literal["unsent", "lost"]:
        """Whether an error of this class means that no byte of the request can have left."""
        return "unsent" if isinstance(error, self.unsent) else "lost"

    def transport_of(self, sender: Any, request: Any) -> Any:
        """The transport that will carry this request: mounts and proxies looked up by the client itself."""
        find = getattr(sender, "_transport_for_url", None)
        return sender if find is None else find(request.url)


_KNOWN: dict[type[Any], Library] = {}


def library_of(module: ModuleType) -> Library:
    """The adapter for an imported httpx or httpx2. The same one for the same classes."""
    known = _KNOWN.get(module.Client)
    if known is None:
        known = _KNOWN[module.Client] = _adapt(module)
    return known


def _adapt(module: Any) -> Library:
    return Library(
        name=module.Client.__module__.partition(".")[0],
        version=getattr(module, "__version__", "unknown"),
        Client=module.Client,
        AsyncClient=module.AsyncClient,
        Request=module.Request,
        Response=module.Response,
        ByteStream=module.ByteStream,
        SyncByteStream=module.SyncByteStream,
        AsyncByteStream=module.AsyncByteStream,
        tracing=(module.HTTPTransport, module.AsyncHTTPTransport),
        unsent=(*(getattr(module, name) for name in _UNSENT), *_UNSENT_BUILTIN),
        LocalProtocolError=module.LocalProtocolError,
    )
