"""This file knows how to put usage records into a journal without a ledger, and how to follow them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lava_middleware.core.events import Reported, encode
from lava_middleware.core.record import Facts
from lava_middleware.export.follower import Follower
from lava_middleware.ledger.journal import Entry, Journal, Outcome
from lava_middleware.ledger.memory import MemoryJournal
from lava_middleware.ledger.sqlite import SqliteJournal

START = 1_800_000_000_000_000


class Host:
    """What a follower needs of a Lava."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.now = START

    def clock(self) -> int:
        return self.now


def post(journal: Journal, *ids: str, customer: str = "acme", charge: int = 5, **facts: object) -> None:
    """Append one billing entry for each id."""
    for name in ids:
        last = journal.entries(customer, limit=1)
        version, at = (last[0].version, last[0].at) if last else (0, 0)
        made = Facts(id=name, model="gpt-4o", provider="openai", basis="reported", usage={"input": 3}, cost=4)
        for fact, value in facts.items():
            setattr(made, fact, value)
        event = Reported(key=name, charge=charge, debt=charge)
        entry = Entry(
            account=customer,
            version=version + 1,
            kind=event.kind,
            key=f"report:{name}",
            balance_after=-charge * (version + 1),
            event=encode(event),
            record=made.to_json(),
            at=max(at + 1, START),
        )
        assert journal.append([entry], (version, at))[0] is Outcome.APPENDED


def eventually(claim: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.005)


@pytest.fixture(params=["memory", "sqlite"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    made: Journal = MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path / "lava.db")
    yield made
    made.close()


@pytest.fixture
def host(journal: Journal) -> Host:
    return Host(journal)


@pytest.fixture
def following() -> Iterator[Callable[[Follower, Host], Follower]]:
    """following(follower, host): started and woken; closed at the end."""
    started: list[Follower] = []

    def follow(follower: Follower, host: Host) -> Follower:
        started.append(follower)
        follower.start(host)
        follower.wake()
        return follower

    yield follow
    for follower in started:
        follower.close()
