"""This file knows how to end the holds of processes that died: as settlements of unknown outcome, never as gifts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator

from ..core.account import Account, Hold
from ..core.commands import Settle
from ..core.events import Held, UnknownKind, decode
from ..core.record import lost_owner_settlement
from .journal import Busy, Entry, Journal, JournalUnavailable

_log = logging.getLogger("lava_middleware")

_AT_ONCE = 50
"""Holds ended before the ledger's thread looks after its callers again."""


def recover(
    journal: Journal, end_hold: Callable[[Entry, Held], bool], mine: str | None = None
) -> Generator[None, None, bool]:
    """End every hold of every dead owner, then forget the owner. Yields often, so that others get their turn.

    `end_hold` gets the entry and event of a hold that may be open, and is called again if it raises Busy; True: it
    was open and is settled now. `mine`: an owner who lives, but whose endings may be lost; it is not forgotten. False
    is returned if something could not be settled yet. A process killed in the middle of this leaves the rest to the
    next one.
    """
    dead = {mark.owner: mark.low_seq for mark in journal.owners() if not mark.alive or mark.owner == mine}
    if not dead:
        return True
    refused: set[str] = set()
    ended = tried = 0
    after = max(0, min(dead.values()) - 1)
    while entries := journal.read(after):
        after = entries[-1].seq
        for entry in entries:
            held = _hold_of(entry, dead)
            if held is None:
                continue
            while True:
                try:
                    ended += end_hold(entry, held)
                    break
                except Busy:
                    yield
                except (JournalUnavailable, UnknownKind) as error:
                    _log.error("a dead process's hold cannot be settled yet: %s", error)
                    refused.add(held.owner)
                    break
            tried += 1
            if tried % _AT_ONCE == 0:
                yield
        yield
    for owner in dead.keys() - refused - {mine}:
        journal.forget_owner(owner)
    if ended:
        _log.info("settled %d holds of processes that died", ended)
    return not refused


def _hold_of(entry: Entry, dead: dict[str, int]) -> Held | None:
    """The hold that this entry opened, if one of the dead opened it and had not ended it when it last said so."""
    if entry.kind != Held.kind:
        return None
    event = decode(entry.kind, entry.event)
    if isinstance(event, Held) and entry.seq >= dead.get(event.owner, entry.seq + 1):
        return event
    return None


def settlement_of(account: Account, entry: Entry, held: Held) -> tuple[Settle, str] | None:
    """What ends this hold for its dead owner, and its record; None if it has ended or is another owner's by now."""
    hold: Hold | None = account.holds.get(held.hold)
    if hold is None or hold.owner != held.owner:
        return None
    return lost_owner_settlement(entry.record, held.hold, hold)
