"""What no transport sees: reported after the fact, held first, corrected later; once each, to the last digit."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lava_middleware import (
    Amount,
    AmountError,
    Conflict,
    CreditOnHold,
    IdError,
    InsufficientCredit,
    Lava,
    LimitReached,
    NotBound,
    RequestExceedsCredit,
)
from lava_middleware.core.decide import LedgerRuleError, UnknownHold
from lava_middleware.errors import ConfigurationError
from lava_middleware.testing import FakeProvider, FrozenClock
from tests.faults.kit import MODEL, eventually, lava_at

from .kit import adds_up, settled

METERS: dict[str, Any] = {
    "pages": {"rates": {"pages": "0.01"}},
    "bulk": {"unit": "tokens", "tiers": [[0, "5.00"], [1_000_000, "3.00"], [10_000_000, "1.00"]]},
    "audio": {"rates": {"seconds": {"price": "0.006", "per": 60}}},
    "storage": {"unit": "gigabytes", "tiers": [[0, "0.10"], [100, "0.05"]]},
    "render": {"rates": {"requests": "0.02", "frames": "0.0001"}},
}


@pytest.fixture
def lava(open_lava: Any) -> Lava:
    made: Lava = open_lava(meters=METERS)
    made.grant("acme", "100")
    return made


# Reports --------------------------------------------------------------------------------------------------------------


def test_a_figure_that_cannot_be_meant_is_refused_and_the_customer_goes_on(open_lava: Any) -> None:
    """T24: two of them together are more than an account can hold; the second is not written, and nobody waits."""
    lava = open_lava(meters=METERS)
    lava.report("acme", charge="460000000", request_id="r1")
    with pytest.raises(AmountError, match="owe"):
        lava.report("acme", charge="460000000", request_id="r2")
    lava.grant("acme", "460000000", key="paid")
    lava.grant("acme", "460000000", key="more")
    lava.grant("acme", "460000000", key="more")
    with pytest.raises(AmountError, match="give back"):
        lava.adjust("acme", "r1", "-460000000", key="refund")
    assert lava.balance("acme").available == Amount.of("460000000")
    assert [record.id for record in lava.records("acme")] == ["r1"]
    adds_up(lava)


def test_a_report_bills_once_for_its_request_id(lava: Lava) -> None:
    """T15: the same again gives the first record; other content is a conflict."""
    first = lava.report("acme", meter="pages", quantity=12, request_id="doc-77")
    again = lava.report("acme", meter="pages", quantity=12, request_id="doc-77", user="u1")
    assert first is not None
    assert again is not None
    assert (first.id, first.charge) == (again.id, again.charge) == ("doc-77", Amount.of("0.12"))
    assert again.facts == next(lava.records("acme")).facts, "as it was written then"
    with pytest.raises(Conflict):
        lava.report("acme", meter="pages", quantity=13, request_id="doc-77")
    assert len(list(lava.records("acme"))) == 1
    assert lava.balance("acme").available == Amount.of("99.88")


def test_the_same_report_at_once_from_many_threads_bills_once(lava: Lava) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: lava.report("acme", meter="pages", quantity=1, request_id="one"), range(16)))
    assert {record.id for record in made if record} == {"one"}
    assert lava.balance("acme").balance == Amount.of("99.99")


@pytest.mark.parametrize(
    ("said", "charge"),
    [
        ({"meter": "audio", "quantity": 61}, "0.0061"),
        ({"charge": "0.30"}, "0.30"),
        ({"meter": "label of ours", "charge": "0.0000000001"}, "0.0000000001"),
        ({"model": MODEL, "provider": "openai", "usage": {"input": 900, "output": 150}}, "0.0024"),
        ({"meter": "render", "quantity": 500, "unit": "frames"}, "0.07"),
        ({"meter": "render", "units": {"frames": 10}, "quantity": 3, "unit": "requests"}, "0.061"),
        ({"meter": "bulk", "usage": {"input": 1_000_000, "output": 1}}, "5.000003"),
        ({"meter": "storage", "quantity": 150}, "12.50"),
        ({"meter": "storage", "quantity": 0}, "0"),
    ],
)
def test_what_is_reported_is_charged_to_the_last_digit(lava: Lava, said: dict[str, Any], charge: str) -> None:
    record = lava.report("acme", request_id="r", **said)
    assert record is not None
    assert record.charge == Amount.of(charge)
    assert lava.balance("acme").balance == Amount.of("100") - Amount.of(charge)


def test_five_million_tokens_cost_seventeen_credits(lava: Lava) -> None:
    """Tiers are graduated: 1 M at 5.00 and 4 M at 3.00."""
    record = lava.report("acme", meter="bulk", usage={"input": 5_000_000}, request_id="five")
    assert record is not None
    assert record.charge == Amount.of("17")
    assert record.facts["charged"] == [("tier", 1_000_000, 5 * 10**10), ("tier", 4_000_000, 3 * 10**10)]


def test_reports_at_once_over_a_tiers_border_add_up_to_the_last_digit(lava: Lava) -> None:
    """T1: 40 × 77,777 tokens straddle the border once, whoever is first; the sum is that of one report of them all."""
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(
                lambda number: lava.report("acme", meter="bulk", usage={"output": 77_777}, request_id=f"r{number}"),
                range(40),
            )
        )
    total = 40 * 77_777
    assert sum(record.charge.ticks for record in made if record) == 5 * 10**10 + (total - 10**6) * 3 * 10**4
    straddling = [record for record in made if record and len(record.facts["charged"]) == 2]
    assert len(straddling) == 1
    adds_up(lava)


def test_an_event_counts_when_it_happened(open_lava: Any) -> None:
    """T11: last month's tokens fill last month's tiers and limits; the future and naive times are refused."""
    clock = FrozenClock(int(datetime(2026, 3, 2, tzinfo=UTC).timestamp()) * 1_000_000)
    lava = open_lava(meters=METERS, clock=clock)
    lava.grant("acme", "100")
    lava.limit("acme", 10, "pages", window="month")
    before = datetime(2026, 2, 27, 12, tzinfo=UTC)
    old = lava.report("acme", meter="bulk", usage={"input": 1_000_000}, request_id="a", when=before)
    late = lava.report("acme", meter="bulk", usage={"input": 1_000_000}, request_id="b", when=before)
    new = lava.report("acme", meter="bulk", usage={"input": 1_000_000}, request_id="c")
    assert [one.charge for one in (old, late, new)] == [Amount.of("5"), Amount.of("3"), Amount.of("5")]
    lava.report("acme", meter="pages", quantity=7, request_id="d", when=before)
    lava.report("acme", meter="pages", quantity=2, request_id="e")
    assert lava.balance("acme").limits[0].used == 2
    assert next(lava.records("acme")).facts["ended"] == clock()
    for wrong in (datetime(2026, 3, 3, tzinfo=UTC), datetime(2026, 2, 1)):
        with pytest.raises(ConfigurationError, match="when"):
            lava.report("acme", charge="1", request_id="f", when=wrong)


def test_a_report_is_never_refused_and_what_no_credit_covers_is_debt(lava: Lava) -> None:
    """T8: debt is visible and repaid first."""
    lava.limit("acme", 5, "pages")
    record = lava.report("acme", meter="pages", quantity=20_000, request_id="big")
    assert record is not None
    assert (record.charge, lava.balance("acme").debt) == (Amount.of("200"), Amount.of("100"))
    assert lava.grant("acme", "130").available == Amount.of("30")
    assert lava.balance("acme").debt == Amount(0)
    adds_up(lava)


def test_reports_of_another_process_count_for_the_same_limit(lava: Lava) -> None:
    """A limit counts what was reported, by customer, user and unit."""
    lava.limit("acme", 10, "pages", per="user", name="each")
    lava.report("acme", meter="pages", quantity=8, request_id="a", user="u1")
    with lava.reserve("acme", meter="pages", quantity=9, user="u2"):
        pass
    with pytest.raises(LimitReached) as error:
        lava.reserve("acme", meter="pages", quantity=3, user="u1").__enter__()
    assert (error.value.denied.limit, error.value.denied.used, error.value.denied.quantity) == ("each", 8, 10)


def test_a_report_inside_a_run_is_a_part_of_its_bill(lava: Lava) -> None:
    with lava.charge_to("acme", key="key-1"), lava.run("agent", credits="1") as work:
        lava.report(meter="pages", quantity=30, request_id="tool-1")
        assert work.state().spent == Amount.of("0.30")
    (record,) = lava.records("acme")
    assert record.facts["runs"] == [work.id]
    assert record.facts["key"] == "key-1"


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({}, ConfigurationError, "nothing is reported"),
        ({"meter": "unheard", "quantity": 3}, ConfigurationError, "no meter of that name"),
        ({"meter": "render", "quantity": 3}, ConfigurationError, "exactly one unit"),
        ({"meter": "pages", "quantity": 3, "unit": "gigabytes"}, ConfigurationError, "prices what was reported"),
        ({"model": "unheard", "usage": {"input": 1}}, ConfigurationError, "no price"),
        ({"meter": "pages", "quantity": -1}, AmountError, "whole number"),
        ({"meter": "pages", "quantity": True}, AmountError, "whole number"),
        ({"meter": "pages", "quantity": 1.5}, AmountError, "whole number"),
        ({"charge": "-1"}, AmountError, "adjust"),
        ({"charge": 0.1}, AmountError, "charge must be"),
        ({"charge": "1", "when": datetime(1, 1, 1, tzinfo=UTC)}, ConfigurationError, "before 1970"),
        ({"model": MODEL, "provider": "openai", "usage": {"hunter2": 1}}, AmountError, "units"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_reason(
    lava: Lava, said: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        lava.report("acme", request_id="r", **said)
    assert list(lava.records("acme")) == []


def test_a_report_needs_a_customer_and_an_id(lava: Lava) -> None:
    with pytest.raises(NotBound):
        lava.report(charge="1", request_id="r")
    with pytest.raises(IdError):
        lava.report("acme", charge="1", request_id="")


def test_reports_of_async_code(lava: Lava) -> None:
    async def work() -> None:
        one, two = await asyncio.gather(
            *(lava.areport("acme", meter="pages", quantity=12, request_id="doc") for _ in range(2))
        )
        assert one is not None
        assert two is not None
        assert one.id == two.id
        await lava.aadjust("acme", "doc", "-0.02", key="k")
        async with lava.reserve("acme", meter="pages", quantity=5) as held:
            held.settle(quantity=4)

    asyncio.run(work())
    settled(lava)
    assert lava.balance("acme").balance == Amount.of("99.86")


# Reservations ---------------------------------------------------------------------------------------------------------


def test_a_reservation_holds_first_and_is_settled_with_what_it_really_came_to(lava: Lava) -> None:
    with lava.reserve("acme", meter="pages", quantity=40) as held:
        assert lava.balance("acme").held == Amount.of("0.40")
        held.settle(quantity=3)
        with pytest.raises(ConfigurationError, match="not open"):
            held.settle(quantity=3)
    settled(lava)
    (record,) = lava.records("acme")
    assert (record.charge, record.facts["units"]) == (Amount.of("0.03"), {"pages": 3})


def test_a_reservation_that_is_not_settled_is_charged_as_reserved(lava: Lava) -> None:
    with lava.reserve("acme", meter="pages", quantity=40):
        pass
    settled(lava)
    assert lava.balance("acme").balance == Amount.of("99.60")


def test_an_exception_gives_a_reservation_back(lava: Lava) -> None:
    with pytest.raises(KeyError), lava.reserve("acme", meter="bulk", usage={"input": 10**6}):
        raise KeyError
    settled(lava)
    assert list(lava.records("acme")) == []
    assert lava.balance("acme").available == Amount.of("100")
    with lava.reserve("acme", charge="1") as held:
        held.void()
    settled(lava)
    assert lava.balance("acme").available == Amount.of("100")


def test_a_reservation_that_does_not_fit_is_refused_before_the_work(lava: Lava) -> None:
    with pytest.raises(InsufficientCredit) as error:
        lava.reserve("nobody", charge="0.01").__enter__()
    assert error.value.required == Amount.of("0.01")
    lava.limit("acme", 10, "pages")
    with pytest.raises(LimitReached):
        lava.reserve("acme", meter="pages", quantity=11).__enter__()
    assert lava.balance("acme").held == Amount(0)


def test_more_than_was_reserved_is_an_overrun_with_its_cause(lava: Lava) -> None:
    """G5."""
    with lava.reserve("acme", meter="pages", quantity=10) as held:
        held.settle(quantity=15)
    settled(lava)
    (record,) = lava.records("acme")
    assert (record.charge, record.overrun) == (Amount.of("0.15"), Amount.of("0.05"))
    assert record.overrun_cause == "undercounted"


def test_a_request_id_holds_once_and_never_after_its_end(lava: Lava) -> None:
    """G1, G3: what is done anew needs an id of its own; before, it was done without a hold and billed to nobody."""
    lava.grant("globex", "10")
    with lava.reserve("globex", charge="1", request_id="job") as held:
        with (
            pytest.raises(Conflict, match="in use for something else"),
            lava.reserve("globex", charge="9", request_id="job"),
        ):
            raise AssertionError("it was never let in")
        with lava.reserve("globex", charge="1", request_id="job") as again:
            assert lava.balance("globex").held == Amount.of("1")
            again.settle(charge="0.5")
        held.settle(charge="0.5")
    for charge in ("1", "5"):
        with pytest.raises(Conflict, match="has ended"), lava.reserve("globex", charge=charge, request_id="job"):
            raise AssertionError("it was never let in")
    with suppress(ZeroDivisionError), lava.reserve("globex", charge="2", request_id="failed"):
        raise ZeroDivisionError
    with pytest.raises(Conflict, match="has ended"), lava.reserve("globex", charge="2", request_id="failed"):
        raise AssertionError("it was never let in")
    settled(lava, "globex")
    assert [(record.id, str(record.charge)) for record in lava.records("globex")] == [("job", "0.50")]
    assert lava.balance("globex").available == Amount.of("9.5")


def test_a_request_id_holds_once_in_async_code(lava: Lava) -> None:
    async def work() -> None:
        async with lava.reserve("acme", charge="1", request_id="job") as held:
            with pytest.raises(Conflict, match="in use for something else"):
                await lava.reserve("acme", charge="9", request_id="job").__aenter__()
            held.settle()
        with pytest.raises(Conflict, match="has ended"):
            await lava.reserve("acme", charge="1", request_id="job").__aenter__()

    asyncio.run(work())


def test_what_was_not_entered_cannot_be_settled(lava: Lava) -> None:
    lava.grant("globex", "1")
    refused = lava.reserve("globex", charge="5")
    with pytest.raises((InsufficientCredit, RequestExceedsCredit)), refused:
        raise AssertionError("it was never let in")
    for reservation in (refused, lava.reserve("globex", charge="1")):
        with pytest.raises(ConfigurationError, match="not open"):
            reservation.settle()
        reservation.void()
    settled(lava, "globex")
    assert list(lava.records("globex")) == []


@pytest.mark.parametrize(
    ("unit", "said", "refused"),
    [
        ("output_tokens", {"usage": {"output": 501}}, True),
        ("output_tokens", {"usage": {"input": 501, "output": 500}}, False),
        ("input_tokens", {"usage": {"input": 501}}, True),
        ("input_tokens", {"usage": {"input": 500, "output": 501}}, False),
        ("tokens", {"usage": {"input": 250, "output": 251}}, True),
        ("tokens", {"usage": {"input": 250, "output": 250}}, False),
        ("tokens", {"units": {"tokens": 501}}, True),
        ("requests", {"units": {"requests": 501}}, True),
        ("characters", {"units": {"characters": 501}}, True),
        ("characters", {"units": {"characters": 500}}, False),
    ],
)
def test_a_reservation_holds_of_each_limit_what_its_settlement_will_count(
    lava: Lava, unit: str, said: dict[str, Any], refused: bool
) -> None:
    """T1, G4."""
    lava.grant("globex", "10")
    lava.limit("globex", 500, unit)
    reservation = lava.reserve("globex", charge="0.1", **said)
    if refused:
        with pytest.raises(LimitReached), reservation:
            raise AssertionError("it was never let in")
    else:
        with reservation:
            (limit,) = lava.balance("globex").limits
            held = limit.held
        settled(lava, "globex")
        (limit,) = lava.balance("globex").limits
        assert (limit.used, limit.held) == (held, 0)


@pytest.mark.parametrize("unit", ["credits", "open_calls"])
def test_what_the_ledger_counts_itself_cannot_be_said(lava: Lava, unit: str) -> None:
    """A limit of credits could be hidden from, one of open calls be filled for ever."""
    with pytest.raises(AmountError, match="counted by the ledger itself"):
        lava.report("globex", charge="1", units={unit: 0}, request_id="doc")


def test_many_reservations_at_once_never_hold_more_than_there_is(lava: Lava) -> None:
    """T1: each holds 3 of 100 credits, and 33 fit."""

    def one(number: int) -> bool:
        try:
            with lava.reserve("acme", charge="3.00"):
                return True
        except (InsufficientCredit, RequestExceedsCredit, CreditOnHold):
            return False

    with ThreadPoolExecutor(16) as pool:
        passed = sum(pool.map(one, range(64)))
    settled(lava)
    assert passed == 33
    assert lava.balance("acme").balance == Amount.of("1")
    adds_up(lava)


RESERVING = """
import os, sys, time
from tests.faults.kit import lava_at
with lava_at("127.0.0.1:9", sys.argv[1]) as lava, lava.reserve("acme", charge="2.50", request_id="job-1"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_reservation_of_a_killed_process_is_settled_as_reserved(dying: str, provider: FakeProvider) -> None:
    """T9: its outcome is unknown; the policy was fixed when it was held."""
    with lava_at(provider, dying) as lava:
        lava.grant("acme", "10")
        environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-c", RESERVING, dying]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            assert lava.balance("acme").held == Amount.of("2.50")
            process.send_signal(signal.SIGKILL)
        eventually(lambda: lava.balance("acme").held == Amount(0), 40)
        (record,) = lava.records("acme")
        assert (record.id, record.charge, record.facts["ending"]) == ("job-1", Amount.of("2.50"), "owner_lost")


# Corrections ----------------------------------------------------------------------------------------------------------


def test_a_correction_gives_back_once_and_never_more_than_was_charged(lava: Lava) -> None:
    """T26: history is never edited; a correcting entry names the record."""
    lava.report("acme", meter="pages", quantity=12, request_id="doc")
    for _ in range(2):
        record = lava.adjust("acme", "doc", "-0.02", key="refund-1", reason="two pages were blank")
        assert (record.charge, record.kind, record.id) == (Amount.of("-0.02"), "adjusted", "doc:1")
    assert lava.balance("acme").balance == Amount.of("99.90")
    with pytest.raises(Conflict):
        lava.adjust("acme", "doc", "-0.03", key="refund-1")
    with pytest.raises(LedgerRuleError):
        lava.adjust("acme", "doc", "-0.11", key="refund-2")
    with pytest.raises(UnknownHold):
        lava.adjust("acme", "another", "-0.01", key="refund-3")
    with pytest.raises(AmountError):
        lava.adjust("acme", "doc", "0", key="refund-4")
    lava.adjust("acme", "doc", "0.50", key="more")
    assert lava.balance("acme").balance == Amount.of("99.40")
    adds_up(lava)


def test_a_refund_goes_back_to_what_was_drawn_or_to_the_like_of_it(open_lava: Any) -> None:
    """Promotional credit that has expired meanwhile comes back as promotional credit, and cancels debt first."""
    clock = FrozenClock()
    lava = open_lava(clock=clock)
    soon = datetime.fromtimestamp(clock() / 1_000_000, UTC) + timedelta(hours=1)
    lava.grant("acme", "1", category="promo", expires=soon)
    lava.report("acme", charge="3", request_id="r")
    assert lava.balance("acme").debt == Amount.of("2")
    lava.adjust("acme", "r", "-2.5", key="k")
    balance = lava.balance("acme")
    assert (balance.debt, balance.available) == (Amount(0), Amount.of("0.5"))
    account = adds_up(lava)
    assert [one.category for one in account.credits] == ["promo"]
    clock.advance(7200)
