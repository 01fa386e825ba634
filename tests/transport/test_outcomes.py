"""What is charged for an answer that cannot be read, how far a call without a cap may go, what closing leaves."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lava_middleware import AmountError, ConfigurationError, Lava, TermsError
from lava_middleware.core.events import Held
from lava_middleware.testing import Script

from .rig import CUSTOMER, EACH, MODEL, chat, claude, eventually, priced, rigged


def post(rig: Any, body: dict[str, Any], **more: Any) -> httpx2.Response:
    with httpx2.Client(timeout=10) as client, rig.lava.charge_to(CUSTOMER):
        return client.post(rig.chat_url, json=body, **more)


class TestAnswersNobodyRead:
    """T17: the provider has worked, and how much is not known: the policy for unknown outcomes, not zero output."""

    def unknown(self, rig: Any) -> None:
        record = rig.record
        assert record.basis == "estimated"
        (held,) = [event for event in rig.events() if isinstance(event, Held)]
        assert record.charge.ticks == held.expected > priced(200, 0).ticks, "a quarter of the cap of 1,000 is in it"

    def test_a_body_that_was_never_read(self) -> None:
        with rigged(Script(output_tokens=400)) as rig:
            with (
                httpx2.Client() as client,
                rig.lava.charge_to(CUSTOMER),
                client.stream("POST", rig.chat_url, json=chat(max_tokens=1_000)),
            ):
                pass
            self.unknown(rig)

    @pytest.mark.parametrize("body", [b'{"id": "chatcmpl-1", "choices": [{"mess', b"\x00\xff garbage"])
    def test_a_body_that_is_no_json(self, body: bytes) -> None:
        with rigged(Script(body=body)) as rig:
            assert post(rig, chat(max_tokens=1_000)).content == body
            self.unknown(rig)

    def test_a_body_in_an_unknown_encoding(self) -> None:
        with rigged(Script(headers={"content-encoding": "lava"})) as rig:
            post(rig, chat(max_tokens=1_000))
            self.unknown(rig)


def test_an_error_that_nobody_reads_costs_nothing_however_long_it_is_left() -> None:
    with rigged(Script(status=429)) as rig:
        with (
            httpx2.Client() as client,
            rig.lava.charge_to(CUSTOMER),
            client.stream("POST", rig.chat_url, json=chat(stream=True)) as response,
        ):
            assert response.status_code == 429
            rig.lava.monotonic = lambda: 10**9  # type: ignore[method-assign]
            rig.lava._do_chores()
            rig.wait_settled()
        assert rig.endings() == ["voided"]


class TestCallsWithoutACap:
    """T2: what was assumed of a call is written into it."""

    def test_a_model_of_unknown_length_is_capped_at_what_was_assumed(self) -> None:
        with rigged(Script(output_tokens=10), prices={"our-model": EACH}, credits="100.00") as rig:
            post(rig, {**chat(), "model": "our-model"})
            assert rig.served.cap == rig.held.output_tokens == 16_384

    def test_a_token_limit_caps_free_models_too(self) -> None:
        free = {MODEL: {"free": True}}
        with rigged(Script(output_tokens=900), prices=free) as rig:
            rig.lava.limit(CUSTOMER, 600)
            post(rig, chat())
            assert rig.served.cap == rig.held.output_tokens < 600
            assert rig.lava.balance(CUSTOMER).limits[0].used <= 600

    def test_clamp_never_leaves_the_request_as_it_is(self) -> None:
        with rigged(Script(output_tokens=10), clamp="never") as rig:
            post(rig, chat())
            assert rig.served.cap is None


def test_searches_are_held_for_as_often_as_the_request_allows() -> None:
    """T23."""
    tool = {"type": "web_search_20250305", "name": "web_search"}
    amounts = []
    for uses in (1, 50):
        with rigged(credits="50.00") as rig, httpx2.Client() as client, rig.lava.charge_to(CUSTOMER):
            body = claude(tools=[{**tool, "max_uses": uses}])
            client.post(f"{rig.provider.anthropic_base_url}/v1/messages", json=body)
            amounts.append(rig.held.amount)
    assert 49 * 10**8 <= amounts[1] - amounts[0] < 50 * 10**8, "a cent each, from the shipped list"


def test_half_a_surrogate_pair_stays_the_escape_that_the_application_wrote() -> None:
    """G7: the request is edited (usage is asked for), and what the edit does not touch stays valid."""
    body = json.dumps(chat(stream=True)).replace("ledger", "ledger \\\\ud83d".replace("\\\\", "\\"))
    seen: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.read())
        return httpx2.Response(200, json={})

    with (
        rigged(mode="observe") as rig,
        httpx2.Client(transport=httpx2.MockTransport(answer)) as client,
        rig.lava.charge_to(CUSTOMER),
    ):
        client.post(rig.chat_url, content=body, headers={"content-type": "application/json"})
    assert b"include_usage" in seen[0]
    assert json.loads(seen[0].decode("utf-8"))["messages"] == json.loads(body)["messages"]


def test_observe_settles_a_stalled_stream_and_lets_it_be_read_on() -> None:
    with rigged(Script(output_tokens=40), mode="observe") as rig:
        with (
            httpx2.Client() as client,
            rig.lava.charge_to(CUSTOMER),
            client.stream("POST", rig.chat_url, json=chat(stream=True)) as response,
        ):
            lines = response.iter_lines()
            first = next(lines)
            rig.lava.monotonic = lambda: 10**9  # type: ignore[method-assign]
            rig.lava._do_chores()
            rig.wait_settled()
            rest = list(lines)
        assert rig.endings() == ["settled"]
        assert first.startswith("data:")
        assert rest[-2:] == ["data: [DONE]", ""]


class TestClosing:
    def test_streams_that_are_open_when_lava_closes_are_settled_by_what_passed(self, tmp_path: Path) -> None:
        """T19."""
        ledger = f"sqlite:///{tmp_path / 'lava.db'}"
        with rigged(Script(output_tokens=40, stall_after=10), ledger=ledger) as rig:
            client = httpx2.Client()
            with rig.lava.charge_to(CUSTOMER):
                response = client.send(client.build_request("POST", rig.chat_url, json=chat(stream=True)), stream=True)
            lines = response.iter_lines()
            for _ in range(10):
                next(lines)
            rig.lava.close()
            response.close()
            client.close()
            gc.collect()
        with Lava(ledger) as again:
            (record,) = again.records(CUSTOMER)
            assert again.ledger.look(CUSTOMER).holds == {}
        assert (record.basis, record.facts["ending"]) == ("counted", "closing")

    def test_a_script_that_leaves_a_stream_open_settles_it_at_its_exit(self, tmp_path: Path) -> None:
        """T19, T36."""
        script = textwrap.dedent(
            f"""
            import httpx2
            from lava_middleware import Lava
            from lava_middleware.testing import FakeProvider, Script
            provider = FakeProvider(Script(output_tokens=40, stall_after=10))
            provider.start()
            lava = Lava("sqlite:///{tmp_path / "lava.db"}", hosts={{provider.host: "openai"}}).instrument()
            lava.grant("{CUSTOMER}", "5.00")
            client = httpx2.Client()
            with lava.charge_to("{CUSTOMER}"):
                request = client.build_request(
                    "POST", provider.openai_base_url + "/chat/completions", json={chat(stream=True)!r}
                )
                response = client.send(request, stream=True)
            lines = response.iter_lines()
            for _ in range(10):
                next(lines)
            """
        )
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True)
        with Lava(f"sqlite:///{tmp_path / 'lava.db'}") as again:
            (record,) = again.records(CUSTOMER)
        assert (record.basis, record.facts["ending"]) == ("counted", "exit")

    def test_what_cannot_be_configured_leaves_no_ledger_behind(self, tmp_path: Path) -> None:
        for wrong in ({"hosts": {"h": "nobody"}}, {"prices": {"m": {"input": "x", "output": "1"}}}):
            with pytest.raises(ConfigurationError):
                Lava(f"sqlite:///{tmp_path / 'lava.db'}", **wrong)
        assert list(tmp_path.iterdir()) == []

    def test_no_thread_starts_after_the_end(self) -> None:
        lava = Lava("sqlite:///:memory:")
        lava.close()
        lava.awake()
        eventually(lambda: not [one for one in threading.enumerate() if one.name.startswith("lava")])


def test_no_passed_request_is_lost_from_the_count_under_threads() -> None:
    with Lava("sqlite:///:memory:") as lava:

        def count() -> None:
            for _ in range(5_000):
                lava.count_passed("unbilled", "host")

        threads = [threading.Thread(target=count) for _ in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            lava._write_passed()
        lava._write_passed()
        assert sum(number for *_, number in lava.journal.bumps()) == 40_000


@pytest.mark.parametrize(
    "wrong", [{"priority": "high"}, {"priority": True}, {"expires": datetime(2020, 1, 1, tzinfo=UTC)}]
)
def test_a_grant_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with Lava("sqlite:///:memory:") as lava, pytest.raises(AmountError):
        lava.grant("acme", "1.00", **wrong)


def test_a_grant_must_expire_after_it_starts() -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    with Lava("sqlite:///:memory:") as lava, pytest.raises(AmountError):
        lava.grant("acme", "1.00", starts=tomorrow, expires=tomorrow)


@pytest.mark.parametrize("wrong", [{"zone": 5}, {"name": 5}, {"zone": "Mars/Olympus"}, {"window": "weak"}])
def test_a_limit_that_cannot_be_enforced_is_refused(wrong: dict[str, Any]) -> None:
    with Lava("sqlite:///:memory:") as lava, pytest.raises(TermsError):
        lava.limit("acme", 5, **wrong)
