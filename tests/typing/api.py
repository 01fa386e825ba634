"""Not run: checked by `make lint` as a user's type checker would. Every public name is used once, with its types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, assert_type

import httpx
from starlette.applications import Starlette
from starlette.requests import Request

from lava_middleware import (
    AlreadyBound,
    Amount,
    AmountError,
    AsyncLavaTransport,
    Balance,
    ConfigurationError,
    Conflict,
    CreditOnHold,
    CustomerUnknown,
    Denied,
    IdError,
    InsufficientCredit,
    Lava,
    LavaError,
    LavaMiddleware,
    LavaTransport,
    LavaWSGIMiddleware,
    LedgerUnavailable,
    LimitReached,
    NotBound,
    Quote,
    Record,
    Refused,
    RequestExceedsCredit,
    StreamCut,
    StreamStalled,
    TermsError,
    Usage,
    bind_context,
    charge_to,
    current,
    denied,
    identify,
    run,
    unbilled,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def configured() -> Lava:
    Lava.from_env(mode="observe")
    return Lava("sqlite:///lava.db", markup="1.20", hosts={"127.0.0.1:8811": ("openai", "anthropic")})


def installed(lava: Lava) -> Starlette:
    app = Starlette()
    app.add_middleware(LavaMiddleware)
    app.add_middleware(LavaMiddleware, lava=lava, customer=by_session)
    return app


def installed_around_wsgi(lava: Lava, app: WSGIApplication) -> WSGIApplication:
    app = LavaWSGIMiddleware(app)
    app = LavaWSGIMiddleware(app, mode="observe")
    return LavaWSGIMiddleware(app, lava=lava, customer=lambda environ: None)


def by_session(request: Request) -> str | None:
    account: str | None = request.session.get("account")
    return account


def explicit(lava: Lava) -> None:
    httpx.Client(transport=LavaTransport())
    httpx.Client(transport=LavaTransport(httpx.HTTPTransport(retries=2), lava=lava))
    httpx.AsyncClient(transport=AsyncLavaTransport(httpx.AsyncHTTPTransport(), lava=lava))


def operated(lava: Lava) -> None:
    assert_type(lava.grant("acme", credits="5.00", key="invoice-81"), Balance)
    assert_type(
        lava.grant("acme", Decimal("0.5"), category="promo", expires=datetime(2027, 1, 31, tzinfo=UTC)), Balance
    )
    assert_type(lava.limit("acme", 100_000, "tokens", window="month", zone="Europe/Berlin"), Balance)
    balance = lava.balance("acme")
    assert_type(balance.available, Amount)
    assert_type(balance.limits[0].resets_at, datetime | None)
    for record in lava.records("acme"):
        assert_type(record, Record)
        assert_type(record.usage, Usage)
        assert_type(record.charge, Amount)
        assert_type(record.charge.decimal, Decimal)
        assert_type(record.usage.input_tokens, int)
        assert_type(record.to_dict(), dict[str, Any])
    assert_type(lava.records("acme"), Iterator[Record])


async def operated_async(lava: Lava) -> None:
    assert_type(await lava.agrant("acme", "5.00"), Balance)
    assert_type(await lava.abalance("acme"), Balance)
    assert_type(await lava.asubscribe("acme", "pro", credits="20.00"), Balance)
    assert_type(await lava.alimit("acme", 100_000), Balance)
    assert_type(await lava.aquote("acme", model="gpt-4o"), Quote)
    assert_type(await lava.areport("acme", meter="pages", quantity=1, request_id="doc"), Record | None)
    assert_type([record async for record in lava.arecords("acme")], list[Record])


def bound(lava: Lava) -> None:
    identify("acme", user="u1")
    with charge_to("acme", meter="chat", tags={"team": "blue"}):
        pass
    with unbilled("health check"), lava.charge_to("acme"):
        pass
    assert_type(current().charge, Amount)
    assert_type(current().records, tuple[Record, ...])
    assert_type(current().stopped, bool)


@charge_to("acme")
def decorated(number: int) -> str:
    return str(number)


def carried() -> None:
    with ThreadPoolExecutor() as pool:
        assert_type(pool.submit(bind_context(decorated), 1).result(), str)


@run("decorated", credits="0.10", customer="acme")
def an_agent(step: int) -> int:
    return step


def planned(lava: Lava) -> None:
    quote = lava.quote("acme", model="gpt-4o-mini", input_tokens=1000, output_tokens_max=500)
    assert_type(quote, Quote)
    assert_type(quote.bound, Amount)
    with lava.run("research", credits="0.50", max_calls=40, customer="acme") as work:
        assert_type(work.state().spent, Amount)
    assert_type(lava.report("acme", request_id="doc-77", charge="0.12"), Record | None)
    assert_type(lava.adjust("acme", "doc-77", "-0.02", key="refund-1"), Record)
    with lava.reserve("acme", charge="1.00") as held:
        held.settle(charge="0.75")
    assert_type(an_agent(1), int)


def caught() -> None:
    try:
        decorated(1)
    except InsufficientCredit as refused:
        assert_type(refused.denied, Denied)
        assert_type(refused.available, Amount | None)
    except (RequestExceedsCredit, CreditOnHold, LimitReached, NotBound, CustomerUnknown, LedgerUnavailable, Refused):
        raise
    except StreamCut as cut:
        assert_type(cut.denied, Denied)
    except (StreamStalled, AlreadyBound, IdError, ConfigurationError, LavaError):
        raise
    except (Conflict, AmountError, TermsError):
        raise
    except Exception as error:
        found = denied(error)
        assert_type(found, Denied | None)
        if found is not None:
            assert_type(found.reason, str)
            assert_type(found.retry_after, int | None)
            assert_type(found.required, Amount | None)


def counted() -> None:
    usage = Usage(input=10, output=5)
    mapping: Mapping[str, int] = usage
    assert_type(usage + Usage(mapping), Usage)
    assert_type(Amount.of("1.25") - Amount.of(1), Amount)
