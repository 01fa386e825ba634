"""What may be held, what is posted, and when the answer is no."""

from __future__ import annotations

import pytest

from lava_middleware.core.commands import Authorize, Grant, Report, SetTerms, Settle, Void
from lava_middleware.core.decide import Conflict, Declined, LookUp, Repeated, UnknownHold, decide
from lava_middleware.core.events import Adjusted, Extended, Granted, Held, Lapsed, Reported, Settled, Voided
from lava_middleware.core.money import LARGEST, PER_MILLION, AmountError
from lava_middleware.core.record import record_of
from lava_middleware.core.terms import NO_TERMS, Limit, TermsError

from .history import CREDIT, START, History, call, granted, more, settled, stream

DAY = 86_400_000_000


def test_a_hold_sets_credit_aside_and_a_settlement_posts_the_charge_and_releases_the_rest() -> None:
    history = History().given(granted(10))
    assert isinstance(history.event(call(fixed=4 * CREDIT)), Held)
    assert history.available == 6 * CREDIT
    assert history.account.balance(history.now) == 10 * CREDIT
    event = history.event(settled(charge=CREDIT))
    assert event == Settled("h", CREDIT, draws=((1, CREDIT),))
    assert history.available == history.account.balance(history.now) == 9 * CREDIT


def test_a_void_gives_everything_back() -> None:
    history = History().given(granted(10), call(fixed=4 * CREDIT))
    assert history.event(Void("h", "rejected")) == Voided("h", "rejected")
    assert history.available == 10 * CREDIT


def test_what_open_holds_have_is_not_there_for_others() -> None:
    """T1: two calls never both take the last credit."""
    history = History().given(granted(1), call("a"))
    declined = history.ask(call("b"))
    assert declined == Declined("credit_on_hold", 0, CREDIT, waitable=True)


def test_an_empty_account_is_told_so() -> None:
    assert History().ask(call()) == Declined("insufficient_credit", 0, CREDIT)


def test_a_request_too_large_for_the_credit_is_told_what_would_fit() -> None:
    history = History().given(granted(1))
    wanted = Authorize("h", "o", 0, 0, 10 * CREDIT, 200_000, 200_000)
    declined = history.ask(wanted)
    assert declined == Declined("request_exceeds_credit", CREDIT, 2 * CREDIT, 100_000)


def test_a_free_call_needs_no_credit() -> None:
    """T5: a free model is not refused to an empty wallet."""
    assert isinstance(History().event(call(fixed=0)), Held)


def test_a_call_without_a_cap_takes_a_share_and_at_least_its_minimum() -> None:
    history = History().given(granted(3))
    price = CREDIT * PER_MILLION // 1_000  # a thousand tokens are one credit
    held = history.event(Authorize("a", "o", 0, 0, price, 100_000, 256, share=3))
    assert isinstance(held, Held)
    assert held.output_tokens == 1_000
    held = history.event(Authorize("b", "o", 0, 0, price, 100_000, 1_500, share=3))
    assert isinstance(held, Held)
    assert held.output_tokens == 1_500, "a third would be too little to be of use, the whole is enough"


def test_holds_round_up() -> None:
    history = History().given(granted(1))
    held = history.event(Authorize("h", "o", 0, 0, 1, 1, 1))
    assert isinstance(held, Held)
    assert held.amount == 1


def test_an_overrun_is_posted_from_what_is_free_and_the_rest_is_debt() -> None:
    history = History().given(granted(2), call(fixed=CREDIT))
    event = history.event(settled(charge=5 * CREDIT, cause="cap_ignored"))
    assert isinstance(event, Settled)
    assert (event.draws, event.debt, event.overrun, event.cause) == (
        ((1, 2 * CREDIT),),
        3 * CREDIT,
        4 * CREDIT,
        "cap_ignored",
    )
    assert history.available == -3 * CREDIT


def test_debt_blocks_the_next_call_and_is_repaid_first() -> None:
    """T8."""
    history = History().given(granted(1), call(), settled(charge=3 * CREDIT, cause="late"))
    declined = history.ask(call("next"))
    assert isinstance(declined, Declined)
    assert declined.reason == "insufficient_credit"
    event = history.event(granted(5, key="second"))
    assert isinstance(event, Granted)
    assert event.debt_repaid == 2 * CREDIT
    assert history.available == 3 * CREDIT
    assert history.account.debt == 0


def test_debt_is_repaid_from_what_an_ending_releases() -> None:
    history = History().given(granted(3), call("a"), call("b", fixed=2 * CREDIT))
    history.given(settled("a", charge=2 * CREDIT, cause="late"))
    assert history.account.debt == CREDIT
    event = history.event(Void("b", "rejected"))
    assert isinstance(event, Voided)
    assert event.repaid == ((1, CREDIT),)
    assert (history.account.debt, history.available) == (0, CREDIT)


def test_absorbed_overruns_cost_the_customer_nothing_beyond_the_hold() -> None:
    history = History().given(granted(5), call())
    event = history.event(Settle("h", 3 * CREDIT, 0, 0, "cap_ignored", absorb=True))
    assert isinstance(event, Settled)
    assert (event.charge, event.absorbed, event.overrun) == (CREDIT, 2 * CREDIT, 2 * CREDIT)
    assert history.available == 4 * CREDIT


def test_grants_are_drawn_by_priority_then_expiry_then_category_then_age() -> None:
    soon, late = START + DAY, START + 30 * DAY
    history = History().given(
        Grant("plain", CREDIT),
        Grant("late", CREDIT, expires=late),
        Grant("soon", CREDIT, expires=soon),
        Grant("promo", CREDIT, category="promo"),
        Grant("first", CREDIT, priority=-1),
    )
    held = history.event(call(fixed=5 * CREDIT))
    assert isinstance(held, Held)
    assert [grant for grant, _ in held.draws] == [5, 3, 2, 4, 1]


def test_an_expired_grant_pays_for_what_it_held_and_lapses_for_the_rest() -> None:
    history = History().given(Grant("month", 5 * CREDIT, expires=START + DAY), call(fixed=2 * CREDIT))
    history.now += DAY
    assert history.available == 0
    assert history.account.balance(history.now) == 2 * CREDIT
    decision = history.ask(settled(charge=2 * CREDIT))
    assert decision == [Lapsed(((1, 3 * CREDIT),)), Settled("h", 2 * CREDIT, draws=((1, 2 * CREDIT),))]
    assert history.account.credits == []


def test_nothing_new_is_reserved_on_a_dead_grant_or_on_one_that_has_not_begun() -> None:
    history = History().given(Grant("over", CREDIT, expires=START + 10), Grant("future", CREDIT, starts=START + DAY))
    history.now += 100
    declined = history.ask(call())
    assert isinstance(declined, Declined)
    assert declined.reason == "insufficient_credit"


class TestRepeating:
    """Idempotent by id and content (design §5)."""

    def test_an_authorization_gives_its_first_receipt_again_open_or_ended(self) -> None:
        history = History().given(granted(10))
        first = history.event(call())
        assert history.ask(call()) == Repeated(first)
        history.given(settled())
        assert history.ask(call()) == Repeated(first)
        assert history.available == 9 * CREDIT

    def test_a_settlement_with_the_same_charge_is_repeated_with_another_a_conflict(self) -> None:
        history = History().given(granted(10), call())
        first = history.event(settled())
        assert history.ask(settled()) == Repeated(first)
        with pytest.raises(Conflict):
            history.ask(settled(charge=2 * CREDIT))
        with pytest.raises(Conflict):
            history.ask(Void("h", "closed"))

    def test_a_void_is_repeated_and_a_settlement_after_it_a_conflict(self) -> None:
        history = History().given(granted(10), call())
        first = history.event(Void("h", "closed"))
        assert history.ask(Void("h", "other word")) == Repeated(first)
        with pytest.raises(Conflict):
            history.ask(settled())

    def test_a_hold_nobody_authorized_is_unknown(self) -> None:
        for command in (settled("x"), Void("x", "closed"), more("x")):
            with pytest.raises(UnknownHold):
                History().ask(command)

    def test_an_extension_of_an_ended_hold_is_declined(self) -> None:
        history = History().given(granted(10), stream(), settled(charge=1))
        assert history.ask(more()) == Declined("hold_ended")

    def test_a_grant_key_names_one_grant_for_ever(self) -> None:
        history = History()
        first = history.event(granted(5))
        assert history.ask(granted(5)) == Repeated(first)
        with pytest.raises(Conflict):
            history.ask(granted(6))

    def test_a_report_key_names_one_report_for_ever(self) -> None:
        history = History().given(granted(5))
        first = history.event(Report("r", CREDIT))
        assert history.ask(Report("r", CREDIT)) == Repeated(first)
        with pytest.raises(Conflict):
            history.ask(Report("r", 2))


class TestLostOwner:
    """Expire is the settlement of an owner that died; what that owner still says is an adjustment (T9)."""

    def expired(self) -> History:
        return History().given(granted(10), call(fixed=4 * CREDIT), Settle("h", CREDIT, 0, 0, lost_owner=True))

    def test_expiring_settles_and_repeating_it_changes_nothing(self) -> None:
        history = self.expired()
        assert history.available == 9 * CREDIT
        assert isinstance(history.ask(Settle("h", CREDIT, 0, 0, lost_owner=True)), Repeated)

    def test_a_settle_after_expiry_is_an_adjustment_that_names_the_hold(self) -> None:
        history = self.expired()
        assert history.event(settled(charge=3 * CREDIT)) == Adjusted("h", 2 * CREDIT, draws=((1, 2 * CREDIT),))
        assert history.available == 7 * CREDIT

    def test_a_smaller_settle_after_expiry_gives_back(self) -> None:
        history = self.expired()
        event = history.event(settled(charge=CREDIT // 2))
        assert event == Adjusted("h", -CREDIT // 2, draws=((1, -CREDIT // 2),))
        assert history.available == 95 * CREDIT // 10

    def test_a_void_after_expiry_is_adjusted_to_zero(self) -> None:
        history = self.expired()
        history.given(Void("h", "unsent"))
        assert history.available == 10 * CREDIT
        assert history.account.charged == 0

    def test_what_a_spent_grant_gets_back_is_a_fresh_grant(self) -> None:
        history = History().given(granted(1), call(), Settle("h", CREDIT, 0, 0, lost_owner=True), Void("h", "unsent"))
        assert history.available == CREDIT

    def test_what_the_operator_bears_or_forgives_it_bears_and_forgives_late_as_well(self) -> None:
        absorbed = self.expired().event(Settle("h", 9 * CREDIT, 0, 0, "cap_ignored", absorb=True))
        assert isinstance(absorbed, Adjusted)
        assert absorbed.charge == 3 * CREDIT, "up to the hold of four, of which one was charged at the expiry"
        assert absorbed.absorbed == 5 * CREDIT
        history = History().given(granted(1), call(), Settle("h", CREDIT, 0, 0, lost_owner=True))
        forgiven = history.event(Settle("h", 5 * CREDIT, 0, 0, forgive=True))
        assert isinstance(forgiven, Adjusted)
        assert (forgiven.charge, forgiven.debt, forgiven.absorbed) == (0, 0, 4 * CREDIT)

    @pytest.mark.parametrize(("said", "cause"), [("cap_ignored", "cap_ignored"), (None, "late")])
    @pytest.mark.parametrize("absorb", [False, True])
    def test_an_overrun_is_not_silent_because_it_comes_late(self, said: str | None, cause: str, absorb: bool) -> None:
        event = self.expired().event(Settle("h", 9 * CREDIT, 0, 0, said, absorb=absorb))
        assert isinstance(event, Adjusted)
        assert (event.overrun, event.cause, event.absorbed) == (5 * CREDIT, cause, 5 * CREDIT * absorb)
        record = record_of(event, None, customer="c", at=1, seq=1, balance_after=0)
        assert record is not None
        assert (record.overrun.ticks, record.overrun_cause) == (5 * CREDIT, cause)
        assert record.facts.get("absorbed") == ("5.0000000000" if absorb else None)

    def test_what_is_within_the_hold_is_no_overrun_late_either(self) -> None:
        event = self.expired().event(Settle("h", 4 * CREDIT, 0, 0, "undercounted"))
        assert isinstance(event, Adjusted)
        assert (event.overrun, event.cause) == (0, None)

    @pytest.mark.parametrize(("used", "charged"), [(250, 250), (300, 300), (400, 300)])
    def test_the_operator_bears_late_only_what_exceeds_all_that_a_stream_held(self, used: int, charged: int) -> None:
        """What extensions have added was held as well."""
        price = CREDIT * 1_000_000 // 64
        history = History().given(granted(10), stream(price=price), more(price=price))
        assert history.account.holds["h"].amount == 3 * CREDIT
        history.given(Settle("h", CREDIT, 0, 0, lost_owner=True))
        event = history.event(Settle("h", used * CREDIT // 100, 0, 0, "undercounted", absorb=True))
        assert isinstance(event, Adjusted)
        assert history.account.charged == charged * CREDIT // 100
        assert (event.overrun, event.absorbed) == ((used - charged) * CREDIT // 100,) * 2

    def test_what_was_used_late_counts_in_the_window_of_the_hold_as_an_overrun(self) -> None:
        """T11."""
        terms = NO_TERMS.with_limit(Limit("month", "tokens", 10_000))
        history = History().given(granted(9), SetTerms(terms), Authorize("h", "o", 0, 100, CREDIT, 500, 500))
        history.given(Settle("h", 1, 100, 10, lost_owner=True))
        history.now += 40 * DAY
        event = history.event(Settle("h", 2, 100, 400))
        assert isinstance(event, Adjusted)
        assert (event.counts, event.over) == ((("month", "2026-09", 390),), (("month", "2026-09", 390),))

    def test_the_owner_is_heard_once(self) -> None:
        history = self.expired().given(settled(charge=3 * CREDIT))
        assert isinstance(history.ask(settled(charge=3 * CREDIT)), Repeated)
        assert history.available == 7 * CREDIT

    def test_a_stream_owes_the_slices_that_an_extension_proved_delivered(self) -> None:
        history = History().given(granted(1), stream(), more(), more(slice_=128))
        hold = history.account.holds["h"]
        slices = [event for event in history.events if isinstance(event, Held | Extended)]
        assert hold.expected == slices[0].amount + slices[1].amount
        assert hold.amount == sum(event.amount for event in slices)


class TestExtending:
    def test_slices_double_while_there_is_plenty(self) -> None:
        history = History().given(granted(1_000), stream(price=CREDIT))
        sizes, size = [], 64
        for _ in range(4):
            event = history.event(more(left=1_000_000, slice_=size))
            assert isinstance(event, Extended)
            sizes.append(size := event.output_tokens)
        assert sizes == [128, 256, 512, 1_024]

    def test_slices_shrink_as_the_credit_ends_and_the_last_token_is_sold(self) -> None:
        history = History().given(granted(1))
        price = CREDIT * PER_MILLION // 1_000  # a thousand tokens are the whole credit
        history.given(stream(price=price))
        total, size = 64, 64
        while isinstance(decision := history.ask(more(slice_=size, price=price)), list):
            extended = decision[-1]
            assert isinstance(extended, Extended)
            total += (size := extended.output_tokens)
        assert total == 1_000
        assert decision == Declined("insufficient_credit", 0, CREDIT // 1_000)

    def test_open_calls_share_what_is_left(self) -> None:
        history = History().given(granted(1))
        price = CREDIT * PER_MILLION // 1_000
        history.given(*(stream(f"s{number}", price=price) for number in range(4)))
        event = history.event(more("s0", price=price, slice_=1_000))
        assert isinstance(event, Extended)
        assert event.output_tokens == (1_000 - 4 * 64) // 5

    def test_a_stream_that_runs_dry_beside_others_may_wait_for_them(self) -> None:
        history = History().given(granted(1), call("other"), call("mine", fixed=0))
        declined = history.ask(more("mine"))
        assert isinstance(declined, Declined)
        assert (declined.reason, declined.waitable) == ("credit_on_hold", True)


class TestTokenLimit:
    """A hard limit of tokens per calendar month and customer."""

    def limited(self, quantity: int = 1_000, unit: str = "tokens") -> History:
        terms = NO_TERMS.with_limit(Limit("month", unit, quantity))
        return History().given(granted(1_000), SetTerms(terms))

    def ask(self, hold: str, tokens: int, least: int | None = None) -> Authorize:
        return Authorize(hold, "o", 0, tokens, CREDIT, tokens, tokens if least is None else least)

    def test_used_and_held_count_and_the_refusal_names_the_reset(self) -> None:
        history = self.limited().given(self.ask("a", 300))
        declined = history.ask(self.ask("b", 300))
        assert isinstance(declined, Declined)
        assert (declined.reason, declined.limit, declined.used, declined.quantity) == (
            "limit_reached",
            "month",
            600,
            1_000,
        )
        assert declined.resets_at == 1_790_812_800_000_000, "midnight UTC of the first of October 2026"
        assert declined.waitable

    def test_a_call_that_can_be_made_smaller_takes_what_is_left(self) -> None:
        history = self.limited().given(self.ask("a", 300))
        held = history.event(self.ask("b", 300, least=1))
        assert isinstance(held, Held)
        assert held.output_tokens == 100
        assert history.account.counters["month", "2026-09"].held == 1_000

    def test_settling_counts_what_was_used_and_releases_the_rest(self) -> None:
        history = self.limited().given(self.ask("a", 300), Settle("a", 1, 100, 50))
        counter = history.account.counters["month", "2026-09"]
        assert (counter.used, counter.held, counter.over) == (150, 0, 0)

    def test_what_exceeds_the_hold_is_counted_and_marked(self) -> None:
        history = self.limited().given(self.ask("a", 300), Settle("a", 1, 300, 900, "cap_ignored"))
        counter = history.account.counters["month", "2026-09"]
        assert (counter.used, counter.over) == (1_200, 600)
        declined = history.ask(self.ask("b", 1))
        assert isinstance(declined, Declined)
        assert not declined.waitable

    def test_a_settlement_counts_in_the_window_of_its_hold(self) -> None:
        """T11: a call that begins in one month and settles in the next."""
        history = self.limited().given(self.ask("a", 300))
        history.now += 20 * DAY
        history.given(Settle("a", 1, 100, 100))
        assert history.account.counters["month", "2026-09"].used == 200
        history.given(self.ask("b", 300))
        assert set(history.account.counters) == {("month", "2026-10")}, "a window that is over leaves"

    def test_an_extension_counts_in_the_window_of_its_own_time(self) -> None:
        history = self.limited(100_000).given(stream())
        history.now += 20 * DAY
        history.given(more())
        assert {name: counter.held for name, counter in history.account.counters.items()} == {
            ("month", "2026-09"): 64,
            ("month", "2026-10"): 128,
        }
        history.given(Settle("h", 1, 0, 100))
        assert {name: counter.used for name, counter in history.account.counters.items()} == {
            ("month", "2026-09"): 64,
            ("month", "2026-10"): 36,
        }

    def test_an_extension_beyond_the_limit_is_declined(self) -> None:
        history = self.limited(64).given(stream())
        declined = history.ask(more())
        assert isinstance(declined, Declined)
        assert declined.reason == "limit_reached"

    @pytest.mark.parametrize(("unit", "used"), [("requests", 1), ("input_tokens", 100), ("output_tokens", 50)])
    def test_other_units_count_what_they_name(self, unit: str, used: int) -> None:
        history = self.limited(unit=unit).given(self.ask("a", 300), Settle("a", 1, 100, 50))
        assert history.account.counters["month", "2026-09"].used == used

    def test_a_changed_quantity_keeps_what_was_counted(self) -> None:
        history = self.limited().given(self.ask("a", 300), Settle("a", 1, 300, 300))
        history.given(SetTerms(history.account.terms.with_limit(Limit("month", "tokens", 600))))
        assert isinstance(history.ask(self.ask("b", 1)), Declined)

    def test_older_terms_never_overwrite_newer_ones(self) -> None:
        history = self.limited()
        with pytest.raises(Conflict):
            history.ask(SetTerms(NO_TERMS.with_limit(Limit("other", "tokens", 1))))

    def test_no_scope_is_debited_when_another_refuses(self) -> None:
        """T12: all or none."""
        terms = NO_TERMS.with_limit(Limit("a", "tokens", 10_000)).with_limit(Limit("b", "requests", 0))
        history = History().given(granted(10), SetTerms(terms))
        declined = history.ask(self.ask("x", 5))
        assert isinstance(declined, Declined)
        assert declined.limit == "b"
        assert history.account.counters == {}
        assert history.available == 10 * CREDIT


class TestReports:
    def test_a_report_posts_without_a_hold_and_what_nothing_covers_is_debt(self) -> None:
        history = History().given(granted(1))
        event = history.event(Report("r", 3 * CREDIT))
        assert event == Reported("r", 3 * CREDIT, draws=((1, CREDIT),), debt=2 * CREDIT)
        assert history.available == -2 * CREDIT

    def test_in_observe_what_nothing_covers_is_a_note_and_nobody_owes_it(self) -> None:
        history = History().given(granted(1))
        event = history.event(Report("r", 3 * CREDIT, forgive=True))
        assert event == Reported("r", CREDIT, draws=((1, CREDIT),), forgiven=2 * CREDIT)
        assert history.available == 0


def test_sums_beyond_the_largest_amount_are_refused_before_anything_is_written() -> None:
    """T24."""
    history = History().given(Grant("a", LARGEST - 1))
    with pytest.raises(AmountError):
        history.ask(Grant("b", 1))
    with pytest.raises(AmountError):
        history.ask(Report("r", LARGEST))


def test_decide_says_which_keys_it_must_see_before_it_answers() -> None:
    with pytest.raises(LookUp) as wanted:
        decide(History().account, settled("h"), START)
    assert wanted.value.keys[:3] == ("hold:h", "end:h", "late:h")
    assert all(key.startswith("adjust:h:") for key in wanted.value.keys[3:]), "and what was corrected since"


def test_a_limit_keeps_its_unit_under_its_name() -> None:
    """What was counted in tokens must not become requests."""
    terms = NO_TERMS.with_limit(Limit("month", "tokens", 10))
    with pytest.raises(TermsError, match="another name"):
        terms.with_limit(Limit("month", "requests", 10))
    assert terms.with_limit(Limit("month", "tokens", 20)).limits[0].quantity == 20
