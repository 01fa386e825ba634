"""This file knows who this process is to a journal, and from which entry on it may have holds open."""

from __future__ import annotations

from .journal import Entry, Journal

_OPEN: dict[str, dict[tuple[str, str], int]] = {}
"""Owner → its open holds, as (account, hold) → a seq not above that of the hold. An owner is a process: all its ledgers
share this. The id of a hold is an account's own: two customers may have the same one open."""


class Presence:
    """The owner id under which holds are made here. Others end its open holds only once the process is dead (T9)."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.owner: str | None = None
        self.known_seq = 0
        """Some seq that the journal has reached: what is appended from now on has a greater one."""
        self.last: Entry | None = None
        """The entry that was appended here last, as far as it is known."""
        self.opens: dict[tuple[str, str], int] = {}
        self._said = 0
        self._row_may_be_gone = False
        self.doubts = 0
        """How often the journal turned out to have been put back to an older state."""
        self._searched = 0

    def register(self) -> str:
        """Make the journal know this process. Safe to repeat. Raises Busy or JournalUnavailable."""
        owner = self._journal.register_owner()
        self.known_seq = self._journal.last_seq()
        self.opens = _OPEN.setdefault(owner, {})
        self._said, self._row_may_be_gone = 0, False
        self.owner = owner
        return owner

    def named(self, owner: str) -> str:
        """This process has an id, of which the journal hears before the first hold."""
        self.owner, self._row_may_be_gone = owner, True
        return owner

    def doubt(self) -> None:
        """The journal has lost entries, and with them perhaps the owner's row: register before the next hold. With them
        endings may be lost, too: what is open there and not here is ended before the row may say that there is none."""
        self._row_may_be_gone = self.owner is not None
        self.last = None
        self.doubts += 1

    @property
    def to_search(self) -> str | None:
        """This process's owner id while the journal may have holds of it open that it has ended long since."""
        return self.owner if self._searched != self.doubts else None

    def searched(self, doubts: int) -> None:
        """All such holds are ended, of all histories up to this doubt."""
        self._searched = doubts

    def settle_doubt(self) -> None:
        """Register anew. What is under way may have got any number since, but none below that in the row."""
        if not self._row_may_be_gone:
            return
        owner = self.register()
        low = next((mark.low_seq for mark in self._journal.owners() if mark.owner == owner), 1)
        for hold, seq in self.opens.copy().items():
            if seq > low and hold in self.opens:
                self.opens[hold] = low

    def opening(self, account: str, hold: str) -> bool:
        """Said before the hold is appended, so that no look in between misses it. Raises what `register` raises.

        False if that was said already: an attempt before this one may have made the hold, or make it yet.
        """
        self.settle_doubt()
        if (account, hold) in self.opens:
            return False
        self.opens[account, hold] = self.known_seq + 1
        return True

    def ended(self, account: str, hold: str) -> None:
        self.opens.pop((account, hold), None)

    def advance(self) -> None:
        """Tell the journal from where on this process may have open holds: recovery starts reading there.

        The row is a witness, too: if it does not say what was said last, or the entry that was appended last is not
        there, the journal is an older one by now (T42).
        """
        if self.owner is None or self._row_may_be_gone or self.to_search is not None:
            return
        last, low = self.last, self.known_seq + 1  # read first: what is opened meanwhile lies above, or is in `opens`
        low = min([low, *self.opens.copy().values()])
        if low <= self._said:
            return
        if not self._is_as_it_was(last):
            self.doubt()
            return
        self._journal.advance_owner(self.owner, low)
        self._said = low

    def _is_as_it_was(self, last: Entry | None) -> bool:
        if all(mark.owner != self.owner or mark.low_seq < self._said for mark in self._journal.owners()):
            return False
        if last is None:
            return True
        there = self._journal.entries(last.account, before=last.version + 1, limit=1)
        return [(one.version, one.at, one.key) for one in there] == [(last.version, last.at, last.key)]
