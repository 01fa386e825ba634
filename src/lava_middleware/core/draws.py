"""This file knows from which grants credit is taken, and in what order."""

from __future__ import annotations

from collections.abc import Mapping

from .account import Account, Run
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
        free = credit.remaining + credit.room - credit.reserved + (released.get(credit.grant, 0) if released else 0)
        if free > 0:
            taken = min(free, amount)
            draws.append((credit.grant, taken))
            amount -= taken
            if not amount:
                break
    return tuple(draws), amount


def draw_for(account: Account, run: Run | None, amount: Ticks, now: int) -> tuple[Draws, Ticks, Draws]:
    """(draws, what nothing covers, the part of the draws that the run had reserved): its reserve is taken first."""
    if run is None:
        draws, missing = draw(account, amount, now)
        return draws, missing, ()
    reserve, _, beyond = split(run.draws, amount)
    more, missing = draw(account, beyond, now)
    return joined(reserve, more), missing, reserve


def split(draws: Draws, amount: Ticks) -> tuple[Draws, Mapping[int, Ticks], Ticks]:
    """(the first `amount` ticks of the draws, the rest of the draws by grant, the part of `amount` beyond them)."""
    taken: list[tuple[int, Ticks]] = []
    rest: dict[int, Ticks] = {}
    left = max(amount, 0)
    for grant, ticks in draws:
        part = ticks if ticks < left else left
        left -= part
        if part:
            taken.append((grant, part))
        if part < ticks:
            rest[grant] = rest.get(grant, 0) + ticks - part
    return tuple(taken), rest, left


def joined(*many: Draws) -> Draws:
    """The draws with each grant once, in order of first mention."""
    sums: dict[int, Ticks] = {}
    for draws in many:
        for grant, ticks in draws:
            sums[grant] = sums.get(grant, 0) + ticks
    return tuple((grant, ticks) for grant, ticks in sums.items() if ticks)


def negative(draws: Draws) -> Draws:
    return tuple((grant, -ticks) for grant, ticks in draws)
