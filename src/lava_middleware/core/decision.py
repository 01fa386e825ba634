"""This file knows what an answer of `decide` can be: events, a no with its reason, or a repetition; and its errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .events import Event
from .money import Ticks


@dataclass(frozen=True, slots=True)
class Declined:
    """The answer is no, and why. Nothing was written."""

    reason: str
    """"insufficient_credit", "request_exceeds_credit", "credit_on_hold", "limit_reached", "customer_suspended",
    "model_not_in_plan", "meter_not_in_plan", "run_ended", "hold_ended"; of a purchase of credits also "topup_off",
    "topup_not_needed", "topup_capped", "topup_failed"."""
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
    """Microseconds since 1970; None: it does not reset by itself."""


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


def only(kind: type[Any], found: Sequence[Event]) -> Any:
    """The event of this kind among the found ones; another kind under the same key is a conflict."""
    for event in found:
        if isinstance(event, kind):
            return event
    raise Conflict("this key was used for something else")
