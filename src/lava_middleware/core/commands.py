"""This file knows what can be asked of one customer's account."""

from __future__ import annotations

from typing import TypeAlias

from .money import Ticks
from .terms import Terms
from .tiers import Tiers
from .values import value

Scopes: TypeAlias = tuple[tuple[str, str], ...]
"""Who or what an exchange is for beside the customer: (("model", "gpt-4o"), ("user", "u1"), ...). Sorted by name.

The name "run" may stand several times: the runs that the exchange is a part of, outermost first."""

Units: TypeAlias = tuple[tuple[str, int], ...]
"""Quantities beside tokens and requests, for limits that count them: (("characters", 1200), ("pages", 3))."""


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
    units: Units = ()
    hard: tuple[Ticks, int] | None = None
    """(fixed, input tokens) at the hard bound: held instead where a limit that applies is strict."""
    tiers: Tiers | None = None
    """Charged by these, in addition to `fixed` and `output_price`."""
    metered: int = 0
    """Units of `tiers` whatever comes out."""
    metered_each: int = 0
    """Units of `tiers` for each output token."""
    metered_expected: int = 0
    """The part of `metered` that an unknown outcome owes."""


@value
class Extend:
    """Enlarge a hold by the next slice of output."""

    hold: str
    output_price: int
    output_tokens_left: int
    """What the call's own cap still allows beyond what is held."""
    slice: int
    """Size of the last slice; the next is at most twice that."""
    tiers: Tiers | None = None
    metered_each: int = 0


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
    units: Units = ()
    tiers: Tiers | None = None
    """Charged by these, in addition to `charge`."""
    metered: int = 0
    """Units of `tiers` that were used. Without `tiers` they are counted, and `charge` has them already."""


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
    units: Units = ()
    tiers: Tiers | None = None
    metered: int = 0
    requests: int = 1
    when: int | None = None
    """Microseconds since 1970 of the event, whose windows it counts in; None: now."""


@value
class Adjust:
    """Correct the record `of` by `charge` more (negative: give that much back, at most what it charged).

    Same `of` and key, same content: the first receipt again. At most keys.ADJUSTMENTS_MOST of one record.
    """

    key: str
    of: str
    charge: Ticks
    reason: str = ""


@value
class Post:
    """Post a record that another ledger has decided on, once for each id. There was no hold here, and there is no
    refusal: the call was paid for there. A record that this ledger has itself is left as it is."""

    record: str
    """Its id in the other ledger."""
    charge: Ticks
    """What the customer owes by it, to the tick; negative where an adjustment gives back."""
    input_tokens: int = 0
    output_tokens: int = 0
    adjusts: str = ""
    """The record that this one corrects, for an adjustment."""


@value
class SetTerms:
    """Put these terms in force. A lower version than the account's never overwrites."""

    terms: Terms
    effective: int | None = None
    """Microseconds since 1970; None: at once."""
    at_cycle_end: bool = False
    """When the present billing cycle ends; at once if there is none."""


@value
class StartRun:
    """Ring-fence a budget. Repeating it while the run is open gives the first answer again."""

    run: str
    budget: Ticks | None
    calls_most: int | None
    expires: int
    parent: str = ""
    reserve: bool = False
    """Hold the budget now, for the run alone. Only an outermost run can."""
    lasts: int = 0
    """Microseconds that count where `expires` is past, because a clock ran ahead and the account is ahead of it now."""


@value
class EndRun:
    """Give back what a run has left. Its open calls end by themselves."""

    run: str


@value
class StartTopup:
    """Ask whether credits are to be bought now; a purchase that is under way is the answer again."""

    key: str
    required: Ticks = 0
    """What a call that waits needs."""


@value
class FailTopup:
    """The purchase did not work."""

    key: str
    reason: str = ""


Command: TypeAlias = (
    Authorize
    | Extend
    | Settle
    | Void
    | Grant
    | Report
    | Post
    | Adjust
    | SetTerms
    | StartRun
    | EndRun
    | StartTopup
    | FailTopup
)

OVERRUN_CAUSES = (
    *("input_above_bound", "cap_ignored", "hidden_output", "undercounted", "dearer_model", "dearer_tier", "late"),
    "unheld",
)
