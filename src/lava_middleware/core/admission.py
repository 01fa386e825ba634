"""This file knows whether a call may begin and a stream go on: every rule that can say no."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

from .account import Account, Run
from .commands import Authorize, Extend, Scopes
from .counting import Applied, Needs, applied, counted, fit, limit_reached, tier_counter, tier_rate
from .decision import Decision, Declined, Found, LookUp, Repeated, UnknownHold, only
from .draws import draw_for
from .events import Draws, Extended, Held, Metered
from .keys import keys_of
from .money import PER_MILLION, Ticks, charge_ceiling, within_bounds

LEAST_SLICE = 32
"""Output tokens; smaller extensions would cost more ledger entries than they are worth."""


class Wish(NamedTuple):
    """What a call, or a stream that goes on, asks of limits, of the runs that it is a part of, and of credit."""

    needs: Needs
    output_tokens: int
    """At most."""
    least: int
    """Fewer are of no use."""
    share: int = 1
    """Of what is left, a call without a cap of its own takes one part in so many."""


def authorize(account: Account, command: Authorize, now: int, found: Found) -> Decision:
    if found:
        return Repeated(only(Held, found))
    if command.hold in account.holds and found is None:
        raise LookUp(*keys_of(command))
    if (forbidden := _forbidden(account, command.scopes)) is not None:
        return forbidden
    scopes = with_outer_runs(account, command.scopes)
    rooms = applied(account, scopes, now) if account.terms.limits else []
    wish, rate = _wish(account, command, rooms, now)
    fits = _limits_room(rooms, wish)
    if isinstance(fits, Declined):
        return fits
    run = None
    if account.runs or any(name == "run" for name, _ in scopes):
        answer = _runs_room(account, scopes, wish, fits)
        if isinstance(answer, Declined):
            return answer
        fits, run = answer
    output_tokens = _credit_room(account, wish, fits, run, now)
    if isinstance(output_tokens, Declined):
        return output_tokens
    needs = wish.needs
    priced = charge_ceiling(output_tokens, needs.output_price)
    amount = within_bounds(needs.fixed + priced)
    draws, reserve = _drawn(account, amount, run, now)
    return [
        # By position, here and in settle: names would double the time it takes.
        Held(
            command.hold,
            command.owner,
            amount,
            draws,
            output_tokens,
            min(command.expected + charge_ceiling(command.metered_expected, rate), amount),
            priced if command.grows else 0,
            counted(rooms, needs, output_tokens) if rooms else (),
            scopes,
            _metered(account, command, command.metered + command.metered_each * output_tokens, now),
            reserve,
        )
    ]


def _wish(account: Account, command: Authorize, rooms: list[Applied], now: int) -> tuple[Wish, Ticks]:
    """(what the call asks for, what each metered unit may cost)."""
    fixed, input_tokens = command.fixed, command.input_tokens
    if command.hard is not None and any(one.limit.strict for one in rooms):
        fixed, input_tokens = max(fixed, command.hard[0]), max(input_tokens, command.hard[1])
    output_price, rate = command.output_price, 0
    if command.tiers is not None:
        most = command.metered + command.metered_each * command.output_tokens
        rate = tier_rate(account, command.tiers, most, now)
        fixed += charge_ceiling(command.metered, rate)
        output_price += command.metered_each * rate
    needs = Needs(input_tokens, fixed, output_price, 1, dict(command.units))
    share = command.share if command.output_tokens_min < command.output_tokens else 1
    return Wish(needs, command.output_tokens, command.output_tokens_min, share), rate


def extend(account: Account, command: Extend, now: int, found: Found) -> Decision:
    hold = account.holds.get(command.hold)
    if hold is None:
        if found is None:
            raise LookUp(*keys_of(command))
        if not found:
            raise UnknownHold("this hold was never authorized in this ledger")
        return Declined("hold_ended")
    if account.terms.suspended:
        return Declined("customer_suspended")
    left = command.output_tokens_left
    output_price = command.output_price
    if command.tiers is not None:
        slice_most = min(left, max(LEAST_SLICE, 2 * command.slice))
        output_price += command.metered_each * tier_rate(account, command.tiers, command.metered_each * slice_most, now)
    wish = Wish(Needs(0, 0, output_price, 0), left, 1)
    rooms = applied(account, hold.scopes, now) if account.terms.limits else []
    fits = _limits_room(rooms, wish)
    if isinstance(fits, Declined):
        return fits
    run = None
    if account.runs:
        answer = _runs_room(account, hold.scopes, wish, fits)
        if isinstance(answer, Declined):
            return answer
        fits, run = answer
    if output_price:
        free = _free(account, run, now)
        if (fits := min(fits, _affordable(free, output_price, fits))) <= 0:
            return _no_more(account, free, output_price)
    slice_ = min(fits, max(LEAST_SLICE, min(2 * command.slice, fits // (len(account.holds) + 1))))
    amount = charge_ceiling(slice_, output_price)
    draws, reserve = _drawn(account, amount, run, now)
    counts = tuple(one for one in counted(rooms, wish.needs, slice_) if one[2])
    metered = _metered(account, command, command.metered_each * slice_, now)
    return [Extended(command.hold, amount, draws, slice_, counts, metered, reserve)]


def _forbidden(account: Account, scopes: Scopes) -> Declined | None:
    """What no credit would change."""
    terms = account.terms
    if terms.suspended:
        return Declined("customer_suspended")
    plan = terms.plan
    if plan is None or (plan.models is None and plan.meters is None):
        return None
    named = dict(scopes)
    model, meter = named.get("model"), named.get("meter")
    if plan.models is not None and model and not any(fnmatchcase(model, one) for one in plan.models):
        return Declined("model_not_in_plan")
    if plan.meters is not None and meter and meter not in plan.meters:
        return Declined("meter_not_in_plan")
    return None


def _limits_room(rooms: list[Applied], wish: Wish) -> int | Declined:
    """Output tokens that fit into every limit of which something is asked, or which of them stands in the way."""
    fits, reached = wish.output_tokens, []
    for one in rooms:
        fixed, each = wish.needs.of(one.limit.unit)
        if one.limit.on_reach != "block" or not (fixed or each):
            continue
        room = fit(one, wish.needs, wish.output_tokens)
        if room < wish.least:
            reached.append(limit_reached(one, room, fixed + charge_ceiling(wish.least, each)))
        fits = min(fits, room)
    return max(reached, key=_how_long) if reached else fits


def with_outer_runs(account: Account, scopes: Scopes) -> Scopes:
    """The scopes with every run that the named ones are a part of: who names the inner run spends the outer ones'."""
    if not account.runs:
        return scopes
    named = [value for scope, value in scopes if scope == "run"]
    names: list[str] = []
    for name in named:
        outer = [name]
        while (run := account.runs.get(outer[0])) is not None and run.parent:
            outer.insert(0, run.parent)
        names += [one for one in outer if one not in names]
    if len(names) == len(named):
        return scopes
    return tuple(sorted([one for one in scopes if one[0] != "run"] + [("run", one) for one in names], key=_by_name))


def _by_name(scope: tuple[str, str]) -> str:
    return scope[0]


def _runs_room(account: Account, scopes: Scopes, wish: Wish, fits: int) -> tuple[int, Run | None] | Declined:
    """(output tokens that fit into every run, the run that has reserved its budget), or why they do not."""
    calls = wish.needs.requests
    for name in [value for scope, value in scopes if scope == "run"]:
        run = account.runs.get(name)
        if run is None:
            if calls:
                return Declined("run_ended", limit=f"run {name}")
            continue  # a stream that outlives its run goes on
        if calls and run.calls_most is not None and run.calls + calls > run.calls_most:
            return Declined(
                "limit_reached", limit=f"run {name}", unit="requests", used=run.calls, quantity=run.calls_most
            )
        if run.budget is not None:
            if (room := _budget_room(run, run.budget, wish)) < wish.least:
                return _budget_reached(name, run, run.budget, wish, room)
            fits = min(fits, room)
    return fits, account.reserving(scopes)


def _budget_room(run: Run, budget: Ticks, wish: Wish) -> int:
    """Output tokens that the run's budget leaves."""
    room = budget - run.spent - run.held
    fits = _affordable(room - wish.needs.fixed, wish.needs.output_price, wish.output_tokens)
    return fits if fits < wish.least else _shared(fits, room, wish)


def _credit_room(account: Account, wish: Wish, fits: int, run: Run | None, now: int) -> int | Declined:
    """Output tokens that the credit leaves, or what is missing."""
    needs = wish.needs
    if not needs.fixed and not needs.output_price:
        return fits
    free = _free(account, run, now)
    room = _affordable(free - needs.fixed, needs.output_price, wish.output_tokens)
    if room < wish.least:
        return _too_little(account, free, needs.fixed + charge_ceiling(wish.least, needs.output_price), room)
    return min(fits, _shared(room, free, wish))


def _shared(fits: int, room: Ticks, wish: Wish) -> int:
    """Of what would fit, the share of a call without a cap, and at least what it needs."""
    if wish.share == 1:
        return fits
    shared = _affordable(room // wish.share - wish.needs.fixed, wish.needs.output_price, wish.output_tokens)
    return min(fits, max(shared, wish.least))


def _budget_reached(name: str, run: Run, budget: Ticks, wish: Wish, fits: int) -> Declined:
    required = wish.needs.fixed + charge_ceiling(wish.least, wish.needs.output_price)
    return Declined(
        "limit_reached",
        required=required,
        output_tokens_fit=max(fits, 0),
        waitable=run.held > 0 and run.spent + required <= budget,
        limit=f"run {name}",
        unit="credits",
        used=run.spent + run.held,
        quantity=budget,
    )


def _free(account: Account, run: Run | None, now: int) -> Ticks:
    """What a call may hold: of a run that has reserved its budget, that first, whatever others owe or hold."""
    free = account.available(now)
    return free if run is None else sum(ticks for _, ticks in run.draws) + max(free, 0)


def _drawn(account: Account, amount: Ticks, run: Run | None, now: int) -> tuple[Draws, Draws]:
    """(what the hold reserves, the part of it that its run had reserved)."""
    draws, missing, reserve = draw_for(account, run, amount, now)
    assert not missing, "free credit was counted wrongly"
    return draws, reserve


def _how_long(declined: Declined) -> tuple[bool, float]:
    """Of several limits that refuse a call, the one that stands in its way the longest is the one to name."""
    return not declined.waitable, float("inf") if declined.resets_at is None else declined.resets_at


def _metered(account: Account, command: Authorize | Extend, quantity: int, now: int) -> Metered:
    if command.tiers is None:
        return ()
    name, window, ends, _ = tier_counter(account, command.tiers, now)
    return ((name, window, quantity, ends),)


def _affordable(ticks: Ticks, output_price: int, wanted: int) -> int:
    """How many output tokens these ticks pay for, -1 where they are already overspent."""
    if ticks < 0:
        return -1
    return ticks * PER_MILLION // output_price if output_price else wanted


def _too_little(account: Account, free: Ticks, required: Ticks, fits: int) -> Declined:
    reserved = account.reserved()
    if free + reserved >= required:
        return Declined("credit_on_hold", free, required, max(fits, 0), waitable=True)
    if free + reserved <= 0:
        return Declined("insufficient_credit", free, required)
    return Declined("request_exceeds_credit", free, required, max(fits, 0))


def _no_more(account: Account, free: Ticks, output_price: int) -> Declined:
    """No credit for even one more token: other open holds may still give some back."""
    own_only = len(account.holds) <= 1
    reason = "insufficient_credit" if own_only else "credit_on_hold"
    return Declined(reason, free, charge_ceiling(1, output_price), waitable=not own_only)
