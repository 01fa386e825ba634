"""This file knows how to find out, before a request is sent, who pays for it, through which door, at what price."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from .. import context
from ..core.bound import family_of, input_tokens
from ..core.intent import Intent
from ..core.money import charge_ceiling
from ..core.pricing import Price
from ..core.rating import dearest, fees
from ..core.record import Facts
from ..dialects.dialect import Dialect
from ..errors import Denied, refused
from ..export.inference import inference
from ..providers.row import Match
from ..providers.table import CHAT, find, how_to_allow, is_unlisted
from .flight import Flight
from .guards import ADVICE
from .plan import Plan
from .refusal import answer_of
from .seen import Departure, Seen, Ticket

if TYPE_CHECKING:
    from ..lava import Lava

SEARCHES = 5
"""Searches that are held for where the provider runs its own tools and the request does not say how often."""
UNKNOWN_OUTPUT = 16_384
"""Cap of a model whose maximum no price list names and whose request sets none."""


class Refused:
    """An exchange that ends before it began: the request is answered by us."""

    ended = True
    reading = False
    last_read = 0.0
    hang_up: Callable[[], None] | None = None

    def __init__(self, dialect: Dialect, denied: Denied) -> None:
        self._answer = answer_of(dialect, denied)
        self.extensions: Mapping[str, Any] = self._answer.extensions

    def authorize(self) -> Ticket | None:
        return None

    def departure(self) -> Departure:
        return Departure(refusal=self._answer)

    def withdrawn(self) -> None: ...

    def dispatched(self) -> None:
        raise AssertionError("a refused request was sent")

    def unsent(self, error: BaseException) -> None: ...

    def lost(self, error: BaseException) -> None: ...

    def abandoned(self, how: str) -> None: ...

    def answered(self, status: int, headers: list[tuple[bytes, bytes]]) -> bool:
        return False

    def push(self, data: bytes) -> None:
        return None

    def pull(self) -> None:
        return None

    def end(self) -> None: ...


class Gate:
    """Opens a flight for each request to a provider; everything else passes at once."""

    def __init__(self, lava_in_force: Callable[[], Lava | None]) -> None:
        self._lava_in_force = lava_in_force

    def open(self, request: Seen) -> Flight | Refused | None:
        """A flight, a refusal, or None: not a provider's host, nothing to bill, or nobody's business."""
        lava = None if context.billing_is_off() else self._lava_in_force()
        if lava is None:
            return None
        host, port = request.host, request.port
        match = find(request.method, host, request.path, lava.hosts, port, by_path=lava.by_path)
        if match is None:
            return None
        if is_unlisted(match) and not _is_spoken(request, match):
            lava.count_passed("unlisted:unreadable", host)
            return None
        endpoint = match.endpoint
        if endpoint is not None and endpoint.free:
            return None
        dialect = _dialect_of(match)
        if endpoint is None or endpoint.dialect is None:
            return self._door(lava, dialect, match, host)
        payer = context.payer()
        if isinstance(payer, context.Unbilled):
            lava.count_passed("unbilled", host)
            return None
        if payer is None:
            return self._nobody(lava, dialect, host)
        if payer.binding is not None and payer.binding.ended and lava.settings.after_request == "refuse":
            return self._refuse(lava, dialect, Denied("request_ended"), host)
        return self._plan(lava, request, match, endpoint.dialect, payer)

    def verdict(self, method: str, host: str, path: str, library: str) -> Exception | None:
        """Whether a request through a library that is not metered may go out: what to raise, or None.

        To raise, not to answer: these libraries' SDKs let a plain exception through and retry what looks like the
        network.
        """
        lava = None if context.billing_is_off() else self._lava_in_force()
        match = None if lava is None else find(method, host, path, lava.hosts, by_path=lava.by_path)
        if lava is None or match is None or (match.endpoint is not None and match.endpoint.free):
            return None
        if isinstance(context.payer(), context.Unbilled):
            lava.count_passed("unbilled", host)
            return None
        door = f"{match.row.name} through {library}"
        message = f"calls to {match.row.name} through {library} are not metered, so nothing was sent; {ADVICE[library]}"
        denied = Denied("endpoint_unmetered", message, door=door)
        passes = lava.settings.unmetered == "pass"
        if self._refuse(lava, _dialect_of(match), denied, host, passes=passes) is None:
            return None
        return refused(denied)

    def _plan(
        self, lava: Lava, request: Seen, match: Match, dialect: Dialect, payer: context.Payer
    ) -> Flight | Refused | None:
        row, settings = match.row, lava.settings
        if settings.unknown_accounts == "create":
            lava.first_seen(payer.customer)
        body, intent = _read(request, match, dialect)
        denied = _refused_as_it_is(intent, _request_id(payer))
        model = intent.model or ""
        lists = (row.name, *row.prices_as)
        price = lava.book.find(lists, model) if model else None
        meter = lava.meters.choose(payer.meter or "", model, row.name, _route(payer))
        if denied is None and price is None and meter.needs_cost:
            denied = Denied("price_unknown", model=model[:200], request_id=_request_id(payer))
        if denied is not None and settings.mode == "enforce":
            return self._refuse(lava, dialect, denied, request.host)
        family = family_of(row.family, model)
        estimate = input_tokens(
            intent,
            family,
            framing=row.framing,
            tools_framing=row.tools_framing,
            context_tokens=price.context_tokens if price else None,
        )
        most = meter.ceilings(price, *_costs(price, intent, estimate.cautious), {})
        asks = row.asks_usage and intent.stream and not intent.asks_usage and _query_allows(match, request)
        untouchable = (request.headers.get("authorization") or "").startswith("AWS4-HMAC")
        plan = Plan(
            customer=payer.customer,
            dialect=dialect,
            intent=intent,
            body=body or {},
            family=family,
            estimate=estimate,
            price_lists=lists,
            price=price,
            overruled=denied.reason if denied is not None else "",
            input_rate=most.input_rate,
            output_rate=most.output_rate,
            fees=most.flat,
            output_tokens_max=_output_cap(intent, price),
            output_unbounded=intent.output_tokens_max is None and not (price and price.output_tokens_max),
            hide_usage=asks and not untouchable,
            ask_usage=asks and not untouchable,
            untouchable=untouchable,
            lesson=f"{row.name}/{model}"[:200],
            binding=payer.binding,
            reports_cost=row.reports_cost,
            meter=meter,
            hard_fixed=charge_ceiling(estimate.hard, most.input_rate) + most.flat,
        )
        facts = _facts(lava, request, match, dialect, intent, payer, meter.name)
        return Flight(lava, plan, facts, inference(facts) if settings.tracing else None)

    def _door(self, lava: Lava, dialect: Dialect, match: Match, host: str) -> Refused | None:
        """A path of a known host that has no meter: a policy, refused by default (T4)."""
        if isinstance(context.payer(), context.Unbilled):
            lava.count_passed("unbilled", host)
            return None
        door = match.endpoint.door if match.endpoint is not None else "unknown path"
        if not match.row.endpoints:  # a provider that is not metered yet
            door = match.row.name
        denied = Denied("endpoint_unmetered", how_to_allow(match, host), door=door)
        return self._refuse(lava, dialect, denied, host, passes=lava.settings.unmetered == "pass")

    def _nobody(self, lava: Lava, dialect: Dialect, host: str) -> Refused | None:
        denied = Denied("customer_unknown", absent=True)
        return self._refuse(lava, dialect, denied, host, passes=lava.settings.on_unknown_customer == "unbilled")

    def _refuse(
        self, lava: Lava, dialect: Dialect, denied: Denied, host: str, *, passes: bool = False
    ) -> Refused | None:
        """Refused; or, in mode observe and where policy says so, passed unmetered and counted with its reason."""
        reason = f"{denied.reason}:{denied.door}" if denied.door else denied.reason
        if passes or lava.settings.mode == "observe":
            lava.count_passed(f"unmetered:{reason}" if passes else f"would_refuse:{reason}", host)
            return None
        lava.refused(denied)
        return Refused(dialect, denied)


def _dialect_of(match: Match) -> Dialect:
    """The dialect in which this endpoint's refusal is phrased: its own, else the provider's first,
    else the shape that most providers share."""
    if match.endpoint is not None and match.endpoint.dialect is not None:
        return match.endpoint.dialect
    return next((one.dialect for one in match.row.endpoints if one.dialect is not None), CHAT)


def _read(request: Seen, match: Match, dialect: Dialect) -> tuple[Any, Intent]:
    """(the parsed body, what it asks for). A body that is no JSON, or is never all in memory, is unreadable."""
    content = request.content()
    try:
        body = json.loads(content) if content else None
    except (ValueError, RecursionError):
        body = None
    if body is None:
        return None, dialect.read_request(None, match.path_model)
    return body, dialect.read_request(body, match.path_model)


def _is_spoken(request: Seen, match: Match) -> bool:
    """Whether the body is of the kind that the path promised: another service may have a path of that name."""
    if match.endpoint is None or match.endpoint.dialect is None:
        return False
    _, intent = _read(request, match, match.endpoint.dialect)
    return intent.refuse != "unreadable" and bool(intent.model)


def _refused_as_it_is(intent: Intent, request_id: str | None) -> Denied | None:
    """Why a request cannot be metered, whoever pays; None: it can."""
    if intent.refuse is None:
        return None
    if intent.refuse == "unreadable":
        return Denied("request_unreadable", request_id=request_id)
    return Denied("endpoint_unmetered", door=intent.refuse, request_id=request_id)


def _costs(price: Price | None, intent: Intent, input_bound: int) -> tuple[tuple[int, int], int]:
    """((ticks per million input, output), ticks beside tokens) that the provider takes at most."""
    if price is None:
        return (0, 0), 0
    media = intent.media_tokens > 0 or intent.unseen_input
    searches = intent.searches_max or (SEARCHES if intent.server_tools else 0)
    rates = dearest(price, input_bound, intent.service_tier, intent.cache_writes, media=media)
    return rates, fees(price, tier=intent.service_tier, searches=searches)


def _output_cap(intent: Intent, price: Price | None) -> int:
    if intent.operation == "embeddings":
        return 0
    most = price.output_tokens_max if price and price.output_tokens_max else UNKNOWN_OUTPUT
    return most if intent.output_tokens_max is None else intent.output_tokens_max


def _query_allows(match: Match, request: Seen) -> bool:
    """Azure: usage in a stream may be asked for from a certain api-version on; on a /v1/ path always."""
    wanted = match.row.asks_usage_if_query
    if not wanted or "/v1/" in request.path:
        return True
    query = dict(parse_qsl(request.query.decode("ascii", "replace")))
    return all(query.get(name, "") >= least for name, least in wanted)


def _request_id(payer: context.Payer) -> str | None:
    return payer.binding.request_id if payer.binding is not None else None


def _route(payer: context.Payer) -> str:
    return payer.binding.route if payer.binding is not None else ""


def _facts(
    lava: Lava, request: Seen, match: Match, dialect: Dialect, intent: Intent, payer: context.Payer, meter: str
) -> Facts:
    attempt = request.headers.get("x-stainless-retry-count") or ""
    return Facts(
        id=lava.new_id(),
        provider=match.row.name,
        host=request.host[:255],
        dialect=dialect.name,
        operation=intent.operation,
        model=(intent.model or "")[:200],
        stream=intent.stream,
        request_id=_request_id(payer) or "",
        attempt=int(attempt) if attempt.isascii() and attempt.isdigit() and len(attempt) < 4 else 0,
        user=payer.user or "",
        key=payer.key or "",
        meter=payer.meter or meter,
        runs=payer.runs,
        tags=tuple(payer.tags or ()),
        basis_of_customer=payer.basis,
        after_request=payer.binding is not None and payer.binding.ended,
        mode="observe" if lava.settings.mode == "observe" else "",
        soft=intent.unseen_input or intent.server_tools or match.row.soft,
        started=lava.clock(),
        trace=lava.trace_context(),
    )


GATE = Gate(context.acting)
"""Of the Lava that acts where a request is sent: the frame's, else the request's, else the process default's."""
