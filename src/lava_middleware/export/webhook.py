"""This file knows how to tell an operator's server what happened to customers, as signed webhooks, at least once each.

They follow Standard Webhooks (https://www.standardwebhooks.com). The id of a message comes from its entry: however
often it is posted, it is the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from ..core.events import (
    Adjusted,
    Crossed,
    Cycled,
    Lapsed,
    Reported,
    Settled,
    TermsSet,
    TopupFailed,
    TopupStarted,
    decode,
)
from ..core.money import decimal_text
from ..core.record import record_of
from ..ledger.journal import Entry, Journal
from .follower import Follower, PermanentRefusal, RetryLater
from .webhook_secret import Secrets

logger = logging.getLogger("lava_middleware")

TIMEOUT_S: Final = 15.0
BATCH: Final = 100
DELIVERED: Final = (409,)
"""Beside 2xx: "I have that already" (T15)."""
GONE: Final = 410
WRONG: Final = (400, 405, 413, 414, 415, 422, 431)
"""The payload itself is wrong, and will be tomorrow: a dead letter. Every other answer is tried again: of 401, 403 and
404 it is the receiver's set-up that is to be mended, and nothing is lost until it is."""
KNOWN_MOST: Final = 10_000
LOOK_BACK: Final = 5
"""Pages of 200 entries in which the terms before these are looked for."""

_BILLS: Final = (Settled.kind, Reported.kind, Adjusted.kind)
_TELLS: Final = (*_BILLS, Crossed.kind, Cycled.kind, Lapsed.kind, TermsSet.kind, TopupStarted.kind, TopupFailed.kind)
_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Message:
    """One that is to be posted."""

    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Told:
    """What one entry has to tell."""

    seq: int
    messages: tuple[Message, ...]


def webhook(
    url: str,
    secret: str,
    *,
    records: bool = False,
    name: str = "webhook",
    client: Callable[[], httpx.Client] | None = None,
) -> Follower:
    """A follower that posts, signed, what happened to customers: `Lava(..., exporters=(webhook(url, secret),))`.

    The types: limit.threshold_crossed, cycle.begun, plan.ended, overage.used (by calls that outlived their plan, which
    plan.ended could not tell yet), top_up.started, top_up.failed, customer.suspended, debt.incurred; with `records`
    also usage.recorded, of every usage record. 2xx is success. 410 stops it until the process starts anew; where the
    payload is refused for good it becomes a dead letter, everything else is tried again, in order. Two of them on one
    ledger need two names. Raises ValueError for an address or a secret that cannot work.
    """
    hook = Webhook(url, Secrets(secret), records=records, client=client or _client)
    follower = Follower(
        name,
        hook.post,
        chunk=BATCH,
        wanted=hook.wanted,
        finish=hook.close,
        choose=lambda journal, entry: hook.told(journal, entry),
    )
    hook.gone_by = name
    return follower


class Webhook:
    """The receiver, as one process sees it. Used by one thread at a time: the follower's."""

    def __init__(self, url: str, secrets: Secrets, *, records: bool, client: Callable[[], httpx.Client]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("a webhook's address begins with https:// or http://")
        self._url = url
        self._secrets = secrets
        self._records = records
        self._make_client = client
        self._client: httpx.Client | None = None
        self._pid = 0
        self._gone = False
        self.gone_by = ""
        """Name of the follower, for the log."""
        self._delivered: set[str] = set()
        """Of a batch that broke off in the middle: what went through is not sent again by this process."""
        self._suspended: OrderedDict[str, bool] = OrderedDict()
        """Customer → whether the last terms that were seen suspended it."""

    def __repr__(self) -> str:
        return "<Webhook>"

    def wanted(self) -> bool:
        return not self._gone

    def close(self) -> None:
        """Safe to repeat."""
        if self._client is not None and self._pid == os.getpid():
            self._client.close()
        self._client = None

    # What is told -----------------------------------------------------------------------------------------------------

    def told(self, journal: Journal, entry: Entry) -> Told | None:
        """What the entry has to tell; None: nothing."""
        if entry.kind not in _TELLS or (entry.kind in _BILLS and not self._records and '"debt"' not in entry.event):
            return None
        messages = tuple(_message(entry, kind, data) for kind, data in self._news(journal, entry))
        return Told(entry.seq, messages) if messages else None

    def _news(self, journal: Journal, entry: Entry) -> Iterator[tuple[str, dict[str, Any]]]:
        event = decode(entry.kind, entry.event)
        match event:
            case Crossed():
                yield "limit.threshold_crossed", _crossed(event)
            case Cycled() if event.id:
                yield "cycle.begun", _cycled(event)
            case Cycled():
                yield "plan.ended", {"plan": event.plan, "overage_used": decimal_text(event.overage_used)}
            case Lapsed() if event.overage_used:
                yield "overage.used", {"overage_used": decimal_text(event.overage_used)}
            case TermsSet():
                if self._suspends(journal, entry, event):
                    yield "customer.suspended", {"terms": event.terms.version}
            case TopupStarted():
                yield "top_up.started", {"key": event.key, "amount": decimal_text(event.amount)}
            case TopupFailed():
                yield "top_up.failed", {"key": event.key, "reason": event.reason}
            case Settled() | Reported() | Adjusted():
                record = record_of(
                    event,
                    entry.record,
                    customer=entry.account,
                    at=entry.at,
                    seq=entry.seq,
                    balance_after=entry.balance_after,
                )
                assert record is not None
                if event.debt > 0:
                    balance = decimal_text(entry.balance_after)
                    yield (
                        "debt.incurred",
                        {"debt": decimal_text(event.debt), "balance_after": balance, "record": record.id},
                    )
                if self._records:
                    yield "usage.recorded", record.to_dict()

    def _suspends(self, journal: Journal, entry: Entry, event: TermsSet) -> bool:
        """Whether it is these terms that suspend the customer, and not only others that find it suspended (T31)."""
        if event.effective is not None and event.effective > entry.at:
            return False  # they are to follow; another entry says when they do
        before = self._suspended.pop(entry.account, None)
        if before is None and event.terms.suspended:
            before = _was_suspended(journal, entry)
        self._suspended[entry.account] = event.terms.suspended
        if len(self._suspended) > KNOWN_MOST:
            self._suspended.popitem(last=False)
        return event.terms.suspended and not before

    # How it is posted -------------------------------------------------------------------------------------------------

    def post(self, told: Sequence[Told]) -> None:
        """Post them in order. Raises PermanentRefusal where the payload is wrong, RetryLater else."""
        for one in told:
            for message in one.messages:
                if message.id not in self._delivered:
                    self._post(message)
                    self._delivered.add(message.id)
        self._delivered.clear()

    def _post(self, message: Message) -> None:
        timestamp = int(time.time())  # of this attempt: receivers refuse what is old
        headers = {
            "content-type": "application/json",
            "user-agent": "lava-middleware",
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": self._secrets.sign(message.id, timestamp, message.body),
        }
        try:
            answer = self._connected().post(self._url, content=message.body, headers=headers)
        except httpx.HTTPError as error:  # its text may name the address
            raise RetryLater(f"the receiver of webhooks cannot be reached ({type(error).__name__})") from None
        status = answer.status_code
        if answer.is_success or status in DELIVERED:
            return
        if status == GONE:
            self._gone = True
            logger.error("lava: exporter %s: the receiver wants no more webhooks (410), so it stops", self.gone_by)
        if status in WRONG:
            raise PermanentRefusal(f"the receiver of webhooks refuses the payload ({status})")
        after = answer.headers.get("retry-after")
        raise RetryLater(f"the receiver of webhooks answers {status}", retry_after_s=_seconds(after))

    def _connected(self) -> httpx.Client:
        if self._client is None or self._pid != os.getpid():  # a forked child leaves its parent's connections alone
            self._client, self._pid = self._make_client(), os.getpid()
        return self._client


class _Transport(httpx.HTTPTransport):
    """The library's own, passed over by our instrumentation: what is posted here is no call to a provider."""

    meters_by_itself = True


def _client() -> httpx.Client:
    return httpx.Client(transport=_Transport(), timeout=TIMEOUT_S, follow_redirects=False)


def _message(entry: Entry, kind: str, data: dict[str, Any]) -> Message:
    """An entry is named by its account, version and time (T42); the id shows none of them."""
    named = f"{kind}\0{entry.account}\0{entry.version}\0{entry.at}"
    name = "msg_" + hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    body = _to_json({"type": kind, "timestamp": _iso(entry.at), "data": {"customer": entry.account, **data}})
    return Message(name, body.encode("utf-8", "replace"))


def _crossed(event: Crossed) -> dict[str, Any]:
    in_credits = event.unit == "credits"
    used, quantity = (decimal_text(one) if in_credits else one for one in (event.used, event.quantity))
    return {
        "limit": event.limit,
        "unit": event.unit,
        "window": event.window,
        "percent": event.percent,
        "used": used,
        "quantity": quantity,
    }


def _cycled(event: Cycled) -> dict[str, Any]:
    return {
        "plan": event.plan,
        "cycle": event.id,
        "starts": _iso(event.starts),
        "ends": _iso(event.ends),
        "credits": decimal_text(event.amount),
        "rolled_over": decimal_text(event.rolled),
        "lapsed": decimal_text(event.lapsed),
        "debt_repaid": decimal_text(event.debt_repaid),
        "overage_used": decimal_text(event.overage_used),
    }


def _was_suspended(journal: Journal, entry: Entry) -> bool:
    """By the terms before these. Found soon: a suspended customer has few entries."""
    before = entry.version
    for _ in range(LOOK_BACK):
        page = journal.entries(entry.account, before=before, limit=200)
        for one in page:
            if one.kind == TermsSet.kind:
                event = decode(one.kind, one.event)
                assert isinstance(event, TermsSet)
                if event.effective is None or event.effective <= one.at:
                    return event.terms.suspended
        if not page:
            return False
        before = page[-1].version
    return False


def _iso(microseconds: int) -> str:
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(microsecond=microseconds % 1_000_000)
    return moment.isoformat().replace("+00:00", "Z")


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After, in either of its forms. https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after.strip()[:9])
    try:
        moment = parsedate_to_datetime(retry_after)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - time.time())
