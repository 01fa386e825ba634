"""This file knows what happens to credit outside a call: grants, reports after the fact, corrections, purchases."""

from __future__ import annotations

from collections.abc import Sequence

from .account import TOPUPS, Account
from .admission import with_outer_runs
from .commands import Adjust, FailTopup, Grant, Post, Report, Scopes, StartTopup
from .counting import applied, quantities, reported, tier_charge
from .decision import Conflict, Decision, Declined, Found, LedgerRuleError, LookUp, Repeated, UnknownHold, only
from .draws import draw, draw_for, negative
from .endings import given_back, runs_of, still_paid
from .events import Adjusted, Draws, Event, Granted, Held, Reported, Settled, TopupFailed, TopupStarted
from .keys import ADJUSTMENTS_MOST, correction, keys_of
from .money import Ticks, at_most, within_bounds
from .windows import period_of


def grant(account: Account, command: Grant, now: int, found: Found) -> Decision:
    event = Granted(
        key=command.key,
        amount=within_bounds(command.amount),
        category=command.category,
        priority=command.priority,
        starts=command.starts,
        expires=command.expires,
        debt_repaid=min(account.debt, command.amount) if _alive(command, now) else 0,
    )
    if found:
        first = only(Granted, found)
        same = ("amount", "category", "priority", "starts", "expires")
        if all(getattr(first, name) == getattr(event, name) for name in same):
            return Repeated(first)
        raise Conflict("a grant with this key exists with other content; a key names one grant for ever")
    at_most(command.amount, account.more_kept_at_most(), "too much credit for one customer")
    return [event]


def _alive(command: Grant, now: int) -> bool:
    return (command.starts is None or command.starts <= now) and (command.expires is None or command.expires > now)


def report(account: Account, command: Report, now: int, found: Found) -> Decision:
    if found:
        first = only(Reported, found)
        if _reported_the_same(command, first):
            return Repeated(first)
        raise Conflict("a report with this key exists with another charge; a key names one report for ever")
    return [_reported(account, command, now)]


def _reported(account: Account, command: Report, now: int) -> Reported:
    when = now if command.when is None else min(command.when, now)
    by_tiers, tiers, metered = tier_charge(account, command.tiers, command.metered, (), when)
    asked = within_bounds(command.charge + by_tiers)
    scopes = with_outer_runs(account, command.scopes)
    runs = tuple(one for one in runs_of(scopes) if one[1] in account.runs)
    draws, missing, reserve = draw_for(account, account.reserving(runs), asked, now)
    debt, forgiven = (0, missing) if command.forgive else (_owed(account, missing), 0)
    used = quantities(
        command.input_tokens, command.output_tokens, asked - forgiven, command.units, requests=command.requests
    )
    counts, over = reported(applied(account, scopes, when), used)
    return Reported(
        key=command.key,
        charge=asked - forgiven,
        draws=draws,
        debt=debt,
        forgiven=forgiven,
        counts=counts,
        over=over,
        metered=metered,
        tiers=tiers,
        scopes=runs,
        reserve=negative(reserve),
    )


def _owed(account: Account, debt: Ticks) -> Ticks:
    """The debt, or AmountError: what nobody could add up is refused before it is written."""
    return at_most(debt, account.more_owed_at_most(), "too much to owe") if debt else 0


def _given_back(
    account: Account, record: Settled | Reported | None, corrections: Sequence[Adjusted], back: Ticks, now: int
) -> tuple[Draws, Ticks, Ticks, str]:
    """What `given_back` says of a record, or AmountError where no account could keep it.

    Spans come in any order: where the record is not here yet, debt goes first, then a fresh grant.
    """
    owed = account.debt if record is None else record.debt + sum(one.debt for one in corrections)
    given = given_back(account, still_paid(record, corrections), owed, back, now)
    _, _, cancelled, _ = given
    at_most(back - cancelled, account.more_kept_at_most(), "too much to give back")
    return given


def post(account: Account, command: Post, now: int, found: Found) -> Decision:
    """A record that another ledger has decided on: insert or ignore, by its id."""
    if found is None:
        raise LookUp(*keys_of(command))  # it may stand here under another key than it would get: its own ledger's
    number = correction(command)
    earlier = [event for event in found if isinstance(event, Adjusted)] if command.adjusts else []
    of = next((event for event in found if isinstance(event, Settled | Reported)), None)
    first = next((event for event in earlier if event.number == number), None) if command.adjusts else of
    if first is not None:
        if first.charge == command.charge:
            return Repeated(first)
        raise Conflict("a record with this id exists with another charge; what was written first stands")
    if not command.adjusts:
        if found:
            raise Conflict("the hold with this id was given back here; its record cannot be posted")
        return [
            _reported(account, Report(command.record, command.charge, command.input_tokens, command.output_tokens), now)
        ]
    key = command.record if number else ""
    if command.charge >= 0:
        draws, debt = draw(account, within_bounds(command.charge), now)
        _owed(account, debt)
        return [Adjusted(command.adjusts, command.charge, draws=draws, debt=debt, number=number, key=key)]
    draws, refund, cancelled, category = _given_back(account, of, earlier, -within_bounds(command.charge), now)
    return [
        Adjusted(
            command.adjusts,
            command.charge,
            draws=draws,
            refund=refund,
            category=category,
            debt=-cancelled,
            number=number,
            key=key,
        )
    ]


def _reported_the_same(command: Report, first: Reported) -> bool:
    if command.tiers is None:
        return first.charge + first.forgiven == command.charge
    return sum(quantity for _, quantity in first.tiers) == command.metered


def adjust(account: Account, command: Adjust, now: int, found: Found) -> Decision:
    """A correction that was asked for. What a record charged, all corrections included, never falls below zero."""
    if found is None:
        raise LookUp(*keys_of(command))
    record = next((event for event in found if isinstance(event, Settled | Reported)), None)
    if record is None:
        raise UnknownHold("there is no record of that id in this ledger")
    earlier = [event for event in found if isinstance(event, Adjusted)]
    for one in earlier:
        if one.key == command.key:
            if (one.charge, one.reason) == (command.charge, command.reason):
                return Repeated(one)
            raise Conflict("a correction with this key exists with other content; a key names one correction for ever")
    number = 1 + sum(bool(one.key) for one in earlier)
    if number > ADJUSTMENTS_MOST:
        raise LedgerRuleError(f"a record can be corrected {ADJUSTMENTS_MOST} times; report the rest by itself")
    charged = record.charge + sum(one.charge for one in earlier)
    runs = _runs_of(record, found)
    if command.charge >= 0:
        draws, debt, reserve = draw_for(account, account.reserving(runs), within_bounds(command.charge), now)
        _owed(account, debt)
        return [
            Adjusted(
                command.of,
                command.charge,
                draws=draws,
                debt=debt,
                number=number,
                key=command.key,
                reason=command.reason,
                scopes=runs,
                reserve=negative(reserve),
            )
        ]
    if -command.charge > charged:
        raise LedgerRuleError("a correction cannot give back more than the record charged")
    draws, refund, cancelled, category = _given_back(account, record, earlier, -command.charge, now)
    return [
        Adjusted(
            command.of,
            command.charge,
            draws=draws,
            refund=refund,
            category=category,
            debt=-cancelled,
            number=number,
            key=command.key,
            reason=command.reason,
            scopes=runs,
        )
    ]


def _runs_of(record: Settled | Reported, found: Sequence[Event]) -> Scopes:
    """The runs that a record is a part of: a correction is theirs as well."""
    held = next((event for event in found if isinstance(event, Held)), None)
    return runs_of(record.scopes if isinstance(record, Reported) else held.scopes if held else ())


# Purchases ------------------------------------------------------------------------------------------------------------


def start_topup(account: Account, command: StartTopup, now: int, found: Found) -> Decision:
    """Single flight per customer: while one purchase is under way, it is the answer, whatever the key.

    What was bought counts against the cap from its start, and still does when it fails: nobody is charged more than
    the cap because a failure was wrong about itself.
    """
    top_up = account.terms.top_up
    if account.topup is not None:
        under_way = account.topup
        return Repeated(TopupStarted(under_way.key, under_way.amount, "", 0))
    if found:
        raise Conflict("this purchase has ended; a key names one purchase for ever")
    if top_up is None:
        return Declined("topup_off")
    if account.terms.suspended:
        return Declined("customer_suspended")
    if account.topups_stopped:
        return Declined("topup_failed")
    available = account.available(now)
    if available >= max(top_up.below, command.required):
        return Declined("topup_not_needed", available)
    period = period_of(top_up.window, "", top_up.zone, now)
    if bought(account, period.id) + top_up.amount > top_up.most:
        return Declined("topup_capped", available, resets_at=period.ends)
    return [TopupStarted(command.key, top_up.amount, period.id, period.ends)]


def bought(account: Account, window: str) -> Ticks:
    """What was bought in that window, whether it worked or not."""
    counter = account.counters.get((TOPUPS, window))
    return counter.used if counter else 0


def fail_topup(account: Account, command: FailTopup, now: int, found: Found) -> Decision:
    if account.topup is None or account.topup.key != command.key:
        if found is None:
            raise LookUp(*keys_of(command))
        ended = next((event for event in found if isinstance(event, TopupFailed)), None)
        if ended is not None:
            return Repeated(ended)
        raise Conflict("this purchase is not under way")
    return [TopupFailed(command.key, command.reason)]
