"""This file knows how to tell the application's own client why it was refused: RFC 9457 problem details.

The words here are for the client: they say nothing about the ledger's insides, and amounts only where the operator
discloses them. They never name the customer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import REASONS, Denied

if TYPE_CHECKING:
    from .settings import Settings

CONTENT_TYPE = "application/problem+json"  # https://www.rfc-editor.org/rfc/rfc9457#section-3

TYPE = "urn:lava-middleware:problem:{}"

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
"""Type of a reached limit, with its member `violated-policies` (draft-ietf-httpapi-ratelimit-headers-11)."""

WORDS = {
    # reason → (title, detail). A reason that is missing here gets HTTP's own words for its status.
    "insufficient_credit": ("Not enough credit", "There is not enough credit left for this request."),
    "request_exceeds_credit": (
        "The request exceeds the credit",
        "This request may cost more than the credit that is left. A smaller one would be possible.",
    ),
    "credit_on_hold": (
        "Credit is on hold",
        "Other requests that are still being answered hold the credit. Try again when they have ended.",
    ),
    "limit_reached": ("Limit reached", "The limit for this period has been reached."),
    "customer_suspended": ("Suspended", "This account is suspended."),
    "model_not_in_plan": ("Not in the plan", "The plan does not include this model."),
    "meter_not_in_plan": ("Not in the plan", "The plan does not include this."),
    "run_ended": ("Run ended", "The work that this belongs to has ended."),
    "customer_unknown": ("No account", "No account could be found that pays for this request."),
    "price_unknown": ("Not available", "This model is not available here."),
    "endpoint_unmetered": ("Not available", "This function is not available here."),
    "request_unreadable": ("Unreadable request", "The request could not be read."),
    "request_ended": ("Request ended", "The request has ended already."),
    "ledger_unavailable": ("Billing is unavailable", "The request could not be checked just now. Try again soon."),
}

RETRY_DEFAULT_S = {
    # reason → Retry-After where the decision names none. A reason that is missing here gets no such header then.
    "credit_on_hold": 2,
    "ledger_unavailable": 5,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer to the client."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def problem(denied: Denied, *, request_id: str, settings: Settings) -> Problem:
    """The refusal as problem details."""
    rule = REASONS[denied.reason]
    retry_after = denied.retry_after or RETRY_DEFAULT_S.get(denied.reason)
    members = _members(denied, request_id, settings)
    body = json.dumps(members, separators=(",", ":")).encode()
    headers = [
        (b"content-type", CONTENT_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if rule.retry and retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    return Problem(rule.inbound, tuple(headers), body)


def _members(denied: Denied, request_id: str, settings: Settings) -> dict[str, Any]:
    rule = REASONS[denied.reason]
    title, detail = WORDS[denied.reason]
    members: dict[str, Any] = {
        "type": TYPE.format(denied.reason),
        "title": title,
        "status": rule.inbound,
        "detail": detail,
        "code": denied.reason,
        "request_id": request_id,
    }
    if denied.reason == "limit_reached":
        members |= _limit(denied)
    if denied.output_tokens_fit is not None and denied.reason == "request_exceeds_credit":
        members["output_tokens_max"] = denied.output_tokens_fit
    if settings.disclose_amounts:
        members |= {
            name: str(amount)
            for name, amount in (("available", denied.available), ("required", denied.required))
            if amount is not None
        }
    if rule.upgrade and settings.upgrade_url:
        members["upgrade_url"] = settings.upgrade_url
    return members


def _limit(denied: Denied) -> dict[str, Any]:
    """Which limit, how much of it is used, and when it resets."""
    facts = {
        "name": denied.limit,
        "unit": denied.unit,
        "quantity": denied.quantity,
        "used": denied.used,
        "resets_at": denied.resets_at and denied.resets_at.isoformat(timespec="seconds"),
    }
    known = {name: value for name, value in facts.items() if value is not None}
    violated = {"violated-policies": [denied.limit]} if denied.limit else {}
    return {"type": QUOTA_EXCEEDED, "limit": known} | violated
