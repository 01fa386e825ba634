"""This file knows how to check a whole journal: fold it anew, compare, and list what an operator should look at.

It only reads, in short chunks, beside processes that go on writing; what is appended after it began is left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ..core.account import Account
from ..core.events import Adjusted, Granted, Reported, Settled, UnknownKind, decode
from ..core.evolve import evolve
from ..core.money import Ticks
from ..core.state import STATE_FORMAT, from_state, to_state
from .journal import Entry, Journal, OwnerMark

Progress: TypeAlias = Callable[[int, int], None]
"""progress(entries folded, entries in all)"""

CHUNK = 500
ACCOUNTS_THAWED = 20_000
"""Accounts kept as objects (3.5 kB each); beyond that all are folded up into text, a tenth of it."""
DIFFERENCES_LISTED = 100


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that does not agree with the entries before it."""

    customer: str = field(repr=False)
    version: int
    """The entry at which it shows."""
    what: str


@dataclass(frozen=True, slots=True)
class OpenHold:
    customer: str = field(repr=False)
    id: str
    amount: Ticks
    at: int
    """Microseconds since 1970 when it was made."""
    owner: str
    state: str
    """"alive"; "dead": recovery will settle it; "gone": no process is known that could end it."""


@dataclass(frozen=True, slots=True)
class FollowerLag:
    name: str
    pending: int
    """Entries it has still to pass."""
    oldest_age_s: float


@dataclass(slots=True)
class Audit:
    """What a journal adds up to."""

    entries: int = 0
    accounts: int = 0
    snapshots: int = 0
    """Snapshots that were compared."""
    difference_count: int = 0
    differences: list[Difference] = field(default_factory=list)
    """The first hundred of them."""
    granted: Ticks = 0
    charged: Ticks = 0
    cost: Ticks = 0
    debt: Ticks = 0
    """Owed now."""
    overrun: Ticks = 0
    absorbed: Ticks = 0
    forgiven: Ticks = 0
    overruns: Counter[str] = field(default_factory=Counter)
    """Records by cause."""
    records: Counter[str] = field(default_factory=Counter)
    """By kind: settled, expired (the outcome is unknown, its process died), reported, adjusted."""
    bases: Counter[str] = field(default_factory=Counter)
    """Records by basis: reported, counted, estimated."""
    unknown_outcomes: Counter[str] = field(default_factory=Counter)
    """Records whose answer never came, by how they ended."""
    holds: list[OpenHold] = field(default_factory=list)
    followers: list[FollowerLag] = field(default_factory=list)
    dead_letters: list[tuple[str, int, str]] = field(default_factory=list)
    passed: list[tuple[str, str, str, int]] = field(default_factory=list)
    """(day, reason, host, count) of requests that passed unmetered or would have been refused, newest day first."""

    def differ(self, customer: str, version: int, what: str) -> None:
        self.difference_count += 1
        if len(self.differences) < DIFFERENCES_LISTED:
            self.differences.append(Difference(customer, version, what))


def audit(journal: Journal, now: int, progress: Progress | None = None) -> Audit:
    """Refold every account and compare with its snapshot and with the balance on each entry. Changes nothing.

    May raise Busy or JournalUnavailable. Memory grows with the number of accounts, not of entries.
    """
    found = Audit()
    owners_before = journal.owners()
    fold = _Fold(found)
    last = journal.last_seq()
    after = 0
    while after < last and (entries := journal.read(after, CHUNK)):
        for entry in entries:
            if entry.seq <= last:
                fold.add(entry)
        after = entries[-1].seq
        if progress is not None:
            progress(min(after, last), last)
    for name, account in fold.items():
        found.debt += account.debt
        found.holds += _open_holds(name, account)
        if name not in fold.broken:
            _compare_snapshot(journal, name, account, found)
    found.accounts = len(fold)
    found.holds = _with_owners(found.holds, owners_before, journal.owners())
    found.followers = [_lag(journal, name, seq, now) for name, seq in journal.cursors()]
    found.dead_letters = journal.dead_letters()
    found.passed = journal.bumps()
    return found


class _Fold:
    """All accounts, folded from their first entry on. An account that cannot be folded any further is set aside."""

    def __init__(self, found: Audit) -> None:
        self._found = found
        self._thawed: dict[str, Account] = {}
        self._frozen: dict[str, str] = {}
        self.broken: set[str] = set()

    def __len__(self) -> int:
        return len(self._thawed) + len(self._frozen)

    def items(self) -> Iterator[tuple[str, Account]]:
        """Every account in turn."""
        yield from self._thawed.items()
        for name, frozen in self._frozen.items():
            yield name, from_state(frozen)

    def get(self, customer: str) -> Account:
        account = self._thawed.get(customer)
        if account is None:
            if len(self._thawed) >= ACCOUNTS_THAWED:
                self._frozen.update((name, to_state(one)) for name, one in self._thawed.items())
                self._thawed.clear()
            frozen = self._frozen.pop(customer, None)
            account = self._thawed[customer] = Account() if frozen is None else from_state(frozen)
        return account

    def add(self, entry: Entry) -> None:
        self._found.entries += 1
        if entry.account in self.broken:
            return
        account = self.get(entry.account)
        try:
            event = decode(entry.kind, entry.event)
            self._check_place(account, entry)
            evolve(account, event, entry.at)
        except UnknownKind:
            self._break(entry, f"kind {entry.kind!r} is of a newer release; the account cannot be checked further")
            return
        except Exception as error:  # whatever a damaged entry makes the arithmetic do
            self._break(entry, f"cannot be folded ({type(error).__name__}); the account cannot be checked further")
            return
        if account.balance(entry.at) != entry.balance_after:
            self._found.differ(
                entry.account, entry.version, "the balance on the entry is not what the entries add up to"
            )
        _count(self._found, event, entry.record)

    def _check_place(self, account: Account, entry: Entry) -> None:
        if entry.version != account.version + 1:
            self._found.differ(entry.account, entry.version, f"follows entry {account.version}: entries are missing")
            account.version = entry.version - 1
        if entry.at <= account.at:
            self._found.differ(entry.account, entry.version, "is not later than the entry before it")

    def _break(self, entry: Entry, what: str) -> None:
        self.broken.add(entry.account)
        self._found.differ(entry.account, entry.version, what)


def _count(found: Audit, event: object, text: str | None) -> None:
    """Add what one entry says to the sums."""
    if isinstance(event, Granted):
        found.granted += event.amount
        return
    if not isinstance(event, Settled | Reported | Adjusted):
        return
    facts = json.loads(text) if text else {}
    found.charged += event.charge
    found.cost += facts.get("cost", 0)
    if basis := facts.get("basis"):
        found.bases[basis] += 1
    if isinstance(event, Settled | Adjusted):
        found.overrun += event.overrun
        found.absorbed += event.absorbed
        if event.cause:
            found.overruns[event.cause] += 1
    match event:
        case Settled():
            found.records["expired" if event.lost_owner else "settled"] += 1
        case Reported():
            found.records["reported"] += 1
            found.forgiven += event.forgiven
            if facts.get("unheld"):
                found.overruns["unheld"] += 1
        case Adjusted():
            found.records["adjusted"] += 1
    ending = facts.get("ending", "")
    if ending == "owner_lost" or (facts.get("basis") == "estimated" and not facts.get("answered")):
        found.unknown_outcomes[ending or "unknown"] += 1


def _compare_snapshot(journal: Journal, name: str, account: Account, found: Audit) -> None:
    """A snapshot and the entries after it must add up to what all entries add up to."""
    snapshot = journal.snapshot(name)
    # One of another format is ignored by every reader; one that is newer than this audit can wait for the next.
    if snapshot is None or snapshot.format != STATE_FORMAT or snapshot.version > account.version:
        return
    tail = journal.since(name, snapshot.version)
    if not tail or (tail[0].version, tail[0].at) != (snapshot.version, snapshot.at):
        return  # taken of another history (a restored file): readers ignore it too
    found.snapshots += 1
    try:
        thawed = from_state(snapshot.state)
        for entry in tail[1:]:
            if entry.version <= account.version:
                evolve(thawed, decode(entry.kind, entry.event), entry.at)
    except Exception as error:  # whatever a damaged snapshot makes the arithmetic do
        found.differ(name, snapshot.version, f"the snapshot cannot be folded on ({type(error).__name__})")
        return
    if thawed != account:
        found.differ(name, snapshot.version, "the snapshot is not what the entries add up to")


def _open_holds(name: str, account: Account) -> Iterator[OpenHold]:
    for hold_id, hold in account.holds.items():
        yield OpenHold(name, hold_id, hold.amount, hold.at, hold.owner, "gone")


def _with_owners(holds: list[OpenHold], before: list[OwnerMark], after: list[OwnerMark]) -> list[OpenHold]:
    """The same holds, oldest first, each with what is known of its owner.

    Asked before and after the fold: an owner may have come, or been forgotten with its last hold, meanwhile.
    """
    states = {mark.owner: "alive" if mark.alive else "dead" for mark in (*before, *after)}
    found = [replace(hold, state=states.get(hold.owner, "gone")) for hold in holds]
    return sorted(found, key=lambda hold: hold.at)


def _lag(journal: Journal, name: str, cursor: int, now: int) -> FollowerLag:
    waiting = journal.read(cursor, 1)
    if not waiting:
        return FollowerLag(name, 0, 0.0)
    return FollowerLag(name, journal.last_seq() - cursor, max(0.0, (now - waiting[0].at) / 1_000_000))
