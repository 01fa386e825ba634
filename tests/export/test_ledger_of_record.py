"""Records reach a second ledger by signed spans and by a follower, once each; nobody else's spans change anything."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from lava_middleware import ConfigurationError, Lava, LedgerUnavailable, Record
from lava_middleware.core.carry import carry
from lava_middleware.core.commands import Authorize, Post, Report, Settle
from lava_middleware.core.events import Settled
from lava_middleware.core.record import Facts, record_of
from lava_middleware.export import names
from lava_middleware.export.posting import post_to
from lava_middleware.export.signing import Signer
from lava_middleware.export.span import show
from lava_middleware.ledger.journal import JournalUnavailable
from lava_middleware.otel import LavaSpanExporter
from lava_middleware.testing import Script

from ..transport.rig import chat, rigged
from .conftest import eventually

KEY = "6f1c" * 16
OTHER_KEY = "b00c" * 16
OWN = {"seq", "balance_after", "debt", "posted"}
"""What each ledger says for itself: which of its grants paid, and in what order."""


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Lava]:
    """The ledger of record. Its customer has money there too."""
    with Lava(f"sqlite:///{tmp_path / 'record.db'}", tracing=False) as lava:
        lava.grant("acme", "1.00", key="first")
        yield lava


def made(name: str = "x1", charge: int = 14_814, customer: str = "acme", **facts: Any) -> Record:
    known = Facts(id=name, provider="openai", model="gpt-4o", usage={"input": 10, "output": 7}, basis="reported")
    for fact, value in facts.items():
        setattr(known, fact, value)
    record = record_of(
        Settled(hold=name, charge=charge), known.to_json(), customer=customer, at=7, seq=3, balance_after=0
    )
    assert record is not None
    return record


def span_of(record: Record, key: str | None = KEY, **limits: Any) -> ReadableSpan:
    """The billing span as a pipeline would hand it over."""
    spans = InMemorySpanExporter()
    provider = TracerProvider(span_limits=SpanLimits(**limits))
    provider.add_span_processor(SimpleSpanProcessor(spans))
    show(record, provider.get_tracer(names.SCOPE), signer=Signer(key) if key else None)
    (span,) = spans.get_finished_spans()
    return span


def altered(span: ReadableSpan, change: Mapping[str, Any]) -> ReadableSpan:
    """The same span with other attributes; None takes one away."""
    attributes = {name: value for name, value in {**(span.attributes or {}), **change}.items() if value is not None}
    return ReadableSpan(name=span.name, context=span.context, attributes=attributes, kind=SpanKind.INTERNAL)


def told(lava: Lava, customer: str = "acme") -> dict[str, dict[str, Any]]:
    """Its records by id, without what each ledger says for itself."""
    return {
        record.id: {name: value for name, value in record.to_dict().items() if name not in OWN}
        for record in lava.records(customer)
    }


def entries(lava: Lava) -> list[Any]:
    return [(one.account, one.version, one.key, one.event, one.record) for one in lava.journal.read(0, 10_000)]


# The exporter --------------------------------------------------------------------------------------------------------


def test_a_signed_span_is_posted_once_and_success_means_that_it_is_written(second: Lava) -> None:
    exporter = LavaSpanExporter(second, key=KEY)
    span = span_of(made())
    assert exporter.export([span]) is SpanExportResult.SUCCESS
    assert told(second) == {"x1": {k: v for k, v in made().to_dict().items() if k not in OWN}}
    assert second.balance("acme").available.ticks == 10**10 - 14_814
    before = entries(second)
    assert exporter.export([span, span]) is SpanExportResult.SUCCESS
    assert entries(second) == before
    assert exporter.counts == {"posted": 1, "repeated": 2}


def test_spans_of_others_pass_by(second: Lava) -> None:
    exporter = LavaSpanExporter(second, key=KEY)
    before = entries(second)
    assert exporter.export([ReadableSpan(name="chat gpt-4o", attributes={"gen_ai.usage.input_tokens": 3})]) is (
        SpanExportResult.SUCCESS
    )
    assert entries(second) == before
    assert not exporter.counts


FORGED = {
    "unsigned": lambda: span_of(made("forged"), None),
    "its signature taken away": lambda: altered(span_of(made("forged")), {names.SIGNATURE: None}),
    "an empty signature": lambda: altered(span_of(made("forged")), {names.SIGNATURE: ""}),
    "signed with another key": lambda: span_of(made("forged"), OTHER_KEY),
    "the signature of another record": lambda: altered(
        span_of(made("forged")), {names.SIGNATURE: (span_of(made("x1")).attributes or {})[names.SIGNATURE]}
    ),
    "a smaller charge": lambda: altered(
        span_of(made("forged")), {names.RECORD: carry(made("forged")).replace("14814", "14813")}
    ),
    "another customer": lambda: altered(
        span_of(made("forged")), {names.RECORD: carry(made("forged")).replace("acme", "evil")}
    ),
    "one more space": lambda: altered(span_of(made("forged")), {names.RECORD: carry(made("forged")) + " "}),
    "the record taken away": lambda: altered(span_of(made("forged")), {names.RECORD: None}),
    "attributes of other types": lambda: altered(span_of(made("forged")), {names.RECORD: 5, names.SIGNATURE: 7}),
    "cut to a length limit": lambda: span_of(made("forged"), max_span_attribute_length=100),
    "nonsense, signed": lambda: altered(
        span_of(made("forged")), {names.RECORD: "{}", names.SIGNATURE: Signer(KEY).sign("{}")}
    ),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_forged_unsigned_and_altered_spans_change_nothing(
    second: Lava, forge: Callable[[], ReadableSpan], caplog: pytest.LogCaptureFixture
) -> None:
    """They are counted, told once, and do not keep the good ones of their batch from being posted."""
    exporter = LavaSpanExporter(second, key=KEY)
    exporter.export([span_of(made("good"))])
    before = entries(second)
    forged = forge()
    with caplog.at_level(logging.DEBUG, "lava_middleware"):
        assert exporter.export([forged]) is SpanExportResult.SUCCESS
        assert entries(second) == before
        assert exporter.export([forged, span_of(made("good 2")), forged]) is SpanExportResult.SUCCESS
    assert set(told(second)) == {"good", "good 2"}
    refused = {name: count for name, count in exporter.counts.items() if name not in ("posted", "repeated")}
    assert sum(refused.values()) == 3
    (line,) = [one.getMessage() for one in caplog.records if one.name == "lava_middleware"]
    assert not [secret for secret in (KEY, "acme", "forged", "14814") if secret in line]


def test_what_is_only_shown_on_the_span_is_not_what_is_posted(second: Lava) -> None:
    """A processor that redacts, or somebody who embellishes, changes the picture and not the bill."""
    span = altered(span_of(made()), {names.CHARGED: 1, names.CUSTOMER_ID: "[redacted]", names.RECORD_ID: "another"})
    assert LavaSpanExporter(second, key=KEY).export([span]) is SpanExportResult.SUCCESS
    assert set(told(second)) == {"x1"}
    assert told(second)["x1"]["charge"] == "0.0000014814"


def test_a_signed_record_that_contradicts_what_is_there_changes_nothing(second: Lava) -> None:
    exporter = LavaSpanExporter(second, key=KEY)
    exporter.export([span_of(made())])
    before = entries(second)
    assert exporter.export([span_of(made(charge=99))]) is SpanExportResult.SUCCESS
    assert entries(second) == before
    assert exporter.counts["conflicting"] == 1


def test_receivers_side_by_side_post_every_record_once(tmp_path: Path) -> None:
    """T1, T15: the same spans at two ledgers' doors on one file, from four threads."""
    url = f"sqlite:///{tmp_path / 'record.db'}"
    exporters = [LavaSpanExporter(url, key=KEY) for _ in range(2)]
    spans = [span_of(made(f"x{number}", charge=100)) for number in range(50)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda number: exporters[number % 2].export(spans), range(4)))
    assert set(results) == {SpanExportResult.SUCCESS}
    assert sum(one.counts["posted"] for one in exporters) == 50
    assert sum(one.counts["repeated"] for one in exporters) == 150
    with Lava(url) as lava:
        assert len(told(lava)) == 50
        assert lava.balance("acme").available.ticks == -5_000
    for exporter in exporters:
        exporter.shutdown()


def test_spans_that_come_back_to_their_own_ledger_bill_nothing_twice(second: Lava) -> None:
    """T15: a pipeline wired in a circle."""
    owner = second.ledger.owner
    second.ledger.apply("acme", Authorize("h", owner, 500, 0, 0, 0, 0), record="{}").wait()
    second.ledger.apply("acme", Settle("h", 400, 1, 1), record=Facts(id="h").to_json()).wait()
    second.ledger.apply("acme", Report("r", 300), record=Facts(id="r").to_json()).wait()
    before = entries(second)
    exporter = LavaSpanExporter(second, key=KEY)
    assert exporter.export([span_of(record) for record in second.records("acme")]) is SpanExportResult.SUCCESS
    assert entries(second) == before
    assert exporter.counts == {"repeated": 2}


def test_it_fails_what_it_could_not_write_and_posts_it_when_it_comes_again(
    second: Lava, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SUCCESS only after commit."""
    exporter = LavaSpanExporter(second, key=KEY)
    span = span_of(made())

    def away(*_: object) -> Any:
        raise JournalUnavailable("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(type(second._opened), "append", away)
        assert exporter.export([span]) is SpanExportResult.FAILURE
    with monkeypatch.context() as broken:
        broken.setattr(type(second._opened), "sync", lambda self, timeout_s: False)
        assert exporter.export([span]) is SpanExportResult.FAILURE
    assert exporter.export([span]) is SpanExportResult.SUCCESS
    assert set(told(second)) == {"x1"}
    assert exporter.counts["held"] == 2


def test_a_newer_releases_record_is_held_and_the_others_are_posted(second: Lava) -> None:
    text = carry(made("newer")).replace('"form":1', '"form":2')
    newer = altered(span_of(made("newer")), {names.RECORD: text, names.SIGNATURE: Signer(KEY).sign(text)})
    exporter = LavaSpanExporter(second, key=KEY)
    assert exporter.export([newer, span_of(made())]) is SpanExportResult.FAILURE
    assert set(told(second)) == {"x1"}


def test_a_key_is_changed_in_two_steps_receivers_first(second: Lava) -> None:
    exporter = LavaSpanExporter(second, key=f"{OTHER_KEY},{KEY}")
    exporter.export([span_of(made("old"), KEY), span_of(made("new"), f"{OTHER_KEY},{KEY}")])
    assert set(told(second)) == {"old", "new"}


def test_it_opens_a_ledger_by_its_url_and_closes_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'record.db'}"
    exporter = LavaSpanExporter(url, key=KEY)
    assert exporter.export([span_of(made())]) is SpanExportResult.SUCCESS
    assert exporter.force_flush()
    exporter.shutdown()
    exporter.shutdown()
    assert exporter.export([span_of(made("late"))]) is SpanExportResult.FAILURE
    with Lava(url) as lava:
        assert set(told(lava)) == {"x1"}


def test_without_arguments_the_environment_says_which_ledger_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAVA_LEDGER", f"sqlite:///{tmp_path / 'record.db'}")
    monkeypatch.setenv("LAVA_SPAN_KEY", KEY)
    exporter = LavaSpanExporter()
    assert exporter.export([span_of(made())]) is SpanExportResult.SUCCESS
    exporter.shutdown()


@pytest.mark.parametrize("key", ["", "short", f"{KEY},short"])
def test_a_key_that_is_no_key_is_refused_and_not_repeated(key: str) -> None:
    """T32."""
    with pytest.raises(ConfigurationError) as raised:
        LavaSpanExporter("memory://", key=key)
    with pytest.raises(ConfigurationError) as also:
        Lava("memory://", span_key=key or "short")
    assert "openssl rand -hex 32" in str(raised.value)
    assert "at least 32 characters" in str(also.value)
    for text in (str(raised.value), str(also.value), repr(Signer(KEY))):
        assert KEY not in text


def test_a_ledger_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable):
        LavaSpanExporter(f"sqlite:///{tmp_path / 'no such directory' / 'record.db'}", key=KEY)


def test_a_wrong_signature_of_the_right_form_is_wrong() -> None:
    signer = Signer(KEY)
    right = signer.sign("text")
    assert signer.verify("text", right)
    for wrong in (right[:-1], right + "0", right.upper(), right[3:], "v1=", "", "ü", None, 5):
        assert not signer.verify("text", wrong)
    assert not signer.verify("texT", right)


# From one ledger to the other ----------------------------------------------------------------------------------------


def worked(lava: Lava, count: int, customer: str = "acme") -> None:
    """So many records of every kind, through the ledger's own commands."""
    owner = lava.ledger.owner
    for number in range(count):
        facts = Facts(
            id=f"h{number}", provider="openai", model="gpt-4o", usage={"input": number, "output": 2},
            basis="reported", cost=number, started=1_800_000_000_000_000 + number, user="u1", tags=(("team", "Ü"),),
        )  # fmt: skip
        if number % 10 == 9:
            lava.ledger.apply(customer, Report(facts.id, 300 + number), record=facts.to_json()).wait()
            continue
        lava.ledger.apply(customer, Authorize(facts.id, owner, 1_000, 0, 0, 0, 0), record=facts.to_json()).wait()
        if number % 10 == 8:  # expired, and then its owner is heard of after all: a refund
            lava.ledger.apply(customer, Settle(facts.id, 900, 1, 1, lost_owner=True), record=facts.to_json()).wait()
        charge = 1_200 if number % 10 == 7 else 100 + number
        settle = Settle(facts.id, charge, number, 2, cause="cap_ignored")
        lava.ledger.apply(customer, settle, record=facts.to_json()).wait()


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Lava]:
    with Lava(f"sqlite:///{tmp_path / 'lava.db'}", span_key=KEY, tracing=False) as lava:
        lava.grant("acme", "1.00", key="first")
        yield lava


def shown_by(provider: TracerProvider, lava: Lava) -> None:
    """What the telemetry follower does with every record."""
    for record in list(lava.records("acme"))[::-1]:
        show(record, provider.get_tracer(names.SCOPE), signer=Signer(KEY))


def test_records_that_come_by_an_ordinary_span_pipeline_equal_the_first_ledgers(first: Lava, second: Lava) -> None:
    worked(first, 100)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(LavaSpanExporter(second, key=KEY)))
    shown_by(provider, first)
    provider.shutdown()
    assert told(second) == told(first)
    assert len(told(first)) == 110
    assert {record.kind for record in second.records("acme")} == {"settled", "expired", "reported", "adjusted"}
    assert second.balance("acme").available == first.balance("acme").available


def test_in_any_order_they_come_to_the_same_balance(first: Lava, second: Lava, rng: Any) -> None:
    worked(first, 40)
    spans = [span_of(record) for record in first.records("acme")]
    rng.shuffle(spans)
    exporter = LavaSpanExporter(second, key=KEY)
    for span in spans + spans[:10]:
        assert exporter.export([span]) is SpanExportResult.SUCCESS
    assert told(second) == told(first)
    assert second.balance("acme").available == first.balance("acme").available


def test_under_1_percent_sampling_the_follower_fills_the_rest(tmp_path: Path, second: Lava) -> None:
    """G8: what spans lose comes by the journal, into the same ledger, and what they bring is not posted twice."""
    with Lava(f"sqlite:///{tmp_path / 'lava.db'}", tracing=False, exporters=(post_to(second),)) as lava:
        lava.grant("acme", "1.00", key="first")
        worked(lava, 100)
        provider = TracerProvider(sampler=sampling.TraceIdRatioBased(0.01), shutdown_on_exit=False)
        exporter = LavaSpanExporter(second, key=KEY)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        shown_by(provider, lava)
        provider.shutdown()
        assert exporter.counts["posted"] < 30
        lava.awake()
        eventually(lambda: len(told(second)) == 110)
        shown_by(provider, lava)
        assert told(second) == told(lava)
        assert second.balance("acme").available == lava.balance("acme").available


def test_spans_and_follower_at_once_post_everything_once(tmp_path: Path, second: Lava) -> None:
    with Lava(f"sqlite:///{tmp_path / 'lava.db'}", tracing=False, exporters=(post_to(second),)) as lava:
        lava.grant("acme", "1.00", key="first")
        lava.awake()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(LavaSpanExporter(second, key=KEY), schedule_delay_millis=5))
        for number in range(20):
            lava.ledger.apply("acme", Report(f"r{number}", 10), record=Facts(id=f"r{number}").to_json()).wait()
            shown_by(provider, lava)
        provider.shutdown()
        eventually(lambda: len(told(second)) == 20)
        assert told(second) == told(lava)
        assert second.balance("acme").available.ticks == 10**10 - 200


def test_the_setting_post_to_names_the_ledger_of_record(tmp_path: Path) -> None:
    record = f"sqlite:///{tmp_path / 'record.db'}"
    with Lava(f"sqlite:///{tmp_path / 'lava.db'}", post_to=record) as lava:
        lava.grant("acme", "1.00", key="first")
        worked(lava, 20)
        lava.awake()
        first = told(lava)
    with Lava(record) as second:
        assert told(second) == first
    with pytest.raises(ConfigurationError):
        Lava(record, post_to=record)
    with pytest.raises(ConfigurationError):
        Lava(record, post_to="memory://")


def test_while_the_ledger_of_record_is_away_calls_go_on_and_records_wait(tmp_path: Path) -> None:
    directory = tmp_path / "mounted later"
    with Lava(f"sqlite:///{tmp_path / 'lava.db'}", post_to=f"sqlite:///{directory / 'record.db'}") as lava:
        lava.grant("acme", "1.00", key="first")
        lava.awake()
        worked(lava, 5)
        directory.mkdir()
        eventually(lambda: not lava.journal.cursors() or lava.journal.cursor("ledger-of-record") > 0)
        first = told(lava)
    with Lava(f"sqlite:///{directory / 'record.db'}") as second:
        assert told(second) == first


def test_a_contradiction_becomes_a_dead_letter_and_the_rest_goes_on(tmp_path: Path, second: Lava) -> None:
    second.ledger.apply("acme", Post("h3", 77)).wait()
    with Lava(f"sqlite:///{tmp_path / 'lava.db'}", tracing=False, exporters=(post_to(second),)) as lava:
        lava.grant("acme", "1.00", key="first")
        worked(lava, 6)
        lava.awake()
        eventually(lambda: bool(lava.journal.dead_letters()))
        eventually(lambda: len(told(second)) == 6)
        (letter,) = lava.journal.dead_letters()
    assert letter[0] == "ledger-of-record"


def test_what_was_posted_here_is_not_shown_again(second: Lava, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dashboard that reads both processes would count it twice."""
    from lava_middleware.export import telemetry as module

    shown: list[str] = []
    monkeypatch.setattr(module, "spans_wanted", lambda: True)
    monkeypatch.setattr(module, "show", lambda record, *_: shown.append(record.id))
    LavaSpanExporter(second, key=KEY).export([span_of(made())])
    second.ledger.apply("acme", Report("own", 5), record=Facts(id="own").to_json()).wait()
    follower = module.telemetry()
    follower.start(second)
    follower.drain()
    follower.close()
    assert shown == ["own"]


def test_doctor_finds_nothing_wrong_with_a_ledger_of_record(first: Lava, second: Lava) -> None:
    from lava_middleware.ledger.audit import audit

    worked(first, 30)
    LavaSpanExporter(second, key=KEY).export([span_of(record) for record in first.records("acme")])
    found = audit(second.journal, second.clock())
    assert not found.differences
    assert found.charged == audit(first.journal, first.clock()).charged


PACKAGES = Path(sys.prefix) / "telemetry"


@pytest.mark.skipif(not PACKAGES.is_dir(), reason="OTLP's exporter is not installed: make test does that")
def test_records_that_come_over_otlp_equal_the_first_ledgers(tmp_path: Path) -> None:
    program = Path(__file__).with_name("otlp.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(PACKAGES)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    with Lava(f"sqlite:///{tmp_path / 'lava.db'}") as first, Lava(f"sqlite:///{tmp_path / 'record.db'}") as second:
        assert told(second) == told(first)
        assert len(told(first)) == 66


# Secrets -------------------------------------------------------------------------------------------------------------

CANARIES = ("sk-canary-key", "canary of the prompt", "canary of the answer", "canary-query", "canary-cookie")


def test_no_secret_of_an_exchange_is_on_a_signed_span_or_in_what_it_posts(
    second: Lava, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """T32: planted in every header, the body, the URL and the answer; searched in all spans, records, reprs, logs."""
    key, prompt, answer, query, cookie = CANARIES
    spans = InMemorySpanExporter()
    tracing = TracerProvider(shutdown_on_exit=False)
    exporter = LavaSpanExporter(second, key=KEY)
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracing)
    monkeypatch.setattr(trace, "get_tracer", tracing.get_tracer)
    headers = {"authorization": f"Bearer {key}", "x-api-key": key, "api-key": key, "cookie": cookie, "x-own": key}
    with (
        caplog.at_level(logging.DEBUG),
        rigged(Script(text=answer, headers={"set-cookie": cookie}), span_key=KEY) as rig,
    ):
        url = f"{rig.chat_url}?key={key}&trace={query}"
        with rig.lava.charge_to("acme"), httpx.Client(headers=headers) as client:
            for body in (
                chat(messages=[{"role": "user", "content": prompt}]),
                chat(messages=[{"role": "user", "content": prompt}], stream=True),
                chat(messages=[{"role": "user", "content": prompt}], max_tokens=10**9),
                chat(messages=[{"role": "user", "content": prompt}], user=key, metadata={"a": key}),
            ):
                client.post(url, json=body)
            rig.provider.queue(Script(status=401, error_message=f"no such key {key}"))
            client.post(url, json=chat())
            rig.provider.queue(Script(close_before_answer=True))
            with contextlib.suppress(httpx.TransportError):
                client.post(url, json=chat())
        rig.wait_settled()
        billed = len(list(rig.lava.records("acme")))
        eventually(lambda: exporter.counts["posted"] == billed)
        eventually(lambda: len([one for one in spans.get_finished_spans() if one.name != "lava.exchange"]) == 6)
        shown = [span.to_json() for span in spans.get_finished_spans()]
    assert billed >= 4
    texts = [*shown, *map(str, entries(second)), *map(repr, second.records("acme")), repr(exporter)]
    texts += [one.getMessage() for one in caplog.records if one.name.startswith(("lava_middleware", "opentelemetry"))]
    texts += [str(record.to_dict()) for record in second.records("acme")]
    for canary in (*CANARIES, KEY):
        assert not [text for text in texts if canary in text], canary
