"""Requests to providers through libraries that are not metered do not leave (T4)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from lava_middleware import Lava, Refused
from lava_middleware.testing import FakeProvider
from lava_middleware.transport.guards import unguard
from lava_middleware.transport.instrument import uninstrument


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


def lava_before(provider: FakeProvider, **settings: object) -> Lava:
    return Lava("sqlite:///:memory:", hosts={provider.host: ("openai",)}, **settings).instrument()


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    unguard()
    uninstrument()


def send_by_requests(provider: FakeProvider) -> int:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    return requests.post(f"{provider.openai_base_url}/chat/completions", json=body, timeout=5).status_code


def test_requests_is_refused_with_what_to_do_instead(provider: FakeProvider) -> None:
    with lava_before(provider) as lava, lava.charge_to("acme"), pytest.raises(Refused, match="httpx"):
        send_by_requests(provider)
    assert provider.count == 0


def test_what_is_unbilled_passes_and_is_counted(provider: FakeProvider) -> None:
    with lava_before(provider) as lava:
        with lava.unbilled("a health check"):
            assert send_by_requests(provider) == 200
        lava.close()
    assert provider.count == 1


@pytest.mark.parametrize("settings", [{"mode": "observe"}, {"unmetered": "pass"}])
def test_in_observe_and_by_policy_it_passes_and_is_counted(provider: FakeProvider, settings: dict[str, str]) -> None:
    with lava_before(provider, **settings) as lava:
        assert send_by_requests(provider) == 200
        lava._do_chores()
        assert [(reason, count) for _, reason, _, count in lava.journal.bumps()] == [
            (
                f"{'would_refuse' if 'mode' in settings else 'unmetered'}:endpoint_unmetered:openai through requests",
                1,
            )
        ]


def test_reading_and_other_hosts_pass(provider: FakeProvider) -> None:
    with lava_before(provider):
        assert requests.get(f"{provider.openai_base_url}/models", timeout=5).status_code == 200
    with Lava("sqlite:///:memory:").instrument():
        assert send_by_requests(provider) == 200
