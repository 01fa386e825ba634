"""This file knows how to keep accounts in memory, each folded from its entries and provably of the same history."""

from __future__ import annotations

from _thread import allocate_lock
from collections import OrderedDict
from collections.abc import Callable, Sequence

from ..core.account import Account
from ..core.events import Event, decode
from ..core.evolve import evolve
from ..core.state import STATE_FORMAT, from_state
from .counters import Counters
from .journal import Entry, Journal, JournalUnavailable, Snapshot

LOOK_AFTER_LOSS = 16
"""Commands that may read the tail first after another process was faster, or had been there again. A look that finds
nothing halves what is left of them: after five such the account is taken for ours alone."""


class Slot:
    """One account in memory, with the lock that whoever reads or changes it holds (T43)."""

    __slots__ = (
        "account",
        "epoch",
        "generation",
        "id",
        "lock",
        "look_first",
        "snapshot_bytes",
        "snapshot_due",
        "tail_bytes",
        "tail_entries",
        "unsure",
    )

    def __init__(self, account_id: str) -> None:
        self.id = account_id
        self.lock = allocate_lock()
        self.account: Account | None = None
        """None: not loaded, or not to be trusted any more."""
        self.generation = 0
        self.epoch = 0
        self.look_first = 0
        self.unsure = False
        """The answer to the last append was lost: look before the next one."""
        self.tail_entries = 0
        self.tail_bytes = 0
        self.snapshot_bytes = 0
        self.snapshot_due = False

    def grew(self, entries: int, size: int) -> None:
        self.tail_entries += entries
        self.tail_bytes += size


class Accounts:
    """A bounded number of accounts in memory. Losing one changes nothing: it is folded anew."""

    def __init__(
        self,
        journal: Journal,
        size: int,
        counters: Counters,
        on_other_history: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._slots: OrderedDict[str, Slot] = OrderedDict()
        """The one used last comes last. cachetools and a lock around it say the same and take three times as long."""
        self._size = size
        self._lock = allocate_lock()
        self._counters = counters
        self._on_other_history = on_other_history
        """Called when an account turns out to have been folded from entries that the journal does not hold any more."""
        self._epoch = 0
        """How often that was. What was folded before that is no news."""

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, account_id: str) -> Slot:
        try:
            slot = self._slots[account_id]
            self._slots.move_to_end(account_id)
            return slot
        except KeyError:  # it is new here, or another thread has just thrown it out
            return self._new_slot(account_id)

    def _new_slot(self, account_id: str) -> Slot:
        with self._lock:
            slot = self._slots.get(account_id)
            if slot is None:
                slot = self._slots[account_id] = Slot(account_id)
                while len(self._slots) > self._size:
                    self._slots.popitem(last=False)
            return slot

    def seen(self, account_id: str) -> Account | None:
        """The account as it is in memory now, perhaps in the middle of a change; None: not there."""
        slot = self._slots.get(account_id)
        return None if slot is None else slot.account

    def with_tail_of(self, entries: int) -> list[Slot]:
        """Accounts that have folded at least so many entries since their last snapshot."""
        with self._lock:
            return [slot for slot in list(self._slots.values()) if slot.tail_entries >= entries]

    def ready(self, slot: Slot) -> tuple[Account, bool]:
        """The slot's account and whether it was just compared with the journal. Lock held."""
        if slot.account is None or slot.generation != self._journal.generation:
            return self.load(slot), True
        if slot.unsure or slot.look_first:
            slot.look_first = LOOK_AFTER_LOSS if self.refresh(slot) else slot.look_first // 2
            return slot.account, True
        return slot.account, False

    def refresh(self, slot: Slot) -> bool:
        """Fold what others have appended. True if there was anything, or if the account had to be loaded anew."""
        account = slot.account
        if account is None or slot.generation != self._journal.generation:
            self.load(slot)
            return True
        entries = self._journal.since(slot.id, account.version)
        if account.version:
            if not entries or not _is(entries[0], account.version, account.at):
                self.load(slot)  # the journal holds another history: it was put back to an older state (T42)
                return True
            del entries[0]
        if entries:
            self._fold(slot, account, entries)
        slot.unsure = False
        return bool(entries)

    def load(self, slot: Slot) -> Account:
        """The account from its snapshot and tail, or from its first entry on. Lock held."""
        self._counters.reloads += 1
        if slot.account is not None:
            self.belied(slot)
        slot.account = None
        slot.generation, slot.epoch = self._journal.generation, self._epoch
        account, entries = self._start(slot)
        self._fold(slot, account, entries)
        slot.unsure = False
        return account

    def belied(self, slot: Slot) -> None:
        """The journal does not hold the entries that the slot's account is made of."""
        if slot.epoch == self._epoch:
            self._epoch += 1
            self._on_other_history()

    def _start(self, slot: Slot) -> tuple[Account, list[Entry]]:
        snapshot = self._journal.snapshot(slot.id)
        slot.tail_entries = slot.tail_bytes = slot.snapshot_bytes = 0
        if snapshot is not None and (account := _thawed(snapshot)) is not None:
            entries = self._journal.since(slot.id, snapshot.version)
            if entries and _is(entries[0], snapshot.version, snapshot.at):
                slot.snapshot_bytes = len(snapshot.state)
                return account, entries[1:]
        return Account(), self._journal.since(slot.id, 1)

    def _fold(self, slot: Slot, account: Account, entries: Sequence[Entry]) -> None:
        slot.account = None  # whatever interrupts the fold leaves nothing half done behind
        for entry in entries:
            if entry.version != account.version + 1:
                raise JournalUnavailable("an account's entries have a gap in the ledger: restore it from a backup")
            evolve(account, decode(entry.kind, entry.event), entry.at)
        slot.account = account
        slot.grew(len(entries), sum(len(entry.event) for entry in entries))

    def find(self, slot: Slot, keys: Sequence[str]) -> tuple[Event, ...]:
        """What the journal holds under these keys, in version order."""
        if not keys:
            return ()
        return tuple(decode(entry.kind, entry.event) for entry in self._journal.find(slot.id, keys))


def _is(entry: Entry, version: int, at: int) -> bool:
    return entry.version == version and entry.at == at


def _thawed(snapshot: Snapshot) -> Account | None:
    """The account in the snapshot; None if another release wrote it or it cannot be read: it is only a cache."""
    if snapshot.format != STATE_FORMAT:
        return None
    try:
        account = from_state(snapshot.state)
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    return account if (account.version, account.at) == (snapshot.version, snapshot.at) else None
