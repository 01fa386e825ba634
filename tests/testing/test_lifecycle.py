"""The stand-in starts quickly, leaves nothing behind, and keeps no secrets."""

from __future__ import annotations

import gc
import threading
import time

import httpx2
import pytest

from lava_middleware.testing import Barrier, FakeProvider, Script, Served

from .asking import MESSAGES, chat


def _ask(provider: FakeProvider, **headers: str) -> httpx2.Response:
    return httpx2.post(f"{provider.openai_base_url}/chat/completions", json=chat(), headers=headers)


def test_it_starts_and_stops_within_50_ms() -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        with FakeProvider():
            times.append(time.perf_counter() - began)
    assert min(times) < 0.05


def test_it_leaves_no_thread_and_no_open_socket() -> None:
    before = threading.active_count()
    for _ in range(5):
        with FakeProvider() as provider:
            _ask(provider)
    gc.collect()  # An open socket would warn here, and warnings are errors.
    assert threading.active_count() == before


def test_it_stops_in_the_middle_of_everything() -> None:
    provider = FakeProvider(Script(stall_after=1))
    provider.start()
    client = httpx2.Client()
    sent = client.build_request("POST", f"{provider.openai_base_url}/chat/completions", json=chat(stream=True))
    answer = client.send(sent, stream=True)
    waiting = threading.Thread(target=_refused, args=(provider,))
    provider.default = Script(barrier=Barrier())
    waiting.start()
    provider.wait_until(lambda seen: seen.count == 2)
    provider.stop()
    provider.stop()
    waiting.join(5)
    assert not waiting.is_alive()
    answer.close()
    client.close()
    assert [served.state for served in provider.requests] == ["broken", "broken"]


def _refused(provider: FakeProvider) -> None:
    with pytest.raises(httpx2.TransportError):
        _ask(provider)


def test_it_can_be_started_again_on_the_same_port() -> None:
    provider = FakeProvider()
    with provider:
        first = provider.host
        _ask(provider)
    with provider:
        assert provider.host == first
        _ask(provider)
    assert provider.count == 2


def test_a_port_that_is_taken_is_an_error(provider: FakeProvider) -> None:
    with pytest.raises(OSError, match="in use"):
        FakeProvider(port=int(provider.host.split(":")[1])).start()


def test_a_reset_forgets_everything(provider: FakeProvider) -> None:
    provider.queue(Script(status=500))
    _ask(provider)
    provider.queue(Script(status=500))
    provider.reset()
    assert (provider.count, provider.served.requests) == (0, 0)
    assert _ask(provider).status_code == 200
    assert provider.requests[0].serial == 1


def test_no_key_and_no_prompt_is_kept(provider: FakeProvider) -> None:
    """T32"""
    _ask(provider, authorization="Bearer sk-very-secret")
    seen = repr(provider.requests) + repr(provider.__dict__)
    assert "sk-very-secret" not in seen
    assert MESSAGES[0]["content"] not in seen
    assert provider.requests[0].body is None


def test_bodies_are_kept_where_one_asks_for_them() -> None:
    with FakeProvider(keep_bodies=True) as provider:
        sent = _ask(provider).request.content
        (served,) = provider.requests
    assert served.body == sent
    assert MESSAGES[0]["content"] not in repr(served)


def test_thousands_of_requests_from_many_threads_are_all_counted(provider: FakeProvider) -> None:
    def ask() -> None:
        with httpx2.Client(base_url=provider.url) as client:
            for _ in range(250):
                assert client.post("/v1/chat/completions", json=chat(max_tokens=2)).status_code == 200

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (provider.count, provider.served.output_tokens) == (2000, 4000)
    assert [served.serial for served in provider.requests] == list(range(1, 2001))


def test_what_was_read_is_already_in_the_log(provider: FakeProvider) -> None:
    with httpx2.Client(base_url=provider.url) as client:
        for number in range(1, 200):
            client.post("/v1/chat/completions", json=chat(stream=bool(number % 2)))
            assert provider.requests[-1].state == "complete"
            assert provider.served.output_tokens == 40 * number


def test_an_error_in_the_users_own_function_reaches_his_test() -> None:
    def choose(served: Served) -> Script:
        raise LookupError(served.model)

    with pytest.raises(LookupError, match="gpt-4o-mini"), FakeProvider(choose) as provider:
        _refused(provider)
    provider.start()
    provider.stop()
