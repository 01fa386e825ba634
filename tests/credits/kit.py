"""This file knows what these tests share: a look at each entry for whether the account still adds up after it."""

from __future__ import annotations

from lava_middleware import Lava
from lava_middleware.core.account import UNLIMITED, Account
from lava_middleware.core.events import decode
from lava_middleware.core.evolve import evolve
from lava_middleware.core.state import from_state, to_state
from tests.faults.kit import entries, eventually, nothing_is_held


def adds_up(lava: Lava, customer: str = "acme") -> Account:
    """G4 after every entry, and what the ledger says of itself is what a fold of them all says.

    A grant's reserved + posted never exceeds it, nobody's budget is exceeded, no charge is lost.
    """
    account = Account()
    for entry in entries(lava, customer):
        evolve(account, decode(entry.kind, entry.event), entry.at)
        assert account.version == entry.version
        for credit in account.credits:
            room = credit.room if credit.room < UNLIMITED else 2**62
            assert 0 <= credit.reserved <= credit.remaining + room, f"entry {entry.version}"
        for run in account.runs.values():
            assert run.held >= 0, f"entry {entry.version}"
        assert account.charged == account.posted + account.incurred
        assert account.debt >= 0
        assert from_state(to_state(account)) == account, "snapshots equal refolds"
    return account


def settled(lava: Lava, customer: str = "acme") -> None:
    """Until none of the customer's calls is open."""
    eventually(lambda: nothing_is_held(lava, customer))
