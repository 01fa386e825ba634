"""This file knows what the processes of the concurrency tests do. Each function is the life of one spawned process."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from lava_middleware.core.commands import Authorize, Extend, Settle, Void
from lava_middleware.ledger.journal import Journal
from lava_middleware.ledger.ledger import Ledger


def play_until_declined(
    open_journal: Callable[[], Journal], number: int, seed: int, threads: int, declines: int, accounts: int, out: Any
) -> None:
    """Threads that hold, extend, settle and void at random, until each has been declined so many times."""
    journal = open_journal()
    ledger = Ledger(journal, deadline_s=30.0)
    errors: list[str] = []
    worst = 0.0

    def one(thread: int) -> None:
        nonlocal worst
        rng = random.Random(f"{seed}:{number}:{thread}")
        declined = calls = 0
        open_holds: list[tuple[str, str]] = []
        while declined < declines:
            calls += 1
            account = f"customer-{rng.randrange(accounts)}"
            hold = f"{number}-{thread}-{calls}"
            command = Authorize(
                hold, ledger.owner, rng.randrange(40), rng.randrange(30), 1_000_000, rng.randrange(1, 90), 1, expected=7
            )
            started = time.perf_counter()
            receipt = ledger.apply(account, command).wait(60)
            worst = max(worst, time.perf_counter() - started)
            if receipt.declined is not None:
                declined += 1
            else:
                open_holds.append((account, hold))
            if rng.random() < 0.3 and open_holds:
                ledger.apply(open_holds[-1][0], Extend(open_holds[-1][1], 1_000_000, 50, 16)).wait(60)
            if open_holds and (receipt.declined is not None or rng.random() < 0.6):
                end(rng, *open_holds.pop(rng.randrange(len(open_holds))))
        for account, hold in open_holds[:-1]:  # the last one is left to recovery
            end(rng, account, hold)

    def end(rng: random.Random, account: str, hold: str) -> None:
        if rng.random() < 0.2:
            ledger.apply(account, Void(hold, "unsent")).wait(60)
        else:
            charge = rng.choice((3, 11, 40, 130))
            ledger.apply(account, Settle(hold, charge, 10, rng.randrange(120), cause="cap_ignored")).wait(60)

    def guarded(thread: int) -> None:
        try:
            one(thread)
        except BaseException as error:
            errors.append(repr(error))

    players = [threading.Thread(target=guarded, args=(thread,)) for thread in range(threads)]
    for player in players:
        player.start()
    for player in players:
        player.join()
    ledger.close()
    journal.close()
    out.put((errors, worst, ledger.counters.conflicts, ledger.counters.busy))


def hold_only(open_journal: Callable[[], Journal], number: int, calls: int, ticks: int, gate: Any, out: Any) -> None:
    """So many holds of one customer, as fast as possible, all processes at once; tells how many passed."""
    journal = open_journal()
    ledger = Ledger(journal, deadline_s=30.0)
    owner = ledger.owner
    gate.wait()
    tickets = [ledger.apply("acme", Authorize(f"{number}-{i}", owner, ticks, 0, 0, 0, 0)) for i in range(calls)]
    passed = sum(ticket.wait(60).declined is None for ticket in tickets)
    out.put(passed)
    gate.wait()  # nobody dies, so nobody's holds are ended, before all have counted
    ledger.close()
    journal.close()


def leave_holds_open(open_journal: Callable[[], Journal], number: int, holds: int, out: Any) -> None:
    """Hold, and die without a word."""
    ledger = Ledger(open_journal())
    for count in range(holds):
        draft = f'{{"id":"{number}-{count}","model":"gpt-4o","estimate":[12,30]}}'
        command = Authorize(f"{number}-{count}", ledger.owner, 100, 0, 0, 0, 0, expected=60)
        assert ledger.apply("acme", command, record=draft).wait(30).events
    out.put(ledger.owner)
    out.close()
    out.join_thread()
    os._exit(0)


def fork_with_a_hold_open(open_journal: Callable[[], Journal], out: Any) -> None:
    """A parent with an open hold and a full inbox forks; the child uses the ledger and exits as Python exits."""
    journal = open_journal()
    ledger = Ledger(journal)
    ledger.apply("acme", Authorize("parents", ledger.owner, 100, 0, 0, 0, 0)).wait(30)
    owner = ledger.owner
    busy = threading.Event()
    ledger.later(lambda: busy.wait(30))
    ledger.later(lambda: out.put(("settled by", os.getpid())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what this is about
        child = os.fork()
    if not child:
        assert ledger.apply("acme", Authorize("childs", ledger.owner, 100, 0, 0, 0, 0)).wait(30).events
        assert ledger.owner != owner
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    busy.set()
    assert ledger.owner == owner
    told = out.get(timeout=30)
    holds = set(ledger.look("acme").holds)
    until = time.monotonic() + 20
    while "childs" in (after := set(ledger.look("acme").holds)) and time.monotonic() < until:
        ledger.recover()
        time.sleep(0.01)
    out.put((status, told == ("settled by", os.getpid()), holds, after))
    ledger.close()
    journal.close()
