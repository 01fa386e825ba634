"""This file knows how to show a streamed chat whose customer's credit goes down while it arrives."""

from __future__ import annotations

from itertools import pairwise

from ...core.money import Amount, decimal_text
from ...testing import Script
from ..events import ask
from ..stage import Stage, signed_in_as
from ..telling import Running, Telling

QUESTION = "What is a ledger, and why does it never forget?"
ANSWER = Script(output_tokens=600, chunk_delay_s=0.01)
LOOK_EVERY = 50


def play(stage: Stage, tell: Telling) -> None:
    stage.grant("acme", "0.05", "invoice-1001")
    tell.say(
        "acme has paid invoice-1001, so lava.grant() gave it 0.05 credits (1 credit = 1 USD here). It asks a question.",
        "What the answer may cost is held slice by slice, each before it is passed on; held credit is not available to",
        "other calls. At the end the true charge is posted and the rest comes back.",
    )
    seen = _stream(stage, tell)
    after = stage.settled("acme")
    tell.prove(
        f"the available credit went down {_falls(seen)} times while the answer streamed",
        _falls(seen) >= 3 and all(later <= earlier for earlier, later in pairwise(seen)),
    )
    charge = next(stage.lava.records("acme")).charge
    tell.prove(
        f"at the end {charge} was charged once, and nothing is held any more",
        after.balance == after.available == Amount.of("0.05") - charge,
    )
    _summarize(stage, tell)


def _stream(stage: Stage, tell: Telling) -> list[Amount]:
    """What was available at each look."""
    stage.play(ANSWER)
    seen = [stage.lava.balance("acme").available]
    running = Running(tell, "tokens", *_SHOWN)
    pieces = 0
    with stage.client() as client, stage.client() as another:
        for event in ask(client, "acme", QUESTION):
            pieces += "text" in event
            if "text" in event and pieces % LOOK_EVERY == 1:
                now = another.get("/balance", headers=signed_in_as("acme")).json()
                seen.append(Amount.of(now["available"]))
                running.row(str(pieces), *(_short(Amount.of(now[name])) for name in _SHOWN))
    last = stage.settled("acme")
    running.row("the end", *(_short(getattr(last, name)) for name in _SHOWN))
    return seen


_SHOWN = ("available", "held", "balance")


def _short(amount: Amount) -> str:
    return decimal_text(amount.ticks, digits=6)


def _falls(seen: list[Amount]) -> int:
    return sum(later < earlier for earlier, later in pairwise(seen))


def _summarize(stage: Stage, tell: Telling) -> None:
    stage.play(Script(output_tokens=120))
    with stage.client() as client:
        answer = client.post("/summary", json={"text": QUESTION * 20}, headers=signed_in_as("acme"))
    stage.settled("acme")
    record = next(stage.lava.records("acme"))
    tell.say("acme also has a text summarized. The application uses Anthropic's SDK for that; the books are the same.")
    tell.prove(
        f"{record.model}: {record.usage.input_tokens} tokens in, {record.usage.output_tokens} out, "
        f"charged {record.charge}",
        answer.status_code == 200 and record.provider == "anthropic" and bool(record.charge),
    )
