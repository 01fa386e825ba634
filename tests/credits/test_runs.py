"""A run's calls can together never be charged more than its budget, whoever makes them, wherever."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from lava_middleware import Amount, Conflict, Lava, NotBound, bind_context, run
from lava_middleware.core.commands import Settle
from lava_middleware.core.events import Extended, Held, RunStarted, Settled, Voided, decode
from lava_middleware.core.money import ticks_of
from lava_middleware.core.record import Facts
from lava_middleware.credits.runs import Run
from lava_middleware.errors import ConfigurationError, InsufficientCredit, RunEnded, denied
from lava_middleware.testing import FakeProvider, FrozenClock, Script
from tests.faults.kit import CHAT, aclient_of, chat, client_of, entries, eventually, lava_at, nothing_is_held

from .kit import adds_up, settled


def most_of_a_run(lava: Lava, customer: str, name: str) -> int:
    """The highest that a run's spent + held ever stood, added up entry by entry."""
    held: dict[str, int] = {}
    spent = most = 0
    for entry in entries(lava, customer):
        event = decode(entry.kind, entry.event)
        if isinstance(event, Held) and ("run", name) in event.scopes:
            held[event.hold] = event.amount
        elif isinstance(event, Extended) and event.hold in held:
            held[event.hold] += event.amount
        elif isinstance(event, Settled | Voided) and event.hold in held:
            del held[event.hold]
            spent += event.charge if isinstance(event, Settled) else 0
        most = max(most, spent + sum(held.values()))
    return most


def test_fifty_steps_with_parallel_tools_in_threads_never_exceed_the_budget(lava: Lava, provider: FakeProvider) -> None:
    """T1: three tools at once in each step, each its own call; beyond the budget each is refused, naming the run."""
    lava.grant("acme", "5")
    statuses: list[int] = []
    with client_of(provider) as client, ThreadPoolExecutor(3) as pool, lava.charge_to("acme"):

        def tool(number: int) -> int:
            return client.post(CHAT, json=chat(100, stream=number % 2 == 0)).status_code

        with run("agent", credits="0.05") as work:
            for _ in range(50):
                statuses += pool.map(bind_context(tool), range(3))
        settled(lava)
    state = work.state()
    assert set(statuses) == {200, 429}
    assert ticks_of("0.04") < most_of_a_run(lava, "acme", work.id) <= ticks_of("0.05")
    assert state.spent == Amount(sum(record.charge.ticks for record in lava.records("acme")))
    assert state.calls == statuses.count(200)
    adds_up(lava)


def test_fifty_steps_with_parallel_tools_in_tasks_never_exceed_the_budget(lava: Lava, provider: FakeProvider) -> None:
    lava.grant("acme", "5")
    statuses: list[int] = []

    async def agent() -> Run:
        async with aclient_of(provider) as client:

            async def tool(number: int) -> int:
                return (await client.post(CHAT, json=chat(100, stream=number % 2 == 0))).status_code

            async with run("agent", credits="0.05", max_calls=60) as work:
                for _ in range(50):
                    statuses.extend(await asyncio.gather(*map(tool, range(3))))
            return work

    with lava.charge_to("acme"):
        work = asyncio.run(agent())
    settled(lava)
    assert set(statuses) == {200, 429}
    assert statuses.count(200) <= 60
    assert most_of_a_run(lava, "acme", work.id) <= ticks_of("0.05")
    assert work.state().calls == statuses.count(200)


def test_the_refusal_names_the_run_and_says_what_its_author_can_do(lava: Lava, provider: FakeProvider) -> None:
    """T12, T13: an operator's command would not help."""
    lava.grant("acme", "5")
    with client_of(provider) as client, lava.charge_to("acme"), run("agent", max_calls=1) as work:
        assert client.post(CHAT, json=chat()).status_code == 200
        answer = client.post(CHAT, json=chat())
    assert answer.status_code == 429
    said = answer.json()
    assert said["lava"]["limit"] == f"run {work.id}"
    assert (said["lava"]["unit"], said["lava"]["used"], said["lava"]["quantity"]) == ("requests", 1, 1)
    assert "larger budget" in said["error"]["message"]
    assert "lava limit" not in said["error"]["message"]


def test_a_run_with_a_reserve_is_not_starved_by_its_siblings_nor_do_they_get_its_part(
    lava: Lava, provider: FakeProvider
) -> None:
    lava.grant("acme", "0.01")
    with client_of(provider) as client, lava.charge_to("acme"):
        with run("careful", credits="0.005", reserve=True) as careful:
            greedy = bind_context(lambda: client.post(CHAT, json=chat()).status_code)
            ended = [in_a_thread(lambda: lava_call(lava, client)) for _ in range(12)]
            assert ended[-1] == 402, "its siblings have nothing but the rest"
            assert lava.balance("acme").available.ticks < ticks_of("0.0013")
            assert [greedy() for _ in range(3)] == [200, 200, 200]
            settled(lava)
            assert careful.state().calls == 3
            with pytest.raises(InsufficientCredit):
                in_a_thread(lava.run("another", customer="acme", credits="0.005", reserve=True).__enter__)
            with pytest.raises(ConfigurationError, match="outermost"):
                lava.run("another", customer="acme", credits="0.001", reserve=True).__enter__()
        settled(lava)
        left = lava.balance("acme")
        assert (left.held, left.available) == (Amount(0), left.balance), "what it did not use is free again"
    adds_up(lava)


def in_a_thread(work: Callable[[], Any]) -> Any:
    """Where the run's frame is not."""
    with ThreadPoolExecutor(1) as outside:
        return outside.submit(work).result()


def lava_call(lava: Lava, client: Any) -> int:
    """A call of the same customer outside the run."""
    with lava.charge_to("acme"):
        return int(client.post(CHAT, json=chat()).status_code)


def test_runs_nest_and_the_whole_tree_is_one_bill(lava: Lava, provider: FakeProvider) -> None:
    lava.grant("acme", "5")
    with client_of(provider) as client, lava.charge_to("acme"):
        with run("outer", credits="0.005") as outer:
            client.post(CHAT, json=chat())
            with run("inner", credits="1") as inner:
                statuses = [client.post(CHAT, json=chat()).status_code for _ in range(20)]
            settled(lava)
        assert set(statuses) == {200, 429}, "the outer budget binds the inner run"
    assert inner.state().spent < outer.state().spent <= Amount.of("0.005")
    tree = [record for record in lava.records("acme") if outer.id in record.facts["runs"]]
    assert sum(record.charge.ticks for record in tree) == outer.state().spent.ticks
    assert most_of_a_run(lava, "acme", outer.id) <= ticks_of("0.005")


def test_naming_the_customer_again_inside_a_run_does_not_leave_it(lava: Lava, provider: FakeProvider) -> None:
    lava.grant("acme", "5")
    with client_of(provider) as client, lava.charge_to("acme"), run("agent", max_calls=1) as work:
        with lava.charge_to("acme", meter="tool"):
            assert client.post(CHAT, json=chat()).status_code == 200
            assert client.post(CHAT, json=chat()).status_code == 429
        settled(lava)
        assert work.state().calls == 1


def test_a_stream_goes_on_within_its_runs_budget_and_is_cut_at_its_end(open_lava: Any, provider: FakeProvider) -> None:
    """T3: each slice is asked of the run as well."""
    provider.queue(Script(output_tokens=1000, tokens_per_chunk=20))
    lava = open_lava()
    lava.grant("acme", "5")
    with client_of(provider) as client, lava.charge_to("acme"), run("agent", credits="0.004") as work:
        answer = client.post(CHAT, json=chat(1000, stream=True))
        assert '"finish_reason":"length"' in answer.text.replace(" ", "")
        settled(lava)
        state = work.state()
    (record,) = lava.records("acme")
    assert record.facts["stopped"] == "limit_reached"
    assert Amount.of("0.002") < state.spent <= Amount.of("0.004")


def test_a_run_that_was_left_by_an_exception_goes_on_under_its_id_with_what_was_left(
    lava: Lava, provider: FakeProvider
) -> None:
    lava.grant("acme", "5")
    with client_of(provider) as client, lava.charge_to("acme"):
        with suppress(KeyError), run("job", id="job-7", max_calls=3):
            client.post(CHAT, json=chat())
            raise KeyError
        with run("job", id="job-7", max_calls=3) as again:
            assert again.state().calls == 1
            assert [client.post(CHAT, json=chat()).status_code for _ in range(3)] == [200, 200, 429]
        with pytest.raises(RunEnded):
            run("job", id="job-7", max_calls=3).__enter__()
        with pytest.raises(Conflict):
            run("job", id="job-7", max_calls=9).__enter__()
        assert client.post(CHAT, json=chat()).status_code == 200, "what could not be entered leaves no frame behind"


def test_what_a_run_came_to_includes_the_corrections_of_its_records(lava: Lava) -> None:
    lava.grant("acme", "10")
    lava.report("acme", charge="2", request_id="other")
    with run("agent", customer="acme", credits="5", lava=lava) as work:
        for name in ("one", "two"):
            lava.report("acme", charge="1.5", request_id=name)
        lava.adjust("acme", "one", "-1", key="k")
        lava.adjust("acme", "other", "-1", key="k")
        before = work.state()
    after = work.state()
    assert (before.spent, before.calls) == (after.spent, after.calls) == (Amount.of("2.00"), 2)
    assert (before.open, after.open) == (True, False)
    lava.adjust("acme", "two", "0.25", key="k")
    assert work.state().spent == Amount.of("2.25")


def test_what_an_owner_says_late_is_no_further_call_of_its_run(lava: Lava) -> None:
    """T9: the correction has the call's own facts, and its run's id among them."""
    lava.grant("acme", "10")
    with run("agent", customer="acme", lava=lava) as work, lava.reserve("acme", charge="1") as held:
        asked = Settle(held.id, ticks_of("1"), 0, 0, lost_owner=True)
        lava.ledger.apply("acme", asked, record=Facts(held.id, runs=(work.id,)).to_json()).wait(10)
        held.settle(charge="0.25")
        eventually(lambda: work.state().spent == Amount.of("0.25"))
    state = work.state()
    assert (state.spent, state.calls) == (Amount.of("0.25"), 1)


def test_a_run_expires_and_its_reserve_is_free_again(open_lava: Any, provider: FakeProvider) -> None:
    clock = FrozenClock()
    lava = open_lava(clock=clock)
    lava.grant("acme", "1")
    with client_of(provider) as client, lava.charge_to("acme"):
        with run("slow", credits="0.5", expires_s=60, reserve=True) as slow:
            assert lava.balance("acme").available == Amount.of("0.5")
            clock.advance(61)
            assert lava.balance("acme").available == Amount.of("1")
            answer = client.post(CHAT, json=chat())
            assert (answer.status_code, answer.json()["lava"]["code"]) == (403, "run_ended")
        assert slow.state().open is False


def test_a_clock_that_ran_ahead_and_was_corrected_keeps_nobody_from_starting_a_run(
    open_lava: Any, provider: FakeProvider
) -> None:
    """The account's time stands where the clock was; until that comes there again a run has its time all the same."""
    clock = FrozenClock()
    lava = open_lava(clock=clock)
    clock.advance(3 * 86_400)
    lava.grant("acme", "1")
    clock.advance(-3 * 86_400)
    with client_of(provider) as client, lava.charge_to("acme"):
        with run("agent", id="job-7", max_calls=1, expires_s=60):
            assert [client.post(CHAT, json=chat()).status_code for _ in range(2)] == [200, 429]
        with pytest.raises(RunEnded):
            run("agent", id="job-7", max_calls=1, expires_s=60).__enter__()


def test_a_run_in_mode_observe_refuses_nothing_and_counts(open_lava: Any, provider: FakeProvider) -> None:
    lava = open_lava(mode="observe")
    with client_of(provider) as client, lava.charge_to("acme"), run("agent", credits="0.0001", max_calls=1) as work:
        assert [client.post(CHAT, json=chat()).status_code for _ in range(3)] == [200, 200, 200]
        eventually(lambda: work.state().calls == 3)  # a call that was let out without a hold is open nowhere
        settled(lava)
        assert work.state().calls == 3
    with lava.charge_to("acme"), run("poor", credits="9", reserve=True):
        pass


@pytest.mark.parametrize("kind", ["function", "coroutine", "generator", "async generator"])
def test_each_call_of_a_decorated_function_is_a_run_of_its_own(lava: Lava, provider: FakeProvider, kind: str) -> None:
    lava.grant("acme", "5")
    budget = lava.run("agent", max_calls=2, customer="acme")

    def post(client: Any) -> Any:
        return client.post(CHAT, json=chat())

    @budget
    def function(client: Any) -> list[int]:
        return [post(client).status_code for _ in range(3)]

    @budget
    def generator(client: Any) -> Iterator[int]:
        for _ in range(3):
            yield post(client).status_code

    @budget
    async def coroutine(client: Any) -> list[int]:
        return [(await post(client)).status_code for _ in range(3)]

    @budget
    async def async_generator(client: Any) -> Any:
        for _ in range(3):
            yield (await post(client)).status_code

    async def in_tasks() -> list[list[int]]:
        async with aclient_of(provider) as client:
            if kind == "coroutine":
                return list(await asyncio.gather(coroutine(client), coroutine(client)))
            return [[status async for status in async_generator(client)] for _ in range(2)]

    if kind in ("function", "generator"):
        with client_of(provider) as client:
            made: Callable[[Any], Any] = function if kind == "function" else generator
            found = [list(made(client)) for _ in range(2)]
    else:
        found = asyncio.run(in_tasks())
    assert found == [[200, 200, 429]] * 2
    settled(lava)
    started = [e for e in (decode(one.kind, one.event) for one in entries(lava, "acme")) if isinstance(e, RunStarted)]
    assert len({one.run for one in started}) == len(started) == 2
    eventually(lambda: not lava.ledger.look("acme").runs)


def test_a_run_needs_somebody_who_pays_and_figures_that_can_be_meant(lava: Lava) -> None:
    with pytest.raises(NotBound):
        lava.run("agent").__enter__()
    for wrong in ({"max_calls": -1}, {"max_calls": True}, {"expires_s": 0}, {"credits": "-1"}, {"credits": 0.1}):
        with pytest.raises(ValueError, match=r"run|credits"):
            lava.run("agent", customer="acme", **wrong)  # type: ignore[arg-type]
    with lava.run("agent", customer="acme") as work, pytest.raises(ConfigurationError, match="once"):
        work.__enter__()


def test_a_run_that_reserves_more_than_there_is_does_not_start(lava: Lava) -> None:
    lava.grant("acme", "1")
    with pytest.raises(InsufficientCredit) as error:
        lava.run("agent", customer="acme", credits="2", reserve=True).__enter__()
    decision = denied(error.value)
    assert decision is not None
    assert (decision.available, decision.required) == (Amount.of("1"), Amount.of("2"))


AGENT = """
import sys
from lava_middleware import run
from tests.faults.kit import CHAT, chat, client_of, lava_at

url, ledger, steps = sys.argv[1:]
with lava_at(url.removeprefix("http://"), ledger) as lava, client_of(url) as client, lava.charge_to("acme"):
    with run("agent", id="agent-1", credits="0.008", reserve=True):
        for _ in range(int(steps)):
            print(client.post(CHAT, json=chat()).status_code, flush=True)
"""


def agent(provider: FakeProvider, ledger: str, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", AGENT, provider.url, ledger, str(steps)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    )


def test_an_agent_that_was_killed_half_way_goes_on_in_another_process_with_what_was_left(
    shared: str, provider: FakeProvider
) -> None:
    """T9, T19: SIGKILL between two of its calls; the budget and the reserve are in the ledger, not in the process."""
    with lava_at(provider, shared) as lava:
        lava.grant("acme", "0.01")
        first = agent(provider, shared, 10_000)
        assert first.stdout is not None
        for _ in range(3):
            assert first.stdout.readline().strip() == "200"
        first.send_signal(signal.SIGKILL)
        first.communicate()
        spent_before = lava.ledger.look("acme").runs["agent-1"].spent
        assert spent_before > 0
        second = agent(provider, shared, 30)
        statuses = second.communicate(timeout=60)[0].split()
        assert second.returncode == 0
        assert set(statuses) == {"200", "429"}
        assert most_of_a_run(lava, "acme", "agent-1") <= ticks_of("0.008")
        eventually(lambda: nothing_is_held(lava, "acme"), 30)
        spent = sum(record.charge.ticks for record in lava.records("acme"))
        assert ticks_of("0.006") < spent <= ticks_of("0.008")
        assert lava.balance("acme").balance == Amount(ticks_of("0.01") - spent)
        adds_up(lava)
