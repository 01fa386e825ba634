"""Random histories of one customer: no credit is created or lost, and admission is exact after every entry (G4)."""

from __future__ import annotations

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lava_middleware.core.commands import Authorize, Extend, Grant, Report, SetTerms, Settle, Void
from lava_middleware.core.decide import Conflict, UnknownHold
from lava_middleware.core.events import Adjusted, Extended, Granted, Held, Lapsed, Reported, Settled, Voided
from lava_middleware.core.terms import Limit

from .history import History

ticks = st.integers(0, 1_000)
names = st.sampled_from([f"h{number}" for number in range(8)])
DAY = 86_400_000_000


class Bank:
    """The same history added up by someone who knows nothing of accounts: plain sums over the events."""

    def __init__(self, history: History) -> None:
        self.granted: dict[int, int] = {}
        self.posted: dict[int, int] = {}
        self.reserved: dict[int, int] = {}
        self.charged = self.debt = self.repaid = self.lapsed = 0
        self.holds: dict[str, tuple[tuple[int, int], ...]] = {}
        for version, event in enumerate(history.events, 1):
            self.add(version, event)

    def add(self, version: int, event: object) -> None:
        match event:
            case Granted():
                self.repaid += event.debt_repaid
                self.granted[version] = event.amount
                self.posted[version] = event.debt_repaid
            case Held():
                self.holds[event.hold] = event.draws
                self.reserve(event.draws, 1)
            case Extended():
                self.holds[event.hold] += event.draws
                self.reserve(event.draws, 1)
            case Settled():
                self.reserve(self.holds.pop(event.hold), -1)
                self.post(event.charge, event.draws, event.debt)
                self.repay(event.repaid)
            case Voided():
                self.reserve(self.holds.pop(event.hold), -1)
                self.repay(event.repaid)
            case Reported():
                self.post(event.charge, event.draws, event.debt)
            case Adjusted():
                self.post(event.charge + event.refund, event.draws, event.debt)
                self.charged -= event.refund
                if event.refund:
                    self.granted[version], self.posted[version] = event.refund, 0
            case Lapsed():
                self.take(event.draws)
                self.lapsed += sum(amount for _, amount in event.draws)

    def reserve(self, draws: tuple[tuple[int, int], ...], sign: int) -> None:
        for grant, amount in draws:
            self.reserved[grant] = self.reserved.get(grant, 0) + sign * amount

    def take(self, draws: tuple[tuple[int, int], ...]) -> None:
        for grant, amount in draws:
            self.posted[grant] += amount

    def post(self, charge: int, draws: tuple[tuple[int, int], ...], debt: int) -> None:
        assert charge == sum(amount for _, amount in draws) + debt, "a charge is what is posted and what is owed"
        self.take(draws)
        self.charged += charge
        self.debt += debt

    def repay(self, draws: tuple[tuple[int, int], ...]) -> None:
        self.take(draws)
        self.repaid += sum(amount for _, amount in draws)


class Customer(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.history = History()
        self.number = 0

    def try_(self, command: object) -> None:
        with contextlib.suppress(Conflict, UnknownHold):
            self.history.ask(command)  # type: ignore[arg-type]

    @rule(
        amount=st.integers(1, 1_000),
        days=st.none() | st.integers(0, 60),
        later=st.none() | st.integers(0, 20),
        priority=st.integers(-1, 1),
        category=st.sampled_from(["promo", "plan", "bundle", "top_up"]),
    )
    def grant(self, amount: int, days: int | None, later: int | None, priority: int, category: str) -> None:
        self.number += 1
        now = self.history.now
        starts = None if later is None else now + later * DAY
        expires = None if days is None else now + days * DAY
        self.try_(Grant(f"g{self.number}", amount, category, priority, starts, expires))

    @rule(
        name=names,
        fixed=ticks,
        price=st.integers(0, 5) | st.integers(0, 5_000_000),
        tokens=st.integers(0, 200),
        flexible=st.booleans(),
        share=st.integers(1, 3),
        grows=st.booleans(),
        expected=ticks,
    )
    def authorize(
        self, name: str, fixed: int, price: int, tokens: int, flexible: bool, share: int, grows: bool, expected: int
    ) -> None:
        least = tokens // 4 if flexible else tokens
        self.try_(Authorize(name, "o", fixed, tokens, price, tokens, least, share, expected, grows))

    @rule(name=names, price=st.integers(0, 5_000_000), left=st.integers(1, 500), slice_=st.integers(1, 300))
    def extend(self, name: str, price: int, left: int, slice_: int) -> None:
        self.try_(Extend(name, price, left, slice_))

    @rule(name=names, charge=ticks, tokens=ticks, absorb=st.booleans(), lost=st.booleans())
    def settle(self, name: str, charge: int, tokens: int, absorb: bool, lost: bool) -> None:
        self.try_(Settle(name, charge, tokens, tokens, "late", absorb, lost))

    @rule(name=names)
    def void(self, name: str) -> None:
        self.try_(Void(name, "closed"))

    @rule(charge=ticks, tokens=ticks, forgive=st.booleans())
    def report(self, charge: int, tokens: int, forgive: bool) -> None:
        self.number += 1
        self.try_(Report(f"r{self.number}", charge, tokens, tokens, forgive))

    @rule(quantity=st.integers(0, 5_000), unit=st.sampled_from(["tokens", "input_tokens", "output_tokens", "requests"]))
    def limit(self, quantity: int, unit: str) -> None:
        self.try_(SetTerms(self.history.account.terms.with_limit(Limit(unit, unit, quantity))))

    @rule(days=st.integers(0, 40))
    def wait(self, days: int) -> None:
        self.history.now += days * DAY

    @invariant()
    def nothing_is_created_or_lost(self) -> None:
        bank, account = Bank(self.history), self.history.account
        assert account.charged == bank.charged
        assert account.incurred == bank.debt
        assert account.charged == account.posted + account.incurred
        assert account.debt >= 0
        assert {credit.grant: credit.remaining for credit in account.credits} == {
            grant: amount - bank.posted[grant]
            for grant, amount in bank.granted.items()
            if amount - bank.posted[grant] or bank.reserved.get(grant)
        }
        for credit in account.credits:
            assert credit.reserved == bank.reserved.get(credit.grant, 0)
            assert 0 <= credit.reserved <= credit.remaining

    @invariant()
    def admission_is_exact(self) -> None:
        """T1, G4: at the latest admission, held + used − overrun was within every limit in force."""
        account = self.history.account
        if not self.history.events or not isinstance(self.history.events[-1], Held | Extended):
            return
        for limit in account.terms.limits:
            for (name, _), counter in account.counters.items():
                if name == limit.name:
                    newest = self.history.events[-1].counts
                    touched = any(one[0] == name and one[2] for one in newest)
                    assert not touched or counter.held + counter.used - counter.over <= limit.quantity

    @invariant()
    def counters_never_go_below_zero(self) -> None:
        for counter in self.history.account.counters.values():
            assert counter.held >= 0
            assert 0 <= counter.over <= counter.used

    @invariant()
    def a_hold_is_what_its_draws_are(self) -> None:
        for hold in self.history.account.holds.values():
            assert hold.amount == sum(amount for _, amount in hold.draws)
            assert 0 <= hold.expected <= hold.amount


Customer.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCustomer = Customer.TestCase
