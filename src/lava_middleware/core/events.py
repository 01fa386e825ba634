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
from .terms import Limit, Terms
from .values import value

Draws: TypeAlias = tuple[tuple[int, Ticks], ...]
"""(grant, ticks) pairs in draw order. A grant is named by the version of the entry that granted it."""

Counts: TypeAlias = tuple[tuple[str, str, int], ...]
"""(limit name, window id, quantity) triples."""


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


@value
class Extended:
    kind: ClassVar[str] = "extended.1"
    hold: str
    amount: Ticks = 0
    """What was added; likewise the other fields."""
    draws: Draws = ()
    output_tokens: int = 0
    counts: Counts = ()


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


@value
class Voided:
    kind: ClassVar[str] = "voided.1"
    hold: str
    reason: str
    repaid: Draws = ()


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


@value
class Lapsed:
    """What was left unreserved on grants that have expired."""

    kind: ClassVar[str] = "lapsed.1"
    draws: Draws = ()


@value
class TermsSet:
    kind: ClassVar[str] = "terms_set.1"
    terms: Terms


Event: TypeAlias = Granted | Held | Extended | Settled | Voided | Reported | Adjusted | Lapsed | TermsSet

_JSON_NAMES: dict[type[Any], dict[str, str]] = {
    # field → its name in the journal's JSON. They are short because every call writes two of these rows, and they are
    # for ever. A field that is missing here is written under its own name.
    Held: {"output_tokens": "out"},
    Extended: {"output_tokens": "out"},
    Settled: {"lost_owner": "lost"},
}
_CLASSES: dict[str, type[Any]] = {
    made.kind: made for made in (Granted, Held, Extended, Settled, Voided, Reported, Adjusted, Lapsed)
}
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
        limits = [[one.name, one.unit, one.quantity, one.window, one.zone] for one in event.terms.limits]
        return _to_json({"version": event.terms.version, "limits": limits})
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
    return said + "}"


def _draws(draws: Draws) -> str:
    return "[" + ",".join([f"[{grant},{ticks}]" for grant, ticks in draws]) + "]"


def decode(kind: str, text: str) -> Event:
    """The event that was written so. Raises UnknownKind, never skips."""
    data = json.loads(text)
    if kind == TermsSet.kind:
        return TermsSet(Terms(data["version"], tuple(Limit(*one) for one in data["limits"])))
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


def _frozen(value: Any) -> Any:
    return tuple(tuple(one) for one in value) if type(value) is list else value
