"""This file knows what an operator does to a customer's account: grants, plans, limits, suspension, purchases."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from ..context import checked_id
from ..core.account import CATEGORIES, Account
from ..core.balance import Balance
from ..core.commands import Grant, SetTerms
from ..core.decide import Conflict
from ..core.money import AmountError, ticks_of
from ..core.terms import LIMIT_UNITS, TOP_UP, Plan, Terms, TermsError
from ..errors import ConfigurationError, LedgerUnavailable
from ..ledger.ticket import LedgerUnavailable as Unavailable
from ..offers.terms import limit_name, made_limit, made_top_up, plan_of
from .asking import each_in_thread, in_thread, ledger_errors, wait_for

if TYPE_CHECKING:
    from ..lava import Lava
    from ..ledger.ticket import Ticket
    from ..offers.catalogue import Catalogue, Offer

APPLIED_NOTE = "catalogue"
"""Under this name stands beside the journal which version of the catalogue was applied last."""
PAGE = 500


class Administration:
    """The part of Lava that changes what a customer has and may do."""

    def grant(
        self,
        customer: str,
        credits: object,
        *,
        key: str | None = None,
        category: str = "top_up",
        priority: int = 0,
        starts: datetime | None = None,
        expires: datetime | None = None,
    ) -> Balance:
        """Add credits ("5.00", a Decimal or an Amount) and give the balance after it.

        >>> lava.grant("acme", "5.00", key="invoice-81").available
        Amount.of("5.00")

        `key` makes it idempotent: an invoice number, a payment event's id. The same key with the same content changes
        nothing; with other content it raises Conflict. Without a key each call is a new grant.
        Raises AmountError, IdError, LedgerUnavailable (then whether it was written is unknown: repeat it with a key).
        """
        with ledger_errors():
            self._granted(customer, credits, key, category, priority, starts, expires).wait()
        return cast("Lava", self).balance(customer)

    agrant = in_thread(grant)

    def _granted(
        self,
        customer: str,
        credits: object,
        key: str | None,
        category: str,
        priority: int,
        starts: datetime | None,
        expires: datetime | None,
    ) -> Ticket:
        lava = cast("Lava", self)
        self.first_seen(checked_id(customer))
        if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > 1_000_000:
            raise AmountError("a grant's priority must be a whole number within a million")
        amount = ticks_of(credits, what="credits")
        if amount <= 0:
            raise AmountError("a grant must be more than 0 credits")
        if category not in CATEGORIES:
            raise AmountError(f"a grant's category must be one of {', '.join(CATEGORIES)}")
        if key is not None and not (isinstance(key, str) and 1 <= len(key) <= 255 and key.isprintable()):
            raise AmountError("a grant's key must be 1 to 255 printable characters")
        begins = None if starts is None else _microseconds(starts, "starts")
        ends = None if expires is None else _microseconds(expires, "expires")
        if ends is not None and ends <= max(begins or 0, lava.clock()):
            raise AmountError("a grant must expire in the future, and after it starts")
        command = Grant(key or lava.new_id(), amount, category, priority, begins, ends)
        return lava.ledger.apply(checked_id(customer), command)

    # Limits -----------------------------------------------------------------------------------------------------------

    def limit(
        self,
        customer: str,
        quantity: object,
        unit: str = "tokens",
        *,
        window: str | None = None,
        zone: str = "UTC",
        name: str | None = None,
        anchor: str = "",
        of: Mapping[str, str] | None = None,
        per: str = "",
        on_reach: str = "block",
        strict: bool = False,
        thresholds: tuple[int, ...] = (),
    ) -> Balance:
        """Put a limit in force: at most `quantity` of `unit` per `window`. None takes the limit away.

        >>> lava.limit("acme", 100_000).limits[0].name
        'tokens/month'
        >>> lava.limit("acme", "2.00", "credits", window="day", of={"model": "gpt-4o"}, thresholds=(80, 100)).plan
        >>> lava.limit("acme", 60, "requests", window="minute", per="user", on_reach="warn").suspended
        False

        `unit`: tokens, input_tokens, output_tokens, requests, credits (a quantity such as "5.00"), characters, seconds,
        open_calls, or a unit of one of your meters. `window`: minute, hour, day, week, month (the default), year, cycle
        (of the plan) or lifetime, by the calendar of `zone`, or counted from the ISO date `anchor`. Counted for the
        whole customer, or for what has the scopes `of` ({"model": "gpt-4o"}: user, model, meter, run or a tag), or for
        each value of the scope `per` by itself. `on_reach="warn"` only counts. `strict` holds input at its hard bound.
        `thresholds` (per cent) fire once per window.

        Counted from now on; setting it again under the same name (default "unit/window") keeps what was counted. So
        does a correction: what lava.adjust() gives back or charges is credit, and counts in no limit.
        Raises TermsError for a limit that cannot be enforced.
        """
        self._known_unit(unit)
        if quantity is None:
            gone = name or limit_name(unit, window)
            return self._change(
                customer,
                lambda terms: (
                    _own(terms.without_limit(gone), gone) if any(one.name == gone for one in terms.limits) else terms
                ),
            )
        limit = made_limit(
            name,
            quantity,
            unit,
            window=window,
            zone=zone,
            anchor=anchor,
            of=of,
            per=per,
            on_reach=on_reach,
            strict=strict,
            thresholds=thresholds,
        )
        return self._change(customer, lambda terms: _own(terms.with_limit(limit), limit.name))

    alimit = in_thread(limit)

    def _known_unit(self, unit: object) -> None:
        """A limit on a unit that nothing ever counts would never refuse: a slip of the pen is told at once."""
        lava = cast("Lava", self)
        priced = {one for meter in lava.meters for one in (*meter.rates, meter.unit) if one}
        if unit not in LIMIT_UNITS and unit not in priced:
            raise TermsError(f"limit unit must be one of {', '.join(LIMIT_UNITS)}, or a unit of one of your meters")

    # Plans ------------------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        customer: str,
        plan: str,
        *,
        credits: object = None,
        cycle: str | None = None,
        anchor: str | None = None,
        zone: str | None = None,
        rollover: object = None,
        overage: object = None,
        meters: tuple[str, ...] | None = None,
        models: tuple[str, ...] | None = None,
        at_cycle_end: bool = False,
    ) -> Balance:
        """Put the customer on a plan: its credits are granted each cycle (day, week, month or year), the first at once.

        >>> lava.subscribe("acme", "pro", credits="20.00", rollover="full", overage="5.00").available
        Amount.of("25.00")

        Of a plan in the catalogue only the name is said, with the customer's own `anchor` and `zone`. Any other has
        `credits` (0) per `cycle` ("month"). Cycles are those of the calendar in `zone`, or counted from the ISO date
        `anchor` (a plan of the 31st renews on a month's last day). `rollover`: "none", "full", or the most credits
        that go over into the next cycle. `overage`: "block", "unlimited", or the credits a cycle may go beyond what is
        included: they are for you to invoice, and are drawn last. `meters` and `models` ("gpt-4o*") are all that may
        be used; None: any.

        On another plan already, the change is at once (what the old one left goes over as far as *its* rollover lets
        it, and a new cycle begins), or when the present cycle ends. The same plan with other content changes its next
        cycle; put on the plan that it is on, a customer stays on it, whatever was to follow.
        Raises TermsError, AmountError, and Conflict where a newer catalogue than this one is in force.
        """
        said: dict[str, Any] = {
            name: value
            for name, value in (
                ("credits", credits),
                ("cycle", cycle),
                ("rollover", rollover),
                ("overage", overage),
                ("meters", meters),
                ("models", models),
            )
            if value is not None
        }
        offer, version = self._offer(plan, said)
        if offer is not None:
            return self._on_plan(
                customer,
                lambda terms: offer.terms(terms, anchor=anchor, zone=zone, catalogue=version),
                at_cycle_end=at_cycle_end,
            )
        made = plan_of(plan, anchor=anchor or "", zone=zone or "UTC", **said)
        return self._on_plan(customer, lambda terms: _without_plan(terms, made), at_cycle_end=at_cycle_end)

    asubscribe = in_thread(subscribe)

    def _offer(self, plan: str, said: Mapping[str, object]) -> tuple[Offer | None, int]:
        """The catalogue's plan of that name, if it is meant, and the catalogue's version."""
        catalogue = cast("Lava", self).catalogue
        if catalogue is None or (plan not in catalogue.offers and said):
            return None, 0
        if plan not in catalogue.offers:
            raise TermsError(f"the catalogue has the plans {', '.join(catalogue.offers) or '(none)'}, not that one")
        if said:
            raise TermsError(
                f"what a plan includes stands in the catalogue, so {', '.join(said)} cannot be given; "
                "a plan of your own needs a name of its own"
            )
        return catalogue.offers[plan], catalogue.version

    def cancel(self, customer: str, *, at_cycle_end: bool = True) -> Balance:
        """End the plan, when its cycle ends or at once: what it has left lapses then, but for what open calls hold.

        >>> lava.subscribe("acme", "pro", credits="20.00").plan
        'pro'
        >>> lava.cancel("acme").plan  # to the end of its cycle
        'pro'
        >>> lava.cancel("acme", at_cycle_end=False).plan
        """
        return self._on_plan(customer, lambda terms: _without_plan(terms, None), at_cycle_end=at_cycle_end)

    acancel = in_thread(cancel)

    def suspend(self, customer: str) -> Balance:
        """Let nothing more out for the customer, and stop its streams when they next need credit.

        >>> lava.suspend("acme").suspended
        True
        """
        return self._change(customer, lambda terms: terms if terms.suspended else terms.changed(suspended=True))

    asuspend = in_thread(suspend)

    def resume(self, customer: str) -> Balance:
        """Lift the suspension.

        >>> lava.resume("acme").suspended
        False
        """
        return self._change(customer, lambda terms: terms.changed(suspended=False) if terms.suspended else terms)

    aresume = in_thread(resume)

    def auto_top_up(
        self, customer: str, *, below: object, amount: object, most: object, window: str = "month", zone: str = "UTC"
    ) -> Balance:
        """Buy `amount` credits through the `top_up` hook when less than `below` is available, `most` per window.

        `amount=None` stops that. Raises TermsError, AmountError.

        >>> lava.auto_top_up("acme", below="1.00", amount="10.00", most="50.00").suspended
        False
        """
        bought = None if amount is None else made_top_up(below, amount, most, window, zone)
        return self._change(
            customer,
            lambda terms: terms if terms.top_up == bought else _own(terms.changed(top_up=bought), TOP_UP),
        )

    aauto_top_up = in_thread(auto_top_up)

    def terms(self, customer: str) -> Terms:
        """The terms in force."""
        return cast("Lava", self)._account(customer).terms

    aterms = in_thread(terms)

    def terms_to_follow(self, customer: str) -> tuple[datetime, Terms] | None:
        """(from when on, terms) of a change that was made for the end of the cycle; None: nothing is to change."""
        pending = cast("Lava", self)._account(customer).pending
        return None if pending is None else (datetime.fromtimestamp(pending[0] / 1_000_000, UTC), pending[1])

    aterms_to_follow = in_thread(terms_to_follow)

    def _change(self, customer: str, change: Callable[[Terms], Terms]) -> Balance:
        """Put changed terms in force; what was to follow them still does, changed alike.

        Where they were changed meanwhile, what is asked for is done to the new ones.
        """
        lava = cast("Lava", self)
        wait_for(self.first_seen(checked_id(customer)))
        _again(lambda: self._changed_once(customer, change))
        return lava.balance(customer)

    def _changed_once(self, customer: str, change: Callable[[Terms], Terms]) -> None:
        account = cast("Lava", self)._account(customer)
        changed = change(account.terms)
        if changed is not account.terms:
            self._set_terms(customer, account, changed)
        if account.pending is None:
            return
        when, following = account.pending
        then = change(following)
        if then is not following:
            self._set_terms(customer, account, replace(then, version=changed.version + 1), effective=when)

    def _on_plan(self, customer: str, change: Callable[[Terms], Terms], *, at_cycle_end: bool) -> Balance:
        """Put the terms of a plan in force, now or when the cycle ends, in place of what was to follow."""
        lava = cast("Lava", self)
        _again(lambda: self._on_plan_once(customer, change, at_cycle_end))
        return lava.balance(customer)

    def _on_plan_once(self, customer: str, change: Callable[[Terms], Terms], at_cycle_end: bool) -> None:
        account = cast("Lava", self)._account(customer)
        terms, pending = account.terms, account.pending
        changed = change(terms)
        if changed is not terms:
            self._set_terms(customer, account, changed, at_cycle_end=at_cycle_end)
        if pending is not None and (changed is terms or (not at_cycle_end and _same_plan(changed, terms))):
            # To stay on this plan is what follows it now.
            stays = replace(changed, version=changed.version + 1)
            self._set_terms(customer, account, stays, effective=pending[0])

    def _set_terms(
        self,
        customer: str,
        account: Account,
        terms: Terms,
        *,
        effective: int | None = None,
        at_cycle_end: bool = False,
    ) -> None:
        """Raises Conflict where terms were changed since the account was read, or are of a newer catalogue."""
        if terms.catalogue < account.terms.catalogue:
            raise OlderCatalogue(
                f"the customer's terms are of the catalogue's version {account.terms.catalogue}, and this is "
                f"{terms.catalogue}; an older one never overwrites"
            )
        command = SetTerms(terms, effective, at_cycle_end=at_cycle_end)
        with ledger_errors():
            cast("Lava", self).ledger.apply(checked_id(customer), command).wait()

    # The catalogue ----------------------------------------------------------------------------------------------------

    def first_seen(self, customer: str) -> Ticket | None:
        """Put a customer for whom nobody has ever set terms on the catalogue's default plan. Cheap to repeat.

        What is asked of the ledger next is decided after it: a server far away is not waited for, a file that is busy
        is. Who only reads waits for what this gives; None: there is nothing to do.
        """
        lava = cast("Lava", self)
        catalogue = lava.catalogue
        if catalogue is None or catalogue.default_plan is None or lava.known(customer):
            return None
        offer = catalogue.offers[catalogue.default_plan]
        terms = offer.terms(Terms(), anchor=None, zone=None, catalogue=catalogue.version)
        ticket = lava.ledger.apply(customer, SetTerms(terms))  # of the first version: whoever has terms keeps them
        ticket.on_done(lambda: _seen(lava, customer, ticket))
        if not lava.ledger.in_order:
            with contextlib.suppress(LedgerUnavailable):  # what is asked next will say it
                wait_for(ticket)
        return ticket

    def apply_catalogue(self, *, dry_run: bool = False, progress: Callable[[int], None] | None = None) -> Applied:
        """Put changed plans of the catalogue in force for the customers that are on them, in short reads and writes.

        Credits change with a customer's next cycle, all else at once. What was set for one customer alone stays.
        Repeats harmlessly, while calls go on, and while other processes still have the version before. Raises Conflict
        if a later version has been applied, ConfigurationError without a catalogue.

        >>> with Lava("memory://", catalogue={"version": 1, "plans": {"pro": {"credits": "20.00"}}}) as selling:
        ...     selling.subscribe("acme", "pro").available
        ...     selling.apply_catalogue().unchanged
        Amount.of("20.00")
        1
        """
        lava = cast("Lava", self)
        catalogue = lava.catalogue
        if catalogue is None:
            raise ConfigurationError("there is no catalogue to apply: Lava(catalogue=...) or LAVA_CATALOGUE names it")
        counts = dict.fromkeys(Applied.__slots__, 0)
        self._check_latest(catalogue)
        for page in self._pages():
            for customer in page:
                counts[self._apply_to(customer, catalogue, dry_run)] += 1
            if progress is not None:
                progress(len(page))
            self._check_latest(catalogue)
        if not dry_run:
            with ledger_errors():
                lava.journal.save_note(APPLIED_NOTE, str(catalogue.version))
        return Applied(**counts)

    aapply_catalogue = in_thread(apply_catalogue)

    def customers(self, *, after: str = "") -> Iterator[str]:
        """All customers that the ledger has entries of, in order of their ids, read in short pages as you iterate.

        >>> lava.grant("acme", "1").available
        Amount.of("1.00")
        >>> [lava.balance(customer).available for customer in lava.customers()]
        [Amount.of("1.00")]
        """
        for page in self._pages(after):
            yield from page

    def acustomers(self, *, after: str = "") -> AsyncIterator[str]:
        """`customers` for async code: `async for`."""
        return each_in_thread(self.customers(after=after))

    def _pages(self, after: str = "") -> Iterator[list[str]]:
        lava = cast("Lava", self)
        while True:
            with ledger_errors():
                page = lava.journal.accounts(after=after, limit=PAGE)
            if not page:
                return
            yield page
            after = page[-1]

    def _check_latest(self, catalogue: Catalogue) -> None:
        with ledger_errors():
            applied = int(cast("Lava", self).journal.note(APPLIED_NOTE) or 0)
        if applied > catalogue.version:
            raise Conflict(
                f"version {applied} of the catalogue has been applied, and this is {catalogue.version}; "
                "an older one never overwrites: give a change a higher version"
            )

    def _apply_to(self, customer: str, catalogue: Catalogue, dry_run: bool) -> str:
        """How it went: a field of Applied."""
        while True:
            account = cast("Lava", self)._account(customer)
            if account.terms.catalogue > catalogue.version:
                return "newer"
            changes = list(_catalogue_changes(account, catalogue))
            if not changes:
                plan = account.terms.plan
                return "without_plan" if plan is None else "unchanged" if plan.name in catalogue.offers else "others"
            if dry_run:
                return "changed"
            with contextlib.suppress(Conflict):  # somebody else changed the terms meanwhile: look again
                for terms, effective in changes:
                    self._set_terms(customer, account, terms, effective=effective)
                return "changed"


def _seen(lava: Lava, customer: str, ticket: Ticket) -> None:
    """Whoever has terms now, of whomever, is known."""
    with contextlib.suppress(Unavailable):  # to be tried again
        with contextlib.suppress(Conflict):
            ticket.result()
        lava.know(customer)


class OlderCatalogue(Conflict):
    """Terms of a newer catalogue are in force."""


@dataclass(frozen=True, slots=True)
class Applied:
    """Customers, by what applying the catalogue did to their terms."""

    changed: int
    unchanged: int
    """On a plan of the catalogue, as it is there."""
    newer: int
    """On terms of a later version of the catalogue."""
    others: int
    """On a plan that the catalogue does not have."""
    without_plan: int


def _catalogue_changes(account: Account, catalogue: Catalogue) -> Iterator[tuple[Terms, int | None]]:
    """(terms, from when on) that the catalogue changes, those that are to follow included."""
    terms = _offered(account.terms, catalogue)
    if terms is not account.terms:
        yield terms, None
    if account.pending is not None:
        when, following = account.pending
        then = _offered(following, catalogue)
        if then is not following or terms is not account.terms:
            yield replace(then, version=terms.version + 1, catalogue=max(then.catalogue, terms.catalogue)), when


def _offered(terms: Terms, catalogue: Catalogue) -> Terms:
    offer = catalogue.offers.get(terms.plan.name) if terms.plan is not None else None
    if offer is None:
        return terms
    return offer.terms(terms, anchor=None, zone=None, catalogue=catalogue.version)


def _again(change: Callable[[], None]) -> None:
    """Until nobody else changed the terms in between."""
    while True:
        try:
            change()
            return
        except OlderCatalogue:
            raise
        except Conflict:
            continue


def _same_plan(one: Terms, other: Terms) -> bool:
    return (one.plan and one.plan.name) == (other.plan and other.plan.name)


def _without_plan(terms: Terms, plan: Plan | None) -> Terms:
    """The terms with another plan, or none, and without what came with the present one."""
    if terms.plan == plan:
        return terms
    limits = tuple(one for one in terms.limits if one.name not in terms.of_plan)
    top_up = None if TOP_UP in terms.of_plan else terms.top_up
    return terms.changed(plan=plan, limits=limits, top_up=top_up, of_plan=())


def _own(terms: Terms, name: str) -> Terms:
    """The terms, in which this is set for the customer and not by its plan."""
    return replace(terms, of_plan=tuple(one for one in terms.of_plan if one != name))


def _microseconds(moment: datetime, name: str) -> int:
    if moment.tzinfo is None:
        raise ValueError(f"{name} must be a datetime with a time zone")
    return int(moment.timestamp() * 1_000_000)
