"""This file knows what limits and tiered meters count: how much room there is, what a call takes, what was used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .account import METER, Account, Counter, Hold
from .commands import Scopes
from .decision import Declined
from .events import Counts, Metered
from .money import PER_MILLION, Ticks, charge_ceiling, half_even
from .terms import Limit
from .tiers import Tiers, dearest_step, graduated
from .windows import window_at, window_of


class Applied(NamedTuple):
    """A limit that applies to a call, in its present window."""

    limit: Limit
    window: str
    ends: int
    room: int
    """What is left of it."""
    taken: int
    """Used and held."""
    held: int


class Needs(NamedTuple):
    """What a call takes of each unit, whatever comes out and for each output token."""

    input_tokens: int
    fixed: Ticks
    output_price: int
    requests: int = 1
    units: Mapping[str, int] = {}

    def of(self, unit: str) -> tuple[int, int]:
        """(whatever comes out, millionths for each output token). What is said outright of a unit is all of it."""
        if unit in self.units:
            return self.units[unit], 0
        match unit:
            case "tokens":
                return self.input_tokens, PER_MILLION
            case "input_tokens":
                return self.input_tokens, 0
            case "output_tokens":
                return 0, PER_MILLION
            case "requests" | "open_calls":
                return self.requests, 0
            case "credits":
                return self.fixed, self.output_price
            case _:
                return 0, 0


def applied(account: Account, scopes: Scopes, now: int) -> list[Applied]:
    """Every limit that applies to what has these scopes."""
    found: list[Applied] = []
    for limit in account.terms.limits:
        if (window := _window(account, limit, scopes, now)) is not None:
            counter = account.counters.get((limit.name, window[0]))
            taken, held = (counter.used + counter.held, counter.held) if counter else (0, 0)
            found.append(Applied(limit, *window, limit.quantity - taken, taken, held))
    return found


def _window(account: Account, limit: Limit, scopes: Scopes, at: int) -> tuple[str, int] | None:
    if limit.of and not set(limit.of) <= set(scopes):
        return None
    window, ends = window_of(limit, at, account.terms.plan)
    if not limit.per:
        return window, ends
    value = next((value for name, value in scopes if name == limit.per), None)
    return None if value is None else (f"{window}|{value}", ends)


def fit(one: Applied, needs: Needs, wanted: int) -> int:
    """How many output tokens fit into what the limit leaves, -1 where not even the fixed part does."""
    fixed, each = needs.of(one.limit.unit)
    room = one.room - fixed
    if room < 0:
        return -1
    return min(wanted, room * PER_MILLION // each) if each else wanted


def counted(rooms: list[Applied], needs: Needs, output_tokens: int) -> Counts:
    """What a call takes of each limit that applies."""
    counts = []
    for one in rooms:
        fixed, each = needs.of(one.limit.unit)
        counts.append((one.limit.name, one.window, fixed + charge_ceiling(output_tokens, each)))
    return tuple(counts)


def limit_reached(one: Applied, fits: int, need: int) -> Declined:
    """The refusal that names the limit."""
    return Declined(
        "limit_reached",
        output_tokens_fit=max(fits, 0),
        waitable=one.held > 0 and one.taken - one.held + need <= one.limit.quantity,
        limit=one.limit.name,
        unit=one.limit.unit,
        used=one.taken,
        quantity=one.limit.quantity,
        resets_at=one.ends if one.limit.window != "lifetime" else None,
    )


# What was used --------------------------------------------------------------------------------------------------------


def quantities(
    input_tokens: int, output_tokens: int, charge: Ticks, units: tuple[tuple[str, int], ...], requests: int = 1
) -> dict[str, int]:
    """What an ending adds to a limit, by the limit's unit. An open call is one no more."""
    return {
        "tokens": input_tokens + output_tokens,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "requests": requests,
        "credits": charge,
        "open_calls": 0,
        **dict(units),
    }


def filled(account: Account, hold: Hold, used: Mapping[str, int]) -> tuple[Counts, Counts]:
    """(used, of it not held) by limit and window: windows are filled in order, what exceeds them counts in the last.

    Limits that were set after the hold was made do not count it.
    """
    if not hold.counts:
        return (), ()
    units = {limit.name: limit.unit for limit in account.terms.limits}
    counts, over = [], []
    for name in dict.fromkeys(name for name, *_ in hold.counts):
        windows = [(window, quantity) for limit, window, quantity in hold.counts if limit == name]
        left = used.get(units[name], 0) if name in units else 0
        for number, (window, quantity) in enumerate(windows, 1):
            part = left if number == len(windows) else min(left, quantity)
            left -= part
            if part:
                counts.append((name, window, part))
            if part > quantity:
                over.append((name, window, part - quantity))
    return tuple(counts), tuple(over)


def reported(rooms: list[Applied], used: Mapping[str, int]) -> tuple[Counts, Counts]:
    """(used, of it beyond the limit) of what no hold preceded."""
    counts, over = [], []
    for one in rooms:
        quantity = used.get(one.limit.unit, 0)
        counts.append((one.limit.name, one.window, quantity))
        if quantity > max(one.room, 0):
            over.append((one.limit.name, one.window, quantity - max(one.room, 0)))
    return tuple(counts), tuple(over)


# Tiered meters --------------------------------------------------------------------------------------------------------


def tier_counter(account: Account, tiers: Tiers, at: int) -> tuple[str, str, int, Counter]:
    """(counter's name, window, its end, the counter) of a tiered meter."""
    window, ends = window_at(tiers.window, tiers.anchor, tiers.zone, at, account.terms.plan)
    name = METER + tiers.meter
    return name, window, ends, account.counters.get((name, window)) or Counter(ends)


def tier_rate(account: Account, tiers: Tiers, quantity: int, now: int) -> Ticks:
    """The dearest rate that so many more units can meet, whatever the open holds turn out to use."""
    *_, counter = tier_counter(account, tiers, now)
    return dearest_step(tiers.steps, counter.used, counter.used + counter.held + quantity)


def tier_charge(
    account: Account, tiers: Tiers | None, quantity: int, held: Metered, now: int, *, counted: int = 0
) -> tuple[Ticks, tuple[tuple[Ticks, int], ...], Metered]:
    """(ticks, half to even; tiers met; what is counted) of so many units, in the window they were held in.

    They come after all that was used before, except for what was `counted` already of the same call.
    """
    if tiers is None:
        return 0, (), ()
    name, window, ends, counter = tier_counter(account, tiers, now)
    for one, held_window, _, held_ends in held:
        if one == name:
            window, ends = held_window, held_ends
            counter = account.counters.get((name, window)) or Counter(ends)
            break
    millionths, met = graduated(tiers.steps, max(counter.used - counted, 0), quantity)
    return half_even(millionths, PER_MILLION), met, ((name, window, quantity, ends),) if quantity else ()
