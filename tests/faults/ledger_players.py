"""This file knows what the processes do that are killed while they use a ledger. Each function is the life of one."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from lava_middleware.core.commands import Authorize, Extend, Grant, Settle, Void
from lava_middleware.ledger.journal import Journal
from lava_middleware.ledger.ledger import Ledger

from .kit import eventually
from .players import tell

CUSTOMERS = 3


def keep_killing_children(open_journal: Callable[[], Journal], seed: int, rounds: int, told: str, out: Any) -> None:
    """A warmed process that forks a child again and again; each child works until it is killed.

    An acknowledgement is a line in the file `told`, written after the settlement was answered.
    """
    rng = random.Random(seed)
    for number in range(rounds):
        heard, at_work = os.pipe()
        child = os.fork()
        if not child:
            try:
                work(open_journal, f"{seed}-{number}", told, at_work)
            finally:
                os._exit(1)  # only if it was not killed: an error
        os.close(at_work)
        if rng.random() < 0.8:  # the others are killed at any instant of their beginning
            select.select([heard], [], [], 60)
        time.sleep(rng.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(heard)
        assert os.WIFSIGNALED(status), "the child ended by itself"
    out.put(seed)


def work(open_journal: Callable[[], Journal], name: str, told: str, at_work: int) -> None:
    """Calls of every shape, for ever. After some of them it is said that this process is at work."""
    rng = random.Random(name)
    ledger = Ledger(open_journal(), deadline_s=30)
    count, warm = 0, rng.randrange(1, 6)
    while True:
        count += 1
        customer, hold = f"customer-{rng.randrange(CUSTOMERS)}", f"{name}-{count}"
        command = Authorize(hold, ledger.owner, 20, 10, 1_000_000, 40, 40, expected=25, grows=True)
        if ledger.apply(customer, command, record=f'{{"id":"{hold}","estimate":[10,5]}}').wait(30).declined:
            ledger.apply(customer, Grant(hold, 50_000)).wait(30)
            continue
        shape = rng.random()
        if shape < 0.3:
            ledger.apply(customer, Extend(hold, 1_000_000, 100, 40)).wait(30)
        if shape < 0.1:
            continue  # left open: a call that is still on its way when the process dies
        if shape < 0.2:
            ledger.apply(customer, Void(hold, "unsent")).wait(30)
            continue
        charge = rng.randrange(10, 70)
        ledger.apply(customer, Settle(hold, charge, 10, 20, "cap_ignored"), record=f'{{"id":"{hold}"}}').wait(30)
        tell(told, f"{customer} {hold} {charge}\n")
        warm -= 1
        if not warm:
            os.write(at_work, b"+")


def hold_many_and_die(open_journal: Callable[[], Journal], holds: int) -> None:
    ledger = Ledger(open_journal(), deadline_s=30)
    tickets = [
        ledger.apply("customer-0", Authorize(f"h{count}", ledger.owner, 10, 0, 0, 0, 0, expected=5))
        for count in range(holds)
    ]
    for ticket in tickets:
        assert ticket.wait(60).declined is None
    os._exit(0)


def recover_to_the_end(open_journal: Callable[[], Journal]) -> None:
    """Look for the dead until there are none. It is killed long before."""
    journal = open_journal()
    ledger = Ledger(journal, deadline_s=30)

    def nobody_is_dead() -> bool:
        ledger.recover()
        return {mark.owner for mark in journal.owners()} <= {ledger.owner}

    eventually(nobody_is_dead, 300)
