"""This file knows every rule of money: what may be held, what is posted, and when the answer is no.

    decide(account, command, now) -> [event, ...] | Declined | Repeated

    hold is | Authorize     | Extend      | Settle                 | Void                     | Settle(lost_owner)
    none    | held/declined | UnknownHold | UnknownHold            | UnknownHold              | UnknownHold
    open    | Repeated      | more / no   | settled                | voided                   | settled
    ended   | Repeated      | Declined    | Repeated if equal,     | Repeated if voided,      | Repeated
            |               |             | adjusted after expiry, | adjusted to zero after   |
            |               |             | else Conflict          | expiry, else Conflict    |

It is pure: `now` is an argument, and what only the journal knows (how a hold ended, whether a key was used) is asked
for by raising LookUp and handed in as `found`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .account import Account, Hold
from .commands import Authorize, Command, Extend, Grant, Report, SetTerms, Settle, Void
from .draws import draw, joined, split
from .events import (
    Adjusted,
    Counts,
    Draws,
    Event,
    Extended,
    Granted,
    Held,
    Lapsed,
    Reported,
    Settled,
    TermsSet,
    Voided,
)
from .money import PER_MILLION, Ticks, charge_ceiling, within_bounds
from .terms import Limit
from .windows import window_of

LEAST_SLICE = 32
"""Output tokens; smaller extensions would cost more ledger entries than they are worth."""


@dataclass(frozen=True, slots=True)
class Declined:
    """The answer is no, and why. Nothing was written."""

    reason: str
    """"insufficient_credit", "request_exceeds_credit", "credit_on_hold", "limit_reached", "hold_ended"."""
    available: Ticks = 0
    required: Ticks = 0
    output_tokens_fit: int = 0
    """How many output tokens would have fitted."""
    waitable: bool = False
    """The end of another open hold may make it pass."""
    limit: str | None = None
    unit: str | None = None
    used: int = 0
    """Used and held in the window of the limit."""
    quantity: int = 0
    resets_at: int | None = None
    """Microseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same command was applied before; `event` was its outcome."""

    event: Event


class LedgerRuleError(Exception):
    """The command does not fit the account's history."""


class UnknownHold(LedgerRuleError):
    """The hold was never authorized in this ledger."""


class Conflict(LedgerRuleError):
    """The same key or hold was used before with other content; what was written first stands."""


class LookUp(Exception):
    """decide() needs the journal's entries under these keys: call it again with them as `found` (may be empty)."""

    def __init__(self, *keys: str) -> None:
        super().__init__(keys)
        self.keys = keys


Decision: TypeAlias = list[Event] | Declined | Repeated
Found: TypeAlias = Sequence[Event] | None
"""The events under the keys that were looked up, in version order; None: not looked up yet."""


def decide(account: Account, command: Command, now: int, found: Found = None) -> Decision:
    """What the command leads to. `now` (microseconds since 1970) must not lie before the account's last entry.

    Raises LookUp, UnknownHold, Conflict, or AmountError for a sum beyond ±2⁶².
    """
    decision = _RULES[type(command)](account, command, now, found)
    if isinstance(decision, list) and (lapsed := _lapsed(account, now)):
        decision.insert(0, lapsed)
    return decision


def key_of(event: Event) -> str | None:
    """The key of an event's entry: unique per account, so the journal itself refuses a second ending of a hold."""
    match event:
        case Held():
            return f"hold:{event.hold}"
        case Settled() | Voided():
            return f"end:{event.hold}"
        case Adjusted():
            return f"late:{event.hold}"
        case Granted():
            return f"grant:{event.key}"
        case Reported():
            return f"report:{event.key}"
        case _:
            return None


def keys_of(command: Command) -> tuple[str, ...]:
    """The keys under which the journal may already know this command's outcome."""
    match command:
        case Authorize():
            return (f"hold:{command.hold}",)
        case Extend() | Settle() | Void():
            return (f"hold:{command.hold}", f"end:{command.hold}", f"late:{command.hold}")
        case Grant():
            return (f"grant:{command.key}",)
        case Report():
            return (f"report:{command.key}",)
        case _:
            return ()


# Authorize and extend ------------------------------------------------------------------------------------------------


def _authorize(account: Account, command: Authorize, now: int, found: Found) -> Decision:
    if found:
        return Repeated(_only(Held, found))
    if command.hold in account.holds and found is None:
        raise LookUp(*keys_of(command))
    flexible = command.output_tokens_min < command.output_tokens
    output_tokens = command.output_tokens
    for limit, room, window_end in _rooms(account, now):
        fixed, each = _needs(limit, command.input_tokens)
        fit = _fit(room - fixed, each, command.output_tokens)
        if fit < command.output_tokens_min:
            return _limit_reached(account, limit, now, window_end, fit, fixed + each * command.output_tokens_min)
        output_tokens = min(output_tokens, fit)
    if command.fixed or command.output_price:
        free = account.available(now)
        fit = _affordable(free - command.fixed, command.output_price, command.output_tokens)
        if fit < command.output_tokens_min:
            return _too_little(account, command, free, fit)
        if flexible:
            shared = _affordable(free // command.share - command.fixed, command.output_price, command.output_tokens)
            fit = min(fit, max(shared, command.output_tokens_min))
        output_tokens = min(output_tokens, fit)
    priced = charge_ceiling(output_tokens, command.output_price)
    amount = within_bounds(command.fixed + priced)
    draws, missing = draw(account, amount, now)
    assert not missing, "free credit was counted wrongly"
    counts = _counted(account, now, command.input_tokens, output_tokens, requests=1)
    expected = min(command.expected, amount)
    slice_ = priced if command.grows else 0
    return [
        # By position, here and in _settle: names would double the time it takes.
        Held(command.hold, command.owner, amount, draws, output_tokens, expected, slice_, counts, command.scopes)
    ]


def _extend(account: Account, command: Extend, now: int, found: Found) -> Decision:
    if command.hold not in account.holds:
        if found is None:
            raise LookUp(*keys_of(command))
        if not found:
            raise UnknownHold("this hold was never authorized in this ledger")
        return Declined("hold_ended")
    left = command.output_tokens_left
    for limit, room, window_end in _rooms(account, now):
        _, each = _needs(limit, 0)
        if (left := min(left, _fit(room, each, left))) <= 0:
            return _limit_reached(account, limit, now, window_end, 0, each)
    if command.output_price:
        free = account.available(now)
        if (left := min(left, _affordable(free, command.output_price, left))) <= 0:
            return _no_more(account, free, command.output_price)
    slice_ = min(left, max(LEAST_SLICE, min(2 * command.slice, left // (len(account.holds) + 1))))
    amount = charge_ceiling(slice_, command.output_price)
    draws, missing = draw(account, amount, now)
    assert not missing, "free credit was counted wrongly"
    counts = tuple(one for one in _counted(account, now, 0, slice_, requests=0) if one[2])
    return [Extended(hold=command.hold, amount=amount, draws=draws, output_tokens=slice_, counts=counts)]


def _rooms(account: Account, now: int) -> list[tuple[Limit, int, int]]:
    """(limit, what is left of it, end of its window) for every limit in force."""
    rooms: list[tuple[Limit, int, int]] = []
    for limit in account.terms.limits:
        window, ends = window_of(limit, now)
        counter = account.counters.get((limit.name, window))
        rooms.append((limit, limit.quantity - (counter.used + counter.held if counter else 0), ends))
    return rooms


def _needs(limit: Limit, input_tokens: int) -> tuple[int, int]:
    """(units a call takes whatever comes out, units each output token takes) of a limit."""
    return {
        "tokens": (input_tokens, 1),
        "input_tokens": (input_tokens, 0),
        "output_tokens": (0, 1),
        "requests": (1, 0),
    }[limit.unit]


def _counted(account: Account, now: int, input_tokens: int, output_tokens: int, *, requests: int) -> Counts:
    """What a call adds to each limit in force, in the window of now."""
    if not account.terms.limits:
        return ()
    quantities = {
        "tokens": input_tokens + output_tokens,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "requests": requests,
    }
    return tuple((one.name, window_of(one, now)[0], quantities[one.unit]) for one in account.terms.limits)


def _fit(room: int, each: int, wanted: int) -> int:
    """How many output tokens fit into the room, -1 where not even the fixed part does."""
    if room < 0:
        return -1
    return room // each if each else wanted


def _affordable(ticks: Ticks, output_price: int, wanted: int) -> int:
    """How many output tokens these ticks pay for, -1 where they are already overspent."""
    if ticks < 0:
        return -1
    return ticks * PER_MILLION // output_price if output_price else wanted


def _too_little(account: Account, command: Authorize, free: Ticks, fit: int) -> Declined:
    required = command.fixed + charge_ceiling(command.output_tokens_min, command.output_price)
    reserved = account.reserved()
    if free + reserved >= required:
        return Declined("credit_on_hold", free, required, max(fit, 0), waitable=True)
    if free + reserved <= 0:
        return Declined("insufficient_credit", free, required)
    return Declined("request_exceeds_credit", free, required, max(fit, 0))


def _no_more(account: Account, free: Ticks, output_price: int) -> Declined:
    """No credit for even one more token: other open holds may still give some back."""
    own_only = len(account.holds) <= 1
    reason = "insufficient_credit" if own_only else "credit_on_hold"
    return Declined(reason, free, charge_ceiling(1, output_price), waitable=not own_only)


def _limit_reached(account: Account, limit: Limit, now: int, window_end: int, fit: int, need: int) -> Declined:
    counter = account.counters.get((limit.name, window_of(limit, now)[0]))
    used, held = (counter.used, counter.held) if counter else (0, 0)
    return Declined(
        "limit_reached",
        output_tokens_fit=max(fit, 0),
        waitable=held > 0 and used + need <= limit.quantity,
        limit=limit.name,
        unit=limit.unit,
        used=used + held,
        quantity=limit.quantity,
        resets_at=window_end,
    )


# Endings -------------------------------------------------------------------------------------------------------------


def _settle(account: Account, command: Settle, now: int, found: Found) -> Decision:
    hold = account.holds.get(command.hold)
    if hold is None:
        return _settle_again(account, command, now, found)
    overrun = max(0, command.charge - hold.amount)
    absorbed = overrun if command.absorb else 0
    charge = within_bounds(command.charge - absorbed)
    own, released, beyond = split(hold.draws, charge)
    more, debt = draw(account, beyond, now)
    if command.forgive:
        charge, absorbed, debt = charge - debt, absorbed + debt, 0
    repaid = _repayment(account, released, more, debt, now)
    counts, over = _fill(account, hold, command, now)
    draws = joined(own, more) if more else own
    cause = command.cause if overrun or over else None
    lost = command.lost_owner
    return [Settled(command.hold, charge, draws, debt, overrun, cause, absorbed, repaid, counts, over, lost)]


def _void(account: Account, command: Void, now: int, found: Found) -> Decision:
    hold = account.holds.get(command.hold)
    if hold is None:
        return _void_again(account, command, now, found)
    _, released, _ = split(hold.draws, 0)
    return [Voided(hold=command.hold, reason=command.reason, repaid=_repayment(account, released, (), 0, now))]


def _repayment(account: Account, released: Any, taken: Draws, new_debt: Ticks, now: int) -> Draws:
    """Older debt paid from the credit that this ending frees (debt is repaid before anything else is held)."""
    if not account.debt or new_debt:
        return ()
    free = dict(released)
    for grant, ticks in taken:
        free[grant] = free.get(grant, 0) - ticks
    return draw(account, account.debt, now, free)[0]


def _fill(account: Account, hold: Hold, command: Settle, now: int) -> tuple[Counts, Counts]:
    """(used, of it not held) by limit and window: windows are filled in order, what exceeds them counts in the last.

    Limits that were set after the hold was made do not count it.
    """
    if not hold.counts:
        return (), ()
    units = {limit.name: limit.unit for limit in account.terms.limits}
    quantities = _quantities(command)
    counts, over = [], []
    for name in dict.fromkeys(name for name, *_ in hold.counts):
        windows = [(window, quantity) for limit, window, quantity in hold.counts if limit == name]
        left = quantities[units[name]] if name in units else 0
        for number, (window, quantity) in enumerate(windows, 1):
            part = left if number == len(windows) else min(left, quantity)
            left -= part
            if part:
                counts.append((name, window, part))
            if part > quantity:
                over.append((name, window, part - quantity))
    return tuple(counts), tuple(over)


def _quantities(command: Settle) -> dict[str, int]:
    """What a settlement adds to a limit, by the limit's unit."""
    return {
        "tokens": command.input_tokens + command.output_tokens,
        "input_tokens": command.input_tokens,
        "output_tokens": command.output_tokens,
        "requests": 1,
    }


def _settle_again(account: Account, command: Settle, now: int, found: Found) -> Decision:
    ending = _ending(command, found)
    if command.lost_owner:
        return Repeated(ending)
    if isinstance(ending, Settled) and ending.lost_owner:
        return _late(account, command, ending, now, found or ())
    if isinstance(ending, Settled) and ending.charge + ending.absorbed == command.charge:
        return Repeated(ending)
    if isinstance(ending, Adjusted):
        return Repeated(ending)
    raise Conflict("this hold has already ended otherwise; correct it with an adjustment that names it")


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
    endings = [event for event in found if not isinstance(event, Held)]
    if not endings:
        raise UnknownHold("this hold was never authorized in this ledger")
    return endings[-1]


def _late(account: Account, said: Settle | None, ending: Settled, now: int, found: Sequence[Event]) -> Decision:
    """What an owner that was taken for dead says once its hold was settled for it: the difference, as an adjustment.

    `said` is its settlement, None for a void. The operator's promises of then hold: what it bears or forgives is not
    charged now either.
    """
    held = next((event for event in found if isinstance(event, Held)), None)
    charge = said.charge if said else 0
    if said and said.absorb:
        charge = min(charge, max(held.amount if held else 0, ending.charge))
    counts, over = _late_counts(account, said, ending, held)
    difference = charge - ending.charge
    if difference >= 0:
        draws, debt = draw(account, difference, now)
        if said and said.forgive:
            difference, debt = difference - debt, 0
        return [Adjusted(ending.hold, difference, draws=draws, debt=debt, counts=counts, over=over)]
    draws, refund, cancelled = _given_back(account, ending, -difference, now)
    return [Adjusted(ending.hold, difference, draws=draws, refund=refund, debt=-cancelled, counts=counts, over=over)]


def _given_back(account: Account, ending: Settled, back: Ticks, now: int) -> tuple[Draws, Ticks, Ticks]:
    """(negative draws, what goes to a fresh grant, debt cancelled): debt first, then the grants that still live."""
    cancelled = min(back, ending.debt, account.debt)
    back -= cancelled
    living = {credit.grant for credit in account.credits if credit.alive(now)}
    given = []
    for grant, ticks in reversed(ending.draws):
        part = min(ticks, back) if grant in living else 0
        back -= part
        if part:
            given.append((grant, -part))
    return tuple(given), back, cancelled


def _late_counts(account: Account, said: Settle | None, ending: Settled, held: Held | None) -> tuple[Counts, Counts]:
    """What was used beside what the expiry counted, in the last window of the hold; what is more of it was not held."""
    quantities = _quantities(said) if said else {}
    windows = {name: window for name, window, _ in (*(held.counts if held else ()), *ending.counts)}
    counts, over = [], []
    for limit in account.terms.limits:
        if limit.name not in windows:
            continue
        before = sum(quantity for name, _, quantity in ending.counts if name == limit.name)
        beyond = sum(quantity for name, _, quantity in ending.over if name == limit.name)
        more = quantities.get(limit.unit, 0) - before
        if more:
            counts.append((limit.name, windows[limit.name], more))
            over.append((limit.name, windows[limit.name], max(more, -beyond)))
    return tuple(counts), tuple(one for one in over if one[2])


# Credit, reports, terms ----------------------------------------------------------------------------------------------


def _grant(account: Account, command: Grant, now: int, found: Found) -> Decision:
    event = Granted(
        key=command.key,
        amount=within_bounds(command.amount),
        category=command.category,
        priority=command.priority,
        starts=command.starts,
        expires=command.expires,
        debt_repaid=min(account.debt, command.amount) if command.starts is None or command.starts <= now else 0,
    )
    if found:
        first = _only(Granted, found)
        same = ("amount", "category", "priority", "starts", "expires")
        if all(getattr(first, name) == getattr(event, name) for name in same):
            return Repeated(first)
        raise Conflict("a grant with this key exists with other content; a key names one grant for ever")
    within_bounds(sum(credit.remaining for credit in account.credits) + command.amount)
    return [event]


def _report(account: Account, command: Report, now: int, found: Found) -> Decision:
    if found:
        first = _only(Reported, found)
        if first.charge + first.forgiven == command.charge:
            return Repeated(first)
        raise Conflict("a report with this key exists with another charge; a key names one report for ever")
    draws, missing = draw(account, within_bounds(command.charge), now)
    debt, forgiven = (0, missing) if command.forgive else (missing, 0)
    counts = _counted(account, now, command.input_tokens, command.output_tokens, requests=1)
    over = []
    for (limit, room, _), (name, window, quantity) in zip(_rooms(account, now), counts, strict=True):
        assert limit.name == name
        if quantity > max(room, 0):
            over.append((name, window, quantity - max(room, 0)))
    return [
        Reported(
            key=command.key,
            charge=command.charge - forgiven,
            draws=draws,
            debt=debt,
            forgiven=forgiven,
            counts=counts,
            over=tuple(over),
        )
    ]


def _set_terms(account: Account, command: SetTerms, now: int, found: Found) -> Decision:
    if command.terms == account.terms:
        return Repeated(TermsSet(account.terms))
    if command.terms.version <= account.terms.version:
        raise Conflict("newer terms are in force; read them again and repeat the change")
    return [TermsSet(command.terms)]


def _lapsed(account: Account, now: int) -> Lapsed | None:
    """What expired grants have left and no hold has reserved: nobody can draw it any more, so it is written off."""
    dead = [
        (credit.grant, credit.free)
        for credit in account.credits
        if credit.expires is not None and credit.expires <= now and credit.free > 0
    ]
    return Lapsed(tuple(dead)) if dead else None


def _only(kind: type[Any], found: Sequence[Event]) -> Any:
    """The event of this kind among the found ones; another kind under the same key is a conflict."""
    for event in found:
        if isinstance(event, kind):
            return event
    raise Conflict("this key was used for something else")


_RULES: dict[type[Any], Callable[[Account, Any, int, Found], Decision]] = {
    Authorize: _authorize,
    Extend: _extend,
    Settle: _settle,
    Void: _void,
    Grant: _grant,
    Report: _report,
    SetTerms: _set_terms,
}
