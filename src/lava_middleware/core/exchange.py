"""This file knows the life of an exchange: which state follows which event, and what the ledger is told at its end.

A table, not a generator: an exchange outlives the call that opened it and must survive being ended at any time.
"""

from __future__ import annotations

from typing import Final

VOID: Final = "void"
"""Nothing is owed: the hold is given back."""
SETTLE: Final = "settle"
"""What was used is posted."""
UNKNOWN: Final = "unknown"
"""The request was sent and no answer came: what is posted is the operator's policy for unknown outcomes."""

OPEN_STATES = ("new", "withdrawn", "held", "sent", "metering")
ENDED_STATES = ("denied", "voided", "settled", "unknown", "cut")

EVENTS = (
    "approved",  # the ledger held it; in metering: the extension was granted
    "declined",  # the ledger said no
    "unreachable",  # the ledger could not be asked
    "unheld",  # it was declined or unreachable, and mode or policy let it go on without a hold
    "dispatched",  # the first byte of the request is about to leave
    "unsent",  # connect, pool, TLS or local protocol error: no byte left
    "rejected",  # the provider answered without billable work
    "answered",  # the provider answers: what comes now is metered
    "fed",  # bytes of the answer
    "finished",  # the dialect's terminal event, or the end of a whole body
    "abandoned",  # the reader stopped: closed, cancelled, dropped
    "lost",  # the connection broke
    "stalled",  # nobody has read for too long
)

TABLE: dict[str, dict[str, tuple[str, str | None]]] = {
    # state → event → (next state, what to tell the ledger).
    # A missing event is a programmer's error and raises. Ended states are not listed: see `follow`.
    "new": {
        "approved": ("held", None),
        "unheld": ("held", None),
        "declined": ("denied", None),
        "unreachable": ("denied", None),
        # Cancelled while the authorize was still on its way: whoever answers it gives the hold back (T45).
        "abandoned": ("withdrawn", None),
        "lost": ("withdrawn", None),
        "stalled": ("withdrawn", None),
    },
    "withdrawn": {
        "approved": ("voided", VOID),
        "unheld": ("denied", None),
        "declined": ("denied", None),
        "unreachable": ("denied", None),
        "abandoned": ("withdrawn", None),
        "lost": ("withdrawn", None),
        "stalled": ("withdrawn", None),
    },
    "held": {
        "dispatched": ("sent", None),
        "unsent": ("voided", VOID),
        "abandoned": ("voided", VOID),
        "lost": ("voided", VOID),
        "stalled": ("voided", VOID),
    },
    "sent": {
        "unsent": ("voided", VOID),
        "rejected": ("voided", VOID),
        "answered": ("metering", None),
        "abandoned": ("unknown", UNKNOWN),
        "lost": ("unknown", UNKNOWN),
        "stalled": ("unknown", UNKNOWN),
    },
    "metering": {
        "approved": ("metering", None),
        "unheld": ("metering", None),
        "declined": ("cut", SETTLE),
        "unreachable": ("cut", SETTLE),
        "rejected": ("voided", VOID),
        "fed": ("metering", None),
        "finished": ("settled", SETTLE),
        "abandoned": ("settled", SETTLE),
        "lost": ("settled", SETTLE),
        "stalled": ("settled", SETTLE),
    },
}


class ImpossibleEvent(RuntimeError):
    """A programmer's error in this library: the event cannot follow the state."""


def follow(state: str, event: str) -> tuple[str, str | None]:
    """(next state, command or None). Ended states ignore what arrives late, but nothing is sent after the end.

    Raises ImpossibleEvent, naming state and event.
    """
    if state in ENDED_STATES and event in EVENTS and event != "dispatched":
        return state, None
    try:
        return TABLE[state][event]
    except KeyError:
        raise ImpossibleEvent(f"an exchange that is {state!r} cannot be {event!r}") from None


REJECTED_STATUSES = frozenset({500, 501, 503, 529})
"""5xx that a provider answers without having worked. 529 is Anthropic's "overloaded"."""
UNKNOWN_STATUSES = frozenset({408, 502, 504, 524})
"""A time-out or a broken hop: the provider may have worked and billed."""


def answer_to(status: int) -> str:
    """What a status says of an exchange: "answered", "rejected" or "lost", before its body was seen.

    3xx is rejected: the next hop authorizes itself. A rejected answer whose body shows usage is settled all the same.
    """
    if 200 <= status < 300:
        return "answered"
    if status in UNKNOWN_STATUSES or (status >= 500 and status not in REJECTED_STATUSES):
        return "lost"
    return "rejected"
