"""This file knows who this process is to a journal, and from which entry on it may have holds open."""

from __future__ import annotations

from .journal import Journal

_OPEN: dict[str, dict[str, int]] = {}
"""Owner → its open holds → a seq not above that of the hold. An owner is a process: all its ledgers share this."""


class Presence:
    """The owner id under which holds are made here. Others end its open holds only once the process is dead (T9)."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.owner: str | None = None
        self.known_seq = 0
        """Some seq that the journal has reached: what is appended from now on has a greater one."""
        self.opens: dict[str, int] = {}
        self._said = 0
        self._row_may_be_gone = False

    def register(self) -> str:
        """Make the journal know this process. Safe to repeat. Raises Busy or JournalUnavailable."""
        owner = self._journal.register_owner()
        self.known_seq = self._journal.last_seq()
        self.opens = _OPEN.setdefault(owner, {})
        self._said, self._row_may_be_gone = 0, False
        self.owner = owner
        return owner

    def doubt(self) -> None:
        """The journal has lost entries, and with them perhaps the owner's row: register before the next hold."""
        self._row_may_be_gone = self.owner is not None

    def settle_doubt(self) -> None:
        if self._row_may_be_gone:
            self.register()

    def opening(self, hold: str) -> None:
        """Said before the hold is appended, so that no look in between misses it. Raises what `register` raises."""
        if self._row_may_be_gone:
            self.register()
        self.opens[hold] = self.known_seq + 1

    def ended(self, hold: str) -> None:
        self.opens.pop(hold, None)

    def advance(self) -> None:
        """Tell the journal from where on this process may have open holds: recovery starts reading there."""
        if self.owner is None:
            return
        low = self.known_seq + 1  # read first: a hold opened meanwhile lies above it, or is among the open ones
        low = min([low, *self.opens.copy().values()])
        if low > self._said:
            self._journal.advance_owner(self.owner, low)
            self._said = low
