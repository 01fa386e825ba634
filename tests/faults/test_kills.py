"""Processes that are killed at random instants of hold, stream, settle and export lose nothing and double nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lava_middleware.ledger.postgres import owners
from tests import postgres

from .crowd import Crowd, examine, stand_in


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize(("kind", "full"), [("sqlite", 500), ("postgres", 200)])
def test_killed_processes_lose_no_settlement_and_double_none(
    kind: str,
    full: int,
    tmp_path: Path,
    rng: random.Random,
    soak_count: Callable[[int], int],
    figures: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """T9, T14, T19, G1 to G8: acknowledged is exactly once in the ledger, sent is held, held is ended by recovery, and
    the export has every record with its id."""
    ledger = tmp_path / "ledger.db" if kind == "sqlite" else postgres.fresh_url()
    with stand_in(rng) as provider:
        with Crowd(provider, ledger, tmp_path, rng, size=2) as crowd:
            crowd.kill_some(soak_count(full), 0.3)
            crowd.kill_all()
        monkeypatch.setattr(owners, "TTL_S", 3.0)  # all are dead by now: here that is to be seen soon
        seen, line = examine(crowd)
    assert seen.kinds["expired"], "some were killed in the middle of a call"
    if isinstance(ledger, str):
        postgres.drop(ledger)
    figures(f"{kind}, {line}")
