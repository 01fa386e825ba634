"""This file knows how to put a meter around every client of httpx, httpx2 and aiohttp, once, and take it away again.

For httpx and httpx2 the point is `_send_single_request` of `Client` and `AsyncClient`, at class level: the only one
that every SDK hits once per attempt, whatever its transport, mounts or proxies, clients built earlier included.
It is a private name, so its presence and signature are checked first. For aiohttp it is `ClientSession._request`, which
is given one middleware more; an aiohttp that takes none is not metered, and what it would send to a provider is refused
(guards).
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

from ..errors import InstrumentError
from ..forks import renew_in_child
from .imports import forget, when_imported
from .library import Library, library_of
from .seen import Gate
from .shell import send_async, send_sync

GateProvider: TypeAlias = Callable[[], Gate | None]
"""Asked at each request for the gate in force; None: nobody gates here, the request passes."""

LIBRARIES = ("httpx", "httpx2")
AIOHTTP = "aiohttp"
POINT = "_send_single_request"
MARK = "_lava_metered"

_provider: GateProvider | None = None
_lock = threading.RLock()
renew_in_child(sys.modules[__name__], _lock=threading.RLock)
_patched: dict[type[Any], tuple[Any, Any]] = {}
"""Class → (our function, the one it replaced)."""


def instrument(gate_provider: GateProvider) -> None:
    """Meter every client of httpx, httpx2 and aiohttp, imported already or later. Repeats harmlessly; the last provider
    counts.

    Raises InstrumentError if an imported library lacks the point of interception. A library imported later that lacks
    it raises that from its import.
    """
    global _provider
    with _lock:
        _provider = gate_provider
        for name in LIBRARIES:
            when_imported(name, _patch)
        when_imported(AIOHTTP, _patch_aiohttp)


def uninstrument() -> None:
    """Meter nothing any more. The classes are restored where nobody has wrapped them since; elsewhere our wrapper stays
    and passes everything on."""
    global _provider
    with _lock:
        _provider = None
        for name in LIBRARIES:
            forget(name, _patch)
        forget(AIOHTTP, _patch_aiohttp)
        for owner, (ours, original) in list(_patched.items()):
            point = ours.__name__
            if vars(owner).get(point) is ours:
                setattr(owner, point, original)
                del _patched[owner]


def is_instrumented() -> bool:
    return _provider is not None


def _patch(module: ModuleType) -> None:
    with _lock:
        library = library_of(module)
        colours = ((library.Client, _sync, False), (library.AsyncClient, _async, True))
        for owner, _, is_async in colours:
            _check(library, owner, is_async)
        for owner, wrap, _ in colours:
            original = getattr(owner, POINT)
            if _is_ours(original):  # httpx2.alias_httpx() makes httpx be httpx2
                continue
            ours = wrap(original, library)
            setattr(ours, MARK, True)
            setattr(owner, POINT, ours)
            _patched[owner] = (ours, original)


def meters(function: Any) -> bool:
    """Whether what goes through this function is metered now: not if nobody instruments."""
    return _provider is not None and _is_ours(function)


def _patch_aiohttp(module: ModuleType) -> None:
    from . import aiohttp as driver

    with _lock:
        owner: Any = module.ClientSession
        if driver.fault(module) is not None or _is_ours(owner._request):
            return
        original = owner._request
        ours = _aiohttp(original, driver.middlewares)
        setattr(ours, MARK, True)
        owner._request = ours
        _patched[owner] = (ours, original)


def _is_ours(function: Any) -> bool:
    """Whether our wrapper is this function, or below the wrappers of others."""
    while function is not None:
        if getattr(function, MARK, False):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _check(library: Library, owner: type[Any], is_async: bool) -> None:
    function = getattr(owner, POINT, None)
    if function is None:
        fault = "is missing"
    elif (found := _parameters(function)) != ["self", "request"]:
        fault = f"takes ({', '.join(found)}) instead of (self, request)"
    elif inspect.iscoroutinefunction(function) is not is_async:
        fault = "is a coroutine function" if not is_async else "is no coroutine function"
    else:
        return
    where = "lava_middleware" if library.name == "httpx" else f"lava_middleware.transport.{library.name}"
    transport = "AsyncLavaTransport" if is_async else "LavaTransport"
    raise InstrumentError(
        f"{library.name} {library.version} cannot be instrumented: {owner.__name__}.{POINT} {fault}. "
        f"Install a version of {library.name} that this release knows, or leave instrument() out and give the clients "
        f"the explicit transport: {library.name}.{owner.__name__}(transport={where}.{transport}())"
    )


def _parameters(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ["?"]


def _sync(original: Any, library: Library) -> Any:
    @functools.wraps(original)
    def _send_single_request(self: Any, request: Any) -> Any:
        provider = _provider
        gate = None if provider is None else provider()
        if gate is None:
            return original(self, request)
        return send_sync(original, self, request, gate, library)

    return _send_single_request


def _async(original: Any, library: Library) -> Any:
    @functools.wraps(original)
    async def _send_single_request(self: Any, request: Any) -> Any:
        provider = _provider
        gate = None if provider is None else provider()
        if gate is None:
            return await original(self, request)
        return await send_async(original, self, request, gate, library)

    return _send_single_request


def _aiohttp(original: Any, middlewares: Callable[..., Any]) -> Any:
    @functools.wraps(original)  # google-genai reads the signature
    async def _request(self: Any, method: str, str_or_url: Any, *args: Any, **kwargs: Any) -> Any:
        provider = _provider
        gate = None if provider is None else provider()
        if gate is not None:
            given, inflated = kwargs.get("middlewares"), kwargs.get("auto_decompress")
            inflated = self.auto_decompress if inflated is None else inflated
            kwargs["middlewares"] = middlewares(self, given, gate, inflated=inflated)
        return await original(self, method, str_or_url, *args, **kwargs)

    return _request
