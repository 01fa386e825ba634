"""This file knows under which key an entry stands: unique per account, so the journal itself refuses a second one."""

from __future__ import annotations

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
    Settle,
    StartRun,
    StartTopup,
    Void,
)
from .events import (
    Adjusted,
    Event,
    Granted,
    Held,
    Reported,
    RunEnded,
    RunStarted,
    Settled,
    TopupFailed,
    TopupStarted,
    Voided,
)

ADJUSTMENTS_MOST = 16
"""Corrections of one record. They are numbered, so that two at once cannot both give back the same credit."""


def key_of(event: Event) -> str | None:
    """The key of an event's entry; None: it has none."""
    match event:
        case Held():
            return f"hold:{event.hold}"
        case Settled() | Voided():
            return f"end:{event.hold}"
        case Adjusted():
            return f"adjust:{event.hold}:{event.number}" if event.key else f"late:{event.hold}"
        case Granted():
            return f"grant:{event.key}"
        case Reported():
            return f"report:{event.key}"
        case RunStarted():
            return f"run:{event.run}"
        case RunEnded():
            return f"run_end:{event.run}"
        case TopupStarted():
            return f"topup:{event.key}"
        case TopupFailed():
            return f"topup_end:{event.key}"
        case _:
            return None


def keys_of(command: Command) -> tuple[str, ...]:
    """The keys under which the journal may already know this command's outcome."""
    match command:
        case Authorize():
            return (f"hold:{command.hold}",)
        case Extend():
            return (f"hold:{command.hold}", f"end:{command.hold}", f"late:{command.hold}")
        case Settle() | Void():
            of = command.hold
            return (f"hold:{of}", f"end:{of}", f"late:{of}", *_corrections(of))
        case Grant():
            return (f"grant:{command.key}",)
        case Report():
            return (f"report:{command.key}",)
        case Post(adjusts=""):
            return (f"end:{command.record}", f"report:{command.record}")
        case Post():
            of, number = command.adjusts, correction(command)
            own = (f"adjust:{of}:{number}",) if number > ADJUSTMENTS_MOST else ()
            return (f"end:{of}", f"report:{of}", f"late:{of}", *_corrections(of), *own)
        case Adjust():
            of = command.of
            return (f"hold:{of}", f"end:{of}", f"report:{of}", f"late:{of}", *_corrections(of))
        case StartRun() | EndRun():
            return (f"run:{command.run}", f"run_end:{command.run}")
        case StartTopup():
            return (f"topup:{command.key}",)
        case FailTopup():
            return (f"topup:{command.key}", f"topup_end:{command.key}", f"grant:{command.key}")
        case _:
            return ()


def _corrections(of: str) -> list[str]:
    return [f"adjust:{of}:{number}" for number in range(1, ADJUSTMENTS_MOST + 1)]


def correction(command: Post) -> int:
    """Which of a record's corrections is posted; 0: what an owner said late."""
    number = command.record.rpartition(":")[2]
    return int(number) if number.isdecimal() and len(number) < 4 else 0
