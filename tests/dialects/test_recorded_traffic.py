"""Every dialect agrees with an independent reader on recorded answers of real providers (../shared/corpus)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from lava_middleware.providers.row import Match
from lava_middleware.providers.rows import unlisted
from lava_middleware.providers.table import find, find_by_path

from .kit import TOTALS, read, stream

UNLISTED = Match(unlisted.OPENAI_FORMAT, None)
Corpus = Callable[[], list[dict[str, Any]]]


def match_of(one: dict[str, Any]) -> Match:
    """What its URL means: to us, or, where it went to a host of the recorder's own, by its path."""
    url = urlsplit(one["url"])
    return find(one["method"], url.netloc, url.path) or find_by_path(one["method"], url.path) or UNLISTED


def answers(corpus: Corpus, *, least_bytes: int = 0) -> list[tuple[dict[str, Any], Any, bytes, bool]]:
    """(exchange, dialect, body, streamed) of the generations that our dialects meter."""
    found = []
    for one in corpus():
        match = match_of(one)
        dialect = match.endpoint.dialect if match.endpoint is not None else None
        if dialect is None or one["kind"] != "generation":
            continue
        raw = one["response_body"].encode()
        streamed = one["response_status"] < 300 and dialect.is_stream(one["response_headers"].get("content-type", ""))
        if len(raw) >= least_bytes:
            found.append((one, dialect, raw, streamed))
    return found


def disagreement(expected: dict[str, Any], reading: dict[str, Any] | None) -> str | None:
    if not expected["has_usage"]:
        return None if reading is None else "figures where the provider reported none"
    if reading is None:
        return "no figures"
    for name in TOTALS:
        want, got = expected[name], reading[name]
        if got not in [want, *(expected["ambiguous"].get(name) or [])] and not (want is None and got in (None, 0)):
            return f"{name}: {got}, expected {want}"
    return None


def test_every_recorded_answer_gives_the_expected_totals(corpus: Corpus) -> None:
    """T21, T22: five totals a body."""
    wrong = []
    for one, dialect, raw, streamed in answers(corpus):
        found = read(dialect, raw, streamed=streamed)
        if (why := disagreement(one["expected"], found["reading"])) is not None:
            wrong.append((one["id"], why))
        if one["expected"]["model"]:
            assert found["model"] == one["expected"]["model"], one["id"]
        if streamed:
            assert found["finished"] is one["expected"]["stream_complete"], one["id"]
        assert found["error"] is bool(one["expected"]["error"]), one["id"]
    assert not wrong


def test_the_bound_is_never_below_what_was_said(corpus: Corpus) -> None:
    """What is not parsed yet counts by its bytes, so a stream is never paid for too late (T3)."""
    for one, dialect, raw, streamed in answers(corpus):
        if not streamed:
            continue
        lazy, eager = (dialect.stream_meter(intent_of(one, dialect), hide_usage=False) for _ in range(2))
        for event, _ in zip(lazy.split(raw), eager.split(raw), strict=True):
            lazy.take(event)
            eager.take(event)
            eager.measure()
            bound, extra = lazy.content_bound()
            assert bound.bytes >= eager.content.bytes, one["id"]
            assert bound.hundredths >= eager.content.hundredths, one["id"]
            assert bound.parts >= eager.content.parts, one["id"]
            assert extra >= eager.extra_tokens, one["id"]
        lazy.measure()
        assert (lazy.content.bytes, lazy.extra_tokens) == (eager.content.bytes, eager.extra_tokens)


def test_what_is_finished_says_nothing_new(corpus: Corpus) -> None:
    """An exchange is settled when its stream is finished, not when its bytes end: later figures would be lost."""
    for one, dialect, raw, streamed in answers(corpus):
        if not streamed:
            continue
        meter = dialect.stream_meter(intent_of(one, dialect), hide_usage=False)
        settled = None
        for event in meter.split(raw):
            meter.take(event)
            if meter.finished and settled is None:
                meter.measure()
                settled = meter.reading
        meter.take(meter.rest())
        meter.measure()
        assert settled is None or settled == meter.reading, one["id"]


def test_the_text_rule_is_close_to_what_providers_count(corpus: Corpus) -> None:
    """T16: answers without tool calls and reasoning, counted, against the reported output."""
    ratios = []
    for one, dialect, raw, streamed in answers(corpus):
        expected = one["expected"]
        if not streamed or (expected["output_tokens"] or 0) < 30 or expected["reasoning_tokens"]:
            continue
        meter, _ = stream(dialect, [raw])
        if not meter.extra_tokens:
            ratios.append((meter.content.hundredths / 100) / expected["output_tokens"])
    assert not ratios or 0.9 <= sorted(ratios)[len(ratios) // 2] <= 1.6


def intent_of(one: dict[str, Any], dialect: Any) -> Any:
    try:
        parsed = json.loads(one["request_body"])
    except (TypeError, ValueError):
        parsed = None
    return dialect.read_request(parsed, match_of(one).path_model)
