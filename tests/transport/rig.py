"""What the tests of whole exchanges share: a stand-in over real sockets, a ledger in memory, and how to read both."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from lava_middleware import Amount, Lava, Record
from lava_middleware.core.events import Event, Held, decode
from lava_middleware.testing import FakeProvider, Script, Served

MODEL = "gpt-4o-mini"
CLAUDE = "claude-sonnet-4-5"
LLAMA = "llama-3.3-70b-versatile"
INPUT, OUTPUT = 2, 8
"""Credits per million tokens, of every model here: what is charged can be worked out by hand."""
EACH = {"input": f"{INPUT}.00", "output": f"{OUTPUT}.00"}
PRICES = {MODEL: EACH, CLAUDE: EACH, LLAMA: EACH, "text-embedding-3-small": {"input": f"{INPUT}.00", "output": "0"}}
MESSAGES = [{"role": "user", "content": "Tell me in your own words what a ledger is, and who may write in it."}]
CUSTOMER = "acme"
ENDS = ("settled", "voided", "reported", "adjusted")


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, **more}


def claude(**more: Any) -> dict[str, Any]:
    return {"model": CLAUDE, "messages": MESSAGES, "max_tokens": 500, **more}


def priced(input_tokens: int, output_tokens: int) -> Amount:
    """What so many tokens cost at the prices above."""
    return Amount((INPUT * input_tokens + OUTPUT * output_tokens) * 10**4)


def eventually(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
    """Wait for what another thread does, a millisecond at a time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.001)


@dataclass(frozen=True, slots=True)
class Rig:
    """A stand-in and a Lava that meters calls to it. One customer, unless a test says otherwise."""

    provider: FakeProvider
    lava: Lava

    @property
    def chat_url(self) -> str:
        return f"{self.provider.openai_base_url}/chat/completions"

    @property
    def served(self) -> Served:
        (served,) = self.provider.requests
        return served

    def kinds(self, customer: str = CUSTOMER) -> list[str]:
        """The customer's entries, oldest first, without what the grants are."""
        kinds = [entry.kind.partition(".")[0] for entry in self.lava.entries(customer)]
        return [kind for kind in reversed(kinds) if kind != "granted"]

    def events(self, customer: str = CUSTOMER) -> list[Event]:
        return [decode(entry.kind, entry.event) for entry in self.lava.entries(customer)][::-1]

    def holds(self, customer: str = CUSTOMER) -> int:
        return len(self.lava.ledger.look(customer).holds)

    def wait_settled(self, customer: str = CUSTOMER) -> None:
        """Until nothing is held. What a finaliser ended is written by the ledger's thread."""
        eventually(lambda: not self.holds(customer))

    def endings(self, customer: str = CUSTOMER) -> list[str]:
        """The entries that end something. Nothing is held any more."""
        self.wait_settled(customer)
        return [kind for kind in self.kinds(customer) if kind in ENDS]

    def records(self, customer: str = CUSTOMER) -> list[Record]:
        self.wait_settled(customer)
        return list(self.lava.records(customer))[::-1]

    @property
    def record(self) -> Record:
        (record,) = self.records()
        return record

    @property
    def held(self) -> Held:
        (held,) = [event for event in self.events() if isinstance(event, Held)]
        return held


@contextmanager
def rigged(
    script: Script | None = None,
    *,
    credits: str | None = "5.00",
    speaks: tuple[str, ...] = ("openai", "anthropic"),
    provider: FakeProvider | None = None,
    **settings: Any,
) -> Iterator[Rig]:
    """A rig that meters this whole process, with a customer who can pay. `speaks`: as whom the stand-in is known.
    `provider`: one that runs already."""
    settings = {"ledger": "sqlite:///:memory:", "prices": PRICES, "hold_wait_s": 0, **settings}
    with nullcontext(provider) if provider is not None else FakeProvider(script) as provider:
        hosts = {provider.host: speaks, **settings.pop("hosts", {})}
        with Lava(hosts=hosts, **settings) as lava:
            lava.instrument()
            if credits is not None:
                lava.grant(CUSTOMER, credits, key="first")
            yield Rig(provider, lava)


def said_in(line: str) -> str:
    """The text that one line of a chat stream adds; empty for all other lines."""
    if not line.startswith("data: {"):
        return ""
    choices = json.loads(line[6:]).get("choices") or [{}]
    return choices[0].get("delta", {}).get("content") or ""
