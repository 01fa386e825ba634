"""This file knows how to show that a customer without credit costs nothing: the provider never hears of the call."""

from __future__ import annotations

import json

from ..stage import Stage, signed_in_as
from ..telling import Telling


def play(stage: Stage, tell: Telling) -> None:
    before = stage.provider.count
    with stage.client() as client:
        answer = client.post("/answer", json={"text": "Hello?", "tokens_max": 200}, headers=signed_in_as("brook"))
    after = stage.provider.count
    tell.say(
        "brook has never paid. The SDK inside the application got a 402 in OpenAI's own format and did not try again;",
        "the application does nothing about it, so its own client is told this:",
    )
    tell.show(f"{answer.status_code} {answer.headers['content-type']}\n{json.dumps(answer.json(), indent=2)}")
    tell.say("and the operator's log says, once per process:")
    for line in (line for line in stage.log.lines if "refused" in line):
        tell.say(line)
    tell.prove(
        f"the client was answered 402; the stand-in had counted {before} requests before the call and {after} after it",
        answer.status_code == 402 and before == after,
    )
