"""The life of an exchange: every event in every state, against the table of the design."""

from __future__ import annotations

import pytest

from lava_middleware.core.exchange import (
    ENDED_STATES,
    EVENTS,
    OPEN_STATES,
    SETTLE,
    TABLE,
    UNKNOWN,
    VOID,
    ImpossibleEvent,
    answer_to,
    follow,
)

ENDINGS = ("abandoned", "lost", "stalled")


@pytest.mark.parametrize("state", OPEN_STATES + ENDED_STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_every_event_in_every_state_is_decided_or_impossible(state: str, event: str) -> None:
    if state in ENDED_STATES:
        if event == "dispatched":
            with pytest.raises(ImpossibleEvent):
                follow(state, event)
        else:
            assert follow(state, event) == (state, None)
    elif event in TABLE[state]:
        following, told = follow(state, event)
        assert following in OPEN_STATES + ENDED_STATES
        assert (told is None) or following in ENDED_STATES
    else:
        with pytest.raises(ImpossibleEvent, match=state):
            follow(state, event)


def test_every_open_state_can_end_whatever_the_reader_does() -> None:
    """T9, T10: no state is a dead end for a reader that closes, cancels, is dropped or stalls."""
    for state in OPEN_STATES:
        for event in ENDINGS:
            assert event in TABLE[state]


def test_nothing_is_told_twice() -> None:
    """G2: a command is told on the way into an ended state, and ended states tell nothing."""
    for state in ENDED_STATES:
        for event in set(EVENTS) - {"dispatched"}:
            assert follow(state, event)[1] is None


def test_only_a_held_exchange_is_sent() -> None:
    """G1."""
    assert [state for state in OPEN_STATES if "dispatched" in TABLE[state]] == ["held"]


def test_a_hold_that_was_never_sent_costs_nothing() -> None:
    assert {TABLE["held"][event][1] for event in (*ENDINGS, "unsent")} == {VOID}


def test_a_cancel_while_the_authorize_is_on_its_way_gives_the_hold_back() -> None:
    """T45."""
    assert follow("new", "abandoned") == ("withdrawn", None)
    assert follow("withdrawn", "approved") == ("voided", VOID)


def test_sent_without_an_answer_is_an_unknown_outcome_and_metering_is_settled() -> None:
    """T17."""
    assert {TABLE["sent"][event][1] for event in ENDINGS} == {UNKNOWN}
    assert {TABLE["metering"][event][1] for event in (*ENDINGS, "finished", "declined", "unreachable")} == {SETTLE}


@pytest.mark.parametrize(
    ("event", "statuses"),
    [
        ("answered", (200, 201, 206)),
        ("rejected", (301, 307, 400, 401, 402, 404, 409, 422, 429, 500, 501, 503, 529)),
        ("lost", (408, 502, 504, 524)),
    ],
)
def test_a_status_says_whether_work_was_done(event: str, statuses: tuple[int, ...]) -> None:
    assert {answer_to(status) for status in statuses} == {event}
