"""Limits: any unit, per customer or scope, in any window; several at once, all or none (T12)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lava_middleware.core.commands import Authorize, Extend, Report, SetTerms, Settle, Void
from lava_middleware.core.decide import Conflict, Declined
from lava_middleware.core.events import Adjusted, Crossed, Cycled, Extended, Held, Reported, Settled
from lava_middleware.core.terms import NO_TERMS, Limit, Plan, Terms, TermsError, terms_data, terms_from

from .history import CREDIT, History, granted, moment

DAY = 86_400_000_000
PRICE = 10 * CREDIT
"""Credits per million output tokens: a hundred thousand tokens are one credit."""


def limited(*limits: Limit, plan: Plan | None = None, start: str = "2026-09-10 12:00") -> History:
    return History(moment(start)).given(granted(1_000), SetTerms(Terms(1, limits, plan)))


def ask(hold: str, tokens: int = 100, least: int | None = None, **more: Any) -> Authorize:
    """So many input tokens and as many output tokens at most."""
    return Authorize(hold, "o", 0, tokens, PRICE, tokens, tokens if least is None else least, **more)


def change(history: History, *limits: Limit) -> History:
    return history.given(SetTerms(history.account.terms.changed(limits=limits)))


def declined(history: History, command: Any) -> Declined:
    answer = history.ask(command)
    assert isinstance(answer, Declined)
    return answer


# Units ----------------------------------------------------------------------------------------------------------------

CALL = {"fixed": 5, "input_tokens": 30, "output_tokens": 20, "output_tokens_min": 20}


@pytest.mark.parametrize(
    ("unit", "held", "used"),
    [
        ("tokens", 50, 17),
        ("input_tokens", 30, 10),
        ("output_tokens", 20, 7),
        ("requests", 1, 1),
        ("credits", 5 + 200_000 * 10, 123),
        ("characters", 900, 800),
        ("seconds", 60, 59),
        ("pages", 3, 2),
        ("open_calls", 1, 0),
    ],
)
def test_each_unit_holds_what_a_call_may_take_and_counts_what_it_took(unit: str, held: int, used: int) -> None:
    window = "lifetime" if unit == "open_calls" else "month"
    name = "ever" if unit == "open_calls" else "2026-09"
    history = limited(Limit("l", unit, 10 * CREDIT, window))
    command = Authorize(
        "h", "o", output_price=10**6 * 10**6 // 10, units=(("characters", 900), ("seconds", 60), ("pages", 3)), **CALL
    )
    event = history.event(command)
    assert isinstance(event, Held)
    counter = history.account.counters["l", name]
    assert (counter.held, counter.used) == (held, 0)
    settle = Settle("h", 123, 10, 7, units=(("characters", 800), ("seconds", 59), ("pages", 2)))
    history.given(settle)
    counter = history.account.counters["l", name]
    assert (counter.held, counter.used, counter.over) == (0, used, 0)


@pytest.mark.parametrize("unit", ["tokens", "input_tokens", "output_tokens", "requests", "credits", "characters"])
def test_a_full_limit_refuses_the_next_call_and_not_one_unit_earlier(unit: str) -> None:
    history = limited(Limit("l", unit, 10))
    each = {"fixed": 0, "input_tokens": 0, "output_price": 0, "output_tokens": 0, "output_tokens_min": 0}
    each |= {"input_tokens": {"input_tokens": 1}, "tokens": {"input_tokens": 1}, "credits": {"fixed": 1}}.get(unit, {})
    each |= {"output_tokens": 1, "output_tokens_min": 1} if unit == "output_tokens" else {}
    units = (("characters", 1),) if unit == "characters" else ()
    for number in range(10):
        assert isinstance(history.event(Authorize(f"h{number}", "o", units=units, **each)), Held)
    answer = declined(history, Authorize("more", "o", units=units, **each))
    assert (answer.reason, answer.limit, answer.unit, answer.used, answer.quantity) == (
        "limit_reached",
        "l",
        unit,
        10,
        10,
    )
    assert answer.resets_at == moment("2026-10-01 00:00")
    assert answer.waitable


def test_open_calls_are_counted_while_they_are_open() -> None:
    history = limited(Limit("two", "open_calls", 2, "lifetime")).given(ask("a"), ask("b"))
    answer = declined(history, ask("c"))
    assert (answer.limit, answer.used, answer.resets_at, answer.waitable) == ("two", 2, None, True)
    history.given(Settle("a", 1, 1, 1))
    assert isinstance(history.event(ask("c")), Held)
    assert isinstance(declined(history, ask("d")), Declined)
    history.given(Void("b", "rejected"))
    assert isinstance(history.event(ask("d")), Held)


def test_a_void_gives_back_what_every_limit_had_counted() -> None:
    history = limited(Limit("r", "requests", 1), Limit("t", "tokens", 200)).given(ask("a"), Void("a", "unsent"))
    assert all((one.used, one.held) == (0, 0) for one in history.account.counters.values())
    assert isinstance(history.event(ask("b")), Held)


def test_a_limit_of_credits_counts_charges_overruns_included() -> None:
    history = limited(Limit("day", "credits", 3 * CREDIT, "day"))
    call = Authorize("h", "o", CREDIT, 0, 0, 0, 0)
    history.given(call, Settle("h", 4 * CREDIT, 0, 0, "cap_ignored"))
    counter = history.account.counters["day", "2026-09-10"]
    assert (counter.used, counter.over) == (4 * CREDIT, 3 * CREDIT)
    answer = declined(history, replace(call, hold="next"))
    assert (answer.limit, answer.waitable, answer.resets_at) == ("day", False, moment("2026-09-11 00:00"))


def test_a_call_that_can_be_made_smaller_fits_into_the_smallest_of_its_limits() -> None:
    history = limited(Limit("t", "tokens", 1_000), Limit("o", "output_tokens", 300), Limit("c", "credits", 2_000_000))
    held = history.event(ask("h", 400, least=1))
    assert isinstance(held, Held)
    assert held.output_tokens == 20, "two million ticks at a hundred thousand each"


# Scopes ---------------------------------------------------------------------------------------------------------------


class TestScopes:
    def test_a_limit_of_a_model_counts_only_that_model(self) -> None:
        history = limited(Limit("l", "requests", 1, of=(("model", "gpt-4o"),)))
        mini, big = (("model", "gpt-4o-mini"), ("user", "u")), (("model", "gpt-4o"), ("user", "u"))
        for number in range(3):
            assert isinstance(history.event(ask(f"m{number}", scopes=mini)), Held)
        assert isinstance(history.event(ask("b", scopes=big)), Held)
        assert declined(history, ask("c", scopes=big)).limit == "l"
        assert isinstance(history.event(ask("d")), Held), "what says no model is not of that model"

    def test_several_scopes_must_all_be_there(self) -> None:
        history = limited(Limit("l", "requests", 0, of=(("model", "m"), ("user", "u"))))
        assert isinstance(history.event(ask("a", scopes=(("model", "m"), ("user", "other")))), Held)
        assert declined(history, ask("b", scopes=(("model", "m"), ("tag", "t"), ("user", "u")))).limit == "l"

    def test_per_counts_each_value_by_itself(self) -> None:
        history = limited(Limit("each", "requests", 1, "day", per="user"))
        for user in ("u1", "u2", "u|3"):
            assert isinstance(history.event(ask(user, scopes=(("user", user),))), Held)
        assert declined(history, ask("more", scopes=(("user", "u2"),))).used == 1
        assert isinstance(history.event(ask("nobody")), Held), "without a user there is nothing to count by"
        history.at(moment("2026-09-11 00:00"))
        assert isinstance(history.event(ask("tomorrow", scopes=(("user", "u2"),))), Held)

    def test_of_and_per_together(self) -> None:
        history = limited(Limit("l", "requests", 1, of=(("model", "m"),), per="user"))
        scopes = (("model", "m"), ("user", "u"))
        history.given(ask("a", scopes=scopes))
        assert isinstance(declined(history, ask("b", scopes=scopes)), Declined)
        assert isinstance(history.event(ask("c", scopes=(("model", "m"), ("user", "v")))), Held)
        assert isinstance(history.event(ask("d", scopes=(("model", "n"), ("user", "u")))), Held)

    def test_a_stream_is_extended_in_the_scopes_of_its_hold(self) -> None:
        history = limited(Limit("l", "output_tokens", 100, of=(("model", "m"),)))
        history.given(Authorize("a", "o", 0, 0, PRICE, 64, 32, grows=True, scopes=(("model", "m"),)))
        history.given(Authorize("b", "o", 0, 0, PRICE, 64, 32, grows=True))
        assert history.event(Extend("a", PRICE, 1_000, 64)).output_tokens == 32  # type: ignore[union-attr]
        assert history.event(Extend("a", PRICE, 1_000, 64)).output_tokens == 4  # type: ignore[union-attr]
        assert declined(history, Extend("a", PRICE, 1_000, 64)).limit == "l"
        assert isinstance(history.event(Extend("b", PRICE, 1_000, 64)), Extended)


# Windows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "reset"),
    [
        ("minute", "2026-09-10 12:01"),
        ("hour", "2026-09-10 13:00"),
        ("day", "2026-09-11 00:00"),
        ("week", "2026-09-14 00:00"),
        ("month", "2026-10-01 00:00"),
        ("year", "2027-01-01 00:00"),
        ("cycle", "2026-10-01 00:00"),
    ],
)
def test_each_window_resets_by_itself_and_the_refusal_says_when(window: str, reset: str) -> None:
    history = limited(Limit("l", "requests", 1, window)).given(ask("a"), Settle("a", 1, 1, 1))
    assert declined(history, ask("b")).resets_at == moment(reset)
    history.at(moment(reset) - 2)
    assert isinstance(declined(history, ask("b")), Declined), "not a microsecond earlier"
    assert isinstance(history.event(ask("b")), Held)


def test_a_lifetime_limit_never_resets() -> None:
    history = limited(Limit("l", "requests", 1, "lifetime")).given(ask("a"), Settle("a", 1, 1, 1))
    assert declined(history.at(moment("2036-01-01 00:00")), ask("b")).resets_at is None


def test_a_limit_per_billing_cycle_follows_the_plans_cycle() -> None:
    plan = Plan("p", CREDIT, anchor="2026-01-31")
    history = limited(Limit("l", "requests", 1, "cycle"), plan=plan, start="2026-09-29 12:00")
    history.given(ask("a"), Settle("a", 1, 1, 1))
    assert declined(history, ask("b")).resets_at == moment("2026-09-30 00:00")
    assert isinstance(history.at(moment("2026-09-30 00:00")).event(ask("b")), Held)


def test_a_limit_per_billing_cycle_goes_on_where_a_longer_cycle_begins_on_the_same_day() -> None:
    """A day and the week that begins on it have one name; the counter does not leave with the day."""
    of = (("model", "small"),)
    limits = Limit("l", "requests", 1, "cycle", of=of), Limit("hourly", "requests", 9, "hour")
    history = limited(*limits, plan=Plan("trial", CREDIT, "day"), start="2026-09-21 10:00")
    history.given(ask("a", scopes=of), Settle("a", 1, 1, 1))
    history.given(SetTerms(history.account.terms.changed(plan=Plan("pro", CREDIT, "week"))))
    history.at(moment("2026-09-23 10:00")).given(ask("opens another counter"))
    assert declined(history, ask("b", scopes=of)).resets_at == moment("2026-09-28 00:00")
    assert isinstance(history.at(moment("2026-09-28 00:00")).event(ask("c", scopes=of)), Held)


def test_a_limit_has_its_own_zone_and_anchor() -> None:
    limit = Limit("l", "requests", 1, "month", "Pacific/Kiritimati", "2026-01-31")
    history = limited(limit).given(ask("a"))
    assert declined(history, ask("b")).resets_at == moment("2026-09-30 00:00", "Pacific/Kiritimati")


# Several at once ------------------------------------------------------------------------------------------------------


class TestSeveral:
    def test_all_or_none(self) -> None:
        """T12: the last one refuses, and none of the others is debited."""
        limits = [Limit(f"l{number}", "tokens", 1_000) for number in range(5)]
        history = limited(*limits, Limit("last", "requests", 0))
        assert declined(history, ask("a")).limit == "last"
        assert history.account.counters == {}

    def test_the_refusal_names_what_stands_in_the_way_the_longest(self) -> None:
        """A retry in a minute would be told of the month then."""
        limits = (
            Limit("minute", "requests", 1, "minute"),
            Limit("month", "tokens", 250),
            Limit("day", "requests", 1, "day"),
        )
        history = limited(*limits).given(ask("a"), Settle("a", 1, 100, 100))
        assert declined(history, ask("b", 50)).limit == "month"
        assert declined(history, ask("b", 10)).limit == "day"

    def test_of_two_the_one_that_waiting_does_not_help_against_is_named(self) -> None:
        history = limited(Limit("open", "open_calls", 1, "lifetime"), Limit("day", "requests", 1, "day"))
        history.given(ask("a"))
        assert declined(history, ask("b")).limit == "open", "the slot may come back, and so may the request"
        history.given(Settle("a", 1, 1, 1), Report("r", 1))
        assert declined(history, ask("b")).limit == "day"

    def test_every_limit_that_applies_counts_the_call(self) -> None:
        history = limited(Limit("a", "tokens", 1_000), Limit("b", "tokens", 1_000, "day"), Limit("c", "requests", 5))
        history.given(ask("h"), Settle("h", 1, 60, 70))
        assert {name: one.used for (name, _), one in history.account.counters.items()} == {"a": 130, "b": 130, "c": 1}


# Warn, strict, edits --------------------------------------------------------------------------------------------------


def test_a_warning_limit_counts_fires_and_lets_pass() -> None:
    history = limited(Limit("soft", "requests", 1, on_reach="warn", thresholds=(100,)))
    for number in range(3):
        history.given(ask(f"h{number}"), Settle(f"h{number}", 1, 1, 1))
    assert history.account.counters["soft", "2026-09"].used == 3
    assert len(history.written(Crossed)) == 1


def test_where_a_strict_limit_applies_the_hard_bound_is_held() -> None:
    strict = Limit("l", "tokens", 1_000, strict=True, of=(("model", "m"),))
    history = limited(strict, Limit("soft", "tokens", 10**6))
    command = Authorize("a", "o", 10, 100, 0, 0, 0, hard=(25, 250), scopes=(("model", "m"),))
    held = history.event(command)
    assert isinstance(held, Held)
    assert held.amount == 25
    assert {name: quantity for name, _, quantity in held.counts} == {"l": 250, "soft": 250}
    held = history.event(replace(command, hold="b", scopes=()))
    assert isinstance(held, Held)
    assert (held.amount, held.counts[0][2]) == (10, 100)


class TestEdits:
    """A limit edited in mid-window."""

    def test_a_higher_quantity_counts_what_was_used_before(self) -> None:
        history = limited(Limit("l", "tokens", 200)).given(ask("a"), Settle("a", 1, 100, 100))
        assert isinstance(declined(history, ask("b")), Declined)
        change(history, Limit("l", "tokens", 400))
        assert isinstance(history.event(ask("b")), Held)
        assert declined(history, ask("c")).used == 400

    def test_a_lower_quantity_refuses_at_once_and_open_calls_end_as_they_were_held(self) -> None:
        history = limited(Limit("l", "tokens", 400)).given(ask("a"))
        change(history, Limit("l", "tokens", 100))
        assert isinstance(declined(history, ask("b", 1)), Declined)
        event = history.event(Settle("a", 1, 100, 100))
        assert isinstance(event, Settled)
        assert event.over == ()

    def test_a_stream_goes_on_under_an_input_limit_that_was_lowered_below_what_is_used(self) -> None:
        """It takes no more input."""
        history = limited(Limit("l", "input_tokens", 400), Limit("c", "characters", 400))
        history.given(Authorize("h", "o", 0, 300, PRICE, 64, 32, grows=True, units=(("characters", 300),)))
        change(history, Limit("l", "input_tokens", 100), Limit("c", "characters", 100))
        assert isinstance(history.event(Extend("h", PRICE, 1_000, 64)), Extended)

    def test_a_limit_that_is_taken_away_has_counted_nothing_when_it_comes_back(self) -> None:
        history = limited(Limit("l", "tokens", 1_000)).given(ask("a"), ask("b"), Settle("a", 1, 100, 100))
        change(history)
        change(history, Limit("l", "requests", 5))
        assert history.account.counters == {}
        history.given(ask("c"), Settle("b", 1, 100, 100))
        counter = history.account.counters["l", "2026-09"]
        assert (counter.used, counter.held) == (0, 1), "what was open when the limit was set is not counted"

    def test_terms_that_make_a_limit_count_another_thing_begin_anew(self) -> None:
        history = limited(Limit("l", "tokens", 1_000)).given(ask("a"))
        change(history, Limit("l", "requests", 5))
        assert history.account.counters == {}
        history.given(Settle("a", 1, 100, 100), ask("b"))
        assert history.account.counters["l", "2026-09"].held == 1

    def test_a_change_made_from_terms_that_are_no_longer_in_force_is_a_conflict(self) -> None:
        history = limited(Limit("l", "tokens", 1_000))
        before = history.account.terms
        change(history, Limit("l", "tokens", 2_000))
        with pytest.raises(Conflict):
            history.ask(SetTerms(before.changed(limits=())))


# Thresholds -----------------------------------------------------------------------------------------------------------


class TestThresholds:
    """T31: each fires once per window, in order, durably."""

    def limit(self, quantity: int = 1_000, **more: Any) -> Limit:
        return Limit("l", "tokens", quantity, thresholds=(100, 50, 80), **more)

    def fired(self, history: History) -> list[tuple[str, int, int]]:
        history.bring_up_to_date()
        return [(event.window, event.percent, event.used) for event in history.written(Crossed)]

    def test_they_fire_in_order_when_it_is_used_not_merely_held(self) -> None:
        history = limited(self.limit()).given(ask("a", 250))
        assert self.fired(history) == []
        history.given(Settle("a", 1, 250, 249))
        assert self.fired(history) == []
        history.given(Report("r", 0, 1))
        assert self.fired(history) == [("2026-09", 50, 500)]
        history.given(Report("s", 0, 600))
        assert self.fired(history)[1:] == [("2026-09", 80, 1_100), ("2026-09", 100, 1_100)]
        history.given(Report("t", 0, 600))
        assert len(self.fired(history)) == 3
        crossed = history.written(Crossed)[-1]
        assert crossed == Crossed("l", "2026-09", 100, 1_100, 1_000, "tokens")

    def test_and_again_in_the_next_window(self) -> None:
        history = limited(self.limit()).given(Report("r", 0, 500)).at(moment("2026-10-02 00:00"))
        history.given(Report("s", 0, 500))
        assert self.fired(history) == [("2026-09", 50, 500), ("2026-10", 50, 500)]

    def test_a_window_that_is_over_alarms_nobody(self) -> None:
        """Usage of September that is reported in October fires nothing, and fires nothing twice."""
        history = limited(self.limit()).given(Report("r", 0, 850)).at(moment("2026-10-02 00:00"))
        history.given(Report("s", 0, 1), Report("t", 0, 990, when=moment("2026-09-30 23:00")))
        assert len(self.fired(history)) == 2

    def test_what_was_crossed_at_the_last_moment_fires_with_the_next_look(self) -> None:
        history = limited(self.limit()).at(moment("2026-09-30 23:59:59"))
        history.given(Report("r", 0, 500))
        history.now = moment("2026-10-03 00:00")
        assert self.fired(history) == [("2026-09", 50, 500)]

    def test_a_raised_limit_does_not_fire_a_threshold_again(self) -> None:
        history = limited(self.limit()).given(Report("r", 0, 500))
        change(history, self.limit(2_000))
        history.given(Report("s", 0, 500))
        assert len(self.fired(history)) == 1
        history.given(Report("t", 0, 600))
        assert self.fired(history)[1:] == [("2026-09", 80, 1_600)]

    def test_a_lowered_limit_fires_what_is_reached_by_it(self) -> None:
        history = limited(self.limit()).given(Report("r", 0, 450))
        change(history, self.limit(500))
        assert [percent for _, percent, _ in self.fired(history)] == [50, 80]

    def test_a_limit_of_nothing_fires_when_something_is_used(self) -> None:
        history = limited(replace(self.limit(0), on_reach="warn")).given(ask("a"))
        assert self.fired(history) == []
        history.given(Settle("a", 1, 1, 0))
        assert [percent for _, percent, _ in self.fired(history)] == [50, 80, 100]

    def test_each_value_of_a_scope_fires_for_itself(self) -> None:
        history = limited(self.limit(per="user"))
        for user in ("u1", "u2"):
            history.given(Report(user, 0, 500, scopes=(("user", user),)))
        assert self.fired(history) == [("2026-09|u1", 50, 500), ("2026-09|u2", 50, 500)]


# Windows that settlements and reports fill ----------------------------------------------------------------------------


class TestFilling:
    def test_a_report_counts_in_the_window_of_its_event(self) -> None:
        history = limited(Limit("l", "tokens", 1_000)).given(Report("now", 0, 5))
        history.given(Report("august", 0, 7, when=moment("2026-08-31 23:59")))
        assert {window: one.used for (_, window), one in history.account.counters.items()} == {
            "2026-09": 5,
            "2026-08": 7,
        }
        history.at(moment("2026-10-02 00:00")).given(ask("a"))
        assert [window for _, window in history.account.counters] == ["2026-10"], "windows that are over leave"

    def test_a_report_from_the_future_counts_now(self) -> None:
        history = limited(Limit("l", "tokens", 1_000)).given(Report("r", 0, 5, when=moment("2027-08-31 23:59")))
        assert list(history.account.counters) == [("l", "2026-09")]

    def test_what_a_report_takes_beyond_a_limit_is_marked(self) -> None:
        history = limited(Limit("l", "tokens", 100)).given(ask("a", 30))
        event = history.event(Report("r", 0, 60))
        assert isinstance(event, Reported)
        assert (event.counts, event.over) == ((("l", "2026-09", 60),), (("l", "2026-09", 20),))

    def test_a_stream_over_two_edges_fills_its_windows_in_order(self) -> None:
        history = limited(Limit("l", "output_tokens", 10_000, "minute"))
        history.given(Authorize("h", "o", 0, 0, PRICE, 64, 32, grows=True))
        for _ in range(2):
            history.at(history.now + 60_000_000).given(Extend("h", PRICE, 100, 32))
        assert [counter.held for counter in history.account.counters.values()] == [64, 50, 50]
        event = history.event(Settle("h", 1, 0, 300, "hidden_output"))
        assert isinstance(event, Settled)
        assert [quantity for *_, quantity in event.counts] == [64, 50, 186]
        assert [quantity for *_, quantity in event.over] == [136], "an excess counts in the last"

    def test_a_late_settlement_gives_back_to_the_limits_what_the_expiry_took_too_much(self) -> None:
        history = limited(Limit("l", "tokens", 1_000)).given(ask("h"), Settle("h", 9, 100, 90, lost_owner=True))
        event = history.event(Settle("h", 5, 100, 20))
        assert isinstance(event, Adjusted)
        assert history.account.counters["l", "2026-09"].used == 120


# What terms may be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "a|b"}, "name"),
        ({"unit": "Tokens"}, "unit"),
        ({"quantity": -1}, "quantity"),
        ({"quantity": 2**53}, "quantity"),
        ({"quantity": 1.5}, "quantity"),
        ({"quantity": True}, "quantity"),
        ({"window": "fortnight"}, "window"),
        ({"anchor": "2026-02-30"}, "anchor"),
        ({"anchor": "20260201"}, "anchor"),
        ({"on_reach": "explode"}, "on_reach"),
        ({"unit": "open_calls", "window": "day"}, "lifetime"),
        ({"thresholds": (0,)}, "thresholds"),
        ({"thresholds": (80.5,)}, "thresholds"),
        ({"of": (("", "x"),)}, "scope"),
    ],
    ids=str,
)
def test_a_limit_that_cannot_be_enforced_is_refused_and_the_message_names_the_field(
    wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises(TermsError, match=named):
        Limit(**{"name": "l", "unit": "tokens", "quantity": 1, **wrong})


def test_terms_survive_being_written_and_read() -> None:
    terms = (
        NO_TERMS.with_limit(Limit("a", "tokens", 1, "week", "Europe/Berlin", "2026-01-31", (("model", "m"),), "user"))
        .with_limit(Limit("b", "credits", 2**60, on_reach="warn", strict=True, thresholds=(50, 80)))
        .changed(
            plan=Plan("p", 5, "week", "2026-01-31", "Asia/Tehran", None, 7, ("chat",), ("gpt-4o*",)), suspended=True
        )
    )
    assert terms_from(terms_data(terms)) == terms


@pytest.mark.parametrize(
    ("model", "meter", "reason"),
    [
        ("gpt-4o-mini", "chat", None),
        ("claude-4", "chat", "model_not_in_plan"),
        ("gpt-4o", "voice", "meter_not_in_plan"),
        ("", "", None),
    ],
)
def test_what_is_not_in_the_plan_is_refused(model: str, meter: str, reason: str | None) -> None:
    history = limited(plan=Plan("p", CREDIT, meters=("chat",), models=("gpt-4o*",)))
    scopes = tuple(one for one in (("meter", meter), ("model", model)) if one[1])
    answer = history.ask(ask("h", scopes=scopes))
    assert (answer.reason if isinstance(answer, Declined) else None) == reason
    assert history.written(Cycled)
