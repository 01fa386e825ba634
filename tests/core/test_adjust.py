"""Corrections and refunds: back to where the credit came from, never more than was charged."""

from __future__ import annotations

import random

import pytest

from lava_middleware.core.commands import Adjust, Grant, Post, Report, SetTerms, Settle, Void
from lava_middleware.core.decide import Conflict, Declined, LedgerRuleError, Repeated, UnknownHold
from lava_middleware.core.events import Adjusted, Repaid
from lava_middleware.core.keys import ADJUSTMENTS_MOST
from lava_middleware.core.terms import Limit, Plan, Terms

from .history import CREDIT, START, History, call, granted, settled

DAY = 86_400_000_000


def charged(credits: int = 4, held: int = 4, grant: int = 10) -> History:
    return History().given(granted(grant), call(fixed=held * CREDIT), settled(charge=credits * CREDIT))


def refund(key: str, ticks: int, of: str = "h", reason: str = "") -> Adjust:
    return Adjust(key, of, -ticks, reason)


def adjusted(history: History, command: Adjust) -> Adjusted:
    event = history.event(command)
    assert isinstance(event, Adjusted)
    return event


class TestWhereItGoes:
    def test_a_refund_goes_back_to_the_grants_that_paid_the_last_one_first(self) -> None:
        history = History().given(
            Grant("a", 2 * CREDIT, priority=-1),
            Grant("b", 9 * CREDIT),
            Report("h", 5 * CREDIT),
            Grant("c", CREDIT, priority=-2),
        )
        event = adjusted(history, refund("k", 4 * CREDIT))
        assert (event.draws, event.refund) == (((2, -3 * CREDIT),), CREDIT), "the first grant is spent, so a fresh one"
        assert history.available == 10 * CREDIT - CREDIT + 2 * CREDIT

    def test_it_cancels_the_records_own_debt_first(self) -> None:
        history = History().given(granted(3), Report("h", 5 * CREDIT))
        event = adjusted(history, refund("k", 4 * CREDIT))
        assert (event.debt, event.refund) == (-2 * CREDIT, 2 * CREDIT)
        assert (history.account.debt, history.available) == (0, 2 * CREDIT)

    def test_a_refund_of_debt_that_was_repaid_since_is_a_top_up(self) -> None:
        history = History().given(Report("h", 5 * CREDIT), granted(5))
        event = adjusted(history, refund("k", 5 * CREDIT))
        assert (event.debt, event.refund, event.category) == (0, 5 * CREDIT, "top_up")
        assert history.available == 5 * CREDIT

    def test_where_somebody_owes_for_something_else_it_pays_that(self) -> None:
        history = History().given(granted(5), Report("h", 5 * CREDIT), Report("other", 3 * CREDIT))
        adjusted(history, refund("k", 5 * CREDIT))
        history.bring_up_to_date()
        assert history.written(Repaid) == [Repaid(((4, 3 * CREDIT),))]
        assert (history.account.debt, history.available) == (0, 2 * CREDIT)

    @pytest.mark.parametrize("category", ["promo", "plan", "bundle", "top_up"])
    @pytest.mark.parametrize("how", ["spent", "expired", "expired but not yet written off"])
    def test_what_belonged_to_a_grant_that_died_is_a_fresh_one_of_its_category(self, category: str, how: str) -> None:
        amount = 4 if how == "spent" else 6
        history = History().given(
            Grant("g", amount * CREDIT, category=category, expires=START + DAY), call(fixed=4 * CREDIT)
        )
        history.given(settled(charge=4 * CREDIT)).at(START + 2 * DAY)
        if how == "expired":
            history.given(call("x", 0))
        event = adjusted(history, refund("k", 4 * CREDIT))
        assert (event.draws, event.refund, event.category) == ((), 4 * CREDIT, category)
        assert history.available == 4 * CREDIT
        assert history.at(START + 900 * DAY).available == 4 * CREDIT, "it does not expire"

    @pytest.mark.parametrize("parts", [(10,), (4, 4, 2), (1,) * 10, (9, 1)], ids=str)
    @pytest.mark.parametrize("posted", [False, True], ids=["asked for", "posted"])
    def test_a_refund_in_parts_goes_where_it_goes_at_once(self, parts: tuple[int, ...], posted: bool) -> None:
        """A fresh grant stands for the one that is gone: that one is not owed the same credit again."""
        history = History().given(
            granted(10, "a", priority=-1),
            granted(9, "b", category="promo", expires=START + DAY),
            call("other", 4 * CREDIT),
            Post("h", 10 * CREDIT) if posted else Report("h", 10 * CREDIT),
            Void("other", "unsent"),
        )
        history.at(START + 2 * DAY)
        for number, part in enumerate(parts, 1):
            asked = Post(f"h:{number}", -part * CREDIT, adjusts="h") if posted else refund(f"k{number}", part * CREDIT)
            history.given(asked)
        fresh = sum(one.remaining for one in history.account.credits if one.category == "promo")
        assert (fresh, history.available) == (4 * CREDIT, 14 * CREDIT)

    def test_it_does_too_where_a_dead_owner_speaks_in_between(self) -> None:
        history = History().given(
            granted(10, "a", priority=-1),
            granted(9, "b", category="promo", expires=START + DAY),
            call("other", 4 * CREDIT),
        )
        history.given(call(fixed=10 * CREDIT), Void("other", "unsent"))
        history.given(Settle("h", 10 * CREDIT, 0, 0, lost_owner=True)).at(START + 2 * DAY)
        history.given(refund("a", 4 * CREDIT), settled(charge=5 * CREDIT), refund("b", CREDIT))
        fresh = sum(one.remaining for one in history.account.credits if one.category == "promo")
        assert (fresh, history.available) == (4 * CREDIT, 14 * CREDIT)

    def test_a_report_is_corrected_as_a_call_is(self) -> None:
        history = History().given(granted(5), Report("pages", 3 * CREDIT))
        assert adjusted(history, refund("k", CREDIT, "pages")).draws == ((1, -CREDIT),)

    def test_an_expired_hold_too(self) -> None:
        history = History().given(granted(5), call(fixed=4 * CREDIT), Settle("h", 4 * CREDIT, 0, 0, lost_owner=True))
        assert adjusted(history, refund("k", CREDIT)).draws == ((1, -CREDIT),)

    def test_a_correction_upwards_is_drawn_as_any_charge_and_what_nothing_covers_is_debt(self) -> None:
        history = charged(4, grant=5)
        event = adjusted(history, Adjust("k", "h", 3 * CREDIT, "price list"))
        assert (event.draws, event.debt, event.reason) == (((1, CREDIT),), 2 * CREDIT, "price list")

    def test_a_correction_moves_credit_and_leaves_the_limits_as_they_are(self) -> None:
        terms = Terms(1, (Limit("l", "credits", 9 * CREDIT), Limit("r", "requests", 9)))
        history = History().given(SetTerms(terms), granted(9), Report("h", 4 * CREDIT), refund("k", 4 * CREDIT))
        assert sorted(counter.used for counter in history.account.counters.values()) == [1, 4 * CREDIT]

    def test_a_refund_of_the_present_cycles_credits_lapses_with_them(self) -> None:
        history = History().given(SetTerms(Terms(1, plan=Plan("p", 5 * CREDIT))), call(fixed=4 * CREDIT))
        history.given(settled(charge=4 * CREDIT), refund("k", 4 * CREDIT))
        assert history.available == 5 * CREDIT
        assert history.at(START + 40 * DAY).available == 5 * CREDIT


class TestNeverMore:
    def test_than_was_charged_all_corrections_together(self) -> None:
        history = charged(4).given(refund("a", 3 * CREDIT))
        with pytest.raises(LedgerRuleError, match="more than the record charged"):
            history.ask(refund("b", 2 * CREDIT))
        history.given(refund("b", CREDIT))
        with pytest.raises(LedgerRuleError):
            history.ask(refund("c", 1))
        assert (history.account.charged, history.available) == (0, 10 * CREDIT)
        history.given(Adjust("d", "h", CREDIT), refund("e", CREDIT))
        assert history.available == 10 * CREDIT

    @pytest.mark.parametrize("late", [settled(charge=CREDIT), Void("h", "unsent")], ids=["settled", "void"])
    @pytest.mark.parametrize("back", [4, 2])
    def test_than_was_charged_when_a_dead_owner_speaks_after_a_refund(self, late: Settle | Void, back: int) -> None:
        history = History().given(granted(10), call(fixed=4 * CREDIT), Settle("h", 4 * CREDIT, 0, 0, lost_owner=True))
        history.given(refund("k", back * CREDIT), late)
        assert history.account.charged == 0 if back == 4 or isinstance(late, Void) else history.account.charged >= 0
        assert history.available == 10 * CREDIT - history.account.charged
        assert isinstance(history.ask(late), Repeated)

    def test_than_was_charged_by_refunds_after_a_dead_owner_spoke(self) -> None:
        history = History().given(granted(10), call(fixed=4 * CREDIT), Settle("h", 4 * CREDIT, 0, 0, lost_owner=True))
        history.given(settled(charge=CREDIT))
        with pytest.raises(LedgerRuleError):
            history.ask(refund("k", 2 * CREDIT))
        history.given(refund("k", CREDIT))
        assert history.available == 10 * CREDIT

    @pytest.mark.parametrize("seed", range(20))
    def test_than_each_grant_paid_whatever_the_order(self, seed: int) -> None:
        rng = random.Random(seed)
        history = History()
        for number in range(4):
            expires = START + rng.randint(1, 9) * DAY if rng.random() < 0.5 else None
            category = rng.choice(["promo", "plan", "bundle", "top_up"])
            history.given(Grant(f"g{number}", rng.randint(1, 9), category, rng.randint(-1, 1), None, expires))
        total = history.available
        history.given(Report("h", rng.randint(0, total + 5)))
        net = history.account.charged
        for number in range(ADJUSTMENTS_MOST):
            if rng.random() < 0.3:
                history.at(history.now + DAY)
            amount = rng.randint(-6, 3)
            if net + amount < 0:
                with pytest.raises(LedgerRuleError):
                    history.ask(Adjust(f"k{number}", "h", amount))
                history.given(Adjust(f"k{number}", "h", 0))
                amount = 0
            else:
                history.given(Adjust(f"k{number}", "h", amount))
            net += amount
            assert history.account.charged == net >= 0
        with pytest.raises(LedgerRuleError, match="16 times"):
            history.ask(Adjust("more", "h", 0))


class TestIdempotent:
    def test_the_same_key_and_content_is_the_first_receipt_again(self) -> None:
        history = charged()
        first = adjusted(history, refund("k", CREDIT, reason="typo"))
        assert history.ask(refund("k", CREDIT, reason="typo")) == Repeated(first)
        for other in (refund("k", 2 * CREDIT, reason="typo"), refund("k", CREDIT, reason="other")):
            with pytest.raises(Conflict):
                history.ask(other)
        assert history.available == 7 * CREDIT

    def test_a_key_belongs_to_its_record(self) -> None:
        history = charged().given(Report("other", CREDIT), refund("k", CREDIT))
        assert isinstance(history.event(refund("k", CREDIT, "other")), Adjusted)

    def test_corrections_are_numbered_so_that_two_at_once_meet(self) -> None:
        """Two processes that both give back three of four: the second finds the first one's number taken."""
        history = charged().given(refund("a", 3 * CREDIT))
        assert adjusted(history, refund("b", CREDIT)).number == 2

    def test_what_is_not_a_record_cannot_be_corrected(self) -> None:
        history = charged().given(call("open"), call("gone"), Void("gone", "unsent"))
        for of in ("open", "gone", "nobody"):
            with pytest.raises(UnknownHold):
                history.ask(refund("k", 1, of))

    def test_a_settlement_is_repeated_after_its_correction(self) -> None:
        history = charged().given(refund("k", CREDIT))
        assert isinstance(history.ask(settled(charge=4 * CREDIT)), Repeated)
        with pytest.raises(Conflict):
            history.ask(Void("h", "unsent"))

    def test_a_record_that_another_ledger_decided_on_is_corrected_here(self) -> None:
        history = History().given(granted(5), Post("x", 4 * CREDIT))
        assert adjusted(history, refund("k", CREDIT, "x")).draws == ((1, -CREDIT),)


def test_a_refund_makes_the_next_call_pass() -> None:
    history = charged(10, 10)
    assert isinstance(history.ask(call("next")), Declined)
    history.given(refund("k", CREDIT))
    assert isinstance(history.ask(call("next")), list)
