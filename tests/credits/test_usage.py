"""What was used adds up to what was charged, by whatever one asks, however often one asks."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from lava_middleware import Amount, Lava, charge_to
from lava_middleware.cli.main import main
from lava_middleware.core.commands import Authorize, Settle
from lava_middleware.core.record import Facts
from lava_middleware.errors import IdError
from lava_middleware.ledger.journal import Entry
from lava_middleware.testing import FrozenClock

from ..transport.rig import CUSTOMER, MODEL, chat, priced, rigged

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


class Clock(FrozenClock):
    def at(self, moment: datetime) -> None:
        self.set(int(moment.timestamp()) * 1_000_000)


@pytest.fixture
def clock() -> Clock:
    made = Clock()
    made.at(NOON)
    return made


def settled(lava: Lava, customer: str, name: str, *, cost: str, charge: str, **facts: Any) -> None:
    """A call as the transport posts it, with figures that the test chooses."""
    made = Facts(id=name, provider="openai", model="gpt-4o", basis="reported", usage={"input": 10, "output": 5})
    made.cost, made.charge = Amount.of(cost).ticks, Amount.of(charge).ticks
    for fact, value in facts.items():
        setattr(made, fact, value)
    lava.ledger.apply(customer, Authorize(name, lava.ledger.owner, 0, 0, 0, 0, 0), record=made.to_json()).wait(10)
    lava.ledger.apply(customer, Settle(name, made.charge, 10, 5), record=made.to_json()).wait(10)


def test_calls_reports_and_corrections_add_up(clock: Clock, ledger: str) -> None:
    with Lava(ledger, clock=clock) as lava:
        settled(lava, "acme", "a", cost="0.10", charge="0.12", user="u1", meter="chat", tags=(("team", "red"),))
        settled(lava, "acme", "b", cost="0.20", charge="0.24", user="u2", meter="chat", tags=(("team", "blue"),))
        settled(lava, "other", "c", cost="0.30", charge="0.36", response_model="gpt-4o-2026", runs=("job", "inner"))
        lava.report("acme", charge="0.50", units={"pages": 3}, request_id="doc", user="u1")
        lava.adjust("acme", "a", "-0.02", key="refund")  # belongs to the model, user and tags of what it corrects
        lines = {tuple(line.by.values()): line for line in lava.usage(by=("user",))}
        assert {user: str(line.charge) for (user,), line in lines.items()} == {
            "": "0.36",
            "u1": "0.60",
            "u2": "0.24",
        }
        assert lines["u1",].records == 2
        assert lines["u1",].usage == {"input": 10, "output": 5, "pages": 3}
        by = {name: {line.by[name]: str(line.charge) for line in lava.usage(by=(name,))} for name in
              ("customer", "model", "meter", "tag:team", "run", "provider", "day", "month", "hour")}  # fmt: skip
        assert by["customer"] == {"acme": "0.84", "other": "0.36"}
        assert by["model"] == {"": "0.50", "gpt-4o": "0.34", "gpt-4o-2026": "0.36"}
        assert by["meter"] == {"": "0.86", "chat": "0.34"}
        assert by["tag:team"] == {"": "0.86", "red": "0.10", "blue": "0.24"}
        assert by["run"] == {"": "0.84", "job": "0.36"}
        assert by["provider"] == {"": "0.50", "openai": "0.70"}
        assert by["day"] == {"2026-03-10": "1.20"}
        assert by["month"] == {"2026-03": "1.20"}
        assert by["hour"] == {"2026-03-10T12:00": "1.20"}
        assert [str(line.charge) for line in lava.usage(by=("customer", "model"), customer="other")] == ["0.36"]
        everything = lava.margin()
        assert (str(everything.cost), str(everything.charge), str(everything.margin)) == ("0.60", "1.20", "0.60")
        assert everything.margin_share == Decimal("0.5000")
        debt = sum(lava.balance(name).debt.ticks for name in ("acme", "other"))
        assert everything.charge.ticks == debt  # nobody had credit: all that was charged is owed


def test_days_are_those_of_the_zone_and_edges_are_exact(clock: Clock) -> None:
    """T11: from `since` up to before `until`; the day of a call is that of its settlement."""
    with Lava("memory://", clock=clock) as lava:
        for number, hour in enumerate((0, 7, 23)):
            clock.at(NOON.replace(day=10 + number, hour=hour))
            settled(lava, "acme", f"c{number}", cost="0", charge="0.01")
        days = [line.by["day"] for line in lava.usage(by=("day",))]
        assert days == ["2026-03-10", "2026-03-11", "2026-03-12"]
        shifted = [line.by["day"] for line in lava.usage(by="day", zone="Pacific/Kiritimati")]  # +14
        assert shifted == ["2026-03-10", "2026-03-11", "2026-03-13"]
        first = datetime(2026, 3, 11, 8, tzinfo=timezone(timedelta(hours=1)))
        last = NOON.replace(day=12, hour=23)
        assert lava.margin(since=first).records == 2
        assert lava.margin(until=first).records == 1
        assert lava.margin(since=first, until=last).records == 1
        assert lava.margin(since=last + timedelta(seconds=1)).records == 0
        assert lava.margin(since=first, until=last, customer="acme").records == 1


def test_a_report_counts_when_it_happened_and_is_found_although_it_came_late(clock: Clock) -> None:
    with Lava("memory://", clock=clock) as lava:
        lava.report("acme", charge="1.00", request_id="a", when=NOON - timedelta(days=40))
        clock.at(NOON + timedelta(days=40))
        lava.report("acme", charge="2.00", request_id="b", when=NOON)
        day = {"since": NOON - timedelta(hours=1), "until": NOON + timedelta(hours=1)}
        assert str(lava.margin(**day).charge) == "2.00"
        assert [line.by["month"] for line in lava.usage(by=("month",))] == ["2026-01", "2026-03"]


def test_what_an_owner_says_late_takes_the_place_of_what_was_estimated(clock: Clock) -> None:
    """T26: its usage is not counted beside the estimate."""
    with Lava("memory://", clock=clock) as lava:
        lava.grant("acme", "1.00", key="first")
        text = Facts(id="h", model="gpt-4o", estimate=(100, 0)).to_json()
        lava.ledger.apply("acme", Authorize("h", lava.ledger.owner, 5, 100, 0, 0, 0), record=text).wait(10)
        estimated = Facts(id="h", model="gpt-4o", usage={"input": 100}, cost=3, charge=5, basis="estimated").to_json()
        lava.ledger.apply("acme", Settle("h", 5, 100, 0, lost_owner=True), record=estimated).wait(10)
        said = Facts(id="h", model="gpt-4o", usage={"input": 80, "output": 20}, cost=6, charge=9, basis="reported")
        lava.ledger.apply("acme", Settle("h", 9, 80, 20), record=said.to_json()).wait(10)
        (line,) = lava.usage(by=("model",))
        assert (line.records, line.usage) == (1, {"input": 80, "output": 20})
        assert (line.cost.ticks, line.charge.ticks) == (6, 9)


def test_real_calls_show_their_cost_and_the_margin() -> None:
    with rigged(markup="1.50") as rig, charge_to(CUSTOMER, user="u1"), httpx.Client() as client:
        for _ in range(3):
            assert client.post(rig.chat_url, json=chat(max_tokens=50)).status_code == 200
        (line,) = rig.lava.usage(by=("model", "user"))
        records = rig.records()
        assert line.by == {"model": records[0].model, "user": "u1"}
        assert MODEL in line.by["model"]
        assert line.records == 3
        assert line.cost == priced(line.usage["input"], line.usage["output"])
        assert line.charge.ticks == sum(record.charge.ticks for record in records)
        assert line.margin_share == Decimal("0.3333")


def test_it_reads_in_short_chunks_and_begins_where_it_has_to(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, ledger: str
) -> None:
    """T47: no long read; a day's report does not read the years before it."""
    with Lava(ledger, clock=clock) as lava:
        for number in range(300):
            clock.at(NOON + timedelta(hours=number))
            lava.report("acme", charge="0.01", request_id=f"r{number}")
        chunks: list[list[Entry]] = []
        inner = lava.ledger._journal
        read = inner.read
        monkeypatch.setattr(inner, "read", lambda *args: chunks.append(found := read(*args)) or found)
        monkeypatch.setattr("lava_middleware.credits.usage_report.CHUNK", 50)
        assert lava.margin().records == 300
        assert max(map(len, chunks)) == 50
        chunks.clear()
        last = NOON + timedelta(hours=290)
        assert lava.margin(since=last).records == 10
        assert sum(map(len, chunks)) < 30


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"by": ("colour",)}, ValueError),
        ({"by": ("tag:",)}, ValueError),
        ({"since": datetime(2026, 1, 1)}, ValueError),
        ({"zone": "Mars/Olympus"}, ValueError),
        ({"customer": ""}, IdError),
    ],
)
def test_what_cannot_be_asked_is_told(asked: dict[str, Any], error: type[Exception]) -> None:
    with Lava("memory://") as lava, pytest.raises(error):
        lava.usage(**asked)


def test_a_ledger_in_which_nothing_happened_has_an_empty_report() -> None:
    with Lava("memory://") as lava:
        assert lava.usage() == []
        line = lava.margin()
        assert (line.records, line.charge.ticks, line.margin_share) == (0, 0, None)


# On the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def lived(tmp_path: Path, clock: Clock) -> str:
    url = f"sqlite:///{tmp_path / 'lava.db'}"
    with Lava(url, clock=clock) as lava:
        settled(lava, "acme", "a", cost="0.10", charge="0.12")
        settled(lava, "other", "b", cost="0.20", charge="0.24", usage={"input": 7, "web_search": 2})
    return url


def test_the_command_shows_a_table_with_its_total(lived: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--ledger", lived, "--by", "customer"]) == 0
    titles, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert titles == ["customer", "records", "in", "out", "web_search", "cost", "charge", "margin"]
    assert rows == [
        ["acme", "1", "10", "5", "0", "0.10", "0.12", "0.02", "16.7", "%"],
        ["other", "1", "7", "0", "2", "0.20", "0.24", "0.04", "16.7", "%"],
        ["total", "2", "17", "5", "2", "0.30", "0.36", "0.06", "16.7", "%"],
    ]


def test_the_command_gives_json_lines_and_takes_a_period_and_a_customer(
    lived: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["usage", "--ledger", lived, "--json", "--customer", "acme", "--since", "2026-03-10"]) == 0
    (line,) = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert line == {
        "day": "2026-03-10",
        "model": "gpt-4o",
        "records": 1,
        "usage": {"input": 10, "output": 5},
        "cost": "0.1000000000",
        "charge": "0.1200000000",
        "margin": "0.0200000000",
        "margin_share": "0.1667",
    }
    assert main(["usage", "--ledger", lived, "--until", "2026-03-10"]) == 0
    assert capsys.readouterr().out == "Nothing was used.\n"
    assert main(["usage", "--ledger", lived, "--by", "colour"]) == 2
    assert "tag:NAME" in capsys.readouterr().err
