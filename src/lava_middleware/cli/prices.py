"""This file knows the command `prices`: what a model costs, by which list, and what it is sold at."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ..core.money import decimal_text
from ..core.pricing import Price
from ..prices.book import Book
from .common import Stop, say, say_json, settings_of
from .table import Column, table

FOUND_MOST = 20
SHOWN_UNITS = ("input", "cache_read", "cache_write", "output")


def prices(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments.ledger)
    book = Book(settings.prices)
    found = book.search(arguments.model, FOUND_MOST)
    if not found:
        raise Stop(
            "no price is known for such a model, so calls to it are refused; give it one in the file LAVA_PRICES"
        )
    if arguments.json:
        for price in found:
            say_json(_document(price, book.version))
        return 0
    say(f"Credits per million tokens, at cost. Price list {book.version}.")
    say("")
    say(_table(found))
    notes = _notes(found)
    if settings.markup != 1:
        notes.append(f"Customers are charged {_shortest(settings.markup)} times the cost.")
    if len(found) == FOUND_MOST:
        notes.append(f"The {FOUND_MOST} closest names; a longer name shows fewer.")
    if notes:
        say("")
        say("\n".join(notes))
    return 0


def _table(found: list[Price]) -> str:
    columns = [
        Column("provider"),
        Column("model"),
        *(Column(unit.replace("_", " "), right=True) for unit in SHOWN_UNITS),
        Column("most out", right=True),
        Column("source", gives=True),
    ]
    rows = [
        [
            price.provider,
            price.model + ("*" if price.tiers or price.variants else ""),
            *(_rate(price, unit) for unit in SHOWN_UNITS),
            f"{price.output_tokens_max:,}" if price.output_tokens_max else "",
            price.source,
        ]
        for price in found
    ]
    return table(columns, rows)


def _rate(price: Price, unit: str) -> str:
    if price.free:
        return "free"
    return _credits(price.rates[unit]) if unit in price.rates else ""


def _notes(found: list[Price]) -> list[str]:
    if any(price.tiers or price.variants for price in found):
        return ["* other prices for long inputs or other service tiers; --json shows them."]
    return []


def _credits(ticks: int) -> str:
    return _shortest(Decimal(decimal_text(ticks)))


def _shortest(number: Decimal) -> str:
    text = f"{number:f}"
    whole, _, part = text.partition(".")
    return f"{whole}.{part.rstrip('0').ljust(2, '0')}"


def _document(price: Price, version: str) -> dict[str, Any]:
    return {
        "provider": price.provider,
        "model": price.model,
        "free": price.free,
        "per_million": _rates(price.rates),
        "above_input_tokens": {str(above): _rates(rates) for above, rates in price.tiers},
        "service_tiers": {name: _rates(rates) for name, rates in price.variants.items()},
        "output_tokens_max": price.output_tokens_max,
        "context_tokens": price.context_tokens,
        "source": price.source,
        "as_of": price.as_of,
        "version": version,
    }


def _rates(rates: Mapping[str, int]) -> dict[str, str]:
    return {unit: decimal_text(ticks) for unit, ticks in rates.items()}
