"""This file knows the commands `check` and `apply`: what a catalogue means, and putting it in force."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ..core.meter import MILLIONS, Meter
from ..core.money import PER_MILLION, Amount
from ..core.terms import Limit
from ..lava import Lava
from ..offers.catalogue import Catalogue, Offer, read
from .common import existing, say, say_json, settings_of
from .progress import Progress
from .table import Column, table


def check(arguments: argparse.Namespace) -> int:
    catalogue = read(arguments.file)
    if arguments.json:
        say_json(_document(catalogue))
        return 0
    say("\n\n".join(_said(catalogue)))
    return 0


def apply(arguments: argparse.Namespace) -> int:
    existing(settings_of(arguments.ledger))
    with Lava(arguments.ledger, catalogue=arguments.file) as lava, Progress("customers") as progress:
        done = lava.apply_catalogue(dry_run=arguments.dry_run, progress=progress.count)
        version = lava.catalogue.version if lava.catalogue is not None else 0
    if arguments.json:
        say_json({"version": version, "dry_run": arguments.dry_run, **asdict(done)})
        return 0
    say(f"Version {version}{', not applied: this is a dry run' if arguments.dry_run else ' is in force'}.")
    say("")
    rows = [[f"{getattr(done, name):,}", words] for name, words in _DONE.items()]
    say(table([Column("customers", right=True), Column("")], rows))
    return 0


_DONE = {
    "changed": "on a plan that has changed",
    "unchanged": "on a plan as it was",
    "newer": "on a later version of the catalogue: left as they are",
    "others": "on a plan that is not in the catalogue: left as they are",
    "without_plan": "on no plan",
}


def _said(catalogue: Catalogue) -> Iterator[str]:
    default = f", {catalogue.default_plan} by default" if catalogue.default_plan else ""
    yield f"Version {catalogue.version}: {len(catalogue.offers)} plans{default}."
    if catalogue.offers:
        yield _plans(catalogue)
    limits = [[name, *_limit(one)] for name, offer in catalogue.offers.items() for one in offer.limits_in("UTC")]
    if limits:
        titles = ("plan", "limit", "at most", "per", "of", "when reached")
        yield table([Column(title, gives=title in ("plan", "limit", "of")) for title in titles], limits)
    meters = catalogue.made_meters()
    if meters:
        columns = [Column("meter"), Column("charges", gives=True), Column("for", gives=True)]
        yield table(columns, [[name, _charges(one), _applies(one)] for name, one in meters.items()])
    counts = [f"{len(section)} {words}" for section, words in _sections(catalogue) if section]
    if counts:
        yield f"{' and '.join(counts)}."
    if catalogue.notes:
        yield "\n".join(f"Note: {note}." for note in catalogue.notes)


def _sections(catalogue: Catalogue) -> tuple[tuple[Any, str], ...]:
    return (catalogue.prices, "models with prices of yours"), (catalogue.providers, "providers of yours")


def _plans(catalogue: Catalogue) -> str:
    titles = ("plan", "credits", "cycle", "goes over", "overage", "meters", "models", "top-up")
    columns = [Column(title, right=title == "credits", gives=title in ("meters", "models")) for title in titles]
    return table(columns, [[name, *_plan(offer)] for name, offer in catalogue.offers.items()])


def _plan(offer: Offer) -> list[str]:
    plan = offer.plan
    return [
        str(Amount(plan.credits)),
        plan.cycle,
        "all" if plan.rollover is None else str(Amount(plan.rollover)) if plan.rollover else "nothing",
        "unlimited" if plan.overage is None else f"up to {Amount(plan.overage)}" if plan.overage else "blocked",
        "any" if plan.meters is None else ", ".join(plan.meters) or "none",
        "any" if plan.models is None else ", ".join(plan.models) or "none",
        _top_up(offer),
    ]


def _top_up(offer: Offer) -> str:
    bought = offer.top_up
    return "" if bought is None else f"{Amount(bought.amount)} below {Amount(bought.below)}"


def _limit(limit: Limit) -> list[str]:
    quantity = str(Amount(limit.quantity)) if limit.unit == "credits" else f"{limit.quantity:,}"
    of = ", ".join(f"{name}={value}" for name, value in limit.of)
    return [
        limit.name,
        f"{quantity} {limit.unit}",
        limit.window,
        f"{of}{' ' if of and limit.per else ''}{f'each {limit.per}' if limit.per else ''}",
        "warns" if limit.on_reach == "warn" else "blocks",
    ]


def _charges(meter: Meter) -> str:
    if not meter.bills:
        return "nothing"
    parts = [] if meter.cost_times is None else [f"cost × {meter.cost_times}"]
    parts += [f"{_rate(rate, unit)} {_per(unit)}" for unit, rate in meter.rates.items()]
    if meter.tiers is not None:
        steps = ", ".join(f"{_rate(rate, meter.unit)} from {start:,}" for start, rate in meter.tiers.steps)
        parts.append(f"{_per(meter.unit)} a {meter.tiers.window}: {steps}")
    return " + ".join(parts)


def _per(unit: str) -> str:
    return f"per million {unit}" if unit in MILLIONS else f"each of {unit}"


def _rate(ticks: int, unit: str) -> str:
    """Exact, as it was written: of some rates only a million units come to whole ticks."""
    if unit in MILLIONS:
        return str(Amount(ticks))
    each, rest = divmod(ticks, PER_MILLION)
    return f"{Amount(ticks)}/1,000,000" if rest else str(Amount(each))


def _applies(meter: Meter) -> str:
    return ", ".join((*meter.models, *meter.providers, *meter.routes)) or "calls that name it"


def _document(catalogue: Catalogue) -> dict[str, Any]:
    return {
        "version": catalogue.version,
        "default_plan": catalogue.default_plan,
        "plans": {
            name: {
                "credits": str(Amount(offer.plan.credits)),
                "cycle": offer.plan.cycle,
                "rollover": None if offer.plan.rollover is None else str(Amount(offer.plan.rollover)),
                "overage": None if offer.plan.overage is None else str(Amount(offer.plan.overage)),
                "meters": offer.plan.meters,
                "models": offer.plan.models,
                "limits": [one.name for one in offer.limits_in("UTC")],
                "top_up": offer.top_up is not None,
            }
            for name, offer in catalogue.offers.items()
        },
        "meters": {name: _charges(one) for name, one in catalogue.made_meters().items()},
        "prices": len(catalogue.prices),
        "providers": list(catalogue.providers),
        "notes": list(catalogue.notes),
    }
