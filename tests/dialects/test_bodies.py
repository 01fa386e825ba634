"""A body is kept by reference, parsed once at its end, and read at its ends when it is too large to keep."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from lava_middleware.dialects import body as machinery
from lava_middleware.dialects.anthropic_usage import left_out, overlaid
from lava_middleware.dialects.openai_usage import chat_usage

from .kit import BODIES, DIALECTS, body, figures, totals

CHAT, RESPONSES, MESSAGES = (DIALECTS[name] for name in ("openai.chat", "openai.responses", "anthropic.messages"))


def test_nothing_is_known_before_the_end() -> None:
    raw = (BODIES / "chat.json").read_bytes()
    meter = CHAT.body_meter()
    meter.feed(raw)
    assert (meter.reading, meter.finished) == (None, False)
    meter.end()
    once = figures(meter)
    meter.end()
    assert figures(meter) == once
    assert meter.finished


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_truncated_body_is_not_finished(cut: int) -> None:
    """T17."""
    meter = body(CHAT, [(BODIES / "chat.json").read_bytes()[:cut]])
    assert (meter.reading, meter.finished, meter.error) == (None, False, False)


def test_a_body_beyond_the_bound_is_read_at_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """T29: bodies are not kept without bound."""
    monkeypatch.setattr(machinery, "LARGEST_PARSED", 200_000)
    monkeypatch.setattr(machinery, "KEPT_TAIL", 50_000)
    meter = RESPONSES.body_meter()
    meter.feed(b'{"model":"gpt-image","output":["')
    tracemalloc.start()
    for _ in range(200):
        meter.feed(b"A" * 10_000)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_500_000
    meter.feed(b'"],"usage":{"input_tokens":5,"output_tokens":7,"total_tokens":12}}')
    meter.end()
    assert meter.reading is not None
    assert (meter.reading.input_tokens, meter.reading.output_tokens, meter.model) == (5, 7, "gpt-image")


@pytest.mark.parametrize("dialect", [CHAT, RESPONSES, MESSAGES])
def test_an_error_body_is_an_error(dialect: Any) -> None:
    raw = b'{"type":"error","error":{"message":"no","type":"invalid_request_error","code":"x"}}'
    meter = body(dialect, [raw])
    assert meter.error
    assert meter.reading is None


def test_a_stream_that_failed_answers_in_json_and_is_read_either_way() -> None:
    """A request for a stream that fails gets a JSON body, sometimes under the content type of a stream."""
    raw = b'{"error":{"message":"no","type":"invalid_request_error","code":"x"}}'
    assert not CHAT.is_stream("application/json; charset=utf-8")
    meter = CHAT.stream_meter(CHAT.read_request({"messages": []}, None), hide_usage=False)
    assert meter.split(raw) == []
    assert meter.take(meter.rest()) == raw
    assert meter.error


NINE_TWO = {"prompt_tokens": 9, "completion_tokens": 2}

# Spellings of usage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "want"),
    [
        ({**NINE_TWO, "total_tokens": 11}, (9, None, None, 2, None)),
        (
            {**NINE_TWO, "prompt_tokens_details": {"cached_tokens": 4}},
            (9, 4, None, 2, None),
        ),
        ({**NINE_TWO, "prompt_cache_hit_tokens": 5}, (9, 5, None, 2, None)),
        ({**NINE_TWO, "num_cached_tokens": 6}, (9, 6, None, 2, None)),
        ({**NINE_TWO, "cached_tokens": 7}, (9, 7, None, 2, None)),
        ({**NINE_TWO, "cache_read_input_tokens": 8}, (9, 8, None, 2, None)),
        (
            {**NINE_TWO, "prompt_token_details": {"cached_tokens": 3}},
            (9, 3, None, 2, None),
        ),
        ({**NINE_TWO, "cache_creation_input_tokens": 3}, (9, None, 3, 2, None)),
        ({**NINE_TWO, "reasoning_tokens": 1}, (9, None, None, 2, 1)),
        # beside the completion (xAI): the total knows
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "total_tokens": 16,
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            (9, None, None, 7, 5),
        ),
        # audio beside the prompt (Mistral)
        (
            {
                "prompt_tokens": 11,
                "completion_tokens": 15,
                "total_tokens": 401,
                "prompt_tokens_details": {"audio_tokens": 375},
            },
            (386, None, None, 15, None),
        ),
        # more cached than prompt, more reasoning than completion: evidence, not repaired here
        (
            {
                "prompt_tokens": 203,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 314},
                "completion_tokens_details": {"reasoning_tokens": 9},
            },
            (203, 314, None, 5, 9),
        ),
        (
            {"input_tokens": 4, "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 0}},
            (4, None, None, 3, 0),
        ),
        ({"total_tokens": 8}, (8, None, None, None, None)),
    ],
)
def test_spellings_of_one_figure(usage: dict[str, Any], want: tuple[int | None, ...]) -> None:
    """T21, T22."""
    found = totals(chat_usage(usage))
    assert found is not None
    assert tuple(found.values()) == want


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": None}, {"prompt_tokens": -5}, {"prompt_tokens": "9"}])
def test_unknown_is_not_zero(usage: dict[str, Any]) -> None:
    """T16."""
    assert chat_usage(usage) is None


def test_a_reported_cost_is_exact() -> None:
    """T24: parsed as a decimal from the bytes, rounded up to a tick; nothing where the customer's own key paid."""
    raw = b'{"usage":{"prompt_tokens":1,"completion_tokens":1,"cost":0.00012345678912}}'
    meter = body(CHAT, [raw])
    assert meter.reading is not None
    assert meter.reading.cost_ticks == 1_234_568
    own_key = body(CHAT, [raw.replace(b'"cost"', b'"is_byok":true,"cost"')])
    assert own_key.reading is not None
    assert own_key.reading.cost_ticks is None


# Anthropic's overlay and iterations ----------------------------------------------------------------------------------

START = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 300,
    "cache_read_input_tokens": 0,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 300},
    "output_tokens": 1,
}


def test_a_deltas_null_says_nothing() -> None:
    merged = overlaid(START, {"input_tokens": None, "output_tokens": 9})
    assert (merged["input_tokens"], merged["output_tokens"]) == (10, 9)
    assert merged["cache_creation"] == START["cache_creation"]


def test_a_stale_split_of_cache_writes_is_not_believed() -> None:
    """T21: all of it stays long-lived where all was; a mixed split is dropped unless the iterations have it."""
    assert overlaid(START, {"cache_creation_input_tokens": 900})["cache_creation"] == {
        "ephemeral_1h_input_tokens": 900,
        "ephemeral_5m_input_tokens": 0,
    }
    mixed = {**START, "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200}}
    assert overlaid(mixed, {"cache_creation_input_tokens": 900})["cache_creation"] == {}
    passes = [{"cache_creation": {"ephemeral_5m_input_tokens": 450, "ephemeral_1h_input_tokens": 0}}] * 2
    told = overlaid(mixed, {"cache_creation_input_tokens": 900, "iterations": passes})
    assert told["cache_creation"] == {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 900}


def one_pass(kind: str, incoming: int, outgoing: int, model: str | None = None) -> dict[str, Any]:
    return {"type": kind, "input_tokens": incoming, "output_tokens": outgoing} | ({"model": model} if model else {})


@pytest.mark.parametrize(
    ("top", "passes", "want"),
    [
        ((5, 3), [one_pass("message", 5, 3)], []),
        ((5, 3), [one_pass("compaction", 90, 20), one_pass("message", 5, 3)], [(None, 90, 20)]),
        (
            (5, 3),
            [one_pass("message", 2, 1), one_pass("advisor_message", 9, 9, "b"), one_pass("message", 3, 2)],
            [("b", 9, 9)],
        ),
        ((14, 12), [one_pass("message", 5, 3), one_pass("advisor_message", 9, 9, "b")], []),  # all of them at the top
        ((5, 3), [one_pass("message", 7, 1, "a"), one_pass("fallback_message", 5, 3, "b")], [("a", 7, 1)]),
        ((12, 4), [one_pass("message", 7, 1, "a"), one_pass("fallback_message", 5, 3, "b")], []),
        ((1, 1), [one_pass("compaction", 90, 20), one_pass("message", 5, 3)], [(None, 90, 20)]),  # adds up to nothing
    ],
)
def test_passes_that_the_top_level_leaves_out_are_found(top: Any, passes: Any, want: Any) -> None:
    """T21: one call, two models, two prices; what is in the top level already is not billed twice."""
    usage = {"input_tokens": top[0], "output_tokens": top[1], "iterations": passes}
    assert [(model, one.input_tokens, one.output_tokens) for model, one in left_out(usage)] == want


def test_large_bodies_are_not_copied_while_they_come() -> None:
    """T29: chunks are kept as they are."""
    meter = CHAT.body_meter()
    chunks = [bytes([65 + n % 26]) * 50_000 for n in range(40)]
    tracemalloc.start()
    for chunk in chunks:
        meter.feed(chunk)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10_000


def test_a_chat_body_of_several_choices_counts_them_all() -> None:
    choices = [{"message": {"content": "ab"}, "finish_reason": "stop"}, {"message": {"content": "cd"}}]
    meter = body(CHAT, [json.dumps({"choices": choices}).encode()])
    assert (meter.content.bytes, meter.content.parts) == (4, 2)
