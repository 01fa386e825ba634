"""This file knows how to show a hard limit of tokens per month: requests stop, and the refusal says until when."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx

from ...testing import Script
from ..stage import Stage, signed_in_as
from ..telling import Running, Telling

LIMIT = 1_000
ATTEMPTS = 12


def play(stage: Stage, tell: Telling) -> None:
    stage.grant("cedar", "1.00", "invoice-1002")
    stage.lava.limit("cedar", LIMIT)
    tell.say(
        f"cedar has 1.00 credits, but its plan ends at {LIMIT:,} tokens a month (lava.limit('cedar', {LIMIT})).",
        "It asks for answers of 200 tokens until it is stopped. A call goes out only if all it may use still fits.",
    )
    stage.play(Script(output_tokens=200))
    running = Running(tell, "call", "answered", "used", "limit")
    used, answer, before = [], None, 0
    for number in range(1, ATTEMPTS + 1):
        before = stage.provider.count
        answer = _ask(stage)
        limit = stage.settled("cedar").limits[0]
        used.append(limit.used)
        running.row(str(number), str(answer.status_code), f"{limit.used:,}", f"{limit.quantity:,}")
        if answer.status_code != 200:
            break
    assert answer is not None
    problem = answer.json()
    resets_at = datetime.fromisoformat(problem["limit"]["resets_at"])
    tell.say(
        f'The refusal says: "{problem["detail"]}" The client may come back at {resets_at:%Y-%m-%d %H:%M} UTC: '
        f"Retry-After is {answer.headers['retry-after']} seconds.",
    )
    tell.prove(
        f"the last call was answered 429, did not reach the stand-in, and {used[-1]:,} of {LIMIT:,} tokens are used",
        answer.status_code == 429 and before == stage.provider.count and max(used) <= LIMIT,
    )
    seconds = (resets_at - datetime.now(UTC)).total_seconds()
    tell.prove("Retry-After is the time until the month ends", abs(seconds - int(answer.headers["retry-after"])) < 10)


def _ask(stage: Stage) -> httpx.Response:
    with stage.client() as client:
        return client.post("/answer", json={"text": "Tell me more.", "tokens_max": 200}, headers=signed_in_as("cedar"))
