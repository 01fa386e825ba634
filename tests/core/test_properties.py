"""Random histories of one customer: no credit is created or lost, and admission is exact after every entry (G4)."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lava_middleware.core.account import OVERAGE, UNLIMITED, Account, Credit
from lava_middleware.core.agreements import as_of
from lava_middleware.core.commands import (
    Adjust,
    Authorize,
    EndRun,
    Extend,
    FailTopup,
    Grant,
    Report,
    SetTerms,
    Settle,
    StartRun,
    StartTopup,
    Void,
)
from lava_middleware.core.decide import LedgerRuleError, due
from lava_middleware.core.events import (
    Adjusted,
    Crossed,
    Cycled,
    Draws,
    Event,
    Extended,
    Granted,
    Held,
    Lapsed,
    Repaid,
    Reported,
    RunEnded,
    RunStarted,
    Settled,
    TermsSet,
    TopupFailed,
    TopupStarted,
    Voided,
)
from lava_middleware.core.evolve import _FOLD, evolve
from lava_middleware.core.terms import Limit, Plan, TermsError, TopUp
from lava_middleware.core.tiers import Tiers

from .history import History

DAY = 86_400_000_000
CATEGORIES = ("promo", "plan", "bundle", "top_up")

ticks = st.integers(0, 1_000)
which = st.integers(0, 30)
"""Of the holds that are open, or ended lately."""
runs = st.sampled_from(["r1", "r2", "r3", "r4"])
scopes = st.lists(
    st.sampled_from([("model", "m1"), ("model", "m2"), ("user", "u1"), ("user", "u2")])
    | runs.map(lambda run: ("run", run)),
    max_size=2,
    unique=True,
).map(lambda found: tuple(sorted(found)))
TIERS = (
    Tiers("falling", ((0, 5_000_000), (300, 3_000_000), (900, 1_000_000))),
    Tiers("rising", ((0, 0), (300, 1_000_000), (900, 4_000_000)), "day"),
)
tiers = st.none() | st.sampled_from(TIERS)
plans = st.none() | st.builds(
    Plan,
    st.sampled_from(["basic", "pro"]),
    ticks,
    st.sampled_from(["day", "week", "month", "year"]),
    st.sampled_from(["", "2026-01-31", "2024-02-29"]),
    st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Kiritimati", "Etc/GMT+12"]),
    st.none() | st.just(0) | ticks,
    st.none() | st.just(0) | ticks,
)
limits = st.builds(
    Limit,
    st.sampled_from(["a", "b"]),
    st.sampled_from(["tokens", "input_tokens", "output_tokens", "requests", "credits"]),
    st.integers(0, 3_000),
    st.sampled_from(["hour", "day", "month", "cycle", "lifetime"]),
    st.sampled_from(["UTC", "Pacific/Kiritimati"]),
    of=st.sampled_from([(), (("model", "m1"),)]),
    per=st.sampled_from(["", "user"]),
    on_reach=st.sampled_from(["block", "block", "warn"]),
    strict=st.booleans(),
    thresholds=st.sampled_from([(), (50, 100)]),
)
top_ups = st.none() | st.builds(
    lambda below, amount, most: TopUp(below, amount, amount + most), ticks, st.integers(1, 500), ticks
)


class Bank:
    """The same history added up by someone who knows nothing of accounts: plain sums over the events."""

    def __init__(self) -> None:
        self.granted: dict[int, int] = {}
        self.taken: Counter[int] = Counter()
        self.reserved: Counter[int] = Counter()
        self.charged = self.incurred = self.debt = 0
        self.came = self.went = 0
        """Credit that came into the account and left it, over all grants."""
        self.holds: dict[str, Draws] = {}
        self.runs: dict[str, Counter[int]] = {}
        """Run → what it has reserved."""
        self.cycle = 0
        self.version = 0

    def add(self, event: Event) -> None:
        self.version += 1
        getattr(self, f"_{type(event).__name__.lower()}")(event)

    def left(self, grant: int) -> int:
        return self.granted[grant] - self.taken[grant]

    def _grant(self, grant: int, amount: int) -> None:
        self.granted[grant] = self.granted.get(grant, 0) + amount
        self.came += amount

    def _take(self, draws: Draws) -> int:
        for grant, amount in draws:
            self.taken[grant] += amount
        total = sum(amount for _, amount in draws)
        self.went += total
        return total

    def _repay(self, draws: Draws) -> None:
        self.debt -= self._take(draws)

    def _post(self, charge: int, draws: Draws, debt: int) -> None:
        assert charge == self._take(draws) + debt, "a charge is what is posted and what is owed"
        self.charged += charge
        self.debt += debt
        self.incurred += debt

    def _set_aside(self, draws: Draws, sign: int = 1) -> None:
        for grant, amount in draws:
            self.reserved[grant] += sign * amount

    def _run(self, scopes: tuple[tuple[str, str], ...], draws: Draws, sign: int = 1) -> None:
        """What a run has reserved changes, and with it what is reserved."""
        if draws:
            run = next(self.runs[name] for scope, name in scopes if scope == "run" and name in self.runs)
            for grant, amount in draws:
                run[grant] += sign * amount
                assert run[grant] >= 0, "nobody takes from a run what it has not reserved"
            self._set_aside(draws, sign)

    def _granted(self, event: Granted) -> None:
        self.debt -= event.debt_repaid
        self._grant(self.version, event.amount - event.debt_repaid)

    def _held(self, event: Held) -> None:
        assert event.hold not in self.holds
        assert event.amount == sum(amount for _, amount in event.draws)
        self._run(event.scopes, event.reserve, -1)
        self.holds[event.hold] = event.draws
        self.scopes_of(event.hold, event.scopes)
        self._set_aside(event.draws)

    def scopes_of(self, hold: str, scopes: tuple[tuple[str, str], ...] | None = None) -> tuple[tuple[str, str], ...]:
        known = self.__dict__.setdefault("known", {})
        return known.setdefault(hold, scopes)  # type: ignore[no-any-return]

    def _extended(self, event: Extended) -> None:
        assert event.amount == sum(amount for _, amount in event.draws)
        self._run(self.scopes_of(event.hold), event.reserve, -1)
        self.holds[event.hold] += event.draws
        self._set_aside(event.draws)

    def _settled(self, event: Settled) -> None:
        self._set_aside(self.holds.pop(event.hold), -1)
        self._run(self.scopes_of(event.hold), event.reserve)
        self._post(event.charge, event.draws, event.debt)
        self._repay(event.repaid)

    def _voided(self, event: Voided) -> None:
        self._set_aside(self.holds.pop(event.hold), -1)
        self._run(self.scopes_of(event.hold), event.reserve)
        self._repay(event.repaid)

    def _reported(self, event: Reported) -> None:
        self._run(event.scopes, event.reserve)
        self._post(event.charge, event.draws, event.debt)

    def _adjusted(self, event: Adjusted) -> None:
        self._run(event.scopes, event.reserve)
        self._post(event.charge + event.refund, event.draws, event.debt)
        self.charged -= event.refund
        if event.refund:
            self._grant(self.version, event.refund)

    def _repaid(self, event: Repaid) -> None:
        self._repay(event.draws)

    def _lapsed(self, event: Lapsed) -> None:
        left = self._take(event.draws) + event.overage_used
        assert left == sum(amount for _, amount in event.draws if amount > 0), "overage that was used is told"
        if event.rolled:
            assert event.rolled <= sum(amount for _, amount in event.draws if amount > 0)
            if not (self.left(self.cycle) or self.reserved[self.cycle]):
                self.cycle = self.version
            self._grant(self.cycle, event.rolled)

    def _cycled(self, event: Cycled) -> None:
        left = self._take(event.draws) + event.overage_used
        assert left + event.included == event.amount + event.debt_repaid + event.lapsed, "what becomes of a cycle"
        assert min(event.amount, event.rolled, event.debt_repaid, event.lapsed, event.overage_used) >= 0
        assert event.carried_most is None or event.rolled <= event.carried_most
        self.debt -= event.debt_repaid
        self.cycle = self.version
        self._grant(self.version, event.amount)
        self.granted[-self.version] = 0

    def _termsset(self, event: TermsSet) -> None:
        self.granted[-self.version] = 0

    def _runstarted(self, event: RunStarted) -> None:
        self._set_aside(event.draws)
        if event.draws:
            self.runs[event.run] = Counter(dict(event.draws))

    def _runended(self, event: RunEnded) -> None:
        self._set_aside(tuple(self.runs.pop(event.run, Counter()).items()), -1)
        self._repay(event.repaid)

    def _nothing(self, event: Crossed | TopupStarted | TopupFailed) -> None:
        """Says nothing of credit."""

    _crossed = _topupstarted = _topupfailed = _nothing


class Audited(History):
    """A history whose every entry is checked the moment it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = Bank()

    def append(self, event: Event) -> None:
        self.draws_in_order(event)
        super().append(event)
        self.bank.add(event)
        self.nothing_is_created_or_lost()
        self.admission_is_exact(event)
        self.runs_are_kept(event)
        self.holds_and_counters_add_up()

    def draws_in_order(self, event: Event) -> None:
        """What is drawn is drawn from living grants, the next one only when the one before it has nothing left."""
        if not isinstance(event, Held | Extended | Reported | RunStarted | Repaid):
            return
        reserve = getattr(event, "reserve", ())
        drawn = Counter(dict(event.draws))
        for grant, amount in reserve:
            drawn[grant] -= abs(amount)
        wanted = drawn.total()
        for credit in sorted(self.account.credits, key=_order):
            if not credit.alive(self.now):
                continue
            part = min(max(credit.remaining + credit.room - credit.reserved, 0), wanted)
            assert drawn.pop(credit.grant, 0) == part, "draw order"
            wanted -= part
        assert not wanted
        assert not any(drawn.values()), "nothing is drawn from a dead grant"

    def nothing_is_created_or_lost(self) -> None:
        bank, account = self.bank, self.account
        assert (account.charged, account.incurred, account.debt) == (bank.charged, bank.incurred, bank.debt)
        assert account.charged == account.posted + account.incurred
        assert account.debt >= 0
        assert {credit.grant: credit.remaining for credit in account.credits if credit.remaining} == {
            grant: bank.left(grant) for grant in bank.granted if bank.left(grant)
        }
        assert sum(credit.remaining for credit in account.credits) == bank.came - bank.went, "over all grants"
        for credit in account.credits:
            assert credit.reserved == bank.reserved[credit.grant]
            assert credit.reserved >= 0
            assert credit.remaining or credit.reserved or credit.room, "what is empty leaves"
            over = credit.category == OVERAGE
            assert over or credit.reserved <= credit.remaining
            assert not over or credit.remaining <= 0
            assert not (over and credit.alive(self.now)) or credit.reserved <= credit.remaining + credit.room
            assert credit.room in (0, UNLIMITED) or over
        assert not any(
            amount for grant, amount in bank.reserved.items() if grant not in {c.grant for c in account.credits}
        )
        assert account.credits == sorted(account.credits, key=Credit.draw_order)

    def admission_is_exact(self, event: Event) -> None:
        """T1, G4: at admission, used + held − overrun is within every limit in force, and credit covers the hold."""
        if not isinstance(event, Held | Extended):
            return
        account = self.account
        if not event.reserve and event.amount:
            assert account.available(self.now) >= 0, "debt is in the way of every new hold"
        for name, window, quantity in event.counts:
            limit, counter = account.limit(name), account.counters[name, window]
            assert limit is not None
            if quantity and limit.on_reach == "block":
                assert counter.held + counter.used - counter.over <= limit.quantity

    def runs_are_kept(self, event: Event) -> None:
        account = self.account
        for name, run in account.runs.items():
            inside = [hold for hold in account.holds.values() if ("run", name) in hold.scopes]
            assert run.held == sum(hold.amount for hold in inside)
            assert run.spent >= 0
            assert run.calls >= 0
            assert run.draws == tuple((grant, amount) for grant, amount in run.draws if amount > 0)
            assert not run.parent or run.parent in account.runs or due(account, self.now), "none outlives its outer one"
        if isinstance(event, Held | Extended) and event.amount:
            for run in account.chain(account.holds[event.hold].scopes):
                assert run.budget is None or run.spent + run.held <= run.budget, "no run exceeds its budget"
                assert run.calls_most is None or run.calls <= run.calls_most or isinstance(event, Extended)

    def holds_and_counters_add_up(self) -> None:
        account = self.account
        held: Counter[tuple[str, str]] = Counter()
        for hold in account.holds.values():
            assert hold.amount == sum(amount for _, amount in hold.draws)
            assert 0 <= hold.expected <= hold.amount
            for name, window, quantity in hold.counts:
                held[name, window] += quantity
            for name, window, quantity, _ in hold.metered:
                held[name, window] += quantity
        for key, counter in account.counters.items():
            assert counter.held == held.pop(key, 0)
            assert 0 <= counter.over <= counter.used
        assert not any(held.values())


def _order(credit: Credit) -> tuple[Any, ...]:
    """Overage last; priority, what expires first, category, what began first, what was granted first."""
    over = credit.category == OVERAGE
    expires = 2**63 if credit.expires is None or over else credit.expires
    category = 0 if over else CATEGORIES.index(credit.category)
    return over, 0 if over else credit.priority, expires, category, credit.starts or 0, credit.grant


class Customer(RuleBasedStateMachine):
    """What many ask for often stands here twice."""

    def __init__(self) -> None:
        super().__init__()
        self.history = Audited()
        self.number = 0

    def hold(self, which: int) -> str:
        """Mostly one that is open."""
        account = self.history.account
        ended = [event.hold for event in self.history.events[-20:] if isinstance(event, Settled | Voided)]
        known = [*list(account.holds) * 3, *ended, "nobody"]
        return known[which % len(known)]

    def try_(self, command: Any) -> None:
        with contextlib.suppress(LedgerRuleError, TermsError):
            self.history.ask(command)

    @initialize(plan=plans, amount=ticks)
    def begin(self, plan: Plan | None, amount: int) -> None:
        self.try_(SetTerms(self.history.account.terms.changed(plan=plan)))
        self.grant(amount * 10, None, None, 0, "top_up")

    @rule(
        amount=ticks,
        days=st.none() | st.integers(0, 60),
        later=st.none() | st.integers(0, 20),
        priority=st.integers(-1, 1),
        category=st.sampled_from(CATEGORIES),
    )
    def grant(self, amount: int, days: int | None, later: int | None, priority: int, category: str) -> None:
        self.number += 1
        now = self.history.now
        starts = None if later is None else now + later * DAY
        expires = None if days is None else now + days * DAY
        self.try_(Grant(f"g{self.number}", amount, category, priority, starts, expires))

    @rule(
        again=st.integers(0, 9),
        fixed=st.integers(0, 200),
        price=st.integers(0, 5) | st.integers(0, 1_000_000),
        tokens=st.integers(0, 200),
        flexible=st.booleans(),
        share=st.integers(1, 3),
        grows=st.booleans(),
        expected=ticks,
        scopes=scopes,
        tiers=tiers,
        metered=st.integers(0, 100),
        hard=st.none() | st.tuples(st.integers(0, 300), st.integers(0, 300)),
    )
    def authorize(
        self,
        again: int,
        fixed: int,
        price: int,
        tokens: int,
        flexible: bool,
        share: int,
        grows: bool,
        expected: int,
        scopes: Any,
        tiers: Tiers | None,
        metered: int,
        hard: Any,
    ) -> None:
        least = tokens // 4 if flexible else tokens
        self.number += again > 0
        self.try_(
            Authorize(
                f"h{self.number}", "o", fixed, tokens, price, tokens, least, share, expected, grows, scopes,
                hard=hard, tiers=tiers, metered=metered, metered_each=metered % 3, metered_expected=metered // 2,
            )
        )  # fmt: skip

    @rule(
        which=which, price=st.integers(0, 5_000_000), left=st.integers(1, 500), slice_=st.integers(1, 300), tiers=tiers
    )
    def extend(self, which: int, price: int, left: int, slice_: int, tiers: Tiers | None) -> None:
        self.try_(Extend(self.hold(which), price, left, slice_, tiers, 1))

    @rule(
        which=which,
        charge=st.integers(0, 300),
        tokens=st.integers(0, 300),
        absorb=st.booleans(),
        forgive=st.booleans(),
        lost=st.booleans(),
        tiers=tiers,
        metered=st.integers(0, 300),
    )
    def settle(
        self, which: int, charge: int, tokens: int, absorb: bool, forgive: bool, lost: bool, tiers: Any, metered: int
    ) -> None:
        self.try_(Settle(self.hold(which), charge, tokens, tokens, "late", absorb, forgive, lost, (), tiers, metered))

    @rule(which=which)
    def void(self, which: int) -> None:
        self.try_(Void(self.hold(which), "closed"))

    @rule(
        charge=st.integers(0, 100),
        tokens=st.integers(0, 100),
        forgive=st.booleans(),
        scopes=scopes,
        tiers=tiers,
        days=st.none() | st.integers(0, 40),
    )
    def report(
        self, charge: int, tokens: int, forgive: bool, scopes: Any, tiers: Tiers | None, days: int | None
    ) -> None:
        self.number += 1
        when = None if days is None else self.history.now - days * DAY
        self.try_(
            Report(
                f"r{self.number}", charge, tokens, tokens, forgive, scopes, (), tiers, tokens if tiers else 0, when=when
            )
        )

    @rule(key=st.integers(0, 9), which=which, charge=st.integers(-500, 200))
    def adjust(self, key: int, which: int, charge: int) -> None:
        self.try_(Adjust(f"k{key}", self.hold(which), charge))

    @rule(back=st.integers(0, 9), charge=st.integers(-500, 200))
    def adjust_a_report(self, back: int, charge: int) -> None:
        self.try_(Adjust(f"k{self.number}", f"r{self.number - back}", charge))

    @rule(limit=limits)
    def limit(self, limit: Limit) -> None:
        with contextlib.suppress(TermsError):
            self.try_(SetTerms(self.history.account.terms.with_limit(limit)))

    @rule(name=st.sampled_from(["a", "b"]))
    def no_limit(self, name: str) -> None:
        self.try_(SetTerms(self.history.account.terms.without_limit(name)))

    @rule(
        plan=plans,
        at_cycle_end=st.booleans(),
        days=st.none() | st.integers(0, 50),
        catalogue=st.integers(0, 3),
        suspended=st.integers(0, 9).map(lambda one: one == 0),
        top_up=top_ups,
    )
    def terms(
        self, plan: Plan | None, at_cycle_end: bool, days: int | None, catalogue: int, suspended: bool, top_up: Any
    ) -> None:
        terms = self.history.account.terms.changed(plan=plan, catalogue=catalogue, suspended=suspended, top_up=top_up)
        self.try_(SetTerms(terms, None if days is None else self.history.now + days * DAY, at_cycle_end))

    @rule(
        run=runs,
        parent=st.just("") | runs,
        budget=st.none() | ticks,
        calls=st.none() | st.integers(0, 4),
        days=st.integers(1, 9),
        reserve=st.booleans(),
    )
    def start_run(self, run: str, parent: str, budget: int | None, calls: int | None, days: int, reserve: bool) -> None:
        self.try_(StartRun(run, budget, calls, self.history.now + days * DAY, parent, reserve))

    @rule(run=runs)
    def end_run(self, run: str) -> None:
        self.try_(EndRun(run))

    @rule(key=st.integers(0, 5), required=ticks)
    def top_up(self, key: int, required: int) -> None:
        self.try_(StartTopup(f"t{key}", required))

    @rule(works=st.booleans())
    def hook_answers(self, works: bool) -> None:
        if (topup := self.history.account.topup) is not None:
            self.try_(Grant(topup.key, topup.amount) if works else FailTopup(topup.key))

    @rule(days=st.sampled_from([0, 0, 0, 1, 7, 31, 400]), microseconds=st.integers(0, DAY))
    def wait(self, days: int, microseconds: int) -> None:
        self.history.at(self.history.now + days * DAY + microseconds)

    @rule(days=st.integers(0, 100))
    def look(self, days: int) -> None:
        """Looking ahead says what will be written, and changes nothing."""
        history, then = self.history, self.history.now + days * DAY
        seen = as_of(history.account, then)
        before = history.account.version
        history.at(then)
        if history.account.version == before:
            assert seen is history.account
        assert seen == history.account

    @invariant()
    def what_is_due_comes_to_an_end_and_debt_stands_beside_no_free_credit(self) -> None:
        self.history.bring_up_to_date()
        account, now = self.history.account, self.history.now
        assert due(account, now) is None
        assert not account.debt or account.free(now) <= 0
        assert account.terms.plan is None or (account.cycle is not None and account.cycle.ends > now)

    def teardown(self) -> None:
        """A snapshot is what the entries add up to."""
        refolded = Account()
        for event, at in zip(self.history.events, self.history.times, strict=True):
            evolve(refolded, event, at)
        assert refolded == self.history.account


Customer.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestCustomer = Customer.TestCase


# The same by weighted chance: hypothesis finds the shortest way to a fault, this goes far ---------------------------


def walk(seed: int, steps: int = 120, history: Audited | None = None) -> Audited:
    """One customer's life, in which calls are many, and what an operator does is rare."""
    rng = random.Random(seed)
    customer = Customer()
    history = customer.history = history or customer.history

    def some(most: int) -> int:
        return rng.choice([0, 1, rng.randint(0, most), rng.randint(0, most)])

    def scopes_() -> tuple[tuple[str, str], ...]:
        named = [("model", rng.choice(["m1", "m2"])), ("user", rng.choice(["u1", "u2"]))]
        named += [("run", rng.choice(["r1", "r2", "r3"]))] if rng.random() < 0.4 else []
        return tuple(sorted(rng.sample(named, rng.randint(0, len(named)))))

    def tiers_() -> Tiers | None:
        return rng.choice([None, None, *TIERS])

    def plan_() -> Plan | None:
        if rng.random() < 0.2:
            return None
        zone = rng.choice(["UTC", "Pacific/Kiritimati", "Etc/GMT+12", "Europe/Berlin"])
        anchor = rng.choice(["", "2026-01-31", "2024-02-29"])
        rollover, overage = rng.choice([0, None, some(900)]), rng.choice([0, None, some(900)])
        return Plan(
            rng.choice("pq"), some(2_000), rng.choice(["day", "week", "month"]), anchor, zone, rollover, overage
        )

    def limit_() -> None:
        unit = rng.choice(["tokens", "requests", "credits", "output_tokens"])
        window = rng.choice(["hour", "day", "month", "cycle", "lifetime"])
        of, per = rng.choice([(), (("model", "m1"),)]), rng.choice(["", "user"])
        block = rng.choice(["block", "warn"])
        limit = Limit(
            rng.choice("ab"), unit, rng.randint(0, 3_000), window, of=of, per=per, on_reach=block, thresholds=(50, 100)
        )
        if rng.random() < 0.3:
            customer.no_limit(limit.name)
        customer.limit(limit)

    def top_up_() -> TopUp | None:
        return rng.choice([None, TopUp(100 + some(900), 1 + some(500), 2_000)])

    def authorize() -> None:
        tokens, per = rng.randint(0, 200), some(50)
        hard = rng.choice([None, (some(300), some(300))])
        customer.authorize(
            rng.randint(0, 20), some(200), some(1_000_000), tokens, rng.random() < 0.5, rng.randint(1, 3),
            rng.random() < 0.5, some(300), scopes_(), tiers_(), per, hard,
        )  # fmt: skip

    def settle() -> None:
        flags = [rng.random() < part for part in (0.1, 0.1, 0.25)]
        customer.settle(rng.randint(0, 30), some(250), some(250), *flags, tiers_(), some(250))

    def report() -> None:
        customer.report(some(150), some(150), rng.random() < 0.1, scopes_(), tiers_(), rng.choice([None, 0, 1, 40]))

    def run() -> None:
        parent = rng.choice(["", "", "r1", "r2"])
        budget, calls = rng.choice([None, some(1_500)]), rng.choice([None, None, some(9)])
        if f"{parent}" not in history.account.runs:
            parent = ""
        name = rng.choice(["r1", "r2", "r3"]) if rng.random() < 0.3 else f"r{rng.randint(1, 3)}"
        customer.start_run(name, parent, budget, calls, rng.randint(1, 9), rng.random() < 0.6)

    def terms() -> None:
        version = history.account.terms.catalogue + rng.choice([0, 0, 1, -1])
        days = rng.choice([None, some(50)])
        customer.terms(plan_(), rng.random() < 0.5, days, max(version, 0), rng.random() < 0.05, top_up_())

    def grant() -> None:
        days, later = rng.choice([None, None, some(60)]), rng.choice([None, None, some(20)])
        customer.grant(some(600), days, later, rng.randint(-1, 1), rng.choice(CATEGORIES))

    def later() -> None:
        customer.wait(rng.choice([0, 0, 0, 0, 1, 7, 31, 300]), rng.randint(0, DAY))

    def nested() -> None:
        """A run of a new name, for old ones never begin again."""
        customer.number += 1
        budget = rng.choice([None, some(1_500)])
        outer = list(history.account.runs) if rng.random() < 0.6 else []
        parent = rng.choice(outer) if outer else ""
        customer.start_run(f"n{customer.number}", parent, budget, None, rng.randint(1, 9), rng.random() < 0.6)

    def inside() -> None:
        """A call of a run that is open."""
        if not history.account.runs:
            return
        name = rng.choice(list(history.account.runs))
        tokens = rng.randint(0, 200)
        customer.number += 1
        history.ask(
            Authorize(
                f"h{customer.number}", "o", some(200), tokens, some(1_000_000), tokens, tokens // 4, rng.randint(1, 3),
                some(300), rng.random() < 0.5, (("run", name),),
            )
        )  # fmt: skip

    def end() -> None:
        if history.account.runs:
            customer.end_run(rng.choice(list(history.account.runs)))

    chances: dict[Callable[[], object], int] = {
        authorize: 20,
        inside: 12,
        settle: 16,
        lambda: customer.extend(
            rng.randint(0, 30), some(1_000_000), rng.randint(1, 500), rng.randint(1, 300), tiers_()
        ): 8,
        lambda: customer.void(rng.randint(0, 30)): 4,
        report: 4,
        lambda: customer.adjust(rng.randint(0, 9), rng.randint(0, 30), rng.randint(-300, 100)): 3,
        lambda: customer.adjust_a_report(rng.randint(0, 9), rng.randint(-300, 100)): 2,
        limit_: 3,
        terms: 3,
        run: 2,
        nested: 2,
        end: 1,
        grant: 4,
        lambda: customer.top_up(rng.randint(0, 99), some(900)): 4,
        lambda: customer.hook_answers(rng.random() < 0.5): 5,
        later: 3,
        lambda: customer.look(some(40)): 1,
    }
    customer.begin(plan_(), 100)
    for act in rng.choices(list(chances), list(chances.values()), k=steps):
        act()
        customer.what_is_due_comes_to_an_end_and_debt_stands_beside_no_free_credit()
    customer.teardown()
    return history


@pytest.mark.soak
def test_long_lives_create_and_lose_nothing(seed: int, soak_count: Callable[[int], int]) -> None:
    """Every kind of event, and the rare ones of them, many times over."""
    kinds: set[type[Event]] = set()
    for number in range(seed * 10_000, seed * 10_000 + soak_count(600)):
        try:
            history = walk(number)
        except Exception as wrong:
            raise AssertionError(f"walk({number}) goes wrong") from wrong
        kinds.update(type(event) for event in history.events)
    assert kinds == set(_FOLD)
