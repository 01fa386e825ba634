"""A customer's history in a test: given commands, then events. No clock, no file, no mock."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import TypeVar
from zoneinfo import ZoneInfo

from lava_middleware.core.account import Account
from lava_middleware.core.commands import Authorize, Command, Extend, Grant, Settle
from lava_middleware.core.decide import Decision, LookUp, decide, due, key_of, keys_of
from lava_middleware.core.events import Event, decode, encode
from lava_middleware.core.evolve import evolve
from lava_middleware.core.state import from_state, to_state

T = TypeVar("T")

CREDIT = 10_000_000_000
START = 1_790_000_000_000_000
"""Microseconds: in September 2026."""


class History:
    """One customer's journal in a list, and the account folded from it."""

    def __init__(self, start: int = START) -> None:
        self.account = Account()
        self.now = start
        self.events: list[Event] = []
        self.times: list[int] = []

    def ask(self, command: Command) -> Decision:
        """Decide and append, as a ledger does; every event also survives being written and read."""
        self.now += 1
        self.bring_up_to_date()
        try:
            decision = decide(self.account, command, self.now)
        except LookUp as wanted:
            decision = decide(self.account, command, self.now, self.under(wanted.keys))
        if isinstance(decision, list) and self.under({key_of(event) for event in decision} - {None}):
            # The journal refuses a key that it has, and the ledger asks again with what it found there.
            decision = decide(self.account, command, self.now, self.under(keys_of(command)))
        for event in decision if isinstance(decision, list) else ():
            self.append(event)
        assert from_state(to_state(self.account)) == self.account
        return decision

    def bring_up_to_date(self) -> list[Event]:
        """Write down what time and terms have decided by themselves, as a ledger does before each command."""
        written = []
        while (event := due(self.account, self.now)) is not None:
            assert len(written) < 100, "there is no end of what is due"
            self.append(event)
            written.append(event)
        return written

    def append(self, event: Event) -> None:
        assert decode(event.kind, encode(event)) == event
        evolve(self.account, event, self.now)
        self.events.append(event)
        self.times.append(self.now)

    def at(self, moment: int) -> History:
        """The same history at a later moment, with what is due by then written down."""
        assert moment >= self.now, "time does not run backwards"
        self.now = moment
        self.bring_up_to_date()
        return self

    def written(self, kind: type[T]) -> list[T]:
        """All events of a kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def under(self, keys: Collection[str | None]) -> list[Event]:
        return [event for event in self.events if key_of(event) in keys]

    def given(self, *commands: Command) -> History:
        for command in commands:
            self.ask(command)
        return self

    def event(self, command: Command) -> Event:
        """The event that a command leads to; the test fails if it is declined or repeated."""
        decision = self.ask(command)
        assert isinstance(decision, list), decision
        return decision[-1]

    @property
    def available(self) -> int:
        return self.account.available(self.now)


def granted(credits: int = 10, key: str = "g", **more: object) -> Grant:
    return Grant(key, credits * CREDIT, **more)  # type: ignore[arg-type]


def call(hold: str = "h", fixed: int = CREDIT, **more: object) -> Authorize:
    """A call that holds one credit, whatever comes out."""
    settings: dict[str, object] = dict(
        owner="o", input_tokens=0, output_price=0, output_tokens=0, output_tokens_min=0, **more
    )
    return Authorize(hold, fixed=fixed, **settings)  # type: ignore[arg-type]


def stream(hold: str = "h", price: int = CREDIT, tokens: int = 64) -> Authorize:
    """A stream whose input is free and whose output costs `price` a million."""
    return Authorize(hold, "o", 0, 0, price, tokens, min(tokens, 32), grows=True)


def more(hold: str = "h", left: int = 10_000, slice_: int = 64, price: int = CREDIT) -> Extend:
    return Extend(hold, price, left, slice_)


def settled(hold: str = "h", charge: int = CREDIT, tokens: int = 0, cause: str | None = None) -> Settle:
    return Settle(hold, charge, 0, tokens, cause)


def moment(text: str, zone: str = "UTC") -> int:
    """Microseconds since 1970 of a local time such as "2026-03-29 02:30"."""
    local = datetime.fromisoformat(text).replace(tzinfo=UTC if zone == "UTC" else ZoneInfo(zone))
    return int(local.timestamp()) * 1_000_000
