"""This file knows how to keep requests to providers from leaving through libraries that are not metered.

Refused is refused with a plain exception, raised before a connection is looked for: it passes unchanged through
google-genai, voyageai and boto3, which retry (after 1 to 10 seconds, or three times) whatever looks like the network.
An aiohttp that can be metered is not guarded: only one whose sessions take no middlewares.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from ..forks import renew_in_child
from .attempt import is_under_way
from .imports import forget, when_imported
from .instrument import meters

Verdict: TypeAlias = Callable[[str, str, str, str], Exception | None]
"""(method, host with its port if it has one, path, library) → what to raise, or None: the request passes (and is
counted there, if need be)."""

ADVICE: dict[str, str] = {
    # library → how to have the request metered. A library that is missing here has no guard.
    "aiohttp": (
        "install aiohttp 3.12.15 or newer, or send it through httpx or httpx2. google-genai's async side uses aiohttp "
        "whenever that can be imported; give it an httpx2 client: "
        'genai.Client(http_options={"httpx_async_client": httpx2.AsyncClient()})'
    ),
    "requests": "send it through httpx or httpx2, or under unbilled() if nobody is to pay for it",
    "botocore": "there is no meter for boto3 yet: send it under unbilled() if nobody is to pay for it",
}

MARK = "_lava_guarded"

_verdict: Verdict | None = None
_lock = threading.RLock()
renew_in_child(sys.modules[__name__], _lock=threading.RLock)
_patched: list[tuple[Any, str, Any, Any]] = []
"""(class, name, our function, the one it replaced)."""


def guard(verdict: Verdict) -> None:
    """Ask `verdict` about every request through aiohttp, requests and botocore, imported already or later.
    Repeats harmlessly; the last verdict counts."""
    global _verdict
    with _lock:
        _verdict = verdict
        for name, patch in _DOORS.items():
            when_imported(name, patch)


def unguard() -> None:
    """Ask about nothing any more. Restores what nobody has wrapped since."""
    global _verdict
    with _lock:
        _verdict = None
        for name, patch in _DOORS.items():
            forget(name, patch)
        for entry in list(_patched):
            owner, name, ours, original = entry
            if vars(owner).get(name) is ours:
                setattr(owner, name, original)
                _patched.remove(entry)


def _ask(method: str, url: str, library: str) -> None:
    """Raise the verdict on this request, if there is one."""
    if _verdict is None or is_under_way():  # metered further out: httpx over aiohttp
        return
    try:
        parts = urlsplit(url)
    except ValueError:  # the library has an error of its own for it
        return
    host = parts.netloc.rpartition("@")[2].lower()
    error = _verdict(method.upper(), host, parts.path or "/", library)
    if error is not None:
        raise error


def _put(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    with _lock:
        original = getattr(owner, name, None)
        if original is None or _is_ours(original):
            return
        ours = wrap(original)
        setattr(ours, MARK, True)
        setattr(owner, name, ours)
        _patched.append((owner, name, ours, original))


def _is_ours(function: Any) -> bool:
    return any(getattr(one, MARK, False) for one in _chain(function))


def _chain(function: Any) -> list[Any]:
    chain = [function]
    while (function := getattr(function, "__wrapped__", None)) is not None:
        chain.append(function)
    return chain


def _aiohttp(module: Any) -> None:
    def wrap(original: Any) -> Any:
        @functools.wraps(original)  # google-genai reads the signature
        async def _request(self: Any, method: str, str_or_url: Any, *args: Any, **kwargs: Any) -> Any:
            if not meters(module.ClientSession._request):
                _ask(method, str(_joined(self, str_or_url)), "aiohttp")
            return await original(self, method, str_or_url, *args, **kwargs)

        return _request

    _put(module.ClientSession, "_request", wrap)


def _joined(session: Any, url: Any) -> Any:
    """The whole URL where the session has a base; what cannot be joined is left for aiohttp to complain about."""
    build = getattr(session, "_build_url", None)
    if build is None:
        return url
    try:
        return build(url)
    except Exception:
        return url


def _requests(module: Any) -> None:
    def wrap(original: Any) -> Any:
        @functools.wraps(original)  # each hop of a redirect comes through here again
        def send(self: Any, request: Any, **kwargs: Any) -> Any:
            _ask(getattr(request, "method", None) or "", str(getattr(request, "url", None) or ""), "requests")
            return original(self, request, **kwargs)

        return send

    _put(module.Session, "send", wrap)


def _botocore(module: Any) -> None:
    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        def send(self: Any, request: Any) -> Any:
            _ask(request.method or "", str(request.url or ""), "botocore")
            return original(self, request)

        return send

    _put(module.URLLib3Session, "send", wrap)


_DOORS: dict[str, Callable[[Any], None]] = {
    # module that is watched for → how to guard it
    "aiohttp": _aiohttp,
    "requests": _requests,
    "botocore.httpsession": _botocore,
}
