"""This file knows how to serve a Django project's requests on somebody's account, under WSGI and ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.functional import SimpleLazyObject

from .. import adapter, context
from ..bodies import Body, Kept, abody
from ..context import Binding, Identity, Unbilled
from ..ids import new_id
from .configured import customer_of, lava, read

if TYPE_CHECKING:
    from django.http import StreamingHttpResponse

GetResponse: TypeAlias = (
    "Callable[[HttpRequest], HttpResponseBase] | Callable[[HttpRequest], Awaitable[HttpResponseBase]]"
)

IDS = ("pk",)
"""Of a user of Django's. Never a user name or address: they can be given up by one person and taken by another."""


class LavaMiddleware:
    """Opens a Binding for every request, and answers refusals that escape a view.

    "lava_middleware.django.LavaMiddleware" in MIDDLEWARE, after AuthenticationMiddleware; configured by the LAVA
    setting. `request.user` pays, by its primary key, unless CUSTOMER or identify() says otherwise; it is asked at the
    first provider call. What a view streams is on the same account.

    A refusal that escapes the view is answered with problem details; one that escapes while the body is streamed comes
    too late for that (Django has begun the answer), so open a provider's stream in the view.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self.lava = lava()
        self._customer = customer_of(read())
        self._is_async = iscoroutinefunction(get_response)
        self.process_view = _aprocess_view if self._is_async else _process_view
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        return self._aserve(request) if self._is_async else self._serve(request)

    def _serve(self, request: HttpRequest) -> HttpResponseBase:
        binding = self._bound(request)
        opened = context.open_request(binding)
        response: HttpResponseBase | None = None
        try:
            response = cast("HttpResponseBase", self.get_response(request))
            if getattr(response, "is_async", False):
                _load_user(request)
            return _keeping(response, binding)
        finally:
            _end(binding, response)
            context.close_request(opened)

    async def _aserve(self, request: HttpRequest) -> HttpResponseBase:
        binding = self._bound(request)
        opened = context.open_request(binding)
        response: HttpResponseBase | None = None
        try:
            response = await cast("Awaitable[HttpResponseBase]", self.get_response(request))
            if getattr(response, "is_async", False):
                await _aload_user(request)
            return _keeping(response, binding)
        finally:
            _end(binding, response)
            context.close_request(opened)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        binding: Binding | None = getattr(request, ATTRIBUTE, None)
        problem = None if binding is None else adapter.refusal(exception, binding, self.lava)
        if problem is None:
            return None
        headers = {name.decode().title(): value.decode() for name, value in problem.headers}
        return HttpResponse(b"" if request.method == "HEAD" else problem.body, status=problem.status, headers=headers)

    def _bound(self, request: HttpRequest) -> Binding:
        binding = Binding(self.lava, lambda: self._who(request), request_id=new_id(), route=request.path)
        setattr(request, ATTRIBUTE, binding)
        return binding

    def _who(self, request: HttpRequest) -> Identity | Unbilled | None:
        if self._customer is None:
            return adapter.authenticated(getattr(request, "user", None), IDS)
        return adapter.asked(self._customer, request)


ATTRIBUTE = "_lava_binding"
"""Of a request: its Binding."""


def _process_view(request: HttpRequest, view: Callable[..., Any], *_: object) -> None:
    if iscoroutinefunction(view):
        _load_user(request)


async def _aprocess_view(request: HttpRequest, view: Callable[..., Any], *_: object) -> None:
    if iscoroutinefunction(view):
        await _aload_user(request)


def _load_user(request: HttpRequest) -> None:
    """Load the user before something runs on the event loop, where Django forbids it and a call may ask for it.

    Once loaded it stays: the view does not load it again. What fails here fails again where somebody asks.
    """
    user = getattr(request, "user", None)
    if isinstance(user, SimpleLazyObject):
        with suppress(Exception):
            getattr(user, "pk", None)


async def _aload_user(request: HttpRequest) -> None:
    if isinstance(getattr(request, "user", None), SimpleLazyObject):
        await sync_to_async(_load_user)(request)


def _keeping(response: HttpResponseBase, binding: Binding) -> HttpResponseBase:
    """A body that is streamed runs after this, in the Context as it is here."""
    if not _is_streamed(response):
        return response
    streamed, kept = cast("StreamingHttpResponse", response), Kept()
    if streamed.is_async:
        streamed.streaming_content = abody(streamed.streaming_content, kept)  # type: ignore[arg-type]
    else:
        streamed.streaming_content = Body(streamed.streaming_content, kept)  # type: ignore[arg-type]
    close = streamed.close

    def closing() -> None:
        try:
            kept.run(close)
        finally:
            binding.end()

    streamed.close = closing  # type: ignore[method-assign]  # it closes what was streamed, in the same Context
    return streamed


def _is_streamed(response: HttpResponseBase | None) -> bool:
    """Whether code makes the body. The server sends a FileResponse's file by itself, if it is left as it is."""
    return bool(getattr(response, "streaming", False)) and getattr(response, "file_to_stream", None) is None


def _end(binding: Binding, response: HttpResponseBase | None) -> None:
    if not _is_streamed(response):
        binding.end()
