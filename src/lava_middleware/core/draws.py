"""This file knows from which grants credit is taken, and in what order."""

from __future__ import annotations

from collections.abc import Mapping

from .account import Account
from .events import Draws
from .money import Ticks


def draw(account: Account, amount: Ticks, now: int, released: Mapping[int, Ticks] | None = None) -> tuple[Draws, Ticks]:
    """(draws, what no grant covers) of taking `amount` from living grants in draw order, from what is not reserved.

    `released` is credit that the same event frees: grant → ticks.
    """
    if amount <= 0:
        return (), 0
    draws = []
    for credit in account.credits:
        if not credit.alive(now):
            continue
        free = credit.remaining - credit.reserved + (released.get(credit.grant, 0) if released else 0)
        if free > 0:
            taken = min(free, amount)
            draws.append((credit.grant, taken))
            amount -= taken
            if not amount:
                break
    return tuple(draws), amount


def split(draws: Draws, amount: Ticks) -> tuple[Draws, Mapping[int, Ticks]]:
    """The first `amount` ticks of the draws, and the rest of them by grant."""
    taken: list[tuple[int, Ticks]] = []
    rest: dict[int, Ticks] = {}
    for grant, ticks in draws:
        part = min(ticks, max(amount, 0))
        amount -= part
        if part:
            taken.append((grant, part))
        if ticks - part:
            rest[grant] = rest.get(grant, 0) + ticks - part
    return tuple(taken), rest


def joined(*many: Draws) -> Draws:
    """The draws with each grant once, in order of first mention."""
    sums: dict[int, Ticks] = {}
    for draws in many:
        for grant, ticks in draws:
            sums[grant] = sums.get(grant, 0) + ticks
    return tuple(sums.items())
