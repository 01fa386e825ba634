"""What the past adds up to is kept, and is what the journal itself adds up to, whatever one asks and when."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lava_middleware import Lava
from lava_middleware.credits import usage_report, usage_stretches
from lava_middleware.credits.usage_report import UsageLine, usage_lines
from lava_middleware.testing import FrozenClock

from .test_usage import settled

BEGIN = datetime(2026, 3, 1, 7, 20, tzinfo=UTC)
QUESTIONS: list[dict[str, Any]] = [
    {"by": ()},
    {"by": ("day", "model")},
    {"by": ("hour", "customer", "meter")},
    {"by": ("month", "provider"), "since": BEGIN + timedelta(hours=31, minutes=7)},
    {"by": ("customer",), "until": BEGIN + timedelta(hours=50, seconds=1)},
    {"by": ("model",), "since": BEGIN + timedelta(hours=20), "until": BEGIN + timedelta(hours=21)},
    {"by": ("day",), "since": BEGIN + timedelta(days=30)},
    {"by": ("day", "user"), "since": BEGIN + timedelta(hours=9)},
    {"by": ("day",), "zone": "Asia/Kolkata"},
    {"by": ("day",), "customer": "customer-1"},
]


@pytest.fixture(autouse=True)
def _short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_stretches, "ENTRIES", 7)
    monkeypatch.setattr(usage_report, "CHUNK", 3)


def some_use(lava: Lava, clock: FrozenClock, rng: random.Random, name: str, calls: int) -> None:
    """Calls, reports of things that happened up to days ago, and corrections, hours apart."""
    for number in range(calls):
        customer, id = f"customer-{rng.randrange(4)}", f"{name}-{number}"
        what = rng.random()
        if what < 0.5:
            model, meter = rng.choice(("gpt-4o", "claude")), rng.choice(("chat", ""))
            settled(lava, customer, id, cost="0.10", charge="0.12", model=model, meter=meter, user=f"u{number % 3}")
        elif what < 0.8:
            when = lava.clock() - rng.randrange(60 * 3_600) * 1_000_000
            happened = datetime.fromtimestamp(when / 1e6, UTC)
            lava.report(customer, charge="0.50", units={"pages": number}, request_id=id, when=happened)
        elif (records := list(lava.records(customer))) and records[-1].charge.ticks > 100:
            lava.adjust(customer, records[-1].id, "-0.0000001", key=id)
        clock.advance(rng.randrange(3 * 3_600))


def answers(lava: Lava, **more: Any) -> list[list[UsageLine]]:
    return [usage_lines(lava.journal, **question, **more) for question in QUESTIONS]


def from_the_journal(lava: Lava, monkeypatch: pytest.MonkeyPatch) -> list[list[UsageLine]]:
    """The same without anything that is kept."""
    with monkeypatch.context() as patch:
        patch.setattr(usage_report, "stretches", lambda *_, **__: iter(()))
        return answers(lava)


def test_what_is_kept_is_what_the_journal_says(
    ledger: str, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    clock = FrozenClock(int(BEGIN.timestamp()) * 1_000_000)
    with Lava(ledger, clock=clock) as lava:
        for part in ("first", "second", "third"):
            some_use(lava, clock, rng, part, 30)
            for _ in range(2):  # made, and read
                said = answers(lava)
                assert said == from_the_journal(lava, monkeypatch)
                assert said[0][0].charge.ticks == sum(one.charge.ticks for one in said[1])
        assert lava.journal.note(f"{usage_stretches.NAME}9") is not None
        assert answers(lava, rebuild=True) == from_the_journal(lava, monkeypatch)


def test_only_what_is_new_is_read_and_what_is_damaged_is_made_anew(
    ledger: str, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    clock = FrozenClock(int(BEGIN.timestamp()) * 1_000_000)
    with Lava(ledger, clock=clock) as lava:
        some_use(lava, clock, rng, "some", 60)
        first = lava.usage(by=("customer",))
        read: list[int] = []

        def add_up(entries: Sequence[Any]) -> Any:
            read.append(len(entries))
            return honest(entries)

        honest: Any = None
        real = usage_stretches.stretches

        def watched(journal: Any, add: Any, **more: Any) -> Any:
            nonlocal honest
            honest = add
            return real(journal, add_up, **more)

        monkeypatch.setattr(usage_report, "stretches", watched)
        assert lava.usage(by=("customer",)) == first
        assert read == []
        lava.journal.save_note(f"{usage_stretches.NAME}1", "[7, 14")
        lava.journal.save_note(f"{usage_stretches.NAME}3", "[1, 2, 3]\n[]")
        assert lava.usage(by=("customer",)) == first
        assert read == [7, 7]
        assert lava.usage(by=("customer",)) == first
        assert read == [7, 7], "and kept again"


def test_a_question_about_today_does_not_add_up_years(
    ledger: str, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    clock = FrozenClock(int(BEGIN.timestamp()) * 1_000_000)
    with Lava(ledger, clock=clock) as lava:
        some_use(lava, clock, rng, "old", 60)
        clock.advance(30 * 86_400)
        today = datetime.fromtimestamp(lava.clock() / 1e6, UTC)
        some_use(lava, clock, rng, "new", 3)
        (line,) = lava.usage(by=(), since=today)
        with monkeypatch.context() as patch:
            patch.setattr(usage_report, "stretches", lambda *_, **__: iter(()))
            (said,) = lava.usage(by=(), since=today)
        assert line == said
        assert line.records <= 3
        kept = [lava.journal.note(f"{usage_stretches.NAME}{number}") is not None for number in range(8)]
        assert kept == [True] * usage_stretches.AT_ONCE_MOST + [False] * 4
