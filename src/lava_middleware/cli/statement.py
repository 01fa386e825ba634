"""This file knows the command `statement`: one customer's entries as on a bank statement, newest last."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

from ..context import checked_id
from ..core.events import Adjusted, Event, Extended, Granted, Held, Lapsed, Reported, Settled, TermsSet, Voided, decode
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
    TermsSet: "terms",
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
            return _joined(model, "corrects an expired hold")
        case Lapsed():
            return "expired unused"
        case TermsSet():
            limits = [f"{one.quantity:,} {one.unit}/{one.window}" for one in event.terms.limits]
            return _joined("limits:", ", ".join(limits) or "none", separator=" ")


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
