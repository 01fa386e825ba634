"""This file knows what one customer's entries add up to, and how one more event changes it.

`evolve` is arithmetic only: it asks no clock, price list or configuration, so history never changes when rules do.
It works in place: the account belongs to whoever folds it, and a fold of millions of entries must not copy.
"""

from __future__ import annotations

import json
from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .events import Adjusted, Counts, Draws, Event, Extended, Granted, Held, Lapsed, Reported, Settled, TermsSet, Voided
from .money import Ticks
from .terms import NO_TERMS, Limit, Terms
from .windows import window_of

STATE_FORMAT = 1
"""Of `to_state`. A snapshot of another format is ignored and folded anew."""

CATEGORIES = ("promo", "plan", "bundle", "top_up")
"""Categories of a grant in draw order: of two alike otherwise, the earlier category is drawn first."""


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

    def alive(self, now: int) -> bool:
        return (self.starts is None or self.starts <= now) and (self.expires is None or now < self.expires)

    @property
    def free(self) -> Ticks:
        return self.remaining - self.reserved

    def draw_order(self) -> tuple[int, float, int, int, int]:
        """Priority, what expires first, category, what started first, what was granted first."""
        expires = float("inf") if self.expires is None else self.expires
        return self.priority, expires, CATEGORIES.index(self.category), self.starts or 0, self.grant


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


@dataclass(slots=True)
class Counter:
    """How much of a limit is taken in one window."""

    ends: int
    used: int = 0
    held: int = 0
    over: int = 0
    """The part of `used` that no hold had covered."""


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
                free += credit.remaining - credit.reserved
        return free

    def available(self, now: int) -> Ticks:
        """What a new hold could take: free credit less debt. Negative while debt exceeds it."""
        return self.free(now) - self.debt

    def reserved(self) -> Ticks:
        return sum(credit.reserved for credit in self.credits)

    def balance(self, now: int) -> Ticks:
        """As on a bank statement: what grants have left, holds not deducted, less debt."""
        return sum(credit.remaining if credit.alive(now) else credit.reserved for credit in self.credits) - self.debt

    def limit(self, name: str) -> Limit | None:
        return next((one for one in self.terms.limits if one.name == name), None)


def evolve(account: Account, event: Event, at: int) -> None:
    """Fold one more event into the account, in place; its version grows by one and its time becomes `at`."""
    _FOLD[type(event)](account, event, at)
    account.version += 1
    account.at = at


def _granted(account: Account, event: Granted, at: int) -> None:
    account.debt -= event.debt_repaid
    left = event.amount - event.debt_repaid
    if left:
        _add(account, Credit(account.version + 1, left, 0, event.category, event.priority, event.starts, event.expires))


def _held(account: Account, event: Held, at: int) -> None:
    _reserve(account, event.draws)
    if event.counts:
        _count(account, event.counts, at, held=1)
    account.holds[event.hold] = Hold(
        event.owner,
        event.amount,
        event.draws,
        event.output_tokens,
        event.expected,
        event.slice,
        event.slice > 0,
        event.counts,
        at,
    )


def _extended(account: Account, event: Extended, at: int) -> None:
    hold = account.holds[event.hold]
    _reserve(account, event.draws)
    _count(account, event.counts, at, held=1)
    if hold.expected == hold.amount and not hold.grows:
        hold.expected += event.amount  # the policy is that an unknown outcome owes the whole hold
    hold.amount += event.amount
    hold.draws = _joined((*hold.draws, *event.draws))
    hold.output_tokens += event.output_tokens
    hold.counts = _joined_counts((*hold.counts, *event.counts))
    if hold.grows:
        hold.expected = min(hold.expected + hold.slice, hold.amount)
        hold.slice = event.amount


def _settled(account: Account, event: Settled, at: int) -> None:
    hold = account.holds.pop(event.hold)
    _release(account, hold.draws)
    _charge(account, event.charge, event.draws, event.debt)
    if event.repaid:
        _repay(account, event.repaid)
    if event.counts or hold.counts:
        # Used before held: a counter that nobody holds and whose window has ended may leave at any count.
        _count(account, event.counts, at, used=1)
        _count(account, event.over, at, over=1)
        _count(account, hold.counts, at, held=-1)


def _voided(account: Account, event: Voided, at: int) -> None:
    hold = account.holds.pop(event.hold)
    _release(account, hold.draws)
    _count(account, hold.counts, at, held=-1)
    _repay(account, event.repaid)


def _reported(account: Account, event: Reported, at: int) -> None:
    _charge(account, event.charge, event.draws, event.debt)
    _count(account, event.counts, at, used=1)
    _count(account, event.over, at, over=1)


def _adjusted(account: Account, event: Adjusted, at: int) -> None:
    _charge(account, event.charge, event.draws, event.debt)
    if event.refund:
        _add(account, Credit(account.version + 1, event.refund, 0, event.category, 0, None, None))
    _count(account, event.counts, at, used=1)
    _count(account, event.over, at, over=1)


def _lapsed(account: Account, event: Lapsed, at: int) -> None:
    _post(account, event.draws)


def _terms_set(account: Account, event: TermsSet, at: int) -> None:
    account.terms = event.terms


_FOLD: dict[type[Any], Any] = {
    Granted: _granted,
    Held: _held,
    Extended: _extended,
    Settled: _settled,
    Voided: _voided,
    Reported: _reported,
    Adjusted: _adjusted,
    Lapsed: _lapsed,
    TermsSet: _terms_set,
}


def _add(account: Account, credit: Credit) -> None:
    insort(account.credits, credit, key=Credit.draw_order)


def _credit(account: Account, grant: int) -> Credit | None:
    for credit in account.credits:
        if credit.grant == grant:
            return credit
    return None


def _reserve(account: Account, draws: Draws) -> None:
    for grant, ticks in draws:
        credit = _credit(account, grant)
        assert credit is not None, "a hold names a grant that has nothing left"
        credit.reserved += ticks


def _release(account: Account, draws: Draws) -> None:
    for grant, ticks in draws:
        credit = _credit(account, grant)
        assert credit is not None, "a hold's grant left before the hold ended"
        credit.reserved -= ticks


def _post(account: Account, draws: Draws) -> None:
    """Take what is posted from the grants; a negative draw gives back. Grants with nothing left leave."""
    for grant, ticks in draws:
        credit = _credit(account, grant)
        assert credit is not None, "a posting names a grant that has nothing left"
        credit.remaining -= ticks
        if not credit.remaining and not credit.reserved:
            account.credits.remove(credit)


def _charge(account: Account, charge: Ticks, draws: Draws, debt: Ticks) -> None:
    _post(account, draws)
    account.debt += debt
    account.charged += charge
    account.posted += charge - debt
    account.incurred += debt


def _repay(account: Account, draws: Draws) -> None:
    _post(account, draws)
    account.debt -= sum(ticks for _, ticks in draws)


def _count(account: Account, counts: Counts, at: int, *, held: int = 0, used: int = 0, over: int = 0) -> None:
    for name, window, quantity in counts:
        counter = account.counters.get((name, window))
        if counter is None:
            _drop_ended(account, at)
            limit = account.limit(name)
            ends = window_of(limit, at)[1] if limit else at
            counter = account.counters[name, window] = Counter(ends)
        counter.held += held * quantity
        counter.used += used * quantity
        counter.over += over * quantity


def _drop_ended(account: Account, at: int) -> None:
    """A counter leaves with the first entry that opens another after its window ended and no open hold names it."""
    for name in [name for name, counter in account.counters.items() if counter.ends <= at and not counter.held]:
        del account.counters[name]


def _joined(draws: Iterable[tuple[int, Ticks]]) -> Draws:
    """The same draws with each grant once, in order of first mention."""
    sums: dict[int, Ticks] = {}
    for grant, ticks in draws:
        sums[grant] = sums.get(grant, 0) + ticks
    return tuple(sums.items())


def _joined_counts(counts: Iterable[tuple[str, str, int]]) -> Counts:
    sums: dict[tuple[str, str], int] = {}
    for name, window, quantity in counts:
        sums[name, window] = sums.get((name, window), 0) + quantity
    return tuple((name, window, quantity) for (name, window), quantity in sums.items())


def to_state(account: Account) -> str:
    """The account as JSON, for a snapshot. `from_state` gives an equal account."""
    return json.dumps(list(_state(account)), ensure_ascii=False, separators=(",", ":"))


def _state(account: Account) -> Iterator[Any]:
    yield account.version
    yield account.at
    yield [
        account.terms.version,
        [[one.name, one.unit, one.quantity, one.window, one.zone] for one in account.terms.limits],
    ]
    yield [
        [one.grant, one.remaining, one.reserved, one.category, one.priority, one.starts, one.expires]
        for one in account.credits
    ]
    yield [
        [name, h.owner, h.amount, h.draws, h.output_tokens, h.expected, h.slice, h.grows, h.counts, h.at]
        for name, h in account.holds.items()
    ]
    yield [[*name, one.ends, one.used, one.held, one.over] for name, one in account.counters.items()]
    yield [account.debt, account.charged, account.posted, account.incurred]


def from_state(text: str) -> Account:
    """The account that `to_state` wrote."""
    version, at, terms, credits, holds, counters, (debt, charged, posted, incurred) = json.loads(text)
    return Account(
        version,
        at,
        Terms(terms[0], tuple(Limit(*one) for one in terms[1])),
        [Credit(*one) for one in credits],
        {name: _hold(*rest) for name, *rest in holds},
        {(name, window): Counter(*rest) for name, window, *rest in counters},
        debt,
        charged,
        posted,
        incurred,
    )


def _hold(
    owner: str,
    amount: int,
    draws: list[list[int]],
    output_tokens: int,
    expected: int,
    slice_: int,
    grows: bool,
    counts: list[Any],
    at: int,
) -> Hold:
    drawn = tuple((grant, ticks) for grant, ticks in draws)
    counted = tuple((name, window, quantity) for name, window, quantity in counts)
    return Hold(owner, amount, drawn, output_tokens, expected, slice_, grows, counted, at)
