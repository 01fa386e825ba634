"""This file knows how a no of the ledger, or of the gate, is said to the application: in words, figures and bytes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ..core.decide import Declined
from ..core.money import LARGEST, Amount
from ..dialects.dialect import Dialect, Refusal
from ..errors import EXTENSION, Denied
from .seen import Answer


def refusal_terms(denied: Denied, **figures: int) -> Refusal:
    """The refusal in the terms that every dialect phrases in its own shape, with further figures."""
    details = {"code": denied.reason, **denied.facts(), **figures}
    return Refusal(denied.outbound_status, denied.reason, denied.message, denied.retry_after, details)


def answer_of(dialect: Dialect, denied: Denied) -> Answer:
    """A refusal as this provider would phrase an error of its own, so that the SDK raises its natural class."""
    headers = [("content-type", "application/json"), ("cache-control", "no-store"), *denied.outbound_headers.items()]
    return Answer(denied.outbound_status, headers, dialect.refusal(refusal_terms(denied)), {EXTENSION: denied})


def denied_from(declined: Declined, now: int, **more: Any) -> Denied:
    """The ledger's no in words and figures for people."""
    retry = None
    if declined.reason == "limit_reached" and declined.resets_at is not None:
        retry = max(1, -(-(declined.resets_at - now) // 1_000_000))
    elif declined.reason == "credit_on_hold":
        retry = 2
    money = declined.limit is None
    return Denied(
        declined.reason if declined.reason != "hold_ended" else "ledger_unavailable",
        available=_shown(declined.available) if money else None,
        required=_shown(declined.required) if money else None,
        output_tokens_fit=declined.output_tokens_fit or None,
        limit=declined.limit,
        unit=declined.unit,
        used=declined.used if declined.limit else None,
        quantity=declined.quantity if declined.limit else None,
        resets_at=_moment(declined.resets_at),
        retry_after_s=retry,
        **more,
    )


def _shown(ticks: int) -> Amount:
    """What a request would have needed may be more than any account can hold (`n`: 10^15)."""
    return Amount(max(-LARGEST + 1, min(ticks, LARGEST - 1)))


def _moment(at: int | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at / 1_000_000, UTC)
