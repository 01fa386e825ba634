"""This file knows how to stand in for a Lava, and for a transport that asks who pays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lava_middleware import context
from lava_middleware.core.money import Amount
from lava_middleware.core.record import Record
from lava_middleware.core.usage import Usage
from lava_middleware.errors import Denied, refused
from lava_middleware.settings import configure


class FakeLava:
    """What the middleware needs of a Lava: its settings, and to be instrumented."""

    def __init__(self, **settings: Any) -> None:
        self.settings = configure("memory://", settings, {})
        self.hosts: dict[str, Any] = {}
        self.by_path = False
        self.instrumented = 0

    def instrument(self) -> None:
        self.instrumented += 1

    def awake(self) -> None: ...

    def balance(self, customer: str) -> Any:
        return SimpleNamespace(available=Amount.of("5.00"))


def call() -> str:
    """A provider call as the transport sees it: who pays, or the refusal of an unbound one."""
    who = context.payer()
    if who is None:
        raise refused(Denied("customer_unknown", absent=True))
    return "unbilled" if isinstance(who, context.Unbilled) else who.customer


def record(charge: str, *, stopped: str = "") -> Record:
    nothing = Amount(0)
    return Record(
        id="r1",
        customer="alice",
        kind="settled",
        at=1,
        charge=Amount.of(charge),
        cost=nothing,
        usage=Usage(input=1),
        basis="reported",
        overrun=nothing,
        overrun_cause=None,
        debt=nothing,
        balance_after=nothing,
        provider="openai",
        model="gpt-4o",
        seq=1,
        facts={"stopped": stopped} if stopped else {},
    )
