"""This file knows the command `records`: usage records, newest first, of one customer or of all."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice

from ..context import checked_id
from ..core.record import Record
from ..lava import record_of_entry
from ..ledger.journal import Entry, Journal
from .common import reading, say, say_json
from .table import Column, amounts, moment, table

PAGE = 200


def records(arguments: argparse.Namespace) -> int:
    with reading(arguments.ledger) as journal:
        if arguments.customer is None:
            entries = _newest(journal)
        else:
            entries = _newest_of(journal, checked_id(arguments.customer))
        found = list(islice((made for made in map(record_of_entry, entries) if made), arguments.limit))
    if arguments.json:
        for record in found:
            say_json(record.to_dict())
    elif found:
        say(_table(found, whose=arguments.customer is None))
    else:
        say("No usage records yet.")
    return 0


def _newest_of(journal: Journal, customer: str) -> Iterator[Entry]:
    before: int | None = None
    while page := journal.entries(customer, before=before, limit=PAGE):
        yield from page
        before = page[-1].version


def _newest(journal: Journal) -> Iterator[Entry]:
    """All customers' entries, newest first, in short reads."""
    above = journal.last_seq()
    while above > 0:
        below = max(0, above - PAGE)
        yield from reversed([entry for entry in journal.read(below, PAGE) if entry.seq <= above])
        above = below


def _table(records: list[Record], *, whose: bool) -> str:
    columns = [
        Column("time (UTC)"),
        *([Column("customer", gives=True)] if whose else []),
        Column("model", gives=True),
        Column("in", right=True),
        Column("out", right=True),
        Column("cost", right=True),
        Column("charge", right=True),
        Column("how known"),
        Column("record"),
    ]
    costs = amounts([record.cost.ticks for record in records])
    charges = amounts([record.charge.ticks for record in records])
    rows = [
        [
            moment(record.at),
            *([record.customer] if whose else []),
            record.model,
            f"{record.usage.input_tokens:,}",
            f"{record.usage.output_tokens:,}",
            cost,
            charge,
            _how_known(record),
            # The part that tells one from the next; --json has it whole.
            record.id if len(record.id) <= 9 else "…" + record.id[-8:],
        ]
        for record, cost, charge in zip(records, costs, charges, strict=True)
    ]
    return table(columns, rows)


def _how_known(record: Record) -> str:
    return record.basis if record.kind == "settled" else f"{record.kind} {record.basis}".strip()
