"""This file knows what a place that keeps the journal must do: append with proof, read tails, find by key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    """One line of one customer's journal. `seq` is 0 until it was appended."""

    account: str
    version: int
    """1 for a customer's first entry, then without gaps."""
    kind: str
    key: str | None
    """Unique per account: "hold:ID" for an authorization, "end:ID" for the ending of that hold, "grant:KEY",
    "report:KEY", "late:ID" for an adjustment after an expiry; None for entries nobody repeats."""
    balance_after: int
    """Ticks: what grants hold after it, less debt."""
    event: str
    """JSON of core.events."""
    record: str | None
    """JSON of the usage record (or, on held.1, its draft). Tail reads leave it out."""
    at: int
    """Microseconds since 1970; strictly increasing per account. With `version` it names this very entry: a journal
    that was put back to an older state and grew again has other times (T42)."""
    seq: int = 0


class Outcome(Enum):
    """How an append ended."""

    APPENDED = "appended"
    CONFLICT = "conflict"
    """Another entry has that version, or that key: read the tail, then look the key up."""
    NO_PREDECESSOR = "no_predecessor"
    """The entry it builds on is not there: the caller's account is from a lost future. Drop it and reload."""
    BUSY = "busy"
    """Of several appends in one: another writer has this account. Nothing was written of it, of others perhaps."""


class Busy(Exception):
    """Another writer has the journal at this moment. Nothing was written; the same append may be tried again."""


class JournalUnavailable(Exception):
    """The journal cannot be read or written: corrupt, full, read-only, gone. The message says what and what to do."""


class Unreachable(JournalUnavailable):
    """The journal does not answer at this moment: a connection was lost, a server starts anew. It may be back soon."""


class Refused(JournalUnavailable):
    """The journal does not take this very entry, however often it is tried. Others it takes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A cached fold: the account's state after `version`. Dropping every snapshot changes nothing."""

    account: str
    version: int
    at: int
    """Of the entry it was taken after: it is only valid on a journal that holds that very entry."""
    format: int
    state: str


@dataclass(frozen=True, slots=True)
class OwnerMark:
    """A process that opened the journal: holds it made have a seq of at least `low_seq`."""

    owner: str
    low_seq: int
    alive: bool


def check_consecutive(entries: Sequence[Entry], predecessor: tuple[int, int]) -> None:
    """Raise ValueError unless these are entries of one account that follow the predecessor without a gap."""
    account, version = entries[0].account, predecessor[0]
    for entry in entries:
        version += 1
        if entry.version != version or entry.account != account:
            raise ValueError("entries of one append belong to one account and follow their predecessor without a gap")


class Journal(Protocol):
    """A place to append. Safe to call from any thread; every method is one short transaction or none.

    Any method may raise Busy (nothing is known to be written) or JournalUnavailable.
    """

    def append(self, entries: Sequence[Entry], predecessor: tuple[int, int]) -> tuple[Outcome, int]:
        """Append entries of one account with consecutive versions, all or none, in one statement.

        `predecessor` is (version, at) of the entry they build on, (0, 0) for a new account. Returns the outcome and
        the seq of the last appended entry (0 unless APPENDED).
        """

    def since(self, account: str, version: int) -> list[Entry]:
        """All entries of the account with at least this version, in order, without records.

        Callers pass the version they already have, so the first row proves that their history is the journal's.
        """

    def find(self, account: str, keys: Sequence[str]) -> list[Entry]:
        """The entries with these keys, with records, in version order."""

    def entries(self, account: str, *, before: int | None = None, limit: int = 100) -> list[Entry]:
        """The account's entries with a version below `before`, newest first, with records."""

    def read(self, after: int, limit: int = 500) -> list[Entry]:
        """Entries with seq above `after`, in seq order, with records: what followers see. Complete below its last."""

    def last_seq(self) -> int: ...

    def accounts(self, *, after: str = "", limit: int = 500) -> list[str]:
        """Account ids above `after`, in order."""

    def snapshot(self, account: str) -> Snapshot | None: ...

    def save_snapshots(self, snapshots: Iterable[Snapshot]) -> None: ...

    def cursor(self, follower: str) -> int:
        """The last seq this follower is done with; 0 at first."""

    def cursors(self) -> list[tuple[str, int]]:
        """(follower, seq) of every follower that ever saved one, by name."""

    def save_cursor(self, follower: str, seq: int, last: Entry | None = None) -> None:
        """`last`: the entry that had this seq when it was read. If it has not by now, nothing is saved (T42)."""

    def bury(self, follower: str, seq: int, reason: str) -> None:
        """Put an entry that the follower's target refuses for good into dead_letters."""

    def dead_letters(self, *, limit: int = 100) -> list[tuple[str, int, str]]:
        """(follower, seq, reason), newest first."""

    def note(self, name: str) -> str | None:
        """A small document kept beside the journal (learned values, counts of unmetered traffic)."""

    def save_note(self, name: str, text: str) -> None: ...

    def bump(self, day: str, reason: str, host: str, count: int) -> None:
        """Add to the count of requests that passed without being metered, or would have been refused."""

    def bumps(self) -> list[tuple[str, str, str, int]]:
        """(day, reason, host, count), newest day first."""

    def register_owner(self) -> str:
        """This process's owner id for this journal: the same for every `Lava` of the process, another after fork."""

    def advance_owner(self, owner: str, low_seq: int) -> None:
        """All holds this owner made before `low_seq` have ended."""

    def owners(self) -> list[OwnerMark]:
        """Every owner that may still have open holds. Never probes the caller's own process (T41)."""

    def forget_owner(self, owner: str) -> None:
        """A dead owner whose holds are all ended."""

    def maintain(self) -> None:
        """What a place needs done now and then; cheap. The ledger's thread calls it every 25 to 50 ms if it is free to,
        the thread of the batches after each. Never raises."""

    def sync(self, timeout_s: float) -> bool:
        """Wait until all that was appended before this call, by anyone, is as durable as the setting promises.

        False when it could not be had in that time. An exporter sends nothing before True.
        """

    @property
    def generation(self) -> int:
        """Changes when what was appended may be gone, for instance with a replaced file: drop every account."""

    def close(self) -> None:
        """Give the journal up; safe to repeat. Every other call then raises JournalUnavailable."""


class ExclusiveJournal(Protocol):
    """What a journal may offer beside `Journal`: the right to write alone, for an account that loses every race."""

    def exclusive(self) -> AbstractContextManager[None]:
        """No other writer appends until the block ends; what this thread appends in it is committed at its end.

        Raises Busy where the right cannot be had at this moment, or the commit cannot be made: nothing was written.
        """


class Appended(NamedTuple):
    """How the append of one account's entries ended, among others."""

    outcome: Outcome
    seqs: Sequence[int] = ()
    """Of each entry, in order; none unless APPENDED."""
    key_taken: bool = False
    """The conflict is about a key: somebody else has it, though perhaps no entry with that version."""


class Alone(Protocol):
    """The right to append to some accounts that nobody else has meanwhile."""

    tails: dict[str, list[Entry]]
    """What was asked for, as it is and stays."""

    def commit(self, appends: Sequence[tuple[Sequence[Entry], tuple[int, int]]]) -> list[Appended]:
        """`append_many`, and the end of the right. A key that somebody has already refuses all of them."""


class BatchJournal(Journal, Protocol):
    """A journal that answers from afar: commands that arrive while an append is in flight go into one together."""

    batches: bool

    def name_owner(self) -> str:
        """The id that `register_owner` gives, without asking anybody: for event loops, which must not wait."""

    def append_many(self, appends: Sequence[tuple[Sequence[Entry], tuple[int, int]]]) -> list[Appended]:
        """As many appends as given, each of another account and each as `append` does it, in one statement if possible.

        Raises Busy where nothing was written of any. An account that is busy beside others is told so by its outcome.
        """

    def tails(self, wanted: Sequence[tuple[str, int]]) -> dict[str, list[Entry]]:
        """`since` for several (account, version) at once."""

    def snapshots(self, accounts: Sequence[str]) -> dict[str, Snapshot]:
        """`snapshot` for several at once; those that have one."""

    def alone(self, wanted: Sequence[tuple[str, int]]) -> AbstractContextManager[Alone]:
        """Nobody else appends to these accounts until the block ends; `wanted` is as in `tails`.

        What this thread reads in the block is what the journal holds. A block that raises has written nothing, unless
        it had committed.
        """

    def writes_here(self, here: bool = True) -> None:
        """From now on what this thread reads goes over the same connection as its appends, or no more."""
