"""This file knows what processes do in the tests of top-ups: run dry, buy, and die in the middle of it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from lava_middleware import Amount, Lava
from lava_middleware.errors import Refused

CUSTOMER = "acme"


def dies_while_buying(ledger: str, told: Any) -> None:
    def hook(customer: str, amount: Amount, key: str) -> None:
        told.put(key)
        time.sleep(60)

    with Lava(ledger, top_up=hook) as lava, lava.reserve(CUSTOMER, charge="0.50"):
        pass


def calls(ledger: str, go: Any, told: Any) -> None:
    charged = []

    def hook(customer: str, amount: Amount, key: str) -> None:
        charged.append(key)
        time.sleep(0.2)

    with Lava(ledger, top_up=hook) as lava:
        lava.balance(CUSTOMER)
        go.wait(30)
        passed = 0
        for _ in range(5):
            with lava.reserve(CUSTOMER, charge="0.01"):
                passed += 1
        told.put((passed, charged))


def buys_till_it_dies(ledger: str, statement: str, seed: int) -> None:
    """Spends what it can; the payment provider is a file of keys, which outlives everybody."""

    def hook(customer: str, amount: Amount, key: str) -> None:
        with open(statement, "a", encoding="utf-8") as file:
            file.write(f"{customer} {amount.ticks} {key}\n")
        time.sleep(0.005)

    with Lava(ledger, top_up=hook, durability="process_crash") as lava:
        for number in range(10_000):
            customer = f"c{(seed + number) % 3}"
            with contextlib.suppress(Refused), lava.reserve(customer, charge="0.40"):
                pass
