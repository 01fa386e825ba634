"""This file knows how to show that a stream whose client hangs up is billed for what it delivered."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from ...testing import Barrier
from ..events import ask
from ..stage import Stage
from ..telling import Telling
from .streamed import ANSWER, QUESTION

LEAVES_AFTER = 60
TOLERANCE = 10
"""Per cent by which what was counted may be off."""


def play(stage: Stage, tell: Telling) -> None:
    stage.grant("fjord", "0.05", "invoice-1005")
    # Kept back there, so that no word is on its way when the client leaves.
    stage.play(replace(ANSWER, confirm=Barrier(), confirm_after=LEAVES_AFTER))
    tell.say(
        f"fjord asks the same question as acme, and hangs up after {LEAVES_AFTER} of {ANSWER.output_tokens} tokens."
    )
    pieces = 0
    with stage.client() as client, closing(ask(client, "fjord", QUESTION)) as events:
        for event in events:
            pieces += "text" in event
            if pieces == LEAVES_AFTER:
                break
    stage.provider.wait_idle()
    stage.settled("fjord")
    served = stage.provider.requests[-1]
    record = next(stage.lava.records("fjord"))
    billed = record.usage.output_tokens
    tell.say(
        "Usage is reported at the end of an answer, which never came. So it was counted from what passed, with what",
        "acme's complete answer taught about this model:",
        f"{record.usage.input_tokens} tokens in and {billed} out, charged {record.charge}.",
    )
    tell.prove(
        f"the stand-in was hung up on: it had sent {served.output_tokens} tokens",
        served.state == "aborted" and served.output_tokens < 2 * LEAVES_AFTER,
    )
    tell.prove(
        f"{billed} output tokens were billed, within {TOLERANCE} % of what was sent (basis: {record.basis})",
        record.basis == "counted" and near(billed, served.output_tokens),
    )


def near(ours: int, theirs: int) -> bool:
    return abs(ours - theirs) * 100 <= TOLERANCE * theirs
