"""This file knows the command `usage`: what was used, what it cost, what was charged for it, by whatever one asks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..context import checked_id
from ..core.money import Amount
from ..core.usage import INPUT_UNITS, OUTPUT_UNITS
from ..credits.usage_report import UsageLine, checked_dimension, usage_lines
from .common import reading, say, say_json
from .table import Column, amounts, table


def usage(arguments: argparse.Namespace) -> int:
    by = [checked_dimension(name.strip()) for name in arguments.by.split(",") if name.strip()]
    customer = None if arguments.customer is None else checked_id(arguments.customer)
    with reading(arguments.ledger) as journal:
        lines = usage_lines(
            journal,
            since=arguments.since,
            until=arguments.until,
            by=by,
            customer=customer,
            zone=arguments.zone,
            rebuild=arguments.rebuild,
        )
    if arguments.json:
        for line in lines:
            say_json(line.to_dict())
    elif any(line.records or line.charge.ticks for line in lines):
        say(_table(lines, by))
    else:
        say("Nothing was used.")
    return 0


def _table(lines: Sequence[UsageLine], by: Sequence[str]) -> str:
    shown = [*lines, _total(lines)] if len(lines) > 1 else lines
    others = sorted({unit for line in lines for unit in line.usage if unit not in (*INPUT_UNITS, *OUTPUT_UNITS)})
    columns = [
        *(Column(name, gives=True) for name in by),
        Column("records", right=True),
        Column("in", right=True),
        Column("out", right=True),
        *(Column(unit, right=True) for unit in others),
        Column("cost", right=True),
        Column("charge", right=True),
        Column("margin", right=True),
        Column("", right=True),
    ]
    costs = amounts([line.cost.ticks for line in shown])
    charges = amounts([line.charge.ticks for line in shown])
    margins = amounts([line.margin.ticks for line in shown])
    rows = [
        [
            *(line.by[name] or "-" for name in by),
            f"{line.records:,}",
            f"{_sum_of(line, INPUT_UNITS):,}",
            f"{_sum_of(line, OUTPUT_UNITS):,}",
            *(f"{line.usage.get(unit, 0):,}" for unit in others),
            cost,
            charge,
            margin,
            "" if line.margin_share is None else f"{line.margin_share * 100:.1f} %",
        ]
        for line, cost, charge, margin in zip(shown, costs, charges, margins, strict=True)
    ]
    return table(columns, rows)


def _sum_of(line: UsageLine, units: Sequence[str]) -> int:
    return sum(line.usage.get(unit, 0) for unit in units)


def _total(lines: Sequence[UsageLine]) -> UsageLine:
    units = {unit for line in lines for unit in line.usage}
    by = {name: "total" if number == 0 else " " for number, name in enumerate(lines[0].by)}
    return UsageLine(
        by,
        sum(line.records for line in lines),
        {unit: sum(line.usage.get(unit, 0) for line in lines) for unit in units},
        Amount(sum(line.cost.ticks for line in lines)),
        Amount(sum(line.charge.ticks for line in lines)),
    )
