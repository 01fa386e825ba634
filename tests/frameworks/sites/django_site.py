"""A Django site whose customers pay: `wsgi`, `asgi`, and `python -m django runserver`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django.utils.asyncio import async_unsafe
from django.utils.decorators import sync_and_async_middleware
from django.utils.functional import SimpleLazyObject

from lava_middleware import identify
from tests.context.fakes import call

from . import work

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.frameworks.sites.django_settings")


class User:
    is_authenticated = True

    def __init__(self, name: str) -> None:
        self.pk = name


class Stranger:
    is_authenticated = False
    pk = None


@async_unsafe("You cannot call this from an async context")
def load_user(request: HttpRequest) -> User | Stranger:
    """As Django's own does: from something that must not be asked on an event loop."""
    name = work.signed_in(request.headers.get("authorization"))
    return Stranger() if name is None else User(name)


@sync_and_async_middleware
def authentication(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    if asyncio.iscoroutinefunction(get_response):

        async def aserve(request: HttpRequest) -> Any:
            request.user = SimpleLazyObject(lambda: load_user(request))
            return await get_response(request)

        return aserve

    def serve(request: HttpRequest) -> Any:
        request.user = SimpleLazyObject(lambda: load_user(request))
        return get_response(request)

    return serve


def who(request: HttpRequest, where: str) -> HttpResponse:
    return HttpResponse(work.WHERE[where]())


async def awho(request: HttpRequest, where: str) -> HttpResponse:
    if where == "view":
        return HttpResponse(call())
    if where == "to-thread":
        return HttpResponse(await asyncio.to_thread(call))
    if where == "sync-to-async":
        return HttpResponse(await sync_to_async(call)())
    if where == "task":
        return HttpResponse(await asyncio.create_task(_acall()))
    if where == "gather":
        (found,) = set(await asyncio.gather(*(_acall() for _ in range(10))))
        return HttpResponse(found)
    return HttpResponse(await asyncio.get_running_loop().run_in_executor(None, call))  # lost-executor


async def _acall() -> str:
    await asyncio.sleep(0)
    return call()


def identified(request: HttpRequest) -> HttpResponse:
    identify("dora")
    return StreamingHttpResponse(work.body())


async def aidentified(request: HttpRequest) -> HttpResponse:
    identify("dora")
    return StreamingHttpResponse(work.abody())


def body(request: HttpRequest) -> HttpResponse:
    return StreamingHttpResponse(work.body())


async def abody(request: HttpRequest) -> HttpResponse:
    return StreamingHttpResponse(work.abody())


def abody_of_a_sync_view(request: HttpRequest) -> HttpResponse:
    return StreamingHttpResponse(work.abody())


async def body_of_an_async_view(request: HttpRequest) -> HttpResponse:
    return StreamingHttpResponse(work.body())


def two_accounts(request: HttpRequest) -> HttpResponse:
    return StreamingHttpResponse(work.body_on_two_accounts())


async def atwo_accounts(request: HttpRequest) -> HttpResponse:
    return StreamingHttpResponse(work.abody_on_two_accounts())


def ask(request: HttpRequest) -> HttpResponse:
    return HttpResponse(work.ask(request.GET.get("model")))


def stream(request: HttpRequest) -> HttpResponse:
    return _events(work.events(work.open_stream(request.GET.get("model"))))


async def astream(request: HttpRequest) -> HttpResponse:
    return _events(work.aevents(await work.aopen_stream(request.GET.get("model"))))


def late(request: HttpRequest) -> HttpResponse:
    return _events(work.late_events(request.GET.get("model")))


async def alate(request: HttpRequest) -> HttpResponse:
    return _events(work.alate_events(request.GET.get("model")))


def _events(body: Any) -> HttpResponse:
    return StreamingHttpResponse(body, content_type="text/event-stream")


def file(request: HttpRequest) -> HttpResponse:
    return FileResponse(open(__file__, "rb"))


def pool(request: HttpRequest) -> HttpResponse:
    """A provider call from a pool that lost the customer."""
    return HttpResponse(work.in_a_pool(work.ask))


def mistake(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


urlpatterns = [
    path("ready", lambda request: HttpResponse("ready")),
    path("who/<where>", who),
    path("awho/<where>", awho),
    path("identified", identified),
    path("aidentified", aidentified),
    path("body", body),
    path("abody", abody),
    path("abody-of-a-sync-view", abody_of_a_sync_view),
    path("body-of-an-async-view", body_of_an_async_view),
    path("two-accounts", two_accounts),
    path("atwo-accounts", atwo_accounts),
    path("ask", ask),
    path("stream", stream),
    path("astream", astream),
    path("late", late),
    path("alate", alate),
    path("file", file),
    path("pool", pool),
    path("mistake", mistake),
]


def __getattr__(name: str) -> Any:
    """`wsgi` and `asgi`, made when a server asks for one: this module is also that of the URLs."""
    if name == "wsgi":
        return globals().setdefault(name, get_wsgi_application())
    if name == "asgi":
        return globals().setdefault(name, get_asgi_application())
    raise AttributeError(name)
