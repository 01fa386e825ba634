"""This file knows how to make up what some customers ask for at once, and what a ledger has to answer.

The answers are those of one customer after another, command by command, over a list: no cache, no batch, no file.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lava_middleware.core.account import Account
from lava_middleware.core.commands import Command, Post, Report, Settle
from lava_middleware.core.decide import (
    Decision,
    Declined,
    LedgerRuleError,
    LookUp,
    Repeated,
    decide,
    due,
    key_of,
    keys_of,
)
from lava_middleware.core.events import Event, decode, encode
from lava_middleware.core.evolve import evolve
from lava_middleware.core.money import AmountError
from lava_middleware.core.terms import TermsError
from lava_middleware.ledger.journal import Entry
from lava_middleware.ledger.ticket import Ticket
from tests.core.test_properties import DAY, Audited, walk

JUMPS = (-40 * DAY, -DAY, -3_600_000_000, -1, 1, 3_600_000_000, 3 * DAY)
"""By how much a clock may be set wrong for a while, in microseconds."""


class Asked(NamedTuple):
    customer: str
    command: Command
    record: str | None


@dataclass
class Burst:
    """What is asked at one moment, the next thing before the one before it is answered."""

    clock: int
    asked: list[Asked]
    reopen: bool = False
    """The ledger is closed and opened again before it."""
    where: int = 0
    """Which of the processes it is asked of."""


class _Told(Audited):
    """A history that writes down what it was asked, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[int, Command]] = []

    def ask(self, command: Command) -> Any:
        self.said.append((self.now, command))
        return super().ask(command)


def bursts(seed: int, customers: int = 3, steps: int = 120) -> list[Burst]:
    """The lives of some customers, all at once; sometimes something is asked again, or the clock is set wrong."""
    rng = random.Random(seed)
    said = []
    for number in range(customers):
        history = _Told()
        walk(rng.randrange(2**32), steps, history)
        said += [(clock, f"customer-{number}", command) for clock, command in history.said]
    said.sort(key=lambda one: one[0])
    made: list[Burst] = []
    earlier: dict[str, list[Command]] = defaultdict(list)
    while said:
        size = rng.choice((1, 1, 2, 5, 20))
        now, said = said[:size], said[size:]
        jump = rng.choice(JUMPS) if rng.random() < 0.1 else 0
        burst = Burst(now[-1][0] + jump, [], rng.random() < 0.05, rng.randrange(2))
        for _, customer, command in now:
            earlier[customer].append(command)
            burst.asked.append(_asked(customer, command))
            if rng.random() < 0.1:
                burst.asked.append(_asked(customer, rng.choice(earlier[customer])))
            if rng.random() < 0.02:
                burst.asked.append(_asked(customer, _post(rng)))
        made.append(burst)
    return made


def _asked(customer: str, command: Command) -> Asked:
    return Asked(customer, command, f'{{"of":"{customer}"}}' if isinstance(command, Settle | Report | Post) else None)


def _post(rng: random.Random) -> Post:
    """Of another ledger; or, by its id, a record that this one has as well."""
    corrected = rng.choice(["", "", "elsewhere-1"])
    record = rng.choice([f"elsewhere-{rng.randrange(5)}", f"h{rng.randrange(40)}", f"r{rng.randrange(40)}"])
    return Post(record, rng.randrange(-50 if corrected else 0, 300), rng.randrange(50), rng.randrange(50), corrected)


class Answer(NamedTuple):
    """What came of a command."""

    events: tuple[Event, ...] = ()
    declined: object = None
    available: int = 0
    repeated: bool = False
    error: str = ""


def answer_of(ticket: Ticket) -> Answer:
    try:
        receipt = ticket.wait(20)
    except (LedgerRuleError, AmountError, TermsError) as error:
        return Answer(error=f"{type(error).__name__}: {error}")
    return Answer(receipt.events, receipt.declined, receipt.available, receipt.repeated)


class Reference:
    """One customer's entries in a list, the account folded from them, and every command decided on just that."""

    def __init__(self, customer: str) -> None:
        self._customer = customer
        self.account = Account()
        self.entries: list[Entry] = []

    def apply(self, asked: Asked, clock: int) -> Answer:
        self._write_what_is_due(clock)
        now = self._now(clock)
        try:
            decision = self._decided(asked.command, now)
        except (LedgerRuleError, AmountError, TermsError) as error:
            return Answer(error=f"{type(error).__name__}: {error}")
        if isinstance(decision, Declined):
            return Answer((), decision, self.account.available(now))
        if isinstance(decision, Repeated):
            return Answer((decision.event,), None, self.account.available(now), True)
        for number, event in enumerate(decision, 1):
            self._append(event, self._now(clock), asked.record if number == len(decision) else None)
        answer = Answer(tuple(decision), None, self.account.available(now))
        if self.account.terms.limits:
            self._write_what_is_due(clock)
        return answer

    def _decided(self, command: Command, now: int) -> Decision:
        try:
            decision = decide(self.account, command, now)
        except LookUp as wanted:
            decision = decide(self.account, command, now, self._under(wanted.keys))
        if isinstance(decision, list) and self._under([key for event in decision if (key := key_of(event))]):
            return decide(self.account, command, now, self._under(keys_of(command)))
        return decision

    def _under(self, keys: Sequence[str]) -> list[Event]:
        return [decode(entry.kind, entry.event) for entry in self.entries if entry.key in keys]

    def _write_what_is_due(self, clock: int) -> None:
        while (event := due(self.account, now := self._now(clock))) is not None:
            self._append(event, now, None)

    def _now(self, clock: int) -> int:
        """Time runs forward, whatever the clock says."""
        return max(clock, self.account.at + 1)

    def _append(self, event: Event, at: int, record: str | None) -> None:
        evolve(self.account, event, at)
        version, balance = self.account.version, self.account.balance(at)
        entry = Entry(self._customer, version, event.kind, key_of(event), balance, encode(event), record, at)
        self.entries.append(entry)
