"""This file knows how to check a journal entry by entry, by arithmetic of its own: admission was exact (G4).

It reads events only and uses neither `evolve` nor `decide`, so a mistake in them cannot hide itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lava_middleware.core.events import (
    Adjusted,
    Counts,
    Draws,
    Extended,
    Granted,
    Held,
    Lapsed,
    Repaid,
    Reported,
    Settled,
    TermsSet,
    Voided,
    decode,
)
from lava_middleware.core.terms import Limit
from lava_middleware.ledger.journal import Entry, Journal


@dataclass
class Purse:
    """One grant."""

    amount: int
    starts: int | None
    expires: int | None
    posted: int = 0
    lapsed: int = 0
    reserved: int = 0

    def alive(self, at: int) -> bool:
        return (self.starts is None or self.starts <= at) and (self.expires is None or at < self.expires)

    def balance(self, at: int) -> int:
        return self.amount - self.posted - self.lapsed if self.alive(at) else self.reserved


@dataclass
class Window:
    used: int = 0
    held: int = 0
    over: int = 0


@dataclass
class Replay:
    """One customer's journal so far. `entry` adds one entry and raises AssertionError where a rule was broken."""

    purses: dict[int, Purse] = field(default_factory=dict)
    holds: dict[str, tuple[Draws, Counts]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    limits: dict[str, Limit] = field(default_factory=dict)
    windows: dict[tuple[str, str], Window] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    version: int = 0
    at: int = 0
    debt: int = 0
    charged: int = 0
    posted: int = 0
    incurred: int = 0

    def entry(self, entry: Entry) -> None:
        assert entry.version == self.version + 1, "versions have no gaps"
        assert entry.at > self.at, "time runs forward"
        assert entry.key is None or entry.key not in self.keys, "a key stands once"
        self.version, self.at = entry.version, entry.at
        if entry.key is not None:
            self.keys.add(entry.key)
        event = decode(entry.kind, entry.event)
        getattr(self, f"_{type(event).__name__.lower()}")(event)
        self._check()
        balance = sum(purse.balance(self.at) for purse in self.purses.values()) - self.debt
        assert entry.balance_after == balance, "the balance after it is that of a bank statement"

    def _granted(self, event: Granted) -> None:
        self.debt -= event.debt_repaid
        self.purses[self.version] = Purse(event.amount - event.debt_repaid, event.starts, event.expires)

    def _held(self, event: Held) -> None:
        assert event.hold not in self.holds
        assert event.hold not in self.ended
        assert sum(ticks for _, ticks in event.draws) == event.amount, "a hold is wholly reserved"
        self.holds[event.hold] = (), ()
        self._reserve(event.hold, event.draws, event.counts)

    def _extended(self, event: Extended) -> None:
        assert sum(ticks for _, ticks in event.draws) == event.amount
        self._reserve(event.hold, event.draws, event.counts)

    def _reserve(self, hold: str, draws: Draws, counts: Counts) -> None:
        for grant, ticks in draws:
            assert self.purses[grant].alive(self.at), "nothing is newly reserved on a dead grant"
            self.purses[grant].reserved += ticks
        for name, window, quantity in counts:
            state = self._window(name, window)
            state.held += quantity
            room = self.limits[name].quantity - (state.held + state.used - state.over)
            assert room >= 0, f"held + used - overrun of a limit is at most the limit: {-room} too many"
        before = self.holds[hold]
        self.holds[hold] = (*before[0], *draws), (*before[1], *counts)

    def _settled(self, event: Settled) -> None:
        self._release(event.hold)
        assert event.charge == sum(ticks for _, ticks in event.draws) + event.debt
        assert not event.overrun or event.cause or event.lost_owner, "an overrun has a cause"
        self._charge(event.charge, event.draws, event.debt)
        self._repay(event.repaid)
        self._use(event.counts, event.over)

    def _voided(self, event: Voided) -> None:
        self._release(event.hold)
        self._repay(event.repaid)

    def _release(self, hold: str) -> None:
        draws, counts = self.holds.pop(hold)
        self.ended.add(hold)
        for grant, ticks in draws:
            self.purses[grant].reserved -= ticks
        for name, window, quantity in counts:
            self._window(name, window).held -= quantity

    def _reported(self, event: Reported) -> None:
        assert event.charge == sum(ticks for _, ticks in event.draws) + event.debt
        self._charge(event.charge, event.draws, event.debt)
        self._use(event.counts, event.over)

    def _adjusted(self, event: Adjusted) -> None:
        assert event.hold in self.ended, "what is adjusted has ended"
        assert event.charge == sum(ticks for _, ticks in event.draws) + event.debt - event.refund
        self._charge(event.charge, event.draws, event.debt)
        if event.refund:
            self.purses[self.version] = Purse(event.refund, None, None)
        self._use(event.counts, event.over)

    def _repaid(self, event: Repaid) -> None:
        self._repay(event.draws)

    def _lapsed(self, event: Lapsed) -> None:
        for grant, ticks in event.draws:
            assert not self.purses[grant].alive(self.at)
            self.purses[grant].lapsed += ticks

    def _termsset(self, event: TermsSet) -> None:
        limits = {limit.name: limit for limit in event.terms.limits}
        forgotten = {
            name
            for name, limit in self.limits.items()
            if name not in limits or limits[name].counted_in != limit.counted_in
        }
        self.windows = {key: window for key, window in self.windows.items() if key[0] not in forgotten}
        for hold, (draws, counts) in self.holds.items():
            self.holds[hold] = draws, tuple(one for one in counts if one[0] not in forgotten)
        self.limits = limits

    def _charge(self, charge: int, draws: Draws, debt: int) -> None:
        for grant, ticks in draws:
            self.purses[grant].posted += ticks
        self.debt += debt
        self.charged += charge
        self.posted += charge - debt
        self.incurred += debt

    def _repay(self, draws: Draws) -> None:
        for grant, ticks in draws:
            self.purses[grant].posted += ticks
            self.debt -= ticks

    def _use(self, counts: Counts, over: Counts) -> None:
        for name, window, quantity in counts:
            self._window(name, window).used += quantity
        for name, window, quantity in over:
            self._window(name, window).over += quantity

    def _window(self, name: str, window: str) -> Window:
        return self.windows.setdefault((name, window), Window())

    def _check(self) -> None:
        for purse in self.purses.values():
            assert purse.reserved >= 0
            taken = purse.reserved + purse.posted + purse.lapsed
            assert taken <= purse.amount, f"reserved + posted is at most the grant: {taken - purse.amount} too many"
        assert self.debt >= 0
        assert self.charged == self.posted + self.incurred, "what was charged was posted or is debt"


def all_entries(journal: Journal) -> Iterator[Entry]:
    """The whole journal in the order in which it was committed."""
    after = 0
    while entries := journal.read(after):
        yield from entries
        after = entries[-1].seq


def replay(entries: Iterable[Entry]) -> dict[str, Replay]:
    """Check every entry of every customer in turn; what each adds up to, by account id."""
    accounts: dict[str, Replay] = {}
    for entry in entries:
        try:
            accounts.setdefault(entry.account, Replay()).entry(entry)
        except AssertionError as broken:
            raise AssertionError(f"entry {entry.version} ({entry.kind}, seq {entry.seq}): {broken}") from broken
    return accounts


def check_journal(journal: Journal) -> dict[str, Replay]:
    """Replay all that a journal holds."""
    return replay(all_entries(journal))
