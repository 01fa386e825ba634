"""Four processes write one file for a while: no error reaches the application, and nobody is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lava_middleware.ids import now_us
from lava_middleware.ledger.audit import audit
from tests.ledger.replay import check_journal

from . import players
from .kit import FORKSERVER, lava_at, run_processes

PROCESSES = 4


@pytest.mark.soak
@pytest.mark.alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("customers", [1, 100])
def test_four_processes_write_one_file(
    customers: int, tmp_path: Path, soak_count: Callable[[int], int], figures: Callable[[str], None]
) -> None:
    """T28, T38, T43: eight threads that call as fast as they can, on one customer and on many."""
    seconds = soak_count(60) / (1 if soak_count(60) == 60 else 2)
    ledger = tmp_path / "ledger.db"
    with lava_at("mock.test", ledger) as lava:
        for number in range(customers):
            lava.grant(f"customer-{number}", "1000")
        gate = FORKSERVER.Barrier(PROCESSES)
        arguments = [(str(ledger), number, seconds, customers, gate) for number in range(PROCESSES)]
        results = run_processes(players.hammer, arguments, 200)
        assert [problems for *_, problems in results] == [[]] * PROCESSES
        calls = [made for made, *_ in results]
        conflicts = sum(lost for _, lost, *_ in results)
        worst = max(longest for _, _, longest, _ in results)
        assert max(calls) < 3 * min(calls), "everybody gets on"
        assert worst < 2
        totals = check_journal(lava.journal)
        assert all(not total.holds for total in totals.values())
        found = audit(lava.journal, now_us())
        assert (found.differences, found.records["settled"]) == ([], sum(calls))
    lost = 1000 * conflicts / (2 * sum(calls))
    figures(
        f"{customers} customers, {PROCESSES} processes, {seconds:.0f} s: {sum(calls) / seconds:,.0f} calls/s, worst"
        f" call {worst * 1000:.0f} ms, {lost:.1f} conflicts per thousand entries, calls {sorted(calls)}"
    )
