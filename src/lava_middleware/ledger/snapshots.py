"""This file knows when an account is worth a snapshot, and writes it beside the hot path."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..core.state import STATE_FORMAT, to_state
from .accounts import Slot
from .journal import Busy, Journal, JournalUnavailable, Snapshot

ENTRIES_LEAST = 128
"""A shorter tail is folded faster than a snapshot is read."""

_AT_ONCE = 64


class Snapshots:
    """Accounts whose tail has grown as long as it may. `due` from any thread, `write` from the ledger's."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._due: deque[Slot] = deque()

    def consider(self, slot: Slot) -> None:
        """Note the account if its tail has 128 entries and as many bytes as its last snapshot. Lock held."""
        if slot.tail_entries >= ENTRIES_LEAST and slot.tail_bytes >= slot.snapshot_bytes and not slot.snapshot_due:
            slot.snapshot_due = True
            self._due.append(slot)

    def write(self) -> None:
        """Write some of those that are due; failing costs nothing but a longer fold later."""
        self.save([self._due.popleft() for _ in range(min(len(self._due), _AT_ONCE))])

    def save(self, slots: Iterable[Slot]) -> None:
        snapshots = [snapshot for slot in slots if (snapshot := _taken(slot)) is not None]
        if not snapshots:
            return
        try:
            self._journal.save_snapshots(snapshots)
        except (Busy, JournalUnavailable):
            return


def _taken(slot: Slot) -> Snapshot | None:
    with slot.lock:
        slot.snapshot_due = False
        account = slot.account
        if account is None or not account.version:
            return None
        state = to_state(account)
        slot.tail_entries = slot.tail_bytes = 0
        slot.snapshot_bytes = len(state)
        return Snapshot(slot.id, account.version, account.at, STATE_FORMAT, state)
