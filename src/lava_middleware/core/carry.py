"""This file knows how a usage record is written so that another ledger can post it, and what that ledger posts.

Everything goes along: the facts as they stand in the first ledger's entry, and what that ledger decided. The second
one decides anew which of *its* grants pay, so debt, balance and sequence are its own; all else is equal.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from .commands import Post
from .money import LARGEST
from .record import Record, storable
from .usage import Usage

CARRIED_VERSION = 1
"""Of the form. A reader refuses one that it does not know: the writer is of a newer release."""
LONGEST = 200_000
"""Characters. No record of ours is nearly as long."""

_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_KINDS = ("settled", "expired", "reported", "adjusted")
_OWN = ("adjusts", "posted")
"""Facts that whoever reads the entry adds by itself."""


class UnreadableRecord(ValueError):
    """This is not a carried record. It never will be one."""


class NewerRecord(Exception):
    """A newer release carried this record: upgrade lava-middleware where records are posted."""


class Posting(NamedTuple):
    """What a second ledger is asked for."""

    customer: str
    command: Post
    record: str
    """For the record column of its entry."""


def carry(record: Record) -> str:
    """The whole record as one line of JSON: money as whole ticks, no floats. The same record gives the same text."""
    first = record.facts.get("posted") or {}
    carried = {
        "form": CARRIED_VERSION,
        "id": record.id,
        "customer": record.customer,
        "kind": record.kind,
        "at": record.at,
        "charge": record.charge.ticks,
        "overrun": record.overrun.ticks,
        "cause": record.overrun_cause,
        "debt": first.get("debt", record.debt.ticks),
        "adjusts": record.facts.get("adjusts", ""),
        "facts": {name: value for name, value in record.facts.items() if name not in _OWN},
    }
    return storable(_to_json(carried))


def posting(text: str) -> Posting:
    """What to post for a carried record. Raises UnreadableRecord or NewerRecord.

    Whether the text can be trusted is not for this to tell: verify its signature first.
    """
    carried = _parsed(text)
    facts = {name: value for name, value in carried["facts"].items() if name not in _OWN}
    facts["posted"] = {name: carried[name] for name in ("kind", "at", "overrun", "cause", "debt")}
    usage = Usage(facts.get("usage") or {})
    command = Post(
        carried["id"], carried["charge"], usage.input_tokens, usage.output_tokens, adjusts=carried["adjusts"]
    )
    return Posting(carried["customer"], command, storable(_to_json(facts)))


def _parsed(text: str) -> dict[str, Any]:
    try:
        carried = json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError):
        carried = None
    if not isinstance(carried, dict) or type(carried.get("form")) is not int:
        raise UnreadableRecord("this is not a usage record")
    if carried["form"] > CARRIED_VERSION:
        raise NewerRecord("a newer release carried this record: upgrade lava-middleware")
    if not (_is_named(carried) and _is_counted(carried) and _is_told(carried.get("facts"))):
        raise UnreadableRecord("this usage record is not complete")
    return carried


def _is_named(carried: dict[str, Any]) -> bool:
    texts = [carried.get(name) for name in ("id", "customer", "kind", "adjusts")]
    if not all(isinstance(text, str) and len(text) <= 600 for text in texts):
        return False
    name, customer, kind, adjusts = texts
    return bool(name and customer) and kind in _KINDS and (kind == "adjusted") == bool(adjusts)


def _is_counted(carried: dict[str, Any]) -> bool:
    figures = [carried.get(name) for name in ("at", "charge", "overrun", "debt")]
    if not all(type(figure) is int and abs(figure) < LARGEST for figure in figures):
        return False
    cause = carried.get("cause")
    return (carried["charge"] >= 0 or carried["kind"] == "adjusted") and (cause is None or isinstance(cause, str))


def _is_told(facts: Any) -> bool:
    usage = facts.get("usage", {}) if isinstance(facts, dict) else None
    return isinstance(usage, dict) and all(type(quantity) is int and quantity >= 0 for quantity in usage.values())
