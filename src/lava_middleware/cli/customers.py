"""This file knows the commands for what a customer has and may do: grant, limit, subscribe, balance, runs, ..."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeAlias

from ..context import checked_id
from ..core.account import Account, Run
from ..core.balance import Balance, LimitState
from ..core.money import Amount
from ..core.terms import Terms
from ..lava import Lava
from .common import Stop, lava_of, say, say_json
from .table import Column, amounts, duration, iso, moment, table


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
    if not window and unit != "open_calls":
        raise Stop('a limit needs its window too, as in "tokens/month"')
    if arguments.remove == (arguments.quantity is not None):
        raise Stop(
            "give a limit its quantity, as in: lava limit CUSTOMER 100000 tokens/month; or take it away: --remove"
        )
    with lava_of(arguments.ledger, create=not arguments.remove) as lava:
        before = lava.balance(arguments.customer)
        balance = lava.limit(
            arguments.customer,
            _quantity(arguments.quantity, unit),
            unit,
            window=window or None,
            zone=arguments.zone,
            name=arguments.name,
            anchor=arguments.anchor,
            of=dict(arguments.of or ()),
            per=arguments.per,
            on_reach="warn" if arguments.warn else "block",
            strict=arguments.strict,
            thresholds=tuple(arguments.at or ()),
        )
    if arguments.remove and before.limits == balance.limits:
        raise Stop(f"there is no such limit; in force: {', '.join(one.name for one in balance.limits) or 'none'}")
    return _show(arguments, balance)


def _quantity(text: str | None, unit: str) -> object:
    """Credits have decimals; everything else is a whole number."""
    if text is None or unit == "credits":
        return text
    digits = text.replace(",", "").replace("_", "")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 17):
        raise Stop("the quantity must be a whole number such as 100000")
    return int(digits)


def subscribe(arguments: argparse.Namespace) -> int:
    with lava_of(arguments.ledger, create=True) as lava:
        balance = lava.subscribe(
            arguments.customer,
            arguments.plan,
            credits=arguments.credits,
            cycle=arguments.cycle,
            anchor=arguments.anchor,
            zone=arguments.zone,
            rollover=arguments.rollover,
            overage=arguments.overage,
            meters=arguments.meter,
            models=arguments.model,
            at_cycle_end=arguments.at_cycle_end,
        )
        return _show(arguments, balance, _following(lava, arguments.customer))


def cancel(arguments: argparse.Namespace) -> int:
    with lava_of(arguments.ledger) as lava:
        _known(lava, arguments.customer)
        balance = lava.cancel(arguments.customer, at_cycle_end=not arguments.now)
        return _show(arguments, balance, _following(lava, arguments.customer))


def suspend(arguments: argparse.Namespace) -> int:
    with lava_of(arguments.ledger) as lava:
        _known(lava, arguments.customer)
        return _show(arguments, lava.suspend(arguments.customer))


def resume(arguments: argparse.Namespace) -> int:
    with lava_of(arguments.ledger) as lava:
        _known(lava, arguments.customer)
        return _show(arguments, lava.resume(arguments.customer))


def balance(arguments: argparse.Namespace) -> int:
    with lava_of(arguments.ledger) as lava:
        _known(lava, arguments.customer)
        return _show(arguments, lava.balance(arguments.customer), _following(lava, arguments.customer))


def customers(arguments: argparse.Namespace) -> int:
    """Page by page: what is shown of many is shown as it is read."""
    with lava_of(arguments.ledger) as lava:
        found = islice(lava.customers(after=arguments.after), arguments.limit)
        if arguments.json:
            for customer in found:
                say_json({"customer": customer, **_document(lava.balance(customer))})
            return 0
        shown = [(customer, lava.balance(customer)) for customer in found]
    if not shown:
        say("No customers there.")
        return 0
    columns = [Column("customer", gives=True), Column("plan", gives=True)]
    columns += [Column(name, right=True) for name in ("available", "held", "debt", "overage")]
    figures = [
        amounts([getattr(one, name).ticks for _, one in shown])
        for name in ("available", "held", "debt", "overage_used")
    ]
    rows = [[customer, _plan_of(one), *cells] for (customer, one), *cells in zip(shown, *figures, strict=True)]
    say(table(columns, rows))
    if len(shown) == arguments.limit:
        say("")
        say("There may be more; see them with: lava customers --after CUSTOMER")
    return 0


def runs(arguments: argparse.Namespace) -> int:
    """The runs of a customer that are open."""
    with lava_of(arguments.ledger) as lava:
        account = _known(lava, arguments.customer)
        found = list(account.runs.items())
    if arguments.json:
        for name, run in found:
            say_json(_run(name, run))
        return 0
    if not found:
        say("No open runs.")
        return 0
    columns = [Column("run", gives=True), Column("part of", gives=True)]
    columns += [Column(name, right=True) for name in ("spent", "held", "budget", "calls", "of")]
    figures = [
        amounts([run.spent for _, run in found]),
        amounts([run.held for _, run in found]),
        amounts([run.budget for _, run in found]),
    ]
    rows = [[name, run.parent, *cells, *_calls(run)] for (name, run), *cells in zip(found, *figures, strict=True)]
    say(table([*columns, Column("expires (UTC)")], rows))
    return 0


def _calls(run: Run) -> tuple[str, str, str]:
    most = "" if run.calls_most is None else f"{run.calls_most:,}"
    return f"{run.calls:,}", most, moment(run.expires)[:16]


def _run(name: str, run: Run) -> dict[str, Any]:
    return {
        "run": name,
        "parent": run.parent or None,
        "spent": str(Amount(run.spent)),
        "held": str(Amount(run.held)),
        "budget": None if run.budget is None else str(Amount(run.budget)),
        "calls": run.calls,
        "calls_most": run.calls_most,
        "expires": iso(run.expires),
    }


def _known(lava: Lava, customer: str) -> Account:
    account = lava.ledger.look(checked_id(customer))
    if not account.version:
        raise Stop("the ledger has no entries of this customer")
    return account


_Following: TypeAlias = tuple[datetime, Terms] | None


def _following(lava: Lava, customer: str) -> _Following:
    return lava.terms_to_follow(customer)


def _show(arguments: argparse.Namespace, balance: Balance, following: _Following = None) -> int:
    if arguments.json:
        more = {}
        if following is not None:
            plan = following[1].plan
            more = {"changes_at": following[0].isoformat(), "plan_then": plan and plan.name}
        say_json({"customer": arguments.customer, **_document(balance), **more})
        return 0
    names = ("available", "balance", "held", "debt", *(["overage_used"] if balance.overage_used.ticks else []))
    figures = amounts([getattr(balance, name).ticks for name in names])
    rows = [[_WORDS.get(name, name), figure, _MEANING[name]] for name, figure in zip(names, figures, strict=True)]
    say(table([Column("credits"), Column("", right=True), Column("")], rows))
    for line in _agreed(balance, following):
        say("")
        say(line)
    if balance.limits:
        say("")
        say(_limits(balance.limits))
    return 0


def _agreed(balance: Balance, following: _Following) -> Iterator[str]:
    if balance.suspended:
        yield "Suspended: nothing goes out until lava resume."
    if balance.plan is not None:
        until = f", cycle until {balance.cycle_ends:%Y-%m-%d %H:%M} UTC" if balance.cycle_ends else ""
        yield f"Plan {balance.plan}{until}{', overage without a cap' if balance.unlimited else ''}."
    if following is not None and (following[1].plan and following[1].plan.name) != balance.plan:
        plan = f"plan {following[1].plan.name}" if following[1].plan else "no plan"
        yield f"From {following[0]:%Y-%m-%d %H:%M} UTC on {plan}."


def _plan_of(balance: Balance) -> str:
    return f"{balance.plan or ''}{' (suspended)' if balance.suspended else ''}".strip()


_WORDS = {"overage_used": "overage"}
_MEANING = {
    "available": "what a new call could hold",
    "balance": "not yet spent, open calls included, less debt",
    "held": "set aside by open calls",
    "debt": "charged beyond all credit; repaid first",
    "overage_used": "beyond the plan's credits in this cycle; yours to invoice",
}


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
    resets = "never"
    if limit.resets_at is not None:
        away = duration(max(0.0, (limit.resets_at - datetime.now(UTC)).total_seconds()))
        resets = f"{limit.resets_at:%Y-%m-%d %H:%M} UTC (in {away})"
    return [limit.name, *(_shown(one, limit.unit) for one in (limit.used, limit.held, limit.quantity, left)), resets]


def _shown(quantity: int, unit: str) -> str:
    return str(Amount(quantity)) if unit == "credits" else f"{quantity:,}"


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
                "resets_at": one.resets_at.isoformat() if one.resets_at else None,
            }
            for one in balance.limits
        ],
        **_plan(balance),
    }


def _plan(balance: Balance) -> dict[str, Any]:
    """Only what there is."""
    found: dict[str, Any] = {}
    if balance.plan is not None:
        found["plan"] = balance.plan
        found["cycle_ends"] = balance.cycle_ends.isoformat() if balance.cycle_ends else None
        found["overage_used"] = str(balance.overage_used)
        found["unlimited"] = balance.unlimited
    if balance.suspended:
        found["suspended"] = True
    return found
