"""This file knows what is asked of an account beside calls: plans, limits, runs, work, purchases, corrections.

Each function does one of it once, on whatever is there, drawing what it needs from `world.rng`. What makes no sense is
asked for as well, now and then: the ledger says no.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from lava_middleware.core.carry import carry, posting
from lava_middleware.core.commands import (
    Adjust,
    Authorize,
    EndRun,
    Extend,
    FailTopup,
    Grant,
    Report,
    Scopes,
    SetTerms,
    Settle,
    StartRun,
    StartTopup,
    Units,
    Void,
)
from lava_middleware.core.events import Extended, Held, TopupStarted
from lava_middleware.core.money import Amount
from lava_middleware.core.record import Facts, Record
from lava_middleware.core.terms import NO_TERMS, Limit, Plan, Terms, TopUp
from lava_middleware.core.tiers import Tiers
from lava_middleware.core.usage import Usage
from lava_middleware.ledger.ticket import Ticket

from .calendars import DAY

if TYPE_CHECKING:
    from .world import Process, World

CUSTOMERS = ("ada", "bob")
CATEGORIES = ("promo", "plan", "bundle", "top_up")
ZONES = ("UTC", "UTC", "Europe/Berlin", "America/Santiago", "Pacific/Kiritimati")
ANCHORS = ("", "", "2026-01-31", "2024-02-29")
CYCLES = ("day", "week", "month", "month", "year")
WINDOWS = ("minute", "hour", "day", "week", "month", "year", "cycle", "lifetime")
PERIODS = ("hour", "day", "week", "month")
LIMITS = {
    # unit → quantities
    "tokens": (200, 1_500, 20_000),
    "input_tokens": (200, 1_500, 20_000),
    "output_tokens": (200, 1_500, 20_000),
    "requests": (0, 5, 50),
    "credits": (5_000_000, 60_000_000, 900_000_000),
    "characters": (400, 5_000),
    "seconds": (30, 600),
    "open_calls": (1, 4),
}
MODELS = ("small", "tiered", "free")
SCOPES = {
    # scope → its values
    "user": ("u1", "u2"),
    "key": ("k1", "k2"),
    "model": MODELS,
    "meter": ("pages", "chat"),
    "team": ("red", "blue"),
}
HUGE = 3 * 10**18
"""Two of them are more than an account can hold."""
CREDITS = (0, 40_000, 3_000_000, 30_000_000, 400_000_000)
CAPS = (0, 0, 1_000_000, 50_000_000, None)
TIERS = (
    Tiers("falling", ((0, 5_000 * 10**6), (300, 3_000 * 10**6), (900, 10**9)), "day", "Europe/Berlin"),
    Tiers("rising", ((0, 0), (300, 10**9), (900, 4_000 * 10**6 + 1)), "month", anchor="2026-01-31"),
)


def _terms(process: Process, account: str) -> Terms:
    """As that process has them in memory, which is not always as they are."""
    slot = process.accounts.slot(account)
    with suppress(Exception):
        process.accounts.ready(slot)
    return slot.account.terms if slot.account is not None else NO_TERMS


def _set(world: World, process: Process, account: str, terms: Terms, *, at_cycle_end: bool = False) -> None:
    when = process.clock() + world.rng.choice((1, 2, 9)) * DAY if world.chance(0.1) else None
    command = SetTerms(terms, None if at_cycle_end else when, at_cycle_end)
    world.note(f"{account}: {command}")
    process.apply(account, command)


def limit(world: World) -> None:
    """Of any unit, scope and window."""
    rng = world.rng
    process, account = rng.choice(world.processes), rng.choice(CUSTOMERS)
    terms = _terms(process, account)
    if terms.limits and world.chance(0.45):
        _set(world, process, account, terms.without_limit(rng.choice(terms.limits).name))
        return
    unit = rng.choice(tuple(LIMITS))
    per = rng.choice(("", "", "", "user", "key", "model", "run"))
    of: Scopes = ()
    if world.chance(0.3):
        scope = rng.choice(tuple(SCOPES))
        of = ((scope, rng.choice(SCOPES[scope])),)
    made = Limit(
        f"{unit} {per}",
        unit,
        rng.choice(LIMITS[unit]),
        "lifetime" if unit == "open_calls" else rng.choice(WINDOWS),
        rng.choice(ZONES),
        rng.choice(ANCHORS),
        of,
        per,
        rng.choice(("block", "block", "warn")),
        world.chance(0.2),
        rng.choice(((), (50, 100), (100, 20))),
    )
    before = next((one for one in terms.limits if one.name == made.name), None)
    if before is not None:  # a limit keeps what it counts
        made = replace(before, quantity=made.quantity, on_reach=made.on_reach, thresholds=made.thresholds)
    _set(world, process, account, terms.with_limit(made))


def plan(world: World) -> None:
    """A plan, another one, or the end of it; at once, or when the cycle ends; of this catalogue, or an older one."""
    rng = world.rng
    process, account = rng.choice(world.processes), rng.choice(CUSTOMERS)
    terms = _terms(process, account)
    kept = terms.plan
    chosen: Plan | None
    if kept is not None and world.chance(0.25):
        chosen = None
    elif kept is not None and world.chance(0.5):
        chosen = replace(kept, credits=rng.choice(CREDITS), rollover=rng.choice(CAPS), overage=rng.choice(CAPS))
    else:
        models = rng.choice((None, None, None, MODELS[:2]))
        meters = rng.choice((None, None, ("chat",)))
        chosen = Plan(
            rng.choice(("basic", "pro")),
            rng.choice(CREDITS),
            rng.choice(CYCLES),
            rng.choice(ANCHORS),
            rng.choice(ZONES),
            rng.choice(CAPS),
            rng.choice(CAPS),
            meters,
            models,
        )
    changed = terms.changed(plan=chosen, catalogue=max(terms.catalogue + rng.choice((0, 0, 1, -1)), 0))
    _set(world, process, account, changed, at_cycle_end=world.chance(0.4))


def suspend(world: World) -> None:
    """And soon back."""
    process, account = world.rng.choice(world.processes), world.rng.choice(CUSTOMERS)
    terms = _terms(process, account)
    if terms.suspended or world.chance(0.3):
        process.apply(account, SetTerms(terms.changed(suspended=not terms.suspended)))
        world.note(f"{account} is {'back' if terms.suspended else 'suspended'}")


def offer_topups(world: World) -> None:
    rng = world.rng
    process, account = rng.choice(world.processes), rng.choice(CUSTOMERS)
    amount = rng.choice((1_000_000, 20_000_000))
    made = TopUp(rng.choice(CREDITS[1:]), amount, amount * rng.choice((1, 2, 9)), rng.choice(PERIODS))
    _set(world, process, account, _terms(process, account).changed(top_up=made if world.chance(0.8) else None))


def top_up(world: World) -> None:
    """Ask whether to buy; whoever is told to, buys."""
    rng = world.rng
    process, account = rng.choice(world.processes), rng.choice(CUSTOMERS)
    command = StartTopup(world.name("t"), rng.choice((0, 0, 10_000_000)))
    world.note(f"{account}: {command}")
    ticket = process.apply(account, command)
    if world.chance(0.3):
        rng.choice(world.processes).apply(account, command)
    if ticket.done and world.chance(0.5):  # else it dies, or sleeps, before it has called the hook
        with suppress(Exception):
            started = ticket.result().event
            if isinstance(started, TopupStarted):
                buy(world, process, account, started.key, started.amount)


def keep(world: World) -> None:
    """Some process finds a purchase under way, and calls the hook with its key: once more, perhaps."""
    account = world.rng.choice(CUSTOMERS)
    book = world.judge.books.get(account)
    if book is not None and book.topup is not None:
        buy(world, world.rng.choice(world.processes), account, book.topup.key, book.topup.amount)


def buy(world: World, process: Process, account: str, key: str, amount: int) -> None:
    """The operator's hook takes the money, once for each key; then the ledger is told, unless the process dies."""
    paid = world.shop.setdefault(key, (account, amount if world.chance(0.8) else 0))[1]
    world.note(f"{account}: the hook is called with {key}")
    if world.chance(0.15):
        world.kill(process)
        return
    told = Grant(key, amount) if paid else FailTopup(key, "no")
    process.apply(account, told)
    if world.chance(0.3):  # another one has called the hook as well, and tells what it was told
        world.rng.choice(world.processes).apply(account, told)


def run(world: World) -> None:
    """Begin one, inside another perhaps; its budget held for it alone, perhaps. Or once more what has begun."""
    rng = world.rng
    process, account = rng.choice(world.processes), rng.choice(CUSTOMERS)
    book = world.judge.books[account]
    parent = rng.choice(list(book.runs)) if book.runs and world.chance(0.5) else ""
    command = StartRun(
        world.name("run"),
        rng.choice((None, 100_000, 5_000_000, 60_000_000)),
        rng.choice((None, None, 1, 6)),
        process.clock() + rng.choice((10_000_000, 3_600_000_000, 3 * DAY)),
        parent,
        reserve=False,
    )
    if not parent and command.budget is not None:
        command = replace(command, reserve=world.chance(0.6))
    world.note(f"{account}: {command}")
    process.apply(account, command)
    if world.chance(0.2):
        rng.choice(world.processes).apply(account, command)


def end_run(world: World) -> None:
    rng = world.rng
    account = rng.choice(CUSTOMERS)
    book = world.judge.books[account]
    if book.ever:
        name = rng.choice(list(book.runs or sorted(book.ever)))
        world.note(f"{account}: {name} ends")
        rng.choice(world.processes).apply(account, EndRun(name))


def scopes(world: World, account: str, *, model: str = "") -> Scopes:
    """Who or what something is for."""
    rng = world.rng
    found = {scope: rng.choice(values) for scope, values in SCOPES.items() if world.chance(0.4)}
    if model:
        found["model"] = model
    runs = world.judge.books[account].runs
    if runs and world.chance(0.6):
        found["run"] = rng.choice(list(runs))
    return tuple(sorted(found.items()))


def begin(world: World, account: str) -> None:
    """What the operator has agreed with a new customer."""
    rng, process = world.rng, world.processes[0]
    terms = NO_TERMS
    if world.chance(0.4):
        plan = Plan("basic", rng.choice(CREDITS), rng.choice(CYCLES), "", "UTC", rng.choice(CAPS), rng.choice(CAPS))
        terms = terms.changed(plan=plan)
    if world.chance(0.3):
        terms = terms.changed(top_up=TopUp(900_000_000, 1_000_000, 9_000_000, "day"))
    if terms.version:
        process.apply(account, SetTerms(terms))


def _units(world: World) -> Units:
    rng = world.rng
    many = (("characters", rng.randrange(300)), ("seconds", rng.randrange(60)))
    return tuple(one for one in many if world.chance(0.4))


def reserve(world: World) -> None:
    """A hold for work that no provider does for us; a growing one, perhaps."""
    rng = world.rng
    process, account = rng.choice(world.processes), rng.choice(CUSTOMERS)
    name, given, made = world.name("w"), rng.randrange(300), rng.randrange(200)
    fixed, price = rng.choice((0, 5_000, 2_000_000)), rng.choice((0, 10**9, 8 * 10**9))
    tiers, each = rng.choice((None, None, *TIERS)), rng.choice((0, 1))
    counted = rng.randrange(400) if tiers is not None else 0
    command = Authorize(
        name,
        process.owner,
        fixed,
        given,
        price,
        made,
        rng.choice((made, made // 3)),
        rng.choice((1, 1, 3)),
        rng.randrange(fixed + 1),
        grows=world.chance(0.4),
        scopes=scopes(world, account),
        units=_units(world),
        hard=(fixed + 40_000, given + 50) if world.chance(0.3) else None,
        tiers=tiers,
        metered=counted,
        metered_each=each if tiers is not None else 0,
        metered_expected=counted // 2,
    )
    world.note(f"{account}: {command}")
    world.judge.bound[name] = account
    world.owned[name] = process
    draft = Facts(id=name, units=dict(command.units), metered=command.metered_expected)
    if world.chance(0.5):
        draft.usage = {"input": given, "output": made}
    else:
        draft.estimate = (given + 1) // 2, made // 2
    record = draft.to_json()
    world.work[name] = account, process, command, process.apply(account, command, record=record)


def go_on(world: World) -> None:
    """A piece of work needs more, ends, or turns out to have been nothing."""
    rng = world.rng
    if not world.work:
        reserve(world)
        return
    name = rng.choice(list(world.work))
    account, process, asked, ticket = world.work[name]
    if not process.running:
        del world.work[name]
        return
    if not ticket.done:
        process.work()
        return
    held = _held(ticket)
    if held is None:
        del world.work[name]
        return
    if world.chance(0.35):
        world.note(f"{name} needs more")
        extend = Extend(name, asked.output_price, rng.choice((1, 90, 2_000)), 64, asked.tiers, asked.metered_each)
        more = process.apply(account, extend)
        world.work[name] = account, process, asked, more if isinstance(_held(more), Extended) else ticket
        return
    end(world, name)


def _held(ticket: Ticket) -> Held | Extended | None:
    with suppress(Exception):
        event = ticket.result().event
        if isinstance(event, Held | Extended):
            return event
    return None


def end(world: World, name: str) -> None:
    rng = world.rng
    account, process, asked, ticket = world.work.pop(name)
    if not process.running or not ticket.done or _held(ticket) is None:
        return
    amount = asked.fixed + asked.output_price * asked.output_tokens // 10**6
    observed, absorbs = world.settings.mode == "observe", world.settings.overrun == "absorb"
    ending: Settle | Void = Void(name, "void")
    if not world.chance(0.2):
        ending = Settle(
            name,
            rng.choice((0, amount // 3, amount, amount + 900_000)),
            rng.choice((0, asked.input_tokens, asked.input_tokens + 30)),
            rng.choice((0, asked.output_tokens, asked.output_tokens + 500)),
            "undercounted",
            absorb=absorbs,
            forgive=observed,
            units=asked.units if world.chance(0.7) else _units(world),
            tiers=asked.tiers,
            metered=rng.choice((asked.metered, asked.metered // 2, asked.metered + 90)) if asked.tiers else 0,
        )
    world.note(f"{account}: {ending}")
    process.post(account, ending, Facts(id=name).to_json())


def report(world: World) -> None:
    """Work after the fact, perhaps long after, perhaps told twice."""
    rng = world.rng
    account, key = rng.choice(CUSTOMERS), world.name("r")
    tiers = rng.choice((None, None, None, *TIERS))
    made = Report(
        key,
        HUGE if world.chance(0.03) else rng.choice((0, 5_000, 800_000)),
        rng.randrange(500),
        rng.randrange(500),
        world.settings.mode == "observe" and world.chance(0.5),
        scopes(world, account) if world.chance(0.5) else (),
        _units(world),
        tiers,
        rng.randrange(500) if tiers is not None else 0,
        rng.choice((1, 1, 0)),
        world.now - rng.choice((0, 3_600_000_000, 9 * DAY)) if world.chance(0.2) else None,
    )
    record = Facts(id=key, charge=made.charge).to_json()
    world.note(f"{account}: {made}")
    world.judge.bound[key] = account
    for _ in range(2 if world.chance(0.3) else 1):
        rng.choice(world.processes).apply(account, made, record=record)


def adjust(world: World) -> None:
    """A correction or a refund of something on the books: more than it charged, now and then, or the same once more."""
    rng, judge = world.rng, world.judge
    if world.corrections and world.chance(0.25):
        account, command = rng.choice(world.corrections)
    else:
        if not judge.on_the_books:
            return
        of = rng.choice(world.corrections)[1].of if world.corrections and world.chance(0.8) else ""
        of = of or rng.choice(list(judge.on_the_books)[-20:])
        account, charged = judge.bound[of], judge.on_the_books[of]
        charge = rng.choice((-charged, *[-charged // 2] * 2, *[-charged // 3] * 2, -charged - 1, -1_000, 40_000))
        command = Adjust(world.name("a"), of, charge, rng.choice(("", "sorry")))
        world.corrections.append((account, command))
    world.note(f"{account}: {command}")
    rng.choice(world.processes).apply(account, command, record=Facts(id=command.of).to_json())


def post(world: World) -> None:
    """What another ledger has decided, in any order and more than once; carried as a span carries it."""
    rng = world.rng
    account = rng.choice(CUSTOMERS)
    name, charge, back = world.name("o"), rng.choice((0, 30_000, 2_000_000)), rng.choice((0, 1, 2))
    world.judge.bound[name] = account
    found = [_record(world, account, name, "settled", charge)]
    found += [_record(world, account, f"{name}:{one}", "adjusted", -charge // 2, name) for one in range(1, back + 1)]
    found += [_record(world, account, f"{name}:late", "adjusted", 7_000, name)] if world.chance(0.3) else []
    rng.shuffle(found)
    for record in found:
        for _ in range(2 if world.chance(0.2) else 1):
            world.posts.append(posting(carry(record)))


def deliver(world: World) -> None:
    """One of them arrives; it comes again until the ledger has it."""
    if not world.posts:
        post(world)
    posted = world.posts.pop(world.rng.randrange(len(world.posts)))
    world.note(f"{posted.customer}: {posted.command}")
    ticket = world.rng.choice(world.processes).apply(posted.customer, posted.command, record=posted.record)
    if not (ticket.done and _written(ticket)):
        world.posts.append(posted)


def _written(ticket: Ticket) -> bool:
    with suppress(Exception):
        ticket.result()
        return True
    return False


def _record(world: World, account: str, name: str, kind: str, charge: int, of: str = "") -> Record:
    facts = {"adjusts": of} if of else {}
    nothing = Amount(0)
    usage, told = Usage(input=40, output=20), ("reported", nothing, None, nothing, nothing, "sim", "small", 1, facts)
    return Record(name, account, kind, world.now, Amount(charge), nothing, usage, *told)


def settle_up(world: World) -> None:
    """At the end of a history: all work has ended, all purchases too, and what others posted has arrived."""
    process = world.processes[0]
    for name in list(world.work):
        end(world, name)
    for account, book in world.judge.books.items():
        if book.topup is not None:
            key, amount = book.topup.key, book.topup.amount
            paid = world.shop.setdefault(key, (account, amount))[1]
            process.apply(account, Grant(key, amount) if paid else FailTopup(key, "no"))
    for posted in world.posts:
        process.apply(posted.customer, posted.command, record=posted.record)
