"""This file knows every rule of money by its command: what may be held, what is posted, and when the answer is no.

    decide(account, command, now) -> [event, ...] | Declined | Repeated

hold is | Authorize     | Extend      | Settle                 | Void                     | Settle(lost_owner)
none    | held/declined | UnknownHold | UnknownHold            | UnknownHold              | UnknownHold
open    | Repeated      | more / no   | settled                | voided                   | settled
ended   | Repeated      | Declined    | Repeated if equal,     | Repeated if voided,      | Repeated
        |               |             | adjusted after expiry, | adjusted to zero after   |
        |               |             | else Conflict          | expiry, else Conflict    |

It is pure: `now` is an argument, and what only the journal knows (how a hold ended, whether a key was used) is asked
for by raising LookUp and handed in as `found`. What `due` says has to be written first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .account import Account
from .admission import LEAST_SLICE, authorize, extend
from .agreements import as_of, due, end_run, lapsed, set_terms, start_run
from .commands import (
    Adjust,
    Authorize,
    Command,
    EndRun,
    Extend,
    FailTopup,
    Grant,
    Post,
    Report,
    SetTerms,
    Settle,
    StartRun,
    StartTopup,
    Void,
)
from .crediting import adjust, fail_topup, grant, post, report, start_topup
from .decision import Conflict, Decision, Declined, Found, LedgerRuleError, LookUp, Repeated, UnknownHold
from .endings import settle, void
from .keys import key_of, keys_of
from .money import AmountError

__all__ = [
    "LEAST_SLICE",
    "Conflict",
    "Decision",
    "Declined",
    "Found",
    "LedgerRuleError",
    "LookUp",
    "Repeated",
    "UnknownHold",
    "as_of",
    "decide",
    "due",
    "key_of",
    "keys_of",
]


def decide(account: Account, command: Command, now: int, found: Found = None) -> Decision:
    """What the command leads to. `now` (microseconds since 1970) must not lie before the account's last entry.

    Raises LookUp, UnknownHold, Conflict, or AmountError for a sum beyond ±2⁶².
    """
    try:
        decision = _RULES[type(command)](account, command, now, found)
    except AmountError:
        if found is not None:
            raise
        raise LookUp(*keys_of(command)) from None  # what is too much now may have been written before it was
    if isinstance(decision, list) and (written_off := lapsed(account, now)):
        decision.insert(0, written_off)
    return decision


_RULES: dict[type[Any], Callable[[Account, Any, int, Found], Decision]] = {
    Authorize: authorize,
    Extend: extend,
    Settle: settle,
    Void: void,
    Grant: grant,
    Report: report,
    Post: post,
    Adjust: adjust,
    SetTerms: set_terms,
    StartRun: start_run,
    EndRun: end_run,
    StartTopup: start_topup,
    FailTopup: fail_topup,
}
