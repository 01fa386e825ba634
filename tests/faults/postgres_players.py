"""This file knows what the clients of a PostgreSQL ledger do while everything around them fails."""

from __future__ import annotations

import contextlib
import os
import random

from lava_middleware.core.commands import Authorize, Extend, Grant, Settle, Void
from lava_middleware.ledger.journal import JournalUnavailable
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.postgres.journal import PostgresJournal
from lava_middleware.ledger.ticket import LedgerUnavailable

from .players import tell

CUSTOMERS = 3


def call_for_ever(url: str, name: str, acknowledged: str, ready: str) -> None:
    """Calls of every shape, until it is killed. What was answered is told: the settlement is in the ledger."""
    rng = random.Random(name)
    ledger = Ledger(_opened(url), deadline_s=3.0)
    count = 0
    while True:
        count += 1
        with contextlib.suppress(LedgerUnavailable):
            _call(ledger, rng, f"customer-{rng.randrange(CUSTOMERS)}", f"{name}-{count}", acknowledged)
        if count == 3:
            tell(ready, f"{os.getpid()}\n")


def _opened(url: str) -> PostgresJournal:
    while True:
        with contextlib.suppress(JournalUnavailable):
            return PostgresJournal(url, timeout_s=1.0, owner_ttl_s=3.0)


def _call(ledger: Ledger, rng: random.Random, customer: str, hold: str, acknowledged: str) -> None:
    command = Authorize(hold, ledger.owner, 20, 10, 1_000_000, 40, 40, expected=25, grows=True)
    if ledger.apply(customer, command, record=f'{{"id":"{hold}","estimate":[10,5]}}').wait(30).declined:
        ledger.apply(customer, Grant(hold, 50_000)).wait(30)
        return
    shape = rng.random()
    if shape < 0.3:
        with contextlib.suppress(LedgerUnavailable):
            ledger.apply(customer, Extend(hold, 1_000_000, 100, 40)).wait(30)
    if shape < 0.1:
        return  # left open: still on its way when the process dies
    if shape < 0.2:
        ledger.apply(customer, Void(hold, "unsent")).wait(60)
        return
    charge = rng.randrange(10, 70)
    ledger.apply(customer, Settle(hold, charge, 10, 20, "cap_ignored"), record=f'{{"id":"{hold}"}}').wait(60)
    tell(acknowledged, f"{customer} {hold} {charge}\n")
