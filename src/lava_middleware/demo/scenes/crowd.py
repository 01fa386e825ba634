"""This file knows how to show exact admission: a hundred calls at once, credit for ten, and ten reach the provider."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import httpx

from ...core.money import Amount
from ...testing import Barrier, Script
from ..stage import Stage, signed_in_as
from ..telling import Telling

CALLS, AFFORDABLE = 100, 10
PATIENCE_S = 60.0
QUESTION = {"text": "One of a hundred.", "tokens_max": 200}


def play(stage: Stage, tell: Telling) -> None:
    with stage.client() as client:
        hold = Amount.of(_ask(client).json()["required"])
        stage.grant("ember", hold.decimal * AFFORDABLE, "invoice-1004")
        before = stage.provider.count
        barrier = Barrier()
        stage.play(Script(output_tokens=150, barrier=barrier))
        tell.say(
            f"One such call may cost {hold}, as its refusal said; ember is given {AFFORDABLE} times that. Then {CALLS}",
            "calls are sent at the same moment. The stand-in answers nobody until all hundred have been decided.",
        )
        statuses = _all_at_once(client, barrier)
    reached = stage.provider.count - before
    after = stage.settled("ember")
    tell.say(
        f"{statuses[200]} calls were answered 200 and {statuses[402]} were answered 402.",
        f"The ten were charged what they used, less than was held: {after.balance} is left.",
    )
    tell.prove(
        f"of {CALLS} calls {reached} reached the stand-in, and {AFFORDABLE} could be afforded",
        reached == AFFORDABLE and statuses == {200: AFFORDABLE, 402: CALLS - AFFORDABLE},
    )


def _ask(client: httpx.Client) -> httpx.Response:
    return client.post("/answer", json=QUESTION, headers=signed_in_as("ember"))


def _all_at_once(client: httpx.Client, barrier: Barrier) -> Counter[int]:
    """The statuses, after every call was either refused or has reached the stand-in."""
    with ThreadPoolExecutor(CALLS, thread_name_prefix="demo-client") as pool:
        try:
            calls = [pool.submit(_ask, client) for _ in range(CALLS)]
            _wait_until_decided(calls, barrier)
        finally:
            barrier.release()
        return Counter(call.result().status_code for call in calls)


def _wait_until_decided(calls: list[Future[httpx.Response]], barrier: Barrier) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while barrier.reached + sum(call.done() for call in calls) < CALLS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all {CALLS} calls were decided within {PATIENCE_S:.0f} seconds")
        time.sleep(0.01)
