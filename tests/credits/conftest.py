"""This file knows on which ledgers these tests run. A further one joins by one line in LEDGERS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lava_middleware import Lava
from lava_middleware.ledger import ledger as ledger_module
from lava_middleware.ledger.postgres import owners
from lava_middleware.testing import FakeProvider
from tests import postgres
from tests.faults.kit import lava_at

LEDGERS: dict[str, Callable[[Path], str]] = {
    "memory": lambda _: "memory://",
    "sqlite": lambda directory: f"sqlite:///{directory}/lava.db",
    "postgres": lambda _: postgres.fresh_url(),
}


@pytest.fixture(params=LEDGERS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a ledger that nobody has used yet."""
    url = LEDGERS[request.param](tmp_path)
    yield url
    if url.startswith("postgresql"):
        postgres.drop(url)


@pytest.fixture(params=[name for name in LEDGERS if name != "memory"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a ledger that several processes have open."""
    url = LEDGERS[request.param](tmp_path)
    yield url
    if url.startswith("postgresql"):
        postgres.drop(url)


@pytest.fixture
def dying(shared: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, for processes that die: on PostgreSQL it is noticed here sooner than otherwise.

    Those that live beat every fourth second, and whoever looks for the dead looks all the while."""
    monkeypatch.setattr(owners, "TTL_S", 10.0)
    monkeypatch.setattr(ledger_module, "RECOVER_S", 0.5)
    return shared


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as one:
        yield one


@pytest.fixture
def open_lava(ledger: str, provider: FakeProvider) -> Iterator[Callable[..., Lava]]:
    """open_lava(meters=..., clock=...): a Lava on the ledger that meters the stand-in; closed with the test."""
    with ExitStack() as stack:

        def made(**settings: Any) -> Lava:
            return stack.enter_context(lava_at(provider, ledger, **settings))

        yield made


@pytest.fixture
def lava(open_lava: Callable[..., Lava]) -> Lava:
    return open_lava()
