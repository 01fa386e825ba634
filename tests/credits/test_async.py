"""Async code asks what sync code asks, and its event loop never waits for a ledger."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lava_middleware import Amount, AmountError, Lava
from lava_middleware.core.terms import Terms
from lava_middleware.credits.administration import Administration
from lava_middleware.credits.bookkeeping import Bookkeeping
from lava_middleware.credits.reading import Reading
from lava_middleware.errors import InsufficientCredit
from lava_middleware.ledger.journal import Busy, Journal
from lava_middleware.testing import FakeProvider
from tests.faults.kit import CHAT, aclient_of, chat, client_of, eventually, lava_at

from .kit import adds_up, settled

FREE = {"version": 1, "default_plan": "free", "plans": {"free": {"credits": "1", "limits": {"requests/month": 5}}}}


def on_thread(lava: Lava, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is asked of the journal on this very thread from now on."""
    here, heard = threading.get_ident(), []
    journal = type(lava.ledger._journal)

    def watched(name: str, method: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == here:
                heard.append(name)
            return method(self, *args, **kwargs)

        return call

    for name in (name for name in vars(Journal) if not name.startswith("_")):
        if callable(getattr(journal, name)):
            monkeypatch.setattr(journal, name, watched(name, getattr(journal, name)))
    return heard


async def everything(lava: Lava) -> None:
    assert (await lava.agrant("acme", "5", key="k")).available == Amount.of("6")
    assert (await lava.alimit("acme", 9, "requests", window="day")).plan == "free"
    assert (await lava.asubscribe("acme", "pro", credits="20")).available == Amount.of("25")
    assert (await lava.aauto_top_up("acme", below="1", amount="10", most="50")).plan == "pro"
    assert (await lava.asuspend("acme")).suspended
    assert not (await lava.aresume("acme")).suspended
    assert (await lava.aquote("acme", model="gpt-4o", input_tokens=1)).affordable
    reported = await lava.areport("acme", charge="0.12", request_id="doc")
    assert reported is not None
    assert (await lava.aadjust("acme", "doc", "-0.02", key="k")).charge == Amount.of("-0.02")
    async with lava.reserve("acme", charge="1") as held:
        held.settle(charge="0.50")
    async with lava.run("agent", customer="acme", credits="1") as work:
        assert (await work.astate()).left == Amount.of("1")
    await work.aend()
    assert isinstance(await lava.aterms("acme"), Terms)
    assert (await lava.acancel("acme")).plan == "pro"
    assert await lava.aterms_to_follow("acme") is not None
    assert (await lava.abalance("acme")).available == Amount.of("24.40")
    assert [str(record.charge) async for record in lava.arecords("acme")] == ["0.50", "-0.02", "0.12"]
    assert [customer async for customer in lava.acustomers()] == ["acme"]
    assert [str(line.charge) for line in await lava.ausage(by=())] == ["0.60"]
    assert str((await lava.amargin()).charge) == "0.60"
    assert (await lava.aapply_catalogue()).others == 1


def test_whatever_is_asked_in_async_code_is_asked_on_another_thread(
    open_lava: Callable[..., Lava], monkeypatch: pytest.MonkeyPatch
) -> None:
    lava = open_lava(catalogue=FREE)
    heard = on_thread(lava, monkeypatch)
    asyncio.run(everything(lava))
    if isinstance(lava.settings.ledger, str):
        assert heard == [], "a server far away"
    assert set(heard) <= {"register_owner", "last_seq", "append"}, "holds alone: a file takes less time than a thread"
    adds_up(lava)


@pytest.mark.parametrize("owner", [Administration, Bookkeeping, Reading])
def test_every_function_has_its_async_twin(owner: type) -> None:
    without = {"run", "reserve", "first_seen"}
    """What is entered with `async with`, and what never waits."""
    names = {name for name in vars(owner) if not name.startswith("_")}
    twins = {name for name in names if name[0] == "a" and name[1:] in names}
    assert names - twins - without == {name[1:] for name in twins}
    for name in twins:
        one, twin = getattr(owner, name[1:]), getattr(owner, name)
        assert inspect.signature(twin).parameters == inspect.signature(one).parameters
        assert f"`{name[1:]}`" in twin.__doc__


def test_a_new_customers_first_call_waits_for_nothing(
    open_lava: Callable[..., Lava], provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T28: the default plan is put in force by the command before the hold, decided where that is."""
    lava = open_lava(catalogue=FREE)
    heard = on_thread(lava, monkeypatch)

    async def calls() -> list[int]:
        async with aclient_of(provider) as client:
            with lava.charge_to("new"):
                return [(await client.post(CHAT, json=chat())).status_code for _ in range(6)]

    assert asyncio.run(calls()) == [200] * 5 + [429]
    if isinstance(lava.settings.ledger, str):
        assert heard == [], "a server far away"
    monkeypatch.undo()
    settled(lava, "new")
    assert lava.balance("new").plan == "free"


def test_a_busy_file_does_not_let_the_call_in_before_the_plan(
    tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T38: what is put in force for a new customer is there before the hold, however long others write."""
    with lava_at(provider, tmp_path / "lava.db", catalogue=FREE) as lava:
        journal = type(lava.ledger._journal)
        real, busy = journal.append, [200]

        def append(self: Any, entries: Any, predecessor: Any) -> Any:
            if entries[0].kind.startswith("terms") and busy[0]:
                busy[0] -= 1
                raise Busy
            return real(self, entries, predecessor)

        monkeypatch.setattr(journal, "append", append)
        with client_of(provider) as client, lava.charge_to("new"):
            assert client.post(CHAT, json=chat()).status_code == 200
        assert busy == [0]
        settled(lava, "new")


def test_errors_are_those_of_sync_code(lava: Lava) -> None:
    async def wrong() -> None:
        with pytest.raises(AmountError):
            await lava.agrant("acme", "-1")
        with pytest.raises(InsufficientCredit):
            async with lava.reserve("acme", charge="1"):
                pass

    asyncio.run(wrong())


def test_a_task_that_is_cancelled_goes_on_at_once(lava: Lava, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it asked for is done all the same."""
    go_on, real = threading.Event(), Lava.balance

    def slow(self: Lava, customer: str) -> Any:
        go_on.wait(30)
        return real(self, customer)

    monkeypatch.setattr(Lava, "balance", slow)

    async def cancelled() -> bool:
        task = asyncio.create_task(lava.agrant("acme", "1"))
        await asyncio.sleep(0.05)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return not go_on.is_set()
        return False

    try:
        assert asyncio.run(cancelled())
    finally:
        go_on.set()
    monkeypatch.undo()
    eventually(lambda: lava.balance("acme").available == Amount.of("1"))


def test_the_tasks_context_is_the_threads(lava: Lava) -> None:
    async def quoted() -> bool:
        with lava.charge_to("acme"):
            return (await lava.aquote(model="gpt-4o", input_tokens=1, output_tokens_max=1)).affordable

    lava.grant("acme", "1")
    assert asyncio.run(quoted())


def test_trio_has_them_too(lava: Lava) -> None:
    trio = pytest.importorskip("trio")

    async def granted() -> Amount:
        return (await lava.agrant("acme", "1")).available

    assert trio.run(granted) == Amount.of("1")
