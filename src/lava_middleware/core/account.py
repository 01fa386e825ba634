"""This file knows what one customer has: grants, holds, counters, terms, runs, and what they add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from .events import (
    Counts,
    Draws,
    Metered,
)
from .money import LARGEST, Ticks
from .terms import NO_TERMS, Limit, Terms

CATEGORIES = ("promo", "plan", "bundle", "top_up")
"""Categories of a grant in draw order: of two alike otherwise, the earlier category is drawn first."""
METER = "meter|"
"""Before the name of a counter that a tiered meter goes by; no limit can have such a name."""
TOPUPS = "topup|"
"""The name under which credits bought are counted; no limit can have it."""
OVERAGE = "overage"
"""What a plan lets a cycle go beyond its credits: drawn last. No money of the customer's: what is drawn is invoiced."""
UNLIMITED = 2**60
"""How an overage without a cap counts in sums. It is in no entry and on no screen."""


Scopes: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Credit:
    """What is left of one grant."""

    grant: int
    """The version of the entry that granted it."""
    remaining: Ticks
    """Granted, not yet posted."""
    reserved: Ticks
    """The part of `remaining` that open holds have."""
    category: str
    priority: int
    starts: int | None
    expires: int | None
    room: Ticks = 0
    """How far `remaining` may fall below zero: only of an overage."""
    rolls: bool = False
    """A billing cycle's own credits: what is left may go over into the next."""

    def alive(self, now: int) -> bool:
        return (self.starts is None or self.starts <= now) and (self.expires is None or now < self.expires)

    @property
    def free(self) -> Ticks:
        return self.remaining + self.room - self.reserved

    def draw_order(self) -> tuple[bool, int, float, int, int, int]:
        """Overage last; priority, what expires first, category, what started first, what was granted first."""
        if self.category == OVERAGE:
            return True, 0, 0, 0, 0, self.grant
        expires = float("inf") if self.expires is None else self.expires
        return False, self.priority, expires, CATEGORIES.index(self.category), self.starts or 0, self.grant


@dataclass(slots=True)
class Hold:
    """An open hold."""

    owner: str
    amount: Ticks
    draws: Draws
    output_tokens: int
    """Output tokens it pays for."""
    expected: Ticks
    """What an unknown outcome owes: never above `amount`."""
    slice: Ticks
    """The part of `amount` that the last slice of output added: delivered only once the next one was asked for."""
    grows: bool
    """An extension adds the slice before it to `expected`: that much was delivered."""
    counts: Counts
    at: int
    scopes: Scopes = ()
    metered: Metered = ()


@dataclass(slots=True)
class Counter:
    """How much of a limit is taken in one window."""

    ends: int
    used: int = 0
    held: int = 0
    over: int = 0
    """The part of `used` that no hold had covered."""
    crossed: int = 0
    """The highest threshold that has fired, in per cent."""


@dataclass(slots=True)
class Cycle:
    """The billing cycle that the account is in."""

    plan: str
    id: str
    starts: int
    ends: int
    number: int
    calendar: tuple[str, str, str]
    rollover: Ticks | None
    """The most that goes over from it; None: all."""
    rolled: Ticks
    """What came over into it."""
    carried_most: Ticks | None
    """The most that may come over into it, what holds of earlier cycles give back included; None: all."""
    grant: int


@dataclass(slots=True)
class Run:
    """A piece of work with a budget of its own."""

    parent: str
    budget: Ticks | None
    calls_most: int | None
    expires: int
    draws: Draws = ()
    """What is still reserved for it alone."""
    reserves: bool = False
    spent: Ticks = 0
    held: Ticks = 0
    """By its open calls, those of runs inside it included."""
    calls: int = 0


@dataclass(slots=True)
class Topup:
    """Credits that are being bought."""

    key: str
    amount: Ticks
    at: int


@dataclass(slots=True)
class Account:
    """One customer, folded."""

    version: int = 0
    at: int = 0
    terms: Terms = NO_TERMS
    credits: list[Credit] = field(default_factory=list)
    """In draw order; a grant that is used up or lapsed leaves."""
    holds: dict[str, Hold] = field(default_factory=dict)
    counters: dict[tuple[str, str], Counter] = field(default_factory=dict)
    cycle: Cycle | None = None
    since: int = 0
    """When these terms came into force: cycles of a new plan are counted from there."""
    pending: tuple[int, Terms] | None = None
    """(from when on, terms) that are to follow."""
    runs: dict[str, Run] = field(default_factory=dict)
    topup: Topup | None = None
    topups_stopped: bool = False
    """The last purchase failed: no more tries until credit is granted or the terms change."""
    gone: dict[int, str] = field(default_factory=dict)
    """Categories of the last grants that left, where not top_up: a refund to such a one becomes a grant like it."""
    debt: Ticks = 0
    charged: Ticks = 0
    """All charges ever: posted + debt ever incurred."""
    posted: Ticks = 0
    """All that grants ever paid for charges at once (repaid debt not included)."""
    incurred: Ticks = 0
    """All debt ever incurred."""

    def free(self, now: int) -> Ticks:
        """What living grants have left that no hold has reserved."""
        free = 0
        for credit in self.credits:  # a loop of its own: it runs three times a call, and a generator doubles its time
            if (credit.starts is None or credit.starts <= now) and (credit.expires is None or now < credit.expires):
                free += credit.remaining + credit.room - credit.reserved
        return free

    def available(self, now: int) -> Ticks:
        """What a new hold could take: free credit less debt. Negative while debt exceeds it."""
        return self.free(now) - self.debt

    def reserved(self) -> Ticks:
        return sum(credit.reserved for credit in self.credits)

    def balance(self, now: int) -> Ticks:
        """As on a bank statement: what grants have left, holds not deducted, less debt."""
        return sum(one.remaining if one.alive(now) else min(one.reserved, one.remaining) for one in self.credits) - (
            self.debt
        )

    def more_owed_at_most(self) -> Ticks:
        """How much debt may be added before the sums leave their bounds; an overage counts, used or held."""
        over = sum(one.reserved - one.remaining for one in self.credits if one.category == OVERAGE)
        return max(LARGEST - 1 - self.debt - over, 0)

    def more_kept_at_most(self) -> Ticks:
        """How much credit may be added before they do."""
        return max(LARGEST - 1 - sum(one.remaining for one in self.credits if one.remaining > 0), 0)

    def limit(self, name: str) -> Limit | None:
        return next((one for one in self.terms.limits if one.name == name), None)

    def overage(self) -> Credit | None:
        """The present cycle's overage, if the plan has one."""
        ends = self.cycle.ends if self.cycle else None
        return next((one for one in self.credits if one.category == OVERAGE and one.expires == ends), None)

    def chain(self, scopes: Scopes) -> list[Run]:
        """The open runs that these scopes name, outermost first."""
        return [run for scope, value in scopes if scope == "run" and (run := self.runs.get(value)) is not None]

    def reserving(self, scopes: Scopes) -> Run | None:
        """The one of them that has reserved its budget: only an outermost run does."""
        return next((run for run in self.chain(scopes) if run.reserves), None) if self.runs else None
