"""This file knows what can be asked of one customer's account."""

from __future__ import annotations

from typing import TypeAlias

from .money import Ticks
from .terms import Terms
from .values import value

Scopes: TypeAlias = tuple[tuple[str, str], ...]
"""Who or what an exchange is for beside the customer: (("model", "gpt-4o"), ("user", "u1"), ...). Sorted by name."""


@value
class Authorize:
    """Hold what a call may cost. Repeating it with the same `hold` gives the first answer again."""

    hold: str
    owner: str
    """The process that will end it; recovery expires the holds of dead owners."""
    fixed: Ticks
    """What is owed at most whatever comes out: the input at its bound, flat fees."""
    input_tokens: int
    """Input tokens at their bound: what token limits count beside the output."""
    output_price: int
    """Ticks per million output tokens, the dearest that the request allows, choices multiplied in."""
    output_tokens: int
    """Output tokens wanted now: the whole cap of a unary call, the first slice of a stream."""
    output_tokens_min: int
    """With fewer than these it is declined; equal to `output_tokens` where the call cannot be made smaller."""
    share: int = 1
    """Hold at most one part in `share` of what is available: a call without a cap may not lock out its siblings."""
    expected: Ticks = 0
    """What an unknown outcome owes (before extensions), by the operator's policy; never above the hold."""
    grows: bool = False
    """A stream: each extension proves that the slice before it was delivered, and adds it to `expected`."""
    scopes: Scopes = ()


@value
class Extend:
    """Enlarge a hold by the next slice of output."""

    hold: str
    output_price: int
    output_tokens_left: int
    """What the call's own cap still allows beyond what is held."""
    slice: int
    """Size of the last slice; the next is at most twice that."""


@value
class Settle:
    """Post the charge of a hold and release the rest. `charge` may exceed the hold: the overrun has a `cause`."""

    hold: str
    charge: Ticks
    input_tokens: int
    output_tokens: int
    cause: str | None = None
    """Why the charge exceeds the hold, one of OVERRUN_CAUSES; only read when it does."""
    absorb: bool = False
    """True: the operator bears what exceeds the hold, the customer is charged at most the hold."""
    forgive: bool = False
    """True: the operator bears what no grant covers: there is no debt of it."""
    lost_owner: bool = False
    """True: settled for an owner that died (expire). What that owner says later becomes an adjustment."""


@value
class Void:
    """Nothing is owed: give the hold back. `reason` is one word for the journal."""

    hold: str
    reason: str


@value
class Grant:
    """Add credits. Same key, same content: the first receipt again; other content: Conflict."""

    key: str
    amount: Ticks
    category: str = "top_up"
    priority: int = 0
    """Lower is drawn first."""
    starts: int | None = None
    """Microseconds since 1970; None: at once."""
    expires: int | None = None
    """Microseconds since 1970; None: never."""


@value
class Report:
    """Post a charge that no hold preceded: an unheld exchange, or work reported after the fact. Idempotent by key."""

    key: str
    charge: Ticks
    input_tokens: int = 0
    output_tokens: int = 0
    forgive: bool = False
    """True (mode observe): what no grant covers is noted on the entry and owed by nobody. False: it is debt."""
    scopes: Scopes = ()


@value
class SetTerms:
    """Put these terms in force. A lower version than the account's never overwrites."""

    terms: Terms


Command: TypeAlias = Authorize | Extend | Settle | Void | Grant | Report | SetTerms

OVERRUN_CAUSES = ("input_above_bound", "cap_ignored", "hidden_output", "undercounted", "dearer_model", "late", "unheld")
