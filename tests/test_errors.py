"""Refusals: one table, found behind whatever an SDK makes of them, saying whose fault it is and what to do."""

from __future__ import annotations

import copy
import pickle
import re
from datetime import UTC, datetime
from typing import Any

import anthropic
import groq
import httpx
import httpx2
import openai
import pytest

from lava_middleware import errors
from lava_middleware.core.money import Amount
from lava_middleware.errors import (
    EXTENSION,
    REASONS,
    Denied,
    InsufficientCredit,
    LavaError,
    LimitReached,
    NotBound,
    Refused,
    StreamCut,
    StreamStalled,
    denied,
    first_refusal,
    forget_what_was_said,
    refused,
)

SHORT = Denied("insufficient_credit", available=Amount.of("1.20"), required=Amount.of("2.00"))

STATUSES = {
    # design §8: reason → (what the SDK sees, what the client sees)
    "insufficient_credit": (402, 402),
    "request_exceeds_credit": (402, 402),
    "credit_on_hold": (402, 402),
    "limit_reached": (429, 429),
    "customer_suspended": (403, 403),
    "model_not_in_plan": (403, 403),
    "meter_not_in_plan": (403, 403),
    "run_ended": (403, 403),
    "customer_unknown": (403, 403),
    "price_unknown": (403, 403),
    "endpoint_unmetered": (403, 403),
    "request_unreadable": (400, 400),
    "request_ended": (403, 403),
    "ledger_unavailable": (429, 503),
}


def test_every_reason_is_answered_as_the_design_says() -> None:
    assert {name: (rule.outbound, rule.inbound) for name, rule in REASONS.items()} == STATUSES


@pytest.mark.parametrize("reason", REASONS)
def test_no_refusal_looks_to_an_sdk_like_something_to_retry(reason: str) -> None:
    """T13: 402 is final in every SDK; 408, 409 and 5xx are retried, and 429 is unless x-should-retry says no."""
    decision = Denied(reason, retry_after_s=3600)
    assert decision.outbound_status not in (408, 409)
    assert decision.outbound_status < 500
    assert decision.outbound_headers["x-should-retry"] == "false"


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_its_own_error_with_words_and_a_mend(reason: str) -> None:
    error = refused(Denied(reason))
    assert type(error).reason == reason
    assert type(error) is not Refused
    assert len(str(error)) > 20
    assert REASONS[reason].mend
    assert type(error).fault in ("customer", "application", "operator", "ledger")
    assert refused(error.denied).denied == error.denied


def test_every_error_is_drawn_in_the_tree() -> None:
    made = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, LavaError)]
    drawn = re.findall(r"^\W*([A-Z]\w+)", (errors.__doc__ or "").split("\n\n")[1], re.MULTILINE)
    assert sorted(drawn) == sorted(one.__name__ for one in made)


def test_a_reason_that_does_not_exist_is_a_programmers_error() -> None:
    with pytest.raises(ValueError, match="is not a reason"):
        Denied("no_such_reason")


def test_the_message_says_what_is_missing_and_what_to_do() -> None:
    error = refused(SHORT)
    assert isinstance(error, InsufficientCredit)
    assert str(error) == (
        '1.20 credits available, this request needs a hold of 2.00; add credit with lava.grant() or "lava grant"'
    )
    assert (error.available, error.required) == (Amount.of("1.20"), Amount.of("2.00"))


def test_a_limit_names_itself_its_use_and_its_reset() -> None:
    error = LimitReached(
        limit="tokens/month",
        unit="tokens",
        used=99_500,
        quantity=100_000,
        resets_at=datetime(2026, 12, 1, tzinfo=UTC),
        retry_after_s=518_400,
    )
    assert '"tokens/month"' in str(error)
    assert "99,500 of 100,000 tokens" in str(error)
    assert "2026-12-01T00:00:00+00:00" in str(error)
    assert error.denied.outbound_headers == {"x-should-retry": "false", "retry-after": "518400"}


@pytest.mark.parametrize(("seconds", "told"), [(None, "false"), (1, "true"), (10, "true"), (11, "false"), (0, "true")])
def test_an_sdk_may_repeat_a_limited_call_only_if_it_resets_within_seconds(seconds: int | None, told: str) -> None:
    """T13: a 429 with a truthful Retry-After."""
    headers = Denied("limit_reached", retry_after_s=seconds).outbound_headers
    assert headers["x-should-retry"] == told
    assert headers.get("retry-after") == (None if seconds is None else str(max(1, seconds)))


def test_no_retry_after_where_waiting_does_not_help() -> None:
    assert Denied("insufficient_credit", retry_after_s=5).retry_after is None


def test_what_would_fit_is_said() -> None:
    decision = Denied(
        "request_exceeds_credit", available=Amount.of("1"), required=Amount.of("2"), output_tokens_fit=1234
    )
    assert "1,234 tokens would fit" in decision.message


def test_the_unbound_are_told_of_the_likely_cause() -> None:
    """T6: absent is refused, and the usual cause is a thread pool."""
    error = NotBound()
    assert error.denied.absent
    assert "bind_context" in str(error)
    assert "run_in_executor" in str(error)
    assert isinstance(refused(error.denied), NotBound)


def test_facts_are_json_values_and_leave_amounts_out_on_request() -> None:
    decision = Denied(
        "limit_reached", available=Amount.of("1.5"), resets_at=datetime(2026, 12, 1, tzinfo=UTC), used=3, quantity=3
    )
    assert decision.facts() == {
        "available": "1.50",
        "used": 3,
        "quantity": 3,
        "resets_at": "2026-12-01T00:00:00+00:00",
    }
    assert "available" not in decision.facts(amounts=False)


def test_a_models_name_is_cut_and_made_printable() -> None:
    """T32: it comes from a request."""
    message = Denied("price_unknown", model="evil\x1b[31m" + "x" * 10_000).message
    assert "\x1b" not in message
    assert len(message) < 300


@pytest.mark.parametrize("error", [refused(SHORT), StreamCut(SHORT), StreamStalled(600.0), NotBound()])
def test_errors_survive_copying_and_pickling(error: LavaError) -> None:
    """They cross process pools."""
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.args == error.args


# The decision behind any exception ------------------------------------------------------------------------------------


def answer(library: Any, status: int = 402) -> Any:
    request = library.Request("POST", "https://api.example.com/v1/chat/completions")
    return library.Response(status, json={"error": {"message": "no"}}, request=request, extensions={EXTENSION: SHORT})


def sdk_error(sdk: Any, library: Any) -> BaseException:
    response = answer(library)
    error: BaseException = sdk.APIStatusError("no", response=response, body=None)
    return error


@pytest.mark.parametrize(
    "error", [sdk_error(openai, httpx2), sdk_error(anthropic, httpx2), sdk_error(groq, httpx)], ids=str
)
def test_it_is_found_behind_an_sdks_error(error: BaseException) -> None:
    assert denied(error) is SHORT


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_it_is_found_behind_raise_for_status(library: Any) -> None:
    with pytest.raises(library.HTTPStatusError) as raised:
        answer(library).raise_for_status()
    assert denied(raised.value) is SHORT


def wrap(*, deliberately: bool) -> None:
    try:
        raise sdk_error(openai, httpx2)
    except openai.APIStatusError as error:
        if deliberately:
            raise RuntimeError("wrapped") from error
        raise RuntimeError("wrapped")  # noqa: B904 - as many wrappers do


def test_it_is_found_behind_what_an_error_was_raised_from() -> None:
    with pytest.raises(RuntimeError) as wrapped:
        wrap(deliberately=True)
    assert denied(wrapped.value) is SHORT
    assert denied(wrapped.value, implied=False) is SHORT


def test_it_is_found_behind_what_was_being_handled() -> None:
    with pytest.raises(RuntimeError) as wrapped:
        wrap(deliberately=False)
    assert denied(wrapped.value) is SHORT
    assert denied(wrapped.value, implied=False) is None


def test_it_is_found_in_groups_within_groups() -> None:
    group = BaseExceptionGroup("outer", [KeyboardInterrupt(), ExceptionGroup("inner", [ValueError(), refused(SHORT)])])
    assert denied(group) is SHORT


def test_it_is_found_behind_a_raw_response() -> None:
    class SDKError(Exception):
        raw_response = answer(httpx)

    assert denied(SDKError()) is SHORT


def test_a_cut_streams_error_carries_it() -> None:
    assert denied(StreamCut(SHORT)) is SHORT


def test_circles_of_causes_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__context__ = two, one
    assert denied(one) is None


def test_an_error_that_has_nothing_to_do_with_it_yields_nothing() -> None:
    class Hostile(Exception):
        @property
        def response(self) -> Any:
            raise RuntimeError("no response")

    class Odd(Exception):
        response = "text"

    plain = openai.APIStatusError(
        "no", response=httpx2.Response(402, request=httpx2.Request("GET", "https://x")), body=None
    )
    for error in (Hostile(), Odd(), plain, httpx.ConnectError("no"), KeyboardInterrupt()):
        assert denied(error) is None


def test_the_first_refusal_of_a_process_is_logged_with_its_mend_and_the_others_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forget_what_was_said()
    first_refusal(SHORT)
    first_refusal(SHORT)
    first_refusal(Denied("limit_reached"))
    assert len(caplog.records) == 1
    assert "lava grant CUSTOMER" in caplog.text
    assert "insufficient_credit" in caplog.text


def test_every_mend_is_one_line() -> None:
    assert all("\n" not in rule.mend for rule in REASONS.values())
