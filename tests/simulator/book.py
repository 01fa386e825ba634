"""This file knows how to add up one customer's journal entry by entry, and what may stand in it, by sums of its own.

It reads commands and the events that answered them. It uses neither `decide` nor `evolve`, and its calendar is its
own, so a mistake in them cannot hide itself.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import Any

from lava_middleware.core.account import Account
from lava_middleware.core.commands import (
    OVERRUN_CAUSES,
    Adjust,
    Authorize,
    Command,
    EndRun,
    Extend,
    FailTopup,
    Grant,
    Post,
    Report,
    SetTerms,
    Settle,
    StartRun,
    StartTopup,
    Void,
)
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
    Metered,
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
from lava_middleware.core.terms import NO_TERMS, Limit, Plan, Terms
from lava_middleware.core.tiers import Tiers
from lava_middleware.ledger.journal import Entry

from .calendars import DAY, span, window

PER_MILLION = 1_000_000
UNLIMITED = 2**60
LARGEST = 2**62
LATE = 7 * DAY
CATEGORIES = ("promo", "plan", "bundle", "top_up")

_ANSWERS: dict[type[Any], tuple[tuple[type[Any], ...], str]] = {
    # event → (what it answers, the name of the field that both are of). Missing: nobody asks for it.
    Held: ((Authorize,), "hold"),
    Extended: ((Extend,), "hold"),
    Settled: ((Settle,), "hold"),
    Voided: ((Void,), "hold"),
    Granted: ((Grant,), "key"),
    Reported: ((Report, Post), ""),
    Adjusted: ((Settle, Void, Adjust, Post), ""),
    TermsSet: ((SetTerms,), "terms"),
    RunStarted: ((StartRun,), "run"),
    RunEnded: ((EndRun,), "run"),
    TopupStarted: ((StartTopup,), "key"),
    TopupFailed: ((FailTopup,), "key"),
}


class Purse:
    """One grant."""

    __slots__ = ("expires", "left", "order", "over", "reserved", "rolls", "room", "starts")

    def __init__(
        self,
        grant: int,
        left: int,
        category: str = "plan",
        priority: int = 0,
        starts: int | None = None,
        expires: int | None = None,
    ) -> None:
        self.left = left
        self.reserved = 0
        self.room = 0
        """How far an overage may go below nothing."""
        self.starts, self.expires = starts, expires
        self.over, self.rolls = False, False
        never = expires is None
        self.order = (False, priority, never, expires or 0, CATEGORIES.index(category), starts or 0, grant)
        """Priority, what expires first, category, what began first, what was granted first; overage last."""

    def alive(self, at: int) -> bool:
        return (self.starts is None or self.starts <= at) and (self.expires is None or at < self.expires)

    @property
    def free(self) -> int:
        return self.left + self.room - self.reserved

    def __lt__(self, other: Purse) -> bool:
        return self.order < other.order


class Open:
    """One open hold."""

    __slots__ = ("amount", "asked", "counts", "draws", "metered", "scopes")

    def __init__(self, scopes: tuple[tuple[str, str], ...], asked: Authorize) -> None:
        self.asked = asked
        self.amount = 0
        self.draws: dict[int, int] = {}
        self.counts: dict[tuple[str, str], int] = {}
        self.metered: dict[tuple[str, str, int], int] = {}
        self.scopes = scopes


class Window:
    __slots__ = ("held", "over", "used")

    def __init__(self) -> None:
        self.held = self.used = self.over = 0


class Run:
    __slots__ = ("budget", "calls", "calls_most", "expires", "held", "parent", "reserve", "reserves", "spent")

    def __init__(self, event: RunStarted) -> None:
        self.parent, self.budget, self.calls_most = event.parent, event.budget, event.calls_most
        self.expires = event.expires
        self.reserve = dict(event.draws)
        self.reserves = bool(event.draws)
        self.spent = self.held = self.calls = 0


class Book:
    """One customer's journal so far. `entry` adds one and raises AssertionError where a rule was broken."""

    def __init__(self) -> None:
        self.version = self.at = 0
        self.now = 0
        """When the entry was decided on."""
        self.asked: Any = None
        """The command that it answers."""
        self.keys: set[str] = set()
        self.purses: dict[int, Purse] = {}
        self.order: list[Purse] = []
        self.came = self.drawn = self.lapsed = 0
        """All that was ever granted, that was taken to pay, and that was written off."""
        self.debt = self.charged = self.incurred = 0
        self.holds: dict[str, Open] = {}
        self.ended: set[str] = set()
        self.amounts: dict[str, int] = {}
        """Hold that has ended → all that was ever held for it."""
        self.terms: Terms = NO_TERMS
        self.since = 0
        """When they came into force."""
        self.following: set[int] = set()
        """Moments from which other terms were to be in force."""
        self.promised: tuple[int, Plan | None] | None = None
        """A plan that was promised for later, and not changed since."""
        self.cycle: Cycled | None = None
        self.rolled = 0
        self.cycle_grant = 0
        self.windows: dict[tuple[str, str], Window] = {}
        self.fired: dict[tuple[str, str], int] = {}
        self.touched: set[tuple[str, str]] = set()
        """Windows used since the last look at their thresholds."""
        self.runs: dict[str, Run] = {}
        self.ever: set[str] = set()
        """Every run there was."""
        self.topup: TopupStarted | None = None
        self.topups_stopped = False
        self.bought: dict[tuple[str, str], int] = {}
        """(kind of window, its id) → credits bought in it."""
        self.purchased: dict[str, int] = {}
        """Key of a purchase → what was granted for it."""
        self.owed: dict[str, int] = {}
        """Record → what it has charged, all corrections included."""
        self.paid_by: dict[str, list[tuple[Draws, int]]] = {}
        """Record → (draws, fresh grant) of it and of its corrections, in the order of the journal; itself first."""

    def entry(self, entry: Entry, event: Event, command: Command | None, now: int) -> None:
        assert entry.version == self.version + 1, "versions have no gaps"
        assert entry.at > self.at, "time runs forward"
        assert entry.key is None or entry.key not in self.keys, "a key stands once"
        self.version, self.at, self.now = entry.version, entry.at, now
        if entry.key is not None:
            self.keys.add(entry.key)
        self.asked = self._answered(event, command)
        if self.asked is not None:
            self._nothing_was_due()
        else:
            assert isinstance(event, TermsSet | RunEnded) or type(event) not in _ANSWERS, "nobody has asked for that"
        getattr(self, f"_{type(event).__name__.lower()}")(event)
        assert 0 <= self.debt < LARGEST
        assert sum(purse.left for purse in self.order if not purse.over) < LARGEST, "T24: a sum within its bounds"
        assert entry.balance_after == self._balance(), "the balance after it is that of a bank statement"

    def _answered(self, event: Event, command: Command | None) -> Command | None:
        kinds, name = _ANSWERS.get(type(event), ((), ""))
        if command is None or not isinstance(command, kinds):
            return None
        if isinstance(event, TermsSet) and event.effective is not None and event.effective <= self.now:
            return None
        if isinstance(event, RunEnded) and (event.expired or self.runs[event.run].parent not in ("", *self.runs)):
            return None
        return command if not name or getattr(event, name) == getattr(command, name) else None

    def _balance(self) -> int:
        total = -self.debt
        for purse in self.order:
            total += purse.left if purse.alive(self.at) else min(purse.left, purse.reserved)
        return total

    def _nothing_was_due(self) -> None:
        """What calendar and terms decide by themselves stands in the journal before anything that is asked for."""
        now, cycle = self.now, self.cycle
        if self.debt:
            assert self.free() <= 0, "debt is repaid first, from whatever becomes free"
        for name, run in self.runs.items():
            assert now < run.expires, f"run {name} should have ended"
            assert not run.parent or run.parent in self.runs, f"run {name} outlives the one it is a part of"
        if self.terms.plan is not None:
            assert cycle is not None, "a plan has a cycle"
            assert cycle.plan == self.terms.plan.name
            assert now < cycle.ends, "a cycle begins before anything is drawn in it"
        else:
            assert cycle is None, "no plan, no cycle"
        assert self.promised is None or now < self.promised[0], "what was promised for this moment is in force"
        for name, id in self.touched:
            limit = self._limit(name)
            if limit is not None and limit.thresholds and (used := self.windows[name, id].used):
                reached = max((one for one in limit.thresholds if used * 100 >= one * limit.quantity), default=0)
                assert self.fired.get((name, id), 0) >= reached, "a threshold that was reached has fired"
        self.touched.clear()

    # Grants -----------------------------------------------------------------------------------------------------------

    def free(self) -> int:
        """What living grants have left that nobody has reserved."""
        return sum(purse.free for purse in self.order if purse.alive(self.now))

    def _add(self, grant: int, purse: Purse) -> None:
        self.purses[grant] = purse
        insort(self.order, purse)
        self.came += purse.left

    def _take(self, draws: Iterable[tuple[int, int]]) -> int:
        """Posted: taken from grants, or (negative) given back to them."""
        total = 0
        for grant, ticks in draws:
            self.purses[grant].left -= ticks
            total += ticks
            self._kept(grant)
        self.drawn += total
        return total

    def _reserve(self, draws: Iterable[tuple[int, int]], sign: int = 1) -> None:
        for grant, ticks in draws:
            self.purses[grant].reserved += sign * ticks
        for grant, _ in draws:
            self._kept(grant)

    def _kept(self, grant: int) -> None:
        """G4: what is held of a grant and what was drawn from it never exceed it; what is empty leaves."""
        purse = self.purses.get(grant)
        if purse is None:
            return
        assert purse.reserved >= 0, "nobody gives back what was not reserved"
        if not purse.over:
            assert purse.left >= purse.reserved, (
                f"reserved + posted is at most the grant: {purse.reserved - purse.left} too many"
            )
        elif purse.room:
            assert purse.free >= 0, f"an overage is at most its cap: {-purse.free} too many"
        if not (purse.left or purse.reserved or purse.room):
            del self.purses[grant]
            self.order.remove(purse)

    def _in_order(self, amount: int, taken: dict[int, int] | None = None) -> tuple[dict[int, int], int]:
        """(draws, what nothing covers): from living grants in draw order, from what is not reserved.

        `taken`: where the draws are added to.
        """
        draws = {} if taken is None else taken
        if amount > 0:
            for purse in self.order:
                if (free := purse.free) > 0 and purse.alive(self.now):
                    grant = purse.order[-1]
                    part = min(free, amount)
                    draws[grant] = draws.get(grant, 0) + part
                    amount -= part
                    if not amount:
                        break
        return draws, max(amount, 0)

    def _drawn(self, event: Any, amount: int, run: Run | None, sign: int) -> int:
        """Of an amount that nothing preceded: its run's reserve pays first, then grants in order. The rest."""
        reserve, beyond = _first(run.reserve, amount) if run is not None else ({}, amount)
        draws, missing = self._in_order(beyond, dict(reserve))
        assert dict(event.draws) == draws, "draw order: the next grant only when the one before it is empty"
        assert dict(event.reserve) == {grant: sign * ticks for grant, ticks in reserve.items()}
        return missing

    def _granted(self, event: Granted) -> None:
        self.topups_stopped = False
        repaid = 0
        if (event.starts is None or event.starts <= self.now) and (event.expires is None or self.now < event.expires):
            repaid = min(self.debt, event.amount)
        assert event.debt_repaid == repaid, "a grant repays debt first"
        self.debt -= repaid
        self.came += repaid
        self.drawn += repaid
        if self.topup is not None and self.topup.key == event.key:
            assert event.amount == self.topup.amount, "what was bought is what is granted"
            self.purchased[event.key] = event.amount
            self.topup = None
        if event.amount > repaid:
            left, more = event.amount - repaid, (event.category, event.priority, event.starts, event.expires)
            self._add(self.version, Purse(self.version, left, *more))

    def _repaid(self, event: Repaid) -> None:
        draws, _ = self._in_order(self.debt)
        assert dict(event.draws) == draws, "draw order"
        self.debt -= self._take(event.draws)

    def _lapsed(self, event: Lapsed) -> None:
        rolling = used = 0
        for grant, ticks in event.draws:
            purse = self.purses[grant]
            assert not purse.alive(self.now), "only what has expired lapses"
            assert ticks == purse.left - purse.reserved, "all of it that nobody holds"
            rolling += ticks if purse.rolls else 0
            if purse.over:
                assert self.cycle is None, "overage is told to be invoiced when the cycle ends"
                assert not purse.reserved, "and once all of it is known"
                used -= ticks
        assert event.overage_used == used, "what is written off of an overage is invoiced"
        taken = self._take(event.draws)
        self.drawn -= taken
        self.lapsed += taken + used
        self.came += used
        expected = 0
        if rolling and self.cycle is not None and self.now < self.cycle.ends:
            most = self.cycle.carried_most
            expected = rolling if most is None else min(rolling, max(most - self.rolled, 0))
        assert event.rolled == expected, "what a hold gives back of an earlier cycle goes over, up to the plan's most"
        if expected:
            self._roll(expected)

    def _roll(self, ticks: int) -> None:
        assert self.cycle is not None
        self.rolled += ticks
        self.lapsed -= ticks
        purse = self.purses.get(self.cycle_grant)
        if purse is not None:
            purse.left += ticks
            return
        self.cycle_grant = self.version
        purse = Purse(self.version, ticks, expires=self.cycle.ends)
        purse.rolls = True
        self._add(self.version, purse)
        self.came -= ticks

    # Calls ------------------------------------------------------------------------------------------------------------

    def _held(self, event: Held) -> None:
        asked = self.asked
        assert asked is not None
        assert event.hold not in self.holds
        assert event.hold not in self.ended
        self._admitted(event.scopes)
        hold = self.holds[event.hold] = Open(event.scopes, asked)
        assert asked.output_tokens_min <= event.output_tokens <= asked.output_tokens
        limits = self._applying(event.scopes, self.now)
        fixed, given = asked.fixed, asked.input_tokens
        if asked.hard is not None and any(limit.strict for limit, _ in limits):
            fixed, given = max(fixed, asked.hard[0]), max(given, asked.hard[1])
        least = fixed + _ceiling(event.output_tokens * asked.output_price)
        if asked.tiers is None:
            assert event.amount == least, "a hold is the bound of what may be owed"
        else:
            quantity = asked.metered + asked.metered_each * event.output_tokens
            self._tiers_held(event.amount - least, asked.tiers, quantity)
            self._metered_held(hold, event.metered, asked.tiers, quantity)
        needs = {
            "tokens": given + event.output_tokens,
            "input_tokens": given,
            "output_tokens": event.output_tokens,
            "requests": 1,
            "open_calls": 1,
            "credits": event.amount,
        }
        units = dict(asked.units)
        wanted = [(one.name, id, needs.get(one.unit, units.get(one.unit, 0))) for one, id in limits]
        assert list(event.counts) == wanted, "every limit that applies counts the call, in the window of its moment"
        for _, run in self._chain(event.scopes):
            run.calls += 1
            assert run.calls_most is None or run.calls <= run.calls_most, "a run has no more calls than it may"
        self._more_held(hold, event)

    def _extended(self, event: Extended) -> None:
        asked, hold = self.asked, self.holds.get(event.hold)
        assert asked is not None
        assert hold is not None, "G2: only an open hold is extended"
        assert not self.terms.suspended, "nobody who is suspended goes on"
        least = _ceiling(event.output_tokens * asked.output_price)
        if asked.tiers is None:
            assert event.amount == least
        else:
            quantity = asked.metered_each * event.output_tokens
            self._tiers_held(event.amount - least, asked.tiers, quantity)
            self._metered_held(hold, event.metered, asked.tiers, quantity)
        needs = {"tokens": event.output_tokens, "output_tokens": event.output_tokens, "credits": event.amount}
        limits = self._applying(hold.scopes, self.now)
        wanted = [(one.name, id, needs[one.unit]) for one, id in limits if needs.get(one.unit)]
        assert list(event.counts) == wanted, "an extension counts in the window of its own moment"
        self._more_held(hold, event)

    def _admitted(self, scopes: tuple[tuple[str, str], ...]) -> None:
        terms, named = self.terms, dict(scopes)
        assert not terms.suspended, "nobody who is suspended begins a call"
        if terms.plan is not None:
            models, meters = terms.plan.models, terms.plan.meters
            assert models is None or named.get("model", models[0] if models else "") in models, "a model of the plan"
            assert meters is None or "meter" not in named or named["meter"] in meters, "a meter of the plan"
        runs = [value for scope, value in scopes if scope == "run"]
        for name in runs:
            assert name in self.runs, "a call begins in a run that is open"
            assert not self.runs[name].parent or self.runs[name].parent in runs, "an outer run pays as well"

    def _more_held(self, hold: Open, event: Held | Extended) -> None:
        run = self._reserving(hold.scopes)
        if event.amount:
            beyond = event.amount - sum(ticks for _, ticks in event.reserve)
            assert beyond <= max(self.free() - self.debt, 0), "debt is repaid before anything new is held"
        missing = self._drawn(event, event.amount, run, 1)
        assert not missing, "a hold is wholly reserved"
        if run is not None and event.reserve:
            self._of_run(run, event.reserve, -1)
        self._reserve(event.draws)
        hold.amount += event.amount
        _add_to(hold.draws, event.draws)
        for name, inside in self._chain(hold.scopes):
            inside.held += event.amount
            assert inside.budget is None or inside.spent + inside.held <= inside.budget, f"run {name}: its budget"
        for name, id, quantity in event.counts:
            state = self.windows.setdefault((name, id), Window())
            state.held += quantity
            hold.counts[name, id] = hold.counts.get((name, id), 0) + quantity
            limit = self._limit(name)
            assert limit is not None
            if limit.on_reach == "block":
                room = limit.quantity - (state.held + state.used - state.over)
                assert room >= 0, f"held + used - overrun of a limit is at most the limit: {-room} too many"

    def _settled(self, event: Settled) -> None:
        asked, hold = self.asked, self.holds.get(event.hold)
        assert asked is not None
        assert hold is not None, "G2: a hold ends once"
        run = self._reserving(hold.scopes)
        charge = asked.charge + self._tiers_met(event, asked.tiers, asked.metered, hold.metered, self.now)
        if event.lost_owner:
            begun = hold.asked
            assert asked.units == begun.units, "a dead owner's reservation counts as it was reserved"
            assert asked.metered == sum(part for *_, part, _ in event.metered) == begun.metered_expected
            assert not begun.input_tokens or asked.input_tokens, "and so do its tokens"
        overrun = max(0, charge - hold.amount)
        absorbed = overrun if asked.absorb else 0
        charge -= absorbed
        assert event.overrun == overrun, "G5: an overrun shows"
        if event.overrun or event.over:
            assert event.cause in OVERRUN_CAUSES or event.lost_owner, "G5: an overrun has a cause"
        draws, beyond = _first(hold.draws, charge)
        released = {grant: rest for grant, ticks in hold.draws.items() if (rest := ticks - draws.get(grant, 0))}
        further: dict[int, int] = {}
        if run is not None:
            further, beyond = _first(run.reserve, beyond)
            _add_to(draws, further.items())
        _, debt = self._in_order(beyond, draws)
        forgiven = debt if asked.forgive else self._borne(debt)
        assert (event.charge, event.absorbed) == (charge - forgiven, absorbed + forgiven), "what was asked is charged"
        assert event.debt == debt - forgiven, "G5: only what no grant covers is debt"
        assert dict(event.draws) == draws, "draw order: its own draws first, then grants in order"
        self._end(event.hold)
        for grant, ticks in hold.draws.items():  # looked at below, when the charge has been posted
            self.purses[grant].reserved -= ticks
        if run is not None:
            _add_to(released, [(grant, -ticks) for grant, ticks in further.items()])
            assert dict(event.reserve) == released, "what is left is the run's again"
            self._of_run(run, event.reserve, 1)
        self._post(event.hold, event.charge, event.draws, event.debt)
        for grant in hold.draws:
            self._kept(grant)
        self._pay_debt(event.repaid)
        for _, inside in self._chain(hold.scopes):
            inside.held -= hold.amount
            inside.spent += event.charge
        used = _quantities(asked, event.charge, 1)
        self._used_as_held(event, hold, used)
        self._use(event)

    def _used_as_held(self, event: Settled, hold: Open, used: dict[str, int]) -> None:
        """Windows are filled in the order in which they were held; what exceeds the hold counts in the last."""
        wanted: dict[tuple[str, str], int] = {}
        beyond: dict[tuple[str, str], int] = {}
        for name in dict.fromkeys(name for name, _ in hold.counts):
            limit = self._limit(name)
            assert limit is not None
            left = used.get(limit.unit, 0)
            held = [(key, quantity) for key, quantity in hold.counts.items() if key[0] == name]
            for key, quantity in held[:-1]:
                wanted[key] = min(left, quantity)
                left -= wanted[key]
            key, quantity = held[-1]
            wanted[key], beyond[key] = left, max(left - quantity, 0)
        assert {one[:2]: one[2] for one in event.counts} == {key: part for key, part in wanted.items() if part}
        assert {one[:2]: one[2] for one in event.over} == {key: part for key, part in beyond.items() if part}

    def _voided(self, event: Voided) -> None:
        hold = self.holds.get(event.hold)
        assert hold is not None, "G2: a hold ends once"
        run = self._reserving(hold.scopes)
        self._end(event.hold)
        self._reserve(hold.draws.items(), -1)
        assert dict(event.reserve) == (hold.draws if run is not None else {}), "a run has back what it had reserved"
        if run is not None:
            self._of_run(run, event.reserve, 1)
        self._pay_debt(event.repaid)
        for _, inside in self._chain(hold.scopes):
            inside.held -= hold.amount
            inside.calls -= 1

    def _end(self, name: str) -> None:
        hold = self.holds.pop(name)
        self.ended.add(name)
        self.amounts[name] = hold.amount
        for key, quantity in hold.counts.items():
            self.windows[key].held -= quantity
        for (meter, id, _), quantity in hold.metered.items():
            self.windows[meter, id].held -= quantity

    def _reported(self, event: Reported) -> None:
        asked = self.asked
        assert asked is not None
        when = self.now
        charge, runs, forgive = asked.charge, event.scopes, False
        scopes: tuple[tuple[str, str], ...] = ()
        if isinstance(asked, Report):
            when = min(self.now if asked.when is None else asked.when, self.now)
            charge += self._tiers_met(event, asked.tiers, asked.metered, {}, when)
            scopes, forgive = asked.scopes, asked.forgive
        missing = self._drawn(event, charge, self._reserving(runs), -1)
        forgiven = missing if forgive else 0
        assert (event.charge, event.debt, event.forgiven) == (charge - forgiven, missing - forgiven, forgiven)
        used = _quantities(asked, event.charge, getattr(asked, "requests", 1))
        scopes = (*[one for one in scopes if one[0] != "run" or not runs], *runs)
        counts, over = [], []
        for limit, id in self._applying(scopes, when):
            quantity, state = used.get(limit.unit, 0), self.windows.get((limit.name, id))
            room = max(limit.quantity - (state.used + state.held if state else 0), 0)
            counts.append((limit.name, id, quantity))
            if quantity > room:
                over.append((limit.name, id, quantity - room))
        assert list(event.counts) == counts, "what is reported counts in the window of its moment"
        present = {(limit.name, id) for limit, id in self._applying(scopes, self.now)}
        for one in over:
            assert one in event.over or one[:2] not in present, "what is beyond a limit is named"
        self._of_run(self._reserving(runs), event.reserve, 1)
        self._post(event.key, event.charge, event.draws, event.debt)
        for _, run in self._chain(runs):
            run.spent += event.charge
            run.calls += 1
        self._use(event)

    def _adjusted(self, event: Adjusted) -> None:
        asked = self.asked
        assert asked is not None
        run = self._reserving(event.scopes)
        if event.charge >= 0:
            # What nobody bears of it: a late ending's charge is already without that.
            missing = self._drawn(event, event.charge, run, -1)
            assert not self._borne(missing), "a debt that an account can keep"
            assert event.debt in ((0, missing) if getattr(asked, "forgive", False) else (missing,))
            assert not event.refund
        else:
            assert event.debt <= 0, "debt first"
            given, fresh = self._gives_back(event.hold, event.debt - event.charge)
            assert dict(event.draws) == given, "a living grant has back what it paid, the one drawn last first"
            assert event.refund == fresh, "and a fresh one stands for what is gone, once"
        if isinstance(asked, Settle) and asked.tiers is None:
            overrun = max(0, asked.charge - self.amounts[event.hold])
            absorbed = overrun if asked.absorb else 0
            assert event.overrun == overrun, "G5: an overrun shows, late as well"
            borne = asked.forgive or self._borne(event.debt + 1)
            assert event.absorbed == absorbed or (borne and event.absorbed > absorbed)
        if event.overrun or any(quantity > 0 for *_, quantity in event.over):
            assert event.cause in OVERRUN_CAUSES, "G5: an overrun has a cause, late as well"
        given = sum(ticks for _, ticks in event.draws)
        assert event.charge == given + event.debt - event.refund, "a correction is posted, owed or given back"
        if isinstance(asked, Adjust):
            assert event.charge == asked.charge
        if not isinstance(asked, Post):
            assert event.hold in self.owed, "what is adjusted has been charged"
        self._of_run(run, event.reserve, 1)
        self._post(event.hold, event.charge, event.draws, event.debt, event.refund, corrects=True)
        assert self.owed[event.hold] >= 0 or isinstance(asked, Post), "refunds are never above what was charged"
        if event.refund:
            self._add(self.version, Purse(self.version, event.refund, event.category))
        for _, inside in self._chain(event.scopes):
            inside.spent += event.charge
        self._use(event)

    def _gives_back(self, record: str, back: int) -> tuple[dict[int, int], int]:
        """(negative draws, what goes to a fresh grant): from the last that has paid to the first."""
        paid: dict[int, int] = {}
        for draws, fresh in self.paid_by.get(record, ()):
            _add_to(paid, draws)
            for grant in reversed(list(paid)):
                part = min(paid[grant], fresh)
                fresh -= part
                _add_to(paid, [(grant, -part)])
        given, fresh = {}, 0
        for grant in reversed(list(paid)):
            part = min(paid[grant], back)
            back -= part
            if grant in self.purses and self.purses[grant].alive(self.now):
                given[grant] = -part
            else:
                fresh += part
        return {grant: part for grant, part in given.items() if part}, fresh + back

    def _post(
        self, record: str, charge: int, draws: Draws, debt: int, refund: int = 0, *, corrects: bool = False
    ) -> None:
        assert charge == self._take(draws) + debt - refund, "a charge is what is posted and what is owed"
        self.debt += debt
        self.charged += charge
        self.incurred += debt
        self.owed[record] = self.owed.get(record, 0) + charge
        story = self.paid_by.setdefault(record, [])
        story.insert(len(story) if corrects else 0, (draws, refund))

    def _borne(self, debt: int) -> int:
        """What no account can keep of a debt: the operator bears it."""
        over = sum(purse.reserved - purse.left for purse in self.order if purse.over)
        return max(debt - max(LARGEST - 1 - self.debt - over, 0), 0)

    def _pay_debt(self, draws: Draws) -> None:
        for grant, _ in draws:
            assert self.purses[grant].alive(self.now), "debt is paid from living grants"
        self.debt -= self._take(draws)

    # Limits and meters ------------------------------------------------------------------------------------------------

    def _limit(self, name: str) -> Limit | None:
        for limit in self.terms.limits:
            if limit.name == name:
                return limit
        return None

    def _applying(self, scopes: tuple[tuple[str, str], ...], at: int) -> list[tuple[Limit, str]]:
        """(limit, id of its window) of all that count what has these scopes."""
        found = []
        for limit in self.terms.limits:
            if any(one not in scopes for one in limit.of):
                continue
            id = window(limit.window, limit.anchor, limit.zone, at, self.terms.plan).id
            if limit.per:
                value = next((value for scope, value in scopes if scope == limit.per), None)
                if value is None:
                    continue
                id = f"{id}|{value}"
            found.append((limit, id))
        return found

    def _use(self, event: Settled | Reported | Adjusted) -> None:
        for name, id, quantity in event.counts:
            self.windows.setdefault((name, id), Window()).used += quantity
            limit = self._limit(name)
            if limit is not None and limit.thresholds:
                present = window(limit.window, limit.anchor, limit.zone, self.at, self.terms.plan).id
                if id.partition("|")[0] == present:
                    self.touched.add((name, id))
        for name, id, quantity in event.over:
            self.windows[name, id].over += quantity
        for name, id, quantity, _ in event.metered:
            state = self.windows.setdefault((name, id), Window())
            state.used = max(state.used + quantity, 0)
        for name, id, *_ in (*event.counts, *event.over):
            state = self.windows[name, id]
            assert 0 <= state.over <= state.used, "an overrun is a part of what was used"

    def _meter(self, tiers: Tiers, at: int) -> tuple[str, str, int]:
        found = window(tiers.window, tiers.anchor, tiers.zone, at, self.terms.plan)
        return f"meter|{tiers.meter}", found.id, found.ends

    def _tiers_held(self, held: int, tiers: Tiers, quantity: int) -> None:
        """A hold covers its quantity whatever the open ones turn out to use."""
        state = self.windows.get(self._meter(tiers, self.now)[:2])
        for used in {state.used, state.used + state.held} if state is not None else {0}:
            assert held * PER_MILLION >= _graduated(tiers, used, quantity)[0], "a hold meets the dearest tier in reach"

    def _metered_held(self, hold: Open, metered: Metered, tiers: Tiers, quantity: int) -> None:
        name, id, ends = self._meter(tiers, self.now)
        assert metered == ((name, id, quantity, ends),), "a meter counts in the window of its moment"
        self.windows.setdefault((name, id), Window()).held += quantity
        hold.metered[name, id, ends] = hold.metered.get((name, id, ends), 0) + quantity

    def _tiers_met(
        self,
        event: Settled | Reported,
        tiers: Tiers | None,
        quantity: int,
        held: dict[tuple[str, str, int], int],
        at: int,
    ) -> int:
        """What the tiers make of a quantity: each unit at the rate of its own tier, in the window it was held in."""
        if tiers is None:
            assert not event.tiers
            return 0
        name, id, ends = next(iter(held), self._meter(tiers, at))
        state = self.windows.get((name, id))
        used = state.used if state is not None else 0
        sums = [_graduated(tiers, used, quantity)]
        if self.at >= ends + LATE:  # by now the meter may have forgotten that window
            sums.append(_graduated(tiers, 0, quantity))
        met = next((total for total, lines in sums if lines == event.tiers), None)
        assert met is not None, "each unit at the rate of its own tier"
        assert event.metered == (((name, id, quantity, ends),) if quantity else ())
        return round_half_even(met)

    def _crossed(self, event: Crossed) -> None:
        limit = self._limit(event.limit)
        assert limit is not None
        key = event.limit, event.window
        assert event.percent in limit.thresholds
        assert event.percent > self.fired.get(key, 0), "a threshold fires once per window"
        used = self.windows[key].used
        assert used == event.used
        assert used * 100 >= event.percent * limit.quantity, "a threshold fires when it is reached"
        self.fired[key] = event.percent

    # Terms and cycles -------------------------------------------------------------------------------------------------

    def _termsset(self, event: TermsSet) -> None:
        before, terms = self.terms, event.terms
        if event.effective is not None and event.effective > self.at:
            self.following.add(event.effective)
            self.promised = (event.effective, terms.plan) if terms.plan != before.plan else None
            return
        assert terms.version > before.version, "terms are only ever followed by newer ones"
        assert terms.catalogue >= before.catalogue, "an older catalogue never overwrites"
        if self.asked is None:
            assert event.effective in self.following
            if self.promised is not None and self.promised[0] == event.effective:
                assert terms.plan == self.promised[1], "what was promised for later is what comes"
                self.promised = None
        elif terms.plan != before.plan or (self.promised is not None and self.promised[1] == terms.plan):
            self.promised = None
        self.terms, self.since = terms, self.at if event.effective is None else event.effective
        self.following = {when for when in self.following if when >= self.since}
        self.topups_stopped = False
        self._forget(before, terms)
        self._overage(before.plan, terms.plan)

    def _forget(self, before: Terms, now: Terms) -> None:
        """A limit that is gone, or counts something else, has counted nothing."""
        kept = {limit.name: limit.counted_in for limit in now.limits}
        for limit in before.limits:
            if kept.get(limit.name) != limit.counted_in:
                for counted in (self.windows, self.fired):
                    for key in [key for key in counted if key[0] == limit.name]:
                        del counted[key]
                self.touched = {key for key in self.touched if key[0] != limit.name}
                for hold in self.holds.values():
                    hold.counts = {key: part for key, part in hold.counts.items() if key[0] != limit.name}

    def _overage(self, before: Plan | None, now: Plan | None) -> None:
        """A changed overage of the same plan counts at once, never below what is used and held of it."""
        cycle = self.cycle
        if cycle is None or before is None or now is None or not cycle.plan == before.name == now.name:
            return
        if before.overage == now.overage:
            return
        room = UNLIMITED if now.overage is None else now.overage
        for grant, purse in self.purses.items():
            if purse.over and purse.expires == cycle.ends:
                purse.room = max(room, purse.reserved - purse.left)
                self._kept(grant)
                return
        if room:
            self._add_overage(room, cycle.ends)

    def _add_overage(self, room: int, ends: int) -> None:
        purse = Purse(-self.version, 0, expires=ends)
        purse.over, purse.room = True, room
        purse.order = (True, 0, False, 0, 0, 0, -self.version)
        self._add(-self.version, purse)

    def _cycled(self, event: Cycled) -> None:
        cycle, plan = self.cycle, self.terms.plan
        left = self._what_a_cycle_left(event)
        assert left + event.included == event.amount + event.debt_repaid + event.lapsed, "what becomes of a cycle"
        if not event.id:
            assert plan is None
            assert event.included == event.amount == 0
            assert event.debt_repaid == min(self.debt, left), "debt first"
        else:
            assert plan is not None
            assert event.plan == plan.name
            assert cycle is None or cycle.plan != plan.name or cycle.ends <= self.now, "a cycle ends before the next"
            begins = self._its_calendar(event, plan)
            assert event.included == begins * plan.credits, "each cycle that has begun grants the plan's credits once"
            self._handed_over(event, plan, begins, left)
        self.debt -= event.debt_repaid
        self.drawn += event.debt_repaid
        self.lapsed += event.lapsed
        self.came += event.included
        self.cycle, self.rolled, self.cycle_grant = (event if event.id else None), event.rolled, self.version
        self._begin(event)

    def _horizons(self) -> list[int]:
        """Up to when these terms may have been in force: others may have been due already."""
        return [self.now, *(when - 1 for when in self.following if when <= self.now)]

    def _what_a_cycle_left(self, event: Cycled) -> int:
        """What its grants have that nobody holds; an overage ends with what was used of it."""
        left, used, wanted = 0, 0, {}
        for purse in self.order:
            grant = purse.order[-1]
            if purse.rolls and purse.left > purse.reserved:
                wanted[grant] = purse.left - purse.reserved
                left += wanted[grant]
            elif purse.over and purse.left:
                wanted[grant] = purse.left
                used -= purse.left
        assert dict(event.draws) == wanted, "a cycle's end takes what nobody has reserved"
        assert event.overage_used == used
        for purse in self.order:
            if purse.over or purse.rolls:
                purse.room = 0
                purse.expires = min(purse.expires or self.at, self.at)
                if purse.rolls:
                    purse.order = (*purse.order[:3], purse.expires, *purse.order[4:])
        self.order.sort()
        for grant, ticks in event.draws:
            self.purses[grant].left -= ticks
        for grant in list(self.purses):
            self._kept(grant)
        self.came += used  # the operator invoices it
        return left

    def _its_calendar(self, event: Cycled, plan: Plan) -> int:
        """How many cycles have begun by then."""
        cycle = self.cycle
        now = next((at for at in self._horizons() if event.starts <= at < event.ends), None)
        assert now is not None, "a cycle holds the moment it was written at"
        found = span(plan.cycle, plan.anchor, plan.zone, now)
        assert (event.id, event.starts, event.ends) == (found.id, found.starts, found.ends), (
            "cycles follow the calendar"
        )
        assert event.calendar == (plan.cycle, plan.anchor, plan.zone)
        since = cycle.ends if cycle is not None and cycle.plan == plan.name else self.since
        if since >= found.starts:
            return 1
        return found.place - span(plan.cycle, plan.anchor, plan.zone, since).place + 1

    def _handed_over(self, event: Cycled, plan: Plan, begins: int, left: int) -> None:
        """The same one cycle after another: debt first, then as much as may goes over, then the plan's credits."""
        debt, amount, over = self.debt, left, 0
        most = plan.rollover if self.cycle is None else self.cycle.rollover
        for number in range(begins):
            before = debt, amount, over
            if number:
                most = plan.rollover
            paid = min(debt, amount)
            over = amount - paid if most is None else min(amount - paid, most)
            debt, amount = debt - paid, over + plan.credits
            paid = min(debt, amount)
            debt, amount = debt - paid, amount - paid
            if number and before == (debt, amount, over):
                break
        assert event.debt_repaid == self.debt - debt, "debt first"
        assert event.rolled == over, "no more goes over than the plan lets"
        assert event.carried_most == most
        room = max(LARGEST - 1 - max(sum(purse.left for purse in self.order), 0), 0)
        assert event.amount == min(amount, room), "a cycle has its plan's credits, and what came over"
        assert (event.rollover, event.overage) == (plan.rollover, plan.overage)

    def _begin(self, event: Cycled) -> None:
        if event.amount:
            purse = Purse(self.version, event.amount, expires=event.ends)
            purse.rolls = True
            self._add(self.version, purse)
            self.came -= event.amount  # the plan's credits have been added, and what goes over came long ago
        if event.id and event.overage != 0:
            self._add_overage(UNLIMITED if event.overage is None else event.overage, event.ends)

    # Runs and purchases -----------------------------------------------------------------------------------------------

    def _chain(self, scopes: tuple[tuple[str, str], ...]) -> list[tuple[str, Run]]:
        if not self.runs:
            return []
        return [(name, self.runs[name]) for scope, name in scopes if scope == "run" and name in self.runs]

    def _reserving(self, scopes: tuple[tuple[str, str], ...]) -> Run | None:
        return next((run for _, run in self._chain(scopes) if run.reserves), None)

    def _of_run(self, run: Run | None, draws: Draws, sign: int) -> None:
        """What a run has reserved changes, and with it what is reserved."""
        if not draws:
            return
        assert run is not None, "what is a run's goes back to it"
        for grant, ticks in draws:
            self.purses[grant].reserved += sign * ticks
        _add_to(run.reserve, [(grant, sign * ticks) for grant, ticks in draws])
        assert all(ticks > 0 for ticks in run.reserve.values()), "nobody takes from a run what it has not reserved"

    def _runstarted(self, event: RunStarted) -> None:
        asked = self.asked
        assert asked is not None
        assert event.run not in self.ever, "an id names one run"
        assert not event.parent or event.parent in self.runs
        assert event.expires > self.now
        draws, missing = self._in_order(asked.budget if asked.reserve else 0)
        assert not missing, "a run reserves its whole budget"
        assert dict(event.draws) == draws, "draw order"
        self._reserve(event.draws)
        self.ever.add(event.run)
        self.runs[event.run] = Run(event)

    def _runended(self, event: RunEnded) -> None:
        run = self.runs.pop(event.run)
        over = run.expires <= self.now
        assert event.expired == over or self.asked is not None
        assert over or self.asked is not None or run.parent not in self.runs, "a run ends when somebody says so"
        self._reserve(run.reserve.items(), -1)
        self._pay_debt(event.repaid)

    def _topupstarted(self, event: TopupStarted) -> None:
        top_up = self.terms.top_up
        assert self.topup is None, "one purchase at a time"
        assert top_up is not None
        assert not self.terms.suspended
        assert not self.topups_stopped, "a purchase that failed is the last for now"
        assert event.amount == top_up.amount
        found = span(top_up.window, "", top_up.zone, self.now)
        assert (event.window, event.ends) == (found.id, found.ends)
        self.bought[event.window, ""] = self.bought.get((event.window, ""), 0) + event.amount
        assert self.bought[event.window, ""] <= top_up.most, "no more is bought than the cap of the window"
        assert self.free() - self.debt < max(top_up.below, self.asked.required), "nothing is bought that is not needed"
        self.topup = event

    def _topupfailed(self, event: TopupFailed) -> None:
        assert self.topup is not None
        assert self.topup.key == event.key
        self.topup, self.topups_stopped = None, True

    # What an account says ---------------------------------------------------------------------------------------------

    def agrees(self, account: Account) -> None:
        """The entries as `evolve` folds them add up to the same."""
        assert (account.debt, account.charged, account.incurred) == (self.debt, self.charged, self.incurred), "G4: sums"
        assert account.posted == self.charged - self.incurred
        left = 0
        for credit in account.credits:
            purse = self.purses[credit.grant]
            left += credit.remaining
            assert credit.reserved == purse.reserved, "G4: reserved"
            assert credit.remaining == purse.left, "G4: remaining"
            assert credit.room == purse.room, "G4: overage"
        assert self.came == self.drawn + self.lapsed + left, "no credit is created or lost"
        if len(account.credits) != len(self.purses):
            for grant in self.purses.keys() - {credit.grant for credit in account.credits}:
                purse = self.purses[grant]
                assert (purse.left, purse.reserved, purse.room) == (0, 0, 0), "a grant left before it was empty"
        assert account.holds.keys() == self.holds.keys(), "G2: the open holds are those that have not ended"
        assert account.runs.keys() == self.runs.keys()
        for name, run in account.runs.items():
            mine = self.runs[name]
            assert (run.spent, run.held, run.calls) == (mine.spent, mine.held, mine.calls), "a run's sums"
            assert dict(run.draws) == mine.reserve
        for key, counter in account.counters.items():
            state = self.windows.get(key)
            if state is not None and counter.ends > account.at:
                assert (counter.used, counter.held) == (state.used, state.held), "a limit's sums"
        assert (account.topup and account.topup.key) == (self.topup and self.topup.key)


def _first(draws: dict[int, int], amount: int) -> tuple[dict[int, int], int]:
    """(the first ticks of the draws, what they do not cover)."""
    taken: dict[int, int] = {}
    for grant, ticks in draws.items():
        if amount <= 0:
            break
        taken[grant] = min(ticks, amount)
        amount -= taken[grant]
    return taken, max(amount, 0)


def _add_to(sums: dict[int, int], draws: Iterable[tuple[int, int]]) -> None:
    emptied = False
    for grant, ticks in draws:
        sums[grant] = sums.get(grant, 0) + ticks
        emptied = emptied or not sums[grant]
    if emptied:
        for grant in [grant for grant, ticks in sums.items() if not ticks]:
            del sums[grant]


def _ceiling(millionths: int) -> int:
    return -(-millionths // PER_MILLION)


def _graduated(tiers: Tiers, used: int, quantity: int) -> tuple[int, tuple[tuple[int, int], ...]]:
    """(millionths, (rate, quantity) of each tier): one border after another."""
    total, lines = 0, []
    borders = [start for start, _ in tiers.steps[1:]]
    for (_, rate), border in zip(tiers.steps, [*borders, None], strict=True):
        part = quantity if border is None else min(max(border - used, 0), quantity)
        if part:
            lines.append((rate, part))
            total += rate * part
            used, quantity = used + part, quantity - part
    return total, tuple(lines)


def round_half_even(millionths: int) -> int:
    whole, rest = divmod(millionths, PER_MILLION)
    half = PER_MILLION // 2
    return whole + (rest > half or (rest == half and whole % 2))


def _quantities(asked: Any, charge: int, requests: int) -> dict[str, int]:
    given, made = asked.input_tokens, asked.output_tokens
    return {
        "tokens": given + made,
        "input_tokens": given,
        "output_tokens": made,
        "requests": requests,
        "credits": charge,
        "open_calls": 0,
        **dict(getattr(asked, "units", ())),
    }
