"""This file knows on which journals the contract suite runs. A further journal joins by one line in PLACES."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lava_middleware.ledger.journal import Journal
from lava_middleware.ledger.memory import MemoryJournal
from lava_middleware.ledger.sqlite import SqliteJournal


@dataclass(frozen=True)
class Place:
    """Where journals of one test are kept."""

    open: Callable[[], Journal]
    """Another journal on the same entries."""
    shared: bool
    """Whether another process can open it too: `open` is then picklable."""


@dataclass(frozen=True)
class OpenSqlite:
    path: Path

    def __call__(self) -> Journal:
        return SqliteJournal(self.path)


def _memory(_: Path) -> Place:
    journal = MemoryJournal()
    return Place(lambda: journal, shared=False)


PLACES: dict[str, Callable[[Path], Place]] = {
    "memory": _memory,
    "sqlite": lambda directory: Place(OpenSqlite(directory / "lava.db"), shared=True),
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return PLACES[request.param](tmp_path)


@pytest.fixture
def journal(place: Place) -> Iterator[Journal]:
    opened = place.open()
    yield opened
    opened.close()
