"""Admission is exact through the whole stack: a hundred calls at once spend no credit twice, whoever makes them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lava_middleware import bind_context
from lava_middleware.context import Binding, close_request, open_request
from lava_middleware.ids import new_id
from lava_middleware.testing import Barrier, FakeProvider, Script
from lava_middleware.testing.served import Served
from tests.faults import players
from tests.faults.kit import (
    CHAT,
    FORKSERVER,
    aclient_of,
    chat,
    client_of,
    credits,
    error_of,
    eventually,
    hold_for,
    kinds,
    lava_at,
    nothing_is_held,
    run_processes,
)
from tests.ledger.replay import check_journal


@pytest.fixture(scope="module")
def hold() -> int:
    """What one call of chat() holds."""
    return hold_for(chat())


class Refusals(list[int]):
    """The statuses so far; `all_decided` when each of a hundred was refused or has reached the provider."""

    def all_decided(self, provider: FakeProvider) -> bool:
        return provider.count + sum(status != 200 for status in self) >= 100


@pytest.fixture
def decided() -> Iterator[tuple[FakeProvider, Refusals]]:
    """A provider that answers only when all hundred calls have been decided."""
    statuses = Refusals()
    barrier = Barrier(until=lambda: statuses.all_decided(provider))
    with FakeProvider(Script(barrier=barrier)) as provider:
        yield provider, statuses


@pytest.mark.parametrize("ledger", ["memory", "file"])
def test_of_a_hundred_tasks_that_can_afford_ten_ten_reach_the_provider(
    decided: tuple[FakeProvider, Refusals], ledger: str, hold: int, tmp_path: Path
) -> None:
    """T1: no admission without its committed entry."""
    provider, statuses = decided

    async def main() -> None:
        async def one(client: Any) -> None:
            statuses.append((await client.post(CHAT, json=chat())).status_code)

        with lava.charge_to("acme"):
            async with aclient_of(provider) as client, asyncio.TaskGroup() as group:
                for _ in range(100):
                    group.create_task(one(client))

    with lava_at(provider, "memory://" if ledger == "memory" else tmp_path / "ledger.db") as lava:
        lava.grant("acme", credits(10 * hold))
        asyncio.run(main())
        assert Counter(statuses) == {200: 10, 402: 90}
        assert provider.count == 10
        eventually(lambda: nothing_is_held(lava, "acme"))
        check_journal(lava.journal)


def test_of_a_hundred_threads_that_carry_the_binding_ten_reach_the_provider(
    decided: tuple[FakeProvider, Refusals], hold: int, tmp_path: Path
) -> None:
    """T1, T43."""
    provider, statuses = decided
    with lava_at(provider, tmp_path / "ledger.db") as lava, client_of(provider) as client:
        lava.grant("acme", credits(10 * hold))
        with ThreadPoolExecutor(100) as pool:
            with lava.charge_to("acme"):
                call = bind_context(lambda: statuses.append(client.post(CHAT, json=chat()).status_code))
            for made in [pool.submit(call) for _ in range(100)]:
                made.result()
        assert Counter(statuses) == {200: 10, 402: 90}
        assert provider.count == 10
        check_journal(lava.journal)


def test_of_a_hundred_calls_of_four_processes_ten_reach_the_provider(hold: int, tmp_path: Path) -> None:
    """T1: the journal itself refuses the second entry on the same predecessor, whichever process it comes from."""
    told = tmp_path / "refusals"
    told.touch()
    ledger = tmp_path / "ledger.db"
    barrier = Barrier(until=lambda: provider.count + told.stat().st_size >= 100)
    with FakeProvider(Script(barrier=barrier)) as provider, lava_at(provider, ledger) as lava:
        lava.grant("acme", credits(10 * hold))
        gate = FORKSERVER.Barrier(4)
        arguments = [(provider.url, str(ledger), "acme", 25, str(told), gate) for _ in range(4)]
        statuses = Counter(status for each in run_processes(players.call_at_once, arguments) for status in each)
        assert statuses == {200: 10, 402: 90}
        assert provider.count == 10
        check_journal(lava.journal)
        eventually(lambda: nothing_is_held(lava, "acme"))


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("customers", [1, 3])
def test_four_processes_spend_until_each_was_declined_many_times(
    customers: int, tmp_path: Path, seed: int, soak_count: Callable[[int], int]
) -> None:
    """T1, T2, T9, T43, G4, G5: odd grants, caps ignored, streams left half-way, kept or dropped; sixty declines each.

    The journal is replayed entry by entry, by arithmetic of its own.
    """
    rng = random.Random(seed)

    def script(_: Served) -> Script:
        if rng.random() < 0.15:
            return Script(ignores_cap=True, output_tokens=rng.choice((80, 700)), tokens_per_chunk=7)
        if rng.random() < 0.1:
            return Script(usage=False, tokens_per_chunk=5)
        if rng.random() < 0.1:
            return Script(status=rng.choice((429, 500, 502)))
        return Script(output_tokens=rng.choice((3, 40, 400)), tokens_per_chunk=10)

    ledger = tmp_path / "ledger.db"
    with FakeProvider(script) as provider, lava_at(provider, ledger) as lava:
        names = [f"customer-{number}" for number in range(customers)]
        for name in names:
            for number, ticks in enumerate((1, 7_001, 997_777, 99_999_999, 300_000_001)):
                lava.grant(name, credits(ticks), key=f"g{number}", priority=number % 3)
        arguments = [(provider.url, str(ledger), number, seed, soak_count(200), customers) for number in range(4)]
        results = run_processes(players.spend_until_declined, arguments, soak_count(600))
        assert [problems for problems, _ in results] == [[]] * 4
        lava.ledger.recover()
        eventually(lambda: nothing_is_held(lava, *names))
        totals = check_journal(lava.journal)
        for name in names:
            account = lava.ledger.look(name)
            assert (account.charged, account.debt) == (totals[name].charged, totals[name].debt)


def test_a_thread_pool_that_lost_the_binding_reaches_nobody_and_the_error_says_why(tmp_path: Path) -> None:
    """T6: absent is refused, never unlimited, and the likely cause is named."""
    with FakeProvider() as provider, lava_at(provider) as lava, client_of(provider) as client:
        lava.grant("acme", "5")
        opened = open_request(Binding(lava, None, request_id=new_id()))
        try:
            with lava.charge_to("acme"), ThreadPoolExecutor(10) as pool:
                answers = [made.result() for made in [pool.submit(client.post, CHAT, json=chat()) for _ in range(50)]]
        finally:
            close_request(opened)
        assert {answer.status_code for answer in answers} == {403}
        assert "bind_context" in error_of(answers[0])["message"]
        assert provider.count == 0
        assert kinds(lava, "acme") == ["granted"]


def test_twenty_streams_that_together_would_overspend_stay_within_the_grant(tmp_path: Path) -> None:
    """T1, T3: each extends as it goes; when credit ends they are cut, and nothing becomes debt."""
    script = Script(output_tokens=900, tokens_per_chunk=3, chunk_delay_s=0.001)
    with FakeProvider(script) as provider, lava_at(provider, tmp_path / "ledger.db") as lava:
        granted = lava.grant("acme", "0.06").available  # 6,000 output tokens; all together would take 18,000

        async def one(client: Any) -> tuple[int, bytes]:
            async with client.stream("POST", CHAT, json=chat(1000, stream=True)) as response:
                return response.status_code, b"".join([data async for data in response.aiter_raw()])

        async def main() -> list[tuple[int, bytes]]:
            async with aclient_of(provider) as client:
                return await asyncio.gather(*(one(client) for _ in range(20)))

        with lava.charge_to("acme"):
            answers = asyncio.run(main())
        assert {status for status, _ in answers} <= {200, 402}
        cut = [body for status, body in answers if status == 200 and b'"finish_reason":"length"' in body]
        assert cut, "somebody was cut"
        eventually(lambda: nothing_is_held(lava, "acme"))
        balance = lava.balance("acme")
        assert (balance.held.ticks, balance.debt.ticks) == (0, 0)
        charged = sum(record.charge.ticks for record in lava.records("acme"))
        assert granted.ticks * 8 // 10 < charged <= granted.ticks
        assert not any(record.overrun.ticks for record in lava.records("acme"))
        check_journal(lava.journal)


def test_a_hundred_tasks_and_twenty_threads_of_one_request_charge_whom_they_name(tmp_path: Path) -> None:
    """T37, G6: the binding is one, the overrides are many, and none crosses. Output tokens tell who called."""
    script = Script(output_tokens=500, chunk_delay_s=0.0005, tokens_per_chunk=20)
    with FakeProvider(script) as provider, lava_at(provider, tmp_path / "ledger.db") as lava:
        names = [f"customer-{number}" for number in range(120)]
        for name in names:
            lava.grant(name, "1")
        binding = Binding(lava, None, request_id=new_id())
        opened = open_request(binding)
        try:
            binding.identify("somebody-else")

            def body(number: int) -> dict[str, Any]:
                return chat(number + 1, stream=bool(number % 2))

            def in_thread(client: Any, number: int) -> None:
                with lava.charge_to(names[number]):
                    assert client.post(CHAT, json=body(number)).status_code == 200

            async def in_task(client: Any, number: int) -> None:
                with lava.charge_to(names[number]):
                    await asyncio.sleep(0)
                    assert (await client.post(CHAT, json=body(number))).status_code == 200

            async def main() -> None:
                async with aclient_of(provider) as aclient, asyncio.TaskGroup() as group:
                    for number in range(100):
                        group.create_task(in_task(aclient, number))

            with client_of(provider) as client, ThreadPoolExecutor(20) as pool:
                threads = [pool.submit(bind_context(in_thread), client, number) for number in range(100, 120)]
                asyncio.run(main())
                for thread in threads:
                    thread.result()
        finally:
            close_request(opened)
        eventually(lambda: nothing_is_held(lava, *names))
        for number, name in enumerate(names):
            (record,) = lava.records(name)
            assert record.usage.output_tokens == number + 1
            assert record.facts["request_id"] == binding.request_id
        assert list(lava.records("somebody-else")) == []


def test_a_grant_in_another_process_lets_the_next_call_pass(hold: int, tmp_path: Path) -> None:
    """T44: a refusal is never told from memory alone."""
    ledger = tmp_path / "ledger.db"
    with FakeProvider() as provider, lava_at(provider, ledger) as lava, client_of(provider) as client:
        with lava.charge_to("acme"):
            for _ in range(3):
                assert client.post(CHAT, json=chat()).status_code == 402
            run_processes(players.grant_once, [(str(ledger), "acme", hold)])
            assert client.post(CHAT, json=chat()).status_code == 200
        assert provider.count == 1
