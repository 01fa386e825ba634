"""A quote is what would happen if one called now: the same hold, the same refusal, and nothing is written. T33."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lava_middleware import Amount, Lava, NotBound, run
from lava_middleware.core.events import Held
from lava_middleware.errors import ConfigurationError
from lava_middleware.testing import FakeProvider, Script
from tests.faults.kit import CHAT, MODEL, chat, client_of, entries, events

from .kit import settled

METERS: dict[str, Any] = {
    "bulk": {"unit": "tokens", "tiers": [[0, "5.00"], [10_000, "50.00"]]},
    "each": {"rates": {"requests": "0.5"}},
    "free": {"billing": "meter_only"},
    "out": {"unit": "output_tokens", "tiers": [[0, "20.00"]]},
}
TEXT = "Tell me in your own words what a ledger is, and who may write in it."


def last_hold(lava: Lava) -> Amount:
    return Amount(next(one.amount for one in reversed(events(lava, "acme")) if isinstance(one, Held)))


@pytest.mark.parametrize("meter", [None, "bulk", "each", "free", "out"])
def test_the_bound_is_what_the_call_holds(open_lava: Any, provider: FakeProvider, meter: str | None) -> None:
    """To the tick, for a text that is weighed as the call's is."""
    lava = open_lava(meters=METERS)
    lava.grant("acme", "5")
    with client_of(provider) as client, lava.charge_to("acme", meter=meter):
        quote = lava.quote(model=MODEL, provider="openai", text=TEXT, output_tokens_max=300)
        assert client.post(CHAT, json=chat(300, text=TEXT)).status_code == 200
    assert quote.bound == last_hold(lava)
    assert (quote.affordable, quote.reason, quote.limit, quote.model) == (True, None, None, MODEL)


def test_a_quote_writes_nothing_and_is_of_whoever_pays_here(lava: Lava) -> None:
    lava.grant("acme", "5")
    before = len(entries(lava, "acme"))
    assert lava.quote("acme", model=MODEL, input_tokens=1000, output_tokens_max=10).available == Amount.of("5")
    assert not lava.quote("nobody", model=MODEL, input_tokens=1000).affordable
    assert asyncio.run(lava.aquote("acme", model=MODEL, input_tokens=1)).affordable
    assert len(entries(lava, "acme")) == before
    assert entries(lava, "nobody") == []
    with pytest.raises(NotBound):
        lava.quote(model=MODEL, input_tokens=1)


def test_what_is_not_affordable_says_why_and_how_much_would_fit(lava: Lava, provider: FakeProvider) -> None:
    lava.grant("acme", "0.0020")
    quote = lava.quote("acme", model=MODEL, provider="openai", text=TEXT, output_tokens_max=1000)
    assert (quote.affordable, quote.reason) == (False, "request_exceeds_credit")
    with client_of(provider) as client, lava.charge_to("acme"):
        assert client.post(CHAT, json=chat(quote.output_tokens_fit + 1, text=TEXT)).status_code == 402
        assert client.post(CHAT, json=chat(quote.output_tokens_fit, text=TEXT)).status_code == 200


@pytest.mark.parametrize("unit", ["tokens", "output_tokens", "credits", "requests"])
def test_the_binding_limit_is_named(lava: Lava, provider: FakeProvider, unit: str) -> None:
    lava.grant("acme", "5")
    lava.limit("acme", 1_000_000, "tokens", window="year")
    quantity: object = {"tokens": 500, "output_tokens": 500, "credits": "0.005", "requests": 0}[unit]
    lava.limit("acme", quantity, unit, window="day")
    quote = lava.quote("acme", model=MODEL, provider="openai", text=TEXT, output_tokens_max=900)
    assert (quote.affordable, quote.reason, quote.limit) == (False, "limit_reached", f"{unit}/day")
    with client_of(provider) as client, lava.charge_to("acme"):
        if unit != "requests":
            assert client.post(CHAT, json=chat(quote.output_tokens_fit, text=TEXT)).status_code == 200
        answer = client.post(CHAT, json=chat(900, text=TEXT))
        assert answer.json()["lava"]["limit"] == f"{unit}/day"


def test_a_runs_budget_counts_too(lava: Lava) -> None:
    lava.grant("acme", "5")
    with lava.charge_to("acme"), run("agent", credits="0.001") as work:
        quote = lava.quote(model=MODEL, input_tokens=10, output_tokens_max=1000)
    assert (quote.affordable, quote.reason, quote.limit) == (False, "limit_reached", f"run {work.id}")
    assert 0 < quote.output_tokens_fit < 100


def test_a_customer_who_is_suspended_can_afford_nothing(lava: Lava) -> None:
    lava.grant("acme", "5")
    lava.suspend("acme")
    quote = lava.quote("acme", model=MODEL, input_tokens=10, output_tokens_max=10)
    assert (quote.affordable, quote.reason, quote.steps_fit) == (False, "customer_suspended", 0)


def test_the_expected_cost_is_what_such_calls_have_cost(lava: Lava, provider: FakeProvider) -> None:
    lava.grant("acme", "5")
    untaught = lava.quote("acme", model=MODEL, provider="openai", text=TEXT, output_tokens_max=2000)
    assert not untaught.learned
    provider.queue(*[Script(output_tokens=100)] * 8)
    with client_of(provider) as client, lava.charge_to("acme"):
        for _ in range(8):
            client.post(CHAT, json=chat(2000, text=TEXT))
    settled(lava)
    taught = lava.quote("acme", model=MODEL, provider="openai", text=TEXT, output_tokens_max=2000)
    charge = next(lava.records("acme")).charge
    assert taught.learned
    assert abs(taught.expected.ticks - charge.ticks) < charge.ticks // 5
    assert taught.expected < untaught.expected <= untaught.bound


def test_a_model_without_calls_of_its_own_is_expected_to_answer_as_others_have(
    open_lava: Any, provider: FakeProvider
) -> None:
    """At most its own cap; before anything is known a quarter of that."""
    rates = {"input": "0", "output": "10", "output_tokens_max": 4000}
    lava: Lava = open_lava(prices={MODEL: {**rates, "context_tokens": 100_000}, "other-model": rates})
    lava.grant("acme", "5")

    def expected(cap: int | None) -> Amount:
        quote = lava.quote("acme", model="other-model", provider="openai", input_tokens=9, output_tokens_max=cap)
        assert not quote.learned
        return quote.expected

    assert [expected(None), expected(20)] == [Amount.of("0.01"), Amount.of("0.00005")]
    provider.queue(*[Script(output_tokens=length) for length in (50, 150)])
    with client_of(provider) as client, lava.charge_to("acme"):
        for _ in range(2):
            client.post(CHAT, json=chat(2000, text=TEXT))
    settled(lava)
    assert [expected(None), expected(20)] == [Amount.of("0.001"), Amount.of("0.0002")]


def test_where_a_providers_paths_have_prices_of_their_own_the_dearest_is_quoted(open_lava: Any) -> None:
    """Hugging Face's router reaches other providers by path, and a quote does not say by which."""
    dear = {"input": "3.00", "output": "7.00"}
    prices = {"huggingface-novita/fine": {"input": "1.00", "output": "1.00"}, "huggingface-together/fine": dear}
    lava = open_lava(prices=prices)
    lava.grant("acme", "5")
    quote = lava.quote("acme", model="fine", provider="huggingface", input_tokens=1000, output_tokens_max=1000)
    assert quote.bound == Amount.of("0.01")


@pytest.mark.parametrize("cap", ["credits", "tokens", "requests", "run", "meter"])
def test_so_many_steps_as_it_says_are_let_out_and_not_one_more(
    open_lava: Any, provider: FakeProvider, cap: str
) -> None:
    """By doing them: each costs what was expected, the last one still fits, the next one does not."""
    lava = open_lava(meters=METERS)
    lava.grant("acme", "0.02" if cap == "credits" else "5")
    with client_of(provider) as client, lava.charge_to("acme", meter="out" if cap == "meter" else None):
        provider.queue(*[Script(output_tokens=100)] * 400)
        if cap in ("tokens", "requests"):
            lava.limit("acme", {"tokens": 3_000, "requests": 11}[cap], cap)
        if cap == "meter":
            lava.limit("acme", "0.05", "credits")
        for _ in range(3):  # so that it is known what they cost
            client.post(CHAT, json=chat(150, text=TEXT))
        settled(lava)
        with run("agent", credits="0.015" if cap == "run" else None):
            quote = lava.quote(model=MODEL, provider="openai", text=TEXT, output_tokens_max=150)
            assert 5 < quote.steps_fit < 100
            statuses = []
            for _ in range(quote.steps_fit + 1):
                statuses.append(client.post(CHAT, json=chat(150, text=TEXT)).status_code)
    assert statuses[:-1] == [200] * quote.steps_fit
    assert statuses[-1] in (402, 429)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"model": MODEL}, "input_tokens, or of a text"),
        ({"model": MODEL, "input_tokens": 1, "text": "x"}, "one of them"),
        ({"model": MODEL, "input_tokens": -1}, "whole number"),
        ({"model": MODEL, "input_tokens": 1, "output_tokens_max": True}, "whole number"),
        ({"model": "unheard of", "input_tokens": 1}, "no price"),
        ({"model": MODEL, "input_tokens": 1, "provider": "unheard"}, "no provider"),
        ({"model": "", "input_tokens": 1}, "of a model"),
    ],
)
def test_a_question_without_an_answer_says_what_is_missing(lava: Lava, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        lava.quote("acme", **asked)
