"""This file knows what can have been decided: the events, and how each is written in the journal.

An event is a result: draws, windows and amounts are in it, so `evolve` needs no clock, price list or configuration.
Its kind carries a version. An entry written by any release stays readable for ever: a change of meaning is a new
kind beside the old one, never a new meaning of an old kind.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, ClassVar, TypeAlias, cast

from .money import Ticks
from .terms import Terms, terms_data, terms_from
from .values import value

Draws: TypeAlias = tuple[tuple[int, Ticks], ...]
"""(grant, ticks) pairs in draw order. A grant is named by the version of the entry that granted it."""

Counts: TypeAlias = tuple[tuple[str, str, int], ...]
"""(limit name, window id, quantity) triples."""

Metered: TypeAlias = tuple[tuple[str, str, int, int], ...]
"""(meter, window id, quantity, end of the window) of meters whose price depends on what was used before."""


class UnknownKind(ValueError):
    """The journal holds a kind this release does not know: a newer release wrote it. The account is refused."""


@value
class Granted:
    kind: ClassVar[str] = "granted.1"
    key: str
    amount: Ticks
    category: str
    priority: int = 0
    starts: int | None = None
    expires: int | None = None
    debt_repaid: Ticks = 0
    """The part that went to the debt at once."""


@value
class Held:
    kind: ClassVar[str] = "held.1"
    hold: str
    owner: str
    amount: Ticks = 0
    draws: Draws = ()
    output_tokens: int = 0
    """Output tokens the hold pays for."""
    expected: Ticks = 0
    """What an unknown outcome owes before any extension."""
    slice: Ticks = 0
    """Where an extension proves that this part was delivered (a stream): the part of `amount` for its first slice."""
    counts: Counts = ()
    scopes: tuple[tuple[str, str], ...] = ()
    metered: Metered = ()
    reserve: Draws = ()
    """The part of `draws` that the hold's run had reserved already."""


@value
class Extended:
    kind: ClassVar[str] = "extended.1"
    hold: str
    amount: Ticks = 0
    """What was added; likewise the other fields."""
    draws: Draws = ()
    output_tokens: int = 0
    counts: Counts = ()
    metered: Metered = ()
    reserve: Draws = ()


@value
class Settled:
    kind: ClassVar[str] = "settled.1"
    hold: str
    charge: Ticks = 0
    """What the customer owes for it: posted + debt."""
    draws: Draws = ()
    """What was posted, by grant."""
    debt: Ticks = 0
    overrun: Ticks = 0
    """The part of what was used that exceeds the hold."""
    cause: str | None = None
    absorbed: Ticks = 0
    """The part of the overrun that the operator bears; not in `charge`."""
    repaid: Draws = ()
    """Older debt paid from what the hold released."""
    counts: Counts = ()
    """What was used, by limit and window."""
    over: Counts = ()
    """The part of `counts` that was not held."""
    lost_owner: bool = False
    metered: Metered = ()
    """What was used, by meter and window."""
    tiers: tuple[tuple[int, int], ...] = ()
    """(ticks per million, quantity) of each tier that the quantity met."""
    reserve: Draws = ()
    """What goes back to the run that had reserved it, or (negative) was taken from there in addition."""
    held: Ticks = 0
    """All that was held, where the owner died: what it says later may exceed that."""


@value
class Voided:
    kind: ClassVar[str] = "voided.1"
    hold: str
    reason: str
    repaid: Draws = ()
    reserve: Draws = ()


@value
class Reported:
    kind: ClassVar[str] = "reported.1"
    key: str
    charge: Ticks = 0
    draws: Draws = ()
    debt: Ticks = 0
    forgiven: Ticks = 0
    """The part no grant covered and nobody owes (mode observe)."""
    counts: Counts = ()
    over: Counts = ()
    metered: Metered = ()
    tiers: tuple[tuple[int, int], ...] = ()
    scopes: tuple[tuple[str, str], ...] = ()
    """The runs that it is a part of."""
    reserve: Draws = ()
    """Negative: the part of `draws` that its run had reserved."""


@value
class Adjusted:
    """A later correction of an ended hold: `charge` is the difference (negative gives back)."""

    kind: ClassVar[str] = "adjusted.1"
    hold: str
    charge: Ticks = 0
    draws: Draws = ()
    """Posted in addition, or (negative) given back to grants that still live."""
    refund: Ticks = 0
    """Given back as a fresh grant of `category`, where the original grant is gone."""
    category: str = "top_up"
    debt: Ticks = 0
    """Debt added, or (negative) cancelled."""
    counts: Counts = ()
    """Used in addition, by limit and window; may be negative."""
    over: Counts = ()
    number: int = 0
    """Which of the record's corrections it is, from 1 on."""
    metered: Metered = ()
    key: str = ""
    """The caller's, of a correction that was asked for; empty: what an owner said whose hold was settled for it."""
    reason: str = ""
    scopes: tuple[tuple[str, str], ...] = ()
    """The runs that the record is a part of."""
    reserve: Draws = ()
    """Negative: the part of `draws` that its run had reserved."""
    overrun: Ticks = 0
    """The part of what an owner said late that exceeds what was held; `cause` and `absorbed` as of a settlement."""
    cause: str | None = None
    absorbed: Ticks = 0


@value
class Repaid:
    """Debt paid from credit that has become free by itself: a grant whose start has come, what a cycle left over."""

    kind: ClassVar[str] = "repaid.1"
    draws: Draws = ()


@value
class Lapsed:
    """What was left unreserved on grants that have expired."""

    kind: ClassVar[str] = "lapsed.1"
    draws: Draws = ()
    """Negative: overage that was used."""
    rolled: Ticks = 0
    """The part of it that goes over into the present cycle."""
    overage_used: Ticks = 0
    """By calls that outlived the last cycle of a plan that has ended: for the operator's invoice."""


@value
class Cycled:
    """A billing cycle has begun (or, with an empty id, the last one has ended).

    What the last cycle left + `included` = amount + debt_repaid + lapsed.
    """

    kind: ClassVar[str] = "cycled.1"
    plan: str = ""
    id: str = ""
    starts: int = 0
    ends: int = 0
    number: int = 0
    calendar: tuple[str, str, str] = ("", "", "")
    """(kind, anchor, zone) of the cycles."""
    draws: Draws = ()
    """What the last cycle's grants had left that no hold had reserved; negative: overage that was used."""
    included: Ticks = 0
    """The plan's credits, for each cycle that has begun since the last entry."""
    amount: Ticks = 0
    """The new grant: what is included and what goes over, after repaying debt."""
    rolled: Ticks = 0
    carried_most: Ticks | None = 0
    """The most that may come over into it; None: all."""
    debt_repaid: Ticks = 0
    lapsed: Ticks = 0
    rollover: Ticks | None = 0
    overage: Ticks | None = 0
    """What this cycle may go beyond its credits; None: unlimited."""
    overage_used: Ticks = 0
    """By the cycle that ended, and in it by calls of cycles before it: for the operator's invoice."""


@value
class TermsSet:
    """These terms, in force from `effective` on, or at once."""

    kind: ClassVar[str] = "terms_set.1"
    terms: Terms
    effective: int | None = None


@value
class RunStarted:
    kind: ClassVar[str] = "run_started.1"
    run: str
    parent: str = ""
    budget: Ticks | None = None
    """None: no limit of its own."""
    calls_most: int | None = None
    expires: int = 0
    draws: Draws = ()
    """What is reserved for it alone, until it ends or expires."""


@value
class RunEnded:
    kind: ClassVar[str] = "run_ended.1"
    run: str
    expired: bool = False
    repaid: Draws = ()


@value
class Crossed:
    """A limit's threshold was reached: fires once per window."""

    kind: ClassVar[str] = "crossed.1"
    limit: str
    window: str
    percent: int
    used: int
    quantity: int
    unit: str = ""


@value
class TopupStarted:
    """Credits are being bought: the operator's hook is called with this key until it says how that ended."""

    kind: ClassVar[str] = "topup_started.1"
    key: str
    amount: Ticks
    window: str
    ends: int = 0
    """Of the window."""


@value
class TopupFailed:
    """The hook said no: no more tries until credit is granted or the terms change."""

    kind: ClassVar[str] = "topup_failed.1"
    key: str
    reason: str = ""


Event: TypeAlias = (
    Granted
    | Held
    | Extended
    | Settled
    | Voided
    | Reported
    | Adjusted
    | Repaid
    | Lapsed
    | Cycled
    | TermsSet
    | RunStarted
    | RunEnded
    | Crossed
    | TopupStarted
    | TopupFailed
)

_JSON_NAMES: dict[type[Any], dict[str, str]] = {
    # field → its name in the journal's JSON. They are short because every call writes two of these rows, and they are
    # for ever. A field that is missing here is written under its own name.
    Held: {"output_tokens": "out"},
    Extended: {"output_tokens": "out"},
    Settled: {"lost_owner": "lost"},
}
_MADE: tuple[Any, ...] = (
    *(Granted, Held, Extended, Settled, Voided, Reported, Adjusted, Lapsed),
    *(Repaid, Cycled, RunStarted, RunEnded, Crossed, TopupStarted, TopupFailed),
)
_CLASSES: dict[str, type[Any]] = {made.kind: made for made in _MADE}
_WRITTEN = {  # class → (field, JSON name, value that is left out) of each field
    made: tuple(
        (field.name, _JSON_NAMES.get(made, {}).get(field.name, field.name), field.default) for field in fields(made)
    )
    for made in _CLASSES.values()
}
_FIELDS = {made: {short: field for field, short, _ in written} for made, written in _WRITTEN.items()}


_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_text = json.encoder.encode_basestring


def encode(event: Event) -> str:
    """The event as compact JSON: no floats, no integer keys; values that equal a field's default are left out."""
    if isinstance(event, Held):
        return _encode_held(event)
    if isinstance(event, Settled):
        return _encode_settled(event)
    if isinstance(event, TermsSet):
        data = terms_data(event.terms)
        return _to_json(data if event.effective is None else {**data, "effective": event.effective})
    written = _WRITTEN[type(event)]
    return _to_json({short: said for field, short, default in written if (said := getattr(event, field)) != default})


# The two events of every call are put together by hand, to the letter what the json module makes of them, in a third
# of its time: a tenth of what the ledger does for a call.


def _encode_held(event: Held) -> str:
    said = f'{{"hold":{_text(event.hold)},"owner":{_text(event.owner)}'
    if event.amount:
        said += f',"amount":{event.amount}'
    if event.draws:
        said += f',"draws":{_draws(event.draws)}'
    if event.output_tokens:
        said += f',"out":{event.output_tokens}'
    if event.expected:
        said += f',"expected":{event.expected}'
    if event.slice:
        said += f',"slice":{event.slice}'
    if event.counts:
        said += f',"counts":{_to_json(event.counts)}'
    if event.scopes:
        scopes = ",".join([f"[{_text(name)},{_text(scope)}]" for name, scope in event.scopes])
        said += f',"scopes":[{scopes}]'
    if event.metered:
        said += f',"metered":{_to_json(event.metered)}'
    if event.reserve:
        said += f',"reserve":{_draws(event.reserve)}'
    return said + "}"


def _encode_settled(event: Settled) -> str:
    said = f'{{"hold":{_text(event.hold)}'
    if event.charge:
        said += f',"charge":{event.charge}'
    if event.draws:
        said += f',"draws":{_draws(event.draws)}'
    if event.debt:
        said += f',"debt":{event.debt}'
    if event.overrun:
        said += f',"overrun":{event.overrun}'
    if event.cause is not None:
        said += f',"cause":{_text(event.cause)}'
    if event.absorbed:
        said += f',"absorbed":{event.absorbed}'
    if event.repaid:
        said += f',"repaid":{_draws(event.repaid)}'
    if event.counts:
        said += f',"counts":{_to_json(event.counts)}'
    if event.over:
        said += f',"over":{_to_json(event.over)}'
    if event.lost_owner:
        said += ',"lost":true'
    if event.metered:
        said += f',"metered":{_to_json(event.metered)}'
    if event.tiers:
        said += f',"tiers":{_draws(event.tiers)}'
    if event.reserve:
        said += f',"reserve":{_draws(event.reserve)}'
    if event.held:
        said += f',"held":{event.held}'
    return said + "}"


def _draws(draws: Draws) -> str:
    return "[" + ",".join([f"[{grant},{ticks}]" for grant, ticks in draws]) + "]"


def decode(kind: str, text: str) -> Event:
    """The event that was written so. Raises UnknownKind, never skips."""
    data = json.loads(text)
    if kind == TermsSet.kind:
        return _terms_set(kind, data)
    made = _CLASSES.get(kind)
    if made is None:
        raise UnknownKind(
            f"the ledger holds an entry of kind {kind!r}, which this release cannot read: upgrade lava-middleware"
        )
    names = _FIELDS[made]
    try:
        return cast(Event, made(**{names[short]: _frozen(value) for short, value in data.items()}))
    except KeyError as unknown:
        raise UnknownKind(
            f"the ledger holds an entry of kind {kind!r} with a field {unknown}, which this release cannot read: "
            "upgrade lava-middleware"
        ) from None


def _terms_set(kind: str, data: dict[str, Any]) -> TermsSet:
    effective = data.pop("effective", None)
    try:
        return TermsSet(terms_from(data), effective)
    except TypeError:
        raise UnknownKind(
            f"the ledger holds an entry of kind {kind!r} with terms that this release cannot read: "
            "upgrade lava-middleware"
        ) from None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if type(value) is list else value
