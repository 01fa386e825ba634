"""This file knows graduated prices: what so many units cost after so many others, tier by tier."""

from __future__ import annotations

from typing import TypeAlias

from .money import Ticks
from .values import value

Steps: TypeAlias = tuple[tuple[int, Ticks], ...]
"""(first unit, ticks per million units) of each tier, ascending; the first begins at 0."""


@value
class Tiers:
    """A meter whose price depends on what the customer used of it before, in the same window."""

    meter: str
    steps: Steps
    window: str = "month"
    zone: str = "UTC"
    anchor: str = ""


def graduated(steps: Steps, used: int, quantity: int) -> tuple[Ticks, tuple[tuple[Ticks, int], ...]]:
    """(millionths of ticks, (rate, quantity) of each tier met) of so many units after `used` others.

    Five million units of tiers 0 → 5, 1 M → 3, 10 M → 1 cost 5 + 4 · 3 = 17: each unit at the rate of its own tier.
    """
    total, lines = 0, []
    for (start, rate), end in zip(steps, [*(start for start, _ in steps[1:]), None], strict=True):
        begins = max(start, used)
        ends = used + quantity if end is None else min(end, used + quantity)
        if (part := ends - begins) > 0:
            total += part * rate
            lines.append((rate, part))
    return total, tuple(lines)


def dearest_step(steps: Steps, least: int, most: int) -> Ticks:
    """The dearest rate that the units from number `least` to before `most` can meet, in ticks per million."""
    most = max(most, least + 1)  # no unit at all is priced as the next one would be
    reached = [
        rate
        for (start, rate), end in zip(steps, [*(start for start, _ in steps[1:]), None], strict=True)
        if start < most and (end is None or end > least)
    ]
    return max(reached)
