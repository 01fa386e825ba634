"""This file knows the commands that bill without a call, correct, or ask what a call would cost."""

from __future__ import annotations

import argparse

from ..core.record import Record
from .common import lava_of, say, say_json
from .table import Column, table


def report(arguments: argparse.Namespace) -> int:
    with lava_of(arguments.ledger) as lava:
        record = lava.report(
            arguments.customer,
            request_id=arguments.request_id,
            meter=arguments.meter,
            quantity=arguments.quantity,
            unit=arguments.unit,
            charge=arguments.charge,
            usage=dict(arguments.usage) if arguments.usage else None,
            model=arguments.model or "",
            provider=arguments.provider or "",
            when=arguments.when,
        )
    assert record is not None  # None is for a ledger that is away, and then an error was raised
    return _show(arguments, record)


def adjust(arguments: argparse.Namespace) -> int:
    with lava_of(arguments.ledger) as lava:
        record = lava.adjust(
            arguments.customer, arguments.record, arguments.credits, key=arguments.key, reason=arguments.reason
        )
    return _show(arguments, record)


def _show(arguments: argparse.Namespace, record: Record) -> int:
    if arguments.json:
        say_json(record.to_dict())
        return 0
    rows = [
        ["record", record.id],
        ["charge", str(record.charge)],
        *([["debt", str(record.debt)]] if record.debt.ticks else []),
        ["balance", str(record.balance_after)],
    ]
    say(table([Column(""), Column("")], rows).lstrip("\n"))
    return 0


def quote(arguments: argparse.Namespace) -> int:
    with lava_of(arguments.ledger) as lava:
        found = lava.quote(
            arguments.customer,
            model=arguments.model,
            provider=arguments.provider,
            meter=arguments.meter,
            input_tokens=arguments.input_tokens,
            output_tokens_max=arguments.output_tokens,
        )
    why = "" if found.affordable else f": {found.reason}{f' ({found.limit})' if found.limit else ''}"
    if arguments.json:
        say_json(
            {
                "model": found.model,
                "bound": str(found.bound),
                "expected": str(found.expected),
                "learned": found.learned,
                "affordable": found.affordable,
                "reason": found.reason,
                "limit": found.limit,
                "available": str(found.available),
                "output_tokens_fit": found.output_tokens_fit,
                "steps_fit": found.steps_fit,
            }
        )
    else:
        basis = (
            "as such calls have cost"
            if found.learned
            else "nothing is known of such calls yet: as long as other models' answers, or a quarter of the cap"
        )
        rows = [
            ["bound", str(found.bound), "what the call would hold"],
            ["expected", str(found.expected), basis],
            ["available", str(found.available), "what a new call could hold"],
            ["affordable", "yes" if found.affordable else "no", why.removeprefix(": ")],
            ["output", f"{found.output_tokens_fit:,}", "output tokens that would fit"],
            ["steps", f"{found.steps_fit:,}", "such calls, one after another"],
        ]
        say(table([Column("quote"), Column("", right=True), Column("")], rows))
    return 0 if found.affordable else 1
