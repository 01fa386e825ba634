"""Credits are bought when they run out: once per customer, in time for the call that ran dry, and nobody else waits."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lava_middleware import Amount, InsufficientCredit, Lava, charge_to
from lava_middleware.core.events import Granted, TopupFailed, TopupStarted, decode
from lava_middleware.credits import topups as module
from lava_middleware.credits.topups import TryAgain, owner_in
from lava_middleware.testing import Script

from ..conftest import SEED
from ..faults.kit import FORKSERVER
from ..transport.rig import CUSTOMER, Rig, chat, eventually, rigged
from . import buyers
from .kit import adds_up


class Card:
    """What a hook charges; a test says what it answers."""

    def __init__(self) -> None:
        self.charges: list[tuple[str, Amount, str]] = []
        self.answer: Callable[[], Any] = lambda: True
        self.hanging = threading.Event()
        self.released = threading.Event()

    def __call__(self, customer: str, amount: Amount, key: str) -> Any:
        self.charges.append((customer, amount, key))
        return self.answer()

    def hang(self) -> bool:
        self.hanging.set()
        assert self.released.wait(30)
        return True

    @property
    def keys(self) -> list[str]:
        return [key for _, _, key in self.charges]


@pytest.fixture
def card() -> Iterator[Card]:
    made = Card()
    yield made
    made.released.set()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCH_S", "SWEEP_S", "TELL_AGAIN_S", "UNSURE_FIRST_S"):
        monkeypatch.setattr(module, name, 0.02)


@contextmanager
def dry(card: Any, script: Script | None = None, *, most: str = "3.00", **settings: Any) -> Iterator[Rig]:
    """A customer without credit whose terms say that 1.00 is bought below 0.01."""
    with rigged(script, credits=None, top_up=card, **settings) as rig:
        rig.lava.auto_top_up(CUSTOMER, below="0.01", amount="1.00", most=most)
        yield rig


def call(rig: Rig, customer: str = CUSTOMER, **more: Any) -> int:
    with charge_to(customer), httpx.Client() as client:
        return client.post(rig.chat_url, json=chat(max_tokens=100, **more)).status_code


def started(rig: Rig) -> list[str]:
    return [event.key for event in rig.events() if isinstance(event, TopupStarted)]


# The call that ran dry ------------------------------------------------------------------------------------------------


def test_the_very_call_that_ran_dry_passes(card: Card, ledger: str) -> None:
    with dry(card, ledger=ledger) as rig:
        card.answer = lambda: rig.kinds() == ["terms_set", "topup_started"]  # T8: written before the card is charged
        assert call(rig) == 200
        rig.wait_settled()
        assert rig.kinds()[1:] == ["topup_started", "held", "settled"]
        ((customer, amount, key),) = card.charges
        assert (customer, str(amount), [key]) == (CUSTOMER, "1.00", started(rig))
        (granted,) = [event for event in rig.events() if isinstance(event, Granted)]
        assert (granted.key, granted.category, granted.amount) == (key, "top_up", Amount.of("1.00").ticks)
        assert call(rig) == 200
        assert len(card.charges) == 1
        adds_up(rig.lava)


def test_an_async_call_waits_without_holding_up_the_loop(card: Card) -> None:
    card.answer = card.hang

    async def main(rig: Rig) -> tuple[int, int]:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.002)
                beats += 1
                if beats == 20:
                    card.released.set()

        beating = asyncio.create_task(beat())
        async with httpx.AsyncClient() as client:
            with charge_to(CUSTOMER):
                answer = await client.post(rig.chat_url, json=chat(max_tokens=100))
        beating.cancel()
        return answer.status_code, beats

    with dry(card) as rig:
        status, beats = asyncio.run(main(rig))
        assert status == 200
        assert beats >= 20


def test_a_stream_that_runs_dry_goes_on_after_the_purchase(card: Card) -> None:
    script = Script(text="word " * 400)
    with dry(card, script) as rig:
        rig.lava.grant(CUSTOMER, "0.0011", key="little")  # the input, and some of the output
        with charge_to(CUSTOMER), httpx.Client() as client:
            answer = client.post(rig.chat_url, json=chat(stream=True, max_tokens=2_000))
        assert answer.text.rstrip().endswith("[DONE]")
        assert answer.text.count("word") == 400
        assert len(card.charges) == 1
        assert rig.record.facts.get("stopped", "") == ""


def test_a_hook_may_be_async() -> None:
    keys = []

    async def hook(customer: str, amount: Amount, key: str) -> None:
        await asyncio.sleep(0)
        keys.append(key)

    with dry(hook) as rig:
        assert call(rig) == 200
        assert keys == started(rig)


def test_a_reservation_waits_for_a_purchase_too(card: Card) -> None:
    with dry(card) as rig:
        with rig.lava.reserve(CUSTOMER, charge="0.50") as held:
            held.settle(charge="0.25")
        assert len(card.charges) == 1


def test_what_a_settlement_leaves_is_enough_or_more_is_bought(card: Card) -> None:
    """Nobody waits for it: the next call finds the credit there."""
    with dry(card) as rig:
        rig.lava.grant(CUSTOMER, "0.0102", key="little")
        assert call(rig, n=1) == 200  # 0.0102 - 0.0003
        eventually(lambda: rig.lava.balance(CUSTOMER).available > Amount.of("1.00"))
        assert len(card.charges) == 1
        rig.lava.report(CUSTOMER, request_id="doc-1", charge="1.005")
        eventually(lambda: len(card.charges) == 2)


# Limits of it ---------------------------------------------------------------------------------------------------------


def test_a_failure_stops_further_tries_until_credit_is_granted(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    """T8: a runaway recharge. What the hook raised stays out of the log: it may hold a card's number."""

    def declined() -> None:
        raise ValueError("card 4242 4242 was declined")

    card.answer = declined
    with dry(card) as rig:
        assert [call(rig) for _ in range(3)] == [402] * 3
        assert len(card.charges) == 1
        assert [event.reason for event in rig.events() if isinstance(event, TopupFailed)] == ["ValueError"]
        assert "ValueError" in caplog.text
        assert "4242" not in caplog.text
        assert CUSTOMER not in caplog.text
        card.answer = lambda: True
        assert call(rig) == 402
        rig.lava.grant(CUSTOMER, "0.0001", key="by hand")
        assert call(rig) == 200
        assert len(set(card.keys)) == 2


def test_a_hook_that_says_false_has_failed(card: Card) -> None:
    card.answer = lambda: False
    with dry(card) as rig:
        assert call(rig) == 402
        assert rig.kinds()[-1] == "topup_failed"


def test_no_more_is_bought_than_the_period_allows(card: Card) -> None:
    """T8"""
    with dry(card, most="2.00") as rig:
        rig.lava.report(CUSTOMER, request_id="doc-1", charge="1.00")
        eventually(lambda: rig.lava.balance(CUSTOMER).debt == Amount(0))  # bought, and at once gone
        rig.lava.report(CUSTOMER, request_id="doc-2", charge="1.00")
        eventually(lambda: rig.lava.balance(CUSTOMER).debt == Amount(0))
        rig.lava.report(CUSTOMER, request_id="doc-3", charge="1.00")
        assert call(rig) == 402
        assert len(card.charges) == 2
        assert rig.lava.balance(CUSTOMER).debt == Amount.of("1.00")


def test_what_would_not_suffice_is_not_bought(card: Card) -> None:
    with dry(card) as rig:
        rig.lava.grant(CUSTOMER, "0.50", key="some")
        with pytest.raises(Exception, match=r"needs .*2\.00"), rig.lava.reserve(CUSTOMER, charge="2.00"):
            pass
        assert card.charges == []
        with rig.lava.reserve(CUSTOMER, charge="1.20"):
            pass
        assert len(card.charges) == 1


def test_who_only_observes_buys_nothing(card: Card) -> None:
    with dry(card, mode="observe") as rig:
        assert call(rig) == 200
        assert card.charges == []


def test_a_customer_without_terms_is_refused_at_once(card: Card) -> None:
    with dry(card) as rig:
        assert call(rig, "somebody else") == 402
        assert card.charges == []


# One at a time, and nobody waits for others --------------------------------------------------------------------------


def test_many_calls_at_once_are_one_purchase(card: Card, ledger: str) -> None:
    """T8: single flight; all of them pass."""
    card.answer = lambda: time.sleep(0.1) or True
    with dry(card, ledger=ledger) as rig, ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: call(rig), range(16))) == {200}
        assert len(card.charges) == 1
        rig.wait_settled()
        adds_up(rig.lava)


def test_other_customers_never_wait_for_a_hook_that_hangs(card: Card) -> None:
    card.answer = card.hang
    with dry(card, top_up_wait_s=0.3) as rig:
        rig.lava.grant("rich", "1.00", key="first")
        rig.lava.auto_top_up("poor", below="0.01", amount="1.00", most="3.00")
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(call, rig)
            assert card.hanging.wait(5)
            assert call(rig, "rich") == 200
            card.answer = lambda: True
            assert call(rig, "poor") == 200
            assert waits.result() == 402  # its own wait is bounded
        assert rig.holds() == 0
        card.released.set()  # what is charged is granted, however late
        eventually(lambda: rig.lava.balance(CUSTOMER).available == Amount.of("1.00"))
        assert len(card.charges) == 2


def test_hooks_that_hang_for_good_leave_room_for_others(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOOKS_MOST", 1)
    monkeypatch.setattr(module, "STUCK_S", 0.1)
    card.answer = card.hang
    with dry(card, top_up_wait_s=0.05) as rig:
        rig.lava.auto_top_up("next", below="0.01", amount="1.00", most="3.00")
        assert call(rig) == 402
        card.answer = lambda: True
        call(rig, "next")
        eventually(lambda: rig.lava.balance("next").available > Amount.of("0.9"))
        card.released.set()
        eventually(lambda: rig.lava.balance(CUSTOMER).available == Amount.of("1.00"))


def test_a_call_that_is_cancelled_meanwhile_leaves_no_hold(card: Card) -> None:
    """T45"""
    card.answer = card.hang

    async def main(rig: Rig) -> None:
        async with httpx.AsyncClient() as client:
            with charge_to(CUSTOMER):
                waits = asyncio.create_task(client.post(rig.chat_url, json=chat(max_tokens=100)))
            while not card.hanging.is_set():
                await asyncio.sleep(0.005)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits

    with dry(card) as rig:
        asyncio.run(main(rig))
        card.released.set()
        eventually(lambda: rig.lava.balance(CUSTOMER).available == Amount.of("1.00"))
        rig.wait_settled()
        assert not rig.provider.requests


# Whatever dies in between ---------------------------------------------------------------------------------------------


def test_where_nobody_knows_whether_it_was_charged_the_same_key_is_used_again(card: Card) -> None:
    """The payment provider takes it for the same purchase."""
    outcomes: list[Exception | None] = [TryAgain(), httpx.ReadTimeout("lost"), ConnectionResetError(), None]

    def answer() -> None:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    card.answer = answer
    with dry(card) as rig:
        assert call(rig) == 200
        assert card.keys == started(rig) * 4


def test_a_purchase_that_a_close_leaves_under_way_is_repeated_with_its_key(card: Card, tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path / 'lava.db'}"
    card.answer = card.hang
    first = Lava(ledger, top_up=card)
    first.auto_top_up(CUSTOMER, below="0.01", amount="1.00", most="3.00")
    with pytest.raises(InsufficientCredit), _soon_closed(first, card), first.reserve(CUSTOMER, charge="0.50"):
        pass
    second_card = Card()
    with Lava(ledger, top_up=second_card) as second:
        assert second.topups is not None
        second.topups.awake()
        time.sleep(0.2)
        assert second_card.charges == []  # its thread still runs here: two at once would be two purchases
        card.released.set()
        eventually(lambda: second.balance(CUSTOMER).available == Amount.of("1.00"))
        assert second_card.keys == card.keys
    with Lava(ledger, top_up=second_card) as third:
        assert third.topups is not None
        third.topups.awake()
        time.sleep(0.1)
    assert len(second_card.charges) == 1


@contextmanager
def _soon_closed(lava: Lava, card: Card) -> Iterator[None]:
    """Closed while the hook hangs; what the close interrupts is told so."""

    def close() -> None:
        assert card.hanging.wait(10)
        assert lava.topups is not None
        lava.topups.close(0.1)
        lava.close()

    closing = threading.Thread(target=close)
    closing.start()
    try:
        yield
    finally:
        closing.join()


def test_a_dead_process_s_purchase_is_repeated_with_its_key(card: Card, dying: str) -> None:
    """After SIGKILL in the hook; and while it lives, nobody else charges the card (T8)."""
    with Lava(dying, top_up=card, top_up_wait_s=0.2) as lava:
        lava.auto_top_up(CUSTOMER, below="0.01", amount="1.00", most="3.00")
        told = FORKSERVER.Queue()
        other = FORKSERVER.Process(target=buyers.dies_while_buying, args=(dying, told))
        other.start()
        key = told.get(timeout=30)
        with pytest.raises(InsufficientCredit), lava.reserve(CUSTOMER, charge="0.50"):
            pass
        assert card.charges == []
        assert other.pid is not None
        os.kill(other.pid, signal.SIGKILL)
        other.join()
        eventually(lambda: lava.balance(CUSTOMER).available == Amount.of("1.00"), 40)
        assert card.keys == [key]
        assert owner_in(key) != lava.ledger.owner
        told.close()


def test_processes_that_run_dry_together_buy_once(shared: str) -> None:
    """T8: single flight across processes; those who did not buy pass by what another one bought."""
    with Lava(shared) as lava:
        lava.auto_top_up(CUSTOMER, below="0.01", amount="1.00", most="9.00")
    go, told = FORKSERVER.Barrier(2), FORKSERVER.Queue()
    others = [FORKSERVER.Process(target=buyers.calls, args=(shared, go, told)) for _ in range(2)]
    for other in others:
        other.start()
    said = [told.get(timeout=60) for _ in others]
    for other in others:
        other.join()
    assert [passed for passed, _ in said] == [5, 5]
    assert sum(len(charged) for _, charged in said) == 1
    told.close()


def test_processes_that_are_killed_while_they_buy_lose_no_money(
    dying: str, tmp_path: Path, soak_count: Callable[[int], int], figures: Callable[[str], None]
) -> None:
    """Every key that was charged is one grant, and no grant is without its charge, whoever died in between."""
    ledger, statement = dying, tmp_path / "statement"
    customers = ["c0", "c1", "c2"]
    with Lava(ledger) as lava:
        for name in customers:
            lava.auto_top_up(name, below="0.30", amount="1.00", most="100000.00")
    chance = random.Random(SEED)
    kills = soak_count(40)
    others: list[Any] = []
    for number in range(kills):
        while len(others) < 2:
            others.append(FORKSERVER.Process(target=buyers.buys_till_it_dies, args=(ledger, str(statement), number)))
            others[-1].start()
            eventually(others[-1].is_alive)
        written = statement.stat().st_size if statement.exists() else 0
        eventually(lambda before=written: statement.exists() and statement.stat().st_size > before + 300, 30)
        time.sleep(chance.random() * 0.03)
        others.pop(0).kill()
    for other in others:
        other.kill()
        other.join()

    def hook(customer: str, amount: Amount, key: str) -> None:
        with open(statement, "a", encoding="utf-8") as file:
            file.write(f"{customer} {amount.ticks} {key}\n")

    with Lava(ledger, top_up=hook) as lava:
        assert lava.topups is not None
        lava.topups.awake()
        eventually(lambda: all(lava.ledger.look(name).topup is None for name in customers), 40)
        charged = set(statement.read_text().splitlines())
        granted = {
            f"{entry.account} {event.amount} {event.key}"
            for name in customers
            for entry in lava.entries(name)
            if isinstance(event := decode(entry.kind, entry.event), Granted)
        }
        assert granted == charged
        for name in customers:
            adds_up(lava, name)
        figures(f"{kills} kills among {len(charged)} purchases: each key charged is one grant")
