"""This file knows the command `statement`: one customer's entries as on a bank statement, newest last."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

from ..context import checked_id
from ..core.events import (
    Adjusted,
    Crossed,
    Cycled,
    Event,
    Extended,
    Granted,
    Held,
    Lapsed,
    Repaid,
    Reported,
    RunEnded,
    RunStarted,
    Settled,
    TermsSet,
    TopupFailed,
    TopupStarted,
    Voided,
    decode,
)
from ..core.money import Amount, Ticks
from ..core.usage import Usage
from ..ledger.journal import Entry, Journal
from .common import Stop, reading, say, say_json
from .table import Column, amounts, iso, moment, table

PAGE = 200


def statement(arguments: argparse.Namespace) -> int:
    customer = checked_id(arguments.customer)
    with reading(arguments.ledger) as journal:
        # One more than is shown: its balance is what the oldest shown one changed.
        found = list(islice(_backwards(journal, customer, arguments.before), arguments.limit + 1))
    if not found and arguments.before is None:
        raise Stop("the ledger has no entries of this customer")
    oldest_shown_is_first = len(found) <= arguments.limit
    shown = list(reversed(found[: arguments.limit]))
    opening = 0 if oldest_shown_is_first else found[-1].balance_after
    changes = _changes(opening, shown)
    if arguments.json:
        for entry, change in zip(shown, changes, strict=True):
            say_json(_document(entry, change))
        return 0
    if not oldest_shown_is_first:
        older = f"lava statement CUSTOMER --before {shown[0].version}"
        say(f"{shown[0].version - 1:,} older entries; see them with: {older}")
        say("")
    say(_table(shown, changes))
    return 0


def _backwards(journal: Journal, customer: str, before: int | None) -> Iterator[Entry]:
    while page := journal.entries(customer, before=before, limit=PAGE):
        yield from page
        before = page[-1].version


def _changes(opening: Ticks, entries: list[Entry]) -> list[Ticks]:
    """What each entry changed the balance by."""
    balances = [opening, *(entry.balance_after for entry in entries)]
    return [after - before for before, after in pairwise(balances)]


def _table(entries: list[Entry], changes: list[Ticks]) -> str:
    columns = [
        Column("no.", right=True),
        Column("time (UTC)"),
        Column("entry"),
        Column("credits", right=True),
        Column("balance", right=True),
        Column("what for", gives=True),
    ]
    events = [decode(entry.kind, entry.event) for entry in entries]
    moved = amounts([change or None for change in changes])
    balances = amounts([entry.balance_after for entry in entries])
    rows = [
        [str(entry.version), moment(entry.at), _name(event), change, balance, _what_for(event, entry)]
        for entry, event, change, balance in zip(entries, events, moved, balances, strict=True)
    ]
    return table(columns, rows)


_NAMES: dict[type[Any], str] = {
    Granted: "grant",
    Held: "hold",
    Extended: "extend",
    Settled: "settle",
    Voided: "void",
    Reported: "report",
    Adjusted: "adjust",
    Lapsed: "lapse",
    Repaid: "repay",
    Cycled: "cycle",
    TermsSet: "terms",
    RunStarted: "run",
    RunEnded: "run ends",
    Crossed: "threshold",
    TopupStarted: "top-up",
    TopupFailed: "no top-up",
}


def _name(event: Event) -> str:
    return "expire" if isinstance(event, Settled) and event.lost_owner else _NAMES[type(event)]


def _what_for(event: Event, entry: Entry) -> str:
    facts: dict[str, Any] = json.loads(entry.record) if entry.record else {}
    model = facts.get("response_model") or facts.get("model", "")
    match event:
        case Granted():
            until = f", until {moment(event.expires)[:16]}" if event.expires else ""
            repaid = f", {Amount(event.debt_repaid)} to debt" if event.debt_repaid else ""
            return f"{event.category}{until}{repaid}, key {event.key}"
        case Held() | Extended():
            return _joined(model, f"{Amount(event.amount)} set aside")
        case Voided():
            return _joined(model, event.reason)
        case Settled():
            return _joined(model, _tokens(facts), _doubts(facts), f"overrun: {event.cause}" if event.cause else "")
        case Reported():
            return _joined(model, _tokens(facts), _doubts(facts), facts.get("unheld", ""))
        case Adjusted():
            what = event.reason if event.key else "corrects an expired hold"
            return _joined(model, what, f"overrun: {event.cause}" if event.cause else "")
        case Lapsed():
            unused = any(ticks > 0 for _, ticks in event.draws)
            over = f"{Amount(event.rolled)} go over" if event.rolled else ""
            return _joined("expired unused" if unused else "", over, _invoiced(event))
        case Repaid():
            return f"{Amount(sum(ticks for _, ticks in event.draws))} to debt"
        case _:
            return _agreement(event)


def _agreement(event: Event) -> str:
    """What terms, cycles, runs, thresholds and purchases say."""
    match event:
        case TermsSet():
            limits = [f"{_quantity(one.quantity, one.unit)} {one.unit}/{one.window}" for one in event.terms.limits]
            plan = f"plan {event.terms.plan.name}" if event.terms.plan else ""
            suspended = "suspended" if event.terms.suspended else ""
            since = f"from {moment(event.effective)[:16]}" if event.effective else ""
            return _joined(plan, suspended, "limits: " + (", ".join(limits) or "none"), since)
        case Cycled():
            lapsed = f"{Amount(event.lapsed)} expired" if event.lapsed else ""
            if not event.id:
                return _joined(f"plan {event.plan} ends", lapsed, _invoiced(event))
            over = f"{Amount(event.rolled)} gone over" if event.rolled else ""
            repaid = f"{Amount(event.debt_repaid)} to debt" if event.debt_repaid else ""
            until = f"until {moment(event.ends)[:16]}"
            return _joined(
                f"plan {event.plan}, {Amount(event.included)} included", until, over, repaid, lapsed, _invoiced(event)
            )
        case RunStarted():
            budget = "" if event.budget is None else f"at most {Amount(event.budget)}"
            return _joined(event.run, budget, "set aside" if event.draws else "")
        case RunEnded():
            return _joined(event.run, "expired" if event.expired else "")
        case Crossed():
            used = f"{_quantity(event.used, event.unit)} of {_quantity(event.quantity, event.unit)} {event.unit}"
            return f"{event.limit} at {event.percent} %: {used}"
        case TopupStarted():
            return f"buying {Amount(event.amount)}, key {event.key}"
        case TopupFailed():
            return _joined(event.reason, f"key {event.key}")
        case _:
            raise AssertionError(f"no words for {type(event).__name__}")


def _invoiced(event: Cycled | Lapsed) -> str:
    return f"{Amount(event.overage_used)} overage before" if event.overage_used else ""


def _quantity(quantity: int, unit: str) -> str:
    return str(Amount(quantity)) if unit == "credits" else f"{quantity:,}"


def _joined(*parts: str, separator: str = ", ") -> str:
    return separator.join(part for part in parts if part)


def _tokens(facts: dict[str, Any]) -> str:
    usage = Usage(facts.get("usage", {}))
    return f"{usage.input_tokens:,} in {usage.output_tokens:,} out" if usage else ""


def _doubts(facts: dict[str, Any]) -> str:
    """What is out of the ordinary."""
    basis = facts.get("basis", "")
    return _joined("" if basis == "reported" else basis, facts.get("stopped", ""))


def _document(entry: Entry, change: Ticks) -> dict[str, Any]:
    return {
        "version": entry.version,
        "seq": entry.seq,
        "at": iso(entry.at),
        "kind": entry.kind,
        "key": entry.key,
        "change": str(Amount(change)),
        "balance_after": str(Amount(entry.balance_after)),
        "event": json.loads(entry.event),
        "record": json.loads(entry.record) if entry.record else None,
    }
