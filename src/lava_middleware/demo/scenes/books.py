"""This file knows how to close the books: the records, a customer's statement, and the operator's margin."""

from __future__ import annotations

from decimal import Decimal

from ...cli.table import Column, amounts
from ...core.record import Record
from ..commands import run
from ..stage import CUSTOMERS, MARKUP, Stage
from ..telling import Telling


def play(stage: Stage, tell: Telling) -> None:
    tell.say("What the command line shows of the ledger that these calls have left, newest first:")
    run(stage, tell, "records", "--limit", "40")
    tell.say("The statement of one customer. A hold sets credit aside and leaves the balance as it is:")
    run(stage, tell, "statement", "acme")
    _margin(tell, stage.records())


def _margin(tell: Telling, records: list[Record]) -> None:
    tell.say(f"The operator's margin: customers pay the provider's price times {MARKUP} (Lava(markup={MARKUP!r})).")
    columns = [Column("customer"), *(Column(title, right=True) for title in ("calls", "cost", "charge", "margin"))]
    names = [name for name in CUSTOMERS if any(record.customer == name for record in records)]
    sums = [[record for record in records if record.customer == name] for name in names]
    names, sums = [*names, "all"], [*sums, records]
    costs = [sum(record.cost.ticks for record in one) for one in sums]
    charges = [sum(record.charge.ticks for record in one) for one in sums]
    margins = [charge - cost for charge, cost in zip(charges, costs, strict=True)]
    money = zip(amounts(costs), amounts(charges), amounts(margins), strict=True)
    tell.table(
        columns, [[name, str(len(one)), *figures] for name, one, figures in zip(names, sums, money, strict=True)]
    )
    tell.prove(
        f"every charge is its cost times {MARKUP}, to the tenth decimal digit",
        all(
            abs(record.charge.decimal - record.cost.decimal * Decimal(MARKUP)) <= Decimal("1e-10") for record in records
        ),
    )
