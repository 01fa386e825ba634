"""This file knows whose API key is whose, and signs a request in by it."""

from dataclasses import dataclass

from asgiref.sync import iscoroutinefunction
from django.http import JsonResponse
from django.utils.decorators import sync_and_async_middleware

KEYS = {"key-of-acme": "acme", "key-of-brook": "brook"}  # API key → customer; yours are in a database


@dataclass(frozen=True)
class Account:
    pk: str
    is_authenticated: bool = True


def _signed_in(request):
    customer = KEYS.get(request.headers.get("authorization", "").removeprefix("Bearer "))
    if customer is None:
        return JsonResponse({"detail": "unknown API key"}, status=401)
    request.user = Account(customer)
    return None


@sync_and_async_middleware
def authentication(get_response):
    if iscoroutinefunction(get_response):

        async def aserve(request):
            return _signed_in(request) or await get_response(request)

        return aserve

    def serve(request):
        return _signed_in(request) or get_response(request)

    return serve
