"""An operator's server is told what happened to customers: signed, in order, at least once, with the same id."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

from lava_middleware import Lava
from lava_middleware.core.commands import Authorize, FailTopup, Grant, Report, SetTerms, Settle, StartTopup
from lava_middleware.core.money import TICKS_PER_CREDIT
from lava_middleware.core.terms import NO_TERMS, Limit, Plan, TopUp
from lava_middleware.errors import ConfigurationError
from lava_middleware.export import follower as following
from lava_middleware.export.follower import Follower, RetryLater
from lava_middleware.export.webhook import webhook
from lava_middleware.export.webhook_secret import Secrets
from lava_middleware.ledger.journal import Journal
from lava_middleware.ledger.ledger import Ledger

from .conftest import START, Host, eventually, post

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
CREDIT = TICKS_PER_CREDIT


class Posted(NamedTuple):
    id: str
    body: bytes
    headers: dict[str, str]

    @property
    def said(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.body)
        return said

    @property
    def type(self) -> str:
        return str(self.said["type"])


class Receiver:
    """A real server; `answers` are (status, headers) for the next posts, after which it says 204."""

    def __init__(self) -> None:
        self.posts: list[Posted] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.always: tuple[int, dict[str, str]] = (204, {})
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.posts.append(Posted(headers["webhook-id"], body, headers))
                status, more = receiver.answers.pop(0) if receiver.answers else receiver.always
                self.send_response(status)
                for name, value in {"content-length": "0", **more}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}/lava?token=hidden"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def types(self) -> list[str]:
        return [one.type for one in self.posts]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def follow(host: Host, receiver: Receiver, **settings: Any) -> Follower:
    made = webhook(receiver.url, SECRET, **settings)
    made.start(host)
    return made


def drain(host: Host, receiver: Receiver, **settings: Any) -> None:
    made = follow(host, receiver, **settings)
    try:
        made.drain()
    finally:
        made._finish()


def told(ledger: Ledger, *commands: Any, customer: str = "acme") -> None:
    for command in commands:
        assert ledger.apply(customer, command).wait(10).declined is None, command


# What is told ---------------------------------------------------------------------------------------------------------


def test_what_happens_to_a_customer_is_told_once_and_in_order(journal: Journal, receiver: Receiver) -> None:
    """T31: thresholds fire once for a window, durably."""
    ledger = Ledger(journal, clock=lambda: START)
    limit = Limit("tokens/month", "tokens", 1_000, thresholds=(80, 100))
    terms = NO_TERMS.with_limit(limit).changed(
        plan=Plan("pro", 5 * CREDIT), top_up=TopUp(CREDIT, 2 * CREDIT, 4 * CREDIT)
    )
    told(
        ledger,
        SetTerms(terms),
        Report("r1", CREDIT, 850, 0),
        Report("r2", 6 * CREDIT, 200, 0),
        Report("r3", 0, 900, 0),
        StartTopup("t1"),
        FailTopup("t1", "CardError"),
        Grant("g1", CREDIT),
        SetTerms(terms.changed(suspended=True)),
        SetTerms(terms.changed(suspended=True).with_limit(Limit("requests/day", "requests", 9, "day"))),
        SetTerms(replace(terms, version=9)),
        SetTerms(replace(terms, version=10, suspended=True)),
    )
    drain(Host(journal), receiver)
    assert receiver.types == [
        "cycle.begun",
        "limit.threshold_crossed",
        "debt.incurred",
        "limit.threshold_crossed",
        "top_up.started",
        "top_up.failed",
        "customer.suspended",
        "customer.suspended",
    ]
    crossed = [one.said["data"] for one in receiver.posts if one.type == "limit.threshold_crossed"]
    assert [(one["percent"], one["used"], one["quantity"], one["unit"]) for one in crossed] == [
        (80, 850, 1_000, "tokens"),
        (100, 1_050, 1_000, "tokens"),
    ]
    assert {one.said["data"]["customer"] for one in receiver.posts} == {"acme"}
    begun, debt = receiver.posts[0].said, receiver.posts[2].said
    assert (begun["data"]["plan"], begun["data"]["credits"]) == ("pro", "5.0000000000")
    assert begun["timestamp"].startswith("2027-01-15T08:00:00")
    assert begun["timestamp"].endswith("Z")
    assert (debt["data"]["debt"], debt["data"]["record"]) == ("2.0000000000", "r2")
    assert receiver.posts[4].said["data"]["amount"] == "2.0000000000"
    assert receiver.posts[5].said["data"]["reason"] == "CardError"
    ledger.close()


def test_overage_that_a_call_uses_after_its_plan_has_ended_is_told_too(journal: Journal, receiver: Receiver) -> None:
    """All `overage_used` that is told adds up to what there is to invoice."""
    ledger = Ledger(journal, clock=lambda: START)
    begun = NO_TERMS.changed(plan=Plan("pro", 5 * CREDIT, overage=5 * CREDIT))
    held = Authorize("h", "o", 8 * CREDIT, 0, 0, 0, 0)
    told(ledger, SetTerms(begun), Report("r1", CREDIT), held, SetTerms(begun.changed(plan=None)))
    told(ledger, Settle("h", 7 * CREDIT, 0, 0), Grant("g", CREDIT))
    drain(Host(journal), receiver)
    used = [(one.type, one.said["data"]["overage_used"]) for one in receiver.posts]
    assert used == [
        ("cycle.begun", "0.0000000000"),
        ("plan.ended", "0.0000000000"),
        ("overage.used", "3.0000000000"),
    ]
    ledger.close()


def test_a_restart_knows_who_was_suspended_already(journal: Journal, receiver: Receiver) -> None:
    ledger = Ledger(journal, clock=lambda: START)
    suspended = NO_TERMS.changed(suspended=True)
    told(ledger, SetTerms(suspended))
    drain(Host(journal), receiver)
    told(ledger, SetTerms(suspended.changed(top_up=TopUp(1, 2, 3))))
    drain(Host(journal), receiver)  # a new follower, as after a restart
    assert receiver.types == ["customer.suspended"]
    ledger.close()


def test_a_suspension_that_is_to_follow_is_told_when_it_does(journal: Journal, receiver: Receiver) -> None:
    now = START
    ledger = Ledger(journal, clock=lambda: now)
    told(ledger, SetTerms(NO_TERMS.changed(suspended=True), effective=START + 1_000_000))
    drain(Host(journal), receiver)
    assert receiver.types == []
    now = START + 2_000_000
    told(ledger, Grant("g", CREDIT))
    drain(Host(journal), receiver)
    assert receiver.types == ["customer.suspended"]
    ledger.close()


def test_usage_records_are_told_if_asked_for(host: Host, receiver: Receiver) -> None:
    post(host.journal, "r1", "r2")  # each of them is debt
    drain(host, receiver)
    assert receiver.types == ["debt.incurred"] * 2
    host.journal.save_cursor("webhook", 0)
    drain(host, receiver, records=True)
    assert receiver.types[2:] == ["debt.incurred", "usage.recorded"] * 2
    (record,) = [one.said["data"] for one in receiver.posts[2:] if one.said["data"].get("id") == "r1"]
    assert (record["model"], record["charge"], record["usage"]) == ("gpt-4o", "0.0000000005", {"input": 3})
    assert [one.id for one in receiver.posts[2::2]] == [one.id for one in receiver.posts[:2]]  # whoever sends it again
    assert len({one.id for one in receiver.posts}) == 4


def test_calls_and_grants_are_told_nobody(journal: Journal, receiver: Receiver) -> None:
    ledger = Ledger(journal)
    told(ledger, Grant("g", CREDIT), Authorize("h", ledger.owner, 5, 10, 0, 0, 0))
    ledger.close()
    drain(Host(journal), receiver)
    assert receiver.posts == []
    assert journal.cursor("webhook") == journal.last_seq()


# Signatures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret", "name", "timestamp", "body", "signature"),
    [  # the vector of Standard Webhooks' and Svix's own test suites
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            b'{"test": 2432232314}',
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        )
    ],
)
def test_the_signature_is_that_of_the_standard(
    secret: str, name: str, timestamp: int, body: bytes, signature: str
) -> None:
    assert Secrets(secret).sign(name, timestamp, body) == signature


def test_what_arrives_verifies_and_says_when_it_was_sent(host: Host, receiver: Receiver) -> None:
    post(host.journal, "r1", customer="ácme")
    drain(host, receiver)
    (posted,) = receiver.posts
    timestamp = posted.headers["webhook-timestamp"]
    assert abs(datetime.now(UTC).timestamp() - int(timestamp)) < 60  # not the entry's own time
    mac = hmac.new(KEY, f"{posted.id}.{timestamp}.".encode() + posted.body, hashlib.sha256).digest()
    assert posted.headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode()
    assert posted.headers["content-type"] == "application/json"
    assert "cme" not in posted.id
    assert posted.said["data"]["customer"] == "ácme"


def test_while_a_secret_is_changed_each_of_both_verifies() -> None:
    other = "whsec_" + base64.b64encode(bytes(24)).decode()
    both = Secrets(f"{SECRET}, {other}").sign("msg_1", 5, b"{}").split()
    assert both == [Secrets(SECRET).sign("msg_1", 5, b"{}"), Secrets(other).sign("msg_1", 5, b"{}")]


@pytest.mark.parametrize("secret", ["", "whsec_", SECRET.removeprefix("whsec_"), "whsec_c2hvcnQ=", "whsec_!!", "öä"])
def test_a_secret_that_cannot_be_one_is_refused_and_not_repeated(secret: str) -> None:
    """T32"""
    with pytest.raises(ValueError, match="openssl rand") as error:
        Secrets(secret)
    assert not secret or secret not in str(error.value).replace("whsec_$(", "").replace('"whsec_"', "")
    assert SECRET not in repr(Secrets(SECRET))


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 204, 409])
def test_what_was_taken_is_done(host: Host, receiver: Receiver, status: int) -> None:
    """T15: "I have that already" is success."""
    receiver.always = status, {}
    post(host.journal, "r1")
    drain(host, receiver)
    assert host.journal.cursor("webhook") == host.journal.last_seq()
    assert host.journal.dead_letters() == []


@pytest.mark.parametrize("status", [302, 401, 403, 404, 429, 500, 503])
def test_what_was_not_taken_is_held_and_what_went_before_is_not_repeated(
    host: Host, receiver: Receiver, status: int
) -> None:
    post(host.journal, "r1", "r2", "r3")
    receiver.answers = [(204, {}), (status, {"location": "/elsewhere"})]
    made = follow(host, receiver)
    with pytest.raises(RetryLater, match=str(status)):
        made.drain()
    assert host.journal.cursor("webhook") == 0
    made.drain()
    made._finish()
    assert [one.said["data"]["record"] for one in receiver.posts] == ["r1", "r2", "r2", "r3"]
    assert receiver.posts[1].id == receiver.posts[2].id
    assert host.journal.dead_letters() == []


def test_a_receiver_may_say_when_to_come_back(host: Host, receiver: Receiver) -> None:
    post(host.journal, "r1")
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    receiver.answers = [(429, {"retry-after": "7"}), (503, {"retry-after": soon}), (503, {"retry-after": "soon"})]
    made = follow(host, receiver)
    asked = []
    for _ in range(3):
        with pytest.raises(RetryLater) as error:
            made.drain()
        asked.append(error.value.retry_after_s)
    made._finish()
    assert asked[0] == 7
    assert asked[1] is not None
    assert 60 < asked[1] <= 90
    assert asked[2] is None


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_refused_for_good_becomes_a_dead_letter_and_the_rest_goes_on(
    host: Host, receiver: Receiver, status: int
) -> None:
    post(host.journal, "r1", "r2", "r3")

    class Picky(list[Any]):
        def __bool__(self) -> bool:
            return receiver.posts[-1].said["data"]["record"] == "r2"

        def pop(self, _: Any = 0) -> Any:
            return status, {}

    receiver.answers = Picky()
    drain(host, receiver)
    assert {one.said["data"]["record"] for one in receiver.posts} == {"r1", "r2", "r3"}
    assert [(name, seq) for name, seq, _ in host.journal.dead_letters()] == [("webhook", 2)]
    assert str(status) in host.journal.dead_letters()[0][2]
    assert host.journal.cursor("webhook") == host.journal.last_seq()


def test_a_receiver_that_is_gone_is_left_alone(
    host: Host, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("POLL_S", "IDLE_POLL_S", "UNWANTED_POLL_S", "BACKOFF_FIRST_S", "BACKOFF_MOST_S"):
        monkeypatch.setattr(following, name, 0.01)
    receiver.always = 410, {}
    post(host.journal, "r1")
    made = follow(host, receiver)
    made.wake()
    eventually(lambda: "410" in caplog.text)
    post(host.journal, "r2")
    made.close()
    assert len(receiver.posts) == 1
    assert host.journal.cursor("webhook") == 0  # a process that starts anew asks again
    assert "hidden" not in caplog.text


def test_a_receiver_that_is_away_costs_nothing_but_time(host: Host, receiver: Receiver) -> None:
    post(host.journal, "r1")
    receiver.close()
    made = follow(host, receiver)
    with pytest.raises(RetryLater, match="ConnectError") as error:
        made.drain()
    made._finish()
    assert "hidden" not in str(error.value)
    assert receiver.host not in str(error.value)


# As a setting ---------------------------------------------------------------------------------------------------------


def test_a_lava_posts_by_its_settings_past_its_own_instrumentation(receiver: Receiver) -> None:
    """Even where the receiver stands on a host that is metered, and a door of it that is not."""
    settings: dict[str, Any] = {"webhook_url": receiver.url, "webhook_secret": SECRET, "webhook_records": True}
    with Lava("memory://", hosts={receiver.host: "openai"}, **settings) as lava:
        lava.instrument()
        lava.report("acme", charge="0.50", request_id="doc-1")
        lava.awake()
        eventually(lambda: len(receiver.posts) == 2)
        assert receiver.types == ["debt.incurred", "usage.recorded"]
        assert SECRET not in repr(lava.settings)
        assert "hidden" not in repr(lava.settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"webhook_url": "https://example.com/lava"}, "belong together"),
        ({"webhook_secret": SECRET}, "belong together"),
        ({"webhook_url": "https://example.com/lava", "webhook_secret": "whsec_c2hvcnQ="}, "openssl rand"),
        ({"webhook_url": "ftp://example.com", "webhook_secret": SECRET}, "web address"),
    ],
)
def test_settings_that_cannot_work_are_told_at_once(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as error:
        Lava("memory://", **settings)
    assert "c2hvcnQ" not in str(error.value)
