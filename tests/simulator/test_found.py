"""What the simulator found, told once more on the real ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from lava_middleware.core.commands import Authorize, Grant, Report
from lava_middleware.ledger.journal import OwnerMark
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.memory import MemoryJournal
from tests.ledger.replay import check_journal


class WithADeadOwner(MemoryJournal):
    """A journal one of whose processes has died."""

    gone = True

    def owners(self) -> list[OwnerMark]:
        return [*super().owners(), *([OwnerMark("gone", 1, False)] if self.gone else [])]

    def forget_owner(self, owner: str) -> None:
        self.gone = self.gone and owner != "gone"
        super().forget_owner(owner)


@pytest.mark.parametrize("posted", [False, True], ids=["it is in the pending file", "it is in the ledger"])
def test_a_call_that_left_without_its_hold_is_charged_once(posted: bool, tmp_path: Path) -> None:
    """G3: the hold was written and its caller told that it was not; policy let the call go and it is reported. When its
    process dies then, recovery gives the hold back: settled, it would be a second record of the same id."""
    journal = WithADeadOwner()
    ledger = Ledger(journal, pending_path=tmp_path / "pending")
    try:
        ledger.apply("acme", Grant("g", 1_000)).wait(10)
        journal.gone = False
        ledger.apply("acme", Authorize("x1", "gone", 60, 0, 0, 0, 0, expected=60)).wait(10)
        report = Report("x1", 50)
        if posted:
            ledger.apply("acme", report, record='{"unheld":"ledger_unavailable"}').wait(10)
        else:
            assert ledger.keep_sent("acme", report, '{"unheld":"ledger_unavailable"}')
            ledger.sent_over("x1", owed=True)  # nobody has it open any more
        journal.gone = True
        ledger.recover()
        kinds = {entry.kind.partition(".")[0] for entry in journal.read(0)}
        assert kinds == {"granted", "held", "voided", "reported"}
        assert ledger.look("acme").charged == 50
        assert not ledger.look("acme").holds
    finally:
        ledger.close()
    assert check_journal(journal)
