"""This file knows how a hold ends: what is posted, what goes back, and what is said of it later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .account import OVERAGE, Account
from .commands import Scopes, Settle, Void
from .counting import filled, quantities, tier_charge
from .decision import Conflict, Decision, Found, LookUp, Repeated, UnknownHold
from .draws import draw, draw_for, joined, negative, split
from .events import Adjusted, Counts, Draws, Event, Held, Metered, Reported, Settled, Voided
from .keys import keys_of
from .money import LARGEST, Ticks, within_bounds


def settle(account: Account, command: Settle, now: int, found: Found) -> Decision:
    hold = account.holds.get(command.hold)
    if hold is None:
        return _settle_again(account, command, now, found)
    by_tiers, tiers, metered = tier_charge(account, command.tiers, command.metered, hold.metered, now)
    if command.tiers is None and command.metered:
        metered = tuple((name, window, command.metered, ends) for name, window, _, ends in hold.metered[:1])
    asked = command.charge + by_tiers
    overrun = max(0, asked - hold.amount)
    absorbed = overrun if command.absorb else max(asked - LARGEST + 1, 0)
    charge = within_bounds(asked - absorbed)
    own, released, beyond = split(hold.draws, charge)
    run = account.reserving(hold.scopes)
    reserve: Draws = ()
    if run is None:
        more, debt = draw(account, beyond, now)
    else:  # what is left is the run's again; what is missing comes from the run first
        further, _, beyond = split(run.draws, beyond)
        more, debt = draw(account, beyond, now)
        own, reserve = joined(own, further), joined(tuple(released.items()), negative(further))
        released = {}
    if debt and (borne := _borne(account, command, debt)):
        charge, absorbed, debt = charge - borne, absorbed + borne, debt - borne
    repaid = _repayment(account, released, more, debt, now)
    if hold.counts:
        used = quantities(command.input_tokens, command.output_tokens, charge, command.units)
        counts, over = filled(account, hold, used)
    else:
        counts, over = (), ()
    draws = joined(own, more) if more else own
    # Later calls may have pushed this one into a dearer tier of a meter whose price rises.
    cause = command.cause or ("dearer_tier" if by_tiers and overrun else None)
    lost = command.lost_owner
    return [
        Settled(
            command.hold,
            charge,
            draws,
            debt,
            overrun,
            cause if overrun or over else None,
            absorbed,
            repaid,
            counts,
            over,
            lost,
            metered,
            tiers,
            reserve,
            hold.amount if lost else 0,
        )
    ]


def void(account: Account, command: Void, now: int, found: Found) -> Decision:
    hold = account.holds.get(command.hold)
    if hold is None:
        return _void_again(account, command, now, found)
    if account.reserving(hold.scopes) is not None:
        return [Voided(hold=command.hold, reason=command.reason, reserve=hold.draws)]
    return [
        Voided(
            hold=command.hold,
            reason=command.reason,
            repaid=_repayment(account, dict(hold.draws), (), 0, now),
        )
    ]


def _borne(account: Account, command: Settle, debt: Ticks) -> Ticks:
    """What the operator bears of a debt: all of it where that was promised, else only what no account can keep. What is
    ended has happened and cannot be refused."""
    return debt if command.forgive else max(debt - account.more_owed_at_most(), 0)


def _repayment(account: Account, released: Mapping[int, Ticks], taken: Draws, new_debt: Ticks, now: int) -> Draws:
    """Older debt paid from the credit that this ending frees (debt is repaid before anything else is held)."""
    if not account.debt or new_debt:
        return ()
    free = dict(released)
    for grant, ticks in taken:
        free[grant] = free.get(grant, 0) - ticks
    return draw(account, account.debt, now, free)[0]


# Once more, and later -------------------------------------------------------------------------------------------------


def _settle_again(account: Account, command: Settle, now: int, found: Found) -> Decision:
    ending = _ending(command, found)
    if command.lost_owner:
        return Repeated(ending)
    if isinstance(ending, Settled) and ending.lost_owner:
        return _late(account, command, ending, now, found or ())
    if isinstance(ending, Settled) and _same(command, ending):
        return Repeated(ending)
    if isinstance(ending, Adjusted):
        return Repeated(ending)
    raise Conflict("this hold has already ended otherwise; correct it with an adjustment that names it")


def _same(command: Settle, ending: Settled) -> bool:
    """Whether the settlement says what was posted: its charge, and of a tiered meter the same quantity."""
    if command.tiers is None:
        return ending.charge + ending.absorbed == command.charge
    return sum(quantity for _, quantity in ending.tiers) == command.metered


def _void_again(account: Account, command: Void, now: int, found: Found) -> Decision:
    ending = _ending(command, found)
    if isinstance(ending, Voided | Adjusted):
        return Repeated(ending)
    if isinstance(ending, Settled) and ending.lost_owner:
        return _late(account, None, ending, now, found or ())
    raise Conflict("this hold was already settled; correct it with an adjustment that names it")


def _ending(command: Settle | Void, found: Found) -> Event:
    """The last word on a hold that is not open: an adjustment before the ending it corrects."""
    if found is None:
        raise LookUp(*keys_of(command))
    endings = [
        event for event in found if not isinstance(event, Held) and not (isinstance(event, Adjusted) and event.key)
    ]
    if not endings:
        raise UnknownHold("this hold was never authorized in this ledger")
    return endings[-1]


def _late(account: Account, said: Settle | None, ending: Settled, now: int, found: Sequence[Event]) -> Decision:
    """What an owner that was taken for dead says once its hold was settled for it: the difference, as an adjustment.

    `said` is its settlement, None for a void. The operator's promises of then hold: what it bears or forgives is not
    charged now either. What corrections have given back meanwhile stays given back, and is not given back twice.
    """
    held = next((event for event in found if isinstance(event, Held)), None)
    corrections = [event for event in found if isinstance(event, Adjusted)]
    by_tiers, metered = _late_metered(account, said, ending, held, now)
    charge = said.charge + by_tiers if said is not None else 0
    overrun = max(0, charge - max(ending.held, ending.charge))
    absorbed = overrun if said and said.absorb else 0
    charge -= absorbed
    counts, over = _late_counts(account, said, charge, ending, held)
    charged = ending.charge + sum(one.charge for one in corrections)
    difference = within_bounds(max(charge - ending.charge, -charged))
    runs = runs_of(held.scopes) if held else ()
    cause = None
    if overrun:
        cause = (said and said.cause) or ("dearer_tier" if by_tiers else "late")
    elif any(quantity > 0 for *_, quantity in over):
        cause = "late"
    adjusted = Adjusted(
        ending.hold,
        counts=counts,
        over=over,
        metered=metered,
        scopes=runs,
        overrun=overrun,
        cause=cause,
        absorbed=absorbed,
    )
    if difference >= 0:
        draws, debt, reserve = draw_for(account, account.reserving(runs), difference, now)
        if said and debt and (borne := _borne(account, said, debt)):
            difference, absorbed, debt = difference - borne, absorbed + borne, debt - borne
        return [
            replace(adjusted, charge=difference, draws=draws, debt=debt, reserve=negative(reserve), absorbed=absorbed)
        ]
    owed = ending.debt + sum(one.debt for one in corrections)
    drawn = still_paid(ending, corrections)
    difference = max(difference, -account.more_kept_at_most())
    draws, refund, cancelled, category = given_back(account, drawn, owed, -difference, now)
    return [replace(adjusted, charge=difference, draws=draws, refund=refund, category=category, debt=-cancelled)]


def runs_of(scopes: Scopes) -> Scopes:
    """The runs among the scopes, outermost first."""
    return tuple(one for one in scopes if one[0] == "run")


def _late_metered(
    account: Account, said: Settle | None, ending: Settled, held: Held | None, now: int
) -> tuple[Ticks, Metered]:
    """(what the tiers make of the quantity in place of what the expiry counted, what is counted beside that)."""
    before = ending.metered[0] if ending.metered else None
    counted = before[2] if before else 0
    tiers = said.tiers if said is not None else None
    if said is None or tiers is None:
        return 0, ((*before[:2], -counted, before[3]),) if before else ()
    window = ending.metered or (held.metered if held else ())
    by_tiers, _, metered = tier_charge(account, tiers, said.metered, window, now, counted=counted)
    if not metered and before:
        metered = ((*before[:2], 0, before[3]),)
    return by_tiers, tuple((name, at, quantity - counted, ends) for name, at, quantity, ends in metered)


def still_paid(record: Settled | Reported | None, corrections: Sequence[Adjusted]) -> Draws:
    """What grants have paid of a record and have not got back, in draw order.

    A fresh grant was given in the place of one that was gone, of the one drawn last first: that one is owed no more.
    """
    paid = record.draws if record is not None else ()
    for one in corrections:
        paid = joined(paid, one.draws)
        if one.refund:
            paid, _, _ = split(paid, sum(ticks for _, ticks in paid) - one.refund)
    return paid


def given_back(account: Account, draws: Draws, debt: Ticks, back: Ticks, now: int) -> tuple[Draws, Ticks, Ticks, str]:
    """(negative draws, what goes to a fresh grant, debt cancelled, that grant's category).

    Debt is cancelled first, then the grants that were drawn get theirs back, the last one first; what belonged to a
    grant that is spent or expired becomes a fresh one of its category (of several: of the one drawn last), which does
    not expire. What was overage of a cycle that is over, or debt that has been repaid since, comes back as a top-up.
    """
    cancelled = min(back, max(debt, 0), account.debt)
    back -= cancelled
    living = {credit.grant for credit in account.credits if credit.alive(now)}
    categories = {**account.gone, **{one.grant: one.category for one in account.credits if one.category != OVERAGE}}
    given, category, refund = [], "", 0
    for grant, ticks in reversed(draws):
        part = min(ticks, back)
        if part <= 0:
            continue
        back -= part
        if grant in living:
            given.append((grant, -part))
        else:
            refund += part
            category = category or categories.get(grant, "top_up")
    return tuple(given), refund + back, cancelled, category or "top_up"


def _late_counts(
    account: Account, said: Settle | None, charge: Ticks, ending: Settled, held: Held | None
) -> tuple[Counts, Counts]:
    """What was used beside what the expiry counted, in the last window of the hold; what is more of it was not held."""
    used: dict[str, int] = quantities(said.input_tokens, said.output_tokens, charge, said.units) if said else {}
    windows = {name: window for name, window, _ in (*(held.counts if held else ()), *ending.counts)}
    counts, over = [], []
    for limit in account.terms.limits:
        counter = account.counters.get((limit.name, windows.get(limit.name, "")))
        if counter is None:  # the window is long over, or the limit is a new one of that name
            continue
        before = sum(quantity for name, _, quantity in ending.counts if name == limit.name)
        beyond = sum(quantity for name, _, quantity in ending.over if name == limit.name)
        if more := max(used.get(limit.unit, 0) - before, -counter.used):
            counts.append((limit.name, windows[limit.name], more))
            excess = min(max(more, -beyond, -counter.over), counter.used + more - counter.over)
            over.append((limit.name, windows[limit.name], excess))
    return tuple(counts), tuple(one for one in over if one[2])
