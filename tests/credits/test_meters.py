"""What a customer is charged, where that is not cost × markup: through the real transport, and on the record."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from lava_middleware import Amount, ConfigurationError, Lava, bind_context
from lava_middleware.context import Binding, close_request, open_request
from lava_middleware.core.events import Held
from lava_middleware.testing import FakeProvider, Script
from tests.faults.kit import CHAT, MESSAGES, MODEL, chat, client_of, events

from .kit import adds_up, settled

TIERS = {"unit": "tokens", "tiers": [[0, "5.00"], [1_000_000, "3.00"], [10_000_000, "1.00"]]}


def charged(lava: Lava, provider: FakeProvider, meter: str | None, script: Script, *, stream: bool = False) -> Any:
    """The record of one call."""
    provider.queue(script)
    with client_of(provider) as client, lava.charge_to("acme", meter=meter):
        assert client.post(CHAT, json=chat(100, stream=stream)).status_code == 200
    settled(lava)
    return next(lava.records("acme"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("meter", "charge", "lines"),
    [
        ({"cost_times": "1.20"}, "0.00024", []),
        ({"rates": {"input": "3", "output": "15"}}, "0.00078", ["input", "output"]),
        (
            {"rates": {"input": "3", "cache_read": "0.30", "output": "15"}},
            "0.000672",
            ["input", "cache_read", "output"],
        ),
        ({"rates": {"tokens": "10"}}, "0.001", ["tokens"]),
        ({"rates": {"input_tokens": "10", "requests": "0.01"}}, "0.0106", ["input_tokens", "requests"]),
        ({"rates": {"requests": "0.5"}, "cost_times": "1"}, "0.5002", ["requests"]),
        ({"unit": "output_tokens", "tiers": [[0, "1000"]]}, "0.04", ["tier"]),
        ({"billing": "meter_only"}, "0", []),
    ],
)
def test_a_call_is_charged_by_its_meter_and_the_record_shows_the_lines(
    open_lava: Any, provider: FakeProvider, stream: bool, meter: dict[str, Any], charge: str, lines: list[str]
) -> None:
    """60 tokens in, of which 40 are of an earlier call where a rate for these is given, and 40 tokens out."""
    cheap = {"input": "0", "output": "5", "output_tokens_max": 4000, "context_tokens": 100_000}
    lava = open_lava(meters={"mine": meter}, prices={MODEL: cheap})
    lava.grant("acme", "5")
    cached = 40 if "cache_read" in meter.get("rates", {}) else 0
    script = Script(output_tokens=40, input_tokens=60, cached_tokens=cached)
    record = charged(lava, provider, "mine", script, stream=stream)
    assert record.cost == Amount.of("0.0002"), "what the provider takes does not change"
    assert record.charge == Amount.of(charge)
    assert [unit for unit, *_ in record.facts.get("charged", ())] == lines
    assert lava.balance("acme").balance == Amount.of("5") - Amount.of(charge)
    assert not record.overrun.ticks


def test_the_meter_is_the_one_that_is_named_else_the_first_that_applies(open_lava: Any, provider: FakeProvider) -> None:
    """By model, by provider, by the path of the inbound request; a name that no meter has is a label at cost."""
    lava = open_lava(
        meters={
            "mine": {"rates": {"requests": "0.01"}},
            "demo": {"billing": "meter_only", "routes": ["/demo*"]},
            "claude": {"rates": {"requests": "0.02"}, "providers": ["anthropic"]},
            "plain": {"rates": {"requests": "0.03"}, "models": ["plain-*"]},
        }
    )
    lava.grant("acme", "5")

    def meter_of(path: str = CHAT, model: str = MODEL, route: str = "", **frame: Any) -> tuple[str, str]:
        opened = open_request(Binding(lava, request_id="r", route=route)) if route else None
        with client_of(provider) as client, lava.charge_to("acme", **frame):
            assert client.post(path, json={**chat(50), "model": model}).status_code == 200
        if opened is not None:
            close_request(opened)
        settled(lava)
        record = next(lava.records("acme"))
        return record.facts.get("meter", ""), str(record.charge)

    assert meter_of() == ("plain", "0.03")
    assert meter_of(meter="mine") == ("mine", "0.01")
    assert meter_of(MESSAGES) == ("claude", "0.02")
    assert meter_of(route="/demo/1") == ("demo", "0.00")
    name, charge = meter_of(meter="a label")
    assert (name, charge) == ("a label", "0.03"), "a label on a call that is charged as it would be"


def test_a_request_that_straddles_tiers_is_charged_each_unit_at_its_own(open_lava: Any, provider: FakeProvider) -> None:
    """And was held at the dearest of them, so that its charge never exceeds its hold."""
    lava = open_lava(meters={"bulk": TIERS})
    lava.grant("acme", "100")
    lava.report("acme", meter="bulk", usage={"input": 999_900}, request_id="before")
    record = charged(lava, provider, "bulk", Script(output_tokens=50, input_tokens=80))
    assert record.facts["charged"] == [("tier", 100, 5 * 10**10), ("tier", 30, 3 * 10**10)]
    assert record.charge == Amount.of("0.00059")
    held = [one for one in events(lava, "acme") if isinstance(one, Held)][-1]
    assert held.amount >= record.charge.ticks
    assert not record.overrun.ticks
    adds_up(lava)


def test_a_call_that_nobody_answered_counts_in_the_tiers_as_it_was_charged(
    open_lava: Any, provider: FakeProvider
) -> None:
    """T9: as one of a process that died does."""
    lava = open_lava(meters={"calls": {"unit": "requests", "tiers": [[0, "0.10"], [1, "0.05"]]}})
    lava.grant("acme", "5")
    provider.queue(Script(close_before_answer=True))
    with client_of(provider) as client, lava.charge_to("acme", meter="calls"):
        with pytest.raises(httpx2.TransportError):
            client.post(CHAT, json=chat(100))
        settled(lava)
        (unknown,) = lava.records("acme")
        assert (unknown.basis, unknown.charge) == ("estimated", Amount.of("0.10"))
    assert charged(lava, provider, "calls", Script()).charge == Amount.of("0.05")
    adds_up(lava)


def test_calls_at_once_over_a_tiers_border_cost_together_what_one_would(open_lava: Any, provider: FakeProvider) -> None:
    """T1: counters advance in the order of the entries; streams and unary calls, twelve at a time, to the last digit.
    Here the price rises, which is where a hold at today's tier would be too small."""
    lava = open_lava(meters={"bulk": {"unit": "tokens", "tiers": [[0, "1.00"], [2_000, "5.00"], [4_000, "20.00"]]}})
    lava.grant("acme", "100")
    provider.queue(*[Script(output_tokens=60, input_tokens=40)] * 60)
    with client_of(provider) as client, lava.charge_to("acme", meter="bulk"), ThreadPoolExecutor(12) as pool:
        call = bind_context(lambda number: client.post(CHAT, json=chat(90, stream=number % 2 == 0)).status_code)
        assert set(pool.map(call, range(60))) == {200}
    settled(lava)
    records = list(lava.records("acme"))
    assert sum(record.usage.tokens for record in records) == 6_000
    assert sum(record.charge.ticks for record in records) == (2_000 * 1 + 2_000 * 5 + 2_000 * 20) * 10**4
    for record in records:
        assert not record.overrun.ticks or record.overrun_cause == "dearer_tier"
    adds_up(lava)


@pytest.mark.parametrize(
    ("meters", "place"),
    [
        ({"m": {}}, "m: charges nothing"),
        ({"m": {"rates": {"tokens": "1", "input": "1"}}}, "m: prices tokens twice"),
        ({"m": {"rates": {"input": 0.5}}}, "m.rates: a price must be a string"),
        ({"m": {"unit": "tokens", "tiers": [[5, "1"]]}}, "m: tiers must start at 0"),
        ({"m": {"unit": "tokens"}}, 'm: "unit" and "tiers"'),
        ({"m": {"rates": {"s": {"price": "1", "per": 3}}}}, "m.rates: a price must be a whole number"),
        ({"m": {"cost_tims": "1"}}, "m.cost_tims"),
        ({"m|n": {"cost_times": "1"}}, "must be 1 to 64 printable"),
        (7, "path of a file"),
    ],
)
def test_meters_that_cannot_be_right_are_told_with_their_place(meters: Any, place: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Lava("memory://", meters=meters)
    assert place in str(error.value)
