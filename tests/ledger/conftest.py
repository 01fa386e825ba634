"""This file knows on which journals the contract suite runs. A further journal joins by one line in PLACES."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lava_middleware.ledger.journal import Journal
from lava_middleware.ledger.memory import MemoryJournal
from lava_middleware.ledger.postgres.journal import PostgresJournal
from lava_middleware.ledger.postgres.owners import TTL_S
from lava_middleware.ledger.sqlite import SqliteJournal
from lava_middleware.ledger.sqlite_file import Durability
from tests import postgres

SOON_S = 1.5
"""For tests in which processes die: so long without a heartbeat, and a process on PostgreSQL is dead."""


@dataclass(frozen=True)
class Place:
    """Where journals of one test are kept."""

    open: Callable[[], Journal]
    """Another journal on the same entries."""
    shared: bool
    """Whether another process can open it too: `open` is then picklable."""
    clean: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class OpenSqlite:
    path: Path
    durability: Durability = "power_loss"

    def __call__(self) -> SqliteJournal:
        return SqliteJournal(self.path, self.durability)


@dataclass(frozen=True)
class OpenPostgres:
    url: str
    owner_ttl_s: float = TTL_S

    def __call__(self) -> PostgresJournal:
        return PostgresJournal(self.url, timeout_s=10, owner_ttl_s=self.owner_ttl_s)


def _memory(_: Path) -> Place:
    journal = MemoryJournal()
    return Place(lambda: journal, shared=False)


def _postgres(_: Path) -> Place:
    url = postgres.fresh_url()
    return Place(OpenPostgres(url), shared=True, clean=lambda: postgres.drop(url))


PLACES: dict[str, Callable[[Path], Place]] = {
    "memory": _memory,
    "sqlite": lambda directory: Place(OpenSqlite(directory / "lava.db"), shared=True),
    "postgres": _postgres,
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = PLACES[request.param](tmp_path)
    yield made
    made.clean()


@pytest.fixture(params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A place that several processes have open."""
    yield from _shared(request.param, tmp_path, TTL_S)


@pytest.fixture(params=["sqlite", "postgres"])
def dying(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The same, for processes that die; it is noticed soon."""
    yield from _shared(request.param, tmp_path, SOON_S)


def _shared(kind: str, directory: Path, owner_ttl_s: float) -> Iterator[Place]:
    if kind == "sqlite":
        yield Place(OpenSqlite(directory / "ledger.db", "process_crash"), shared=True)
        return
    url = postgres.fresh_url()
    yield Place(OpenPostgres(url, owner_ttl_s), shared=True)
    postgres.drop(url)


@pytest.fixture
def journal(place: Place) -> Iterator[Journal]:
    opened = place.open()
    yield opened
    opened.close()
