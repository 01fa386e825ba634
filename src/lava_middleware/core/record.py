"""This file knows the usage record: the entry that bills, as it leaves the building. Its id is the idempotency key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .account import Hold
from .commands import Scopes, Settle
from .events import Adjusted, Event, Reported, Settled
from .money import Amount, Ticks, decimal_text
from .usage import Usage

RECORD_VERSION = 1

BASES = ("reported", "counted", "estimated")
"""How the figures were obtained: by the provider, from what passed, from the request."""

OUR_SCOPES = ("customer", "key", "meter", "model", "run", "user")

REPORT = "report"
"""The operation of what `lava.report()` bills."""

_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


@dataclass(slots=True)
class Facts:
    """What is known of one exchange, as it becomes known. What has no value is not written.

    Nothing in here is a secret: no key, no prompt, no URL query.
    """

    id: str
    """The exchange's own id, minted before the send; also the id of its hold and of its record."""
    provider: str = ""
    host: str = ""
    dialect: str = ""
    operation: str = ""
    model: str = ""
    """As requested."""
    response_model: str = ""
    response_id: str = ""
    stream: bool = False
    request_id: str = ""
    """The inbound request's; joins several exchanges."""
    attempt: int = 0
    """The SDK's own retry number, where it sends one."""
    user: str = ""
    key: str = ""
    """Id of the API key that the end user came with."""
    meter: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    basis_of_customer: str = ""
    """How the customer was known: "session", "resolver", "explicit", ..."""
    after_request: bool = False
    """It was opened when its inbound request had already ended."""
    mode: str = ""
    """"observe" where that was the mode; enforce is not written."""
    unheld: str = ""
    """Why it went out without a hold: the reason of the refusal that mode or policy overruled."""
    soft: bool = False
    """The bound was not hard: input unseen by us, or text injected by the provider."""
    trace: str = ""
    """W3C traceparent of the span that was current when it was opened."""
    started: int = 0
    answered: int = 0
    """Microseconds since 1970 of the first byte of the answer's head."""
    ended: int = 0
    status: int = 0
    finish_reason: str = ""
    service_tier: str = ""
    ending: str = ""
    """How it ended: "finished", "cut", "closed", "cancelled", "collected", "stalled", "lost", ..."""
    stopped: str = ""
    """Why it was cut: the reason of the refusal."""
    usage: Mapping[str, int] = field(default_factory=dict)
    others: tuple[tuple[str, Mapping[str, int]], ...] = ()
    """Further passes of the same answer: (model, usage)."""
    totals: Mapping[str, int | None] = field(default_factory=dict)
    """The provider's own totals, as evidence."""
    basis: str = ""
    cost: Ticks = 0
    cost_basis: str = ""
    """"computed" from the price list, or "reported" by the provider."""
    charge: Ticks = 0
    """Before the ledger's decision (what is absorbed or forgiven is on the event)."""
    markup: str = ""
    """The multiple of the cost that was charged, where a part of the charge is one."""
    charged: tuple[tuple[str, int, int], ...] = ()
    """(unit, quantity, ticks per million) of what the meter charges per unit."""
    units: Mapping[str, int] = field(default_factory=dict)
    """Quantities beside tokens that were reported: characters, seconds, pages."""
    runs: tuple[str, ...] = ()
    """The runs it is a part of, outermost first."""
    price: Mapping[str, str] = field(default_factory=dict)
    """Version, source and date of the price, and the model it is of."""
    lines: tuple[tuple[str, int, int], ...] = ()
    """(unit, quantity, ticks per million) as priced."""
    estimate: tuple[int, int] = (0, 0)
    """Input and output tokens as estimated, to compare with what was reported."""
    metered: int = 0
    """Units of a meter in tiers that an unknown outcome counts. Only of a draft."""

    def to_json(self) -> str:
        """The record (or, before the end, its draft) as JSON: integers and strings only."""
        written = {name: value for name in _NAMES if (value := getattr(self, name)) and value != (0, 0)}
        written["v"] = RECORD_VERSION
        return storable(_to_json(written))


_NAMES = tuple(Facts.__dataclass_fields__)


def scopes_of(facts: Facts) -> Scopes:
    """Who or what the exchange is for, beside the customer. A tag cannot pass for one of ours."""
    own = (("key", facts.key), ("meter", facts.meter), ("model", facts.model[:200]), ("user", facts.user))
    named = (*own, *(tag for tag in facts.tags if tag[0] not in OUR_SCOPES))
    return tuple((name, value) for name, value in (*named, *(("run", run) for run in facts.runs)) if value)


def scopes_in(record: str | None) -> Scopes:
    """The same, of a record as it is written."""
    said = json.loads(record) if record else {}
    return scopes_of(Facts("", **{name: said[name] for name in _SCOPED if name in said}))


_SCOPED = ("key", "meter", "model", "user", "tags", "runs")


def is_of_a_call(record: str | None) -> bool:
    """Whether what was reported is a call that left without a hold; else somebody reported it, under an id of his."""
    return record is None or json.loads(record).get("operation") != REPORT


def storable(text: str) -> str:
    """The text as UTF-8 can hold it: names in a provider's answer may have lone surrogates in them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def lost_owner_settlement(held_record: str | None, hold_id: str, hold: Hold) -> tuple[Settle, str]:
    """What recovery posts for a hold whose owner died: the outcome is unknown, the policy was fixed at hold time.

    The charge is what the hold says an unknown outcome owes; tokens are those of the draft's estimate, or those that
    were reserved; other quantities, and what a meter in tiers counts, are the draft's as well.
    """
    draft = json.loads(held_record) if held_record else {}
    inputs, outputs = draft.get("estimate") or (0, 0)
    usage = Usage(draft.get("usage") or {"input": inputs, "output": outputs})
    units, metered = tuple(draft.get("units", {}).items()), draft.pop("metered", 0)
    draft.update(
        v=RECORD_VERSION,
        id=hold_id,
        basis="estimated",
        ending="owner_lost",
        usage=dict(usage),
        charge=hold.expected,
    )
    settle = Settle(
        hold_id,
        hold.expected,
        usage.input_tokens,
        usage.output_tokens,
        lost_owner=True,
        units=units,
        metered=metered,
    )
    return settle, _to_json(draft)


@dataclass(frozen=True, slots=True)
class Record:
    """One usage record: what one exchange or report was charged, and why."""

    id: str
    customer: str
    kind: str
    """"settled", "expired" (settled for an owner that died), "reported", "adjusted"."""
    at: int
    """Microseconds since 1970 of the entry; of its first entry, where another ledger posted it here."""
    charge: Amount
    cost: Amount
    usage: Usage
    basis: str
    overrun: Amount
    overrun_cause: str | None
    debt: Amount
    balance_after: Amount
    provider: str
    model: str
    seq: int
    facts: Mapping[str, Any] = field(repr=False)
    """Everything else: names of `Facts`."""

    def __repr__(self) -> str:  # no customer id: reprs reach logs
        shown = f"id={self.id!r}, kind={self.kind!r}, charge={self.charge}, model={self.model!r}, basis={self.basis!r}"
        return f"Record({shown})"

    def to_dict(self) -> dict[str, Any]:
        """As exporters send it: flat names, money as decimal strings, times in microseconds since 1970."""
        sent = {name: value for name, value in self.facts.items() if name not in ("charge", "cost", "v", "id")}
        for name in ("lines", "charged"):
            if name in sent:
                sent[name] = [
                    {"unit": unit, "quantity": quantity, "per_million": decimal_text(rate)}
                    for unit, quantity, rate in sent[name]
                ]
        return {
            "id": self.id,
            "version": self.facts.get("v", RECORD_VERSION),
            "customer": self.customer,
            "kind": self.kind,
            "at": self.at,
            "seq": self.seq,
            "charge": decimal_text(self.charge.ticks),
            "overrun": decimal_text(self.overrun.ticks),
            "overrun_cause": self.overrun_cause,
            "debt": decimal_text(self.debt.ticks),
            "balance_after": decimal_text(self.balance_after.ticks),
            "cost": decimal_text(self.cost.ticks),
            **sent,
        }


def _tell_tiers(facts: dict[str, Any], tiers: tuple[tuple[Ticks, int], ...]) -> None:
    """What the ledger found: which tiers of its meter the quantity met."""
    if tiers:
        facts["charged"] = [*facts.get("charged", ()), *(("tier", quantity, rate) for rate, quantity in tiers)]


def record_of(
    event: Event, text: str | None, *, customer: str, at: int, seq: int, balance_after: Ticks
) -> Record | None:
    """The usage record of an entry, or None if the entry bills nothing (grants, holds, voids, terms).

    `text` is the entry's record column. An entry that bills always has a record, if only of its event's own facts.
    """
    facts: dict[str, Any] = json.loads(text) if text else {}
    overrun = debt = 0
    cause = None
    match event:
        case Settled():
            kind, name = "expired" if event.lost_owner else "settled", event.hold
            charge, overrun, debt, cause = event.charge, event.overrun, event.debt, event.cause
            if event.absorbed:
                facts["absorbed"] = decimal_text(event.absorbed)
            _tell_tiers(facts, event.tiers)
        case Reported():
            kind, name = "reported", event.key
            charge, debt = event.charge, event.debt
            if facts.get("unheld"):
                overrun, cause = event.charge, "unheld"
            if event.forgiven:
                facts["forgiven"] = decimal_text(event.forgiven)
            _tell_tiers(facts, event.tiers)
        case Adjusted():
            kind, name = "adjusted", f"{event.hold}:{event.number}" if event.key else f"{event.hold}:late"
            charge, overrun, debt, cause = event.charge, event.overrun, event.debt, event.cause
            facts["adjusts"] = event.hold
            if event.absorbed:
                facts["absorbed"] = decimal_text(event.absorbed)
            if event.reason:
                facts["reason"] = event.reason
        case _:
            return None
    if posted := facts.get("posted"):  # by another ledger: what that one decided stands
        kind, at, overrun, cause = posted["kind"], posted["at"], posted["overrun"], posted["cause"]
    return Record(
        id=name,
        customer=customer,
        kind=kind,
        at=at,
        charge=Amount(charge),
        cost=Amount(facts.get("cost", 0)),
        usage=Usage(facts.get("usage", {})),
        basis=facts.get("basis", ""),
        overrun=Amount(overrun),
        overrun_cause=cause,
        debt=Amount(debt),
        balance_after=Amount(balance_after),
        provider=facts.get("provider", ""),
        model=facts.get("response_model") or facts.get("model", ""),
        seq=seq,
        facts=facts,
    )
