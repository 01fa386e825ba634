"""Django and Flask on the servers that people use, each a process of its own: who pays, and what the client sees."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import django
import httpx
import pytest

from lava_middleware.testing import Barrier, Script

from ..conftest import SOAK
from ..transport.rig import eventually
from .sites.served import SERVERS, Site, of, serving

FEW = 120


SERVED = [server for server in SERVERS if SOAK or server != "django-gunicorn-threads"]
"""The others of gunicorn have several threads in each of two workers."""


@pytest.fixture(scope="module", params=SERVED)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(request.param, tmp_path_factory.mktemp(request.param)) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    running.provider.reset()
    running.provider.default = Script(output_tokens=20)
    yield running
    running.provider.reset()
    running.provider.default = Script(output_tokens=20)


# Where the customer is known ------------------------------------------------------------------------------------------

KEPT = {
    # route → what it answers alice. Where a name of another is in it, the route itself said so.
    "/who/view": "alice",
    "/awho/view": "alice",
    "/who/bound-pool": "alice",
    "/who/bound-thread": "alice",
    "/body": "alice alice",
    "/two-accounts": "alice carol carol alice",
    "/identified": "dora dora",
}
KEPT_BY = {
    "django": {
        **KEPT,
        "/awho/to-thread": "alice",
        "/awho/sync-to-async": "alice",
        "/awho/task": "alice",
        "/awho/gather": "alice",
        "/abody": "alice alice",
        "/abody-of-a-sync-view": "alice alice",
        "/body-of-an-async-view": "alice alice",
        "/atwo-accounts": "alice carol carol alice",
        "/aidentified": "dora dora",
    },
    "flask": {**KEPT, "/body-with-context": "alice alice alice"},
}
LOST = {
    "django": ("/who/lost-pool", "/who/lost-thread", "/awho/lost-executor"),
    "flask": ("/who/lost-pool", "/who/lost-thread"),
}


def test_the_customer_is_known_wherever_the_requests_code_runs(site: Site) -> None:
    """T37: the body that is streamed too, after the view and its context are gone; frames of it stay open in it."""
    found = {route: site.client.get(route, headers=of("alice")).text for route in KEPT_BY[site.framework]}
    assert found == KEPT_BY[site.framework]


def test_a_thread_that_lost_the_context_is_refused_and_the_error_says_why(site: Site) -> None:
    """T6: never somebody else's account, and never free."""
    for route in LOST[site.framework]:
        answer = site.client.get(route, headers=of("alice"))
        assert (answer.status_code, answer.json()["code"]) == (403, "customer_unknown"), route
        assert answer.headers["content-type"] == "application/problem+json"
        assert "bind_context" not in answer.text  # the client is not told of the application's threads
    refused = site.client.get("/pool", headers=of("alice"))
    assert (refused.status_code, refused.json()["code"]) == (403, "customer_unknown")
    assert site.provider.count == 0
    assert "bind_context" in site.log.read_text()


def test_a_thread_that_served_somebody_serves_the_next_stranger_as_a_stranger(site: Site) -> None:
    """T6: a set without a reset leaked one customer into the next anonymous request on the same thread."""
    with ThreadPoolExecutor(8) as pool:
        for route in (*KEPT_BY[site.framework], *LOST[site.framework]):
            if "identified" in route:
                continue
            list(pool.map(lambda _: site.client.get(route, headers=of("alice")), range(8)))  # noqa: B023
            answers = list(pool.map(lambda _: site.client.get("/who/view"), range(8)))
            assert {answer.status_code for answer in answers} == {403}, route


# Header spoofing ------------------------------------------------------------------------------------------------------

NAMES = (
    *("X-Lava-Customer", "x-lava-customer", "X_Lava_Customer", "X_LAVA_CUSTOMER", "Lava-Customer", "X-User-Id"),
    *(
        "X-Forwarded-User",
        "Remote-User",
        "REMOTE_USER",
        "X-Remote-User",
        "HTTP_X_LAVA_CUSTOMER",
        "lava_middleware.binding",
    ),
)


def _get(url: str, path: str, headers: list[tuple[str, str]]) -> tuple[int, str]:
    """As written: names in their case, the same name as often as it is there."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    connection.putrequest("GET", path)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("times", [1, 2])
def test_a_clients_headers_are_never_an_identity(site: Site, times: int) -> None:
    """T6: doubled, underscored, in any case. Servers may refuse some of them; none may take them for a name."""
    for name in NAMES:
        for value in ("alice", "alice,bob"):
            status, text = _get(site.url, "/who/view", [(name, value)] * times)
            assert status in (400, 403), name
            assert "alice" not in text.replace(name, ""), name
    mixed = [("X-Lava-Customer", "bob"), ("X_Lava_Customer", "alice"), ("Cookie", "customer=alice; session=alice")]
    assert _get(site.url, "/who/view", mixed)[0] in (400, 403)


def test_a_clients_headers_do_not_change_an_identity_either(site: Site) -> None:
    """T6."""
    for name in NAMES:
        status, text = _get(site.url, "/who/view", [("Authorization", "Bearer token-of-bob"), (name, "alice")])
        assert (status, text) == (200, "bob") or status == 400, name


# Money ----------------------------------------------------------------------------------------------------------------


def test_a_streamed_call_is_billed_to_the_customer_of_its_request(site: Site) -> None:
    """G6: opened in the view, and opened in the body's own first step."""
    for route in (site.path("stream"), site.path("late"), "/ask"):
        before = len(site.records("alice")), len(site.records("bob"))
        answer = site.client.get(route, headers=of("bob"))
        assert answer.status_code == 200
        assert answer.text.count("data: ") == (0 if route == "/ask" else 20)
        records = site.records("bob")
        assert (len(site.records("alice")), len(records)) == (before[0], before[1] + 1)
        assert records[-1].usage.output_tokens == 20
        assert not records[-1].facts.get("after_request")


@pytest.mark.parametrize("route", ["ask", "stream"])
def test_a_customer_without_credit_gets_a_402_and_the_provider_no_call(site: Site, route: str) -> None:
    """T13."""
    said = len(site.log.read_text())
    answer = site.client.get("/ask" if route == "ask" else site.path("stream"), headers=of("brook"))
    assert (answer.status_code, answer.json()["code"]) == (402, "insufficient_credit")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert "brook" not in answer.text
    assert site.provider.count == 0
    assert "brook" not in site.log.read_text()[said:]
    assert "Traceback" not in site.log.read_text()[said:]


def test_a_refusal_in_the_first_step_of_a_body_is_a_402_under_wsgi_and_never_a_whole_answer(site: Site) -> None:
    """Django has begun the answer by then; plain WSGI and Flask have not."""
    try:
        answer = site.client.get(site.path("late"), headers=of("brook"))
    except httpx.RemoteProtocolError:
        assert site.framework == "django"
    else:
        assert answer.status_code == 402 if site.framework == "flask" else answer.status_code != 200 or not answer.text
    assert site.provider.count == 0


def test_another_error_is_the_servers_as_ever(site: Site) -> None:
    assert site.client.get("/mistake").status_code == 500
    assert "ZeroDivisionError" in site.log.read_text()


def test_the_client_has_an_event_while_the_provider_withholds_the_next(site: Site) -> None:
    """Nothing is buffered: the client itself lets the second event go."""
    confirmed = Barrier()
    site.provider.default = Script(output_tokens=5, confirm=confirmed, confirm_after=1)
    with site.client.stream("GET", site.path("stream"), headers=of("alice")) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert next(lines).startswith("data: ")
        assert site.provider.requests[0].chunks == 1
        confirmed.release()
        assert len(list(lines)) == 4


def test_a_client_that_leaves_is_billed_for_what_was_delivered(site: Site) -> None:
    """T17, T18: upstream is closed, and the customer pays for what arrived, not for nothing and not for ever."""
    if site.is_async and django.VERSION < (5,):
        pytest.skip("Django before 5.0 does not hear, under ASGI, that a client has left")
    site.provider.default = Script(endless=True, chunk_delay_s=0.002)
    before = len(site.records("alice"))
    where = urlsplit(site.url)
    with socket.create_connection((where.hostname, where.port or 80)) as client:
        client.sendall(
            f"GET {site.path('stream')} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token-of-alice\r\n\r\n".encode()
        )
        received = b""
        while received.count(b"data: ") < 40:
            piece = client.recv(65_536)
            assert piece, received
            received += piece
    site.provider.wait_idle()
    (served,) = site.provider.requests
    assert served.aborted_after is not None
    eventually(lambda: len(site.records("alice")) > before, 10)
    record = site.records("alice")[before]
    assert record.basis == "counted"
    # Counted, without a tokenizer, by a process that has learned nothing of the model yet.
    assert 30 <= record.usage.output_tokens <= 1.3 * served.output_tokens
    assert record.overrun_cause is None


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_requests_of_two_customers_at_once_never_cross(site: Site, soak_count: Callable[[int], int]) -> None:
    """T37, G6: each customer asks another model, so a record on the wrong account is seen."""
    models = {"alice": "gpt-4o-mini", "bob": "gpt-4.1-mini"}
    count = soak_count(10_000)
    count = FEW if count < 10_000 else count
    before = {name: len(site.records(name)) for name in models}
    routes = ("/ask", site.path("stream"), site.path("late"), "/who/view", "/body")

    def ask(number: int) -> tuple[str, set[str]]:
        name, route = ("alice", "bob")[number % 2], routes[number // 2 % len(routes)]
        answer = site.client.get(f"{route}?model={models[name]}", headers=of(name))
        assert answer.status_code == 200, (route, answer.text)
        return name, {*answer.text.split()} if route in ("/who/view", "/body") else {name}

    with ThreadPoolExecutor(16) as pool:
        assert all({name} == found for name, found in pool.map(ask, range(count)))
    calls = sum(1 for number in range(count) if number // 2 % len(routes) < 3)
    assert site.provider.count == calls
    for name, model in models.items():
        records = site.records(name)[before[name] :]
        assert len(records) == calls // 2
        assert {record.model for record in records} == {model}
