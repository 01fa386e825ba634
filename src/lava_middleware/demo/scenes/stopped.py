"""This file knows how to show a stream that is stopped when the money ends, against a provider that would go on."""

from __future__ import annotations

from ...testing import Script
from ..events import ask
from ..stage import Stage
from ..telling import Telling
from .streamed import QUESTION

CREDITS = "0.0016"
ANSWER = Script(output_tokens=400, ignores_cap=True, chunk_delay_s=0.015)


def play(stage: Stage, tell: Telling) -> None:
    stage.grant("delta", CREDITS, "invoice-1003")
    stage.play(ANSWER)
    tell.say(
        f"delta has {CREDITS} credits left, worth 128 tokens of output. The stand-in ignores the cap that was written",
        "into the request and would send 400. Tokens are counted by their bytes as they pass, rather too many than too",
        "few, so the stream stops a little before the money does.",
    )
    with stage.client() as client:
        events = list(ask(client, "delta", QUESTION))
    pieces, last = sum("text" in event for event in events), events[-1]
    stage.provider.wait_idle()
    after = stage.settled("delta")
    served = stage.provider.requests[-1]
    record = next(stage.lava.records("delta"))
    tell.say(
        f"The client received {pieces} tokens and then the end of the answer, with finish reason {last['finish']!r}",
        f"(reason: {last['reason']}). {record.charge} was charged, and {after.balance} is left.",
    )
    tell.prove(
        f"the stand-in was hung up on after {served.output_tokens} of 400 tokens",
        served.state == "aborted" and served.output_tokens < 400,
    )
    tell.prove(
        f"the stream ended as an answer ends, after {pieces} tokens: {record.facts['stopped']}",
        last["finish"] == "length" and last["reason"] == record.facts["stopped"] == "insufficient_credit",
    )
    tell.prove(
        f"the charge is within the {CREDITS} that were there, and no debt is left",
        after.balance.ticks >= 0 and not after.debt and bool(record.charge),
    )
