"""This file knows the commands for one customer: grant, limit, balance."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any

from ..core.balance import Balance, LimitState
from .common import Stop, lava_of, say, say_json
from .table import Column, amounts, duration, table


def grant(arguments: argparse.Namespace) -> int:
    with lava_of(arguments.ledger, create=True) as lava:
        balance = lava.grant(
            arguments.customer,
            arguments.credits,
            key=arguments.key,
            category=arguments.category,
            expires=arguments.expires,
        )
    return _show(arguments, balance)


def limit(arguments: argparse.Namespace) -> int:
    unit, _, window = arguments.unit.partition("/")
    if not window:
        raise Stop('a limit needs its window too, as in "tokens/month"')
    if arguments.remove == (arguments.quantity is not None):
        raise Stop(
            "give a limit its quantity, as in: lava limit CUSTOMER 100000 tokens/month; or take it away: --remove"
        )
    with lava_of(arguments.ledger, create=not arguments.remove) as lava:
        before = lava.balance(arguments.customer)
        balance = lava.limit(
            arguments.customer, arguments.quantity, unit, window=window, zone=arguments.zone, name=arguments.name
        )
    if arguments.remove and before.limits == balance.limits:
        raise Stop(f"there is no such limit; in force: {', '.join(one.name for one in balance.limits) or 'none'}")
    return _show(arguments, balance)


def balance(arguments: argparse.Namespace) -> int:
    with lava_of(arguments.ledger) as lava:
        found = lava.balance(arguments.customer)
        if not lava.ledger.look(arguments.customer).version:
            raise Stop("the ledger has no entries of this customer")
    return _show(arguments, found)


def _show(arguments: argparse.Namespace, balance: Balance) -> int:
    if arguments.json:
        say_json({"customer": arguments.customer, **_document(balance)})
        return 0
    names = ("available", "balance", "held", "debt")
    figures = amounts([getattr(balance, name).ticks for name in names])
    rows = zip(names, figures, _MEANING, strict=True)
    say(table([Column("credits"), Column("", right=True), Column("")], rows))
    if balance.limits:
        say("")
        say(_limits(balance.limits))
    return 0


_MEANING = (
    "what a new call could hold",
    "not yet spent, open calls included, less debt",
    "set aside by open calls",
    "charged beyond all credit; repaid first",
)


def _limits(limits: tuple[LimitState, ...]) -> str:
    columns = [
        Column("limit", gives=True),
        Column("used", right=True),
        Column("held", right=True),
        Column("of", right=True),
        Column("left", right=True),
        Column("resets"),
    ]
    return table(columns, [_limit_row(one) for one in limits])


def _limit_row(limit: LimitState) -> list[str]:
    left = max(0, limit.quantity - limit.used - limit.held)
    away = duration(max(0.0, (limit.resets_at - datetime.now(UTC)).total_seconds()))
    resets = f"{limit.resets_at:%Y-%m-%d %H:%M} UTC (in {away})"
    return [limit.name, f"{limit.used:,}", f"{limit.held:,}", f"{limit.quantity:,}", f"{left:,}", resets]


def _document(balance: Balance) -> dict[str, Any]:
    return {
        "available": str(balance.available),
        "balance": str(balance.balance),
        "held": str(balance.held),
        "debt": str(balance.debt),
        "limits": [
            {
                "name": one.name,
                "unit": one.unit,
                "window": one.window,
                "quantity": one.quantity,
                "used": one.used,
                "held": one.held,
                "resets_at": one.resets_at.isoformat(),
            }
            for one in balance.limits
        ],
    }
