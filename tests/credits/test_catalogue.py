"""One file says what is sold. It is checked as a whole, and a change of it reaches who is on a plan, once, for good."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lava_middleware import Amount, ConfigurationError, Conflict, Lava, TermsError
from lava_middleware.credits.administration import PAGE
from lava_middleware.offers.catalogue import CatalogueError, read
from lava_middleware.testing import FakeProvider, FrozenClock, Script
from tests.faults.kit import CHAT, MODEL, chat, client_of, lava_at

from .kit import adds_up, settled

EXAMPLE = """
version = 3
default_plan = "free"

[plans.free]
credits = "1.00"
models = ["plain-*"]

[plans.free.limits]
"requests/day" = 20

[plans.pro]
credits = "20.00"
rollover = "full"
overage = "5.00"
meters = ["chat", "bulk"]

[plans.pro.limits."tokens/month"]
quantity = 2_000_000
thresholds = [80, 100]

[plans.pro.top_up]
below = "1.00"
amount = "10.00"
most = "50.00"

[limits]
"requests/minute" = 60

[limits."per user"]
quantity = "0.50"
unit = "credits"
window = "day"
per = "user"

[meters.chat]
cost_times = "1.20"

[meters.bulk]
unit = "tokens"
tiers = [[0, "5.00"], [1_000_000, "3.00"]]

[meters.pages.rates]
pages = 0.01

[prices.plain-model]
input = "1.00"
output = "10.00"
output_tokens_max = 4000
context_tokens = 100_000

[providers.acme-gateway]
hosts = ["llm.acme.example"]
dialects = ["openai.chat"]
prices_as = ["openai"]
"""


def catalogue(version: int = 3, **changes: Any) -> dict[str, Any]:
    """The example, with sections changed. None takes one away."""
    made = {**tomllib.loads(EXAMPLE, parse_float=Decimal), "version": version, **changes}
    return {name: value for name, value in made.items() if value is not None}


def plans(**changed: Any) -> dict[str, Any]:
    return {
        name: {**plan, **changed.get(name, {})}
        for name, plan in tomllib.loads(EXAMPLE, parse_float=Decimal)["plans"].items()
    }


@pytest.fixture
def at(open_lava: Callable[..., Lava]) -> Callable[..., Lava]:
    """at(...): a Lava with a catalogue. What the catalogue says of prices is what counts."""

    def made(given: Any = None, **settings: Any) -> Lava:
        given = catalogue() if given is None else given
        return open_lava(catalogue=given, prices=None, **settings)

    return made


def with_version(lava: Lava, version: int, **changes: Any) -> Lava:
    """The same ledger with another catalogue, as after a deploy: one in memory cannot be opened again."""
    lava.catalogue = read(catalogue(version, **changes))
    return lava


# What it says ---------------------------------------------------------------------------------------------------------


def test_everything_in_it_is_in_force(at: Callable[..., Lava], provider: FakeProvider) -> None:
    lava = at()
    balance = lava.subscribe("acme", "pro")
    assert (balance.plan, balance.available) == ("pro", Amount.of("25"))
    assert {one.name: (one.quantity, one.window) for one in balance.limits} == {
        "requests/minute": (60, "minute"),
        "tokens/month": (2_000_000, "month"),
    }
    terms = lava.terms("acme")
    assert terms.catalogue == 3
    assert terms.top_up is not None
    provider.queue(Script(output_tokens=40, input_tokens=60))
    with client_of(provider) as client, lava.charge_to("acme", meter="chat", user="u1"):
        assert client.post(CHAT, json=chat()).status_code == 200
    settled(lava)
    assert next(lava.records("acme")).charge == Amount.of("0.000552"), "a fifth more than it costs"
    assert lava.report("acme", meter="pages", quantity=3, request_id="r").charge == Amount.of("0.03")  # type: ignore[union-attr]
    assert "llm.acme.example" in lava.hosts


def test_a_new_customer_is_on_the_default_plan_from_the_first_call(
    at: Callable[..., Lava], provider: FakeProvider
) -> None:
    lava = at()
    with client_of(provider) as client, lava.charge_to("new"):
        assert client.post(CHAT, json=chat()).status_code == 200
        answer = client.post(CHAT, json={**chat(), "model": "gpt-4o"})
        assert answer.json()["lava"]["code"] == "model_not_in_plan"
    settled(lava, "new")
    balance = lava.balance("new")
    assert (balance.plan, [one.name for one in balance.limits]) == ("free", ["requests/minute", "requests/day"])
    assert Amount.of("0.99") < balance.available < Amount.of("1")
    adds_up(lava, "new")


@pytest.mark.parametrize("sight", ["grant", "limit", "report", "reserve", "run", "quote"])
def test_whatever_is_first_said_of_a_customer_is_first_sight(at: Callable[..., Lava], sight: str) -> None:
    lava = at()
    match sight:
        case "grant":
            assert lava.grant("new", "2").available == Amount.of("3")
        case "limit":
            lava.limit("new", 5, "requests", window="hour")
        case "report":
            lava.report("new", charge="0.10", request_id="r")
        case "reserve":
            with lava.reserve("new", charge="0.10") as held:
                held.void()
        case "run":
            with lava.run("agent", customer="new", credits="0.5", reserve=True):
                pass
        case "quote":
            assert lava.quote("new", model=MODEL, input_tokens=10, output_tokens_max=10).affordable
    assert lava.balance("new").plan == "free"
    assert lava.balance("never named").plan is None, "looking is not seeing"


def test_who_has_terms_already_is_not_put_on_the_default_plan(at: Callable[..., Lava]) -> None:
    lava = at()
    lava.subscribe("acme", "pro")
    lava.cancel("acme", at_cycle_end=False)
    lava.grant("acme", "1")
    assert lava.balance("acme").plan is None


def test_accounts_that_must_be_known_are_not_made_by_a_call(at: Callable[..., Lava], provider: FakeProvider) -> None:
    lava = at(unknown_accounts="refuse")
    with client_of(provider) as client, lava.charge_to("new"):
        assert client.post(CHAT, json=chat()).json()["lava"]["code"] == "customer_unknown"
    assert list(lava.customers()) == []


def test_a_plan_is_anchored_to_the_customer_in_its_zone(at: Callable[..., Lava]) -> None:
    clock = FrozenClock(int(datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()) * 1_000_000)
    lava = at(clock=clock)
    balance = lava.subscribe("acme", "pro", anchor="2026-01-31", zone="Asia/Tokyo")
    assert balance.cycle_ends == datetime(2026, 2, 27, 15, tzinfo=UTC)
    ends = {one.name: one.resets_at for one in balance.limits}
    assert ends["tokens/month"] == datetime(2026, 1, 31, 15, tzinfo=UTC), "the month of the customer's zone"
    assert lava.subscribe("acme", "pro") == balance, "the same plan again keeps them"


def test_a_plan_of_the_catalogue_is_described_there_and_nowhere_else(at: Callable[..., Lava]) -> None:
    lava = at()
    with pytest.raises(TermsError, match="catalogue"):
        lava.subscribe("acme", "pro", credits="99")
    with pytest.raises(TermsError, match="free, pro"):
        lava.subscribe("acme", "unheard")
    assert lava.subscribe("acme", "a deal of its own", credits="99").plan == "a deal of its own"


def test_settings_and_catalogue_do_not_say_the_same_thing_twice() -> None:
    with pytest.raises(ConfigurationError, match="prices stands in the catalogue too"):
        Lava("memory://", catalogue=catalogue(), prices={MODEL: {"input": "1", "output": "1"}})


# What is wrong with it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"version": "hunter2"}, "version: "),
        ({"version": None}, "version: is missing"),
        ({"version": 0}, "version: "),
        ({"plnas": {}}, "plnas: is not known here"),
        ({"default_plan": "hunter2"}, "default_plan: is none of the plans free, pro"),
        ({"plans": plans(pro={"credits": "hunter2"})}, "plans.pro: a plan's credits is not a decimal number"),
        ({"plans": plans(pro={"rollover": 0.5})}, "plans.pro: a plan's rollover must be a string"),
        ({"plans": plans(pro={"cycle": "hunter2"})}, "plans.pro.cycle: "),
        ({"plans": plans(pro={"zone": "Europe/Hunter2"})}, "plans.pro: "),
        ({"plans": plans(pro={"limits": {"tokens/fortnight": 5}})}, "plans.pro.limits.tokens/fortnight: limit window"),
        ({"plans": plans(pro={"limits": {"tokns/day": 5}})}, "plans.pro.limits.tokns/day: the unit must be one of"),
        ({"plans": plans(pro={"limits": 7})}, "plans.pro.limits: must be a table"),
        ({"plans": plans(pro={"top_up": {"below": "1", "amount": "9", "most": "5"}})}, "plans.pro.top_up: "),
        ({"plans": plans(pro={"top_up": {"below": "1"}})}, "plans.pro.top_up.amount: is missing"),
        ({"limits": {"credits/day": "hunter2"}}, "limits.credits/day: "),
        ({"limits": {"x": {"quantity": 5, "unit": "requests", "on_reach": "hunter2"}}}, "limits.x.on_reach: "),
        ({"meters": {"m": {}}}, "meters.m: charges nothing"),
        ({"prices": {"m": {"input": "hunter2", "output": "1"}}}, "prices.m"),
        ({"providers": {"p": {"dialects": ["hunter2"]}}}, "providers.p"),
    ],
)
def test_what_cannot_be_right_is_told_with_its_place_and_never_its_value(changes: dict[str, Any], place: str) -> None:
    """T32: secrets land in the wrong field."""
    with pytest.raises(CatalogueError) as error:
        read(catalogue(**changes))
    assert str(error.value).startswith(place)
    assert "unter2" not in str(error.value)
    with pytest.raises(ConfigurationError) as told:
        Lava("memory://", catalogue=catalogue(**changes))
    assert "unter2" not in str(told.value)


def test_what_can_be_meant_and_seldom_is_is_noted() -> None:
    notes = read(catalogue(plans=plans(pro={"meters": ["caht"]}, free={"credits": "0"}))).notes
    assert len(notes) == 2
    assert "caht" in notes[1]


# Putting it in force --------------------------------------------------------------------------------------------------


def test_a_change_reaches_those_on_the_plan_and_nobody_else(at: Callable[..., Lava], open_lava: Any) -> None:
    """Credits from the next cycle on, limits and overage at once; what is the customer's own stays."""
    clock = FrozenClock(int(datetime(2026, 1, 10, tzinfo=UTC).timestamp()) * 1_000_000)
    before = at(clock=clock)
    before.subscribe("acme", "pro")
    before.limit("acme", 9, "requests", window="minute")
    before.limit("acme", 3, "open_calls")
    before.subscribe("leaving", "pro")
    before.cancel("leaving")
    before.subscribe("small", "free")
    before.subscribe("special", "a deal of its own", credits="99")
    before.subscribe("gone", "pro")
    before.cancel("gone", at_cycle_end=False)
    changed = plans(pro={"credits": "30.00", "overage": "9.00", "limits": {"tokens/month": 5_000}, "top_up": None})
    changed["pro"].pop("top_up")
    lava = with_version(before, 4, plans=changed)
    dry = lava.apply_catalogue(dry_run=True)
    assert lava.balance("acme").available == Amount.of("25")
    done = lava.apply_catalogue()
    assert done == dry
    assert (done.changed, done.unchanged, done.others, done.without_plan, done.newer) == (2, 1, 1, 1, 0)
    again = lava.apply_catalogue()
    assert (again.changed, again.unchanged) == (0, 3)
    balance = lava.balance("acme")
    assert balance.available == Amount.of("29"), "20 included now, 9 beyond"
    limits = {one.name: one.quantity for one in balance.limits}
    assert limits == {"requests/minute": 9, "open_calls/lifetime": 3, "tokens/month": 5_000}
    assert lava.terms("acme").top_up is None
    clock.set(int(datetime(2026, 2, 10, tzinfo=UTC).timestamp()) * 1_000_000)
    assert lava.balance("acme").available == Amount.of("59"), "20 gone over, 30 included, 9 beyond"
    assert lava.balance("leaving").plan is None, "a cancellation survives"
    assert lava.balance("leaving").limits == ()
    for customer in ("acme", "leaving", "small", "special", "gone"):
        adds_up(lava, customer)


def test_a_rolling_deploy_with_two_catalogues(provider: FakeProvider, tmp_path: Path) -> None:
    """The older version never overwrites: neither by applying nor by a plan change; what is set by hand still works."""
    ledger = f"sqlite:///{tmp_path}/lava.db"
    newer = catalogue(4, plans=plans(pro={"credits": "30.00"}, free={"credits": "2.00"}))
    with lava_at(provider, ledger, catalogue=catalogue(3), prices=None) as old, client_of(provider) as client:
        old.subscribe("acme", "pro")
        with Lava(ledger, catalogue=newer) as new:
            assert new.apply_catalogue().changed == 1
            for _ in range(2):
                with pytest.raises(Conflict, match="version 4"):
                    old.apply_catalogue()
            with pytest.raises(Conflict, match="version 4"):
                old.subscribe("acme", "free")
            assert old.limit("acme", 5, "open_calls").plan == "pro"
            assert old.suspend("acme").suspended
            assert not new.resume("acme").suspended
            assert old.terms("acme") == new.terms("acme")
            assert new.terms("acme").catalogue == 4
            with old.charge_to("seen by the old one"):
                assert client.post(CHAT, json=chat()).status_code == 200
            assert new.terms("seen by the old one").catalogue == 3
            assert new.apply_catalogue().changed == 1
            plan = new.terms("seen by the old one").plan
            assert plan is not None
            assert Amount(plan.credits) == Amount.of("2")
            old.cancel("acme")
            assert new.terms_to_follow("acme") is not None


def test_versions_that_come_back_to_what_they_were_are_still_in_order(at: Callable[..., Lava]) -> None:
    """A, B, A again: whoever still has B does not put it in force again."""
    first = at(catalogue(1))
    first.subscribe("acme", "pro")
    assert with_version(first, 3).apply_catalogue().unchanged == 1
    with pytest.raises(Conflict):
        with_version(first, 2, plans=plans(pro={"credits": "7"})).apply_catalogue()


def test_customers_are_read_in_short_pages(at: Callable[..., Lava], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lava_middleware.credits.administration.PAGE", 3)
    lava = at()
    names = [f"c{number:02}" for number in range(10)]
    for name in names:
        lava.subscribe(name, "free")
    read_at_once: list[int] = []
    accounts = lava.journal.accounts

    def spy(**asked: Any) -> list[str]:
        page = accounts(**asked)
        read_at_once.append(len(page))
        return page

    monkeypatch.setattr(lava.journal, "accounts", spy, raising=False)
    assert list(lava.customers()) == names
    assert list(lava.customers(after="c07")) == ["c08", "c09"]
    assert max(read_at_once) == 3
    assert lava.apply_catalogue().unchanged == 10
    assert PAGE == 500
