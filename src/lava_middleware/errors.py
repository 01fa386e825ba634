"""This file knows how to say no, and how to say what else went wrong: whose fault it is and what to do next.

    LavaError
    ├── Refused                    a call was not let out; `.denied` says why, in figures
    │   ├── InsufficientCredit         nothing, or not enough, is left
    │   ├── RequestExceedsCredit       a smaller request would fit
    │   ├── CreditOnHold               open calls hold the credit
    │   ├── LimitReached               a limit of the customer's terms
    │   ├── CustomerSuspended
    │   ├── ModelNotInPlan
    │   ├── MeterNotInPlan
    │   ├── RunEnded                   the run it belongs to has ended, or has expired
    │   ├── CustomerUnknown            no such account, and policy creates none
    │   │   └── NotBound                   nobody was named at all
    │   ├── PriceUnknown               unknown is not free
    │   ├── EndpointUnmetered          a door without a meter
    │   ├── RequestUnreadable          what it may cost cannot be told
    │   ├── RequestEnded               called after its request had ended, and policy forbids that
    │   └── LedgerUnavailable
    ├── StreamCut                  the money or a limit ended in mid-stream; `.denied` says which
    ├── StreamStalled              nobody read the stream for too long
    ├── AlreadyBound               identify() with another customer than before
    ├── OutsideRequest             identify() or current() where no request is served
    ├── IdError                    a customer, user, meter or tag that cannot be one (also a ValueError)
    ├── ConfigurationError         a setting that cannot work (also a ValueError)
    └── InstrumentError            the HTTP library is not one that can be instrumented

No message, repr or field holds a customer id, a key or a prompt.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, ClassVar

from .core.money import Amount

logger = logging.getLogger("lava_middleware")

EXTENSION = "lava"
"""Key in `response.extensions` under which a refused call carries its `Denied`."""

RETRY_SECONDS_AWAY = 10
"""An SDK may repeat a call by itself only if the limit resets within so many seconds."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How one reason is answered."""

    outbound: int
    """Status that the application's SDK sees: never 408, 409 or 5xx, which SDKs retry."""
    inbound: int
    """Status that the application's own client sees."""
    retry: bool
    """Whether the same call may succeed later by itself. False: no Retry-After, ever."""
    upgrade: bool
    """Whether paying more would help: then the client is shown `upgrade_url`."""
    mend: str
    """What the operator does about it, for the log."""


REASONS: dict[str, Rule] = {
    # reason → how it is answered (design §8). A reason that is missing here does not exist: Denied() raises.
    "insufficient_credit": Rule(402, 402, False, True, "lava grant CUSTOMER 5.00"),
    "request_exceeds_credit": Rule(402, 402, False, True, "lava grant CUSTOMER 5.00"),
    "credit_on_hold": Rule(402, 402, True, True, "lava grant CUSTOMER 5.00 (see also LAVA_HOLD_WAIT_S)"),
    "limit_reached": Rule(429, 429, True, True, "lava limit CUSTOMER ... to raise it"),
    "customer_suspended": Rule(403, 403, False, False, "lift the suspension"),
    "model_not_in_plan": Rule(403, 403, False, True, "add the model to the customer's plan"),
    "meter_not_in_plan": Rule(403, 403, False, True, "add the meter to the customer's plan"),
    "run_ended": Rule(403, 403, False, False, "start another run, or this one with a later expiry"),
    "customer_unknown": Rule(403, 403, False, False, "lava grant CUSTOMER 5.00, or LAVA_UNKNOWN_ACCOUNTS=create"),
    "price_unknown": Rule(403, 403, False, False, "add the model to the file that LAVA_PRICES names"),
    "endpoint_unmetered": Rule(403, 403, False, False, "use a metered endpoint, or LAVA_UNMETERED=pass"),
    "request_unreadable": Rule(400, 400, False, False, "send the provider a request in its documented form"),
    "request_ended": Rule(403, 403, False, False, "LAVA_AFTER_REQUEST=allow"),
    "ledger_unavailable": Rule(429, 503, True, False, "lava doctor"),
}

_TOP_UP = 'add credit with lava.grant() or "lava grant"'
_NOT_BOUND = (
    "nobody is bound to pay for this provider call. Inside a request the usual cause is a thread that lost the "
    "context (run_in_executor, ThreadPoolExecutor.submit, threading.Thread): pass it bind_context(function) instead "
    "of function. Otherwise name the customer: customer= of LavaMiddleware, identify() in a dependency or view, "
    "or charge_to() outside a request"
)


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a call was refused or cut, in words and figures. Only `reason` is always there."""

    reason: str
    """A key of REASONS: stable, for code."""
    message: str = ""
    """For people; made from the figures where none is given."""
    available: Amount | None = None
    required: Amount | None = None
    """What the call would have had to hold."""
    limit: str | None = None
    """Name of the limit that was reached; likewise `unit`, `used` (with what is held), `quantity`, `resets_at`."""
    unit: str | None = None
    used: int | None = None
    quantity: int | None = None
    resets_at: datetime | None = None
    retry_after_s: int | None = None
    output_tokens_fit: int | None = None
    """The most output that the credit left would pay for."""
    model: str | None = None
    door: str | None = None
    """What the unmetered endpoint is: "images", "batches", ..."""
    request_id: str | None = None
    """The inbound request it belongs to."""
    record_id: str | None = None
    """The usage record of what was delivered before a cut."""
    absent: bool = False
    """Nobody was bound at all: the application's mistake, not the customer's."""

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"{self.reason!r} is not a reason; reasons are {', '.join(REASONS)}")
        if not self.message:
            object.__setattr__(self, "message", _message(self))

    @property
    def outbound_status(self) -> int:
        return REASONS[self.reason].outbound

    @property
    def inbound_status(self) -> int:
        return REASONS[self.reason].inbound

    @property
    def outbound_headers(self) -> dict[str, str]:
        """What tells an SDK whether, and when, to repeat the call by itself."""
        soon = (
            self.reason == "limit_reached" and 0 <= (self.retry_after or RETRY_SECONDS_AWAY + 1) <= RETRY_SECONDS_AWAY
        )
        headers = {"x-should-retry": "true" if soon else "false"}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        return headers

    @property
    def retry_after(self) -> int | None:
        """Whole seconds for a Retry-After header; None where waiting does not help or is of unknown length."""
        if not REASONS[self.reason].retry or self.retry_after_s is None:
            return None
        return max(1, self.retry_after_s)

    def facts(self, *, amounts: bool = True) -> dict[str, Any]:
        """The figures as JSON values: amounts as decimal strings (or left out), times in ISO 8601."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _NOT_FACTS or value is None:
                continue
            if isinstance(value, Amount):
                if not amounts:
                    continue
                value = str(value)
            found[field.name] = value.isoformat() if isinstance(value, datetime) else value
        return found


_NOT_FACTS = ("reason", "message", "absent")


def _message(denied: Denied) -> str:
    shortfall = "not enough credits available for this request"
    if denied.available is not None and denied.required is not None:
        shortfall = f"{denied.available} credits available, this request needs a hold of {denied.required}"
    match denied.reason:
        case "insufficient_credit":
            return f"{shortfall}; {_TOP_UP}"
        case "request_exceeds_credit":
            fit = "a lower output cap"
            if denied.output_tokens_fit is not None:
                fit = f"an output cap of {denied.output_tokens_fit:,} tokens"
            return f"{shortfall}; {fit} would fit, or {_TOP_UP}"
        case "credit_on_hold":
            return f"{shortfall}; open calls hold the rest: try again when one of them has ended, or {_TOP_UP}"
        case "limit_reached":
            return _limit_message(denied)
        case "customer_suspended":
            return "the customer is suspended; nothing is sent for it until the operator lifts that"
        case "model_not_in_plan":
            return f"the customer's plan does not include the model{_named(denied.model)}"
        case "meter_not_in_plan":
            return "the customer's plan does not include the meter that this call is charged by"
        case "run_ended":
            return "the run that this call belongs to has ended or expired"
        case "customer_unknown" if denied.absent:
            return _NOT_BOUND
        case "customer_unknown":
            return (
                'the ledger has no account for this customer; make one with lava.grant() or "lava grant", '
                'or let calls make it with unknown_accounts="create"'
            )
        case "price_unknown":
            return (
                f"no price is known for the model{_named(denied.model)}, and unknown is not free; "
                'give it one with prices= or LAVA_PRICES, and look with "lava prices MODEL"'
            )
        case "endpoint_unmetered":
            return (
                f"this endpoint{_named(denied.door)} cannot be metered, so nothing was sent; "
                'use a metered one, or let such calls pass unbilled with unmetered="pass"'
            )
        case "request_unreadable":
            return "the request to the provider cannot be read, so what it may cost is unknown and nothing was sent"
        case "request_ended":
            return (
                "the request that this call belongs to has ended; finish calls before answering, "
                'or let them go on with after_request="allow"'
            )
        case _:
            return 'the ledger did not answer in time, so nothing was sent; try again soon, and look with "lava doctor"'


def _limit_message(denied: Denied) -> str:
    said = f"limit{_named(denied.limit)} reached"
    if denied.used is not None and denied.quantity is not None:
        used, quantity = _amount_of(denied.unit, denied.used), _amount_of(denied.unit, denied.quantity)
        said += f": {used} of {quantity} {denied.unit or ''}".rstrip() + " used or held"
    if denied.resets_at is not None:
        said += f"; it resets at {denied.resets_at.isoformat(timespec='seconds')}"
    if _of_a_run(denied):
        return f"{said}; start it with a larger budget, or go on in another run"
    return f'{said}; raise it with lava.limit() or "lava limit"'


def _of_a_run(denied: Denied) -> bool:
    """The budget of a run was set by the code that started it: no operator can raise it."""
    return denied.reason == "limit_reached" and (denied.limit or "").startswith("run ")


def _amount_of(unit: str | None, quantity: int) -> str:
    """Credits are counted in ticks."""
    return str(Amount(quantity)) if unit == "credits" else f"{quantity:,}"


def _named(name: str | None) -> str:
    """` "name"`, cut and made printable: it may come from a request."""
    if not name:
        return ""
    short = name if len(name) <= 80 else f"{name[:77]}..."
    return ' "' + "".join(letter if letter.isprintable() else "?" for letter in short) + '"'


class LavaError(Exception):
    """Any error of this package."""

    fault: ClassVar[str] = "application"
    """Who can mend it: "customer", "application", "operator" or "ledger"."""


class Refused(LavaError):
    """A call was not let out. `.denied` has the figures; the subclass is the reason."""

    fault = "customer"
    reason: ClassVar[str] = ""

    def __init__(self, denied: Denied | None = None, /, **facts: Any) -> None:
        """From a decision, or from the fields of one: InsufficientCredit(available=..., required=...)."""
        super().__init__(denied or Denied(self.reason, **facts))

    @property
    def denied(self) -> Denied:
        decision: Denied = self.args[0]
        return decision

    def __str__(self) -> str:
        return self.denied.message

    @property
    def available(self) -> Amount | None:
        return self.denied.available

    @property
    def required(self) -> Amount | None:
        return self.denied.required

    @property
    def retry_after_s(self) -> int | None:
        return self.denied.retry_after_s


class InsufficientCredit(Refused):
    """Nothing, or not enough, is left to pay for the call."""

    reason = "insufficient_credit"


class RequestExceedsCredit(Refused):
    """There is credit, but less than this request may cost; `denied.output_tokens_fit` says what would fit."""

    reason = "request_exceeds_credit"


class CreditOnHold(Refused):
    """Open calls hold the credit that this one needs."""

    reason = "credit_on_hold"


class LimitReached(Refused):
    """A limit of the customer's terms; `denied` names it and when it resets."""

    reason = "limit_reached"


class CustomerSuspended(Refused):
    """The operator has suspended the customer."""

    fault = "operator"
    reason = "customer_suspended"


class ModelNotInPlan(Refused):
    """The customer's plan does not include the model."""

    reason = "model_not_in_plan"


class MeterNotInPlan(Refused):
    """The customer's plan does not include the meter."""

    reason = "meter_not_in_plan"


class RunEnded(Refused):
    """The run that the call belongs to has ended or expired."""

    fault = "application"
    reason = "run_ended"


class CustomerUnknown(Refused):
    """The ledger has no account for the customer, and policy creates none."""

    fault = "operator"
    reason = "customer_unknown"


class NotBound(CustomerUnknown):
    """Nobody was named to pay for the call."""

    fault = "application"

    def __init__(self, denied: Denied | None = None, /, **facts: Any) -> None:
        super().__init__(denied or Denied(self.reason, absent=True, **facts))


class PriceUnknown(Refused):
    """No price is known for the model: unknown is not free."""

    fault = "operator"
    reason = "price_unknown"


class EndpointUnmetered(Refused):
    """The call goes through a door that has no meter."""

    fault = "application"
    reason = "endpoint_unmetered"


class RequestUnreadable(Refused):
    """The request cannot be read, so what it may cost is unknown."""

    fault = "application"
    reason = "request_unreadable"


class RequestEnded(Refused):
    """The request that the call belongs to has ended, and `after_request` is "refuse"."""

    fault = "application"
    reason = "request_ended"


class LedgerUnavailable(Refused):
    """The ledger cannot be read or written now, and policy lets nothing out without it."""

    fault = "ledger"
    reason = "ledger_unavailable"


_BY_REASON: dict[str, type[Refused]] = {
    made.reason: made
    for made in (
        InsufficientCredit,
        RequestExceedsCredit,
        CreditOnHold,
        LimitReached,
        CustomerSuspended,
        ModelNotInPlan,
        MeterNotInPlan,
        RunEnded,
        CustomerUnknown,
        PriceUnknown,
        EndpointUnmetered,
        RequestUnreadable,
        RequestEnded,
        LedgerUnavailable,
    )
}


def refused(denied: Denied) -> Refused:
    """The decision as the exception of its reason."""
    return NotBound(denied) if denied.absent else _BY_REASON[denied.reason](denied)


class StreamCut(LavaError):
    """The stream was ended by us before its end. `.denied` says what ran out; what was delivered is billed."""

    fault = "customer"

    def __init__(self, denied: Denied) -> None:
        super().__init__(denied)

    @property
    def denied(self) -> Denied:
        decision: Denied = self.args[0]
        return decision

    def __str__(self) -> str:
        return f"the stream was cut: {self.denied.message}"


class StreamStalled(LavaError):
    """Nobody read the stream for `stall_s` seconds: it was closed, and what was delivered is billed."""

    def __init__(self, stall_s: float | None = None) -> None:
        super().__init__(stall_s)

    def __str__(self) -> str:
        length = "too long" if self.args[0] is None else f"{self.args[0]:g} seconds"
        return (
            f"nobody read this stream for {length}, so it was closed; read streams to their end or close them (stall_s)"
        )


class AlreadyBound(LavaError):
    """identify() was called with another customer or user than this request already has."""


class OutsideRequest(LavaError):
    """No request is being served here."""


class IdError(LavaError, ValueError):
    """A customer, user, meter or tag that cannot be one. The message never repeats it."""


class ConfigurationError(LavaError, ValueError):
    """A setting that cannot work; the message names it, says what is wrong, and gives an example."""

    fault = "operator"


class InstrumentError(LavaError):
    """The installed HTTP library is not one that can be instrumented; the message says what to do instead."""

    fault = "operator"


def denied(error: BaseException, *, implied: bool = True) -> Denied | None:
    """The decision behind any exception, or None if it has nothing to do with one.

    Looks at the exception, the response it carries, what it was raised from, the members of a group, and (unless
    `implied` is false) at what was being handled when it was raised.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if (decision := _carried(one)) is not None:
            return decision
        waiting.extend(_behind(one, implied))
    return None


def _carried(error: BaseException) -> Denied | None:
    if isinstance(error, Refused | StreamCut):
        return error.denied
    for name in ("response", "raw_response"):  # mistralai and openrouter call it raw_response
        try:
            decision = getattr(error, name).extensions[EXTENSION]
        except Exception:  # a foreign object: whatever it raises, it carries no decision
            continue
        if isinstance(decision, Denied):
            return decision
    return None


def _behind(error: BaseException, implied: bool) -> Iterator[BaseException]:
    if error.__cause__ is not None:
        yield error.__cause__
    if isinstance(error, BaseExceptionGroup):
        yield from error.exceptions
    if implied and error.__context__ is not None:
        yield error.__context__


_said: dict[tuple[int, str], object] = {}


def say_once(topic: str, message: str, *details: object) -> None:
    """Log a warning the first time a process has reason to."""
    mine = object()
    if _said.setdefault((os.getpid(), topic), mine) is mine:
        logger.warning(message, *details)


def first_refusal(denied: Denied) -> None:
    """Log the first refusal of this process: why, and what the operator does about it. Later ones are silent."""
    say_once(
        "first refusal",
        "lava refused a provider call (%s): %s. To mend it: %s. This is said once per process.",
        denied.reason,
        denied.message,
        "see above" if denied.absent or _of_a_run(denied) else REASONS[denied.reason].mend,
    )


def forget_what_was_said() -> None:
    """Say everything once more: for tests."""
    _said.clear()
