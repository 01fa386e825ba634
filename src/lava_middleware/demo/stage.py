"""This file knows what the demo runs on: the stand-in, the ledger, the application on its socket, and its customers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from ..core.balance import Balance
from ..core.money import Amount
from ..core.record import Record
from ..lava import Lava
from ..testing import FakeProvider, Script
from .application import create
from .serving import served
from .surroundings import Log

MARKUP = "1.20"
SETTLED_S = 5.0

CUSTOMERS = ("acme", "brook", "cedar", "delta", "ember", "fjord")


@dataclass(frozen=True, slots=True)
class Stage:
    lava: Lava
    provider: FakeProvider
    log: Log
    directory: Path
    url: str
    """Of the application."""
    granted: list[tuple[str, Amount]] = field(default_factory=list)
    """What was granted to whom, as the demo remembers it."""

    @property
    def ledger_url(self) -> str:
        return f"sqlite:///{self.directory / 'lava.db'}"

    def grant(self, customer: str, credits: object, invoice: str) -> None:
        """The customer has paid an invoice."""
        self.lava.grant(customer, credits, key=invoice)
        self.granted.append((customer, Amount.of(credits)))

    def settled(self, customer: str) -> Balance:
        """The balance, once nothing is held. An exchange whose client went away is settled by a thread of ours."""
        deadline = time.monotonic() + SETTLED_S
        while (balance := self.lava.balance(customer)).held and time.monotonic() < deadline:
            time.sleep(0.01)
        return balance

    def records(self) -> list[Record]:
        return [record for customer in CUSTOMERS for record in self.lava.records(customer)]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def play(self, script: Script) -> None:
        """What the stand-in answers from now on."""
        self.provider.default = script


def signed_in_as(customer: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer key-of-{customer}"}


@contextmanager
def staged(directory: Path, log: Log) -> Iterator[Stage]:
    """Everything started; stopped again at the end, whatever happens."""
    with (
        FakeProvider() as provider,
        Lava(
            f"sqlite:///{directory / 'lava.db'}",
            markup=MARKUP,
            hosts={provider.host: ("openai", "anthropic")},
            hold_wait_s=0,
            disclose_amounts=True,
            upgrade_url="https://reseller.example/credits",
            export_jsonl=directory / "usage.jsonl",
        ) as lava,
    ):
        app = create(
            lava,
            AsyncOpenAI(api_key="no key is needed", base_url=provider.openai_base_url),
            AsyncAnthropic(api_key="no key is needed", base_url=provider.anthropic_base_url),
            keys={f"key-of-{customer}": customer for customer in CUSTOMERS},
        )
        with served(app) as url:
            yield Stage(lava, provider, log, directory, url)
